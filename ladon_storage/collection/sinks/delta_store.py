"""What the Delta sink does in its thread: which rows are new, and what one commit changes.

- A commit is numbered within its source, and depends on the number before it. What is known of a
  source is thrown away when somebody else has numbered a commit.
- Rows are replaced by writing the files they are in again without them, a day at a time, so that
  memory does not grow with what the table has.
- Small files of one day are made one on the way and at the end; that changes no row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import suppress
from datetime import UTC, datetime
from itertools import groupby
from typing import Literal, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
from deltalake.exceptions import CommitFailedError, DeltaError
from deltalake.transaction import AddAction, RemoveAction

from ladon_storage.collection.interfaces import Position
from ladon_storage.collection.records import Page, Record, Reject
from ladon_storage.collection.sinks.delta_known import Known
from ladon_storage.collection.sinks.delta_rows import (
    INSTANT,
    NEVER,
    RECORDS,
    REJECTS,
    day_of,
    instant,
    latest_of,
    microseconds,
    quarantine_rows,
    record_rows,
    reject_id_of,
)
from ladon_storage.collection.sinks.delta_table import File, Table, by_day
from ladon_storage.errors import SinkError, SourceError

T = TypeVar("T")
Action = AddAction | RemoveAction

ATTEMPTS = 10
"""How often a page is tried when other runs of its source commit in between."""

COMPACTED_FILES = 128
"""So many small files of one day are made one."""

ROWS_AT_ONCE = 25_000
"""About so many rows are in memory while files are written again; half of it is a small file."""


class Store:
    """Be the tables of a sink, open, for one thread at a time.

    Args:
        root: The folder or the address of the tables.
        name: The table of records; its quarantine is beside it.
        keep: One row for each record, or for each version.
    """

    def __init__(self, root: str, name: str, keep: Literal["latest", "all"]) -> None:
        self._quarantine_address = f"{root}/{name}_quarantine"
        self._keep = keep
        self._records = Table(f"{root}/{name}", RECORDS, "record_id", f"keep={keep!r}")
        self._quarantine: Table | None = None
        self._is_new = True  # nothing was done since it was opened, so that it is up to date
        self._known: dict[str, Known] = {}
        self._added: dict[tuple[str, str], int] = {}

    def write(self, source_id: str, page: Page, run_id: str, position: Position | None) -> int:
        """Store a page, and return how many rows are new or changed."""
        self._is_new = False
        if not source_id:
            raise SinkError("A Delta table cannot be partitioned by a source without a name.")
        if page.rejects:
            self._retried(lambda: self._store_rejects(source_id, page.rejects, run_id))
        if not page.records and position is None:
            return 0
        written = self._retried(lambda: self._store(source_id, page.records, position))
        full = {day for (of, day), count in self._added.items() if count >= COMPACTED_FILES}
        if full:
            self._compact(source_id, full)
        return written

    def position(self, source_id: str) -> Position | None:
        """Return the position that is remembered of a source."""
        if not self._is_new:
            self._records.refresh()
        self._is_new = False
        timestamp, watermark, origin = map(instant, self._position_of(source_id))
        if timestamp is None:
            return None
        return Position(timestamp=timestamp, watermark=watermark, origin=origin)

    def mark_removed(self, source_id: str, present: Set[str], most: float) -> int:
        """Mark what is not present, unmark what is, and return how many records are newly gone."""
        self._is_new = False
        return self._retried(lambda: self._mark(source_id, present, most))

    def tidy(self) -> None:
        """Make small files one, and shorten the log; what fails here the next run does."""
        with suppress(DeltaError, OSError, pa.ArrowException):
            for source_id in {of for of, _ in self._added}:
                self._compact(source_id, {day for of, day in self._added if of == source_id})
            if self._added:
                self._records.clean_up()

    def _retried(self, work: Callable[[], T]) -> T:
        for _ in range(ATTEMPTS - 1):
            try:
                return work()
            except CommitFailedError:
                # Another run of the source was faster: what was read is not what is there.
                self._records.refresh()
                if self._quarantine:
                    self._quarantine.refresh()
        return work()

    def _commit(
        self, source_id: str, actions: Sequence[Action], position: dict[str, int] | None = None
    ) -> None:
        """Commit to the records, as the next number of the source."""
        table, known = self._records, self._known_of(source_id)
        before = table.version
        number = self._number_of(source_id) if known.number is None else known.number
        table.commit(actions, {_page_name(source_id): number + 1, **(position or {})})
        known.number = number + 1
        if position:
            known.position = list(position.values())
        if table.version == before + 1:  # otherwise somebody else may have numbered one since
            known.seen_at = table.version

    def _known_of(self, source_id: str) -> Known:
        table, known = self._records, self._known.get(source_id)
        if known is not None and known.seen_at != table.version:
            if known.number is not None and known.number == self._number_of(source_id):
                known.seen_at = table.version
            else:
                known = None
        if known is None:
            known = self._known[source_id] = Known(table, source_id)
        return known

    def _number_of(self, source_id: str) -> int:
        return self._records.transaction(_page_name(source_id)) or 0

    def _position_of(self, source_id: str) -> list[int | None]:
        known = self._known_of(source_id)
        if known.position is None:
            known.position = [self._records.transaction(each) for each in _names(source_id)]
        return known.position

    def _store(self, source_id: str, records: list[Record], position: Position | None) -> int:
        numbers: dict[str, int] = {}
        if position is not None:
            told = (position.timestamp, position.watermark, position.origin)
            wanted = [NEVER if each is None else microseconds(each) for each in told]
            if wanted != self._position_of(source_id):
                numbers = dict(zip(_names(source_id), wanted, strict=True))
        known = self._known_of(source_id)
        fresh, replaced = self._new(known, records) if records else ([], {})
        # Whatever its version is, a record that a page has is there.
        back = known.marked & {each.record_id for each in records} if records else set()
        if not fresh and not numbers and not back:
            return 0
        rows = record_rows(fresh)
        added = dict(by_day(rows, [each.timestamp.date() for each in fresh]))
        actions = list(self._replace(source_id, replaced, back, added))
        actions += [self._add(source_id, day, those) for day, those in added.items()]
        self._commit(source_id, actions, numbers)
        if fresh:
            known.add(rows)
        known.marked.difference_update(back)
        return len(fresh)

    def _new(self, known: Known, records: list[Record]) -> tuple[list[Record], dict[str, int]]:
        """Return the records that are new or changed, and when the replaced rows are from."""
        if self._keep == "all":
            versions = {(each.record_id, each.version): each for each in reversed(records)}
            stored = known.find([record_id for record_id, _ in versions])
            for pair in zip(
                stored["record_id"].to_pylist(), stored["version"].to_pylist(), strict=True
            ):
                versions.pop(pair, None)
            return list(reversed(versions.values())), {}
        latest = latest_of(records)
        stored = known.find(list(latest))
        columns = (
            stored["record_id"],
            stored["version"],
            stored["record_timestamp"].cast(pa.int64()),
        )
        # A row that was replaced comes before the one that replaced it.
        rows = {
            record_id: (version, moment)
            for record_id, version, moment in zip(*(c.to_pylist() for c in columns), strict=True)
        }
        replaced: dict[str, int] = {}
        for record_id, (version, moment) in rows.items():
            new = latest[record_id]
            if new.version == version or microseconds(new.timestamp) < moment:
                del latest[record_id]
            else:
                replaced[record_id] = moment
        return list(latest.values()), replaced

    def _replace(
        self,
        source_id: str,
        replaced: dict[str, int],
        back: Set[str],
        added: dict[str, pa.Table],
    ) -> Iterator[Action]:
        """Write files again without rows that are replaced, and without marks of what is back."""
        ids = pa.array(sorted({*replaced, *back}), pa.string())
        if not len(ids):
            return
        gone, here = pa.array(list(replaced), pa.string()), pa.array(list(back), pa.string())
        days = {day_of(moment) for moment in replaced.values()}
        files = self._records.files(source_id)
        files = sorted((f for f in files if f.day in days or f.marked), key=lambda f: f.day)
        for day, those in groupby(files, lambda file: file.day):
            pending = [added.pop(day)] if day in added else []
            for file in self._holding(those, ids):
                rows = self._load([file])
                rows = rows.filter(pc.invert(pc.is_in(rows["record_id"], gone)))
                pending.append(_marked(rows, pc.is_in(rows["record_id"], here), None))
                yield self._records.remove(source_id, file)
                if sum(each.num_rows for each in pending) >= ROWS_AT_ONCE:
                    yield self._add(source_id, day, pa.concat_tables(pending))
                    pending = []
            if any(each.num_rows for each in pending):
                yield self._add(source_id, day, pa.concat_tables(pending))

    def _holding(self, files: Iterator[File] | list[File], ids: pa.Array) -> Iterator[File]:
        """Yield the files that hold rows of any of the ids, which are in order."""
        low, high = ids[0].as_py(), ids[-1].as_py()
        for file in files:
            if file.low <= high and file.high >= low:
                found = self._records.load([file], ["record_id"])["record_id"]
                if pc.any(pc.is_in(found, ids)).as_py():
                    yield file

    def _load(self, files: Sequence[File]) -> pa.Table:
        return self._records.load(files, self._records.columns.names)

    def _add(self, source_id: str, day: str, rows: pa.Table) -> AddAction:
        self._added[source_id, day] = self._added.get((source_id, day), 0) + 1
        return self._records.add(source_id, day, rows)

    def _compact(self, source_id: str, days: Set[str]) -> None:
        """Make small files of one day one; that another run was faster does no harm."""
        files = [each for each in self._records.files(source_id) if each.rows * 2 < ROWS_AT_ONCE]
        for day in days:
            self._added.pop((source_id, day), None)
            those = [file for file in files if file.day == day]
            if len(those) < COMPACTED_FILES:
                continue
            actions: list[Action] = []
            for part in _parts(those):
                # In order of their ids, so that a look-up reads only a part of them.
                rows = self._load(part).sort_by("record_id")
                actions.append(self._records.add(source_id, day, rows, is_new=False))
                actions += [self._records.remove(source_id, each, is_new=False) for each in part]
            with suppress(CommitFailedError):
                self._commit(source_id, actions)

    def _mark(self, source_id: str, present: Set[str], most: float) -> int:
        table = self._records
        files = table.files(source_id)
        marked: set[str] = set()
        unmarked: set[str] = set()
        for batch in table.read(files, ("record_id", "removed_at")):
            gone = pc.is_valid(batch["removed_at"])
            marked.update(batch["record_id"].filter(gone).to_pylist())
            unmarked.update(batch["record_id"].filter(pc.invert(gone)).to_pylist())
        missing, back = unmarked - present, marked & present
        if len(missing) > most * len(unmarked):
            raise SourceError(
                f"Of {len(unmarked)} records of source {source_id!r} {len(missing)} are no longer "
                f"listed, more than {most:.0%}: its document may be cut off; nothing is marked. "
                "Allow a greater share if they were really removed.",
                source_id,
            )
        if not missing and not back:
            return 0
        now = datetime.now(UTC)
        gone, here = (pa.array(sorted(ids), pa.string()) for ids in (missing, back))
        actions: list[Action] = []
        for file in self._holding(files, pa.array(sorted(missing | back), pa.string())):
            rows = self._load([file])
            rows = _marked(rows, pc.is_in(rows["record_id"], gone), now)
            rows = _marked(rows, pc.is_in(rows["record_id"], here), None)
            actions.append(table.remove(source_id, file))
            actions.append(self._add(source_id, file.day, rows))
        self._commit(source_id, actions)
        known = self._known_of(source_id)
        known.marked.difference_update(back)
        known.marked.update(missing)
        return len(missing)

    def _store_rejects(self, source_id: str, rejects: list[Reject], run_id: str) -> None:
        if self._quarantine is None:
            self._quarantine = Table(self._quarantine_address, REJECTS, "reject_id", "a quarantine")
        table = self._quarantine
        new = {reject_id_of(each): each for each in rejects}
        stored = table.load(table.files(source_id), ["reject_id"], sorted(new))
        for reject_id in stored["reject_id"].to_pylist():
            new.pop(reject_id, None)
        if not new:
            return
        now = datetime.now(UTC)
        rows = quarantine_rows(new, run_id, now)
        name = _page_name(source_id)
        number = (table.transaction(name) or 0) + 1
        table.commit([table.add(source_id, now.date().isoformat(), rows)], {name: number})


def _marked(rows: pa.Table, which: pa.ChunkedArray, when: datetime | None) -> pa.Table:
    """Return the rows, with some of them marked as removed at an instant, or not at all."""
    number = rows.schema.get_field_index("removed_at")
    column = pc.if_else(which, pa.scalar(when, INSTANT), rows["removed_at"])
    return rows.set_column(number, rows.schema.field(number), column)


def _parts(files: list[File]) -> Iterator[list[File]]:
    """Cut files into parts of about `ROWS_AT_ONCE` rows, but not one alone."""
    part: list[File] = []
    for file in files:
        part.append(file)
        if len(part) > 1 and sum(each.rows for each in part) >= ROWS_AT_ONCE:
            yield part
            part = []
    if len(part) > 1:
        yield part


def _page_name(source_id: str) -> str:
    # What it is comes first: a source may be named like anything.
    return f"ladon-page:{source_id}"


def _names(source_id: str) -> list[str]:
    return [f"ladon-{what}:{source_id}" for what in ("timestamp", "watermark", "origin")]
