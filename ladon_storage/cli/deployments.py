"""The Prefect deployments that a ``ladon.toml`` describes, compared with the existing ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from prefect import get_client
from prefect.client.schemas.actions import DeploymentScheduleCreate
from prefect.client.schemas.objects import ConcurrencyLimitConfig
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.schedules import CronSchedule, IntervalSchedule
from prefect.deployments.runner import RunnerDeployment
from prefect.exceptions import ObjectNotFound
from prefect.flows import Flow
from prefect.types.entrypoint import EntrypointType

from ladon_storage import flows
from ladon_storage.errors import ConfigurationError
from ladon_storage.flows.serve import keep_switches, serve_deployments
from ladon_storage.project.project import Project
from ladon_storage.project.reading import anchored_address
from ladon_storage.project.tables import SinkTable
from ladon_storage.sources import SOURCES

TAG = "ladon"
_FORM_FIELDS = {"url", "table", "keep"}
"""The fields of a sink in the form of a shipped kind."""


class Change(NamedTuple):
    """The change of one deployment."""

    deployment: str
    change: str
    schedule: str
    because: str


def deployments(project: Project, names: Sequence[str]) -> list[RunnerDeployment]:
    """Return the deployments of sources.

    Raises:
        ConfigurationError: A source has no sink, or is wrong.
    """
    return [_deployment(project, name) for name in names]


def _deployment(project: Project, name: str) -> RunnerDeployment:
    table = project.sources[name]
    folder = project.path.absolute().parent
    sink_name = project.sink_of(name)
    sink = _absolute(project.sinks[sink_name], folder)
    has_form = table.kind in SOURCES.shipped and sink.keys() <= _FORM_FIELDS
    flow: Flow[..., Any] = getattr(flows, f"collect_{table.kind}") if has_form else flows.collect
    parameters: dict[str, Any] = {"source": project.source_fields(name), "sink": sink}
    if limits := project.limits_of(name).model_dump(mode="json", exclude_unset=True):
        parameters["limits"] = limits
    storage = project.storage
    if storage.url is not None and not (storage.token or storage.password):
        given = storage.model_dump(mode="json", exclude_unset=True, exclude={"circuit_url_secret"})
        parameters["storage"] = {**given, "url": anchored_address(storage.url, folder)}
    schedule = table.schedule.prefect() if table.schedule else None
    return RunnerDeployment.from_flow(
        flow,
        name=name,
        description=f"Collects {name} of {project.path.name} into {sink_name}.",
        tags=[TAG],
        parameters=parameters,
        schedules=[_schedule(schedule)] if schedule else [],
        concurrency_limit=ConcurrencyLimitConfig(limit=1, collision_strategy="ENQUEUE"),
        # The package is installed where runs are; no folder is.
        entrypoint_type=EntrypointType.MODULE_PATH,
    )


def _absolute(table: SinkTable, folder: Path) -> dict[str, Any]:
    fields = dict(table.fields)
    if isinstance(fields.get("url"), str):
        fields["url"] = anchored_address(fields["url"], folder)
    return fields


def _schedule(described: dict[str, Any]) -> DeploymentScheduleCreate:
    active = described.pop("active", True)
    kind = CronSchedule if "cron" in described else IntervalSchedule
    return DeploymentScheduleCreate(schedule=kind(**described), active=active)


async def changes(made: Sequence[RunnerDeployment]) -> list[Change]:
    """Return the changes by registering deployments; keep which of them are paused."""
    found = []
    async with get_client() as client:
        for each in made:
            try:
                existing = await client.read_deployment_by_name(each.full_name)
            except ObjectNotFound:
                found.append(Change(each.full_name, "create", _schedules(each), "it is not there"))
                continue
            differences = _differences(each, existing)
            keep_switches(each, existing)
            change = "update" if differences else "keep"
            found.append(Change(each.full_name, change, _schedules(each), ", ".join(differences)))
    return found


def _differences(each: RunnerDeployment, existing: DeploymentResponse) -> list[str]:
    schedules = sorted(str(one.schedule) for one in each.schedules or [])
    pairs = {
        "parameters": (each.parameters, existing.parameters),
        "schedule": (schedules, sorted(str(one.schedule) for one in existing.schedules)),
        "description": (each.description, existing.description),
        "tags": (sorted(each.tags), sorted(existing.tags)),
        "entrypoint": (each.entrypoint, existing.entrypoint),
    }
    return [name for name, (wanted, there) in pairs.items() if wanted != there]


def _schedules(each: RunnerDeployment) -> str:
    schedules = [one.schedule for one in each.schedules or []]
    texts = [
        one.cron if isinstance(one, CronSchedule) else f"every {getattr(one, 'interval', '')}"
        for one in schedules
    ]
    return ", ".join(texts) or "none"


async def apply(made: Sequence[RunnerDeployment], pool: str) -> None:
    """Register deployments with a work pool.

    Raises:
        ConfigurationError: There is no such pool.
    """
    async with get_client() as client:
        try:
            await client.read_work_pool(pool)
        except ObjectNotFound:
            raise ConfigurationError(
                f"There is no work pool {pool!r}; create it with "
                f"`prefect work-pool create {pool} --type process`."
            ) from None
    for each in made:
        await each.aapply(work_pool_name=pool)


async def serve(made: list[RunnerDeployment]) -> None:
    """Register deployments, and run the due ones until a signal."""
    await serve_deployments(made)
