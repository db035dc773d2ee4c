"""Workers that share what is left: how they end, and what is told of it."""

from __future__ import annotations

import asyncio

import pytest

from ladon_storage.collection.workers import run_workers
from ladon_storage.errors import CollectionError


async def test_all_workers_run_to_their_end() -> None:
    """Each takes what is left, until nothing is."""
    left, done = iter(range(10)), []

    async def work() -> None:
        for each in left:
            await asyncio.sleep(0)
            done.append(each)

    await run_workers(3, work)
    assert sorted(done) == list(range(10))


async def test_error_of_a_worker_ends_the_others_and_is_raised_alone() -> None:
    """It is no group of one, and keeps its cause."""
    ended: list[str] = []

    async def work() -> None:
        if not ended:
            ended.append("the first")
            await asyncio.sleep(0)
            raise KeyError("missing") from OSError("the disk is full")
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("another")

    with pytest.raises(KeyError, match="missing") as caught:
        await run_workers(3, work)
    assert isinstance(caught.value.__cause__, OSError)
    assert ended == ["the first", "another", "another"]


async def test_worker_that_ends_by_a_cancellation_from_within_is_an_error() -> None:
    """A group of tasks says nothing of it; the others still finish."""
    left, done = iter(range(10)), []

    async def work() -> None:
        for each in left:
            await asyncio.sleep(0)
            if each == 4:
                raise asyncio.CancelledError
            done.append(each)

    with pytest.raises(CollectionError, match="1 of 3 workers ended by a cancellation"):
        await run_workers(3, work)
    assert len(done) == 9


async def test_cancellation_of_the_caller_cancels_the_workers() -> None:
    """It stays one."""
    running = asyncio.create_task(run_workers(2, asyncio.Event().wait))  # type: ignore[arg-type]
    await asyncio.sleep(0)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
