"""The rows of a SQL sink, and the changes made to them by a page, a reversion and a removal.

- A page is compared with the table before it is written, unless the page before was all new. If
  that guess is wrong, or another run was faster, the page is begun again.
- Deleted records count as known.
- A table that is made again has no rows, notes or positions. A source that had some since its run
  began fails: its next position would hide what was in the table before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from datetime import UTC, datetime
from hashlib import blake2b
from operator import itemgetter
from typing import Any

from sqlalchemy import Connection

from ladon_storage.collection.protocols import Position, WriteResult, run_digest
from ladon_storage.collection.records import Columns, Page, Record, Reject
from ladon_storage.errors import SinkError
from ladon_storage.sinks.removal import refuse_implausible_removal
from ladon_storage.sinks.sql.deletions import Deleted, Deletions, Gone
from ladon_storage.sinks.sql.dialect import Compared, Dialect, batches, execute, statement
from ladon_storage.sinks.sql.history import History, RunClock
from ladon_storage.sinks.sql.tables import Tables, aware
from ladon_storage.sinks.versions import last_said, latest, latest_of_versions

_POSITION = """
SELECT timestamp, watermark, origin, run_id, document, order_shown FROM ladon_positions
WHERE table_name = ? AND source_id = ?
"""

_REMEMBER = """
INSERT INTO ladon_positions (
table_name, source_id, timestamp, watermark, origin, run_id, document, order_shown)
VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (table_name, source_id) DO UPDATE
SET timestamp = excluded.timestamp, watermark = excluded.watermark, origin = excluded.origin,
run_id = excluded.run_id, document = excluded.document, order_shown = excluded.order_shown
"""

_MOVE = """
UPDATE ladon_positions
SET timestamp = ?, watermark = ?, origin = ?, run_id = ?, document = ?, order_shown = ?
WHERE table_name = ? AND source_id = ?
"""

_QUARANTINE = """
INSERT INTO {table} (source_id, digest, run_id, reason, raw, quarantined_at)
VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING
"""

_HAS_ANY = "SELECT EXISTS (SELECT 1 FROM {table} WHERE source_id = ?)"

# In the order of the key: PostgreSQL would read a large table until it finds a row.
_CONDITIONS = """
SELECT (SELECT 1 FROM {table} WHERE source_id = ? ORDER BY record_id LIMIT 1) IS NOT NULL,
EXISTS (SELECT 1 FROM ladon_deleted WHERE table_name = ? AND source_id = ?),
EXISTS (SELECT 1 FROM {table} WHERE source_id = ? AND removed_at IS NOT NULL)
"""

_IS_REPLACED = ", EXISTS (SELECT 1 FROM {table} WHERE source_id = ? AND replaced_at IS NOT NULL)"


class Rows:
    """The operations on a sink's rows, on one connection, a page in one transaction.

    Args:
        database: The kind of database.
        tables: The sink's tables.
        connection: The connection of one run.
    """

    def __init__(self, database: Dialect, tables: Tables, connection: Connection) -> None:
        self._database = database
        self._tables = tables
        self._connection = connection
        self._keeps_all = tables.keep == "all"
        conditions = _CONDITIONS + _IS_REPLACED * self._keeps_all
        self._has_any_row, self._asked_conditions = (
            statement(each, tables.records.name, tables.keep) for each in (_HAS_ANY, conditions)
        )
        self._quarantining = statement(_QUARANTINE, tables.quarantine.name, tables.keep)
        self._was_all_new: bool | None = None
        self._with_rows: set[str] = set()
        self._with_position: set[str] = set()
        self._clock = RunClock()
        self._history = History(database, tables, connection, self._clock)
        self._deletions = Deletions(tables, connection)

    def write(
        self, source_id: str, page: Page, run_id: str, position: Position | None
    ) -> WriteResult:
        """Make a page durable.

        Raises:
            SinkError: What the source's run has read or written before is no longer there.
        """
        if not len(page) and position is None:
            return WriteResult()
        result = self._write(source_id, page, run_id, position)
        if page.records:
            self._with_rows.add(source_id)
        if position is not None and not result.superseded:
            self._with_position.add(source_id)
        return result

    def _write(
        self, source_id: str, page: Page, run_id: str, position: Position | None
    ) -> WriteResult:
        records: Sequence[Record] = page.records
        if not self._keeps_all and not (isinstance(records, Columns) and records.are_distinct):
            records = latest(records)
        beside = _Unwritten(source_id, page.rejects, run_id, position)
        if self._was_all_new is None:
            self._was_all_new = not self._has_any(source_id)
        if records and self._was_all_new and self._write_new(records, beside):
            return WriteResult(new=records)
        result = None
        for is_last in (False, True):
            result = self._write_compared(records, beside, is_last=is_last)
            if result is not None:
                break
        assert result is not None  # noqa: S101 - the last attempt succeeds in any case
        if records:
            self._was_all_new = len(result.new) == len(records)
        return result

    def _write_new(self, records: Sequence[Record], beside: _Unwritten) -> bool:
        """Write records without looking them up; return whether they were all new.

        Otherwise nothing is written.
        """
        database, connection, source_id = self._database, self._connection, beside.source_id
        ids = Columns.of(records).ids
        if self._keeps_all and len(set(ids)) < len(ids):
            return False
        with connection.begin() as transaction:
            database.begin_writing(connection, source_id)
            are_deleted, are_marked, *_ = self._conditions(source_id)
            is_new = not are_deleted and (
                not self._keeps_all or database.are_unknown(connection, source_id, ids)
            )
            if is_new:
                now = self._clock.now()
                is_new = database.store(connection, source_id, records, now, "new") == len(ids)
            if not is_new:
                transaction.rollback()
                return False
            if are_marked:
                database.set_removed(connection, source_id, ids, None)
            self._write_beside(beside)
        return True

    def _write_compared(
        self, records: Sequence[Record], beside: _Unwritten, *, is_last: bool
    ) -> WriteResult | None:
        """Write the changes that a comparison shows; ``None``: another writer was faster."""
        database, connection, source_id = self._database, self._connection, beside.source_id
        with connection.begin() as transaction:
            if is_last:
                database.begin_writing(connection, source_id)
            compared, are_marked = Compared(), False
            gone: dict[str, list[Deleted]] = {}
            if records:
                are_deleted, are_marked, *rest = self._conditions(source_id)
                if are_deleted:  # objects, by which those that are passed over are distinguished
                    records = list(records)
                compared = database.compare(connection, source_id, records, are_replaced=any(rest))
                if are_deleted:
                    gone = self._deletions.of(
                        source_id, [*compared.new, *compared.changed, *compared.superseded]
                    )
                    compared = self._without(source_id, records, compared, gone)
            unknown: Sequence[Record] = compared.new
            if compared.changed:
                unknown = [*compared.new, *compared.changed]
            if self._keeps_all:
                unknown = list(latest_of_versions(unknown).values())
            superseded = last_said(records, compared.superseded)
            again = self._again(source_id, superseded, gone)
            if not (unknown or again or are_marked or beside.is_needed):
                return WriteResult(superseded=superseded)
            if not is_last:
                database.begin_writing(connection, source_id)
                new_ids = Columns.of(compared.new).ids
                if self._keeps_all and not database.are_unknown(connection, source_id, new_ids):
                    transaction.rollback()
                    return None
            if are_marked:
                ids = Columns.of(records).ids
                database.set_removed(connection, source_id, ids, None)
            written, older = 0, []
            if unknown:
                now = self._clock.now()
                written = database.store(connection, source_id, unknown, now)
                if written != len(unknown):
                    if not is_last:
                        transaction.rollback()
                        return None
                    left = database.compare(connection, source_id, unknown, are_replaced=False)
                    self._refuse_left_out(source_id, len(left.new) + len(left.changed))
                if self._keeps_all:
                    said = {each.record_id: each for each in latest(records)}
                    older = self._history.settle(source_id, unknown, compared, said, now, gone)
            if again:
                again = self._again(source_id, superseded, gone)
                written += self._history.make_current(source_id, again)
                made = {id(each) for each in again}
                superseded = [each for each in superseded if id(each) not in made]
            superseded += last_said(records, older)
            self._write_beside(beside, with_position=not superseded)
        new, changed = compared.new, list[Record]()
        if self._keeps_all or unknown is not new:
            new = latest(new)
            versions = {(each.record_id, each.version) for each in new}
            changed = [each for each in unknown if (each.record_id, each.version) not in versions]
        # Fewer rows were written if another client writes without waiting for others.
        return WriteResult(new, [*changed, *again][: max(written - len(new), 0)], superseded)

    def _without(
        self, source_id: str, records: Sequence[Record], compared: Compared, gone: Gone
    ) -> Compared:
        """Return unknown records without deleted ones, unless the source delivers a change."""
        if not gone:
            return compared
        current = self._history.current(source_id, gone) if self._keeps_all else {}
        said = {each.record_id: each for each in latest(records)}
        wanted = self._deletions.without(compared, gone, current, said)
        # The sink had them, so they were not missing.
        again = [each for each in wanted.new if each.record_id in gone]
        new = [each for each in wanted.new if each.record_id not in gone]
        return Compared(new, [*wanted.changed, *again], wanted.superseded)

    def _again(self, source_id: str, superseded: list[Record], gone: Gone) -> list[Record]:
        """Return the existing versions that become current again at once."""
        return self._history.again(source_id, superseded, gone) if self._keeps_all else []

    def revert(self, source_id: str, records: Sequence[Record]) -> int:
        """Make versions the current ones, and return how many rows changed.

        A version that this run added is not counted, and a deleted version is not added.
        """
        database, connection = self._database, self._connection
        records = latest(records)
        if not records:
            return 0
        with connection.begin():
            database.begin_writing(connection, source_id)
            gone = self._deletions.of(source_id, records)
            if not self._keeps_all:
                are_deleted, *_ = self._conditions(source_id)
                if are_deleted:
                    missing = set(self._lacking(source_id, records))
                    records = [
                        each
                        for each in records
                        if each.record_id not in missing
                        or each.record_id not in gone
                        or gone[each.record_id][-1].version != each.version
                    ]
                count = database.store(connection, source_id, records, self._clock.now(), "any")
            else:
                count = self._history.make_current(source_id, records, gone, self._clock.opened)
            left = database.compare(connection, source_id, records, are_replaced=True)
            lost = [each for each in (*left.new, *left.changed) if each.record_id not in gone]
            self._refuse_left_out(source_id, len(lost) + len(left.superseded))
            return count

    def _refuse_left_out(self, source_id: str, count: int) -> None:
        """Refuse rows that were written without an error, and are not there."""
        if count > 0:
            raise SinkError(
                f"The table {self._tables.records.name!r} rejected {count} of the rows that "
                f"were written for source {source_id!r}, by a trigger, a rule, a policy or a "
                "constraint of its owner; none of them was stored. Remove it, or use another "
                "table.",
                source_id,
            )

    def lacking(self, source_id: str, listed: Mapping[str, datetime]) -> set[str]:
        """Return the ids without a row of that time or later, and without a deleted one."""
        with self._connection.begin():
            storable = {each: at for each, at in listed.items() if _storable(each) == each}
            lacking = set(listed) - storable.keys()
            for some in batches(storable.items()):
                lacking.update(self._database.lacking(self._connection, source_id, dict(some)))
            if lacking and self._conditions(source_id)[0]:
                for ids in batches(lacking & storable.keys()):
                    for record_id, versions in self._deletions.of_ids(source_id, ids).items():
                        if any(each.at >= storable[record_id] for each in versions):
                            lacking.discard(record_id)
        return lacking

    def _lacking(self, source_id: str, records: Sequence[Record]) -> list[str]:
        """Return the ids of records without any row."""
        first = datetime.min.replace(tzinfo=UTC)
        listed = {each.record_id: first for each in records}
        return self._database.lacking(self._connection, source_id, listed)

    def count_records(
        self, source_id: str, after: datetime | None, before: datetime, limit: int
    ) -> int:
        """Return how many records have a current version between two times, at most ``limit``."""
        with self._connection.begin():
            asked = self._tables.between(source_id, after, before, limit)
            return int(self._connection.execute(asked).scalar_one())

    def position(self, source_id: str) -> Position | None:
        """Return the last position that was written."""
        with self._connection.begin():
            asked = (self._tables.records.name, source_id)
            row: Sequence[Any] | None = execute(self._connection, _POSITION, asked).one_or_none()
        self._with_rows.discard(source_id)  # another run begins
        self._with_position.discard(source_id)
        if row is None:
            return None
        self._with_position.add(source_id)
        self._was_all_new = False  # a source with a position nearly always has rows
        timestamp, watermark, origin, run_id, document, order_shown = row
        return Position(
            timestamp=aware(timestamp),
            watermark=watermark and aware(watermark),
            origin=origin and aware(origin),
            run_id=run_id,
            document=document,
            order_shown=bool(order_shown),  # unknown in a position of an older release
        )

    def mark_removed(self, source_id: str, listed_ids: Set[str], max_share: float) -> int:
        """Mark the records that are not in ``listed_ids``, and no others."""
        connection = self._connection
        with connection.begin():  # most runs remove nothing, and need no lock
            if not any(self._removal_changes(source_id, listed_ids, max_share)):
                return 0
        now = self._clock.now()
        with connection.begin():
            self._database.begin_writing(connection, source_id)
            missing, back = self._removal_changes(source_id, listed_ids, max_share)
            for ids, removed_at in ((missing, now), (back, None)):
                for batch in batches(sorted(ids)):
                    marked = self._database.set_removed(connection, source_id, batch, removed_at)
                    self._refuse_left_out(source_id, len(batch) - marked)
        return len(missing)

    def _removal_changes(
        self, source_id: str, present: Set[str], most: float
    ) -> tuple[set[str], set[str]]:
        """Return the ids to be marked, and those whose mark is to be cleared."""
        missing, back, unmarked = set(), set(), 0
        found = self._connection.execute(
            self._tables.removed_flags,
            {"source_id": source_id},
            execution_options={"yield_per": 10_000},
        )
        for record_id, is_marked in found:
            unmarked += not is_marked
            if is_marked and record_id in present:
                back.add(record_id)
            elif not is_marked and record_id not in present:
                missing.add(record_id)
        refuse_implausible_removal(source_id, len(missing), unmarked, most)
        return missing, back

    def _has_any(self, source_id: str) -> bool:
        """Return whether a source has a row: the first page of one that has none is all new."""
        with self._connection.begin():
            return bool(execute(self._connection, self._has_any_row, (source_id,)).scalar_one())

    def _conditions(self, source_id: str) -> Sequence[bool]:
        """Return whether any row of a source was deleted, is marked, or is replaced."""
        table = self._tables.records.name
        asked = (source_id, table, *[source_id] * (3 if self._keeps_all else 2))
        found: Sequence[bool] = execute(self._connection, self._asked_conditions, asked).one()
        are_there, are_deleted, *_ = found
        if source_id in self._with_rows and not (are_there or are_deleted):
            raise self._made_again(source_id)
        return found[1:]

    def _write_beside(self, beside: _Unwritten, *, with_position: bool = True) -> None:
        if beside.rejects:
            self._quarantine(beside)
        if beside.position is not None and with_position:
            self._remember(beside.source_id, beside.position)

    def _quarantine(self, beside: _Unwritten) -> None:
        now, source_id = self._clock.now(), beside.source_id
        run_id = _storable(beside.run_id)
        rows = []
        for reject in beside.rejects:
            raw = _storable(reject.raw)
            digest = blake2b(raw.encode(), digest_size=16).hexdigest()
            rows.append((source_id, digest, run_id, _storable(reject.reason), raw, now))
        rows.sort(key=itemgetter(1))
        execute(self._connection, self._quarantining, *rows)

    def _remember(self, source_id: str, position: Position) -> None:
        run_id = position.run_id
        if run_id is not None and _storable(run_id) != run_id:
            run_id = run_digest(run_id)
        key = (self._tables.records.name, source_id)
        values = (
            *(position.timestamp, position.watermark, position.origin),
            *(run_id, position.document, position.order_shown),
        )
        if source_id not in self._with_position:
            if source_id in self._with_rows:
                self._conditions(source_id)
            execute(self._connection, _REMEMBER, (*key, *values))
        elif not execute(self._connection, _MOVE, (*values, *key)).rowcount:
            raise self._made_again(source_id)

    def _made_again(self, source_id: str) -> SinkError:
        return SinkError(
            f"The table {self._tables.records.name!r} was dropped and made again during a run of "
            f"source {source_id!r}, so that what was stored before is not there. Run again; "
            "collection resumes where the table that is there now ends.",
            source_id,
        )


class _Unwritten:
    """The rows that are written with a page's records."""

    def __init__(
        self, source_id: str, rejects: list[Reject], run_id: str, position: Position | None
    ) -> None:
        self.source_id = source_id
        self.rejects = rejects
        self.run_id = run_id
        self.position = position

    @property
    def is_needed(self) -> bool:
        return bool(self.rejects) or self.position is not None


def _storable(text: str) -> str:
    """Return a text of an unusable item in a form that any database stores."""
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\0")
