"""The quarantine of a Delta sink: a table of rejected items, each of which is stored once."""

from __future__ import annotations

from datetime import UTC, datetime

from ladon_storage.collection.records import Reject
from ladon_storage.sinks.delta.commits import page_name
from ladon_storage.sinks.delta.object_store import Location
from ladon_storage.sinks.delta.rows import (
    REJECTS,
    former_reject_id_of,
    quarantine_rows,
    reject_id_of,
)
from ladon_storage.sinks.delta.table import ManagedTable


class Quarantine:
    """The rejects of all sources.

    Args:
        location: The table, which is created when needed.
    """

    def __init__(self, location: Location) -> None:
        self._location = location
        self._table: ManagedTable | None = None

    def refresh(self) -> None:
        """Load the commits of other runs."""
        if self._table:
            self._table.refresh()

    def store(self, source_id: str, rejects: list[Reject], run_id: str) -> None:
        """Store the rejects that are not stored yet, as one commit."""
        if self._table is None:
            self._table = ManagedTable(self._location, REJECTS, "reject_id", "a quarantine")
        table = self._table
        new = {reject_id_of(each): each for each in reversed(rejects)}
        former = {former_reject_id_of(each): reject_id_of(each) for each in rejects}
        stored = table.load(table.files(source_id), ["reject_id"], sorted({*new, *former}))
        for reject_id in stored["reject_id"].to_pylist():
            new.pop(former.get(reject_id, reject_id), None)
        if not new:
            return
        now = datetime.now(UTC)
        rows = quarantine_rows(new, run_id, now)
        name = page_name(source_id)
        number = (table.transaction(name) or 0) + 1
        table.commit([table.add(source_id, now.date().isoformat(), rows)], {name: number})
