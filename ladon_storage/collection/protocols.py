"""What the engine asks of its parts: a storage of watermarks, a source, a sink.

A part of one's own is any class that has the methods; there is nothing to inherit from.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import blake2b
from types import TracebackType
from typing import Annotated, Protocol, Self, runtime_checkable

from pydantic import BaseModel, ConfigDict, Field, computed_field

from ladon_storage.collection.durations import Days, Seconds, duration
from ladon_storage.collection.lateness import Lateness
from ladon_storage.collection.records import Completeness, Page, Record
from ladon_storage.models import RUN_LEASE, HistoryPage, Watermark, WatermarkStatus

Clock = Callable[[], datetime]
"""The time, as an aware datetime."""


def utc_now() -> datetime:
    """Return the time as an aware UTC datetime."""
    return datetime.now(UTC)


class WatermarkStore(Protocol):
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
        """Write the watermark and return what is stored.

        One that takes ``lease`` (a timedelta, with `running`) and ``ledger`` (a mapping, with an
        outcome) as well is given them.
        """
        ...


@runtime_checkable
class SupportsHistory(Protocol):
    """Be a storage that knows the changes of a watermark."""

    async def watermark_history(
        self, source_id: str, *, moved: bool = ..., limit: int = ..., before: int | None = ...
    ) -> HistoryPage | None:
        """Return a page of changes, the latest first; ``None``: the service keeps none.

        With ``moved`` only those that moved or deleted the watermark; ``before`` is ``next`` of the
        page before.
        """
        ...


@runtime_checkable
class Source(Protocol):
    """Yield what there is to collect.

    Some more attributes are heeded where a source has them:

    - ``ordered`` (``False``): no record on a later page is older than one on a page before, so that
      a run can promote what it has after each page. It is believed once a whole pass has shown it,
      or where ``order_guaranteed`` (``False``) says that the request itself asks for the order.
    - ``full_snapshot`` (``overlap is None``): a run lists all that there is, so that what is
      missing was removed at the source.
    - ``retention`` (``None``): how long the source keeps what it yields. A watermark that is older
      means a gap.
    - ``ignores_range`` (``overlap is None``): it delivers all that it has, whatever it is asked
      for, so that an answer without anything, after others with something, is an error.
    - ``uses_known`` (``False``): ``pages`` takes a third argument, a `KnownContent`.
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
        """Yield what the source delivers when it is asked for ``start <= timestamp < until``.

        ``None`` sets no bound. The range is what the source is asked for, and selects nothing:
        whatever it delivers is yielded, and stored.
        """
        ...


class KnownContent(Protocol):
    """What the sink knows of a source, for a source that need not read it again."""

    @property
    def document(self) -> str | None:
        """The digest of the document whose records are all durable; ``None``: read it."""
        ...

    @property
    def must_reach(self) -> datetime | None:
        """How far back an answer must reach so that nothing is missing between it and the sink.

        ``None``: there is nothing yet, so that nothing lies between.
        """
        ...

    async def lacking(self, listed: Mapping[str, datetime]) -> Set[str]:
        """Return the ids of ``listed`` of which the sink has no record at that time or later."""
        ...


_DIGEST = "run:"


def run_digest(run_id: str) -> str:
    """Return what stands for a run in a sink that keeps numbers alone: 60 bits.

    >>> run_digest("run-1")
    'run:26b88ecaac29b38'
    """
    return (
        _DIGEST + blake2b(run_id.encode(errors="backslashreplace"), digest_size=8).hexdigest()[:15]
    )


class Position(BaseModel):
    """Up to where a sink is durable, as it remembers it beside the records.

    Args:
        timestamp: Every record of the source up to here is in the sink.
        watermark: Where the watermark was when it was written; ``None``: never collected.
        origin: From where the source was collected; ``None``: from its beginning.
        run_id: The run that wrote it; ``None``: the sink does not keep that. It tells a run that
            did not end from a watermark that an operator moved back to where that run began. A
            sink that keeps numbers alone gives its `run_digest`.
        document: The digest of the source's document whose records are all in the sink: 30
            hexadecimal digits; ``None``: the last complete reading had nothing, or no document.
        order_shown: Whether a whole pass came in the order that the source declares.
    """

    model_config = ConfigDict(frozen=True)

    timestamp: datetime
    watermark: datetime | None = None
    origin: datetime | None = None
    run_id: str | None = None
    document: str | None = None
    order_shown: bool = False

    def is_of(self, run_id: str | None) -> bool:
        """Return whether a run wrote it."""
        if self.run_id is None or run_id is None:
            return False
        return self.run_id in (run_id, run_digest(run_id))


@dataclass(frozen=True, slots=True)
class WriteResult:
    """What a sink did with the records of a page.

    Args:
        new: The records of whose ids it had nothing, one for each id.
        changed: The records of ids that it had, whose version is new or replaced what it had.
        superseded: The records that it left as they are, since it holds something later: of an id
            that it has at a later time, or, where all versions are kept, one that another followed.
            Where there are some, the position that came with the page was not written: whether
            they are to become current shows only at the end of the run.
    """

    new: Sequence[Record] = ()
    changed: Sequence[Record] = ()
    superseded: Sequence[Record] = ()

    @property
    def written(self) -> int:
        """How many rows are new or changed."""
        return len(self.new) + len(self.changed)


