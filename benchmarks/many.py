"""Many sources in one run of Prefect, beside a task run for each.

A thousand sources that have nothing new go through ``collect-many``; a thousand task runs that do
nothing go through a flow of their own, on the same Prefect server with its default settings: one
after another, or mapped. What a flow waits for is one figure; until the server has every task run
is another, and what the next run has to wait for. Each run is a process of its own, as Prefect
starts them, after one of a single source or task run that warms up. The CPU time of a source is
that of the run's process and the Storage Service's: the feed's and Prefect's server have their own.
Its floor is what each of its steps takes alone, in both processes.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from aiohttp import web

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
from benchmarks.processes import bare_server, outcome, served, storage_server
from demo.stage import PROJECT, prefect_server

TASKS = {
    "awaited": "empty task runs, one after another",
    "mapped": "empty task runs, mapped",
}
PARTS = {
    "cpu": "the run's process",
    "cpu_of_one": "of it, what a run of one source takes",
    "service_cpu": "the Storage Service's process",
}
STEPS = {
    "sources": "aiohttp, orjson and blake2b: its answer",
    "batches": "aiohttp and orjson: its share of three batches",
    "reads": "sqlite3: its position and its record",
    "handlers": "bare handlers of the batches",
    "writes": "sqlite3: two durable watermarks with their history",
}
"""Its request, its share of the batches, and what both databases do for it."""
TARGET = 1 / 3
GROWTH = 11
MILLISECONDS = 0.8
"""The most CPU time of a source with nothing new, in both processes."""


@asynccontextmanager
async def catalogues() -> AsyncIterator[str]:
    """Serve a catalogue of one entry at every path."""

    async def answer(_request: web.Request) -> web.Response:
        entry = {"cveID": "CVE-1", "dateAdded": "2024-01-01"}
        return web.json_response({"count": 1, "vulnerabilities": [entry]})

    app = web.Application()
    app.router.add_get("/{name}", answer)
    async with served(app) as url:
        yield url


async def main(*, quick: bool) -> None:
    """Take the figures and print them."""
    few, repetitions = (20, 1) if quick else (1_000, 5)
    describe("ladon-storage", "prefect", "aiohttp")
    folder = PROJECT / ".demo" / "many"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    async with (
        prefect_server(folder) as api,
        storage_server(folder) as storage,
        catalogues() as feed,
        bare_server() as bare,
    ):
        places = {
            "PREFECT_API_URL": api,
            "PREFECT_LOGGING_LEVEL": "INFO",
            "STORAGE_SERVICE_URL": storage.url,
        }
        recorded: dict[str, list[float]] = {kind: [] for kind in TASKS}
        mebibytes: dict[int, float] = {}
        cpu = {count: {part: list[float]() for part in PARTS} for count in (few, 10 * few)}

        floors: dict[str, list[float]] = {step: [] for step in STEPS}

        async def floor() -> float:
            told = ("floor", str(few), feed, str(folder / f"{few}.db"), str(bare.process_id))
            found = await outcome(folder, "many_run", *told, bare.url, **places)
            for step in STEPS:
                floors[step].append(found[step] / few * 1_000)
            return float(sum(found.values()))

        async def run(kind: str, count: int) -> float:
            database = str(folder / f"{count}.db")
            told = (kind, str(count), feed, database, str(storage.process_id))
            found = await outcome(folder, "many_run", *told, **places)
            if kind in recorded:
                recorded[kind].append(found["recorded"])
            else:
                if found["new"] and count in mebibytes:  # the first run fills the sink
                    raise RuntimeError(f"{found['new']} records were new: this is no figure.")
                mebibytes[count] = found["mebibytes"]
                for part in PARTS:
                    cpu[count][part].append(found[part] / count * 1_000)
            return float(found["seconds"])

        # First: the server works on what it was told of tasks long after it has them, and whatever
        # runs beside it takes more CPU time.
        sources = {str(count): partial(run, "sources", count) for count in (few, 10 * few)}
        grown = await alternating("sources", {**sources, "floor": floor}, repetitions)
        parts = {part: each[-repetitions:] for part, each in cpu[few].items()}
        kinds = {kind: partial(run, kind, few) for kind in ("sources", *TASKS)}
        figures = await alternating("tasks", kinds, repetitions)
    ours = figures["sources"]
    shows = table(f"{few:,} sources with nothing new: CPU time", ["where"], ["ms a source"])
    for part, named in PARTS.items():
        shows.add_row(named, shown(parts[part], 3))
    both = [sum(each) for each in zip(parts["cpu"], parts["service_cpu"], strict=True)]
    steps = {step: each[-repetitions:] for step, each in floors.items()}
    together = [sum(each) for each in zip(*steps.values(), strict=True)]
    shows.add_row("both processes", shown(both, 3))
    tables.print(shows)
    least = table("Floors of a source with nothing new: CPU time", ["step"], ["ms a source"])
    for step, named in STEPS.items():
        least.add_row(named, shown(steps[step], 3))
    least.add_row("together", shown(together, 3))
    least.add_row("ours / together", shown(ratios(both, together), 2))
    tables.print(least)
    made = table(f"{few:,} on one Prefect server", ["what"], ["seconds", "sources / this"])
    made.add_row("sources with nothing new, one run", shown(ours, 2), "")
    beside = {}
    for kind, named in TASKS.items():
        ended = {"the flow": figures[kind], "until the server has them": recorded[kind][1:]}
        for what, each in ended.items():
            beside[f"{named}, {what}"] = ratios(ours, each)
            made.add_row(f"{named}, {what}", shown(each, 2), shown(ratios(ours, each), 2))
    tables.print(made)
    for named, ratio in beside.items():
        verdict(f"sources beside {named}", ratio, TARGET, at_most=True)
    what = "a source with nothing new, milliseconds of CPU in both processes"
    verdict(what, both, MILLISECONDS, at_most=True, floor=together)
    growth = ratios(grown[str(10 * few)], grown[str(few)])
    verdict(f"{10 * few:,} sources beside {few:,}", growth, GROWTH, at_most=True)
    tables.print(
        "peak memory above the imports: "
        + ", ".join(f"{mib:.0f} MiB with {count:,} sources" for count, mib in mebibytes.items())
    )


if __name__ == "__main__":
    asyncio.run(main(quick=is_quick("Many sources in one run, beside a task run for each.")))
