"""The slots of a client's pool: who gets them, in which order, and that none is lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from ladon_storage import PoolTimeoutError, StorageServiceClient
from ladon_storage.client.pool import SessionPools
from tests.raw_server import RawServer, Reply, http, served, watermark


@pytest.fixture
async def pools() -> AsyncIterator[SessionPools]:
    """Hand out what a client with one slot has."""
    made = SessionPools(1, 1, False, {})
    yield made
    await made.close()


async def turns(count: int = 5) -> None:
    """Let everybody else run until they wait for something."""
    for _ in range(count):
        await asyncio.sleep(0)


async def test_slots_go_to_who_waits_longest(pools: SessionPools) -> None:
    """Nobody overtakes: neither a later waiter nor somebody who comes when a slot is given back."""
    order: list[int] = []

    async def take(number: int) -> None:
        slot = await pools.take(10)
        order.append(number)
        slot.give()

    slot = await pools.take(10)
    waiting = [asyncio.create_task(take(number)) for number in range(4)]
    await turns()
    slot.give()
    await take(4)
    await asyncio.gather(*waiting)
    assert order == [0, 1, 2, 3, 4]
    assert slot.active == 0


async def test_waiter_that_was_cancelled_is_passed_over(pools: SessionPools) -> None:
    """The slot goes to the next who still waits, and the error is the cancellation."""
    slot = await pools.take(10)
    gone, next_ = (asyncio.create_task(pools.take(10)) for _ in range(2))
    await turns()
    gone.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gone
    slot.give()
    assert await next_ is slot
    assert slot.active == 1
    slot.give()
    assert slot.active == 0


async def test_slot_that_comes_with_the_cancellation_is_passed_on(
    pools: SessionPools,
) -> None:
    """A waiter that is cancelled in the instant in which it got the slot does not keep it."""
    slot = await pools.take(10)
    gone, next_ = (asyncio.create_task(pools.take(10)) for _ in range(2))
    await turns()
    slot.give()
    gone.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gone
    assert await next_ is slot
    slot.give()
    assert slot.active == 0


async def test_waiter_that_waited_too_long_says_what_to_raise(pools: SessionPools) -> None:
    """The error names the limits, is a timeout, may pass by itself, and takes no slot along."""
    slot = await pools.take(10)
    with pytest.raises(
        PoolTimeoutError, match=r"1 connections .* 0\.01 s; raise max_conn"
    ) as error:
        await pools.take(0.01)
    assert isinstance(error.value, TimeoutError)
    assert error.value.transient
    assert error.value.__cause__ is None
    slot.give()
    assert slot.active == 0
    assert await pools.take(0) is slot


async def test_waiters_time_out_each_at_its_own_time(pools: SessionPools) -> None:
    """Who came later may leave earlier; who still waits keeps its place, and its time."""
    slot = await pools.take(10)
    gone: list[float] = []

    async def wait(seconds: float) -> None:
        try:
            (await pools.take(seconds)).give()
        except PoolTimeoutError:
            gone.append(seconds)

    patient = asyncio.create_task(wait(10))
    others = [asyncio.create_task(wait(seconds)) for seconds in (0.03, 0.01, 0.02, 0.04)]
    await asyncio.wait(others, timeout=5)
    assert gone == [0.01, 0.02, 0.03, 0.04]
    async with asyncio.timeout(5):
        await wait(0.05)
    assert not patient.done()
    slot.give()
    await patient
    assert gone == [0.01, 0.02, 0.03, 0.04, 0.05]
    assert slot.active == 0


@pytest.mark.parametrize("limits", [(2, 30), (30, 2)])
async def test_requests_at_once_are_the_smaller_of_both_limits(limits: tuple[int, int]) -> None:
    """What goes beyond the limits waits here, and goes when another request ends."""
    together, per_host = limits
    options: dict[str, Any] = {"max_connections": together, "max_connections_per_host": per_host}
    async with served(Reply(end="stall"), timeout=10, **options) as (client, server):
        tasks = [asyncio.create_task(client.get_watermark(f"source-{n}")) for n in range(4)]
        first = [await server.request() for _ in range(2)]
        await turns()
        assert (len(server.requests), server.connections) == (2, 2)
        for task in tasks[:2]:
            task.cancel()
        second = [await server.request() for _ in range(2)]
        for task in tasks[2:]:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    asked = [request.split()[1][-8:] for request in first + second]
    assert sorted(asked[:2]) == [b"source-0", b"source-1"]
    assert sorted(asked[2:]) == [b"source-2", b"source-3"]


async def test_health_checks_give_their_slots_back() -> None:
    """Whether it is healthy, unhealthy or gone, a service is asked with a pool of one again."""
    script = (http(200, b'{"status": "healthy"}'), http(503), Reply(end="reset"))
    options: dict[str, Any] = {"max_connections": 1, "environment": "development"}
    async with served(*script, **options) as (client, _):
        async with asyncio.timeout(5):
            healthy = [await client.health_check() for _ in range(5)]
        assert healthy == [True, False, False, False, False]


async def test_connection_is_used_again() -> None:
    """Requests one after another, to read and to write, share a connection and their session."""
    async with served(watermark()) as (client, server):
        for _ in range(5):
            await client.get_watermark("kev")
        assert server.connections == 1
        assert len(server.requests) == 5


async def test_first_requests_at_once_share_one_session(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many tasks begin together, the loop gets one pool; making a client makes none."""
    made: list[aiohttp.ClientSession] = []
    make = aiohttp.ClientSession.__init__

    def noted(session: aiohttp.ClientSession, *arguments: Any, **options: Any) -> None:
        make(session, *arguments, **options)
        made.append(session)

    monkeypatch.setattr(aiohttp.ClientSession, "__init__", noted)
    async with served(watermark(), max_connections=3) as (client, server):
        assert not made
        await asyncio.gather(*(client.get_watermark("kev") for _ in range(10)))
        assert len(made) == 1
        assert server.connections <= 3


async def test_cookies_of_the_service_are_not_kept() -> None:
    """What an answer asks to remember does not go out with the next request, nor grow."""
    async with RawServer(watermark("kev", "Set-Cookie: session=1; Path=/")) as server:
        # Nobody keeps cookies of a host that is a number.
        address = server.url.replace("127.0.0.1", "localhost")
        async with StorageServiceClient(address) as client:
            for _ in range(2):
                await client.get_watermark("kev")
        assert b"cookie" not in server.requests[1].lower()
