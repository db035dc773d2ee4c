"""The tables of sinks, as another program would read them."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection

from ladon_storage.sinks import SqlSink


def table(path: Path, columns: str = "record_id", name: str = "records") -> list[tuple[Any, ...]]:
    """Return what a sink's table has, as another program would see it."""
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(
            f"SELECT {columns} FROM {name} ORDER BY source_id, record_id, collected_at, version"
        ).fetchall()


def connection_of(sink: SqlSink) -> Connection:
    """Return the connection of an open sink, to see how it is set and to take what it needs."""
    assert sink._store is not None
    return sink._store.connection


@contextmanager
def refusing(ask: Callable[[str], Any], table: str = "records") -> Iterator[None]:
    """Let a table of SQLite refuse what is inserted, as one of a disk that is full."""
    refuse = "BEGIN SELECT RAISE(ABORT, 'full'); END"
    ask(f"CREATE TRIGGER refusal BEFORE INSERT ON {table} {refuse}")
    try:
        yield
    finally:
        ask("DROP TRIGGER refusal")
