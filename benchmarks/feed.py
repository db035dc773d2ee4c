"""A feed of pages over loopback HTTP: ours beside a script, dlt, Singer and Airbyte's CDK.

Each collection is a process of its own in a new folder. The clock runs from after the imports until
all records are durable; CPU time is that of all threads and child processes, and not that of the
server. Each contender reads the same pages, and is asked in the end how many records it has.
"""

from __future__ import annotations

import asyncio
import importlib.util
import itertools
import shutil
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from benchmarks.contenders.ours import AVAILABLE
from benchmarks.feeds import FEEDS
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
from benchmarks.processes import feeds, outcome
from demo.stage import PROJECT

SCRIPT, HASHING = "script", "hashing script"
SQLITE, SQLITE_ALL = "ours, SQLite, latest", "ours, SQLite, all"
DELTA, DUCKDB = "ours, Delta, latest", "ours, DuckDB, latest"
DEFAULT, ARROW = "dlt, DuckDB, default merge", "dlt, DuckDB, Arrow merge"
DLT_DELTA = "dlt, Delta, Arrow merge"
SINGER, AIRBYTE = "Singer SDK, SQLite, append", "Airbyte CDK, SQLite"
PEERS = {DEFAULT: "dlt", ARROW: "dlt", DLT_DELTA: "dlt", SINGER: "singer_sdk"}
AIRBYTE_PYTHON = PROJECT / ".venv-airbyte" / "bin" / "python"
QUIET = {"RUNTIME__DLTHUB_TELEMETRY": "false", "RUNTIME__LOG_LEVEL": "CRITICAL"}

# Ours, the peer, the greatest ratio, and of which figures.
TARGETS = [
    (SQLITE, SCRIPT, 1.5, ("cpu",)),
    (SQLITE_ALL, SCRIPT, 1.5, ("cpu",)),
    (SQLITE, ARROW, 0.8, ("cpu", "seconds")),
    (SQLITE, DEFAULT, 0.3, ("cpu", "seconds")),
    (DELTA, DLT_DELTA, 1.0, ("cpu",)),
    (DUCKDB, ARROW, 0.6, ("cpu", "seconds")),
    (SQLITE, ARROW, 1.0, ("mebibytes",)),
    (DELTA, DLT_DELTA, 1.0, ("mebibytes",)),
    (DUCKDB, ARROW, 1.0, ("mebibytes",)),
]
# How each keeps its records, of the steps that are taken alone.
STORED = {SQLITE: "sqlite", SQLITE_ALL: "sqlite", DELTA: "parquet", DUCKDB: "duckdb"}
NAMED = {"cpu": "CPU", "seconds": "wall", "mebibytes": "peak memory"}
READ = {
    "http": "aiohttp",
    "orjson": "orjson.loads",
    "texts": "texts",
    "hash": "blake2b",
    "times": "times",
}
STEPS = {**READ, "sqlite": "SQLite"}
BESIDE = {
    "json": "json.loads",
    "disk": "write and fsync",
    "disk seconds": "its wall",
    "parquet": "Arrow and parquet",
    "duckdb": "DuckDB",
}
Figures = dict[str, dict[str, list[float]]]


def contenders() -> list[str]:
    """Return those that are there, and say which are missing."""
    found = [SCRIPT, HASHING, SQLITE, SQLITE_ALL, DELTA]
    found += [DUCKDB] if "DuckDB" in AVAILABLE else []
    for name, library in PEERS.items():
        if importlib.util.find_spec(library):
            found.append(name)
        else:
            progress.print(f"{library} is not installed, and left out; `make bench` installs it.")
    if AIRBYTE_PYTHON.exists():
        found.append(AIRBYTE)
    else:
        progress.print("airbyte-cdk is not installed, and left out; `make bench` installs it.")
    return found


def new_folder(path: Path) -> Path:
    """Make a folder."""
    path.mkdir()
    return path


async def compare(
    folder: Path, url: str, name: str, records: int, names: list[str], repetitions: int
) -> Figures:
    """Collect one feed with every contender in turn, and return their figures."""
    taken: Figures = {who: {} for who in names}
    numbers = itertools.count()

    async def once(who: str) -> float:
        place = new_folder(folder / str(next(numbers)))
        python = {"python": str(AIRBYTE_PYTHON)} if who == AIRBYTE else {}
        variables = {**QUIET, "HOME": str(place), "DLT_DATA_DIR": str(place / "dlt"), **python}
        arguments = (who, name, url, str(records), str(new_folder(place / "target")))
        found = await outcome(place, "contender", *arguments, **variables)
        for what, figure in found.items():
            taken[who].setdefault(what, []).append(figure)
        shutil.rmtree(place)
        return float(found["cpu"])

    turns = {who: partial(once, who) for who in names}
    await alternating(name, turns, repetitions, warm_up=repetitions > 1)
    for each in taken.values():
        for what, figures in each.items():
            each[what] = figures[-repetitions:]
    return taken


