"""A backfill by several workers, beside one: the wall time of ninety windows of a slow source.

The source is a JSON API on loopback that takes 0.3 s for a page, whatever its processor does in the
meantime. Progress is remembered by a Storage Service of its own process, records go to SQLite.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import uuid4

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
from benchmarks.processes import served, storage_service
from ladon_storage import StorageServiceClient
from ladon_storage.collection.backfill import backfill
from ladon_storage.sinks import sink_from
from ladon_storage.sources import source_from
from ladon_storage.sources.http.client import shared_connections

WINDOWS, WORKERS, PAGE_SECONDS = 90, 8, 0.3
TARGET = 1 / 6
_SINCE = datetime(2024, 1, 1, tzinfo=UTC)


@asynccontextmanager
async def days() -> AsyncIterator[str]:
    """Serve the record of each day that is asked for, slowly."""

    async def answer(request: web.Request) -> web.Response:
        await asyncio.sleep(PAGE_SECONDS)
        noon = datetime.fromisoformat(request.query["since"]) + timedelta(hours=12)
        return web.json_response({"items": [{"id": f"{noon:%j}", "at": noon.isoformat()}]})

    app = web.Application()
    app.router.add_get("/days", answer)
    async with served(app) as url:
        yield f"{url}/days"


async def once(folder: Path, service: str, url: str, count: int, workers: int) -> float:
    """Return the seconds of a backfill of a source that is new each time."""
    source = source_from(
        {
            "kind": "rest",
            "source_id": uuid4().hex,
            "url": url,
            "records": "items",
            "id": "id",
            "timestamps": ["at"],
            "since": {"parameter": "since"},
            "until": {"parameter": "until"},
        }
    )
    sink = sink_from({"url": f"sqlite:///{folder / source.source_id}.db"})
    async with StorageServiceClient(service) as client, shared_connections():
        began = time.monotonic()
        report = await backfill(
            source, sink, client, _SINCE, _SINCE + count * timedelta(days=1), run_id="b",
            workers=workers,
        )  # fmt: skip
        taken = time.monotonic() - began
    if (report.windows, report.records_new) != (count, count):
        raise SystemExit(f"{report.records_new} of {count} records are new: this is no figure.")
    return taken


async def main(*, quick: bool) -> None:
    """Take the figures of one worker and of several."""
    describe("ladon-storage", "aiohttp", "sqlalchemy")
    count, repetitions = (16, 1) if quick else (WINDOWS, 3)
    with TemporaryDirectory() as name:
        folder = Path(name)
        async with storage_service(folder) as service, days() as url:
            contenders = {
                str(workers): partial(once, folder, service, url, count, workers)
                for workers in (1, WORKERS)
            }
            figures = await alternating("windows", contenders, repetitions, warm_up=False)
    made = table(f"{count} windows, {PAGE_SECONDS} s a page", ["workers"], ["seconds"])
    for workers, taken in figures.items():
        made.add_row(workers, shown(taken, 1))
    tables.print(made)
    beside = ratios(figures[str(WORKERS)], figures["1"])
    verdict(f"{WORKERS} workers / one, wall time", beside, TARGET, at_most=True, digits=3)


if __name__ == "__main__":
    asyncio.run(main(quick=is_quick("Measure a backfill by several workers.")))
