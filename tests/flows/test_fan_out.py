"""Many sources on the workers of a task runner: threads, and real clusters of Dask and Ray.

The clusters are there where their packages are (`make oldest`). A worker is killed in the middle.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import os
import signal
import sqlite3
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from ladon_storage.collection.protocols import Limits
from ladon_storage.collection.ranges import TimeRange
from ladon_storage.connect import new_client
from ladon_storage.flows.backfill import _collect_windows, _Elsewhere, backfill
from ladon_storage.flows.collect_many import collect_many
from ladon_storage.flows.fleet import pickled
from ladon_storage.settings import StorageSettings

SOURCES = 24
LIMITS = Limits(lease=timedelta(seconds=4))

CLUSTERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "threads": ("prefect.task_runners", "ThreadPoolTaskRunner", {}),
    "dask": (
        "prefect_dask",
        "DaskTaskRunner",
        {
            "cluster_kwargs": {
                "n_workers": 2,
                "threads_per_worker": 1,
                "processes": True,
                "dashboard_address": None,
            }
        },
    ),
    "ray": (
        "prefect_ray",
        "RayTaskRunner",
        {"init_kwargs": {"num_cpus": 2, "include_dashboard": False}},
    ),
}


def runner(name: str) -> Any:
    """Return a task runner with its own cluster, or skip the test where it is not installed."""
    module, kind, options = CLUSTERS[name]
    pytest.importorskip(module, reason=f"{module.replace('_', '-')} is not installed")
    return getattr(importlib.import_module(module), kind)(**options)


@pytest.fixture(autouse=True)
def workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the processes of a cluster find the modules of the tests, and the same circuits."""
    path = [str(Path.cwd()), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path))


def sources(folder: Path, count: int = SOURCES, **options: Any) -> list[dict[str, Any]]:
    """Return sources of one record each, which note the process that reads them."""
    return [
        {
            "kind": "tests.flows.noted_sources:Noted",
            "source_id": f"noted-{number:03}",
            "folder": str(folder),
            **options,
        }
        for number in range(count)
    ]


def read_by(folder: Path) -> dict[str, list[int]]:
    """Return the processes that read each source, in the order in which they began."""
    found: dict[str, list[int]] = {}
    for line in (folder / "read").read_text().splitlines():
        name, process = line.split()
        found.setdefault(name, []).append(int(process))
    return found


def stored(folder: Path) -> list[str]:
    """Return the sources of the records in a sink."""
    with contextlib.closing(sqlite3.connect(folder / "records.db")) as connection:
        return [row[0] for row in connection.execute("select source_id from records order by 1")]


@contextlib.contextmanager
def killed_when(folder: Path, count: int) -> Iterator[list[int]]:
    """Kill the process that has begun the source of that number, once."""
    dead: list[int] = []
    is_over = threading.Event()

    def watch() -> None:
        while not is_over.wait(0.02):
            file = folder / "read"
            lines = file.read_text().splitlines() if file.exists() else []
            if len(lines) >= count:
                process = int(lines[-1].split()[1])
                assert process != os.getpid()
                os.kill(process, signal.SIGKILL)
                dead.append(process)
                return

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        yield dead
    finally:
        is_over.set()
        watching.join()


@pytest.mark.filterwarnings("default")  # theirs
@pytest.mark.parametrize("name", CLUSTERS)
def test_workers_share_the_sources(name: str, storage: StorageSettings, tmp_path: Path) -> None:
    """Each source is read once, by one of several workers, and the report adds up."""
    flow = collect_many.with_options(task_runner=runner(name))
    sink = {"url": f"sqlite:///{tmp_path}/records.db?timeout=60"}
    options: dict[str, Any] = {"storage": storage, "sink": sink, "spread": 2, "limits": LIMITS}
    report = asyncio.run(flow(sources(tmp_path, seconds=0.1), **options))
    assert (report.sources, report.records_new, report.failed) == (SOURCES, SOURCES, 0)
    assert len(stored(tmp_path)) == SOURCES
    read = read_by(tmp_path)
    assert all(len(each) == 1 for each in read.values())
    if name == "threads":
        assert {each for (each,) in read.values()} == {os.getpid()}
    else:
        assert len({each for (each,) in read.values()} - {os.getpid()}) == 2


