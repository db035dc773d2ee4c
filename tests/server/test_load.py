"""The service under load, kills and attacks: what it acknowledged is there."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import random
import signal
import sqlite3
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Sequence
from contextlib import closing, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from benchmarks.load import request
from ladon_storage.cli.local import free_port
from tests.service import path, service_process, success

logger = logging.getLogger(__name__)

SECONDS = float(os.environ.get("LADON_LOAD_SECONDS", "30"))
RATE = float(os.environ.get("LADON_LOAD_RATE", "200"))
KILL_SECONDS = min(30.0, max(5.0, SECONDS / 6))
WORKERS, CHECKERS = max(20, int(RATE / 4)), 20
RARE = float(os.environ.get("LADON_LOAD_RARE", "0.05"))
"""The share of the requests for lists, histories, pages, metrics and other things of people."""
EPOCH = datetime(2024, 1, 1, tzinfo=UTC)

_LOST = (OSError, TimeoutError)


class Wire(asyncio.Protocol):
    """One connection that asks one request after another.

    A whole HTTP client would take more of the machine than the service that it loads.
    """

    def __init__(self) -> None:
        self._received = bytearray()
        self._answer: asyncio.Future[tuple[int, bytes]] | None = None
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the connection."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail the request that waits."""
        self._transport = None
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(ConnectionError("the service hung up"))

    def data_received(self, data: bytes) -> None:
        """End the request when its answer is whole."""
        self._received += data
        head = self._received.find(b"\r\n\r\n") + 4
        if head < 4:
            return
        _, _, length = self._received[:head].lower().partition(b"content-length: ")
        end = head + int(length.partition(b"\r\n")[0] or 0)
        if len(self._received) >= end and self._answer is not None and not self._answer.done():
            self._answer.set_result((int(self._received[9:12]), bytes(self._received[head:end])))
            self._received.clear()

    async def ask(self, port: int, request: bytes) -> tuple[int, bytes]:
        """Send a request on the connection, or on a new one where it was lost."""
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(10):
            if self._transport is None:
                self._received.clear()
                await loop.create_connection(lambda: self, "127.0.0.1", port)
            assert self._transport is not None
            self._answer = loop.create_future()
            self._transport.write(request)
            try:
                return await self._answer
            except asyncio.CancelledError:
                self.close()  # a late answer would be taken for the next one's
                raise

    def close(self) -> None:
        """Hang up."""
        if self._transport is not None:
            self._transport.abort()
            self._transport = None


