"""The store's database in one SQLite file.

A watermark is read in the thread of the event loop: a point read by primary key takes microseconds
and, in WAL, waits for no writer. Reads that grow with the number of rows run in a separate thread.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from ladon_storage.errors import DatabaseError, WatermarkConflictError
from ladon_storage.models import Watermark
from ladon_storage.server import retention
from ladon_storage.server.access import Token
from ladon_storage.server.backend import Row
from ladon_storage.server.changes import Note, Write, Written
from ladon_storage.server.database import GroupCommit, connect, open_database
from ladon_storage.server.dialect import Dialect
from ladon_storage.server.rows import (
    COLUMNS,
    HISTORY_COLUMNS,
    LINE,
    SET_CHECKED,
    folded,
    from_line,
    from_watermark,
    to_length,
    to_watermark,
    version_of,
)

T = TypeVar("T")

_READ_TIMEOUT_SECONDS = 1.0
_STEPS = 100_000
"""The steps of SQLite after which a scan looks whether it should end: about a millisecond."""
_MOST_IN_MIND = 250
"""The most watermarks that are kept in mind after a write: the largest take half a MiB."""
_SELECT = f"SELECT {COLUMNS} FROM watermarks WHERE source_id = ?"  # noqa: S608 - a constant
_INSERT = (
    f"INSERT INTO watermarks ({COLUMNS}) "  # noqa: S608 - a constant
    "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
_UPDATE = (
    "UPDATE watermarks SET "  # noqa: S608 - a constant
    + ", ".join(f"{column} = ?" for column in COLUMNS.split(", ")[1:])
    + " WHERE source_id = ?"
)
_RECORD = (
    f"INSERT INTO history ({HISTORY_COLUMNS}) "  # noqa: S608 - a constant
    "VALUES (NULL, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)


def _keep_limits(connection: sqlite3.Connection, limits: Mapping[str, timedelta]) -> dict[str, Any]:
    connection.execute(
        "CREATE TEMP TABLE IF NOT EXISTS limits (source_id TEXT PRIMARY KEY, age INTEGER)"
    )
    connection.execute("DELETE FROM temp.limits")
    connection.executemany(
        "INSERT INTO temp.limits VALUES (?, ?)",
        [(source_id, to_length(limit)) for source_id, limit in limits.items()],
    )
    return {}


class SqliteBackend:
    """The watermarks in one SQLite file; made by ``open``, for one event loop."""

    lost_changes = 0
    # SQLite's own lower() knows the letters of ASCII.
    dialect = Dialect("temp.limits", _keep_limits, "instr(folded(source_id), :search)")

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self._stored: dict[str, Watermark] = {}
        self.writer = GroupCommit(connection, path, self._stored.clear)
        self._reader = connect(path, _READ_TIMEOUT_SECONDS)
        self._scanner = connect(path)
        self._scanner.create_function("folded", 1, folded, deterministic=True)
        # Rather than interrupt(), which does nothing between two statements.
        self._scanner.set_progress_handler(lambda: self._is_closed, _STEPS)
        self._is_closed = False
        self._has_tokens = False
        self._asked_after: bytes | None = None
        self._scans = ThreadPoolExecutor(1, thread_name_prefix="storage-scan")

    @classmethod
    async def open(cls, path: Path) -> SqliteBackend:
        """Open the file; create and migrate it if necessary.

        Raises:
            ConfigurationError: The file cannot be this program's database.
        """
        return cls(path, await asyncio.to_thread(open_database, path))

    async def close(self) -> None:
        """Finish the writes that wait, and close the file."""
        await self.writer.close()
        # No request waits for a scan any more: they are finished, or were given up.
        self._is_closed = True
        # In this thread: while the interpreter ends, no other takes work.
        self._scans.shutdown(cancel_futures=True)
        self._reader.close()
        self._scanner.close()

    async def read(self, source_id: str) -> Row | None:
        """Return the row of a source's watermark."""
        row: Row | None = self._read(_SELECT, source_id)
        return row

    async def write(self, write: Write, note: Note) -> Written:
        """Store a change durably, or raise the rule's refusal."""
        return await self.writer.apply(partial(self._apply, write=write), note)

    async def scan(self, read: Callable[[sqlite3.Connection], T], *, prunes: bool = False) -> T:
        """Return what a function reads, in another thread."""
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._scans, read, self._scanner)
        except sqlite3.Error as error:
            raise _unread(error) from error

    async def delete_lines(self, versions: Sequence[int]) -> None:
        """Delete lines of history by their numbers."""
        await self.writer.apply(partial(retention.delete_lines, versions=versions))

    async def check(self, at: int) -> None:
        """Read, and make a write durable."""
        self._read(_SELECT, "")
        await self.writer.apply(lambda connection: connection.execute(SET_CHECKED, (at,)))

    def find_token(self, digest: bytes) -> Token | None:
        """Return the stored token of a digest, if there is one."""
        row = self._read("SELECT name, read_only, prefix FROM tokens WHERE digest = ?", digest)
        return Token(row[0], bool(row[1]), row[2]) if row else None

    def has_tokens(self) -> bool:
        """Return whether any token is stored."""
        # Each request asks. Nothing has changed since the last commit of any process, and looking
        # at that takes a tenth of a query.
        last_commit = self.writer.files.last_commit()
        if last_commit is None or last_commit != self._asked_after:
            self._has_tokens = self._read("SELECT 1 FROM tokens LIMIT 1") is not None
            self._asked_after = last_commit
        return self._has_tokens

    def _read(self, query: str, *arguments: Any) -> Any:
        try:
            # fetchall, not fetchone: a statement that is not at its end holds its snapshot.
            rows = self._reader.execute(query, arguments).fetchall()
        except sqlite3.Error as error:
            raise _unread(error) from error
        return rows[0] if rows else None

    def _apply(self, connection: sqlite3.Connection, write: Write) -> Written:
        """Make a change in the open transaction, and keep in mind what it stores.

        A run writes several times, and reading its watermark takes a quarter of a write.
        """
        if len(self._stored) >= _MOST_IN_MIND:
            self._stored.clear()
        before = self._stored.pop(write.source_id, None)
        written = apply(connection, write, before or _select(connection, write.source_id))
        if written.after is not None:
            self._stored[write.source_id] = written.after
        return written


