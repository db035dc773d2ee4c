"""The check that sources are collected often enough: its failed run is the alert."""

from __future__ import annotations

from prefect.artifacts import acreate_table_artifact

from ladon_storage.blocks import StorageService
from ladon_storage.collection import freshness
from ladon_storage.collection.credentials import secret_lookup
from ladon_storage.collection.freshness import Age, Freshness, Verdict
from ladon_storage.collection.protocols import utc_now
from ladon_storage.connect import shared_client
from ladon_storage.errors import ConfigurationError
from ladon_storage.events import STALE, emit_of_source
from ladon_storage.flows import naming
from ladon_storage.flows.artifacts import best_effort
from ladon_storage.flows.overview import SourceFacts, shown_id, update_overview
from ladon_storage.flows.parameters import checked_flow, refuse_unchosen_block
from ladon_storage.project import Project
from ladon_storage.settings import StorageSettings
from ladon_storage.tasks import check_storage_health, resolve_storage, secret_block


@checked_flow("check-freshness", naming.freshness)
async def check_freshness(
    sources: list[Freshness] | None = None,
    storage: StorageService | StorageSettings | str | None = None,
    file: str | None = None,
) -> dict[str, float]:
    """Fail, and emit an event for each, when watermarks are older than they may be.

    A watermark in the future is wrong, and not fresh: a source that is no longer collected would
    look healthy until then.

    Args:
        sources: The sources, and how old the watermark of each may be; empty where a file is given.
        storage: Where the watermarks are: a Storage Service block; empty for what the file says,
            for the environment of the worker, or else the block called default.
        file: Path of a ``ladon.toml`` whose sources have a freshness, as the worker sees it.
    """
    refuse_unchosen_block()
    if file:
        project = Project.load(file, check_sources=False)
        sources = [*(sources or ()), *_limits_of(project)]
        if storage is None:
            with secret_lookup(secret_block):
                storage = await project.storage_settings()
    if not sources:
        raise ConfigurationError("Name at least one source, or nothing is ever stale.")
    settings = await resolve_storage(storage)
    await check_storage_health(settings)
    client = shared_client(settings)
    found = await freshness.ages(client, sources, utc_now)
    for each in found:
        if each.verdict is not Verdict.FRESH:
            emit_of_source(
                STALE,
                each.source_id,
                {
                    "age_hours": each.age_hours,
                    "max_age_hours": each.max_age_hours,
                    "in_future": each.verdict is Verdict.AHEAD,
                },
            )
    async with best_effort("write the table"):
        await acreate_table_artifact(
            [_row(each) for each in found],
            key="ladon-freshness",
            description="How old the watermarks of sources are.",
        )
    async with best_effort("update the overview"):
        await update_overview([SourceFacts.of_age(each) for each in found])
    freshness.check_fresh(found)
    return {
        each.source_id: round(max(each.age_hours, 0.0), 2)
        for each in found
        if each.age_hours is not None
    }


def _row(age: Age) -> dict[str, object]:
    hours = age.age_hours
    stale = {Verdict.FRESH: "", Verdict.AHEAD: "in the future"}.get(age.verdict, "yes")
    return {
        "source": shown_id(age.source_id),
        "stale": stale,
        "hours behind": "never collected" if hours is None else round(hours, 2),
        "limit (hours)": age.max_age_hours,
    }


def _limits_of(project: Project) -> list[Freshness]:
    """Return the limits of the sources that have one, by the names of their watermarks."""
    return [
        Freshness(
            source_id=project.source(name).source_id, max_age_hours=table.freshness.max_age_hours
        )
        for name, table in project.sources.items()
        if table.freshness is not None
    ]
