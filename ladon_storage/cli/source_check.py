"""``ladon-storage source check``: the file, its secrets and its sources, each with a verdict."""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import islice
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from ladon_storage.cli.checks import Check, attempted, tell
from ladon_storage.cli.options import File
from ladon_storage.cli.output import Json, counted, log_to_notes
from ladon_storage.errors import ConfigurationError

if TYPE_CHECKING:
    from ladon_storage.project.project import Project


def source_check(
    *names: Annotated[str, Parameter(help="Names of sources in the file; by default all.")],
    offline: Annotated[
        bool, Parameter(show_default=False, help="Ask neither the storage nor a sink nor a source.")
    ] = False,
    file: File = None,
    json: Json = False,
) -> int:
    """Check the file, its secrets and its sources."""
    from ladon_storage.cli import running
    from ladon_storage.cli.choosing import name_of
    from ladon_storage.project.project import Project

    log_to_notes()
    project = Project.load(file, check_sources=False)
    chosen = [name_of(project, each) or each for each in names]
    for name in chosen:
        project.limits_of(name)  # refuses a name that is not there
    return tell(running.run(_checks(project, chosen, offline=offline)), as_json=json)


async def _checks(project: Project, names: Sequence[str], *, offline: bool) -> list[Check]:
    chosen = names or list(project.sources)
    checks = [_file(project)]
    checks.append(await attempted("storage", _storage(project, offline=offline)))
    sinks = project.sinks if not names else {project.sink_of(name) for name in names}
    checks += [
        await attempted(f"sink {each}", _sink(project, each, offline=offline)) for each in sinks
    ]
    slots = asyncio.Semaphore(4)

    async def check(name: str) -> Check:
        async with slots:
            return await attempted(f"source {name}", _source(project, name, offline=offline))

    checks += await asyncio.gather(*map(check, chosen))
    return checks


def _file(project: Project) -> Check:
    """Return what is wrong with the file as a whole."""
    found = f"{project.path}: {counted(len(project.sources), 'source')}"
    if not project.sources:
        step = "Add a table [sources.NAME]; `ladon-storage source guess URL` proposes one."
        return Check("file", "warning", found, step)
    for one, other in _of_one_id(project):
        step = "Give each source a source_id of its own."
        return Check("file", "failed", f"{found}; {one} and {other} have one source_id", step)
    if not project.sinks:
        step = "Add a table [sinks.records] with a url."
        return Check("file", "warning", f"{found}, and no sink", step)
    return Check("file", "ok", found)


def _of_one_id(project: Project) -> Iterator[tuple[str, str]]:
    """Yield the pairs of sources that share a watermark."""
    names: dict[str, str] = {}
    for name, source_id in _ids(project):
        if (first := names.setdefault(source_id, name)) != name:
            yield first, name


def _ids(project: Project) -> Iterator[tuple[str, str]]:
    """Yield the name and the id of each source that is right."""
    for name in project.sources:
        with suppress(ConfigurationError):  # reported as the source's own
            yield name, project.source(name).source_id


async def _storage(project: Project, *, offline: bool) -> Check:
    from ladon_storage.cli.choosing import settings_of
    from ladon_storage.connect import new_client

    settings = await settings_of(project)
    if not settings.url:
        text = "watermarks are kept in memory"
        return Check("storage", "warning", text, "Set [storage] url, or STORAGE_SERVICE_URL.")
    client = new_client(settings.model_copy(update={"environment": "production"}))
    if offline:
        return Check("storage", "ok", f"{settings.url}, not asked")
    async with client:
        await client.health_check()
        for _, source_id in islice(_ids(project), 1):
            await client.get_watermark(source_id)  # health asks for no token
    return Check("storage", "ok", f"{settings.url} is healthy")


async def _sink(project: Project, name: str, *, offline: bool) -> Check:
    from ladon_storage.cli.sink_check import check_place
    from ladon_storage.collection.credentials import named_secret

    project.sink(name)
    table = project.sinks[name]
    secrets = [*filter(None, [table.url_secret]), *(table.secrets or {}).values()]
    values = {each: await named_secret(each, f"of the sink {name!r}") for each in secrets}
    address = values[table.url_secret] if table.url_secret else table.url
    if address and not offline:
        await check_place(address)
    if secrets:
        text = "its secret is set" if len(secrets) == 1 else "its secrets are set"
        return Check(f"sink {name}", "ok", text)
    return Check(f"sink {name}", "ok", table.url or table.kind or "")


async def _source(project: Project, name: str, *, offline: bool) -> Check:
    from ladon_storage.probing import try_source

    source = project.source(name)
    if project.sinks:
        project.sink_of(name)
    if offline:
        return _deployable(name, f"{project.sources[name].kind}, not asked")
    trial = await try_source(source, records=0, seconds=15)
    what, retry = f"source {name}", f"ladon-storage source try {shlex.quote(name)}"
    if trial.error is not None:
        return Check(what, "failed", trial.error, retry)
    usable = trial.delivered - trial.rejected
    text = f"usable of the first pages: {usable:,} of {counted(trial.delivered, 'item')}"
    if not trial.ok:
        reason = next(iter(trial.reasons), "nothing was delivered")
        return Check(what, "failed", f"{text}: {reason}", retry)
    if trial.rejected:
        return Check(what, "warning", text, retry)
    return _deployable(name, text)


def _deployable(name: str, text: str) -> Check:
    """Return the check of a source that is right, with a warning where it cannot be deployed."""
    from ladon_storage.project.tables import NOT_DEPLOYED

    if (found := next((each for each in name if each in NOT_DEPLOYED), None)) is None:
        return Check(f"source {name}", "ok", text)
    text = f"{text}; Prefect takes no deployment of this name, because of {found!r}"
    step = f"To deploy it, rename it, and set its source_id to {name!r} to keep its watermark."
    return Check(f"source {name}", "warning", text, step)
