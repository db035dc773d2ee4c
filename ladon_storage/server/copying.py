"""The content of a service's database, copied into an empty one of either kind.

Everything goes over: watermarks with their versions, the history, and the tokens. A run that holds
a source goes on, and a version that was given out is not given out again.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ladon_storage.errors import ConfigurationError
from ladon_storage.server.database import open_database
from ladon_storage.server.rows import COLUMNS, HISTORY_COLUMNS, folded

if TYPE_CHECKING:
    from ladon_storage.server.postgresql_schema import PostgresqlConnection

    Opened = sqlite3.Connection | PostgresqlConnection

_TABLES = {
    "history": HISTORY_COLUMNS,  # before the watermarks, which refer to it
    "watermarks": COLUMNS,
    "tokens": "name, digest, read_only, prefix, created_at",
}
_BATCH = 1000
_ENDLESS = "SET LOCAL statement_timeout = 0"


class Copied(NamedTuple):
    """What was copied, by its number."""

    watermarks: int
    changes: int
    tokens: int


def copy_content(source: Path | str, target: Path | str) -> Copied:
    """Copy all that a service has stored into another database, in one transaction.

    What is written to the source meanwhile is not copied: its service should be stopped.

    Args:
        source: A file, or an address in PostgreSQL.
        target: Another one, which has no content; it is made if necessary.

    Raises:
        ConfigurationError: There is no source, or the target has content.
    """
    if isinstance(source, Path) and not source.is_file():
        raise ConfigurationError(f"There is no database {str(source)!r}; name the service's.")
    with _opened(source) as one, _opened(target) as other:
        if any(_count(other, table) for table in _TABLES):
            raise ConfigurationError(
                "The database has content already; name one that is empty, or that does not exist "
                "yet."
            )
        with _reading(one), _writing(other):
            for table, columns in _TABLES.items():
                _fill(other, table, columns, _rows(one, table, columns))
            _go_on_after(other, _last_version(one))
            counts = {table: _count(other, table) for table in _TABLES}
    return Copied(counts["watermarks"], counts["history"], counts["tokens"])


def _opened(database: Path | str) -> AbstractContextManager[Opened]:
    if isinstance(database, Path):
        return closing(open_database(database))
    from ladon_storage.server.postgresql_schema import opened

    return opened(database)


def _count(connection: Opened, table: str) -> int:
    [(count,)] = connection.execute(f"SELECT count(*) FROM {table}").fetchall()  # noqa: S608
    return int(count)


@contextmanager
def _reading(connection: Opened) -> Iterator[None]:
    """Read one state of a database."""
    if isinstance(connection, sqlite3.Connection):
        connection.execute("BEGIN")
    else:
        connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        connection.execute(_ENDLESS)
    try:
        yield
    finally:
        connection.execute("ROLLBACK")


@contextmanager
def _writing(connection: Opened) -> Iterator[None]:
    connection.execute("BEGIN")
    if not isinstance(connection, sqlite3.Connection):
        connection.execute(_ENDLESS)
    try:
        yield
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


def _rows(connection: Opened, table: str, columns: str) -> Iterator[tuple[Any, ...]]:
    query = f"SELECT {columns} FROM {table}"  # noqa: S608 - constants
    if isinstance(connection, sqlite3.Connection):
        yield from connection.execute(query)
        return
    with connection.inner.cursor(name="copied") as cursor:
        cursor.itersize = _BATCH
        yield from cursor.execute(query.encode())


def _fill(connection: Opened, table: str, columns: str, rows: Iterable[tuple[Any, ...]]) -> None:
    if isinstance(connection, sqlite3.Connection):
        marks = ", ".join("?" for _ in columns.split(", "))
        connection.executemany(f"INSERT INTO {table} ({columns}) VALUES ({marks})", rows)  # noqa: S608
        return
    from ladon_storage.server.postgresql_schema import storable

    is_named = table == "watermarks"
    more = ", folded" if is_named else ""
    with (
        connection.inner.cursor() as cursor,
        cursor.copy(f"COPY {table} ({columns}{more}) FROM STDIN".encode()) as copy,
    ):
        for row in rows:
            kept = [storable(value) for value in row]
            copy.write_row([*kept, folded(row[0])] if is_named else kept)


def _last_version(connection: Opened) -> int:
    """Return the last version that was given out, also of a line that is gone."""
    if isinstance(connection, sqlite3.Connection):
        query = "SELECT seq FROM sqlite_sequence WHERE name = 'history'"
    else:
        query = "SELECT last_value FROM history_version WHERE is_called"
    rows = connection.execute(query).fetchall()
    return int(rows[0][0]) if rows else 0


def _go_on_after(connection: Opened, version: int) -> None:
    if not version:
        return
    if isinstance(connection, sqlite3.Connection):
        connection.execute("DELETE FROM sqlite_sequence WHERE name = 'history'")
        connection.execute("INSERT INTO sqlite_sequence VALUES ('history', ?)", (version,))
    else:
        connection.execute("SELECT setval('history_version', ?)", (version,))
