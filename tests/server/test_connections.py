"""Which connections the service holds, and which give way."""

from __future__ import annotations

import asyncio
import resource
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from ladon_storage.server import connections
from ladon_storage.server.connections import Connections, Reason, Wait, possible_connections
from ladon_storage.testing.clock import FakeClock
from tests.service import calling, command, embedded_service, path, service_process


class Wire:
    """A connection that notes whether it was closed."""

    def __init__(self, address: str = "192.0.2.1") -> None:
        self.address = address
        self.waits_for: Wait | None = None
        self.since = 0.0
        self.is_open = True

    def end(self) -> None:
        """Note that it was closed."""
        self.is_open = False


@pytest.fixture
def reasons() -> list[Reason]:
    """The reasons of the closed connections."""
    return []


@pytest.fixture
def clock() -> FakeClock:
    """The time of the connections."""
    return FakeClock()


@pytest.fixture
def held(reasons: list[Reason], clock: FakeClock) -> Connections:
    """Four places, two of them for one address."""
    return Connections(4, reasons.append, clock)


def admitted(held: Connections, clock: FakeClock, *wires: Wire) -> None:
    for wire in wires:
        clock.advance(1)
        assert held.admit(wire)


def test_longest_idle_connection_gives_way(
    held: Connections, clock: FakeClock, reasons: list[Reason]
) -> None:
    """When all places are taken, a new connection gets one, and the longest idle one is closed."""
    wires = [Wire(f"192.0.2.{n}") for n in range(5)]
    admitted(held, clock, *wires)
    assert [wire.is_open for wire in wires] == [False, True, True, True, True]
    assert (len(held), reasons) == (4, ["limit"])


def test_address_beyond_its_share_closes_its_own_connection(
    held: Connections, clock: FakeClock
) -> None:
    """An address that holds its share takes no place of another one."""
    other, *own = Wire("192.0.2.9"), Wire(), Wire(), Wire()
    admitted(held, clock, other, *own)
    assert [wire.is_open for wire in (other, *own)] == [True, False, True, True]


def test_address_beyond_its_share_takes_what_is_free(
    clock: FakeClock, reasons: list[Reason]
) -> None:
    """A proxy has the places that no other address asks for, and the last tenth is theirs."""
    held = Connections(20, reasons.append, clock)
    proxied = [Wire() for _ in range(19)]
    admitted(held, clock, *proxied)
    assert [wire.is_open for wire in proxied] == [False] + [True] * 18
    for wire in proxied:
        wire.waits_for = None
    assert not held.admit(Wire())
    others = [Wire("192.0.2.8"), Wire("192.0.2.9")]
    admitted(held, clock, *others)
    assert all(wire.is_open for wire in [*proxied[1:], *others])
    assert reasons == ["limit", "limit"]


def test_connection_that_is_answered_never_gives_way(held: Connections, clock: FakeClock) -> None:
    """A request in flight is finished; a new connection is refused where all places answer."""
    wires = [Wire(f"192.0.2.{n}") for n in range(4)]
    admitted(held, clock, *wires)
    for wire in wires:
        held.wait(wire, "unread")
    assert not held.admit(Wire("192.0.2.9"))
    for wire in wires:
        wire.waits_for = None
    assert not held.admit(Wire("192.0.2.9"))
    clock.advance(1e6)
    held.sweep()
    assert all(wire.is_open for wire in wires)


@pytest.mark.parametrize(
    ("what", "most"),
    [
        ("headers", connections.HEADERS_SECONDS),
        ("idle", connections.IDLE_SECONDS),
        ("unread", connections.UNREAD_SECONDS),
    ],
)
def test_connection_that_waits_too_long_is_closed(
    held: Connections, clock: FakeClock, reasons: list[Reason], what: Wait, most: float
) -> None:
    """Headers, a next request, and the reading of a response have their time."""
    wire = Wire()
    admitted(held, clock, wire)
    held.wait(wire, what)
    clock.advance(most - 0.01)
    held.sweep()
    assert wire.is_open
    clock.advance(0.02)
    held.sweep()
    assert not wire.is_open
    assert (len(held), reasons) == (0, [what])


def test_flood_is_logged_once_a_minute(
    held: Connections, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Ten thousand closed connections are one line a minute, and no flood of the log."""
    for _ in range(10_000):
        held.admit(Wire())
    assert len(caplog.records) == 1
    clock.advance(connections.LOG_SECONDS)
    held.admit(Wire())
    assert len(caplog.records) == 2


async def test_failed_accept_is_counted_and_logged_once(
    held: Connections, reasons: list[Reason], caplog: pytest.LogCaptureFixture
) -> None:
    """Where the system has no more files, each failure is counted, and the log has one line."""
    loop = asyncio.get_running_loop()
    with held.failed_accepts_counted():
        for _ in range(100):
            context = {
                "message": "socket.accept() out of system resource",
                "exception": OSError(24, "Too many open files"),
            }
            loop.call_exception_handler(context)
    assert reasons == ["accept"] * 100
    assert len(caplog.records) == 1
    assert "Too many open files" in caplog.text


def test_connections_leave_files_for_the_database() -> None:
    """There are fewer places than the process may open files."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert possible_connections(50) == 50
    assert possible_connections(10**9) <= 10**9
    after, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert after >= files
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, most))


@asynccontextmanager
async def sockets(address: str, count: int, sent: bytes) -> AsyncIterator[None]:
    """Hold connections that have sent these bytes and nothing more."""
    host, _, port = address.removeprefix("http://").partition(":")
    opened = []
    try:
        for _ in range(count):
            _, writer = await asyncio.open_connection(host, int(port))
            writer.write(sent)
            opened.append(writer)
        yield
    finally:
        for writer in opened:
            writer.transport.abort()


async def test_others_are_answered_beside_idle_and_slow_connections(tmp_path: Path) -> None:
    """With 256 files, 300 connections that send nothing and 300 with half a header, it answers."""
    limit = "import os, resource as r, sys; r.setrlimit(r.RLIMIT_NOFILE, (256, 256)); "
    program = [sys.executable, "-c", limit + "os.execv(sys.argv[1], sys.argv[1:])"]
    database = tmp_path / "w.db"
    async with service_process(database, command_line=[*program, *command(database)]) as service:
        halves = sockets(service.address, 300, b"GET /health HTTP/1.1\r\nX-Slow: ")
        async with sockets(service.address, 300, b""), halves, calling(service.address) as call:
            for _ in range(20):
                assert (await call("GET", "/health")).status == 200
        assert service.log.stat().st_size < 10_000


async def test_connection_is_kept_between_requests(tmp_path: Path) -> None:
    """Requests of one client share a connection; the place is not given up in between."""
    async with embedded_service(tmp_path / "w.db") as address:
        host, _, port = address.removeprefix("http://").partition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        for _ in range(3):
            writer.write(f"GET {path('kev')} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            head = await reader.readuntil(b"\r\n\r\n")
            assert b" 404 " in head
            length = int(head.lower().partition(b"content-length: ")[2].split()[0])
            await reader.readexactly(length)
        writer.close()
