"""Whether sources are collected as often as they should: a run that fails is the alert."""

from __future__ import annotations

import argparse
import sys
from datetime import timedelta

from prefect import flow
from prefect.artifacts import acreate_table_artifact
from pydantic import BaseModel, ConfigDict, Field

from flows.command import run_command
from flows.reports import harmless
from ladon_storage.blocks import StorageService
from ladon_storage.collection.interfaces import utc_now
from ladon_storage.collection.secrets import secrets_from
from ladon_storage.connect import shared_client
from ladon_storage.errors import CollectionError, ConfigurationError
from ladon_storage.events import STALE, emit_of_source
from ladon_storage.models import SourceId, collected_up_to, is_ahead
from ladon_storage.project import Project
from ladon_storage.settings import StorageSettings
from ladon_storage.tasks import check_storage_health, secret_block, storage_settings

_HOUR = timedelta(hours=1)
_NAMED = 10


class StaleWatermarkError(CollectionError):
    """Say which sources are further behind than they may be, or ahead of the time."""


class Freshness(BaseModel):
    """Say how old the watermark of a source may be."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source_id: SourceId = Field(title="Source id", description="The name of the watermark.")
    max_age_hours: float = Field(
        24,
        gt=0,
        title="Maximal age (hours)",
        description="How old the watermark may be: its distance from now, not from the last run.",
    )


@flow(name="check-freshness")
async def check_freshness(
    sources: list[Freshness] | None = None,
    storage: StorageService | StorageSettings | str | None = None,
    file: str | None = None,
) -> dict[str, float]:
    """Fail, and emit an event for each, when watermarks are older than they may be.

    One in the future is wrong, and no fresh one: a source that is collected no more would look
    well until then.

    Args:
        sources: The sources, and how old the watermark of each may be; empty where a file is given.
        storage: Where the watermarks are: a Storage Service block; empty for what the file says,
            for the environment of the worker, or else the block called default.
        file: Path of a ``ladon.toml`` whose sources have a freshness, as the worker sees it.
    """
    if file:
        project = Project.load(file, check_sources=False)
        sources = [*(sources or ()), *_limits_of(project)]
        if storage is None:
            with secrets_from(secret_block):
                storage = await project.storage_settings()
    if not sources:
        raise ConfigurationError("Name at least one source, or nothing is ever stale.")
    settings = await storage_settings(storage)
    await check_storage_health(settings)
    client = shared_client(settings)
    rows, stale, wrong, ages = [], [], [], {}
    for each in sources:
        watermark = await client.get_watermark(each.source_id)
        success = collected_up_to(watermark)
        # By the service's clock, where its answer tells it: it is what a lease is judged by, too.
        now = (watermark.answered_at if watermark else None) or utc_now()
        age = None if success is None else (now - success) / _HOUR
        is_wrong = is_ahead(success, now)
        is_stale = not is_wrong and (age is None or age > each.max_age_hours)
        rows.append(
            {
                "source": each.source_id,
                "stale": "in the future" if is_wrong else "yes" if is_stale else "",
                "hours behind": "never collected" if age is None else round(age, 2),
                "limit (hours)": each.max_age_hours,
            }
        )
        if age is not None:
            ages[each.source_id] = round(max(age, 0.0), 2)
        if is_stale:
            behind = "never collected" if age is None else f"{age:.1f} h behind"
            stale.append(f"{each.source_id} ({behind}, limit {each.max_age_hours:g} h)")
        elif is_wrong:
            wrong.append(f"{each.source_id} ({-(age or 0):.1f} h ahead)")
        if is_stale or is_wrong:
            told = {"age_hours": age, "max_age_hours": each.max_age_hours, "in_future": is_wrong}
            emit_of_source(STALE, each.source_id, told)
    async with harmless("write the table"):
        await acreate_table_artifact(
            rows, key="ladon-freshness", description="How old the watermarks of sources are."
        )
    if stale or wrong:
        raise StaleWatermarkError(_said(stale, wrong, len(sources)))
    return ages


def _limits_of(project: Project) -> list[Freshness]:
    """Return the limits of the sources that have one, by the names of their watermarks."""
    return [
        Freshness(
            source_id=project.source(name).source_id, max_age_hours=table.freshness.max_age_hours
        )
        for name, table in project.sources.items()
        if table.freshness is not None
    ]


def _said(stale: list[str], wrong: list[str], of: int) -> str:
    """Return in a sentence each what is stale and what is wrong, and what to do about it."""
    sentences = []
    if stale:
        sentences.append(
            f"{len(stale)} of {of} sources are stale: {_first(stale)}; "
            "see why their last runs failed, or did not start."
        )
    if wrong:
        sentences.append(
            f"The watermarks of {len(wrong)} of {of} sources are in the future, and so wrong: "
            f"{_first(wrong)}; set them back to where records are durable by a reset "
            "(POST /api/v1/watermarks/{source_id}/reset with a timestamp and a reason), and see "
            "whose clock is wrong."
        )
    return " ".join(sentences)


def _first(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"{', '.join(names[:_NAMED])}{more}"


def main(arguments: list[str] | None = None) -> int:
    """Check the sources of the command line, and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m flows.freshness", description="Fail if watermarks are too old."
    )
    parser.add_argument(
        "sources", nargs="+", type=_freshness, help="a source and its limit in hours, as kev=48"
    )
    options = parser.parse_args(arguments)
    return run_command(
        lambda: check_freshness(options.sources),
        lambda ages: "\n".join(f"{name}: {hours:.2f} h behind" for name, hours in ages.items()),
    )


def _freshness(text: str) -> Freshness:
    source_id, _, hours = text.rpartition("=")
    try:
        return Freshness(source_id=source_id, max_age_hours=float(hours))
    except ValueError:
        raise argparse.ArgumentTypeError("is no source with its hours; write kev=48") from None


if __name__ == "__main__":
    sys.exit(main())
