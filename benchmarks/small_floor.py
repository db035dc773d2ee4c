"""What a small run cannot be cheaper than: each of its steps alone, by the cheapest way known.

In a process of its own. ``new``: the request, the hashes and the rows of some new records, in CPU
milliseconds, once. ``nothing``: the same requests as those of a run that finds nothing new, the two
durable writes of its watermark, and a look into the sink; the medians of 15, in milliseconds of
wall and of CPU.
"""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
import sys
from collections.abc import Callable
from contextlib import closing
from datetime import datetime
from hashlib import blake2b
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import aiohttp
import orjson

from benchmarks.contender import Usage
from benchmarks.contenders.ours import Ours
from benchmarks.feeds import FEEDS
from benchmarks.insertion import insert, opened
from benchmarks.processes import API
from benchmarks.small_run import RUNS, nothing


async def _answer(
    session: aiohttp.ClientSession, method: str, url: str, **asked: Any
) -> tuple[Any, dict[str, str]]:
    """Return the parsed answer to a request, and the condition of a write that follows it."""
    async with session.request(method, url, **asked) as answer:
        answer.raise_for_status()
        tag = answer.headers.get("ETag")
        return orjson.loads(await answer.read()), {"If-Match": tag} if tag else {}


async def _requests(service: str, url: str, bodies: list[bytes]) -> None:
    """Make the requests of a run that finds nothing new, and hash its one record."""
    kind, watermark = {"Content-Type": "application/json"}, f"{service}/{API}/feed"
    async with aiohttp.ClientSession() as session:
        await _answer(session, "GET", f"{service}/health")
        _, condition = await _answer(session, "GET", watermark)
        for body in bodies:
            headers = {**kind, **condition}
            _, condition = await _answer(session, "PUT", watermark, data=body, headers=headers)
            if body is bodies[0]:
                page, _ = await _answer(session, "GET", url)
                _hashed(page["data"])


async def _written(service: str) -> list[bytes]:
    """Return the bodies of a run's two writes, with the ledger of the run before."""
    async with aiohttp.ClientSession() as session:
        stored, _ = await _answer(session, "GET", f"{service}/{API}/feed")
    at = stored["last_successful_timestamp"]
    running = {"timestamp": at, "status": "running", "run_id": "run", "lease_seconds": 60.0}
    success = {"timestamp": at, "status": "success", "records_collected": 0, "run_id": "run"}
    return [orjson.dumps(each) for each in (running, {**success, "ledger": stored["ledger"]})]


def _hashed(items: list[Any]) -> list[str]:
    texts = [orjson.dumps(each, None, orjson.OPT_SORT_KEYS) for each in items]
    return [blake2b(each, digest_size=16).hexdigest() for each in texts]


def _synchronized(bodies: list[bytes], folder: Path) -> None:
    with (folder / "disk").open("ab", buffering=0) as file:
        for body in bodies:
            file.write(body)
            os.fsync(file.fileno())


def _read_sqlite(folder: Path) -> None:
    with closing(sqlite3.connect(folder / "records.db", isolation_level=None)) as database:
        database.execute("SELECT * FROM ladon_positions WHERE source_id = 'feed'").fetchall()
        database.execute("SELECT version FROM records WHERE source_id = 'feed'").fetchone()


def _read_delta(folder: Path) -> None:
    from deltalake import DeltaTable

    opened = DeltaTable(f"{folder}/lake/records")
    opened.version()
    opened.transaction_version("feed")


_READS = {"SQLite": _read_sqlite, "Delta": _read_delta}


def of_nothing(sink: str, folder: Path, service: str, bare: str, url: str) -> Any:
    """Return the milliseconds of each step alone, of wall and of CPU."""
    bodies = asyncio.run(_written(service))
    steps: dict[str, Callable[[], Any]] = {
        "service": lambda: asyncio.run(_requests(service, url, bodies)),
        "bare": lambda: asyncio.run(_requests(bare, url, bodies)),
        "disk": lambda: _synchronized(bodies, folder),
        "sink": lambda: _READS[sink](folder),
    }
    taken: dict[str, list[dict[str, float]]] = {step: [] for step in steps}
    for number in range(RUNS + 1):
        for name, step in steps.items():
            start = Usage()
            step()
            taken[name] += [start.until_now()] * (number > 0)
    return {
        name: {kind: 1_000 * median(one[kind] for one in each) for kind in ("seconds", "cpu")}
        for name, each in taken.items()
    }


def of_new(folder: Path, server: str, first: int, count: int) -> dict[str, float]:
    """Return the CPU milliseconds of each step alone."""

    async def got() -> list[Any]:
        async with aiohttp.ClientSession() as session:
            page, _ = await _answer(session, "GET", f"{server}/six?first={first}&count={count}")
        return list(page["data"])

    start = Usage()
    items = asyncio.run(got())
    found = {"http": 1_000 * start.until_now()["cpu"]}
    start = Usage()
    texts = [orjson.dumps(each).decode() for each in items]
    times = [datetime.fromisoformat(each["seen"]).isoformat() for each in items]
    rows = zip([each["id"] for each in items], _hashed(items), times, texts, strict=True)
    found["hash"] = 1_000 * start.until_now()["cpu"]
    start = Usage()
    with opened(folder / "records.db") as database:
        insert(database, sorted(rows))
    found["sqlite"] = 1_000 * start.until_now()["cpu"]
    return found


def main() -> None:
    """Print the floor: the kind of run, the sink, its setting, its folder, and what to ask."""
    what, sink, keep, place, *addresses = sys.argv[1:]
    folder = Path(place)
    if what == "new":
        server, first, count = addresses
        with TemporaryDirectory() as other:
            Ours(Path(other), sink, keep).collect(f"{server}/six?count=10", FEEDS["six"])
            of_new(Path(other), server, 10, 10)
        print(json.dumps(of_new(folder, server, int(first), int(count))))
        return
    service, bare, url = addresses
    asyncio.run(nothing(Ours(folder, sink, keep), service, url))
    print(json.dumps(of_nothing(sink, folder, service, bare, url)))


if __name__ == "__main__":
    main()
