"""The service under load, kills and attacks: what it acknowledged is there."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import signal
import socket
import sqlite3
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, closing, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import aiohttp
import pytest

from ladon_storage.cli.local import free_port
from tests.service import Caller, path, service_process, success

logger = logging.getLogger(__name__)

SECONDS = float(os.environ.get("LADON_LOAD_SECONDS", "30"))
RATE = float(os.environ.get("LADON_LOAD_RATE", "200"))
KILL_SECONDS = min(30.0, max(5.0, SECONDS / 6))
WORKERS = 20
EPOCH = datetime(2024, 1, 1, tzinfo=UTC)

_LOST = (aiohttp.ClientError, OSError, TimeoutError)


class Load:
    """Mixed requests at a rate, and what the service said about them.

    Args:
        call: The caller of the service.
    """

    def __init__(self, call: Caller) -> None:
        self._call = call
        self.sent: Counter[str] = Counter()
        self.acknowledged: defaultdict[str, list[int]] = defaultdict(list)
        self.statuses: Counter[int] = Counter()
        self.is_over = False

    async def work(self, worker: int) -> None:
        """Write a source, and read it and others, until the load is over."""
        source_id, dice = f"feed-{worker}", random.Random(worker)
        due = time.monotonic()
        while not self.is_over:
            due = max(due + WORKERS / RATE, time.monotonic() - 1)  # no storm after a restart
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            with suppress(*_LOST):
                await self._request(source_id, dice.random())

    async def _request(self, source_id: str, choice: float) -> None:
        if choice < 0.5:
            self.sent[source_id] += 1
            number = self.sent[source_id]
            await self._write(source_id, number)
        else:
            target = path(source_id)
            if choice > 0.8:
                target = rarer(choice, source_id)
            self.statuses[(await self._call("GET", target)).status] += 1

    async def _write(self, source_id: str, number: int) -> None:
        instant = (EPOCH + timedelta(seconds=number)).isoformat()
        body = success(instant, run_id=str(number), records_collected=number)
        status = (await self._call("PUT", path(source_id), body)).status
        self.statuses[status] += 1
        if status in (200, 201):
            self.acknowledged[source_id].append(number)

    async def check(self) -> None:
        """Check that each source is where its last acknowledged write was, or at a later one."""
        for source_id, numbers in list(self.acknowledged.items()):
            at_least = max(numbers)  # before the question: others are acknowledged meanwhile
            with suppress(*_LOST):
                stored = (await self._call("GET", path(source_id))).json
                assert at_least <= stored["records_collected"] <= self.sent[source_id]


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
    ``LADON_LOAD_SECONDS`` and ``LADON_LOAD_RATE`` make it longer and harder.
    """
    database, port = tmp_path / "w.db", free_port()
    async with AsyncExitStack() as stack:
        timeout = aiohttp.ClientTimeout(total=10)
        connector = aiohttp.TCPConnector(limit=0, family=socket.AF_INET)
        session = await stack.enter_async_context(
            aiohttp.ClientSession(connector=connector, timeout=timeout)
        )
        load = Load(Caller(session, f"http://127.0.0.1:{port}"))
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
        "%.0f answers a second, %d acknowledged, %d kills",
        answers / SECONDS,
        len(acknowledged),
        kills,
    )
    with closing(sqlite3.connect(database)) as connection:
        stored = set(connection.execute("SELECT source_id, run_id FROM history"))
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert acknowledged
    assert acknowledged - stored == set()
    assert kills >= SECONDS / KILL_SECONDS / 2
    assert set(load.statuses) <= {200, 201, 404}
    assert " ERROR " not in database.with_suffix(".log").read_text()
