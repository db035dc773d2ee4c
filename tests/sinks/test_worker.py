"""The worker thread: each piece of work is done once, in its turn, whatever comes meanwhile."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest

from ladon_storage.sinks.worker import WorkerThread


async def test_pieces_that_come_at_any_time_are_done_in_their_order() -> None:
    """None is left in the queue, also where the thread is about to rest when it comes."""
    thread, done = WorkerThread(), list[int]()
    for number in range(0, 2_000, 2):
        one = asyncio.ensure_future(thread.do(partial(done.append, number)))
        for _ in range(number % 7):
            await asyncio.sleep(0)
        await asyncio.gather(one, thread.do(partial(done.append, number + 1)))
    await thread.close(partial(done.append, -1))
    assert done == [*range(2_000), -1]


class _Late(deque[Any]):
    """A queue into which a piece comes when the thread has just found it empty."""

    def __init__(self, piece: Any) -> None:
        super().__init__()
        self._late = [piece]

    def __bool__(self) -> bool:
        if found := len(self) > 0:
            return found
        self.extend(self._late)
        self._late.clear()
        return False


async def test_piece_that_comes_when_the_thread_is_about_to_rest_is_done() -> None:
    """Its waiter took the thread for busy, and woke nobody."""
    thread, done = WorkerThread(), asyncio.get_running_loop().create_future()
    thread._asked = _Late((lambda: "late", done))
    await thread.do(int)
    assert await asyncio.wait_for(done, 10) == "late"
    await thread.close(lambda: None)


async def test_error_of_a_piece_is_its_waiters_alone() -> None:
    """The pieces beside it have their results."""
    thread = WorkerThread()
    wrong = (thread.do(partial(int, "none")), thread.do(partial(next, iter(()))))
    async with asyncio.timeout(10):
        found = await asyncio.gather(thread.do(int), *wrong, thread.do(int), return_exceptions=True)
    await thread.close(lambda: None)
    assert [type(each) for each in found] == [int, ValueError, RuntimeError, int]


async def test_piece_that_fails_is_let_go_with_its_error() -> None:
    """What it held, such as a page, does not wait for a search for cycles."""

    class Page:
        def fail(self) -> None:
            raise ValueError("full")

    thread, page = WorkerThread(), Page()
    held = weakref.ref(page)
    gc.disable()
    try:
        with pytest.raises(ValueError, match="full") as error:
            await thread.do(page.fail)
        del page, error
        await thread.do(int)
        assert held() is None
    finally:
        gc.enable()
    await thread.close(lambda: None)


async def test_piece_that_has_begun_is_done_before_the_end() -> None:
    """A cancelled run leaves nothing running, begins nothing, and takes nothing from others."""
    thread, held, done = WorkerThread(), threading.Event(), list[str]()
    begun = threading.Event()

    def hold() -> None:
        begun.set()
        held.wait()

    first = asyncio.ensure_future(thread.do(hold))
    given_up = asyncio.ensure_future(thread.do(partial(done.append, "given up")))
    other = asyncio.ensure_future(thread.do(lambda: "another's"))
    await asyncio.to_thread(begun.wait)
    first.cancel()
    given_up.cancel()
    ending = asyncio.ensure_future(thread.close(partial(done.append, "closed")))
    await asyncio.sleep(0)
    assert not ending.done()
    held.set()
    await ending
    assert (done, await other) == (["closed"], "another's")
    assert first.cancelled()
    assert given_up.cancelled()


async def test_thread_that_cannot_start_refuses_each_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    """As at the interpreter's end: nobody waits for what nothing does."""
    thread = WorkerThread()
    monkeypatch.setattr(ThreadPoolExecutor, "submit", _refused)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="shutdown"):
            await thread.do(int)


def _refused(*_: object) -> None:
    raise RuntimeError("cannot schedule new futures after interpreter shutdown")
