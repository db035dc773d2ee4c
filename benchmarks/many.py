"""Many sources in one run of Prefect, beside a task run for each.

A thousand sources that have nothing new go through ``collect-many``; a thousand task runs that do
nothing go through a flow of their own, on the same Prefect server. What a flow waits for is one
figure; until the server has every task run is another, and what the next run has to wait for.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from statistics import median
from typing import Any

from aiohttp import web

from benchmarks.measuring import (
    describe,
    is_quick,
    progress,
    ratios,
    shown,
    table,
    tables,
    verdict,
)
from benchmarks.processes import outcome, storage_service
from demo.stage import PROJECT, prefect_server

TARGET = 1 / 3
GROWTH = 11


@asynccontextmanager
async def catalogues() -> AsyncIterator[str]:
    """Serve a catalogue of one entry at every path."""

    async def answer(_request: web.Request) -> web.Response:
        entry = {"cveID": "CVE-1", "dateAdded": "2024-01-01"}
        return web.json_response({"count": 1, "vulnerabilities": [entry]})

    app = web.Application()
    app.router.add_get("/{name}", answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def main(*, quick: bool) -> None:
    """Take the figures and print them."""
    few, repetitions = (20, 1) if quick else (1_000, 5)
    describe("ladon-storage", "prefect", "aiohttp")
    folder = PROJECT / ".demo" / "many"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    async with (
        prefect_server(folder) as api,
        storage_service(folder) as storage,
        catalogues() as feed,
    ):
        places = {"PREFECT_API_URL": api, "STORAGE_SERVICE_URL": storage}

        async def run(kind: str, count: int) -> dict[str, Any]:
            return await outcome(
                folder, "many_run", kind, str(count), feed, str(folder / "records.db"), **places
            )

        sources, tasks = [], []
        for repetition in range(repetitions + 1):
            many, empty = await run("sources", few), await run("tasks", few)
            if repetition:
                sources.append(many["seconds"])
                tasks.append(empty)
            progress.print(f"  repetition {repetition} of {repetitions}", style="dim")
        more = await run("sources", 10 * few)
    waited = [each["seconds"] for each in tasks]
    recorded = [each["recorded"] for each in tasks]
    made = table(f"{few:,} on one Prefect server", ["what"], ["seconds", "sources / this"])
    made.add_row("sources with nothing new, one run", shown(sources, 2), "")
    made.add_row("empty task runs, the flow", shown(waited, 2), shown(ratios(sources, waited), 2))
    made.add_row(
        "empty task runs, until the server has them",
        shown(recorded, 2),
        shown(ratios(sources, recorded), 2),
    )
    tables.print(made)
    verdict("sources beside the flow of tasks", ratios(sources, waited), TARGET, at_most=True)
    verdict("sources beside recorded tasks", ratios(sources, recorded), TARGET, at_most=True)
    growth = more["seconds"] / median(sources)
    verdict(f"{10 * few:,} sources beside {few:,}", [growth], GROWTH, at_most=True)
    tables.print(
        f"peak memory over the imports: {many['mib']:.0f} MiB with {few:,} sources, "
        f"{more['mib']:.0f} MiB with {10 * few:,}"
    )


if __name__ == "__main__":
    asyncio.run(main(quick=is_quick("Many sources in one run, beside a task run for each.")))
