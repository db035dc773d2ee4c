"""Circuits in a SQLite file, for the processes of one host.

- The time is the machine's monotonic clock, which all of its processes share and which is never
  set. It restarts with the machine; `shared` recognises a deadline from before a restart.
- No write waits for the disk: a circuit that a power failure loses counts as closed. The unfinished
  write of a killed process has no effect.
- Hundreds of processes may start at once, before the file exists. So the file appears complete:
  its tables and its journal mode are never changed while other processes use it.
- A file is left open when its process ends. SQLite cleans up when the last process closes the file,
  and locks it against all others for that. Where runs start by the hundred, a process that is
  briefly the last may have to wait for the CPU just then, and all others for it.
- A connection must not be used across a fork: one process would release the lock of another.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import os
import random
import sqlite3
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from weakref import WeakSet

from ladon_storage.circuit.stores import NO_TAG, VersionedText, new_tag
from ladon_storage.errors import CircuitStoreError

BUSY_SECONDS = 0.01
# SQLite's own waiting tries four times in 10 ms: too seldom where hundreds begin at once.
PAUSE_SECONDS = 0.0005

_SCHEMA = (
    "CREATE TABLE circuits "
    "(service TEXT PRIMARY KEY, tag INTEGER NOT NULL, record TEXT NOT NULL) WITHOUT ROWID"
)
_READ = "SELECT tag, record FROM circuits WHERE service = ?"
_INSERT = "INSERT OR IGNORE INTO circuits (tag, record, service) VALUES (?, ?, ?)"
_UPDATE = "UPDATE circuits SET tag = ?, record = ? WHERE service = ? AND tag = ?"

_random = random.SystemRandom()  # it leaves a seed that a run may have set alone
_stores: WeakSet[SqliteStore] = WeakSet()


class SqliteStore:
    """A store of circuits in the file at ``path``, which is created at its first use.

    Args:
        path: The file; its folder is made too, but not the one above that.
        busy_seconds: The longest wait for another process's write.
        clock: The host's time.
    """

    def __init__(
        self,
        path: Path,
        busy_seconds: float = BUSY_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.place = str(path)
        self._path = path.absolute()
        self._busy_seconds = busy_seconds
        self._clock = clock
        self._opened: tuple[int, sqlite3.Connection] | None = None
        _stores.add(self)
        self._end: weakref.finalize[..., SqliteStore] | None = None

    def read(self, key: str) -> VersionedText:
        """Return the text stored under ``key``.

        Raises:
            CircuitStoreError: The file is locked, damaged, or cannot be opened.
        """
        found = self._execute(_READ, key).fetchone()
        return VersionedText(self._clock(), *(found or (NO_TAG, "")))

    def compare_and_set(self, key: str, tag: int, text: str) -> bool:
        """Store ``text`` if the stored one still has ``tag``; return whether it had.

        Raises:
            CircuitStoreError: The file is locked, damaged, full or read-only.
        """
        if tag == NO_TAG:
            return self._execute(_INSERT, new_tag(), text, key).rowcount == 1
        return self._execute(_UPDATE, new_tag(), text, key, tag).rowcount == 1

    def close(self) -> None:
        """Close the file; the next call opens it again."""
        self._opened = None
        if self._end is not None:
            self._end()

    def _execute(self, statement: str, *values: object) -> sqlite3.Cursor:
        left = round(self._busy_seconds / PAUSE_SECONDS)
        while True:
            try:
                return self._connection().execute(statement, values)
            except (sqlite3.Error, OSError) as error:
                if left and getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY:
                    left -= 1
                    time.sleep(_random.uniform(0.5, 1.5) * PAUSE_SECONDS)  # so that they spread
                    continue
                self.close()
                raise CircuitStoreError(
                    f"The circuit store {self.place} cannot be used ({error}); see whether it is "
                    "a SQLite file of circuits that this user may write."
                ) from error

    def _connection(self) -> sqlite3.Connection:
        process = os.getpid()
        if self._opened is None or self._opened[0] != process:
            if not self._path.exists():
                self._make()
            connection = sqlite3.connect(
                self._path,
                timeout=0,
                isolation_level=None,
                check_same_thread=False,  # a circuit asks from one thread at a time
            )
            try:
                connection.execute("PRAGMA synchronous = OFF")
            except BaseException:
                connection.close()
                raise
            self._end = weakref.finalize(self, connection.close)
            self._end.atexit = False
            self._opened = process, connection
        return self._opened[1]

    def _make(self) -> None:
        """Create the file next to its path, and move it there complete if none is there yet."""
        self._path.parent.mkdir(exist_ok=True)
        draft = self._path.with_name(f"{self._path.name}.{os.getpid()}.{new_tag()}")
        try:
            os.close(os.open(draft, os.O_CREAT | os.O_RDWR, 0o600))
            with contextlib.closing(sqlite3.connect(draft, isolation_level=None)) as connection:
                # Readers and writers do not wait for each other.
                connection.execute("PRAGMA journal_mode = WAL")
                connection.execute("PRAGMA synchronous = OFF")
                connection.execute(_SCHEMA)
            with contextlib.suppress(FileExistsError):
                os.link(draft, self._path)
        finally:
            draft.unlink(missing_ok=True)


@atexit.register
def _leave_open() -> None:
    for store in _stores:
        # Never destroyed, and so never closed; the end of the process releases its locks.
        if (opened := store._opened) is not None:  # noqa: SLF001
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(opened[1]))