@runtime_checkable
class Sink(Protocol):
    """Make records durable. Entered before its first page and left after its last.

    It may do more: `SupportsPosition`, `SupportsRemoval`, `SupportsReversion`, `SupportsLookup`.
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
    ) -> WriteResult | int:
        """Make a page durable, whole or not at all, and return what that changed.

        A sink that cannot tell what is new from what changed returns how many rows did.

        The same records again, in this page or a later one, change nothing. Rejects go into the
        quarantine, the same one once. ``position`` replaces what is remembered, in the same
        transaction; ``None`` leaves it.
        """
        ...


@runtime_checkable
class SupportsPosition(Protocol):
    """Be a sink that remembers up to where it is durable."""

    async def position(self, source_id: str) -> Position | None:
        """Return the last position that was written; ``None``: none was."""
        ...


@runtime_checkable
class SupportsRemoval(Protocol):
    """Be a sink that marks what its source no longer lists."""

    async def mark_removed(self, source_id: str, listed_ids: Set[str], max_share: float) -> int:
        """Mark the records whose ids are not in ``listed_ids``, and return how many are new there.

        A record that is back loses its mark. Nothing is deleted.

        Raises:
            SourceError: More than the share ``max_share`` of what is not marked would be; none was.
        """
        ...


@runtime_checkable
class SupportsReversion(Protocol):
    """A sink that can make an earlier version the current one again."""

    async def revert(self, source_id: str, records: Sequence[Record], *, run_id: str = ...) -> int:
        """Make these versions the current ones, whatever their time; return how many changed.

        Those that were stored in this run, behind what was current, are not counted again.

        It is called at the end of a run, for what the source went back to.
        """
        ...


@runtime_checkable
class SupportsLookup(Protocol):
    """A sink that tells which of a source's records it lacks."""

    async def lacking(self, source_id: str, listed: Mapping[str, datetime]) -> set[str]:
        """Return the ids of ``listed`` of which there is no record at that time or later."""
        ...


MAX_LEASE = timedelta(days=1)
"""The longest that a run which was killed may keep others from its source."""


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
        "How far a record may be ahead of the clock before it is reported as from the future.",
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
    lease: Annotated[Seconds, Field(gt=timedelta(0), le=MAX_LEASE)] = duration(
        RUN_LEASE,
        timedelta(seconds=1),
        "Lease (seconds)",
        "How long a run that was killed keeps others from collecting its source: at most a day.",
    )


class Gap(BaseModel):
    """Say which records a source no longer had when it was asked for them."""

    model_config = ConfigDict(frozen=True)

    start: datetime
    end: datetime


class Ledger(BaseModel):
    """What a run asked for and was given, in numbers that add up.

    ``records_delivered`` is the sum of new, changed, known, quarantined and skipped ones.

    Args:
        start: From when on the source was asked; ``None``: for all that it has.
        until: Before when it was asked to end.
        pages: How many pages came.
        records_delivered: How many items came, usable or not.
        records_new: How many the sink had nothing of.
        records_changed: How many versions are new of records that the sink had.
        records_known: How many the sink had as they came.
        records_quarantined: How many cannot be used.
        records_skipped: How many lie outside of a backfill's range, or before a first collection's.
        records_in_future: How many are from the future, beyond the allowed skew.
        records_removed: How many the source no longer lists.
        reasons: Why records were quarantined, the most frequent reasons first.
        completeness: How the end was known; ``None``: the source does not say.
        total: How many items the source states.
        gap: What the source no longer had.
        lateness: How long after their own time records were first seen.
    """

    model_config = ConfigDict(frozen=True)

    start: datetime | None = None
    until: datetime | None = None
    pages: int = 0
    records_delivered: int = 0
    records_new: int = 0
    records_changed: int = 0
    records_known: int = 0
    records_quarantined: int = 0
    records_skipped: int = 0
    records_in_future: int = 0
    records_removed: int = 0
    reasons: dict[str, int] = {}
    completeness: Completeness | None = None
    total: int | None = None
    gap: Gap | None = None
    lateness: Lateness = Lateness()

    @computed_field  # type: ignore[prop-decorator]
    @property
    def records_read(self) -> int:
        """How many usable records came."""
        return self.records_delivered - self.records_quarantined

    @computed_field  # type: ignore[prop-decorator]
    @property
    def records_written(self) -> int:
        """How many rows of the sink are new or changed."""
        return self.records_new + self.records_changed


class ExtractionResult(Ledger):
    """What was read and made durable; ``candidate`` is what the watermark may become."""

    candidate: datetime | None = None


OnProgress = Callable[[ExtractionResult], Awaitable[None]]
"""Hear after each page what has become durable so far; the next page waits for it."""
