"""What tests of tables share: databases with one table, and what a source reads of it."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ladon_storage.collection.records import Page, Record
from ladon_storage.sources.sql.source import SqlTable
from tests.mariadb import MariaServer
from tests.postgres import PostgresServer

SECRET = "LADON_TEST_DATABASE"
"""The variable with the address of a server's database."""


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


async def read(
    source: SqlTable, start: datetime | None = None, until: datetime | None = None
) -> list[Page]:
    return [page async for page in source.pages(start, until)]


async def records(
    source: SqlTable, start: datetime | None = None, until: datetime | None = None
) -> list[Record]:
    return [each for page in await read(source, start, until) for each in page.records]


def ids(found: Sequence[Record]) -> list[str]:
    return [each.record_id for each in found]


class File:
    """A SQLite database with one table, and the source that reads it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def run(self, statement: str, rows: list[tuple[Any, ...]] | None = None) -> None:
        with closing(sqlite3.connect(self.path)) as connection, connection:
            if rows is None:
                connection.execute(statement)
            else:
                connection.executemany(statement, rows)

    def fill(self, *rows: tuple[Any, ...], kind: str = "TIMESTAMP") -> None:
        self.run(f"CREATE TABLE IF NOT EXISTS events (id, updated_at {kind}, note TEXT)")
        padded = [(*row, "a")[:3] for row in rows]
        self.run("INSERT INTO events VALUES (?, ?, ?)", padded)

    def source(self, **fields: Any) -> SqlTable:
        return SqlTable(
            **{"source_id": "log", "url": f"sqlite:///{self.path}", "table": "events", **fields}
        )


class Base:
    """An empty database of a real server, and the source that reads it."""

    def __init__(self, server: PostgresServer | MariaServer) -> None:
        self.server = server
        self.name = server.database()
        self.url = server.url(self.name)

    def run(self, statements: str) -> list[tuple[object, ...]]:
        return self.server.execute(statements, self.name)

    def source(self, **fields: Any) -> SqlTable:
        return SqlTable(**{"source_id": "log", "url_secret": SECRET, "table": "events", **fields})
