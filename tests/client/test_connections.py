"""Connections and their ends that published clients get wrong; ``test_tls`` has certificates."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
import sys
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from typing import Any

import aiohttp
import pytest
from yarl import URL

from ladon_storage import (
    CircuitBreaker,
    CircuitOpenError,
    PoolTimeoutError,
    StorageConnectionError,
    StorageError,
    StorageServiceClient,
)
from ladon_storage.testing.clock import FakeClock
from tests.raw_server import RawServer, Reply, served, slot_of, watermark

NOON = datetime(2024, 1, 1, 12, tzinfo=UTC)
HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"


async def ask(client: StorageServiceClient, method: str = "GET") -> None:
    if method == "GET":
        await client.get_watermark("kev")
    else:
        await client.update_watermark("kev", NOON)


async def failure(client: StorageServiceClient, method: str = "GET") -> StorageError:
    with pytest.raises(StorageError) as caught:
        await ask(client, method)
    return caught.value


async def test_waiting_for_the_pool_is_not_the_services_failure() -> None:
    """A caller that got no slot says so; the circuit hears nothing, and no request was sent."""
    async with served(watermark(), timeout=0.05, max_connections_per_host=1) as (client, server):
        slot = await slot_of(client)
        error = await failure(client)
        assert isinstance(error, PoolTimeoutError)
        assert error.transient
        assert client.circuit_breaker.failure_count == 0
        assert not server.requests
        slot.give()
        assert await client.get_watermark("kev") is not None


async def test_waiting_for_the_pool_holds_no_probe() -> None:
    """While one caller waits for a slot, the circuit is not half open for it."""
    clock = FakeClock()
    circuit = CircuitBreaker(timeout_seconds=60, clock=clock)
    async with served(watermark(), circuit_breaker=circuit, max_connections=1) as (client, server):
        slot = await slot_of(client)
        circuit.trip()
        clock.advance(60)
        waiting = asyncio.create_task(client.get_watermark("kev"))
        await asyncio.sleep(0)
        assert circuit.state == "open"
        slot.give()
        await waiting
        assert circuit.state == "closed"
        assert len(server.requests) == 1


async def test_open_circuit_rejects_before_any_wait_for_the_pool() -> None:
    """Who would be rejected anyway does not wait for a slot first."""
    async with served(watermark(), max_connections=1, timeout=60) as (client, _):
        slot = await slot_of(client)
        client.circuit_breaker.trip()
        async with asyncio.timeout(5):
            assert isinstance(await failure(client), CircuitOpenError)
        slot.give()


async def test_circuit_that_opens_rejects_calls_that_wait_for_the_pool() -> None:
    """Whoever waited for a slot is rejected like anybody else, and gives the slot back."""
    async with served(watermark(), max_connections=1) as (client, server):
        slot = await slot_of(client)
        waiting = asyncio.create_task(client.get_watermark("kev"))
        await asyncio.sleep(0)
        client.circuit_breaker.trip()
        slot.give()
        with pytest.raises(CircuitOpenError):
            await waiting
        assert not server.requests
        client.circuit_breaker.reset()
        assert await client.get_watermark("kev") is not None


async def test_refused_connection_is_a_failure() -> None:
    """Nobody listening is a failure of the service."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        async with StorageServiceClient(f"http://127.0.0.1:{bound.getsockname()[1]}") as client:
            error = await failure(client)
            assert type(error) is StorageConnectionError
            assert error.transient
            assert client.circuit_breaker.failure_count == 1


