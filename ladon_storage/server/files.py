"""The files of an open database, watched for what other programs do to them.

SQLite does not see that its files were deleted, replaced or written over. What it acknowledges from
then on is lost, or makes a damaged file. So each commit looks at them first.

- The database, its write-ahead log and the log's index are the same files as before.
- SQLite changes the database itself only in a checkpoint, which leaves its marks in the log's
  header and the index. A database that changed without them was written over, as by a copied
  backup.
- No file is opened here: closing any descriptor of a file drops all locks that the process has on
  it, those of SQLite too. What is read is read through SQLite's own descriptors, where the system
  shows which they are; elsewhere only moved and deleted files are seen.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

_INDEX_HEADER = 48
"""The bytes of the index's header, all of which are of the last commit of any process."""
_LOG_HEADER = 32
"""The bytes of the log's header: among them the salts, which change when the log starts again."""
_BACKFILLED = slice(96, 100)
_BACKFILLING = slice(128, 132)
"""The frames of the log that a checkpoint has copied to the database, and those that it copies."""

_Identity = tuple[int, int] | None


class DatabaseFiles:
    """The files of one open database.

    Args:
        path: The database; it is open, with a write-ahead log.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._log = path.with_name(f"{path.name}-wal")
        self._index = path.with_name(f"{path.name}-shm")
        self._same = {file: _identity(file) for file in (path, self._log, self._index)}
        self._descriptors: dict[Path, int] = {}
        self._checkpoint = self._checkpoint_marks()
        self._written = self._last_write()

    def fault(self) -> str | None:
        """Return what was done to the files, as the end of a sentence; ``None``: nothing."""
        for file, before in self._same.items():
            now = _identity(file)
            if before is None:
                self._same[file] = now
            elif now != before and file == self._path:
                return "its file was moved or replaced"
            elif now != before:
                return f"its file {file.name} was deleted or replaced"
        marks, written = self._checkpoint_marks(), self._last_write()
        changed = written != self._written and marks == self._checkpoint
        if changed and marks is not None and not _is_busy(marks):
            return "its file was written over by another program"
        self._checkpoint, self._written = marks, written
        return None

    def settle(self) -> None:
        """Take the files as they are: a commit of this process has just changed them."""
        # The descriptors were those of the files right before.
        self._checkpoint = self._checkpoint_marks(are_known=True)
        self._written = self._last_write()

    def last_commit(self) -> bytes | None:
        """Return what every commit changes, of this process or another; ``None``: not known."""
        known = self._descriptors.get(self._index)
        if known is None:
            return self._start_of(self._index, _INDEX_HEADER, is_known=True)
        try:
            return os.pread(known, _INDEX_HEADER, 0)
        except OSError:  # closed
            return None

    def _last_write(self) -> tuple[int, int] | None:
        with suppress(OSError):
            stat = os.stat(self._path)
            return stat.st_mtime_ns, stat.st_size
        return None

    def _checkpoint_marks(self, *, are_known: bool = False) -> tuple[bytes, bytes, bytes] | None:
        """Return what a checkpoint changes; ``None``: it cannot be read.

        Args:
            are_known: Whether the descriptors are known to be those of the files.
        """
        header = self._start_of(self._log, _LOG_HEADER, is_known=are_known)
        index = self._start_of(self._index, _BACKFILLING.stop, is_known=are_known)
        if header is None or index is None:
            return None
        return header, index[_BACKFILLED], index[_BACKFILLING]

    def _start_of(self, file: Path, length: int, *, is_known: bool) -> bytes | None:
        identity = self._same[file]
        if identity is None:
            return None
        known = self._descriptors.get(file)
        if known is None or not (is_known or _identity(known) == identity):
            self._descriptors.pop(file, None)
            if (known := _descriptor_of(identity)) is None:
                return None
            self._descriptors[file] = known
        with suppress(OSError):
            return os.pread(known, length, 0)
        return None


def _is_busy(marks: tuple[bytes, bytes, bytes]) -> bool:
    """Return whether a checkpoint is at work, or was interrupted."""
    return marks[1] != marks[2]


def _descriptor_of(identity: _Identity) -> int | None:
    """Return a descriptor that this process has of a file; ``None``: the system does not say."""
    with suppress(OSError):
        for name in os.listdir("/proc/self/fd"):
            if _identity(int(name)) == identity:
                return int(name)
    return None


def _identity(file: Path | int) -> _Identity:
    with suppress(OSError):
        stat = os.stat(file)
        return stat.st_dev, stat.st_ino
    return None
