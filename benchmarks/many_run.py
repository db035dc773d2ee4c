"""One contender of `benchmarks.many`, in a process of its own: sources, or empty task runs.

``floor`` is what the sources cannot be cheaper than: their requests by bare aiohttp, the reads and
writes by ``sqlite3``.
"""

from __future__ import annotations

import asyncio
import json
import resource
import sqlite3
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import closing
from hashlib import blake2b
from pathlib import Path

import aiohttp
import orjson
from prefect import flow, get_client, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import StateType
from prefect.runtime import flow_run

from benchmarks.load import cpu_seconds
from benchmarks.processes import API
from ladon_storage.flows.collect_many import collect_many


@task(cache_policy=NO_CACHE)
async def nothing() -> None:
    """Do nothing."""


@flow
async def awaited(count: int) -> str:
    """Run so many task runs, one after another, and return the id of this run."""
    for _ in range(count):
        await nothing()
    return str(flow_run.id)


@task(cache_policy=NO_CACHE)
async def nothing_of(number: int) -> None:
    """Do nothing about a number."""


@flow
async def mapped(count: int) -> str:
    """Map a task over so many numbers, wait for all, and return the id of this run."""
    nothing_of.map(range(count)).wait()
    return str(flow_run.id)


async def recorded(run_id: str, count: int) -> None:
    """Wait until the server has every task run of a run as completed."""
    async with get_client() as client:
        asked = {
            "flow_runs": {"id": {"any_": [run_id]}},
            "task_runs": {"state": {"type": {"any_": [StateType.COMPLETED.value]}}},
        }
        while True:
            answer = await client._client.post(  # noqa: SLF001 - it counts, and nothing else does
                "/task_runs/count", json=asked
            )
            if answer.status_code == 200 and answer.json() >= count:
                return
            await asyncio.sleep(0.1)


