"""The session settings of each database, made before anything is read.

- The session's time zone is UTC: a database prints a timestamp in its session's zone, which is its
  server's by default. Any other server setting that changes how a value is printed is set here,
  too.
- The session cannot write, and the server itself ends a statement that takes too long.
- Values come in the driver's form, or as the database's own text if the driver would lose a part of
  them, or fail a page for one odd value.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

from sqlalchemy import Engine, create_engine, event
from sqlalchemy.engine import URL
from sqlalchemy.pool import QueuePool

from ladon_storage import databases
from ladon_storage.sources.sql.values import json_document

DRIVERS = {
    "sqlite": "pysqlite",
    "postgresql": "psycopg",
    "mysql": "pymysql",
    "mariadb": "pymysql",
}
"""The databases that are tested, and their drivers."""

MYSQL = ("mysql", "mariadb")

# The server settings that change how PostgreSQL prints a value, or the name of a type.
_POSTGRESQL = {
    "timezone": "UTC",
    "datestyle": "ISO",
    "intervalstyle": "postgres",
    "extra_float_digits": "1",
    "quote_all_identifiers": "off",
}

_MYSQL_MODE = "@@SESSION.sql_mode"
for _mode in (
    # The server would pad each CHAR with spaces, and name a DATE as no other server does.
    *("PAD_CHAR_TO_FULL_LENGTH", "ORACLE"),
    # MySQL 8 would refuse to go on behind a row whose time is 0000-00-00.
    *("TRADITIONAL", "NO_ZERO_IN_DATE", "NO_ZERO_DATE"),
):
    _MYSQL_MODE = f"REPLACE({_MYSQL_MODE}, '{_mode}', '')"

_MYSQL = (
    "SET SESSION time_zone = '+00:00'",
    # A transaction's rows must not be read while it may still be rolled back.
    "SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ",
    "SET SESSION TRANSACTION READ ONLY",
    f"SET SESSION sql_mode = {_MYSQL_MODE}",
)


def with_driver(url: URL) -> URL:
    """Return an address with the tested driver, if it names none."""
    if url.drivername in DRIVERS and url.drivername != "sqlite":
        return url.set(drivername=f"{url.drivername}+{DRIVERS[url.drivername]}")
    return url


def is_tested(url: URL) -> bool:
    """Return whether this package is tested with the database and the driver of an address."""
    return DRIVERS.get(url.get_backend_name()) == url.get_driver_name()


def reading_engine(url: URL, timeout: timedelta) -> Engine:
    """Return an engine whose connections cannot write; ``timeout`` bounds a statement."""
    engine = create_engine(
        url,
        # One connection, kept from page to page, and made again after it was lost.
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
        # A serializable reader may wait for all writers, or fail, and is refused by a standby.
        return engine.execution_options(postgresql_readonly=True, isolation_level="READ COMMITTED")
    return engine


def _arguments(url: URL, timeout: timedelta) -> dict[str, Any]:
    """Return the driver's arguments that are not in the address, which has priority."""
    arguments: dict[str, Any] = {}
    name, driver = url.get_backend_name(), url.get_driver_name()
    if name == "sqlite":
        arguments["timeout"] = timeout.total_seconds()
    elif name == "postgresql":
        arguments = dict(databases.POSTGRESQL)
    elif driver == "pymysql":
        arguments = {
            "connect_timeout": databases.CONNECT_SECONDS,
            "read_timeout": int(timeout.total_seconds()) + databases.SILENT_SECONDS,
            "program_name": "ladon-storage",
            "conv": _pymysql_conversions(),
        }
        if url.password is not None:  # a text would be sent as Latin-1
            arguments["password"] = url.password.encode()
    return databases.arguments_beside(url.query, arguments)


def _prepare_sqlite(_timeout: timedelta, connection: Any, _record: object) -> None:
    connection.execute("PRAGMA query_only=ON")
    # A text that is not UTF-8 would fail its whole page.
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
    """Return the conversions of values: a TIMESTAMP is printed in the session's zone, UTC."""
    from pymysql.constants import FIELD_TYPE
    from pymysql.converters import conversions, convert_datetime

    def instant(text: str) -> object:
        value = convert_datetime(text)  # an invalid time, such as 0000-00-00, stays a text
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
            """A loader that returns unsupported values as text, such as ``infinity``."""

            def load(self, data: Any) -> Any:
                try:
                    return super().load(data)
                except DataError:
                    return bytes(data).decode()

        return Lenient

    class Interval(lenient(loaders.IntervalLoader)):  # type: ignore[misc]
        """A loader that returns the text of months and years, whose days are not fixed."""

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
    # A range is read in PostgreSQL's notation: one bound outside of Python's types would fail a
    # page.
    for info in adapters.types:
        if isinstance(info, RangeInfo | MultirangeInfo):
            adapters.register_loader(info.oid, TextLoader)
    set_json_loads(json_document, connection)
