"""The registration of deployments with Prefect, and what that changes of the existing ones.

- A deployment that the file describes no more is reported and stays: its runs and its logs are
  deleted with it.
- One of a source that another deployment of the file collects now loses its schedules, or the
  source would be collected twice.
"""

from __future__ import annotations

import shlex
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

from prefect import get_client
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterTags
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.schedules import CronSchedule
from prefect.deployments.runner import RunnerDeployment
from prefect.exceptions import ObjectNotFound
from pydantic_core import to_jsonable_python

from ladon_storage import flows
from ladon_storage.cli.deployments import TAG
from ladon_storage.errors import ConfigurationError
from ladon_storage.flows.deployed import form_of
from ladon_storage.flows.serve import keep_switches

KEEP, REMOVED, UNSCHEDULE = "keep", "removed", "unschedule"
ANYWHERE = "*"
"""In place of a work pool's name, any one and none."""


class Change(NamedTuple):
    """The change of one deployment."""

    deployment: str
    change: str
    schedule: str
    because: str


async def changes(
    made: Sequence[RunnerDeployment],
    *,
    pool: str | None = None,
    file: Path | None = None,
    sinks: Mapping[str, Any] | None = None,
) -> list[Change]:
    """Return the changes by registering deployments; keep which of them are paused.

    Args:
        made: The deployments.
        pool: The work pool that runs them; ``None``: this process does; or `ANYWHERE`.
        file: Their file, whose other deployments are reported as removed.
        sinks: The address of each source's sink, by the source's id; ``made`` collects all of them.
    """
    found = []
    async with get_client() as client:
        for each in made:
            try:
                existing = await client.read_deployment_by_name(each.full_name)
            except ObjectNotFound:
                found.append(Change(each.full_name, "create", _schedules(each), "it is not there"))
                continue
            keep_switches(each, existing)
            differences = _differences(each, existing, pool)
            change = "update" if differences else KEEP
            found.append(Change(each.full_name, change, _schedules(each), ", ".join(differences)))
        if file is not None:
            found += await _others(client, file, made, sinks or {})
    return found


async def _others(
    client: PrefectClient, file: Path, made: Sequence[RunnerDeployment], sinks: Mapping[str, Any]
) -> list[Change]:
    """Return the deployments of a file that it describes no more."""
    wanted = {each.full_name for each in made}
    due = _due(made, sinks)
    collects_all = due.keys() == sinks.keys()
    of_file = DeploymentFilter(tags=DeploymentFilterTags(all_=[TAG, file.name]))
    names: dict[UUID, str] = {}
    found: list[Change] = []
    while page := await client.read_deployments(deployment_filter=of_file, offset=len(found)):
        for each in page:
            if each.flow_id not in names:
                names[each.flow_id] = (await client.read_flow(each.flow_id)).name
            full_name = f"{names[each.flow_id]}/{each.name}"
            command = f"prefect deployment delete {shlex.quote(full_name)}"
            because = f"not in the file; it stays until `{command}`"
            change, schedules = REMOVED, _schedules(each)
            if each.schedules and _collects(
                names[each.flow_id], each, file, due, collects_all=collects_all
            ):
                change, schedules = UNSCHEDULE, "none"
                because = f"another deployment of the file collects it now; {because}"
            found.append(Change(full_name, change, schedules, because))
    return [each for each in found if each.deployment not in wanted]


def _due(made: Sequence[RunnerDeployment], sinks: Mapping[str, Any]) -> dict[str, Any]:
    """Return the sinks of the sources that a schedule of these deployments collects."""
    named: set[str] = set()
    for each in made:
        is_due = any(one.active is not False for one in each.schedules or []) and not each.paused
        if is_due and each.flow_name == flows.collect_many.name:
            return dict(sinks)
        if is_due and (each.flow_name or "").startswith(flows.collect.name):
            named.add(_source_id(each))
    return {source_id: url for source_id, url in sinks.items() if source_id in named}


def _source_id(each: RunnerDeployment | DeploymentResponse) -> str:
    source = each.parameters.get("source")
    named = source.get("source_id") if isinstance(source, dict) else None
    return str(named or each.name)


def _collects(
    flow: str,
    existing: DeploymentResponse,
    file: Path,
    sinks: Mapping[str, Any],
    *,
    collects_all: bool,
) -> bool:
    """Return whether a deployment collects the sources of the file, or one into the same sink.

    Another file of the same name may have a source of the same name. No source counts that no
    other schedule collects: its own would be the last.
    """
    if flow == flows.collect_many.name:
        return collects_all and existing.parameters.get("file") == str(file.absolute())
    source, sink = (existing.parameters.get(name) for name in ("source", "sink"))
    if not (flow.startswith(flows.collect.name) and source and isinstance(sink, dict)):
        return False
    url = sink.get("url")
    return url is not None and sinks.get(_source_id(existing)) == url


def _differences(
    each: RunnerDeployment, existing: DeploymentResponse, pool: str | None
) -> list[str]:
    pairs = {
        "parameters": (
            to_jsonable_python(each.parameters),
            to_jsonable_python(existing.parameters),
        ),
        "schedule": (_switched(each), _switched(existing)),
        "description": (each.description, existing.description),
        "tags": (sorted(each.tags), sorted(existing.tags)),
        "form": (to_jsonable_python(form_of(each)), existing.parameter_openapi_schema),
        "entrypoint": (each.entrypoint, existing.entrypoint),
        "work pool": (
            existing.work_pool_name if pool == ANYWHERE else pool,
            existing.work_pool_name,
        ),
    }
    found = [name for name, (wanted, there) in pairs.items() if wanted != there]
    file = existing.parameters.get("file")
    if file is not None and file != each.parameters.get("file"):
        found.append(f"it collected the sources of {file}")
    return found


def _switched(each: RunnerDeployment | DeploymentResponse) -> list[tuple[str, bool]]:
    """Return the schedules of a deployment, each with whether it is active."""
    return sorted((str(one.schedule), one.active is not False) for one in each.schedules or [])


def _schedules(each: RunnerDeployment | DeploymentResponse) -> str:
    texts = []
    for one in each.schedules or []:
        if isinstance(one.schedule, CronSchedule):
            text = one.schedule.cron
        else:
            text = f"every {getattr(one.schedule, 'interval', '')}"
        texts.append(f"{text} (not active)" if one.active is False else text)
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


async def unschedule(names: Collection[str]) -> None:
    """Delete the schedules of deployments, by their full names."""
    async with get_client() as client:
        for name in names:
            with suppress(ObjectNotFound):  # it was deleted meanwhile
                existing = await client.read_deployment_by_name(name)
                for each in existing.schedules:
                    await client.delete_deployment_schedule(existing.id, each.id)