@pytest.mark.filterwarnings("default")  # theirs
@pytest.mark.parametrize("name", ["dask", "ray"])
def test_group_of_a_killed_worker_is_taken_over(
    name: str, storage: StorageSettings, tmp_path: Path
) -> None:
    """The source that it held is collected when its lease has ended; none is lost, none is red."""
    flow = collect_many.with_options(task_runner=runner(name))
    sink = {"url": f"sqlite:///{tmp_path}/records.db?timeout=60"}
    options: dict[str, Any] = {
        "storage": storage, "sink": sink, "spread": 2, "concurrency": 1, "limits": LIMITS,
    }  # fmt: skip
    with killed_when(tmp_path, 8) as dead:
        report = asyncio.run(flow(sources(tmp_path, seconds=0.4), **options))
    assert dead
    assert (report.sources, report.failed) == (SOURCES, 0)
    assert stored(tmp_path) == [f"noted-{number:03}" for number in range(SOURCES)]
    again = [name for name, processes in read_by(tmp_path).items() if len(processes) > 1]
    assert again

    async def statuses() -> set[str]:
        async with new_client(storage) as client:
            found = [await client.get_watermark(f"noted-{number:03}") for number in range(SOURCES)]
        return {str(each.status) for each in found if each}

    assert asyncio.run(statuses()) == {"success"}


async def test_worker_leaves_out_what_is_outside_of_the_range_of_a_backfill(
    storage: StorageSettings, tmp_path: Path
) -> None:
    """It stores what the range has, in whichever window it comes, and counts the rest."""
    begin, day = datetime(2024, 1, 1, tzinfo=UTC), timedelta(days=1)
    parts = tuple(TimeRange(begin, begin + 2 * day).windows(day))
    [source] = sources(tmp_path, 1)
    sink, found = {"url": f"sqlite:///{tmp_path}/records.db"}, []
    for since in (begin + day, begin):
        inside = TimeRange(since, begin + 2 * day)
        job = _Elsewhere(source, sink, storage, "run", LIMITS, inside, True, parts)
        found.append(await _collect_windows("", pickled(job, "source")))
    assert [
        [(each.records_skipped, each.records_new) for each in outcomes if not isinstance(each, str)]
        for outcomes in found
    ] == [[(1, 0), (1, 0)], [(0, 1), (0, 0)]]
    assert stored(tmp_path) == ["noted-000"]


@pytest.mark.filterwarnings("default")  # theirs
@pytest.mark.parametrize("name", ["dask", "ray"])
def test_windows_of_a_killed_worker_are_read_again(
    name: str, storage: StorageSettings, tmp_path: Path
) -> None:
    """A backfill by workers of a cluster finishes every window, whichever worker dies."""
    flow = backfill.with_options(task_runner=runner(name))
    begin = datetime(2024, 1, 1, tzinfo=UTC)
    [source] = sources(tmp_path, 1, seconds=0.3)
    options: dict[str, Any] = {
        "storage": storage,
        "sink": {"url": f"sqlite:///{tmp_path}/records.db?timeout=60"},
        "workers": 2,
    }
    with killed_when(tmp_path, 5) as dead:
        report = asyncio.run(flow(source, begin, begin + timedelta(days=16), **options))
    assert dead
    assert (report.windows, report.windows_done_before) == (16, 0)
    assert len(read_by(tmp_path)["noted-000"]) >= 16
    again = asyncio.run(backfill(source, begin, begin + timedelta(days=16), **options))
    assert (again.windows_done_before, again.records_read) == (16, 0)
