"""Read a source on while its sink writes, and write what came meanwhile at once.

- A sink that is slower than its source makes fewer and larger commits; one that is faster gets each
  page as it comes. Nothing waits for company.
- So much and no more is read ahead: memory does not grow with the number of records.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import Self

from ladon_storage.collection.records import Page

MAX_PREFETCH_CHARS = 2**20
"""So many characters of pages wait for the sink before the source is made to wait."""

_HANDOVER_SECONDS = 1e-6
"""What lets the sink's thread have the interpreter.

A thread asks for it when it has waited for 5 ms, and waits anew whenever it was let go in between:
a loop that takes less for a page does so each time, and has it back before the thread wakes up.
"""


@contextlib.asynccontextmanager
async def prefetch(pages: AsyncIterator[Page]) -> AsyncIterator[AsyncIterator[list[Page]]]:
    """Iterate ``pages`` in a task of its own, yield those that wait, and close it at the end.

    One task runs the whole iterator, as the timeouts inside of it need. What it raises is raised
    where its next page would have come, after the pages before it.
    """
    ahead = _Prefetch(pages)
    try:
        yield ahead
    except GeneratorExit:  # a coroutine that is being closed cannot await
        ahead.cancel()
        raise
    except BaseException:
        await ahead.close()
        raise
    await ahead.close()


class _Prefetch:
    def __init__(self, pages: AsyncIterator[Page]) -> None:
        self._pages = pages
        self._waiting: list[Page] = []
        self._characters = 0
        self._end: BaseException | None = None
        self._changed = asyncio.Event()
        self._taken = asyncio.Event()
        self._closing = False
        self._fetching = asyncio.create_task(self._fetch(), name="read ahead")

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> list[Page]:
        while not self._waiting:
            if self._end is not None:
                raise self._end
            self._changed.clear()
            await self._changed.wait()
        pages, self._waiting, self._characters = self._waiting, [], 0
        self._taken.set()
        return pages

    def cancel(self) -> None:
        """End the fetching."""
        self._closing = True
        self._fetching.cancel()

    async def close(self) -> None:
        """End the fetching, and return when the iterator is closed."""
        self.cancel()
        await asyncio.wait({self._fetching})

    async def _fetch(self) -> None:
        try:
            try:
                async for page in self._pages:
                    self._waiting.append(page)
                    self._characters += page.characters
                    self._changed.set()
                    if self._characters < MAX_PREFETCH_CHARS:
                        await asyncio.sleep(0)  # the sink's turn, if it has nothing to do
                        time.sleep(_HANDOVER_SECONDS)  # noqa: ASYNC251 - its thread's, if it has
                    else:
                        self._taken.clear()
                        await self._taken.wait()
            finally:
                # At once, not when it is collected as garbage, if it is a generator.
                if aclose := getattr(self._pages, "aclose", None):
                    await aclose()
        except BaseException as error:
            if self._closing or isinstance(error, KeyboardInterrupt | SystemExit):
                raise
            self._end = error
        else:
            self._end = StopAsyncIteration()
        self._changed.set()
