"""The Delta sink's work in its thread: the choice of new rows, and the changes in one commit.

- The changes of other writers are examined before any look-up.
- Small files of one day are merged during a run and at its end; that changes no row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from typing import TypeVar

import pyarrow as pa
import pyarrow.compute as pc
from deltalake.exceptions import CommitFailedError, DeltaError

from ladon_storage.collection.protocols import Position, WriteResult
from ladon_storage.collection.records import Columns, Page, Record
from ladon_storage.errors import SinkError
from ladon_storage.sinks.delta.commits import SourceCommits
from ladon_storage.sinks.delta.counting import count_between
from ladon_storage.sinks.delta.history import History
from ladon_storage.sinks.delta.index import ORDER, SourceIndex
from ladon_storage.sinks.delta.object_store import Location
from ladon_storage.sinks.delta.positions import changed, numbers_of
from ladon_storage.sinks.delta.quarantine import Quarantine
from ladon_storage.sinks.delta.rewrite import (
    Rewrite,
    is_small,
    marked,
    returned,
    without,
)
from ladon_storage.sinks.delta.rows import (
    NEVER,
    RECORDS,
    RETURNED,
    FreshRows,
    microseconds,
)
from ladon_storage.sinks.delta.table import ManagedTable
from ladon_storage.sinks.delta.versions import (
    Plan,
    places_of,
    plan_all,
    plan_latest,
    plan_of_new,
    plan_of_versions,
    plan_return_all,
    plan_return_latest,
)
from ladon_storage.sinks.removal import refuse_implausible_removal
from ladon_storage.sinks.versions import latest_by_id

T = TypeVar("T")

ATTEMPTS = 10
"""The number of attempts for a page when other runs of its source commit in between."""

COMPACTED_FILES = 32
"""The number of small files of one day that are merged into one."""

MANY_IDS = 10_000
"""The number of ids from which a look-up reads all ids."""

_REMEMBERED = 2**18


class DeltaWriter:
    """The open tables of a sink, for one thread at a time.

    Args:
        root: The location of the tables.
        name: The table of records; its quarantine and its deletions are tables next to it.
        keep: One row for each record, or for each version.
    """

    def __init__(self, root: Location, name: str, keep: str) -> None:
        self._keep = keep
        schema = RECORDS if keep == "latest" else RECORDS.append(RETURNED)
        self._records = ManagedTable(
            root.below(name),
            schema,
            "record_id",
            f"keep={keep!r}",
            mark="removed_at",
            later=[RETURNED.name],
        )
        self._history = History(
            self._records, root.below(f"{name}_deleted"), keeps_all=keep == "all"
        )
        self._commits = SourceCommits(self._records, self._history)
        self._quarantine = Quarantine(root.below(f"{name}_quarantine"))
        self._is_new = True  # nothing was done since it was opened, so it is up to date
        self._has_looked = False
        self._added: dict[tuple[str, str], int] = {}
        self._behind: set[int] = set()
        """Versions that were added as older ones, and are counted already."""

    def write(
        self, source_id: str, page: Page, run_id: str, position: Position | None
    ) -> WriteResult:
        """Store a page, and return the changes."""
        self._is_new = False
        if not source_id:
            raise SinkError(
                "A Delta table cannot be partitioned by a source without a name. Set source_id."
            )
        if page.rejects:
            self._retried(lambda: self._quarantine.store(source_id, page.rejects, run_id))
        if not page.records and position is None:
            return WriteResult()
        result = self._looking(source_id, lambda: self._store(source_id, page.records, position))
        full = {day for (of, day), count in self._added.items() if count >= COMPACTED_FILES}
        if full:
            self._compact(source_id, full)
        return result

    def position(self, source_id: str) -> Position | None:
        """Return the stored position of a source."""
        if not self._is_new:
            self._records.refresh()
        self._is_new = False
        return self._looking(source_id, lambda: self._commits.position_of(source_id))

    def mark_removed(self, source_id: str, listed_ids: Set[str], max_share: float) -> int:
        """Mark unlisted records, unmark listed ones, and return how many are newly marked."""
        self._is_new = False
        return self._looking(source_id, lambda: self._mark(source_id, listed_ids, max_share))

    def revert(self, source_id: str, records: Sequence[Record]) -> int:
        """Make versions the current ones, and return how many were not current."""
        self._is_new = False
        return self._looking(source_id, lambda: self._revert(source_id, records))

    def lacking(self, source_id: str, listed: Mapping[str, datetime]) -> set[str]:
        """Return the ids without a current version of a time or later."""
        self._is_new = False
        return self._looking(source_id, lambda: self._lacking(source_id, listed))

    def count_records(
        self, source_id: str, after: datetime | None, before: datetime, limit: int
    ) -> int:
        """Return how many records have a version between two times, at most ``limit``."""
        self._is_new = False
        counting = partial(
            count_between, self._records, source_id, after, before, limit, self._keep
        )
        return self._looking(source_id, counting)

    def close(self, *, is_clean: bool) -> None:
        """Merge small files, and shorten the log; after a failure the next run does it."""
        if not is_clean:
            return
        with suppress(DeltaError, OSError, pa.ArrowException, SinkError):
            is_added = bool(self._added)
            for source_id in {of for of, _ in self._added}:
                self._compact(source_id, {day for of, day in self._added if of == source_id})
            if is_added and self._history.tidy():
                self._records.clean_up()

    def _looking(self, source_id: str, work: Callable[[], T]) -> T:
        """Do work that depends on other writers' changes, after examining those."""

        def looked() -> T:
            self._look(source_id)
            return work()

        return self._retried(looked)

    def _look(self, source_id: str) -> None:
        number = 0 if self._has_looked else self._commits.number_of(source_id)
        is_changed, is_restored = self._history.look(number)
        is_first, self._has_looked = not self._has_looked, True
        if is_changed:
            self._commits.forget()
        if is_restored and not is_first:
            raise SinkError(
                f"The sink's table {self._records.address} was restored while a run collected "
                "into it, so rows of this run may be missing. Run again; collection resumes "
                "from the position of the restored table.",
                source_id,
            )

    def _retried(self, work: Callable[[], T]) -> T:
        for _ in range(ATTEMPTS - 1):
            try:
                return work()
            except CommitFailedError:
                # Another run of the source was faster: the data read before is outdated.
                self._records.refresh()
                self._quarantine.refresh()
        return work()

    def _store(
        self, source_id: str, records: Sequence[Record], position: Position | None
    ) -> WriteResult:
        known = self._commits.known_of(source_id)
        numbers = None
        if position is not None:
            self._commits.position_of(source_id)
            numbers = numbers_of(position, source_id)
            if known.is_position_held and not changed(numbers, known.numbers or {}):
                numbers = None
        plan = self._plan(source_id, known, records) if records else Plan()
        if plan.superseded:  # after a crash the next run must read them again
            numbers = None
        # Whatever its version, a record in a page exists.
        back: set[str] = set()
        if records and known.marked:
            back = known.marked.intersection(Columns.of(records).ids)
        result = WriteResult(plan.new, tuple(plan.changed), tuple(plan.superseded))
        if not plan.changes_rows and numbers is None and not back:
            return result
        self._put(source_id, plan, back=back, position=numbers)
        known.marked.difference_update(back)
        if self._keep == "all" and plan.superseded and len(self._behind) < _REMEMBERED:
            fresh = {id(each) for each in plan.fresh}
            self._behind |= {_hash(each) for each in plan.superseded if id(each) in fresh}
        return result

    def _plan(self, source_id: str, known: SourceIndex, records: Sequence[Record]) -> Plan:
        columns = Columns.of(records)
        ids = list(dict.fromkeys(columns.ids))
        stored, deleted = known.find(ids), self._history.deleted(source_id, ids)
        if len(ids) == len(columns):
            quick = plan_of_new(columns, stored, deleted)
            if quick is not None:
                return quick
        if self._keep == "latest":
            return plan_latest(records, stored, deleted)
        plan = plan_of_versions(records, stored, deleted)
        if plan is None:
            if ORDER[-1] not in stored.schema.names:
                stored = known.find_places(ids)
            plan = plan_all(records, stored, deleted)
        return plan

    def _put(
        self,
        source_id: str,
        plan: Plan,
        *,
        back: Set[str] = frozenset(),
        position: Mapping[str, int] | None = None,
    ) -> None:
        """Commit the rows of a plan in place of the replaced ones, and clear marks."""
        table, known = self._records, self._commits.known_of(source_id)
        if (plan.back is not None or any(plan.returned)) and not table.has_column(RETURNED.name):
            table.add_column(RETURNED.name)
        rows = FreshRows.of(plan.fresh, plan.arrived, plan.returned)
        added = rows.by_day()
        rewrite = Rewrite(table, source_id)
        if plan.replaced or plan.back is not None or back:
            self._rewrite(source_id, rewrite, plan, back, added)
        for day, those in added.items():
            rewrite.add(day, those.whole())
        self._note_added(source_id, rewrite)
        count = len(plan.fresh) - len(plan.replaced)
        self._commits.commit(source_id, rewrite.actions, position, added=count)
        for keys in (rows.keys, plan.back):
            if keys is not None and keys.num_rows:
                known.add(keys)

    def _rewrite(
        self,
        source_id: str,
        rewrite: Rewrite,
        plan: Plan,
        back: Set[str],
        added: dict[str, FreshRows],
    ) -> None:
        """Rewrite the files with rows that a plan replaces, brings back, or unmarks."""
        gone, here = (pa.array(list(each), pa.string()) for each in (plan.replaced, back))
        days, returning = plan.days, plan.returning
        missing = dict(returning)

        def change(those: pa.Table) -> pa.Table:
            those = marked(without(those, gone), here, None)
            if not returning:
                return those
            for pair in zip(
                those["record_id"].to_pylist(), those["version"].to_pylist(), strict=True
            ):
                missing.pop(pair, None)
            return returned(those, returning)

        files = self._records.files(source_id)
        near = [each for each in files if each.day in days or (back and each.may_have_marks)]
        ids = {*plan.replaced, *back, *(record_id for record_id, _ in returning)}
        found = rewrite.change(near, ids, change, added)
        # Their owner changed their time.
        left = (plan.replaced.keys() - found) | {record_id for record_id, _ in missing}
        if left:
            rewrite.change(files, left, change, added)

    def _note_added(self, source_id: str, rewrite: Rewrite) -> None:
        for day in rewrite.days:
            self._added[source_id, day] = self._added.get((source_id, day), 0) + 1

    def _revert(self, source_id: str, records: Sequence[Record]) -> int:
        known = self._commits.known_of(source_id)
        last = latest_by_id(records)
        if not last:
            return 0
        find = known.find if self._keep == "latest" else known.find_places
        stored, deleted = find(list(last)), self._history.deleted(source_id, list(last))
        plan_return = plan_return_latest if self._keep == "latest" else plan_return_all
        plan = plan_return(last, stored, deleted)
        if plan.changes_rows:
            self._put(source_id, plan)
        return len({_hash(each) for each in plan.changed} - self._behind)

    def _lacking(self, source_id: str, listed: Mapping[str, datetime]) -> set[str]:
        if not listed:
            return set()
        # Only a record's current version counts: the source may have gone back to it.
        order = ORDER if self._keep == "all" else ORDER[1:2]
        files, only = self._records.files(source_id), None
        if len(listed) <= MANY_IDS:
            only = sorted(each for each in listed if each.isascii() or _is_storable(each))
            files = [each for each in files if only and each.may_hold(only[0], only[-1])]
        current: dict[str, tuple[int, ...]] = {}
        for batch in self._records.read(files, ("record_id", *order), only):
            for record_id, place in places_of(batch, order):
                if record_id in listed and place >= current.get(record_id, place):
                    current[record_id] = place
        of_time = order.index("record_timestamp")
        moments = {record_id: place[of_time] for record_id, place in current.items()}
        deleted = self._history.deleted(source_id, list(listed))
        if deleted is not None:
            for record_id, (moment,) in places_of(deleted, ORDER[1:2]):
                moments[record_id] = max(moment, moments.get(record_id, NEVER))
        return {
            record_id
            for record_id, moment in listed.items()
            if moments.get(record_id, NEVER) < microseconds(moment)
        }

    def _compact(self, source_id: str, days: Set[str]) -> None:
        """Merge small files of one day; a faster run is no problem."""
        files = [f for f in self._records.files(source_id) if is_small(f)]
        for day in days:
            self._added.pop((source_id, day), None)
            those = [file for file in files if file.day == day]
            if len(those) < COMPACTED_FILES:
                continue
            rewrite = Rewrite(self._records, source_id)
            rewrite.join(day, those)
            with suppress(CommitFailedError):
                self._commits.commit(source_id, rewrite.actions)

    def _mark(self, source_id: str, present: Set[str], most: float) -> int:
        table = self._records
        files = table.files(source_id)
        is_marked: set[str] = set()
        unmarked: set[str] = set()
        for batch in table.read(files, ("record_id", "removed_at")):
            gone = pc.is_valid(batch["removed_at"])
            is_marked.update(batch["record_id"].filter(gone).to_pylist())
            unmarked.update(batch["record_id"].filter(pc.invert(gone)).to_pylist())
        missing, back = unmarked - present, is_marked & present
        refuse_implausible_removal(source_id, len(missing), len(unmarked), most)
        if not missing and not back:
            return 0
        now = datetime.now(UTC)
        gone, here = (pa.array(sorted(ids), pa.string()) for ids in (missing, back))
        rewrite = Rewrite(table, source_id)
        rewrite.change(
            files, missing | back, lambda rows: marked(marked(rows, gone, now), here, None)
        )
        self._note_added(source_id, rewrite)
        self._commits.commit(source_id, rewrite.actions)
        known = self._commits.known_of(source_id)
        known.marked.difference_update(back)
        known.marked.update(missing)
        return len(missing)


def _hash(record: Record) -> int:
    return hash((record.record_id, record.version))


def _is_storable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
