"""A collection beside dlt's and a floor: how long, how much memory, what a run costs in vain.

Each collection is a process of its own, in a new folder. The clock runs from after the imports
until the records are durable and the position is kept. Ours goes through the whole engine, with
the watermark in memory; for a run that finds nothing, in a service that is a process, and the feed
is asked over HTTP by both. The CPU time is the collecting process's: a busy machine changes it less
than it changes the clock's.
"""

from __future__ import annotations

import asyncio
import importlib.util
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from aiohttp import web

from benchmarks.collected import PAGE, pages_of
from benchmarks.measuring import (
    alternating,
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

FEW, RECORDS = 10_000, 100_000
TIMES_AS_FAST, TIMES_IN_VAIN, MEMORY_GROWTH = 5, 15, 1.25

OURS = ("sqlite", "duckdb", "delta")
FLOORS = {who: f"floor {who}" for who in OURS}
PEERS = ("dlt append", "dlt merge")
SHOWN = {
    "sqlite": "ladon-storage, SQLite",
    "duckdb": "ladon-storage, DuckDB",
    "delta": "ladon-storage, Delta",
    "floor sqlite": "floor, sqlite3",
    "floor duckdb": "floor, duckdb",
    "floor delta": "floor, deltalake",
    "dlt append": "dlt, DuckDB, append",
    "dlt merge": "dlt, DuckDB, merge",
}
QUIET = {
    "RUNTIME__DLTHUB_TELEMETRY": "false",
    "RUNTIME__LOG_LEVEL": "CRITICAL",
}


class Collections:
    """Run collections, each in a folder of its own, and remember their peak memory.

    Args:
        folder: Where the folders are made.
    """

    def __init__(self, folder: Path) -> None:
        self.mebibytes: dict[str, list[float]] = {}
        self.cpu: dict[str, list[float]] = {}
        self._folder = folder
        self._numbers = itertools.count()

    async def run(self, who: str, records: int, folder: Path | None = None) -> float:
        """Return the seconds of one collection, in a new folder or one that has it already."""
        found = await self._outcome(who, "collect", folder or self.new_folder(), str(records))
        self.mebibytes.setdefault(who, []).append(found["mebibytes"])
        return float(found["seconds"])

    async def run_twice(self, who: str, records: int) -> tuple[float, float]:
        """Return the seconds of a first collection, and of one in which every record is known."""
        folder = self.new_folder()
        first = await self.run(who, records, folder)
        return first, await self.run(who, records, folder)

    async def run_in_vain(self, who: str, addresses: str) -> float:
        """Return the milliseconds of a run that finds nothing new."""
        found = await self._outcome(who, "nothing new", self.new_folder(), addresses)
        return float(found["seconds"] * 1000)

    def new_folder(self) -> Path:
        """Make a folder for one contender."""
        folder = self._folder / str(next(self._numbers))
        folder.mkdir()
        return folder

    async def _outcome(self, who: str, what: str, folder: Path, argument: str) -> dict[str, Any]:
        variables = {**QUIET, "HOME": str(folder), "DLT_DATA_DIR": str(folder / "dlt")}
        found = await outcome(folder, "collected", who, what, str(folder), argument, **variables)
        self.cpu.setdefault(who, []).append(found["cpu"])
        return found


@asynccontextmanager
async def feed() -> AsyncIterator[str]:
    """Serve one page of records, and what of it is not older than ``since``; give its address."""
    [items] = pages_of(PAGE)

    async def answer(request: web.Request) -> web.Response:
        since = request.query.get("since", "")
        return web.json_response([each for each in items if each["seen"] >= since])

    app = web.Application()
    app.router.add_get("/feed", answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0][:2]
        yield f"http://{host}:{port}/feed"
    finally:
        await runner.cleanup()


async def compare(folder: Path, peers: tuple[str, ...], records: int, repetitions: int) -> None:
    """Collect what is new, ours, each floor and each peer in turn; print time and memory."""
    collections = Collections(folder)
    contenders: Mapping[str, Callable[[], Awaitable[float]]] = {
        who: partial(collections.run, who, records) for who in (*OURS, *FLOORS.values(), *peers)
    }
    figures = await alternating(f"{records:,} records", contenders, repetitions)
    memory = {who: each[-repetitions:] for who, each in collections.mebibytes.items()}
    shows = table(
        f"Collecting {records:,} records in pages of {PAGE:,}",
        ("collection",),
        ("seconds", *(f"{peer} / this" for peer in (*peers, "floor")), "MiB"),
    )
    for who, each in figures.items():
        beside = [shown(ratios(figures[peer], each), 2) for peer in peers]
        beside.append(shown(ratios(figures[FLOORS[who]], each), 2) if who in OURS else "")
        shows.add_row(SHOWN[who], shown(each, 2), *beside, shown(memory[who]))
    tables.print(shows)
    for who, peer in itertools.product(OURS, peers):
        what = f"{SHOWN[who]} beside {SHOWN[peer]}, {records:,} records"
        faster = ratios(figures[peer], figures[who])
        verdict(f"{what}: times as fast", faster, TIMES_AS_FAST, at_most=False)
        verdict(f"{what}: memory", ratios(memory[who], memory[peer]), 1, at_most=True)


async def compare_known(folder: Path, records: int, repetitions: int) -> None:
    """Collect everything a second time, and print it beside the first."""
    collections = Collections(folder)
    shows = table(
        f"Collecting the same {records:,} records again",
        ("collection",),
        ("first, seconds", "again, seconds", "again / first"),
    )
    found = {}
    for who in OURS:
        both = [await collections.run_twice(who, records) for _ in range(repetitions + 1)][1:]
        first, again = ([pair[n] for pair in both] for n in (0, 1))
        found[who] = ratios(again, first)
        shows.add_row(SHOWN[who], shown(first, 2), shown(again, 2), shown(found[who], 2))
        progress.print(f"  again, {who}: {repetitions} repetitions", style="dim")
    tables.print(shows)
    for who, each in found.items():
        verdict(f"{SHOWN[who]}: known records beside new ones", each, 1, at_most=True)


async def compare_in_vain(folder: Path, peers: tuple[str, ...], repetitions: int) -> None:
    """Run when there is nothing new, ours and each peer in turn, and print what that costs."""
    collections = Collections(folder)
    async with storage_service(folder) as service, feed() as url:
        contenders: Mapping[str, Callable[[], Awaitable[float]]] = {
            who: partial(collections.run_in_vain, who, f"{service} {url}")
            for who in (*OURS, *peers)
        }
        figures = await alternating("nothing new", contenders, repetitions)
    shows = table(
        "A run that finds nothing new",
        ("collection",),
        ("milliseconds", *(f"{peer} / this" for peer in peers), "of CPU"),
    )
    for who, each in figures.items():
        beside = [shown(ratios(figures[peer], each), 1) for peer in peers]
        cpu = [seconds * 1000 for seconds in collections.cpu[who][-repetitions:]]
        shows.add_row(SHOWN[who], shown(each, 1), *beside, shown(cpu, 1))
    tables.print(shows)
    for who, peer in itertools.product(OURS, peers):
        cheaper = ratios(figures[peer], figures[who])
        what = f"{SHOWN[who]} beside {SHOWN[peer]}, nothing new: times as cheap"
        verdict(what, cheaper, TIMES_IN_VAIN, at_most=False)


async def compare_memory(folder: Path, few: int, many: int) -> None:
    """Collect few records and many, once each, and print the peak memory of both."""
    collections = Collections(folder)
    shows = table(
        "Peak memory above the imports, MiB",
        ("collection",),
        (f"{few:,} records", f"{many:,} records", "growth"),
    )
    growths = {}
    for who in OURS:
        for records in (few, many):
            await collections.run(who, records)
            progress.print(f"  memory, {who}: {records:,} records", style="dim")
        small, large = collections.mebibytes[who]
        growths[who] = large / small
        shows.add_row(SHOWN[who], f"{small:,.1f}", f"{large:,.1f}", f"{growths[who]:.2f}")
    tables.print(shows)
    for who, growth in growths.items():
        verdict(f"{SHOWN[who]}: memory of many beside few", [growth], MEMORY_GROWTH, at_most=True)


async def main(*, quick: bool) -> None:
    """Measure what is new, what is known, what is nothing, and memory."""
    describe("ladon-storage", "deltalake", "pyarrow", "sqlalchemy", "dlt", "duckdb")
    peers: tuple[str, ...] = PEERS[:1] if quick else PEERS
    if importlib.util.find_spec("dlt") is None:
        peers = ()
        progress.print("dlt is not installed, and left out; `make bench` installs it.")
    records, repetitions = (2 * PAGE, 1) if quick else (RECORDS, 5)
    few, many = (PAGE, 2 * PAGE) if quick else (FEW, 1_000_000)
    for size in (few, records):
        with TemporaryDirectory() as folder:
            await compare(Path(folder), peers, size, repetitions)
    with TemporaryDirectory() as folder:
        await compare_in_vain(Path(folder), () if quick else peers, repetitions)
    with TemporaryDirectory() as folder:
        await compare_known(Path(folder), records, repetitions)
    with TemporaryDirectory() as folder:
        await compare_memory(Path(folder), few, many)


if __name__ == "__main__":
    asyncio.run(main(quick=is_quick("Measure collections beside dlt's.")))
