"""What a session of each database is set to before anything is read.

- Its zone is UTC: a database tells an instant in its session's zone, which is its server's unless
  it is set. Whatever else a server is set to that changes how a value is told is set here, too.
- It cannot write, and the server itself ends a statement that takes too long.
- Values come as the driver gives them, or as the database's own text where the driver would lose a
  part of them, or refuse a page for one odd value.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

from sqlalchemy import Engine, create_engine, event
from sqlalchemy.engine import URL
from sqlalchemy.pool import QueuePool

from ladon_storage.sources.sql.values import json_document

DRIVERS = {
    "sqlite": "pysqlite",
    "postgresql": "psycopg",
    "mysql": "pymysql",
    "mariadb": "pymysql",
}
"""The databases that are tested, and the driver with which they are."""

MYSQL = ("mysql", "mariadb")

_CONNECT_SECONDS = 10
_SILENT_SECONDS = 60
"""How long a server may not acknowledge what was sent before its connection counts as lost."""

# What a server may be set to that changes how PostgreSQL tells a value.
_POSTGRESQL = {
    "timezone": "UTC",
    "datestyle": "ISO",
    "intervalstyle": "postgres",
    "extra_float_digits": "1",
}

_MYSQL = (
    "SET SESSION time_zone = '+00:00'",
    # Nobody has seen what a transaction wrote that may yet be rolled back.
    "SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ",
    "SET SESSION TRANSACTION READ ONLY",
    # It would tell each CHAR with spaces behind it.
    "SET SESSION sql_mode = REPLACE(@@SESSION.sql_mode, 'PAD_CHAR_TO_FULL_LENGTH', '')",
)


def with_driver(url: URL) -> URL:
    """Return an address with the driver that is tested, where it names none."""
    if url.drivername in DRIVERS and url.drivername != "sqlite":
        return url.set(drivername=f"{url.drivername}+{DRIVERS[url.drivername]}")
    return url


def is_tested(url: URL) -> bool:
    """Return whether this package is tested with the database and the driver of an address."""
    return DRIVERS.get(url.get_backend_name()) == url.get_driver_name()


def reading_engine(url: URL, timeout: timedelta) -> Engine:
    """Return what opens connections that cannot write; ``timeout`` bounds a statement."""
    engine = create_engine(
        url,
        # One connection, kept from page to page, and made anew after it was lost.
        poolclass=QueuePool,
        pool_size=1,
        max_overflow=0,
        hide_parameters=True,
        connect_args=_arguments(url, timeout),
    )
    name = engine.dialect.name
    if name in _PREPARE:
        event.listen(engine, "connect", partial(_PREPARE[name], timeout))
    if name == "postgresql":
        if engine.dialect.driver == "psycopg":
            event.listen(engine, "connect", _adapt_psycopg)
        return engine.execution_options(postgresql_readonly=True)
    return engine


def _arguments(url: URL, timeout: timedelta) -> dict[str, Any]:
    """Return what a driver is told that is not in the address, which has the last word."""
    arguments: dict[str, Any] = {}
    name, driver = url.get_backend_name(), url.get_driver_name()
    if name == "sqlite":
        arguments["timeout"] = timeout.total_seconds()
    elif name == "postgresql":
        arguments = {
            "connect_timeout": _CONNECT_SECONDS,
            "tcp_user_timeout": _SILENT_SECONDS * 1000,
            "keepalives_idle": _SILENT_SECONDS,
            "application_name": "ladon-storage",
        }
    elif driver == "pymysql":
        arguments = {
            "connect_timeout": _CONNECT_SECONDS,
            "read_timeout": int(timeout.total_seconds()) + _SILENT_SECONDS,
            "program_name": "ladon-storage",
            "conv": _pymysql_conversions(),
        }
        if url.password is not None:  # a text would be sent as Latin-1
            arguments["password"] = url.password.encode()
    # SQLAlchemy would give what is in the address to these.
    return {name: each for name, each in arguments.items() if name not in url.query}


def _prepare_sqlite(_timeout: timedelta, connection: Any, _record: object) -> None:
    connection.execute("PRAGMA query_only=ON")
    # A text that is no UTF-8 would fail its whole page.
    connection.text_factory = lambda raw: raw.decode(errors="surrogateescape")


def _prepare_postgresql(timeout: timedelta, connection: Any, _record: object) -> None:
    settings = {**_POSTGRESQL, "statement_timeout": str(int(timeout.total_seconds() * 1000))}
    cursor = connection.cursor()
    for name, value in settings.items():
        cursor.execute("SELECT set_config(%s, %s, false)", (name, value))
    cursor.close()
    connection.commit()


def _prepare_mysql(timeout: timedelta, connection: Any, _record: object) -> None:
    seconds = timeout.total_seconds()
    cursor = connection.cursor()
    cursor.execute("SELECT version()")
    limit = f"max_execution_time = {max(1, int(seconds * 1000))}"
    if "mariadb" in str(cursor.fetchone()[0]).lower():
        limit = f"max_statement_time = {seconds:.6f}"
    for statement in (*_MYSQL, f"SET SESSION {limit}"):
        cursor.execute(statement)
    cursor.close()
    connection.commit()


_PREPARE: dict[str, Callable[[timedelta, Any, object], None]] = {
    "sqlite": _prepare_sqlite,
    "postgresql": _prepare_postgresql,
    "mysql": _prepare_mysql,
    "mariadb": _prepare_mysql,
}


def _pymysql_conversions() -> dict[Any, Any]:
    """Return how values are read: a TIMESTAMP is an instant, told in the session's zone, UTC."""
    from pymysql.constants import FIELD_TYPE
    from pymysql.converters import conversions, convert_datetime

    def instant(text: str) -> object:
        value = convert_datetime(text)  # what is no time, such as 0000-00-00, stays a text
        return value.replace(tzinfo=UTC) if isinstance(value, datetime) else value

    return {**conversions, FIELD_TYPE.TIMESTAMP: instant}


def _adapt_psycopg(connection: Any, _record: object) -> None:
    from psycopg import DataError
    from psycopg.types import datetime as loaders
    from psycopg.types.json import set_json_loads
    from psycopg.types.multirange import MultirangeInfo
    from psycopg.types.range import RangeInfo
    from psycopg.types.string import TextLoader

    def lenient(base: Any) -> Any:
        class Lenient(base):  # type: ignore[misc]
            """Give the text of what Python's type cannot say, such as ``infinity``."""

            def load(self, data: Any) -> Any:
                try:
                    return super().load(data)
                except DataError:
                    return bytes(data).decode()

        return Lenient

    class Interval(lenient(loaders.IntervalLoader)):  # type: ignore[misc]
        """Give the text of months and years, which have no certain number of days."""

        def load(self, data: Any) -> Any:
            text = bytes(data).decode()
            return text if "mon" in text or "year" in text else super().load(data)

    adapters = connection.adapters
    for name, base in (
        ("timestamptz", loaders.TimestamptzLoader),
        ("timestamp", loaders.TimestampLoader),
        ("date", loaders.DateLoader),
        ("time", loaders.TimeLoader),
        ("timetz", loaders.TimetzLoader),
    ):
        adapters.register_loader(name, lenient(base))
    adapters.register_loader("interval", Interval)
    # A range is told as PostgreSQL writes it: one bound that Python cannot say would fail a page.
    for info in adapters.types:
        if isinstance(info, RangeInfo | MultirangeInfo):
            adapters.register_loader(info.oid, TextLoader)
    set_json_loads(json_document, connection)
