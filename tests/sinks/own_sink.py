"""A sink of one's own, as the documentation shows it: the methods, and nothing to inherit from."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import threading
from typing import Any, Self

from ladon_storage.collection.protocols import Position, WriteResult
from ladon_storage.collection.records import Page, Record


class OwnSink:
    """Keep every version of each record in a file, and remember the position beside them."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._connection: sqlite3.Connection | None = None
        # A write that is cancelled goes on in its thread: the file must not be closed under it.
        self._lock = threading.Lock()

    async def __aenter__(self) -> Self:
        self._connection = await asyncio.to_thread(self._open)
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.to_thread(self._close)

    async def write(
        self, source_id: str, page: Page, *, run_id: str = "", position: Position | None = None
    ) -> WriteResult:
        return await asyncio.to_thread(self._write, source_id, page, run_id, position)

    async def position(self, source_id: str) -> Position | None:
        return await asyncio.to_thread(self._read, source_id)

    def _open(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self._path, check_same_thread=False, isolation_level=None)
        connection.executescript(
            """
            CREATE TABLE IF NOT EXISTS record (
                source TEXT, id TEXT, version TEXT, at TEXT, payload TEXT,
                PRIMARY KEY (source, id, version));
            CREATE TABLE IF NOT EXISTS unusable (
                source TEXT, run TEXT, reason TEXT, raw TEXT, PRIMARY KEY (source, raw));
            CREATE TABLE IF NOT EXISTS position (source TEXT PRIMARY KEY, position TEXT);
            """
        )
        return connection

    def _close(self) -> None:
        with self._lock:
            self._opened().close()

    def _write(
        self, source_id: str, page: Page, run_id: str, position: Position | None
    ) -> WriteResult:
        rejects = [
            (source_id, run_id, ascii(each.reason), ascii(each.raw)) for each in page.rejects
        ]
        connection = self._opened()
        with self._lock, connection:  # commits, or rolls back
            connection.execute("BEGIN IMMEDIATE")
            stored = [each for each in page.records if self._insert(source_id, each)]
            insert = "INSERT INTO unusable VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING"
            connection.executemany(insert, rejects)
            if position is not None:
                row = (source_id, json.dumps(position.model_dump(mode="json")))
                connection.execute("INSERT OR REPLACE INTO position VALUES (?, ?)", row)
        return WriteResult(changed=stored)  # it does not tell new ones apart

    def _insert(self, source_id: str, each: Record) -> bool:
        row = (source_id, each.record_id, each.version, each.timestamp.isoformat(), each.payload)
        insert = "INSERT INTO record VALUES (?, ?, ?, ?, ?) ON CONFLICT DO NOTHING"
        return self._opened().execute(insert, row).rowcount == 1

    def _read(self, source_id: str) -> Position | None:
        row: Any = (
            self._opened()
            .execute("SELECT position FROM position WHERE source = ?", (source_id,))
            .fetchone()
        )
        return Position.model_validate(json.loads(row[0])) if row else None

    def _opened(self) -> sqlite3.Connection:
        if self._connection is None:
            raise RuntimeError("The sink is not open; use `async with` around it.")
        return self._connection
