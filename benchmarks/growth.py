"""What a sink costs that has a million records: to fill, and to add a few to.

The ids are in no order. Each figure is one process's, after imports; the records come from loopback
HTTP. The bytes written are those that the kernel counts for the process. The steps without which
SQLite cannot have new records are also taken alone: request, hashes, and rows by ``sqlite3``.
"""

from __future__ import annotations

import asyncio
import itertools
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.feed import new_folder
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
from benchmarks.processes import feeds, outcome

KEEPS = {"SQLite": "latest", "Delta": "latest", "JSON lines": "all"}
# Milliseconds of CPU for so many new records beside a million.
MILLISECONDS = {
    "SQLite": {1_000: 30, 10: 8},
    "Delta": {1_000: 120, 10: 90},
    "JSON lines": {1_000: 50, 10: 20},
}
CPU_GROWTH, WRITTEN = 1.5, 3
STEPS = {"http": "aiohttp and orjson", "hash": "texts, hash, times", "sqlite": "sqlite3 alone"}


async def fill(sink: str, server: str, records: int, folder: Path) -> dict[str, Any]:
    """Collect so many records into a sink in a folder, and return the figures."""
    who = f"ours, {sink}, {KEEPS[sink]}"
    url = f"{server}/six?count={records}"
    return await outcome(folder, "contender", who, "six", url, str(records), str(folder))


async def compare_sizes(folder: Path, server: str, few: int, many: int, repetitions: int) -> None:
    """Fill SQLite with few and with many records in turn, and print what one record costs."""
    found: dict[int, list[dict[str, float]]] = {few: [], many: []}
    numbers = itertools.count()

    async def once(records: int) -> float:
        place = new_folder(folder / f"size-{next(numbers)}")
        found[records].append(await fill("SQLite", server, records, place))
        return 1e6 * found[records][-1]["cpu"] / records

    contenders = {str(records): partial(once, records) for records in found}
    figures = await alternating("SQLite", contenders, repetitions, warm_up=False)
    shows = table(
        "Random ids into SQLite", ("records",), ("CPU µs a record", "written / size", "seconds")
    )
    written = {}
    for records, each in found.items():
        written[records] = ratios([one["written"] for one in each], [one["size"] for one in each])
        seconds = [one["seconds"] for one in each]
        name = f"{records:,}"
        shows.add_row(
            name, shown(figures[str(records)], 1), shown(written[records], 2), shown(seconds, 2)
        )
    tables.print(shows)
    growth = ratios(figures[str(many)], figures[str(few)])
    verdict(f"SQLite: CPU a record, {many:,} beside {few:,}", growth, CPU_GROWTH, at_most=True)
    verdict("SQLite: bytes written for each of the file", written[many], WRITTEN, at_most=True)


async def compare_additions(folder: Path, server: str, many: int, repetitions: int) -> None:
    """Add a few new records to each sink that has many, and print what that costs."""
    places = {sink: new_folder(folder / sink) for sink in KEEPS}
    for sink, place in places.items():
        await fill(sink, server, many, place)
    following = dict.fromkeys(KEEPS, many)

    async def once(sink: str, count: int) -> float:
        first = following[sink]
        following[sink] += count
        arguments = (sink, KEEPS[sink], str(places[sink]), "new", server, str(first), str(count))
        found = await outcome(places[sink], "small_run", *arguments)
        return float(found["cpu"] * 1000)

    floors: dict[int, list[dict[str, float]]] = {count: [] for count in MILLISECONDS["SQLite"]}

    async def floor(count: int) -> float:
        first = following["SQLite"]
        following["SQLite"] += count
        arguments = ("new", "SQLite", KEEPS["SQLite"], str(places["SQLite"]), server)
        found = await outcome(places["SQLite"], "small_floor", *arguments, str(first), str(count))
        floors[count].append(found)
        return float(sum(found.values()))

    pairs = [(sink, count) for sink, counts in MILLISECONDS.items() for count in counts]
    contenders = {f"{sink}, {count:,} new": partial(once, sink, count) for sink, count in pairs}
    contenders |= {f"the floor of {count:,}": partial(floor, count) for count in floors}
    figures = await alternating("new records", contenders, repetitions, warm_up=repetitions > 1)
    shows = table(
        f"Floors of new records beside {many:,} in SQLite, CPU milliseconds",
        ("records",),
        (*STEPS.values(), "together", "ours / together"),
    )
    for count, each in floors.items():
        together = figures[f"the floor of {count:,}"]
        steps = [shown([one[step] for one in each[-repetitions:]], 1) for step in STEPS]
        beside = ratios(figures[f"SQLite, {count:,} new"], together)
        shows.add_row(f"{count:,}", *steps, shown(together, 1), shown(beside, 2))
    tables.print(shows)
    for sink, count in pairs:
        what = f"{sink}: {count:,} new beside {many:,}, CPU milliseconds"
        verdict(
            what,
            figures[f"{sink}, {count:,} new"],
            MILLISECONDS[sink][count],
            at_most=True,
            digits=1,
            floor=figures[f"the floor of {count:,}"] if sink == "SQLite" else (),
        )


async def main(*, quick: bool) -> None:
    """Take the figures of sinks that grow."""
    describe("ladon-storage", "sqlalchemy", "deltalake", "pyarrow")
    few, many, repetitions = (1_000, 3_000, 1) if quick else (10_000, 1_000_000, 3)
    with TemporaryDirectory() as folder:
        async with feeds() as server:
            await compare_sizes(Path(folder), server, few, many, repetitions)
            await compare_additions(Path(folder), server, many, 1 if quick else 5)


if __name__ == "__main__":
    asyncio.run(main(quick=is_quick("Measure sinks of a million records.")))
