"""Reads that grow with the number of rows, in threads and over connections of their own.

A read whose connection was lost while it was idle is made again over a new one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

import psycopg

from ladon_storage.errors import DatabaseError
from ladon_storage.server.postgresql_schema import PostgresqlConnection, bounded, hang_up

T = TypeVar("T")


class Scans:
    """The reads of one service, two at a time.

    Args:
        connect: Returns a new connection, whose statements take so many seconds at most.
    """

    def __init__(self, connect: Callable[[float], PostgresqlConnection]) -> None:
        self._connect = connect
        self._closed = False
        self._idle: list[PostgresqlConnection] = []
        self._scanning: set[PostgresqlConnection] = set()
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="storage-scan")

    async def run(
        self, read: Callable[[PostgresqlConnection], T], seconds: float, *, keep: bool
    ) -> T:
        """Return what a function reads.

        Args:
            read: The function.
            seconds: How long it may take.
            keep: Whether the next one may use its connection.
        """
        work = partial(self._scan, read, seconds, keep=keep)
        scanning = asyncio.get_running_loop().run_in_executor(self._threads, work)
        scanning.add_done_callback(_forget)  # its caller may be cancelled meanwhile
        return await asyncio.shield(scanning)

    async def close(self) -> None:
        """End what reads, and close the connections."""
        self._closed = True
        for each in list(self._scanning):  # no caller waits for them any more
            hang_up(each.inner)
        await asyncio.to_thread(self._threads.shutdown, cancel_futures=True)
        self.drop_idle()

    def drop_idle(self) -> None:
        """Close the connections that wait for a read."""
        with suppress(IndexError):  # a thread may take one meanwhile
            while True:
                self._idle.pop().inner.close()

    def _taken(self) -> PostgresqlConnection | None:
        with suppress(IndexError):
            return self._idle.pop()
        return None

    def _scan(self, read: Callable[[PostgresqlConnection], T], seconds: float, *, keep: bool) -> T:
        while True:
            idle = self._taken() if keep else None
            is_new = idle is None
            connection = idle or self._connect(seconds)
            self._scanning.add(connection)
            try:
                if self._closed:  # before it could be seen among those that scan
                    raise DatabaseError("The database is closed; start the service again.")
                with bounded(connection.inner, seconds):
                    return read(connection)
            except psycopg.OperationalError:
                if is_new or not connection.inner.closed:
                    raise
            finally:
                self._scanning.discard(connection)
                if keep and not self._closed and not connection.inner.closed:
                    self._idle.append(connection)
                else:
                    connection.inner.close()


def _forget(scanning: asyncio.Future[Any]) -> None:
    if not scanning.cancelled():
        scanning.exception()
