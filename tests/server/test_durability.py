"""No acknowledged write is lost: not to kill -9 at any moment, and not to an end in good order."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import signal
import sqlite3
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import aiohttp
import pytest

from ladon_storage.server import requests, serving
from tests.service import (
    START_SECONDS,
    Caller,
    calling,
    embedded_service,
    path,
    service_process,
    success,
)

ROUNDS = int(os.environ.get("LADON_CHAOS_ROUNDS", "3"))
WRITERS = 8
START = datetime(2024, 1, 1, tzinfo=UTC)
HEALTH = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
BODY = b'{"timestamp": "2024-01-01T00:00:00Z"}'


def history(file: Path) -> set[tuple[str, str]]:
    """Return the version tags and timestamps of all changes that a file holds."""
    connection = sqlite3.connect(file)
    try:
        rows = connection.execute("SELECT version, source_id, to_timestamp FROM history").fetchall()
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    finally:
        connection.close()
    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    return {
        (f'"{version}"', f"{source_id} {(epoch + timedelta(microseconds=to)).isoformat()}")
        for version, source_id, to in rows
    }


async def write_until_dead(
    call: Caller, source_id: str, acknowledged: list[tuple[str, str]], round_: int
) -> None:
    """Write one success after another, and note each as soon as its answer is there."""
    for number in itertools.count():
        timestamp = (START + timedelta(days=round_, seconds=number)).isoformat()
        try:
            answer = await call("PUT", path(source_id), success(timestamp))
        except aiohttp.ClientError:
            return
        assert answer.status in (200, 201)
        acknowledged.append((answer.etag, f"{source_id} {timestamp}"))


@pytest.mark.parametrize(
    "round_", [0, *(pytest.param(each, marks=pytest.mark.slow) for each in range(1, ROUNDS))]
)
async def test_kill_loses_no_acknowledged_write(tmp_path: Path, round_: int) -> None:
    """Killed at a random moment under concurrent writers, the service has all that it answered."""
    file = tmp_path / "watermarks.db"
    moment = random.Random(round_).randrange(1, 400)
    acknowledged: list[tuple[str, str]] = []
    for again in range(2):  # The second time on what the first kill left.
        before = len(acknowledged)
        async with service_process(file) as service, calling(service.address) as call:
            writers = asyncio.gather(
                *(
                    write_until_dead(call, f"source-{n}", acknowledged, again)
                    for n in range(WRITERS)
                )
            )
            async with asyncio.timeout(START_SECONDS):
                while len(acknowledged) - before < moment:
                    await asyncio.sleep(0)
            assert await service.end(signal.SIGKILL) == -signal.SIGKILL
            await writers
        assert len(acknowledged) >= before + moment
    async with embedded_service(file) as address, calling(address) as call:
        for n in range(WRITERS):
            own = [at for _, at in acknowledged if at.startswith(f"source-{n} ")]
            if own:
                read = await call("GET", path(f"source-{n}"))
                stored = f"source-{n} {read.json['last_successful_timestamp']}"
                assert stored >= own[-1]
    assert set(acknowledged) <= history(file)
    assert len(set(acknowledged)) == len(acknowledged)


async def until_refused(address: str) -> None:
    """Return when nobody listens at an address any more."""
    host, _, port = address.removeprefix("http://").partition(":")
    async with asyncio.timeout(START_SECONDS):
        while True:
            try:
                _, writer = await asyncio.open_connection(host, int(port))
            except ConnectionRefusedError:
                return
            writer.close()
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
async def test_signal_finishes_the_request_in_flight(tmp_path: Path, signal_number: int) -> None:
    """A request whose body is still on its way is answered and stored; then the service exits 0.

    Meanwhile nobody is let in any more, and who is in is sent away with the next answer.
    """
    file = tmp_path / "watermarks.db"
    async with service_process(file) as service:
        host, _, port = service.address.removeprefix("http://").partition(":")
        staying, stays = await asyncio.open_connection(host, int(port))
        stays.write(HEALTH)
        await staying.readuntil(b"}")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(
            b"PUT /api/v1/watermarks/kev HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\n"
            b"Content-Type: application/json\r\nContent-Length: 37\r\n\r\n"
        )
        # Says that the request is being handled.
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(BODY[:10])
        service.process.send_signal(signal_number)
        await until_refused(service.address)
        stays.write(HEALTH)
        assert b"\r\nConnection: close\r\n" in await staying.read()
        stays.close()
        writer.write(BODY[10:])
        async with asyncio.timeout(START_SECONDS):
            answer = await reader.read()
            assert await service.process.wait() == 0
        writer.close()
    assert answer.startswith(b"HTTP/1.1 201 ")
    assert history(file) == {('"1"', "kev 2024-01-01T00:00:00+00:00")}


@pytest.mark.slow
async def test_stalled_body_delays_the_end_by_its_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that stalls delays the end by its bound, and no longer; an idle one not at all."""
    monkeypatch.setattr(requests, "BODY_TIMEOUT_SECONDS", 0.1)
    started = asyncio.Event()

    async def never() -> AsyncIterator[bytes]:
        started.set()
        yield b"{"
        await asyncio.Event().wait()

    async with asyncio.timeout(10):
        service = embedded_service(tmp_path / "watermarks.db")
        address = await service.__aenter__()
        async with calling(address) as idle, calling(address) as stalling:
            assert (await idle("GET", "/health")).status == 200
            headers = {"Content-Type": "application/json"}
            put = asyncio.create_task(stalling("PUT", path("x"), data=never(), headers=headers))
            await started.wait()
            await service.__aexit__(None, None, None)
            put.cancel()
            await asyncio.wait([put])


async def test_write_of_a_client_that_went_away_may_be_stored_but_never_half(
    tmp_path: Path,
) -> None:
    """A client that gives up waiting leaves the whole change with its history, or nothing."""
    file = tmp_path / "watermarks.db"
    async with embedded_service(file) as address, calling(address) as call:
        for n in range(20):
            put = asyncio.create_task(call("PUT", path(f"s{n}"), success("2024-01-01T00:00:00Z")))
            for _ in range(n):
                await asyncio.sleep(0)
            put.cancel()
            await asyncio.wait([put])
        assert (await call("GET", "/health")).status == 200
        page = (await call("GET", "/api/v1/watermarks")).json["watermarks"]
    kept = {f"{watermark['source_id']} 2024-01-01T00:00:00+00:00" for watermark in page}
    assert {change for _, change in history(file)} == kept


async def test_chore_that_loses_a_cancellation_ends_with_the_service() -> None:
    """The end of a service waits for no chore, also where the chore took the cancellation."""
    began = asyncio.Event()

    async def chore() -> None:
        began.set()
        with suppress(asyncio.CancelledError):
            await asyncio.Event().wait()

    async with asyncio.timeout(10) as bound, serving._every(3600.0, chore):
        await began.wait()
    assert not bound.expired()
