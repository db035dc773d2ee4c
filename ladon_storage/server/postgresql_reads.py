"""Watermarks that are wanted at the same time, read together.

A read waits for no other one that could be made at once. What is asked for while others are
made shares the next one: a statement costs more than the rows that it returns.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from ladon_storage.errors import DatabaseError
from ladon_storage.server.backend import Row

MOST_READERS, MOST_READ = 2, 100
"""The reads at one time, and the watermarks of one read."""

_Wanted = tuple[str, "asyncio.Future[Row | None]"]


class GatheredReads:
    """The reads of one event loop.

    Args:
        fetch: Returns the rows of names, each of which begins with its name.
    """

    def __init__(self, fetch: Callable[[list[str]], Awaitable[list[Row]]]) -> None:
        self._fetch = fetch
        self._wanted: list[_Wanted] = []
        self._readers: set[asyncio.Task[None]] = set()

    async def read(self, source_id: str) -> Row | None:
        """Return the row of a name, as it is stored after this call.

        Raises:
            DatabaseError: The database could not be read.
        """
        future: asyncio.Future[Row | None] = asyncio.get_running_loop().create_future()
        self._wanted.append((source_id, future))
        if len(self._readers) < MOST_READERS:
            reader = asyncio.create_task(self._work())
            self._readers.add(reader)
            reader.add_done_callback(self._readers.discard)
        return await future

    async def _work(self) -> None:
        while self._wanted:
            await asyncio.sleep(0)  # what has arrived already is read with it
            wanted, self._wanted = self._wanted[:MOST_READ], self._wanted[MOST_READ:]
            if wanted:
                await self._answer(wanted)

    async def _answer(self, wanted: list[_Wanted]) -> None:
        found: dict[str, Row] = {}
        failure = ""
        try:
            rows = await self._fetch([source_id for source_id, _ in wanted])
            found = {row[0]: row for row in rows}
        except DatabaseError as error:
            # Those that waited for this read meanwhile have waited long enough.
            failure, wanted, self._wanted = str(error), wanted + self._wanted, []
        for source_id, future in wanted:
            if future.done():  # its caller was cancelled
                continue
            if failure:
                future.set_exception(DatabaseError(failure))
            else:
                future.set_result(found.get(source_id))
