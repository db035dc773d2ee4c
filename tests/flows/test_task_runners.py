"""The tasks in a stranger's flow, on the workers of Dask and Ray where they are installed."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
from prefect import flow, unmapped

from ladon_storage.blocks import StorageService
from ladon_storage.models import Watermark
from ladon_storage.tasks import read_watermark, write_success_watermark
from ladon_storage.testing.doubles import at
from tests.flaky import Flaky

RUNNERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "dask": (
        "prefect_dask",
        "DaskTaskRunner",
        {"cluster_kwargs": {"n_workers": 1, "processes": False, "dashboard_address": None}},
    ),
    "ray": (
        "prefect_ray",
        "RayTaskRunner",
        {"init_kwargs": {"num_cpus": 1, "include_dashboard": False}},
    ),
}
SOURCES = [f"source-{number}" for number in range(4)]
INSTANTS = [at(number) for number in range(4)]


@pytest.mark.filterwarnings("default")  # theirs
@pytest.mark.parametrize("name", RUNNERS)
def test_tasks_run_on_workers_of(name: str, service: Flaky) -> None:
    """Mapped over sources, each task has the watermark of its own source, on whatever loop."""
    module, runner, options = RUNNERS[name]
    pytest.importorskip(module, reason=f"{module.replace('_', '-')} is not installed")
    task_runner = getattr(importlib.import_module(module), runner)(**options)
    storage = StorageService(url=service.url)

    @flow(task_runner=task_runner)
    def stranger() -> list[Watermark | None]:
        written: Any = write_success_watermark.map(SOURCES, INSTANTS, unmapped(storage))
        written.wait()
        read: Any = read_watermark.map(SOURCES, unmapped(storage))
        found: list[Watermark | None] = read.result()
        return found

    found = [each for each in stranger() if each]
    assert [each.source_id for each in found] == SOURCES
    assert [each.last_successful_timestamp for each in found] == INSTANTS
