"""The thread in which a sink does what blocks, so that the event loop never waits for a disk."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


class WorkerThread:
    """Do one piece of work after another, in one thread.

    Cancelling who waits for a piece does not end it: `close` waits for it, so that a run which was
    cancelled leaves nothing running behind it.
    """

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="ladon-sink")

    async def do(self, work: Callable[[], T]) -> T:
        """Return what ``work`` returns, or raise what it raises."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, work)

    async def close(self, last: Callable[[], None]) -> None:
        """Do ``last`` behind all other work, and end the thread; cancelling cuts neither short."""
        try:
            await asyncio.shield(self.do(last))
        finally:
            self._executor.shutdown(wait=False)
