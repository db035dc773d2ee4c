"""What the engine asks of its parts: a storage of watermarks, a source, a sink.

A part of one's own is any class that has the methods; there is nothing to inherit from.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Set
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Annotated, Protocol, Self, runtime_checkable

from pydantic import BaseModel, ConfigDict, Field

from ladon_storage.collection.durations import Days, Seconds, duration
from ladon_storage.collection.records import Page
from ladon_storage.models import RUN_LEASE, Watermark, WatermarkStatus

Clock = Callable[[], datetime]
"""The time, as an aware datetime."""


def utc_now() -> datetime:
    """Return the time as an aware UTC datetime."""
    return datetime.now(UTC)


class Storage(Protocol):
    """Keep one watermark for each source: a storage client, or what calls one."""

    async def health_check(self) -> bool:
        """Return whether the service is healthy; raise where an unhealthy one must end the run."""
        ...

    async def get_watermark(self, source_id: str) -> Watermark | None:
        """Return the watermark, or ``None`` if and only if there is none."""
        ...

    async def update_watermark(
        self,
        source_id: str,
        timestamp: datetime,
        status: WatermarkStatus = ...,
        error_message: str | None = None,
        *,
        if_match: str | None = None,
        if_none_match: bool = False,
        records_collected: int | None = None,
        run_id: str | None = None,
    ) -> Watermark:
        """Write the watermark and return what is stored."""
        ...


@runtime_checkable
class Source(Protocol):
    """Yield what there is to collect.

    Three more attributes are heeded where a source has them:

    - ``ordered`` (``False``): no record on a later page is older than one on a page before, so that
      a run can promote what it has after each page.
    - ``whole`` (``overlap is None``): a run lists all that there is, so that what is missing was
      removed at the source.
    - ``retention`` (``None``): how long the source keeps what it yields. A watermark that is older
      means a gap.
    """

    @property
    def source_id(self) -> str:
        """The stable name."""
        ...

    @property
    def overlap(self) -> timedelta | None:
        """How far before the watermark a run reads again; ``None``: each run reads all there is."""
        ...

    def pages(self, start: datetime | None, until: datetime | None) -> AsyncIterator[Page]:
        """Yield the records with ``start <= timestamp < until``; ``None`` sets no bound.

        It may yield others too: they are stored as well.
        """
        ...


class Position(BaseModel):
    """Say up to where a sink is durable, as it remembers it beside the records.

    Args:
        timestamp: Every record of the source up to here is in the sink.
        watermark: Where the watermark was when it was written; ``None``: never collected.
        origin: From where the source was collected; ``None``: from its beginning.
        run_id: The run that wrote it; ``None``: the sink does not keep that. It tells a run that
            did not end from a watermark that an operator moved back to where that run began.
    """

    model_config = ConfigDict(frozen=True)

    timestamp: datetime
    watermark: datetime | None = None
    origin: datetime | None = None
    run_id: str | None = None


@runtime_checkable
class Sink(Protocol):
    """Make records durable. Entered before its first page and left after its last.

    It may do more: `RemembersPosition`, `MarksRemoved`.
    """

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...

    async def write(
        self, source_id: str, page: Page, *, run_id: str = ..., position: Position | None = None
    ) -> int:
        """Make a page durable, whole or not at all, and return how many rows are new or changed.

        The same records again, in this page or a later one, change nothing. Rejects go into the
        quarantine, the same one once. ``position`` replaces what is remembered, in the same
        transaction; ``None`` leaves it.
        """
        ...


@runtime_checkable
class RemembersPosition(Protocol):
    """Be a sink that remembers up to where it is durable."""

    async def position(self, source_id: str) -> Position | None:
        """Return the last position that was written; ``None``: none was."""
        ...


@runtime_checkable
class MarksRemoved(Protocol):
    """Be a sink that marks what its source no longer lists."""

    async def mark_removed(self, source_id: str, present: Set[str], most: float) -> int:
        """Mark the records whose ids are not in ``present``, and return how many are new there.

        A record that is back loses its mark. Nothing is deleted.

        Raises:
            SourceError: More than the share ``most`` of what is not marked would be; none was.
        """
        ...


class Limits(BaseModel):
    """Say where a collection starts, and what it must not go beyond."""

    model_config = ConfigDict(frozen=True, extra="forbid", title="Limits")

    initial_lookback: Days | None = Field(
        None,
        title="Initial lookback (days)",
        description="How far back a source that was never collected is read; empty: all there is.",
    )
    future_skew: Seconds = duration(
        timedelta(minutes=5),
        timedelta(seconds=1),
        "Future skew (seconds)",
        "How far a record may be ahead of our clock and still move the watermark.",
    )
    quarantine_share: Annotated[float, Field(ge=0, le=1)] = Field(
        0.1,
        title="Quarantined share",
        description="How much of a run may be unusable before it fails; 0.1 is 10 %.",
    )
    removed_share: Annotated[float, Field(ge=0, le=1)] = Field(
        0.5,
        title="Removed share",
        description="How much of a source may disappear before a run fails; 0.5 is half of it.",
    )
    lease: Annotated[Seconds, Field(gt=timedelta(0))] = duration(
        RUN_LEASE,
        timedelta(seconds=1),
        "Lease (seconds)",
        "How long a run that was killed keeps others from collecting its source.",
    )


class Gap(BaseModel):
    """Say which records a source no longer had when it was asked for them."""

    model_config = ConfigDict(frozen=True)

    start: datetime
    end: datetime


class Collected(BaseModel):
    """Say what was read and made durable; ``candidate`` is what the watermark may become."""

    model_config = ConfigDict(frozen=True)

    start: datetime | None = None
    pages: int = 0
    records_read: int = 0
    records_written: int = 0
    records_in_future: int = 0
    records_quarantined: int = 0
    records_removed: int = 0
    gap: Gap | None = None
    candidate: datetime | None = None


Progress = Callable[[Collected], Awaitable[None]]
"""Hear after each page what has become durable so far; the next page waits for it."""
