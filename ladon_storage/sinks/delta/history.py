"""The changes of other writers to a table: deliberate deletions, and restored versions.

- The log is read from the commit after the last one examined. A commit of this sink names a page;
  every other commit is another writer's.
- Rows that another writer's commit removed, and that are no longer in the table, were deleted
  deliberately. They are noted in the table `<table>_deleted`, before any look-up. A note without a
  version invalidates all earlier notes of the record: it was removed at its source.
- A table that was restored, or repaired after files were lost, lacks rows that were not meant to be
  deleted. Its positions are ahead of its rows, so those written before are no longer valid: the
  valid one is the position at the restored version.
- Some deletions cannot be known: of rows whose files were vacuumed, or whose commit was cleaned
  from the log, before a run looked. Rows missing after such a cleaning are read from the source
  again.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.compute as pc
from deltalake.exceptions import DeltaError

from ladon_storage.sinks.delta.files import File, as_schema
from ladon_storage.sinks.delta.index import INDEX_COLUMNS, VERSION_KEYS, SourceIndex
from ladon_storage.sinks.delta.rows import (
    DELETED,
    INSTANT,
    NEVER,
    now_in_microseconds,
    without_partitions,
)
from ladon_storage.sinks.delta.table import ManagedTable

logger = logging.getLogger(__name__)

LOOKED_AT = 32
"""The number of examined commits after which their examination is recorded."""

_OURS = '{"txn":{"appId":"ladon-'
_SEEN, _RESTORED, _RESTORED_TO = "ladon-seen", "ladon-restored", "ladon-restored-to"
_HAS_DELETED, _HAS_RESTORED, _FLAGS, _NUMBERED = 1, 2, 4, 2**40

Numbers = Callable[[str], int | None]

_NOTED = (*VERSION_KEYS, "deleted_at")
_NOTED_ROW = ("record_id", "version", "collected_at", "returned_at")
"""The columns that distinguish a deleted row from one of the same version stored later."""


@dataclass(slots=True)
class _Found:
    """The findings in the log.

    Args:
        restored: The versions that restored the table, and the version that each restored.
        deleted: The number of deliberately deleted rows, by source.
        is_changed: Whether another writer changed rows.
        is_restored: Whether the table was restored, including a restoration that was noted before.
    """

    restored: list[tuple[int, int]] = field(default_factory=list)
    deleted: dict[str, int] = field(default_factory=dict)
    is_changed: bool = False
    is_restored: bool = False


class History:
    """The changes of other writers to the records since the last examination.

    Args:
        table: The table of records.
        address: The table of deliberate deletions, which is created when needed.
        keeps_all: Whether the records have a row for each version.
    """

    def __init__(self, table: ManagedTable, address: str, *, keeps_all: bool) -> None:
        self._keeps_all = keeps_all
        self._table = table
        self._address = address
        self._seen: int | None = None
        self._has_deleted = self._has_restored = False
        self._deleted: ManagedTable | None = None
        self._known: dict[str, SourceIndex] = {}
        self.is_cut = False
        """Whether commits that were never examined are no longer in the log."""

    def look(self, number: int) -> tuple[bool, bool]:
        """Examine the new commits in the log, and note the changes of other writers.

        Args:
            number: The number of the source's last commit, as `numbered` made it.

        Returns:
            Whether another writer changed rows, and whether the table was restored.

        Raises:
            CommitFailedError: Another run just noted the same.
        """
        table = self._table
        if self._seen is not None and self._seen >= table.version:
            return False, False
        if self._seen is None:
            self._seen = max(0, self._hear(number) - 1)
            if table.version - self._seen > LOOKED_AT or number < _NUMBERED:
                self._seen = max(self._seen, self._hear(table.transaction(_SEEN) or 0))
        found = _Found()
        noted: int | None = None
        for version in range(self._seen + 1, table.version + 1):
            text = table.commit_text(version)
            if text is not None and _OURS in text:
                continue
            if noted is None:
                noted = self._hear(table.transaction(_SEEN) or 0)
            if text is None:
                self.is_cut = self.is_cut or version > noted
            else:
                self._see(version, text, found, is_noted=version <= noted)
        if found.restored or found.deleted:
            self._note(found)
        self._seen = table.version
        return found.is_changed, found.is_restored

    def numbered(self, version: int) -> int:
        """Return the number of a source's commit on a version, with all findings until then.

        It also encodes which commits were examined, and the findings, so that most runs read
        nothing else.
        """
        return _NUMBERED | self._flagged(version + 1)

    def _flagged(self, version: int) -> int:
        flags = _HAS_DELETED * self._has_deleted | _HAS_RESTORED * self._has_restored
        return version * _FLAGS + flags

    def _hear(self, number: int) -> int:
        """Note the findings that a number encodes, and return up to which version they reach."""
        if number < _NUMBERED:  # of a release whose number was only a counter
            return 0
        self._has_deleted = self._has_deleted or bool(number & _HAS_DELETED)
        self._has_restored = self._has_restored or bool(number & _HAS_RESTORED)
        return _version_of(number)

    def skip(self) -> None:
        """Record the last commit as examined: it is this sink's own."""
        if self._seen is not None and self._seen == self._table.version - 1:
            self._seen += 1

    def tidy(self) -> bool:
        """Commit the findings for the next runs, if they are worth a commit."""
        noted = self._hear(self._table.transaction(_SEEN) or 0)
        if self._seen is None or self._seen - noted < LOOKED_AT:
            return False
        self._note(_Found())
        return True

    def deleted(self, source_id: str, ids: list[str]) -> pa.Table | None:
        """Return the deliberate deletions of some ids; ``None``: there are none at all."""
        if not self._has_deleted:
            return None
        return _holding(self._known_of(source_id).find(ids))

    def position_numbers(self, number: str) -> tuple[Numbers, bool]:
        """Return a look-up of the numbers of the valid position, and whether it is the last one.

        Args:
            number: The name of the number of the source's last commit.
        """
        is_last = True
        if not self._has_restored:
            return self._table.transaction, is_last
        look_up: Numbers = self._table.transaction
        for _ in range(self._table.version + 1):
            restored = look_up(_RESTORED)
            if restored is None or _version_of(look_up(number) or 0) > restored:
                return look_up, is_last
            is_last, version = False, look_up(_RESTORED_TO)
            if version is None or version < 0:
                break
            try:
                look_up = self._table.transactions_at(version)
            except (DeltaError, OSError):
                break
        return _nothing, False

    def has_lost_rows(self, source_id: str) -> bool:
        """Return whether rows are missing without an explanation in the log."""
        expected = self._table.transaction(rows_name(source_id)) if self.is_cut else None
        if expected is None or self._table.count(source_id) >= expected:
            return False
        logger.warning(
            "The sink's table %s has fewer rows of source %r than were stored, and its log was "
            "cleaned before a run looked: it is filled from the beginning.",
            self._table.address,
            source_id,
        )
        return True

    def _see(self, version: int, text: str, found: _Found, *, is_noted: bool) -> None:
        """Find the changes of another writer's commit."""
        actions: dict[str, list[dict[str, Any]]] = {"add": [], "remove": [], "commitInfo": []}
        for line in text.splitlines():
            for kind, action in json.loads(line).items():
                actions.get(kind, []).append(action)
        info = actions["commitInfo"][0] if actions["commitInfo"] else {}
        operation = str(info.get("operation", "")).upper()
        if operation in ("RESTORE", "FSCK"):
            found.is_changed = found.is_restored = True
            if is_noted:
                return
            found.restored.append((version, _restored_to(info)))
            logger.warning(
                "The sink's table %s was changed by %s in its version %d, so that rows may be "
                "missing: each source goes on from where it was then.",
                self._table.address,
                operation,
                version,
            )
            return
        found.is_changed = found.is_changed or bool(actions["remove"] or actions["add"])
        removed = [each for each in actions["remove"] if each.get("dataChange", True)]
        if removed and is_noted and self._deleted:  # by another run
            self._deleted.refresh()
            self._known.clear()
        elif removed and not is_noted and not operation.startswith("UPDATE"):
            self._see_removed(version, removed, actions["add"], found.deleted)

    def _see_removed(
        self,
        version: int,
        removed: list[dict[str, Any]],
        added: list[dict[str, Any]],
        counts: dict[str, int],
    ) -> None:
        lost = 0
        for action in removed:
            partition = action.get("partitionValues") or {}
            source_id, day = partition.get("source_id"), partition.get("day")
            if not source_id or not day:
                lost += 1
                continue
            here = [each for each in self._table.files(source_id) if each.day == day]
            there = {each.path for each in here} | {unquote(each["path"]) for each in removed}
            here += [
                _file(each)
                for each in added
                if unquote(each["path"]) not in there and each.get("partitionValues") == partition
            ]
            try:
                counts[source_id] = counts.get(source_id, 0) + self._note_deleted(
                    source_id, day, _file(action), here
                )
            except FileNotFoundError:
                lost += 1
        if lost:
            logger.warning(
                "Rows of the sink's table %s were taken out in its version %d, and %d of their "
                "files were vacuumed before a run looked: what was in them is stored again when a "
                "source delivers it. Let a run of each source go between a DELETE and a VACUUM.",
                self._table.address,
                version,
                lost,
            )

    def _note_deleted(self, source_id: str, day: str, removed: File, here: list[File]) -> int:
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
            noted = self.deleted(source_id, unsaid["record_id"].unique().to_pylist())
            if noted is not None and noted.num_rows:
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

    def _note(self, found: _Found) -> None:
        """Commit the findings, so that they are not examined again."""
        table = self._table
        self._has_deleted = self._has_deleted or any(found.deleted.values())
        self._has_restored = self._has_restored or bool(found.restored)
        names = {_SEEN: _NUMBERED | self._flagged(table.version), **table.kind_number}
        if found.restored:
            names[_RESTORED] = found.restored[-1][0]
            names[_RESTORED_TO] = self._restored_to(found.restored)
        # All remaining rows are those that should exist.
        names.update({rows_name(each): table.count(each) for each in found.deleted})
        table.commit([], names)

    def _restored_to(self, restored: list[tuple[int, int]]) -> int:
        """Return the version whose positions are valid.

        The restored version may itself be a restoration that is not recorded in it.
        """
        table, to = self._table, min(to for _, to in restored)
        before = table.transaction(_RESTORED)
        if before is not None and to >= before:
            try:
                is_noted = table.transactions_at(to)(_RESTORED) == before
            except (DeltaError, OSError):
                return NEVER
            if not is_noted:
                to = min(to, table.transaction(_RESTORED_TO) or NEVER)
        return to

    def _deleted_table(self) -> ManagedTable:
        if self._deleted is None:
            self._deleted = ManagedTable(self._address, DELETED, "record_id", "deletions")
        return self._deleted

    def _known_of(self, source_id: str) -> SourceIndex:
        if source_id not in self._known:
            self._known[source_id] = SourceIndex(self._deleted_table(), source_id, _NOTED)
        return self._known[source_id]


def _version_of(number: int) -> int:
    return (number & _NUMBERED - 1) // _FLAGS if number >= _NUMBERED else 0


def rows_name(source_id: str) -> str:
    """Return the name of the number of rows that a source should have."""
    return f"ladon-rows:{source_id}"


def _restored_to(info: dict[str, Any]) -> int:
    parameters = info.get("operationParameters") or {}
    version = str(parameters.get("version", ""))
    is_known = info.get("operation") == "RESTORE" and version.isdecimal()
    return int(version) if is_known else NEVER


def _file(action: dict[str, Any]) -> File:
    day = str((action.get("partitionValues") or {}).get("day", ""))
    return File(unquote(action["path"]), 0, None, day, None, None, None, named=action["path"])


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


def _nothing(_: str) -> None:
    """Return no number."""
