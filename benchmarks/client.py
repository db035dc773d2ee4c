"""What ``get_watermark`` costs its own process, beside aiohttp without anything around it.

The CPU time of the client's process for one request, with the server in another process. ``bare``
is the least that reads the same answer: one ``ClientSession`` for all requests, ``await
response.json()``, and no check, circuit, metric, limit or log.

Asked by many at once, a client that waits for its server pays for waking up at nearly every answer,
and one that does not finds several at each. So there are two servers: the embedded service, which
is the slower side, and the bare handler, beside which the client is.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from tempfile import TemporaryDirectory

import aiohttp

from benchmarks.measuring import (
    alternating,
    describe,
    is_quick,
    ratios,
    shown,
    table,
    tables,
    verdict,
)
from benchmarks.processes import bare_handler, storage_service
from ladon_storage import StorageServiceClient

TARGET = 1.15
AT_ONCE = 32
SOURCES = [f"source-{number}" for number in range(AT_ONCE)]

OURS, BARE, NEW = "StorageServiceClient", "bare aiohttp, one session", "aiohttp, new session each"

Read = Callable[[str], Awaitable[object]]


async def microseconds(read: Read, requests: int, at_once: int) -> float:
    """Return the CPU time of one request when ``at_once`` of them are under way."""
    left = islice(cycle(SOURCES), requests)

    async def worker() -> None:
        for source_id in left:
            await read(source_id)

    started = time.process_time_ns()
    await asyncio.gather(*(worker() for _ in range(at_once)))
    return (time.process_time_ns() - started) / requests / 1000


async def compare(
    server: str, url: str, at_once: int, requests: int, repetitions: int, turns: int
) -> None:
    """Measure reads with ``at_once`` of them under way, and print them."""
    async with StorageServiceClient(url) as client, aiohttp.ClientSession() as session:

        async def bare(source_id: str) -> object:
            async with session.get(f"{url}/api/v1/watermarks/{source_id}") as response:
                return await response.json()

        async def new(source_id: str) -> object:
            async with (
                aiohttp.ClientSession() as another,
                another.get(f"{url}/api/v1/watermarks/{source_id}") as response,
            ):
                return await response.json()

        contenders: dict[str, Read] = {OURS: client.get_watermark, BARE: bare, NEW: new}
        how = f"{'one after another' if at_once == 1 else f'{at_once} at a time'}, {server}"
        figures = await alternating(
            how,
            {
                name: partial(microseconds, read, requests, at_once)
                for name, read in contenders.items()
            },
            repetitions,
            turns,
        )
    shows = table(
        f"Reading a watermark, {how}: microseconds of CPU time",
        ("client",),
        ("a request", "beside bare"),
    )
    for name, each in figures.items():
        shows.add_row(name, shown(each), shown(ratios(each, figures[BARE]), 2))
    tables.print(shows)
    verdict(f"get_watermark, {how}", ratios(figures[OURS], figures[BARE]), TARGET, at_most=True)


async def main(*, quick: bool) -> None:
    """Measure reads one after another and many at a time."""
    describe("ladon-storage", "aiohttp", "pydantic")
    requests, repetitions, turns = (AT_ONCE, 1, 1) if quick else (250, 7, 10)
    with TemporaryDirectory() as folder:
        async with storage_service(Path(folder)) as service, bare_handler() as bare:
            async with StorageServiceClient(service) as client:
                for source_id in SOURCES:
                    await client.update_watermark(source_id, datetime.now(UTC))
            for server, url in (("embedded service", service), ("bare handler", bare)):
                for at_once in (1, AT_ONCE):
                    await compare(server, url, at_once, requests, repetitions, turns)


if __name__ == "__main__":
    asyncio.run(main(quick=is_quick("Measure the client beside bare aiohttp.")))
