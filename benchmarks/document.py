"""One document of 96 MB, as a list and as an object of records, into SQLite."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.feed import new_folder
from benchmarks.measuring import alternating, describe, is_quick, shown, table, tables, verdict
from benchmarks.processes import feeds, outcome

MEGABYTES, TIMES_ITS_SIZE, HOLD_MILLISECONDS = 96, 2.5, 250
SHAPES = ("list", "object")


async def main(*, quick: bool) -> None:
    """Take the figures of both shapes."""
    describe("ladon-storage", "aiohttp", "orjson")
    megabytes, repetitions = (2, 1) if quick else (MEGABYTES, 3)
    found: dict[str, dict[str, list[float]]] = {shape: {} for shape in SHAPES}
    numbers = iter(range(1_000))
    with TemporaryDirectory() as name:
        async with feeds() as server:

            async def once(shape: str) -> float:
                place = new_folder(Path(name) / str(next(numbers)))
                url = f"{server}/document/{shape}?megabytes={megabytes}"
                figures = await outcome(place, "document_run", shape, url, str(place))
                for what, figure in figures.items():
                    found[shape].setdefault(what, []).append(figure)
                return float(figures["seconds"])

            contenders = {shape: partial(once, shape) for shape in SHAPES}
            await alternating("document", contenders, repetitions, warm_up=False)
    shows = table(
        f"One document of {megabytes} MB into SQLite",
        ("shape", "records"),
        ("seconds", "CPU seconds", "peak / size", "longest hold, ms"),
    )
    for shape, each in found.items():
        size = megabytes * 1e6 / 2**20
        peaks = [mebibytes / size for mebibytes in each["mebibytes"]]
        holds = [hold * 1000 for hold in each["hold"]]
        times = (shown(each["seconds"], 1), shown(each["cpu"], 1))
        shows.add_row(shape, f"{each['records'][0]:,.0f}", *times, shown(peaks, 2), shown(holds))
        what = f"one document, {shape}"
        verdict(f"{what}: peak memory / size", peaks, TIMES_ITS_SIZE, at_most=True)
        verdict(f"{what}: longest hold, ms", holds, HOLD_MILLISECONDS, at_most=True, digits=0)
    tables.print(shows)


if __name__ == "__main__":
    asyncio.run(main(quick=is_quick("Measure the collection of one large document.")))
