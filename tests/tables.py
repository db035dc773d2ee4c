"""The tables of sinks, as another program would read them."""

from __future__ import annotations

import sqlite3
from contextlib import closing
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
