"""The files of an open database, watched for what other programs do to them.

SQLite does not see that its files were deleted, replaced or written over. What it acknowledges from
then on is lost, or makes a damaged file. So each commit looks at them first.

- The database, its write-ahead log and the log's index are the same files as before.
- SQLite changes the database itself only in a checkpoint, which leaves its marks in the log's
  header and the index. A database that changed without them was written over, as by a copied
  backup.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

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
        self._written = self._last_write()
        self._checkpoint = self._checkpoint_marks()

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
        if written != self._written and marks == self._checkpoint and not _is_busy(marks):
            return "its file was written over by another program"
        self._checkpoint, self._written = marks, written
        return None

    def _last_write(self) -> tuple[int, int] | None:
        with suppress(OSError):
            stat = os.stat(self._path)
            return stat.st_mtime_ns, stat.st_size
        return None

    def _checkpoint_marks(self) -> tuple[bytes, bytes, bytes]:
        index = _start_of(self._index, _BACKFILLING.stop)
        return _start_of(self._log, _LOG_HEADER), index[_BACKFILLED], index[_BACKFILLING]


def _is_busy(marks: tuple[bytes, bytes, bytes]) -> bool:
    """Return whether a checkpoint is at work, or was interrupted."""
    return marks[1] != marks[2]


def _start_of(file: Path, length: int) -> bytes:
    with suppress(OSError), file.open("rb", buffering=0) as opened:
        return opened.read(length)
    return b""


def _identity(file: Path) -> _Identity:
    with suppress(OSError):
        stat = os.stat(file)
        return stat.st_dev, stat.st_ino
    return None
