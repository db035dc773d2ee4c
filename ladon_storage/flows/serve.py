"""Serve the deployments of ``prefect.yaml``, schedules included, without a work pool.

- ``prefect.yaml`` is the one table of deployments, for this command and for ``prefect deploy``.
  Where the package is installed without a checkout, it is the working directory's.
- A deployment that a user paused or resumed in the UI stays so: the file gives the first state.
- Meanwhile, runs whose process is gone are marked as crashed.
- Missed runs are not made up: the next one collects all new records, and ten at once would only
  request them from the source ten times.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml
from prefect import get_client
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.actions import DeploymentScheduleCreate
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterId,
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import ConcurrencyLimitConfig, StateType
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.schedules import CronSchedule, IntervalSchedule
from prefect.deployments.runner import RunnerDeployment
from prefect.exceptions import ObjectNotFound
from prefect.runner import Runner

from ladon_storage.errors import ConfigurationError
from ladon_storage.flows.deployed import require_own_places
from ladon_storage.flows.zombies import frequency, keep_sweeping, remove_automation

_TABLE = "prefect.yaml"
_CHECKOUT = Path(__file__).resolve().parent.parent.parent
PROJECT = _CHECKOUT if (_CHECKOUT / _TABLE).is_file() else Path()

DEPLOYMENTS_FILE = PROJECT / _TABLE


def deployments(table: Path = DEPLOYMENTS_FILE) -> list[RunnerDeployment]:
    """Return the deployments that ``table`` describes.

    Raises:
        ConfigurationError: There is no such file.
    """
    if not table.is_file():
        raise ConfigurationError(
            f"There is no {table}. Name another file with --table, or serve the sources of "
            "ladon.toml with `ladon-storage deploy --serve`."
        )
    described = yaml.safe_load(table.read_text(encoding="utf-8"))["deployments"]
    return [_deployment(each) for each in described]


def _deployment(described: dict[str, Any]) -> RunnerDeployment:
    # Imported once for all: Prefect itself runs the file again for each deployment.
    path, _, name = described["entrypoint"].replace("/", ".").replace(".py:", ":").partition(":")
    if not name:  # a flow of an installed package, such as ladon_storage.flows.collect.collect_kev
        path, _, name = path.rpartition(".")
    module = import_module(path)
    deployment = RunnerDeployment.from_flow(
        getattr(module, name),
        name=described["name"],
        description=described["description"],
        tags=described["tags"],
        parameters=described.get("parameters", {}),
        schedules=[_schedule(each) for each in described.get("schedules", [])],
        paused=described.get("paused", False),
        concurrency_limit=ConcurrencyLimitConfig(**described["concurrency_limit"]),
    )
    # Relative to the project, whatever folder this is called from.
    deployment.entrypoint = described["entrypoint"]
    require_own_places(deployment)
    return deployment


def _schedule(described: dict[str, Any]) -> DeploymentScheduleCreate:
    kind = CronSchedule if "cron" in described else IntervalSchedule
    return DeploymentScheduleCreate(schedule=kind(**described), active=True)


async def serve(table: Path) -> None:
    """Register the deployments of ``table``, and run the due ones until the process is ended."""
    os.chdir(PROJECT)  # what entrypoints are relative to, here and in each run
    await serve_deployments(deployments(table))


async def serve_deployments(served: list[RunnerDeployment]) -> None:
    """Register deployments, and run the due ones until the process is ended."""
    async with get_client() as client:
        for each in served:
            try:
                existing = await client.read_deployment_by_name(each.full_name)
            except ObjectNotFound:
                continue
            keep_switches(each, existing)
            await _forget_missed(client, existing)
    await remove_automation()
    # Paused at the end, a deployment would stay paused until an operator resumes it.
    runner = Runner(pause_on_shutdown=False)
    for each in served:
        await runner.aadd_deployment(each)
    await _until_signalled(runner)


async def _until_signalled(runner: Runner) -> None:
    """Run due deployments; on SIGINT or SIGTERM let the runs write their failures, and return."""
    stop = asyncio.Event()
    running = asyncio.create_task(runner.start())
    sweeping = asyncio.create_task(keep_sweeping(frequency()))
    stopping = asyncio.create_task(stop.wait())
    await asyncio.sleep(0)  # it has set a handler by now, which leaves without its runs
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    print("Serving. Ctrl-C ends it.", flush=True)  # noqa: T201 - a command
    await asyncio.wait({running, stopping}, return_when=asyncio.FIRST_COMPLETED)
    if stopping.done() and runner.started:
        await runner.astop()
    stopping.cancel()
    sweeping.cancel()
    running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running


def keep_switches(served: RunnerDeployment, existing: DeploymentResponse) -> None:
    """Keep the deployments that a user paused or resumed in that state."""
    served.paused = existing.paused
    active = {str(each.schedule): each.active for each in existing.schedules}
    for schedule in served.schedules or []:
        schedule.active = active.get(str(schedule.schedule), schedule.active)


async def _forget_missed(client: PrefectClient, existing: DeploymentResponse) -> None:
    """Delete scheduled runs that have not started; registering creates the future ones again.

    Prefect itself would keep late runs, and runs that wait for another one's slot.
    """
    waiting = FlowRunFilter(
        state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.SCHEDULED]))
    )
    of_it = DeploymentFilter(id=DeploymentFilterId(any_=[existing.id]))
    while True:  # an answer is a page
        runs = await client.read_flow_runs(deployment_filter=of_it, flow_run_filter=waiting)
        missed = [run for run in runs if run.auto_scheduled and not run.run_count]
        if not missed:
            return
        for run in missed:
            await client.delete_flow_run(run.id)
