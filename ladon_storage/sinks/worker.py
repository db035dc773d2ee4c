"""The worker thread for a sink's blocking calls, so that the event loop never waits for a disk."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, TypeVar

T = TypeVar("T")

_Outcome = tuple[Any, BaseException | None]


class WorkerThread:
    """A thread that does one piece of work after another, for one event loop.

    Cancelling the waiter of a piece does not end the piece that has begun. `close` waits for it, so
    a cancelled run leaves nothing running.

    Pieces that are there together reach the thread by one call, and their results the loop: to
    wake one of the two costs more than to read a row.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="ladon-sink")
        self._asked: deque[tuple[Callable[[], Any], asyncio.Future[Any]]] = deque()
        self._done: deque[tuple[asyncio.Future[Any], _Outcome]] = deque()
        # Set before the call that each stands for, and unset before the last look at its queue, so
        # that nothing is left there.
        self._is_working = self._is_reporting = False

    async def do(self, work: Callable[[], T]) -> T:
        """Return the result of ``work``, or raise its exception."""
        done: asyncio.Future[T] = self._loop.create_future()
        self._asked.append((work, done))
        if not self._is_working:
            self._is_working = True
            try:
                self._executor.submit(self._work)
            except RuntimeError:  # the interpreter ends, or the thread has
                self._is_working = False
                raise
        try:
            return await done
        finally:
            del done  # an error would keep this frame and the work in a cycle

    async def close(self, last: Callable[[], None]) -> None:
        """Do ``last`` after all other work, and end the thread; cancelling cuts neither short."""
        try:
            await asyncio.shield(self.do(last))
        finally:
            self._executor.shutdown(wait=False)

    def _work(self) -> None:
        """Do what is asked, in the thread."""
        while True:
            while self._asked:
                work, done = self._asked.popleft()
                if done.cancelled():
                    continue
                self._done.append((done, _outcome(work)))
                del work, done  # as in `do`
                if not self._is_reporting:
                    self._is_reporting = True
                    with suppress(RuntimeError):  # the loop is closed
                        self._loop.call_soon_threadsafe(self._report)
            self._is_working = False
            if not self._asked:
                return

    def _report(self) -> None:
        """Settle what is done, in the loop."""
        self._is_reporting = False
        while self._done:
            done, (result, error) = self._done.popleft()
            if done.done():  # its waiter was cancelled
                continue
            if error is None:
                done.set_result(result)
            else:
                done.set_exception(error)


def _outcome(work: Callable[[], Any]) -> _Outcome:
    try:
        return work(), None
    except StopIteration as error:  # which a future refuses
        stopped = RuntimeError("a call of the sink raised StopIteration")
        stopped.__cause__ = error
        return None, stopped
    except BaseException as error:
        return None, error
