"""A database connection for reading: its address, its thread, and its errors.

- One thread of its own drives the connection, so that the event loop never waits for it. Closing
  waits for that thread: a cancelled run leaves nothing running.
- Statements are retried here and nowhere above, if a retry may succeed a little later.
- No error chains the driver's own, which knows the connection and its password.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import stamina
from sqlalchemy.engine import URL
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, SQLAlchemyError

from ladon_storage.databases import driver_error, parsed, shown_address
from ladon_storage.errors import SourceError
from ladon_storage.sources.problems import with_step

logger = logging.getLogger(__name__)

T = TypeVar("T")

ATTEMPTS = 5

# Transient errors of PostgreSQL and SQLite.
_PASSING = ("08", "40", "53", "57P", "55P03", "SQLITE_BUSY", "SQLITE_LOCKED")
# Those of MySQL and MariaDB: locks, too many connections, a server shutdown, a lost connection.
_PASSING_NUMBERS = (
    *(0, 1020, 1040, 1053, 1077, 1079, 1152, 1158, 1159, 1160, 1161, 1184, 1203, 1205, 1213),
    *(1226, 1412, 1927, 2002, 2003, 2005, 2006, 2012, 2013, 2014, 2045, 2055, 4031),
)
# A database of PostgreSQL that declares no encoding, SQL_ASCII, hands back any bytes.
_OTHER_ENCODING = "22021"
_TIMED_OUT = ("57014", 1969, 3024)
# Other errors of drivers: a text in an unknown charset, an unsupported authentication method.
_FOREIGN = (ValueError, RuntimeError, OverflowError)
# A connection that a server refuses has no code, only a text.
_REFUSED = re.compile("FATAL|authentication failed|no password supplied", re.IGNORECASE)
_COMING_OR_GOING = re.compile("starting up|shutting down|too many|recovery", re.IGNORECASE)


class DatabaseThread:
    """A worker thread whose errors are those of this package.

    Args:
        source_id: The source, as errors name it.
        url: The address, without its secrets, as errors show it.
    """

    def __init__(self, source_id: str, url: URL) -> None:
        self._source_id = source_id
        self._shown = shown_address(url)
        self._is_postgresql = url.get_backend_name() == "postgresql"
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="ladon-source")

    async def do(self, work: Callable[[], T]) -> T:
        """Return the result of ``work``, retried if that may help.

        Raises:
            SourceError: No attempt succeeded.
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
        """Do ``last`` after all other work, and end the thread; cancelling cuts neither short."""
        loop = asyncio.get_running_loop()
        try:
            await asyncio.shield(loop.run_in_executor(self._thread, last))
        finally:
            self._thread.shutdown(wait=False)

    async def _once(self, work: Callable[[], T]) -> T:
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._thread, work)
        except (SQLAlchemyError, *_FOREIGN) as error:
            failure = self._translated(error)
        if failure.transient:
            logger.warning("%s", failure, extra={"source_id": self._source_id})
        # Raised outside of the handler: the driver's error holds the connection and its password.
        raise failure

    def _translated(self, error: Exception) -> SourceError:
        code, said = driver_error(error)
        if code is None:
            original = getattr(error, "orig", None)
            text = str(original or "")
            dropped = isinstance(error, DBAPIError) and error.connection_invalidated
            refused = _REFUSED.search(text) and not _COMING_OR_GOING.search(text)
            is_connection = type(original).__name__ in ("OperationalError", "InterfaceError")
            transient = (dropped or is_connection) and not refused
        elif isinstance(code, int):
            transient = code in _PASSING_NUMBERS
        else:
            transient = code not in _TIMED_OUT and code.startswith(_PASSING)
        step = "check the table and the permissions of the user"
        if transient:
            step = "check that the database can be reached, and run again"
        elif code == _OTHER_ENCODING or (isinstance(error, UnicodeError) and self._is_postgresql):
            step = "name the encoding of its texts in the address, such as ?client_encoding=LATIN1"
        elif code in _TIMED_OUT:
            step = "create an index on the timestamp and the id, or set a longer timeout"
        return SourceError(
            with_step(f"Source {self._source_id!r} could not read {self._shown}: {said}", step),
            self._source_id,
            transient=transient,
        )


def parsed_address(value: str) -> URL | None:
    """Return an address that SQLAlchemy can use; ``None`` for another, whose text is not shown."""
    try:
        url = parsed(value)
        is_async = url.get_dialect().is_async
    except ImportError:  # the driver of a known database is missing, which is said later
        return url
    except (ArgumentError, NoSuchModuleError, ValueError):
        return None
    return None if is_async else url
