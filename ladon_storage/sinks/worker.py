"""The worker thread for a sink's blocking calls, so that the event loop never waits for a disk."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


class WorkerThread:
    """A thread that does one piece of work after another.

    Cancelling the waiter of a piece does not end the piece. `close` waits for it, so a cancelled
    run leaves nothing running.
    """

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="ladon-sink")

    async def do(self, work: Callable[[], T]) -> T:
        """Return the result of ``work``, or raise its exception."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, work)

    async def close(self, last: Callable[[], None]) -> None:
        """Do ``last`` after all other work, and end the thread; cancelling cuts neither short."""
        try:
            await asyncio.shield(self.do(last))
        finally:
            self._executor.shutdown(wait=False)
