"""The ages of watermarks, judged by the clock of their storage."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Protocol

from pydantic import BaseModel, ConfigDict, Field

from ladon_storage.collection.protocols import Clock, utc_now
from ladon_storage.collection.summaries import cut
from ladon_storage.errors import CollectionError
from ladon_storage.models import RUN_LEASE, Watermark, WatermarkStatus, collected_up_to, is_ahead
from ladon_storage.values import SourceId

_HOUR = timedelta(hours=1)
_NAMED = 10
_DEAD = "it stopped without an outcome, and the next run takes over"


class StaleWatermarkError(CollectionError):
    """Raised when sources are further behind than they may be, or ahead of the time."""


class Freshness(BaseModel):
    """The age limits of a source's watermark."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source_id: SourceId = Field(title="Source id", description="The name of the watermark.")
    max_age_hours: float = Field(
        24,
        gt=0,
        le=10**9,
        title="Maximal age (hours)",
        description="How old the watermark may be: its distance from now, not from the last run.",
    )


class Verdict(StrEnum):
    """The meaning of a watermark's age."""

    FRESH = "fresh"
    STALE = "stale"
    NEVER = "never collected"
    AHEAD = "in the future"


class Age(BaseModel):
    """The age of one watermark, and the reason of the last failure if the last run failed."""

    model_config = ConfigDict(frozen=True)

    source_id: str
    verdict: Verdict
    age_hours: float | None
    max_age_hours: float
    watermark: datetime | None
    last_run: datetime | None
    last_failure: str | None

    def __str__(self) -> str:
        hours = self.age_hours or 0.0
        if self.verdict is Verdict.AHEAD:
            return f"{self.source_id} ({-hours:.1f} h ahead)"
        behind = "never collected" if self.age_hours is None else f"{hours:.1f} h behind"
        why = f"; its last run failed: {cut(self.last_failure, 200)}" if self.last_failure else ""
        return f"{self.source_id} ({behind}, limit {self.max_age_hours:g} h{why})"


class _Reads(Protocol):
    async def get_watermark(self, source_id: str) -> Watermark | None: ...


async def ages(storage: _Reads, limits: Iterable[Freshness], clock: Clock = utc_now) -> list[Age]:
    """Return the age of each watermark.

    A watermark in the future is wrong, and not fresh: a source that is no longer collected would
    look healthy until then.

    Raises:
        StorageError: A watermark could not be read.
    """
    return [_age(each, await storage.get_watermark(each.source_id), clock) for each in limits]


def _age(limit: Freshness, watermark: Watermark | None, clock: Clock) -> Age:
    success = collected_up_to(watermark)
    # By the service's clock, where its response has it: a lease is judged by it, too.
    now = (watermark.answered_at if watermark else None) or clock()
    age = None if success is None else (now - success) / _HOUR
    if is_ahead(success, now):
        verdict = Verdict.AHEAD
    elif age is None:
        verdict = Verdict.NEVER
    else:
        verdict = Verdict.STALE if age > limit.max_age_hours else Verdict.FRESH
    return Age(
        source_id=limit.source_id,
        verdict=verdict,
        age_hours=age,
        max_age_hours=limit.max_age_hours,
        watermark=success,
        last_run=watermark.last_run_timestamp if watermark else None,
        last_failure=None if watermark is None else _last_failure(watermark, now),
    )


def _last_failure(watermark: Watermark, now: datetime) -> str | None:
    """Return why the last run failed; ``None``: it completed, or is alive."""
    if watermark.status == WatermarkStatus.FAILED:
        return watermark.error_message or "no reason is stored"
    if watermark.status != WatermarkStatus.RUNNING or watermark.last_run_timestamp is None:
        return None
    seconds = watermark.lease_seconds
    lease = RUN_LEASE if seconds is None else timedelta(seconds=seconds)
    return _DEAD if watermark.last_run_timestamp + lease < now else None


def check_fresh(found: list[Age]) -> None:
    """Refuse ages that are beyond their limits.

    Raises:
        StaleWatermarkError: Some ages are; the message names them and the next step.
    """
    stale = [each for each in found if each.verdict in (Verdict.STALE, Verdict.NEVER)]
    wrong = [each for each in found if each.verdict is Verdict.AHEAD]
    sentences = []
    if stale:
        sentences.append(
            f"{_share(stale, found)} {_be(stale)} stale: {_first(stale)}; "
            "see with `ladon-storage watermarks show` why their last runs failed, or did not start."
        )
    if wrong:
        sentences.append(
            f"The watermarks of {_share(wrong, found)} are in the future, and so wrong: "
            f"{_first(wrong)}; set them back to where records are durable with "
            "`ladon-storage watermarks reset`, and see whose clock is wrong."
        )
    if sentences:
        raise StaleWatermarkError(" ".join(sentences))


def _share(some: list[Age], found: list[Age]) -> str:
    return f"{len(some)} of {len(found)} source{'' if len(found) == 1 else 's'}"


def _be(some: list[Age]) -> str:
    return "is" if len(some) == 1 else "are"


def _first(found: list[Age]) -> str:
    more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
    return f"{', '.join(map(str, found[:_NAMED]))}{more}"
