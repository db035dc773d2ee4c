"""The current version of a record, where a SQL sink keeps all of them.

The current version is the one without ``replaced_at``, the time at which another version followed:
its order is the one in which the versions were last seen. A new version that is older than the
current one is stored as replaced.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from types import MappingProxyType

from sqlalchemy import Connection

from ladon_storage.collection.protocols import utc_now
from ladon_storage.collection.records import Record
from ladon_storage.errors import SinkError
from ladon_storage.sinks.sql.deletions import Gone, last_deleted
from ladon_storage.sinks.sql.dialect import Compared, Dialect, batches
from ladon_storage.sinks.sql.tables import Tables

_TICK = timedelta(microseconds=1)


class RunClock:
    """The clock of one run, which never returns the same instant twice."""

    def __init__(self) -> None:
        self.opened = self._last = utc_now()

    def now(self) -> datetime:
        """Return the time, later than any before."""
        self._last = max(utc_now(), self._last + _TICK)
        return self._last

    def pass_by(self, instants: Iterable[datetime]) -> None:
        """Continue after instants that were derived from the last one."""
        self._last = max([self._last, *instants])


class History:
    """The versions of the records in one sink's table.

    Args:
        database: The kind of database.
        tables: The sink's tables.
        connection: The connection of one run.
        clock: The time of the run.
    """

    def __init__(
        self, database: Dialect, tables: Tables, connection: Connection, clock: RunClock
    ) -> None:
        self._database = database
        self._tables = tables
        self._connection = connection
        self._clock = clock
        self._is_checked = False

    def again(
        self, source_id: str, superseded: list[Record], gone: Gone = MappingProxyType({})
    ) -> list[Record]:
        """Return existing versions that become current: not older than a current or deleted one.

        They become current at once, as a stored record does where one row is kept.
        """
        if not superseded:
            return []
        current = self.current(source_id, {each.record_id for each in superseded})
        again = []
        for record in superseded:
            times = [at for at, _ in current.get(record.record_id, ())]
            if not times and (last := last_deleted(gone.get(record.record_id, ()))):
                times = [last.at]
            if all(at <= record.timestamp for at in times):
                again.append(record)
        return again

    def settle(
        self,
        source_id: str,
        added: Sequence[Record],
        compared: Compared,
        said: Mapping[str, Record],
        now: datetime,
        gone: Gone,
    ) -> list[Record]:
        """Record which of the added versions, and of those before them, are current.

        The current version is the page's last version (``said``) of an id, unless there is a later
        one, or a later one was deleted.

        Returns:
            The added versions that are older than the existing ones.
        """
        several: dict[str, list[Record]] = {}
        for record in added:
            several.setdefault(record.record_id, []).append(record)
        changed = {each.record_id for each in compared.changed}
        several = {
            record_id: sorted(records, key=lambda each: each.timestamp)
            for record_id, records in several.items()
            if len(records) > 1 or record_id in changed or record_id in gone
        }
        before = self.current(source_id, several.keys() & changed)
        replaced: list[tuple[str, str, datetime | None]] = []
        older: list[Record] = []
        for record_id, records in several.items():
            own = {each.version for each in records}
            there = sorted(each for each in before.get(record_id, []) if each[1] not in own)
            if not there and (deleted := last_deleted(gone.get(record_id, ()))):
                there = [(deleted.at, deleted.version)] if deleted.version not in own else []
            line = [version for _, version in there]
            last = said[record_id]
            is_passed = bool(there) and last.timestamp < there[-1][0]
            if is_passed or (there and last.version not in own):
                older += records if is_passed else []
                line = [*(each.version for each in records), *line]
            else:
                line += [each.version for each in records if each.version != last.version]
                line += [last.version] if last.version in own else []
            replaced += [
                (record_id, version, now + step * _TICK) for step, version in enumerate(line[:-1])
            ]
        self._replace(source_id, replaced)
        return older

    def make_current(
        self,
        source_id: str,
        records: list[Record],
        gone: Gone = MappingProxyType({}),
        before: datetime | None = None,
    ) -> int:
        """Make versions current where all are kept, and return how many were not current.

        Only versions that were collected ``before`` an instant are counted.
        """
        found: dict[str, dict[str, tuple[datetime, datetime | None]]] = {}
        for some in batches(records):
            asked = {"source_id": source_id, "ids": [each.record_id for each in some]}
            for row in self._connection.execute(self._tables.versions, asked):
                found.setdefault(row[0], {})[row[1]] = (row[2], row[3])
        now, count = self._clock.now(), 0
        added: list[Record] = []
        changes: list[tuple[str, str, datetime | None]] = []
        for record in records:
            record_id, version = record.record_id, record.version
            versions = found.get(record_id, {})
            if version not in versions:
                is_there = any(replaced_at is None for _, replaced_at in versions.values())
                last = None if is_there else last_deleted(gone.get(record_id, ()))
                if last and last.version == version:
                    continue
                added.append(record)
            else:
                collected_at, replaced_at = versions[version]
                if replaced_at is not None:
                    changes.append((record_id, version, None))
                    count += before is None or collected_at < before
            # After every clock that wrote here: the order of replaced versions cannot be reversed.
            at = max([now, *(each + _TICK for _, each in versions.values() if each)])
            changes += [
                (record_id, other, at)
                for other, (_, replaced_at) in versions.items()
                if replaced_at is None and other != version
            ]
        if added:
            count += self._database.store(self._connection, source_id, added, now)
        self._replace(source_id, changes)
        return count

    def current(self, source_id: str, ids: Iterable[str]) -> dict[str, list[tuple[datetime, str]]]:
        """Return time and version of each id's current row, where all versions are kept."""
        found: dict[str, list[tuple[datetime, str]]] = {}
        for some in batches(ids):
            asked = {"source_id": source_id, "ids": some}
            for record_id, version, at in self._connection.execute(self._tables.current, asked):
                found.setdefault(record_id, []).append((at, version))
        return found

    def _replace(
        self, source_id: str, versions: Sequence[tuple[str, str, datetime | None]]
    ) -> None:
        rows = [
            {"of_source": source_id, "of_record": record_id, "of_version": version, "at": at}
            for record_id, version, at in sorted(versions, key=lambda each: each[:2])
        ]
        if rows:
            self._clock.pass_by(at for _, _, at in versions if at)
            self._connection.execute(self._tables.replacing, rows)
            self._check_replaced(source_id, versions)

    def _check_replaced(
        self, source_id: str, versions: Sequence[tuple[str, str, datetime | None]]
    ) -> None:
        """Refuse a table that takes an update back, once in a run: a trigger does so unnoticed."""
        replaced = {(record_id, version) for record_id, version, at in versions if at}
        if self._is_checked or not replaced:
            return
        self._is_checked = True
        current = self.current(source_id, {record_id for record_id, _ in replaced})
        for record_id, there in current.items():
            if any((record_id, version) in replaced for _, version in there):
                raise SinkError(
                    f"The table {self._tables.records.name!r} took back that a version of record "
                    f"{record_id[:100]!r} of source {source_id!r} was replaced. Check whether "
                    "a trigger sets its column replaced_at.",
                    source_id,
                )