async def test_unknown_host_name_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that cannot be resolved is a failure like a refused connection."""

    async def unknown(*_: object, **__: object) -> object:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", unknown)
    async with StorageServiceClient("http://storage.invalid") as client:
        error = await failure(client)
        assert type(error) is StorageConnectionError
        assert isinstance(error.__cause__, aiohttp.ClientConnectorDNSError)
        assert error.transient
        assert client.circuit_breaker.failure_count == 1


@pytest.mark.parametrize("left", ["refuses", "stalls"])
async def test_service_that_moved_is_found_by_its_name(
    monkeypatch: pytest.MonkeyPatch, left: str
) -> None:
    """After a failure the name is looked up again: a failover by DNS changes its address."""
    resolve = socket.getaddrinfo
    address = "127.0.0.1"
    lookups: list[str] = []

    def look_up(host: str | None, *arguments: Any, **options: Any) -> Any:
        if host == "storage.example":
            lookups.append(address)
            host = address
        return resolve(host, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    async with contextlib.AsyncExitStack() as stack:
        old = await stack.enter_async_context(RawServer(watermark(), Reply(end="stall")))
        url = f"http://storage.example:{URL(old.url).port}"
        async with StorageServiceClient(url, timeout=0.2 if left == "stalls" else 10) as client:
            await ask(client)
            assert lookups == ["127.0.0.1"]
            address = "127.0.0.2"
            if left == "refuses":
                await stack.aclose()
            async with RawServer(watermark(), host=address, port=URL(url).port):
                assert isinstance(await failure(client), StorageConnectionError)
                await ask(client)
                await ask(client)
    assert lookups == ["127.0.0.1", "127.0.0.2"]


@pytest.mark.parametrize("method", ["GET", "PUT"])
async def test_repetition_by_aiohttp_is_one_call(method: str) -> None:
    """On a pooled connection that the peer closed aiohttp asks once more; the caller sees one."""
    async with served(watermark(), Reply(end="close"), watermark()) as (client, server):
        await ask(client, method)
        await ask(client, method)
        assert client.circuit_breaker.failure_count == 0
        assert len(server.requests) == 3
        assert server.connections == 2
        assert server.requests[1] == server.requests[2]


async def test_probe_that_aiohttp_repeats_is_one_failure() -> None:
    """A probe may be two requests, and is judged once."""
    clock = FakeClock()
    circuit = CircuitBreaker(timeout_seconds=60, clock=clock)
    async with served(watermark(), Reply(end="close"), circuit_breaker=circuit) as (client, server):
        await ask(client)
        circuit.trip()
        clock.advance(60)
        error = await failure(client)
        assert type(error) is StorageConnectionError
        assert circuit.state == "open"
        assert len(server.requests) == 3


async def test_request_on_a_first_connection_is_not_repeated() -> None:
    """Before anything has answered, a call to a service that hangs up is one connection."""
    async with served(Reply(end="close"), watermark(), Reply(end="close")) as (client, server):
        await failure(client)
        assert server.connections == 1
        assert client.circuit_breaker.failure_count == 1
        await ask(client)
        await failure(client)
        assert server.connections == 3  # the second, and the third that repeated it


async def test_closed_client_connects_again() -> None:
    """A client outlives its session: closing it ends the connections, and the next call is fine."""
    async with served(watermark()) as (client, server):
        for connections in (1, 2):
            await ask(client)
            await client.close()
            await server.left()
            assert server.connections == connections
        await client.close()
        assert client.circuit_breaker.failure_count == 0


async def test_session_that_others_closed_is_replaced() -> None:
    """A session that is closed, by whomever, is not asked, and counts as nothing."""
    async with served(watermark()) as (client, server):
        slot = await slot_of(client)
        slot.give()
        await slot.session.close()
        await ask(client)
        assert client.circuit_breaker.failure_count == 0
        assert server.connections == 1


async def test_request_in_flight_at_close_fails_and_does_not_count() -> None:
    """Closing is ours, so that it says nothing about the service; whoever waits connects anew."""
    stalled, circuit = Reply(end="stall"), CircuitBreaker(failure_threshold=1)
    options: dict[str, Any] = {"max_connections": 1, "circuit_breaker": circuit}
    async with served(stalled, watermark(), **options) as (client, server):
        first = asyncio.create_task(ask(client))
        await server.request()
        waiting = [asyncio.create_task(ask(client)) for _ in range(3)]
        await asyncio.sleep(0)
        await client.close()
        with pytest.raises(StorageConnectionError):
            await first
        async with asyncio.timeout(5):
            await asyncio.gather(*waiting)
        assert circuit.state == "closed"
        assert len(server.requests) == 4


async def test_end_of_the_block_closes() -> None:
    """After ``async with`` no connection is left."""
    async with RawServer(watermark()) as server:
        async with StorageServiceClient(server.url) as client:
            await ask(client)
        await server.left()


def run_to_its_end(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(main)


def run_and_drop(main: Coroutine[Any, Any, None]) -> None:
    loop = asyncio.new_event_loop()
    loop.run_until_complete(main)
    loop.close()


@pytest.mark.parametrize("run", [run_to_its_end, run_and_drop])
async def test_client_of_a_finished_loop_works_on_the_next(
    run: Callable[[Coroutine[Any, Any, None]], None],
) -> None:
    """Connections end with their loop, without a warning, and no closed loop is asked."""
    async with RawServer(watermark()) as server:
        client = StorageServiceClient(server.url)
        for connections in (1, 2, 3):
            await asyncio.to_thread(run, ask(client))
            assert server.connections == connections
            if run is run_to_its_end:
                await server.left()
        await ask(client)
        await client.close()
        # Whatever the other loops left behind went when the last pool was made.
        await server.left()
        assert client.circuit_breaker.failure_count == 0


async def test_loops_at_once_have_a_pool_each() -> None:
    """Threads with loops of their own share a client and its circuit, but no connection."""
    stalled = Reply(end="stall")
    async with RawServer(stalled, stalled, watermark(), Reply(end="close")) as server:
        client = StorageServiceClient(server.url, timeout=10, max_connections=1)
        threads = [
            asyncio.create_task(asyncio.to_thread(asyncio.run, failure(client))) for _ in range(2)
        ]
        for _ in threads:
            await server.request()
        await ask(client)
        assert server.connections == 3
        assert client.circuit_breaker.failure_count == 0
        server.hang_up()
        errors = await asyncio.gather(*threads)
        assert [type(error) for error in errors] == [StorageConnectionError] * 2
        assert client.circuit_breaker.failure_count == 2
        await client.close()


@pytest.mark.usefixtures("small_heap")
async def test_forgotten_client_closes_its_connections() -> None:
    """A forgotten client leaves no connection behind in a loop that goes on, and no warning."""
    async with RawServer(watermark()) as server:
        client = StorageServiceClient(server.url)
        await ask(client)
        del client
        gc.collect()
        await server.left()


@pytest.mark.parametrize("method", ["GET", "PUT"])
@pytest.mark.parametrize("sent", [b"", HEAD[:20], HEAD, HEAD + b"{}"])
async def test_cancelled_request_gives_its_slot_back(method: str, sent: bytes) -> None:
    """Whether headers or a body were waited for, the next request gets the only slot at once."""
    stalled = Reply(sent, "stall")
    async with served(stalled, watermark(), max_connections=1) as (client, server):
        task = asyncio.create_task(ask(client, method))
        await server.request()
        await asyncio.sleep(0.01)  # that what was sent is read; the outcome does not hang on it
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert client.circuit_breaker.failure_count == 0
        assert await client.get_watermark("kev") is not None


async def test_cancelled_probe_gives_its_place_back() -> None:
    """A probe that was cancelled judges nothing, and the next caller probes at once."""
    clock = FakeClock()
    circuit = CircuitBreaker(timeout_seconds=60, clock=clock)
    stalled = Reply(end="stall")
    async with served(stalled, watermark(), circuit_breaker=circuit) as (client, server):
        circuit.trip()
        clock.advance(60)
        task = asyncio.create_task(ask(client))
        await server.request()
        with pytest.raises(CircuitOpenError):
            await client.get_watermark("kev")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert circuit.state == "half_open"
        await ask(client)
        assert circuit.state == "closed"


PROGRAM = """
import asyncio, gc, logging, sys
from ladon_storage import StorageServiceClient

# What is left open is an error; a machine that is busy for a moment is a warning.
logging.getLogger("asyncio").setLevel(logging.ERROR)

client = StorageServiceClient(sys.argv[1])

async def ask():
    await client.get_watermark("kev")

async def ask_and_exit():
    await ask()
    sys.exit()

async def ask_and_leave_one_under_way():
    await ask()
    task = asyncio.create_task(ask())
    await asyncio.sleep(0.01)

loop = asyncio.new_event_loop()
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "end",
    [
        "asyncio.run(ask())",
        "asyncio.run(ask_and_exit())",
        "asyncio.run(ask_and_leave_one_under_way())",
        "loop.run_until_complete(ask()); loop.close()",
        "loop.run_until_complete(ask())",
        "loop.run_until_complete(ask()); del client; gc.collect()",
    ],
)
async def test_process_that_exits_without_close_says_nothing(end: str) -> None:
    """However a program ends, nothing complains of a session or connector that is left open."""
    async with RawServer(watermark(), Reply(end="stall")) as server:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-X", "dev", "-W", "ignore:unclosed event loop", "-c"),
            *(PROGRAM + end, server.url),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        said, _ = await asyncio.wait_for(process.communicate(), 30)
    assert (process.returncode, said.decode()) == (0, "")
