"""The count of a source's records between two times, in a Delta table."""

from __future__ import annotations

from datetime import datetime

import pyarrow as pa
import pyarrow.compute as pc

from ladon_storage.sinks.delta.index import VERSION_KEYS
from ladon_storage.sinks.delta.rows import NEVER, microseconds
from ladon_storage.sinks.delta.table import ManagedTable
from ladon_storage.sinks.delta.versions import current_of

_COLUMNS = ("record_id", "record_timestamp", "removed_at")


def count_between(
    table: ManagedTable,
    source_id: str,
    after: datetime | None,
    before: datetime,
    limit: int,
    keep: str,
) -> int:
    """Return how many unmarked records have a current version between two times.

    The reading ends at ``limit``; both times are excluded.
    """
    first, last = after.date().isoformat() if after else "", before.date().isoformat()
    low, end = microseconds(after) if after else NEVER, microseconds(before)
    files = [each for each in table.files(source_id) if first <= each.day <= last]
    found: set[str] = set()
    for batch in table.read(files, _COLUMNS):
        times = batch["record_timestamp"].cast(pa.int64())
        is_within = pc.and_(pc.greater(times, low), pc.less(times, end))
        is_within = pc.and_(is_within, pc.is_null(batch["removed_at"]))
        ids = batch["record_id"].filter(is_within).to_pylist()
        found.update(_current(table, source_id, ids, low, end) if keep == "all" else ids)
        if len(found) >= limit:
            return limit
    return len(found)


def _current(table: ManagedTable, source_id: str, ids: list[str], low: int, end: int) -> list[str]:
    """Return the ids whose current version is between two times."""
    if not ids:
        return []
    current = current_of(table.load(table.files(source_id), VERSION_KEYS, ids))
    return [record_id for record_id, (_, (_, at, _)) in current.items() if low < at < end]
