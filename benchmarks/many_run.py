"""One contender of `benchmarks.many`, in a process of its own: sources, or empty task runs."""

from __future__ import annotations

import asyncio
import json
import resource
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from prefect import flow, get_client, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import StateType
from prefect.runtime import flow_run

from benchmarks.load import cpu_seconds
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


if __name__ == "__main__":
    kind, number, feed_url, path, process_id = sys.argv[1:]
    if kind == "sources":
        found = asyncio.run(measured_sources(int(number), feed_url, path, int(process_id)))
    else:
        tasks = {"awaited": awaited, "mapped": mapped}[kind]
        found = asyncio.run(measured_tasks(tasks, int(number)))
    print(json.dumps(found))
