"""A run that finds nothing new: the whole engine, with the service and the source on loopback.

The source answers with one record that the sink has. The service, the feed and the run are a
process each; a repetition is the median of 15 runs in one process.
"""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.feed import new_folder
from benchmarks.growth import KEEPS
from benchmarks.measuring import alternating, describe, is_quick, shown, table, tables, verdict
from benchmarks.processes import feeds, outcome, storage_service

MILLISECONDS = {"SQLite": 5, "Delta": 8}


async def main(*, quick: bool) -> None:
    """Take the figures of runs that find nothing."""
    describe("ladon-storage", "aiohttp", "sqlalchemy", "deltalake")
    repetitions, numbers = (1 if quick else 7), iter(range(1_000))
    cpu: dict[str, list[float]] = {sink: [] for sink in MILLISECONDS}
    with TemporaryDirectory() as name:
        folder = Path(name)
        async with feeds() as server, storage_service(folder) as service:

            async def once(sink: str) -> float:
                place = new_folder(folder / str(next(numbers)))
                asked = ("nothing", service, f"{server}/six?count=1")
                found = await outcome(place, "small_run", sink, KEEPS[sink], str(place), *asked)
                cpu[sink].append(found["cpu"] * 1000)
                return float(found["seconds"] * 1000)

            contenders = {sink: partial(once, sink) for sink in MILLISECONDS}
            figures = await alternating("nothing new", contenders, repetitions, warm_up=not quick)
    shows = table("A run that finds nothing new", ("sink",), ("milliseconds", "of CPU"))
    for sink, each in figures.items():
        shows.add_row(sink, shown(each, 1), shown(cpu[sink][-repetitions:], 1))
    tables.print(shows)
    for sink, most in MILLISECONDS.items():
        what = f"{sink}: nothing new, milliseconds of wall"
        verdict(what, figures[sink], most, at_most=True, digits=1)


if __name__ == "__main__":
    asyncio.run(main(quick=is_quick("Measure runs that find nothing new.")))
