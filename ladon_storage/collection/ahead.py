"""Read one page ahead: a source fetches its next page while the sink writes the last."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Self

from ladon_storage.collection.records import Page


@contextlib.asynccontextmanager
async def read_ahead(pages: AsyncIterator[Page]) -> AsyncIterator[AsyncIterator[Page]]:
    """Iterate ``pages`` in a task of its own, at most one page ahead, and close it at the end.

    One task runs the whole iterator, as the timeouts inside of it need. What it raises is raised
    where its next page would have come, after the pages before it.
    """
    ahead = _Ahead(pages)
    try:
        yield ahead
    except GeneratorExit:  # a coroutine that is being closed cannot await
        ahead.cancel()
        raise
    except BaseException:
        await ahead.close()
        raise
    await ahead.close()


class _Ahead:
    def __init__(self, pages: AsyncIterator[Page]) -> None:
        self._pages = pages
        self._handed: asyncio.Queue[Page | BaseException] = asyncio.Queue(maxsize=1)
        self._closing = False
        self._fetching = asyncio.create_task(self._fetch(), name="read ahead")

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Page:
        page = await self._handed.get()
        self._handed.task_done()
        if isinstance(page, BaseException):
            raise page
        return page

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
                    await self._handed.put(page)
                    await self._handed.join()  # taken: now the next one
            finally:
                # At once, not when it is collected as garbage, if it is a generator.
                if aclose := getattr(self._pages, "aclose", None):
                    await aclose()
        except BaseException as error:
            if self._closing or isinstance(error, KeyboardInterrupt | SystemExit):
                raise
            await self._handed.put(error)
        else:
            await self._handed.put(StopAsyncIteration())
