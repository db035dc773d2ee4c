"""Serve the deployments of ``prefect.yaml``, schedules included, without a work pool.

- ``prefect.yaml`` is the one table of deployments, for this command and for ``prefect deploy``.
  Where the package is installed without a checkout, it is the working directory's.
- A deployment that a user paused or resumed in the UI stays so, and so does a schedule for which
  the file does not say whether it is active.
- A deployment that was on a work pool leaves it: its workers would run it too.
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
from prefect.client.schemas.actions import DeploymentScheduleCreate, DeploymentUpdate
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
from prefect.flows import Flow
from prefect.runner import Runner
from pydantic import ValidationError

from ladon_storage.errors import ConfigurationError, told
from ladon_storage.flows.deployed import require_own_places
from ladon_storage.flows.zombies import frequency, keep_sweeping, remove_automation
from ladon_storage.registry import add_to_path, nearest, sentence

_TABLE = "prefect.yaml"
_CHECKOUT = Path(__file__).resolve().parent.parent.parent
PROJECT = _CHECKOUT if (_CHECKOUT / _TABLE).is_file() else Path()

DEPLOYMENTS_FILE = PROJECT / _TABLE


def deployments(table: Path = DEPLOYMENTS_FILE) -> list[RunnerDeployment]:
    """Return the deployments that ``table`` describes.

    Raises:
        ConfigurationError: There is no such file, or a deployment in it is wrong.
    """
    if not table.exists():
        raise ConfigurationError(
            f"There is no {table}. Name another file with --table, or serve the sources of "
            "ladon.toml with `ladon-storage deploy --serve`."
        )
    add_to_path(PROJECT.absolute())  # as a run finds what an entrypoint names
    return [_deployment(table, each) for each in _listed(table)]


def _listed(table: Path) -> list[dict[str, Any]]:
    """Return the deployments as a table describes them.

    Raises:
        ConfigurationError: It cannot be read, or has no list of deployments.
    """
    try:
        document = yaml.safe_load(table.read_text(encoding="utf-8"))
    except OSError as error:
        problem = f"cannot be read ({error.strerror})"
    except UnicodeDecodeError:
        problem = "is not UTF-8. Save it as UTF-8"
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = f"is not YAML{f' at line {mark.line + 1}' if mark else ''}"
    else:
        found = document.get("deployments") if isinstance(document, dict) else None
        if isinstance(found, list) and found and all(isinstance(each, dict) for each in found):
            return found
        problem = "has no list of deployments. Give each a name and an entrypoint"
    raise ConfigurationError(f"The file {str(table)!r} {problem}.")


def _deployment(table: Path, described: dict[str, Any]) -> RunnerDeployment:
    name, entrypoint = described.get("name"), described.get("entrypoint")
    where = f"The deployment {str(name)[:100]!r} of {table}"
    if not (isinstance(name, str) and name and isinstance(entrypoint, str)):
        raise ConfigurationError(f"{where} needs a name and an entrypoint; give it both.")
    flow = _flow_at(entrypoint, where)
    limit = described.get("concurrency_limit")
    try:
        deployment = RunnerDeployment.from_flow(
            flow,
            name=name,
            description=described.get("description"),
            tags=described.get("tags") or [],
            parameters=described.get("parameters") or {},
            schedules=[_schedule(each) for each in described.get("schedules") or []],
            paused=described.get("paused", False),
            concurrency_limit=ConcurrencyLimitConfig(**limit) if isinstance(limit, dict) else limit,
        )
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        said = f"{'.'.join(map(str, first['loc']))}: {first['msg'].removeprefix('Value error, ')}"
        raise ConfigurationError(f"{where} cannot be made: {said}.") from error
    except (TypeError, ValueError, AttributeError) as error:
        raise ConfigurationError(
            f"{where} cannot be made: a key of it has a value of another form ({error})."
        ) from error
    fields = flow.parameters.properties
    if unknown := sorted(map(str, deployment.parameters.keys() - fields.keys())):
        hint = nearest(unknown[0], fields) or f"; there are {', '.join(fields)}"
        raise ConfigurationError(
            sentence(f"{where}: the flow has no parameter {unknown[0][:100]!r}{hint}")
        )
    # Relative to the project, whatever folder this is called from.
    deployment.entrypoint = entrypoint
    require_own_places(deployment)
    return deployment


def _flow_at(entrypoint: str, where: str) -> Flow[..., Any]:
    """Return the flow of an entrypoint.

    It is imported once for all: Prefect itself runs the file again for each deployment.

    Raises:
        ConfigurationError: There is no flow there.
    """
    path, _, name = entrypoint.replace("/", ".").replace(".py:", ":").partition(":")
    if not name:  # a flow of an installed package, such as ladon_storage.flows.collect.collect_kev
        path, _, name = path.rpartition(".")
    try:
        module = import_module(path)
    except Exception as error:  # of a user's module
        said = f"{type(error).__name__}: {told(error)}".rstrip(".")
        raise ConfigurationError(
            f"{where} cannot be made: its entrypoint {entrypoint!r} could not be imported "
            f"({said}). Write it as file.py:flow, from the folder {PROJECT.absolute()}."
        ) from error
    found = getattr(module, name, None)
    if not isinstance(found, Flow):
        names = [each for each, value in vars(module).items() if isinstance(value, Flow)]
        hint = nearest(name, names) or (f"; there are {', '.join(names)}" if names else "")
        raise ConfigurationError(sentence(f"{where}: {entrypoint!r} is no flow{hint}"))
    return found


def _schedule(described: dict[str, Any]) -> DeploymentScheduleCreate:
    switch = {name: value for name, value in described.items() if name == "active"}
    rhythm = {name: value for name, value in described.items() if name != "active"}
    kind = CronSchedule if "cron" in described else IntervalSchedule
    return DeploymentScheduleCreate(schedule=kind(**rhythm), **switch)


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
            if existing.work_pool_name is not None:  # registering without one would keep it
                await client.update_deployment(existing.id, DeploymentUpdate(work_pool_name=None))
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
    """Keep what a user paused or resumed so, but for schedules that the file switches itself."""
    served.paused = existing.paused
    active = {str(each.schedule): each.active for each in existing.schedules}
    was_active = not active or any(active.values())  # also where its rhythm is another now
    for schedule in served.schedules or []:
        if "active" not in schedule.model_fields_set:
            schedule.active = active.get(str(schedule.schedule), was_active)


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