def peak() -> float:
    """Return the most memory that this process had, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


async def measured_tasks(tasks: Callable[[int], Awaitable[str]], count: int) -> dict[str, float]:
    """Return how long the flow took, and until the server had everything."""
    await tasks(1)
    started = time.perf_counter()
    run_id = await tasks(count)
    seconds = time.perf_counter() - started
    await recorded(run_id, count)
    return {"seconds": seconds, "recorded": time.perf_counter() - started}


async def measured_sources(count: int, feed: str, database: str, service: int) -> dict[str, float]:
    """Return how long a run took, its CPU time, and how many records it found new.

    Args:
        count: The number of sources.
        feed: The address of their catalogues.
        database: The file of the sink.
        service: The process of the Storage Service.
    """
    sources = [
        {"kind": "kev", "url": f"{feed}/{number}", "source_id": f"source-{number}"}
        for number in range(count)
    ]
    # Prefect takes no parameters of this size.
    file = Path(database).with_suffix(".json")
    file.write_text(json.dumps({"sources": sources}))
    sink = {"url": f"sqlite:///{database}"}
    before = peak()
    await collect_many(sources[:1], sink=sink)
    began = time.process_time()
    await collect_many(sources[:1], sink=sink)
    of_one = time.process_time() - began
    started, began, began_there = time.perf_counter(), time.process_time(), cpu_seconds(service)
    report = await collect_many(file=str(file), sink=sink)
    return {
        "seconds": time.perf_counter() - started,
        "cpu": time.process_time() - began,
        "cpu_of_one": of_one,
        "service_cpu": cpu_seconds(service) - began_there,
        "mebibytes": peak() - before,
        "new": report.records_written,
    }


AT_ONCE = 10
"""As many sources at once, and as many in one batch."""
_WRITTEN = {"timestamp": "2026-01-01T00:00:00.123456+00:00", "run_id": "0" * 36}
_COUNTS = ("delivered", "new", "changed", "known", "quarantined", "skipped", "removed", "read")
_LEDGER = {"reasons": {}, **{f"records_{each}": 0 for each in _COUNTS}}
_UPDATES = (
    None,
    {**_WRITTEN, "status": "running", "lease_seconds": 60.0},
    {**_WRITTEN, "status": "success", "records_collected": 0, "ledger": _LEDGER},
)
"""The three calls of the service for a source: a read and two writes."""


async def _requests_of_sources(session: aiohttp.ClientSession, count: int, feed: str) -> None:
    left = iter(range(count))

    async def worker() -> None:
        for number in left:
            async with session.get(f"{feed}/{number}") as answer:
                for each in orjson.loads(await answer.read())["vulnerabilities"]:
                    text = orjson.dumps(each, None, orjson.OPT_SORT_KEYS)
                    blake2b(text, digest_size=16).hexdigest()

    await asyncio.gather(*(worker() for _ in range(AT_ONCE)))


async def _batches(session: aiohttp.ClientSession, count: int, service: str) -> None:
    kind = {"Content-Type": "application/json"}
    for first in range(0, count, AT_ONCE):
        names = [f"source-{number}" for number in range(first, min(first + AT_ONCE, count))]
        for update in _UPDATES:
            call = {} if update is None else {"update": update, "if_match": '"1"'}
            body = orjson.dumps({"requests": [{"source_id": name, **call} for name in names]})
            async with session.post(f"{service}/{API}", data=body, headers=kind) as answer:
                orjson.loads(await answer.read())


def _reads(count: int, database: str) -> None:
    """Look up the position and the record of each source in the sink that ours filled."""
    with closing(sqlite3.connect(database, isolation_level=None)) as connection:
        for number in range(count):
            for table in ("ladon_positions", "records"):
                asked = f"SELECT * FROM {table} WHERE source_id = ?"
                connection.execute(asked, (f"source-{number}",)).fetchall()


def _writes(count: int, file: Path) -> None:
    """Write each watermark and its line of history twice, a batch in one durable transaction."""
    file.unlink(missing_ok=True)
    with closing(sqlite3.connect(file, isolation_level=None)) as connection:
        for setting in ("journal_mode = WAL", "synchronous = FULL"):
            connection.execute(f"PRAGMA {setting}")
        connection.execute("CREATE TABLE watermarks (source_id TEXT PRIMARY KEY, ledger TEXT)")
        connection.execute("CREATE TABLE history (version INTEGER PRIMARY KEY, ledger TEXT)")
        for first in range(0, count, AT_ONCE):
            for update in _UPDATES[1:]:
                text = orjson.dumps(update).decode()
                connection.execute("BEGIN IMMEDIATE")
                for number in range(first, min(first + AT_ONCE, count)):
                    connection.execute(
                        "INSERT OR REPLACE INTO watermarks VALUES (?, ?)", (number, text)
                    )
                    connection.execute("INSERT INTO history VALUES (NULL, ?)", (text,))
                connection.execute("COMMIT")


async def measured_floor(
    count: int, feed: str, database: str, service: str, process: int
) -> dict[str, float]:
    """Return the CPU seconds of each step, taken alone.

    Args:
        count: The number of sources.
        feed: The address of their catalogues.
        database: The file of the sink, which has their records.
        service: The address of bare handlers.
        process: The process of the bare handlers.
    """
    async with aiohttp.ClientSession() as session:
        for some in (1, count):
            began = time.process_time()
            await _requests_of_sources(session, some, feed)
            found = {"sources": time.process_time() - began}
            began, began_there = time.process_time(), cpu_seconds(process)
            await _batches(session, some, service)
            found["batches"] = time.process_time() - began
            found["handlers"] = cpu_seconds(process) - began_there
    began = time.process_time()
    _reads(count, database)
    found["reads"] = time.process_time() - began
    began = time.process_time()
    _writes(count, Path(database).with_suffix(".floor"))
    found["writes"] = time.process_time() - began
    return found


if __name__ == "__main__":
    kind, number, feed_url, path, process_id, *bare = sys.argv[1:]
    if kind == "sources":
        found = asyncio.run(measured_sources(int(number), feed_url, path, int(process_id)))
    elif kind == "floor":
        [address] = bare
        found = asyncio.run(measured_floor(int(number), feed_url, path, address, int(process_id)))
    else:
        tasks = {"awaited": awaited, "mapped": mapped}[kind]
        found = asyncio.run(measured_tasks(tasks, int(number)))
    print(json.dumps(found))
