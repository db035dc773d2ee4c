"""The fields that sources share, and what their forms have in common."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from ladon_storage.collection.durations import Hours, duration

SOURCE_ID_TEXT = "The name of the watermark, and of the source in the sink."
OVERLAP_TEXT = "How far before the watermark each run reads again, for late records."
KEY_TEXT = "Name of a Prefect Secret block, or of an environment variable, that holds the key."

Overlap = Annotated[Hours, Field(le=timedelta(days=365))]
"""How far before the watermark a run reads again: at most a year."""


def overlap_field(default: timedelta, more: str = "") -> Any:
    """Return the field of an overlap, with what is to be known ``more`` about it."""
    text = f"{OVERLAP_TEXT} {more}".strip()
    return duration(default, timedelta(hours=1), "Overlap (hours)", text)


SETTINGS = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)
"""A run is told by its settings: they do not change, a misspelt one is refused, none is shown."""


class Rate(BaseModel):
    """Say how many requests a service takes in how many seconds."""

    model_config = ConfigDict(**SETTINGS, title="Rate limit")

    requests: int = Field(
        ge=1, title="Requests", description="How many requests are made in the time below."
    )
    seconds: float = Field(
        gt=0,
        le=86_400,
        allow_inf_nan=False,
        title="Seconds",
        description="The time, in seconds, in which so many requests are made.",
    )
