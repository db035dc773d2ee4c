"""Whether sources are collected as often as they should: a run that fails is the alert."""

from __future__ import annotations

import argparse
import sys
from datetime import datetime, timedelta

from prefect import flow
from prefect.artifacts import acreate_table_artifact
from pydantic import BaseModel, ConfigDict, Field

from flows.command import run_command
from flows.reports import harmless
from ladon_storage.blocks import StorageService
from ladon_storage.collection.interfaces import utc_now
from ladon_storage.errors import CollectionError, ConfigurationError
from ladon_storage.events import STALE, emit_of_source
from ladon_storage.models import SourceId, Watermark
from ladon_storage.settings import StorageSettings, shared_client
from ladon_storage.tasks import check_storage_health, storage_settings

_HOUR = timedelta(hours=1)
_NAMED = 10


class StaleWatermarkError(CollectionError):
    """Say which sources are further behind than they may be."""


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
    sources: list[Freshness],
    storage: StorageService | StorageSettings | str | None = None,
) -> dict[str, float]:
    """Fail, and emit an event for each, when watermarks are older than they may be.

    Args:
        sources: The sources, and how old the watermark of each may be.
        storage: Where the watermarks are: a Storage Service block; empty for the environment of
            the worker, or else the block called default.
    """
    if not sources:
        raise ConfigurationError("Name at least one source, or nothing is ever stale.")
    settings = await storage_settings(storage)
    await check_storage_health(settings)
    client, now = shared_client(settings), utc_now()
    rows, stale = [], []
    for each in sources:
        age = _age(await client.get_watermark(each.source_id), now)
        is_stale = age is None or age > each.max_age_hours
        rows.append(
            {
                "source": each.source_id,
                "stale": "yes" if is_stale else "",
                "hours behind": "never collected" if age is None else round(age, 2),
                "limit (hours)": each.max_age_hours,
            }
        )
        if is_stale:
            behind = "never collected" if age is None else f"{age:.1f} h behind"
            stale.append(f"{each.source_id} ({behind}, limit {each.max_age_hours:g} h)")
            told = {"age_hours": age, "max_age_hours": each.max_age_hours}
            emit_of_source(STALE, each.source_id, told)
    async with harmless("write the table"):
        await acreate_table_artifact(
            rows, key="ladon-freshness", description="How old the watermarks of sources are."
        )
    if stale:
        more = f" and {len(stale) - _NAMED} more" if len(stale) > _NAMED else ""
        raise StaleWatermarkError(
            f"{len(stale)} of {len(sources)} sources are stale: {', '.join(stale[:_NAMED])}{more}; "
            "see why their last runs failed, or did not start."
        )
    return {str(row["source"]): float(str(row["hours behind"])) for row in rows}


def _age(watermark: Watermark | None, now: datetime) -> float | None:
    """Return how many hours behind a watermark is; ``None``: there was no success yet."""
    if watermark is None or watermark.last_successful_timestamp is None:
        return None
    return max(0.0, (now - watermark.last_successful_timestamp) / _HOUR)


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