def show(name: str, records: int, taken: Figures, floors: dict[str, list[float]]) -> None:
    """Print the figures of one feed, and whether its targets are met."""
    shows = table(
        FEEDS[name].title(records),
        ("collection",),
        ("seconds", "CPU seconds", "CPU / script", "CPU µs a record", "MiB above imports"),
    )
    for who, each in taken.items():
        shows.add_row(
            who,
            shown(each["seconds"], 2),
            shown(each["cpu"], 2),
            shown(ratios(each["cpu"], taken[SCRIPT]["cpu"]), 2),
            shown([1e6 * cpu / records for cpu in each["cpu"]], 1),
            shown(each["mebibytes"]),
        )
    tables.print(shows)
    for ours, peer, most, what in TARGETS:
        if ours in taken and peer in taken:
            for kind in what:
                beside = ratios(taken[ours][kind], taken[peer][kind])
                title = f"{ours} / {peer}: {NAMED[kind]}"
                floor: list[float] = []
                if kind == "cpu":
                    alone = 1e6 * median(taken[peer][kind]) / records
                    floor = [each / alone for each in together(floors, STORED[ours])]
                of = FEEDS[name].title(records)
                verdict(title, beside, most, at_most=True, of=of, floor=floor)


async def show_counting_links(folder: Path, server: str, records: int, repetitions: int) -> None:
    """Print what a feed costs whose links count, so that ours requests each page twice."""
    url = f"{server}/six?count={records}&offset=0"
    taken = await compare(folder, url, "six", records, [SCRIPT, SQLITE], repetitions)
    beside = ratios(taken[SQLITE]["cpu"], taken[SCRIPT]["cpu"])
    shows = table("Links that count", ("feed",), (f"{SQLITE} / {SCRIPT}: CPU",))
    shows.add_row(FEEDS["six"].title(records), shown(beside, 2))
    tables.print(shows)


async def floors_of(
    folder: Path, name: str, url: str, records: int, repetitions: int
) -> dict[str, list[float]]:
    """Return what each step of a feed takes alone, in microseconds a record."""
    found: dict[str, list[float]] = {}
    for _ in range(repetitions):
        each = await outcome(folder, "floors", url, FEEDS[name].times[0], str(folder))
        for what, seconds in each.items():
            found.setdefault(what, []).append(1e6 * seconds / records)
    return found


def together(floors: dict[str, list[float]], stored: str) -> list[float]:
    """Return what all steps take with one way to store the records."""
    return [sum(each) for each in zip(*(floors[kind] for kind in (*READ, stored)), strict=True)]


def show_floors(
    floors: dict[str, dict[str, list[float]]], sizes: dict[str, int], script: dict[str, float]
) -> None:
    """Print what each step takes alone, and all of them beside the ``script``, CPU seconds."""
    of_sqlite = table("Floors, CPU µs a record", ("feed",), (*STEPS.values(), "together / script"))
    of_others = table("Other floors, CPU µs a record", ("feed",), tuple(BESIDE.values()))
    for name, found in floors.items():
        title = FEEDS[name].title(sizes[name])
        alone = 1e6 * script[name] / sizes[name]
        of_sqlite.add_row(
            title,
            *(shown(found[kind], 2) for kind in STEPS),
            shown([each / alone for each in together(found, "sqlite")], 2),
        )
        of_others.add_row(title, *(shown(found[kind], 2) for kind in BESIDE))
    tables.print(of_sqlite)
    tables.print(of_others)


async def main(*, quick: bool) -> None:
    """Take the figures of every feed, and print them."""
    describe(
        *("ladon-storage", "aiohttp", "orjson", "deltalake", "pyarrow", "duckdb"),
        *("dlt", "singer-sdk"),
    )
    names = contenders()
    sizes = {name: 2_000 if quick else feed.records for name, feed in FEEDS.items()}
    repetitions = 1 if quick else 5
    found: dict[str, Figures] = {}
    floors: dict[str, dict[str, list[float]]] = {}
    with TemporaryDirectory() as folder:
        async with feeds() as server:
            for name, records in sizes.items():
                # What builds the pages, and opens the files of the recordings.
                url = f"{server}/{name}?count={records}"
                await outcome(Path(folder), "floors", url, FEEDS[name].times[0], folder)
                found[name] = await compare(Path(folder), url, name, records, names, repetitions)
                floors[name] = await floors_of(Path(folder), name, url, records, repetitions)
                show(name, records, found[name], floors[name])
            await show_counting_links(Path(folder), server, sizes["six"], repetitions)
            script = {name: median(each[SCRIPT]["cpu"]) for name, each in found.items()}
            show_floors(floors, sizes, script)
    tables.record_of_script.figures = {
        FEEDS[name].title(sizes[name]): {
            who: [1e6 * cpu / sizes[name] for cpu in each["cpu"]] for who, each in taken.items()
        }
        for name, taken in found.items()
    }


if __name__ == "__main__":
    asyncio.run(main(quick=is_quick("Measure collections of a feed beside its peers.")))
