"""A database that is only read: its connections, the thread that waits for it, and its errors.

- It is driven from one thread of its own, so that the event loop never waits for it. Leaving waits
  for that thread: a cancelled run leaves nothing running behind it.
- A statement is repeated here and nowhere above, where the same one may succeed a little later.
- No error holds the driver's own, which knows the connection and its password.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any, TypeVar

import stamina
from sqlalchemy import Engine, create_engine, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, SQLAlchemyError
from sqlalchemy.pool import QueuePool

from ladon_storage.errors import SourceError

logger = logging.getLogger(__name__)

T = TypeVar("T")

ATTEMPTS = 5

_CONNECT_SECONDS = 10
_SILENT_SECONDS = 60
"""How long a server may not acknowledge what was sent before its connection counts as lost."""

# What PostgreSQL and SQLite say where the same statement may succeed a little later.
_PASSING = ("08", "40", "53", "57P", "55P03", "SQLITE_BUSY", "SQLITE_LOCKED")
_TIMED_OUT = "57014"
# A connection that a server refuses has no code, only a text.
_REFUSED = re.compile("FATAL|authentication failed|no password supplied", re.IGNORECASE)
_COMING_OR_GOING = re.compile("starting up|shutting down|too many|recovery", re.IGNORECASE)


class DatabaseThread:
    """Do one piece of work after another, and say in our words what went wrong.

    Args:
        source_id: The source, as errors name it.
        url: The address, as errors show it without its secrets.
    """

    def __init__(self, source_id: str, url: URL) -> None:
        self._source_id = source_id
        self._shown = url.render_as_string(hide_password=True).partition("?")[0]
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="ladon-source")

    async def do(self, work: Callable[[], T]) -> T:
        """Return what ``work`` returns, repeated where that may help.

        Raises:
            SourceError: It did not help.
        """
        async for attempt in stamina.retry_context(
            on=lambda error: isinstance(error, SourceError) and error.transient,
            attempts=ATTEMPTS,
            timeout=None,
            wait_initial=0.5,
            wait_max=30.0,
        ):
            with attempt:
                return await self._once(work)
        raise AssertionError("stamina ends with a result or an error")

    async def close(self, last: Callable[[], None]) -> None:
        """Do ``last`` behind all other work, and end the thread; cancelling cuts neither short."""
        loop = asyncio.get_running_loop()
        try:
            await asyncio.shield(loop.run_in_executor(self._thread, last))
        finally:
            self._thread.shutdown(wait=False)

    async def _once(self, work: Callable[[], T]) -> T:
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._thread, work)
        except SQLAlchemyError as error:
            failure = self._translated(error)
        if failure.transient:
            logger.warning("%s", failure, extra={"source_id": self._source_id})
        # Raised outside of the handler: the driver's error holds the connection and its password.
        raise failure

    def _translated(self, error: SQLAlchemyError) -> SourceError:
        original = getattr(error, "orig", None)
        code = getattr(original, "sqlstate", None) or getattr(original, "sqlite_errorname", None)
        primary = getattr(getattr(original, "diag", None), "message_primary", None)
        text = str(original or "").strip()
        said = primary or text.partition("\n")[0] or type(error).__name__
        if code is None:
            dropped = isinstance(error, DBAPIError) and error.connection_invalidated
            refused = _REFUSED.search(text) and not _COMING_OR_GOING.search(text)
            is_connection = type(original).__name__ in ("OperationalError", "InterfaceError")
            transient = (dropped or is_connection) and not refused
        else:
            transient = code != _TIMED_OUT and code.startswith(_PASSING)
        step = "see what the database says"
        if transient:
            step = "see that the database can be reached, and run again"
        elif code == _TIMED_OUT:
            step = "make an index on the timestamp and the id, or set a longer timeout"
        return SourceError(
            f"Source {self._source_id!r} could not read {self._shown}: {said}; {step}.",
            self._source_id,
            transient=transient,
        )


def parsed_address(value: str) -> URL | None:
    """Return an address that SQLAlchemy can use; ``None`` for another, whose text is not shown."""
    try:
        url = make_url(value)
        is_async = url.get_dialect().is_async
    except ImportError:  # the driver of a known database is missing, which is said later
        return url
    except (ArgumentError, NoSuchModuleError, ValueError):
        return None
    return None if is_async else url


def reading_engine(url: URL, timeout: timedelta) -> Engine:
    """Return what opens connections that cannot write; ``timeout`` bounds a statement."""
    arguments: dict[str, Any] = {}
    if url.get_backend_name() == "sqlite":
        arguments["timeout"] = timeout.total_seconds()
    elif url.get_backend_name() == "postgresql":
        arguments = {
            "connect_timeout": _CONNECT_SECONDS,
            "tcp_user_timeout": _SILENT_SECONDS * 1000,
            "keepalives_idle": _SILENT_SECONDS,
            "application_name": "ladon-storage",
        }
        # The address has the last word; SQLAlchemy would give it to these.
        arguments = {name: each for name, each in arguments.items() if name not in url.query}
    engine = create_engine(
        url,
        # One connection, kept from page to page, and made anew after it was lost.
        poolclass=QueuePool,
        pool_size=1,
        max_overflow=0,
        hide_parameters=True,
        connect_args=arguments,
    )
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _prepare_sqlite)
        return engine
    if engine.dialect.driver == "psycopg":
        milliseconds = int(timeout.total_seconds() * 1000)
        event.listen(
            engine, "connect", lambda connection, _: _prepare_psycopg(connection, milliseconds)
        )
        return engine.execution_options(postgresql_readonly=True)
    return engine


def _prepare_sqlite(connection: Any, _: object) -> None:
    connection.execute("PRAGMA query_only=ON")
    # A text that is no UTF-8 would fail its whole page.
    connection.text_factory = lambda raw: raw.decode(errors="surrogateescape")


def _prepare_psycopg(connection: Any, timeout_milliseconds: int) -> None:
    from psycopg import DataError
    from psycopg.types import datetime as loaders

    def lenient(base: Any) -> Any:
        class Lenient(base):  # type: ignore[misc]
            """Give the text of what no year from 1 to 9999 has, such as ``infinity``."""

            def load(self, data: Any) -> Any:
                try:
                    return super().load(data)
                except DataError:
                    return bytes(data).decode()

        return Lenient

    connection.execute(
        "SELECT set_config('timezone', 'UTC', false), set_config('datestyle', 'ISO', false), "
        "set_config('statement_timeout', %s, false)",
        (str(timeout_milliseconds),),
    )
    connection.commit()
    for name, base in (
        ("timestamptz", loaders.TimestamptzLoader),
        ("timestamp", loaders.TimestampLoader),
        ("date", loaders.DateLoader),
        ("interval", loaders.IntervalLoader),
    ):
        connection.adapters.register_loader(name, lenient(base))
