"""A run that finds nothing new: the whole engine, with the service and the source on loopback.

The source answers with one record that the sink has. The service, the feed and the run are a
process each; a repetition is the median of 15 runs in one process. In the same round, each step
that a run cannot omit is taken alone: its requests by bare aiohttp, the two durable writes of its
watermark by the disk alone, and a look into the sink by its own library.
"""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.feed import new_folder
from benchmarks.growth import KEEPS
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
from benchmarks.processes import bare_handler, feeds, outcome, storage_service

MILLISECONDS = {"SQLite": 5, "Delta": 8}
KINDS = {"seconds": "wall", "cpu": "CPU"}
STEPS = {
    "bare": "aiohttp",
    "disk": "2 × fsync",
    "sink": "the sink",
}
Steps = dict[str, list[dict[str, dict[str, float]]]]


def show_floors(ours: dict[str, dict[str, list[float]]], floors: Steps) -> dict[str, list[float]]:
    """Print what each step takes alone, and ours beside all of them; return all, of wall."""
    walls = {}
    shows = table(
        "Floors of a run that finds nothing new, milliseconds",
        ("sink",),
        (*STEPS.values(), "together", "ours / together", "aiohttp, our service"),
    )
    for sink, each in floors.items():
        for kind, named in KINDS.items():
            steps = {name: [one[name][kind] for one in each] for name in each[0]}
            together = [sum(parts) for parts in zip(*(steps[step] for step in STEPS), strict=True)]
            if kind == "seconds":
                walls[sink] = together
            shows.add_row(
                f"{sink}, {named}",
                *(shown(steps[step], 2) for step in STEPS),
                shown(together, 2),
                shown(ratios(ours[sink][kind], together), 2),
                shown(steps["service"], 2),
            )
    tables.print(shows)
    return walls


async def main(*, quick: bool) -> None:
    """Take the figures of runs that find nothing."""
    describe("ladon-storage", "aiohttp", "sqlalchemy", "deltalake")
    repetitions, numbers = (1 if quick else 7), iter(range(1_000))
    cpu: dict[str, list[float]] = {sink: [] for sink in MILLISECONDS}
    floors: Steps = {sink: [] for sink in MILLISECONDS}
    with TemporaryDirectory() as name:
        folder = Path(name)
        async with feeds() as server, storage_service(folder) as service, bare_handler() as bare:

            async def once(sink: str) -> float:
                place = new_folder(folder / str(next(numbers)))
                url, where = f"{server}/six?count=1", (sink, KEEPS[sink], str(place))
                found = await outcome(place, "small_run", *where, "nothing", service, url)
                cpu[sink].append(found["cpu"] * 1000)
                steps = ("nothing", *where, service, bare, url)
                floors[sink].append(await outcome(place, "small_floor", *steps))
                return float(found["seconds"] * 1000)

            contenders = {sink: partial(once, sink) for sink in MILLISECONDS}
            figures = await alternating("nothing new", contenders, repetitions, warm_up=not quick)
    shows = table("A run that finds nothing new", ("sink",), ("milliseconds", "of CPU"))
    for sink, each in figures.items():
        shows.add_row(sink, shown(each, 1), shown(cpu[sink][-repetitions:], 1))
    tables.print(shows)
    taken = {
        sink: {"seconds": each, "cpu": cpu[sink][-repetitions:]} for sink, each in figures.items()
    }
    walls = show_floors(taken, {sink: each[-repetitions:] for sink, each in floors.items()})
    for sink, most in MILLISECONDS.items():
        what = f"{sink}: nothing new, milliseconds of wall"
        verdict(what, figures[sink], most, at_most=True, digits=1, floor=walls[sink])


if __name__ == "__main__":
    asyncio.run(main(quick=is_quick("Measure runs that find nothing new.")))