def _select(connection: sqlite3.Connection, source_id: str) -> Watermark | None:
    rows = connection.execute(_SELECT, (source_id,)).fetchall()
    return to_watermark(rows[0]) if rows else None


def apply(connection: sqlite3.Connection, write: Write, before: Watermark | None) -> Written:
    """Judge a write by the stored watermark, and make its change in the open transaction."""
    source_id = write.source_id
    try:
        line = write.judge(before)
    except WatermarkConflictError as conflict:
        if conflict.status == 412 and before is not None and write.is_repeated is not None:
            lines = connection.execute(LINE, (version_of(before),)).fetchall()
            if lines and write.is_repeated(lines[0]):
                return Written(before, before)
        raise
    if line is None:
        return Written(before, before)
    version = connection.execute(_RECORD, from_line(source_id, before, line)).lastrowid or 0
    if line.after is None:
        connection.execute("DELETE FROM watermarks WHERE source_id = ?", (source_id,))
        return Written(before, None)
    row = (version, *from_watermark(line.after))
    if before is None:
        connection.execute(_INSERT, (source_id, *row))
    else:  # in its place, which takes two thirds of what a replacement does
        connection.execute(_UPDATE, (*row, source_id))
    line.after.tag(f'"{version}"')
    return Written(before, line.after)


def _unread(error: sqlite3.Error) -> DatabaseError:
    return DatabaseError(f"The database could not be read ({error}); try again later.")
