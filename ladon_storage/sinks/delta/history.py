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
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
from deltalake.exceptions import DeltaError

from ladon_storage.sinks.delta.deletions import Deletions
from ladon_storage.sinks.delta.files import File
from ladon_storage.sinks.delta.object_store import Location
from ladon_storage.sinks.delta.opening import is_ours
from ladon_storage.sinks.delta.rows import NEVER
from ladon_storage.sinks.delta.table import ManagedTable

logger = logging.getLogger(__name__)

LOOKED_AT = 32
"""The number of examined commits after which their examination is recorded."""

_SEEN, _RESTORED, _RESTORED_TO = "ladon-seen", "ladon-restored", "ladon-restored-to"
_HAS_DELETED, _HAS_RESTORED, _FLAGS, _NUMBERED = 1, 2, 4, 2**40

Numbers = Callable[[str], int | None]


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
        location: The table of deliberate deletions, which is created when needed.
        keeps_all: Whether the records have a row for each version.
    """

    def __init__(self, table: ManagedTable, location: Location, *, keeps_all: bool) -> None:
        self._table = table
        self._deletions = Deletions(table, location, keeps_all=keeps_all)
        self._seen: int | None = None
        self._has_deleted = self._has_restored = False
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
            if text is not None and is_ours(text):
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
        return self._deletions.of(source_id, ids)

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
            "The sink's table %s has fewer rows of source %r than were stored, and its log "
            "was cleaned before a run examined it. The source is collected again from its "
            "beginning.",
            self._table.address,
            source_id,
        )
        return True

    def _see(self, version: int, text: str, found: _Found, *, is_noted: bool) -> None:
        """Find the changes of another writer's commit."""
        actions: dict[str, list[dict[str, Any]]] = {"add": [], "remove": [], "commitInfo": []}
        for line in filter(str.strip, text.split("\n")):
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
                "The sink's table %s was changed by %s in its version %d, so rows may be "
                "missing. Each source resumes from its position at that version.",
                self._table.address,
                operation,
                version,
            )
            return
        found.is_changed = found.is_changed or bool(actions["remove"] or actions["add"])
        removed = [each for each in actions["remove"] if each.get("dataChange", True)]
        if removed and is_noted:  # by another run
            self._deletions.refresh()
        elif removed and not operation.startswith("UPDATE"):
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
                counts[source_id] = counts.get(source_id, 0) + self._deletions.note(
                    source_id, day, _file(action), here
                )
            except FileNotFoundError:
                lost += 1
                counts.setdefault(source_id, 0)  # examined once, and its rows are not expected
        if lost:
            logger.warning(
                "Rows of the sink's table %s were deleted in its version %d, and %d of their "
                "files were vacuumed before a run examined them, so their rows are stored "
                "again when a source delivers them. Wait for a run of each source between a "
                "DELETE and a VACUUM.",
                self._table.address,
                version,
                lost,
            )

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


def _nothing(_: str) -> None:
    """Return no number."""
