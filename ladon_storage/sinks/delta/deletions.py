"""The deliberate deletions of records, noted in a table of their own.

- A row that another writer removed, and that is no longer in the table, was deleted deliberately.
- A note without a version invalidates all earlier notes of the record: it was removed at its
  source.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ladon_storage.sinks.delta.files import File, as_schema
from ladon_storage.sinks.delta.index import INDEX_COLUMNS, VERSION_KEYS, SourceIndex
from ladon_storage.sinks.delta.object_store import Location
from ladon_storage.sinks.delta.rows import (
    DELETED,
    INSTANT,
    now_in_microseconds,
    without_partitions,
)
from ladon_storage.sinks.delta.table import ManagedTable

_NOTED = (*VERSION_KEYS, "deleted_at")
_NOTED_ROW = ("record_id", "version", "collected_at", "returned_at")
"""The columns that distinguish a deleted row from one of the same version stored later."""


class Deletions:
    """The notes about deleted records.

    Args:
        table: The table of records.
        location: The table of the notes, which is created when needed.
        keeps_all: Whether the records have a row for each version.
    """

    def __init__(self, table: ManagedTable, location: Location, *, keeps_all: bool) -> None:
        self._keeps_all = keeps_all
        self._table = table
        self._location = location
        self._deleted: ManagedTable | None = None
        self._known: dict[str, SourceIndex] = {}

    def refresh(self) -> None:
        """Load the notes of other runs."""
        if self._deleted:
            self._deleted.refresh()
            self._known.clear()

    def of(self, source_id: str, ids: list[str]) -> pa.Table:
        """Return the valid notes about some ids."""
        return _holding(self._known_of(source_id).find(ids))

    def note(self, source_id: str, day: str, removed: File, here: list[File]) -> int:
        """Note the rows of a file that are in no other file, and return their number.

        Rows marked as removed are excluded: the source delivers them again once it lists them, and
        earlier notes about them are no longer valid.
        """
        table, count = self._table, 0
        keys = VERSION_KEYS if self._keeps_all else (*INDEX_COLUMNS, "collected_at")
        for batch in table.read([removed], (*keys, "removed_at")):
            ids = batch["record_id"].unique().sort().to_pylist()
            if not ids:
                continue
            near = [each for each in here if each.may_hold(ids[0], ids[-1])]
            there = _keys_of(self._present(near, ids), VERSION_KEYS[:2])
            rows = _others(pa.Table.from_batches([batch]), there)
            is_said = pc.is_null(rows["removed_at"])
            unsaid, rows = rows.filter(pc.invert(is_said)), rows.filter(is_said)
            count += rows.num_rows
            noted = self._known_of(source_id).find(rows["record_id"].unique().to_pylist())
            # Noted before, too, if a run died after that: each row is noted once.
            rows = _others(rows, _keys_of([noted], _NOTED_ROW), _NOTED_ROW)
            self._append(source_id, day, rows)
            noted = self.of(source_id, unsaid["record_id"].unique().to_pylist())
            if noted.num_rows:
                ids = noted["record_id"].unique()
                unsaid = unsaid.filter(pc.is_in(unsaid["record_id"], ids))
                nothing = pa.array([""] * unsaid.num_rows, pa.string())
                place = unsaid.schema.get_field_index("version")
                self._append(source_id, day, unsaid.set_column(place, "version", nothing))
        return count

    def _append(self, source_id: str, day: str, rows: pa.Table) -> None:
        """Append deletions to the notes, after all existing ones."""
        if not rows.num_rows:
            return
        known = self._known_of(source_id)
        noted = known.find(rows["record_id"].unique().to_pylist())["deleted_at"].cast(pa.int64())
        now = max([now_in_microseconds(), *(each + 1 for each in noted.to_pylist())])
        instants = pa.array([now] * rows.num_rows, pa.int64()).cast(INSTANT)
        rows = rows.append_column("deleted_at", instants)
        rows = as_schema(rows, without_partitions(DELETED))
        deleted = self._deleted_table()
        deleted.commit([deleted.add(source_id, day, rows)], {})
        known.add(rows)

    def _present(self, files: list[File], ids: list[str]) -> Iterator[pa.Table]:
        for file in files:
            try:
                yield self._table.load([file], VERSION_KEYS[:2], ids)
            except FileNotFoundError:  # a file that was added then, and is no part of the table now
                continue

    def _deleted_table(self) -> ManagedTable:
        if self._deleted is None:
            self._deleted = ManagedTable(self._location, DELETED, "record_id", "deletions")
        return self._deleted

    def _known_of(self, source_id: str) -> SourceIndex:
        if source_id not in self._known:
            self._known[source_id] = SourceIndex(self._deleted_table(), source_id, _NOTED)
        return self._known[source_id]


def _others(
    rows: pa.Table, known: set[tuple[Any, ...]], keys: Sequence[str] = VERSION_KEYS[:2]
) -> pa.Table:
    """Return the rows whose keys are unknown."""
    return rows.filter(pa.array([each not in known for each in _tuples(rows, keys)], pa.bool_()))


def _keys_of(tables: Any, keys: Sequence[str]) -> set[tuple[Any, ...]]:
    return {each for rows in tables for each in _tuples(rows, keys)}


def _tuples(rows: Any, keys: Sequence[str]) -> Iterator[tuple[Any, ...]]:
    there = set(rows.schema.names)
    nothing = [None] * rows.num_rows
    columns = [rows[name].to_pylist() if name in there else nothing for name in keys]
    return zip(*columns, strict=True)


def _holding(noted: pa.Table) -> pa.Table:
    """Return the valid notes about deletions: the last of each version, in their order."""
    noted = noted.sort_by("deleted_at")
    last: dict[str, dict[str, int]] = {}
    for number, (record_id, version) in enumerate(_tuples(noted, VERSION_KEYS[:2])):
        if version:
            last.setdefault(record_id, {})[version] = number
        else:
            last.pop(record_id, None)
    held = sorted(number for each in last.values() for number in each.values())
    return noted.take(pa.array(held, pa.int64()))