class Load:
    """Mixed requests at a rate, and what the service said about them.

    Args:
        port: The service's port.
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self.sent: Counter[str] = Counter()
        self.acknowledged: defaultdict[str, list[int]] = defaultdict(list)
        self.statuses: Counter[int] = Counter()
        self.is_over = False

    async def work(self, worker: int) -> None:
        """Write a source, and read it and others, until the load is over."""
        source_id, dice, wire = f"feed-{worker}", random.Random(worker), Wire()
        due = time.monotonic()
        while not self.is_over:
            due = max(due + WORKERS / RATE, time.monotonic() - 1)  # no storm after a restart
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            with suppress(*_LOST):
                await self._request(wire, source_id, dice.random())
        wire.close()

    async def _request(self, wire: Wire, source_id: str, choice: float) -> None:
        if choice < 0.5:
            self.sent[source_id] += 1
            number = self.sent[source_id]
            await self._write(wire, source_id, number)
        else:
            target = path(source_id)
            if choice > 1 - RARE:
                target = rarer(choice, source_id)
            status, _ = await wire.ask(self._port, request("GET", target))
            self.statuses[status] += 1

    async def _write(self, wire: Wire, source_id: str, number: int) -> None:
        instant = (EPOCH + timedelta(seconds=number)).isoformat()
        body = success(instant, run_id=str(number), records_collected=number)
        status, _ = await wire.ask(self._port, request("PUT", path(source_id), body))
        self.statuses[status] += 1
        if status in (200, 201):
            self.acknowledged[source_id].append(number)

    async def check(self) -> None:
        """Check that each source is where its last acknowledged write was, or at a later one."""
        sources = list(self.acknowledged)
        async with asyncio.TaskGroup() as checks:
            for first in range(CHECKERS):
                checks.create_task(self._check(sources[first::CHECKERS]))

    async def _check(self, sources: Sequence[str]) -> None:
        wire = Wire()
        for source_id in sources:
            at_least = max(
                self.acknowledged[source_id]
            )  # of now: others are acknowledged meanwhile
            with suppress(*_LOST):
                _, body = await wire.ask(self._port, request("GET", path(source_id)))
                assert at_least <= json.loads(body)["records_collected"] <= self.sent[source_id]
        wire.close()


def rarer(choice: float, source_id: str) -> str:
    """Return a target of the rarer requests."""
    targets = (
        path(source_id, "/history?limit=20"), "/api/v1/watermarks?limit=20", "/health",
        "/metrics", "/openapi.json", "/?search=feed", path("unknown"),
    )  # fmt: skip
    return targets[int(choice * 1000) % len(targets)]


async def hostile_client(port: int, number: int, is_over: Callable[[], bool]) -> None:
    """Connect again and again, and be slow, silent, huge or wrong."""
    openings = (
        b"",
        b"GET /health HTTP/1.1\r\nHost: lo",
        b"PUT /api/v1/watermarks/x HTTP/1.1\r\nHost: localhost\r\n"
        b"Content-Type: application/json\r\nContent-Length: 5000\r\n\r\n{",
        b"\x16\x03\x01\x02\x00\x01\x00" * 50,
        b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n",
        b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n" * 200,  # and reads no answer
    )
    opening = openings[number % len(openings)]
    while not is_over():
        with suppress(*_LOST):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                writer.write(opening)
                for _ in range(20):
                    if is_over() or reader.at_eof():
                        break
                    writer.write(b"a")
                    await writer.drain()
                    await asyncio.sleep(0.2)
            finally:
                writer.transport.abort()
        await asyncio.sleep(0.05)


async def killed_again_and_again(
    database: Path, port: int, until: float, between: Callable[[], Awaitable[None]]
) -> int:
    """Run the service and kill it until a time; end the last one in order. Return the kills."""
    command_line = [
        *(sys.executable, "-m", "ladon_storage.cli", "serve", "--database", str(database)),
        *("--port", str(port), "--history-changes", "10000000"),
    ]
    kills = 0
    while True:
        async with service_process(database, command_line=command_line) as service:
            await between()
            lasts = min(KILL_SECONDS, until - time.monotonic())
            await asyncio.sleep(max(0.0, lasts))
            if time.monotonic() >= until:
                await between()
                assert await service.end() == 0
                return kills
            await service.end(signal.SIGKILL)
            kills += 1


@pytest.mark.slow
async def test_no_acknowledged_write_is_lost_under_load_kills_and_attacks(tmp_path: Path) -> None:
    """After each kill, and in the end, all that was acknowledged is stored.

    Slow and hostile clients are there all the time, and the others are answered beside them.
    ``LADON_LOAD_SECONDS`` and ``LADON_LOAD_RATE`` make it longer and harder; ``LADON_LOAD_RARE`` is
    the share of lists, histories, pages and metrics.
    """
    database, port = tmp_path / "w.db", free_port()
    load, cpu = Load(port), time.process_time()
    until = time.monotonic() + SECONDS
    async with asyncio.TaskGroup() as others:
        for worker in range(WORKERS):
            others.create_task(load.work(worker))
        for number in range(12):
            others.create_task(hostile_client(port, number, lambda: load.is_over))
        try:
            kills = await killed_again_and_again(database, port, until, load.check)
        finally:
            load.is_over = True
    acknowledged = {
        (source_id, str(number))
        for source_id, numbers in load.acknowledged.items()
        for number in numbers
    }
    answers = sum(load.statuses.values())
    logger.info(
        "%.0f answers a second, %d acknowledged, %d kills, %.0f µs of the load's own CPU each",
        answers / SECONDS,
        len(acknowledged),
        kills,
        (time.process_time() - cpu) / answers * 1e6,
    )
    with closing(sqlite3.connect(database)) as connection:
        stored = set(connection.execute("SELECT source_id, run_id FROM history"))
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert acknowledged
    assert acknowledged - stored == set()
    assert kills >= SECONDS / KILL_SECONDS / 2
    assert set(load.statuses) <= {200, 201, 404}
    assert " ERROR " not in database.with_suffix(".log").read_text()
