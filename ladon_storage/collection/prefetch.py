"""Prefetch pages while the sink is writing, and write all pages that arrived since as one batch.

- A slow sink makes fewer, larger commits. Pages that come quickly one after another wait a moment
  for those that follow: a commit costs as much as hundreds of records, and the rewriting of an
  index whose keys come in no order even more. A page of a slow source is written at once.
- A page is copied when it arrives: its source goes on before it is written, and may use it again.
- Prefetching stops at a number of characters: memory does not grow with the number of records.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncIterator
from typing import Self

from ladon_storage.collection.garbage import note_made
from ladon_storage.collection.records import Page
from ladon_storage.errors import SourceError

MAX_PREFETCH_CHARS = 6 * 2**20
"""The characters of waiting pages at which the source must wait for most sinks."""

GATHER_SECONDS = 2.0
"""The longest time that a page waits for those that follow it."""

QUICK_SECONDS = 0.25
"""The time between two pages below which more are expected."""

_HANDOVER_SECONDS = 1e-6
"""A pause that is long enough to release the GIL to the sink's thread.

A thread requests the GIL only after waiting 5 ms without a release. A loop that takes less time for
a page releases it each time, takes it back before the thread wakes up, and so starves the thread.
"""


@contextlib.asynccontextmanager
async def prefetch(
    pages: AsyncIterator[Page], source_id: str, most: int | None = None
) -> AsyncIterator[AsyncIterator[list[Page]]]:
    """Iterate ``pages`` in a separate task, yield the waiting pages, and close it at the end.

    One task runs the whole iterator, because the timeouts inside it need that. Its error is raised
    in place of its next page, after the pages before it.

    Args:
        pages: The pages.
        source_id: Their source.
        most: The characters of waiting pages at which the source must wait, where a sink has a
            number of its own.
    """
    ahead = _Prefetch(pages, source_id, most or MAX_PREFETCH_CHARS)
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
    def __init__(self, pages: AsyncIterator[Page], source_id: str, most: int) -> None:
        self._pages = pages
        self._source_id = source_id
        self._most = most
        self._waiting: list[Page] = []
        self._characters = 0
        self._records = 0
        """The records of all pages so far."""
        self._end: BaseException | None = None
        self._arrived = -math.inf
        """The time at which the last page arrived."""
        self._since = 0.0
        """The time at which the first waiting page arrived."""
        self._are_quick = False
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
        await self._gather()
        pages, self._waiting, self._characters = self._waiting, [], 0
        self._taken.set()
        return pages

    async def _gather(self) -> None:
        """Wait while pages come quickly, until there are enough for one commit."""
        until = self._since + GATHER_SECONDS
        while self._are_quick and self._end is None and self._characters < self._most:
            left = until - time.monotonic()
            if left <= 0:
                break
            self._changed.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self._changed.wait()

    def _note_arrival(self) -> None:
        now = time.monotonic()
        self._are_quick, self._arrived = now - self._arrived < QUICK_SECONDS, now
        if not self._waiting:
            self._since = now

    def cancel(self) -> None:
        """End the fetching."""
        self._closing = True
        self._fetching.cancel()

    async def close(self) -> None:
        """End the fetching, and return when the iterator is closed."""
        self.cancel()
        if not self._fetching.done():
            await asyncio.wait({self._fetching})
        # The error has this object and its pages in its traceback, and would keep them in a cycle.
        self._end = RuntimeError("the pages are closed")

    async def _pause(self) -> None:
        """Let the sink run, and wait until it takes the pages if there are enough.

        Raises:
            SourceError: The source cancelled this.
        """
        try:
            if self._characters < self._most:
                await asyncio.sleep(0)  # lets the sink run, if it has nothing to do
                if self._are_quick:  # one page alone starves nothing
                    time.sleep(_HANDOVER_SECONDS)  # noqa: ASYNC251 - its thread's
            else:
                self._taken.clear()
                await self._taken.wait()
        except asyncio.CancelledError as error:
            if self._closing or type(error) is not asyncio.CancelledError:  # as Prefect's timeouts
                raise
            raise SourceError(
                f"Source {self._source_id!r} cancelled its reading while its pages waited for the "
                "sink, as a time limit or a task group around a `yield` does. End it before each "
                "`yield`, as it counts the time of the sink.",
                self._source_id,
            ) from error

    async def _close(self) -> None:
        """Close a generator at once, not when it is collected as garbage."""
        if aclose := getattr(self._pages, "aclose", None):
            await aclose()

    async def _fetch(self) -> None:
        try:
            try:
                async for page in self._pages:
                    self._note_arrival()
                    if isinstance(page, Page):  # what is none is refused where it is taken
                        page = page.copy()
                    self._waiting.append(page)
                    self._characters += page.characters
                    self._records += len(page)
                    note_made(self._records)
                    del page  # it is the sink's alone, and goes when it is stored
                    self._changed.set()
                    await self._pause()
            except SourceError as error:
                try:
                    await self._close()
                except BaseExceptionGroup as group:  # of a task group, which names the failure
                    raise error from group
                raise
            except BaseException:
                await self._close()
                raise
            await self._close()
        except BaseException as error:
            if self._closing or isinstance(error, KeyboardInterrupt | SystemExit):
                raise
            self._end = error
            if isinstance(error, StopAsyncIteration):  # of its `aclose`: it would pass for the end
                self._end = RuntimeError("the pages raised StopAsyncIteration while they closed")
                self._end.__cause__ = error
        else:
            self._end = StopAsyncIteration()
        self._changed.set()
