"""The Prefect deployments that a ``ladon.toml`` describes."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from zlib import crc32

from prefect.client.schemas.actions import DeploymentScheduleCreate
from prefect.client.schemas.objects import ConcurrencyLimitConfig
from prefect.client.schemas.schedules import CronSchedule, IntervalSchedule
from prefect.deployments.runner import RunnerDeployment
from prefect.flows import Flow
from prefect.types.entrypoint import EntrypointType
from yarl import URL

from ladon_storage import flows
from ladon_storage.errors import ConfigurationError
from ladon_storage.flows.collect_many import only_sink
from ladon_storage.flows.deployed import fit_form
from ladon_storage.project.project import Project
from ladon_storage.project.tables import NOT_DEPLOYED
from ladon_storage.settings import VARIABLES, StorageSettings
from ladon_storage.sources import SOURCES

TAG = "ladon"

_ANCHOR = datetime(2020, 1, 1, tzinfo=UTC)
_FRESHNESS_CRON = "53 * * * *"
_WEEKLY: dict[tuple[str, str | None], float | None] = {
    ("kev", None): None,
    ("misp", "restsearch"): 30,
    ("nvd", None): 30,
    ("otx", None): 30,
    ("taxii", None): 30,
    ("threatfox", "export"): None,
    ("threatfox", "api"): 7,
    ("urlhaus", "recent"): None,
}
"""The kinds that are read again weekly, by the source's ``via`` if it has one, and the days;
``None``: all that there is."""

_FORM_FIELDS = {"url", "table", "keep"}
"""The fields of a sink in the form of a shipped kind."""


def deployments(project: Project, names: Sequence[str]) -> list[RunnerDeployment]:
    """Return the deployments of sources.

    Raises:
        ConfigurationError: A source has no sink, or is wrong.
    """
    found = []
    for name in names:
        found.append(_collection(project, name))
        found += _reconciliation(project, name)
    return found


def freshness(project: Project) -> list[RunnerDeployment]:
    """Return the hourly check of the sources that have a limit, if there are any."""
    limits = [
        {
            "source_id": project.source(name).source_id,
            "max_age_hours": table.freshness.max_age_hours,
        }
        for name, table in project.sources.items()
        if table.freshness is not None
    ]
    if not limits:
        return []
    return [
        _deployed(
            project,
            flows.check_freshness,
            project.path.stem,
            f"Fails where a watermark is older than {project.path.name} allows.",
            {"sources": limits, **_storage(project)},
            {"cron": _FRESHNESS_CRON, "timezone": "UTC"},
        )
    ]


def own(project: Project) -> list[str]:
    """Return the sources that have deployments of their own, unless their names are given."""
    if not _collects_many(project):
        return list(project.sources)
    return [name for name, table in project.sources.items() if table.schedule is not None]


def read_again(project: Project) -> list[RunnerDeployment]:
    """Return the second readings that the file sets for sources that ``[collect_many]`` collects.

    Raises:
        ConfigurationError: A source has no sink, or is wrong.
    """
    others = project.sources.keys() - set(own(project))
    return [each for name in sorted(others) for each in _reconciliation(project, name)]


def sinks(project: Project) -> dict[str, Any]:
    """Return the address of the sink of each source of a file, by the source's id.

    Raises:
        ConfigurationError: A source has no sink.
    """
    return {
        str(table.fields.get("source_id") or name): _sink(project, name).get("url")
        for name, table in project.sources.items()
    }


def collected_twice(project: Project) -> list[str]:
    """Return the sources whose own schedules run beside that of ``[collect_many]``."""
    if not _collects_many(project):
        return []
    return [
        name for name, table in project.sources.items() if table.schedule and table.schedule.active
    ]


def _collects_many(project: Project) -> bool:
    many = project.collect_many
    return bool(many and many.schedule and many.schedule.active)


def collect_many(project: Project, *, pool: str | None = None) -> list[RunnerDeployment]:
    """Return the deployment of ``[collect_many]``, if the file has that table.

    Args:
        project: The file.
        pool: The work pool; ``None``: the runs are of this process.

    Raises:
        ConfigurationError: The sources have no sink in common.
    """
    table = project.collect_many
    if table is None:
        return []
    try:
        only_sink(project)
    except ConfigurationError as error:
        problem = f"{project.path}: [collect_many] cannot be deployed. {error}"
        raise ConfigurationError(problem) from None
    # It reads the file when it runs, so a change of a source needs no further deployment.
    parameters: dict[str, Any] = {"file": str(project.path.absolute())}
    parameters |= table.model_dump(include={"spread", "concurrency"}, exclude_none=True)
    made = _deployed(
        project,
        flows.collect_many,
        project.path.stem,
        f"Collects all sources of {project.path.name} in one run.",
        parameters,
        table.schedule.prefect() if table.schedule else None,
    )
    if pool is not None and (table.spread or 1) > 1:
        # Its parts are runs of the same deployment, and would wait for the one that starts them.
        made.concurrency_limit = made.concurrency_options = None
    return [made]


def _collection(project: Project, name: str) -> RunnerDeployment:
    table = project.sources[name]
    sink_name = project.sink_of(name)
    sink = _sink(project, name)
    has_form = table.kind in SOURCES.shipped and sink.keys() <= _FORM_FIELDS
    flow: Flow[..., Any] = getattr(flows, f"collect_{table.kind}") if has_form else flows.collect
    parameters = {"source": project.source_fields(name), "sink": sink, **_storage(project)}
    if limits := project.limits_of(name).model_dump(mode="json", exclude_unset=True):
        parameters["limits"] = limits
    if table.when_busy != "fail":
        parameters["when_busy"] = table.when_busy
    return _deployed(
        project,
        flow,
        name,
        f"Collects {name} of {project.path.name} into {sink_name}.",
        parameters,
        table.schedule.prefect() if table.schedule else None,
    )


def _reconciliation(project: Project, name: str) -> list[RunnerDeployment]:
    """Return the weekly second reading of a source, if its kind or the file wants one."""
    table = project.sources[name]
    key = (table.kind, getattr(project.source(name), "via", None))
    switch: dict[str, Any] = {}
    if table.reconcile is None:
        if key not in _WEEKLY or table.schedule is None:
            return []
        days, cron = _WEEKLY[key], None
        switch = table.schedule.model_dump(include={"active"}, exclude_unset=True)
    elif table.reconcile.active:
        days, cron = table.reconcile.last_days, table.reconcile.cron
        if days is None and "last_days" not in table.reconcile.model_fields_set:
            days = _WEEKLY.get(key)
    else:
        return []
    parameters: dict[str, Any] = {
        "source": project.source_fields(name),
        "sink": _sink(project, name),
        **_storage(project),
    }
    if days is not None:
        parameters["last_days"] = days
    if limits := project.limits_of(name).model_dump(mode="json", exclude_unset=True):
        parameters["limits"] = limits
    read = "all that the source has" if days is None else f"the last {days:g} days"
    return [
        _deployed(
            project,
            flows.reconcile,
            name,
            f"Reads {read} of {name} of {project.path.name} again, and stores what was missed.",
            parameters,
            {"cron": cron or _weekly_cron(name), "timezone": "UTC", **switch},
        )
    ]


def _weekly_cron(name: str) -> str:
    """Return a time of Sunday night that is always the same for a name, and differs by names."""
    minutes = crc32(name.encode()) % 180
    return f"{minutes % 60} {3 + minutes // 60} * * 0"


def _deployed(
    project: Project,
    flow: Flow[..., Any],
    name: str,
    description: str,
    parameters: dict[str, Any],
    schedule: dict[str, Any] | None,
) -> RunnerDeployment:
    _check_name(project, name)
    made = RunnerDeployment.from_flow(
        flow,
        name=name,
        description=description,
        tags=[TAG, project.path.name],
        parameters=parameters,
        schedules=[_schedule(schedule, name)] if schedule else [],
        concurrency_limit=ConcurrencyLimitConfig(limit=1, collision_strategy="ENQUEUE"),
        # The package is installed where runs are; no folder is.
        entrypoint_type=EntrypointType.MODULE_PATH,
    )
    fit_form(made, flow)
    return made


def _storage(project: Project) -> dict[str, Any]:
    """Return the parameter with the file's storage; none where a run has to read its secrets.

    It is given all the same: its form then requires it, and a run that leaves it out is no form.
    """
    storage = project.storage
    if storage.url is None or storage.token or storage.password:
        return {"storage": None}
    given = storage.model_dump(mode="json", exclude_unset=True, exclude={"circuit_url_secret"})
    return {"storage": given}


async def storage_variables(project: Project) -> dict[str, str]:
    """Return the variables in which runs have the file's storage where it has secrets.

    Raises:
        ConfigurationError: A secret is not set, the settings make no sense together, or there are
            some that no variable can have.
    """
    table = project.storage
    if not (table.token or table.password or table.circuit_url_secret):
        return {}
    settings = await project.storage_settings()
    if settings is None or not settings.url:
        return {}
    url = settings.url
    if settings.username:
        password = settings.password.get_secret_value() if settings.password else None
        url = str(URL(url).with_user(settings.username).with_password(password))
    found = {"url": url, "token": "", "environment": settings.environment}
    for name in ("token", "circuit_url"):
        if (secret := getattr(settings, name)) is not None:
            found[name] = secret.get_secret_value()
    variables = {VARIABLES[name]: value for name, value in found.items()}
    given = StorageSettings.from_environment(variables)
    fields = StorageSettings.model_fields
    left = [name for name in fields if getattr(given, name) != getattr(settings, name)]
    if left:
        raise ConfigurationError(
            f"{project.path}: beside a secret, [storage] {' and '.join(left)} cannot be given to "
            "runs."
        )
    return variables


def _check_name(project: Project, name: str) -> None:
    """Refuse a name that Prefect refuses, before the first deployment is made."""
    found = next((each for each in name if each in NOT_DEPLOYED), None)
    if found is None:
        return
    if name in project.sources:
        step = f"Rename the source, and set its source_id to {name!r} to keep its watermark."
    else:
        step = "Rename the file."
    raise ConfigurationError(
        f"{project.path}: Prefect takes no deployment called {name!r}, because of {found!r}. {step}"
    )


def _sink(project: Project, name: str) -> dict[str, Any]:
    """Return the fields of a source's sink."""
    return project.sinks[project.sink_of(name)].fields


def _schedule(described: dict[str, Any], name: str) -> DeploymentScheduleCreate:
    switch = {"active": described.pop("active")} if "active" in described else {}
    kind = CronSchedule if "cron" in described else IntervalSchedule
    if "interval" in described and "anchor_date" not in described:
        # Prefect would count from now, so that each registration changed the schedule.
        seconds = crc32(name.encode()) % max(1, int(described["interval"]))
        described["anchor_date"] = _ANCHOR + timedelta(seconds=seconds)
    return DeploymentScheduleCreate(schedule=kind(**described), **switch)
