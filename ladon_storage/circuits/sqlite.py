"""Circuits in a SQLite file, for the processes of one host.

- The time is the machine's monotonic clock, which all of its processes share and nobody sets. It
  begins anew when the machine does; `shared` tells a deadline of a life before from one of this.
- Nothing waits for the disk: what is lost with the power is a closed circuit. A process that is
  killed in the middle of a write leaves a journal, from which the next one restores the file.
- A connection must not be used behind a fork: the lock of one process would be given up by another.
"""

from __future__ import annotations

import os
import sqlite3
import time
import weakref
from collections.abc import Callable
from pathlib import Path

from ladon_storage.circuits.store import NOTHING, Stored, new_tag
from ladon_storage.errors import CircuitStoreError

BUSY_SECONDS = 0.01

_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS circuits "
    "(service TEXT PRIMARY KEY, tag INTEGER NOT NULL, record TEXT NOT NULL) WITHOUT ROWID"
)
_READ = "SELECT tag, record FROM circuits WHERE service = ?"
_INSERT = "INSERT OR IGNORE INTO circuits (tag, record, service) VALUES (?, ?, ?)"
_UPDATE = "UPDATE circuits SET tag = ?, record = ? WHERE service = ? AND tag = ?"


class SqliteStore:
    """Keep circuits in the file at ``path``, which is made when it is first used.

    Args:
        path: The file; its folder is made too, but not the one above that.
        busy_seconds: How long another process's write is waited for.
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
        self._end: weakref.finalize[..., SqliteStore] | None = None

    def read(self, key: str) -> Stored:
        """Return what is kept under ``key``.

        Raises:
            CircuitStoreError: The file is locked, damaged, or cannot be opened.
        """
        found = self._execute(_READ, key).fetchone()
        return Stored(self._clock(), *(found or (NOTHING, "")))

    def swap(self, key: str, tag: int, text: str) -> bool:
        """Keep ``text`` if what is kept still has ``tag``, and tell whether it had.

        Raises:
            CircuitStoreError: The file is locked, damaged, full or read-only.
        """
        if tag == NOTHING:
            return self._execute(_INSERT, new_tag(), text, key).rowcount == 1
        return self._execute(_UPDATE, new_tag(), text, key, tag).rowcount == 1

    def close(self) -> None:
        """Close the file; the next call opens it again."""
        self._opened = None
        if self._end is not None:
            self._end()

    def _execute(self, statement: str, *values: object) -> sqlite3.Cursor:
        try:
            return self._connection().execute(statement, values)
        except (sqlite3.Error, OSError) as error:
            self.close()
            raise CircuitStoreError(
                f"The circuit store {self.place} cannot be used ({error}); see whether it is a "
                "SQLite file of circuits that this user may write."
            ) from error

    def _connection(self) -> sqlite3.Connection:
        process = os.getpid()
        if self._opened is None or self._opened[0] != process:
            self._path.parent.mkdir(exist_ok=True)
            connection = sqlite3.connect(
                self._path,
                timeout=self._busy_seconds,
                isolation_level=None,
                check_same_thread=False,  # a circuit asks from one thread at a time
            )
            # Kept with the object that closes it: Python warns of one that only disappears.
            self._end = weakref.finalize(self, connection.close)
            # A journal that stays costs a twentieth of one that is made for each write.
            connection.execute("PRAGMA journal_mode = PERSIST")
            connection.execute("PRAGMA synchronous = OFF")
            connection.execute(_SCHEMA)
            self._opened = process, connection
        return self._opened[1]
