"""The rewriting of a Delta table's files, with changed or removed rows.

- Files are rewritten a day at a time, so that memory does not grow with the table.
- All columns of the table keep their values, including those that its owner added.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from datetime import datetime
from itertools import groupby

import pyarrow as pa
import pyarrow.compute as pc
from deltalake.transaction import AddAction, RemoveAction

from ladon_storage.sinks.delta.files import File, as_schema
from ladon_storage.sinks.delta.rows import INSTANT, FreshRows
from ladon_storage.sinks.delta.table import ManagedTable

Action = AddAction | RemoveAction
Change = Callable[[pa.Table], pa.Table]

ROWS_AT_ONCE = 25_000
"""The approximate number of rows in memory during a rewrite; a small file has up to half of it."""


class Rewrite:
    """The rewriting of a source's files in a table.

    Args:
        table: The table.
        source_id: The source.
    """

    def __init__(self, table: ManagedTable, source_id: str) -> None:
        self._table = table
        self._source_id = source_id
        self._done: set[str] = set()
        self.actions: list[Action] = []
        self.days: list[str] = []
        """The day of each file that was added."""

    def change(
        self,
        files: Collection[File],
        ids: Collection[str],
        change: Change,
        added: dict[str, FreshRows] | None = None,
    ) -> set[str]:
        """Rewrite the files that contain rows of some ids, and return the ids that were found.

        Args:
            files: The files that may contain the rows.
            ids: The ids of the rows.
            change: A function that returns the new rows of a file.
            added: Rows by their days; those that fit into a file that is written anyway are removed
                here.
        """
        if not ids:
            return set()
        wanted, found = pa.array(sorted(ids), pa.string()), set()
        order = sorted((f for f in files if f.path not in self._done), key=lambda file: file.day)
        for day, those in groupby(order, lambda file: file.day):
            pending: list[pa.Table] = []
            for file in those:
                if not (there := self._ids_in(file, wanted)):
                    continue
                found |= there
                if added and day in added:
                    pending.append(self._whole(added.pop(day).whole()))
                pending.append(change(self._load([file])))
                self._done.add(file.path)
                self.actions.append(self._table.remove(self._source_id, file))
                if sum(each.num_rows for each in pending) >= ROWS_AT_ONCE:
                    self.add(day, pa.concat_tables(pending))
                    pending = []
            self.add(day, *pending)
        return found

    def add(self, day: str, *rows: pa.Table) -> None:
        """Put rows of a day into the table."""
        if any(each.num_rows for each in rows):
            both = rows[0] if len(rows) == 1 else pa.concat_tables(rows)
            self.actions.append(self._table.add(self._source_id, day, both))
            self.days.append(day)

    def join(self, day: str, files: Collection[File]) -> None:
        """Merge files of a day into one, or into as many as are of a good size."""
        for part in _parts([each for each in files if each.why_it_stays is None]):
            # In order of their ids, so that a look-up reads only a part of them.
            rows = self._load(part).sort_by("record_id")
            self.actions.append(self._table.add(self._source_id, day, rows, data_change=False))
            self.actions += [
                self._table.remove(self._source_id, f, data_change=False) for f in part
            ]

    def _ids_in(self, file: File, wanted: pa.Array) -> set[str]:
        if not file.may_hold(wanted[0].as_py(), wanted[-1].as_py()):
            return set()
        there = self._table.load([file], ["record_id"])["record_id"]
        return set(there.filter(pc.is_in(there, wanted)).to_pylist())

    def _load(self, files: Collection[File]) -> pa.Table:
        return self._table.load(files, self._table.columns.names)

    def _whole(self, rows: pa.Table) -> pa.Table:
        return as_schema(rows, self._table.schema_of(self._table.columns.names))


def is_small(file: File) -> bool:
    """Return whether a file is small enough to be merged."""
    return file.rows is not None and file.rows * 2 < ROWS_AT_ONCE


def without(rows: pa.Table, ids: pa.Array) -> pa.Table:
    """Return the rows that have none of the ids."""
    return rows.filter(pc.invert(pc.is_in(rows["record_id"], ids)))


def marked(rows: pa.Table, ids: pa.Array, when: datetime | None) -> pa.Table:
    """Return the rows; those of some ids are marked as removed at an instant, or not at all."""
    which = pc.is_in(rows["record_id"], ids)
    return set_column(
        rows, "removed_at", pc.if_else(which, pa.scalar(when, INSTANT), rows["removed_at"])
    )


def returned(rows: pa.Table, when: Mapping[tuple[str, str], int]) -> pa.Table:
    """Return the rows; some versions are marked as returned, at instants in microseconds."""
    pairs = zip(rows["record_id"].to_pylist(), rows["version"].to_pylist(), strict=True)
    instants = pa.array([when.get(pair) for pair in pairs], pa.int64()).cast(INSTANT)
    return set_column(rows, "returned_at", pc.coalesce(instants, rows["returned_at"]))


def set_column(rows: pa.Table, name: str, column: pa.ChunkedArray) -> pa.Table:
    """Return the rows with other values in a column."""
    number = rows.schema.get_field_index(name)
    return rows.set_column(number, rows.schema.field(number), column)


def _parts(files: list[File]) -> Iterator[list[File]]:
    """Split files into parts of about `ROWS_AT_ONCE` rows, but never a single file."""
    part: list[File] = []
    for file in files:
        part.append(file)
        if len(part) > 1 and sum(each.rows or 0 for each in part) >= ROWS_AT_ONCE:
            yield part
            part = []
    if len(part) > 1:
        yield part
