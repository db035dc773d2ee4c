"""The protocols of the engine's parts: a storage of watermarks, a source, a sink.

Any class with the methods is a part; there is no base class to inherit from.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from hashlib import blake2b
from types import TracebackType
from typing import Annotated, Protocol, Self, TypeGuard, TypeVar, runtime_checkable

from pydantic import BaseModel, ConfigDict, Field

from ladon_storage.collection.durations import Days, Seconds, duration
from ladon_storage.collection.ledger import OnProgress
from ladon_storage.collection.ranges import ALL_TIME, TimeRange
from ladon_storage.collection.records import Page, Record
from ladon_storage.collection.standby import WhenBusy
from ladon_storage.errors import ConfigurationError
from ladon_storage.models import RUN_LEASE, HistoryPage, Precondition, Watermark, WatermarkUpdate
from ladon_storage.values import check_run_id

P = TypeVar("P")

Clock = Callable[[], datetime]
"""The time, as an aware datetime."""


def utc_now() -> datetime:
    """Return the time as an aware UTC datetime."""
    return datetime.now(UTC)


class WatermarkStore(Protocol):
    """A storage of one watermark for each source: a storage client, or a caller of one.

    A class with ``update_watermark`` and its arguments in place of ``put_watermark`` serves too.
    """

    async def health_check(self) -> bool:
        """Return whether the service is healthy; raise where an unhealthy one must end the run."""
        ...

    async def get_watermark(self, source_id: str) -> Watermark | None:
        """Return the watermark, or ``None`` if and only if there is none."""
        ...

    async def put_watermark(
        self, source_id: str, update: WatermarkUpdate, precondition: Precondition = ...
    ) -> Watermark:
        """Write the watermark and return the stored one.

        Raises:
            WatermarkConflictError: The precondition fails, or a later success is stored.
        """
        ...


@runtime_checkable
class SupportsHistory(Protocol):
    """A storage that keeps the changes of a watermark."""

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
    """A source of pages of records.

    A source may have more attributes (with these defaults):

    - ``ordered`` (``False``): no record on a later page is older than one on an earlier page, so a
      run can write a checkpoint after each page. The order is used once a complete pass has shown
      it, or where ``order_guaranteed`` (``False``) says that the request itself asks for it.
    - ``full_snapshot`` (``overlap is None``): a run lists all items, so a missing item was removed
      at the source.
    - ``retention`` (``None``): how long the source keeps its records. A watermark that is older
      means a gap.
    - ``ignores_range`` (``overlap is None``): the source delivers all its records, whatever the
      requested range. So an empty response, after others with records, is an error.
    - ``uses_known`` (``False``): ``pages`` takes a third argument, a `KnownContent`.
    - ``reading_digest`` (``None``): a text that is another one where the settings are others that
      decide which records are read, and as what. A run that finds another one says so: what is
      before its range is not read.
    """

    @property
    def source_id(self) -> str:
        """The stable name."""
        ...

    @property
    def overlap(self) -> timedelta | None:
        """The time before the watermark that a run reads again; ``None``: each run reads all."""
        ...

    def pages(self, start: datetime | None, until: datetime | None) -> AsyncIterator[Page]:
        """Yield the pages that the source delivers for ``start <= timestamp < until``.

        ``None`` sets no bound. The range is only requested from the source, and filters nothing:
        all delivered records are yielded, and stored. A page is read ahead, so it is copied as it
        is yielded: what the source does with it afterwards changes nothing.
        """
        ...


class KnownContent(Protocol):
    """The sink's content of a source, for a source that need not read it again."""

    @property
    def document(self) -> str | None:
        """The digest of the document whose records are all durable; ``None``: read it."""
        ...

    @property
    def must_reach(self) -> datetime | None:
        """The timestamp that a response must reach back to, to leave no gap before it.

        ``None``: the sink has no records yet, so there can be no gap.
        """
        ...

    async def lacking(self, listed: Mapping[str, datetime]) -> Set[str]:
        """Return the ids of ``listed`` of which the sink has no record at that time or later."""
        ...

    async def ahead(self, listed: Mapping[str, datetime]) -> Set[str]:
        """Return the ids of ``listed`` of which the sink has a record a second later, or more."""
        ...


_DIGEST = "run:"


def run_digest(run_id: str) -> str:
    """Return the digest of a run id, for a sink that can keep only numbers: 60 bits.

    >>> run_digest("run-1")
    'run:26b88ecaac29b38'
    """
    return (
        _DIGEST + blake2b(run_id.encode(errors="backslashreplace"), digest_size=8).hexdigest()[:15]
    )


class Position(BaseModel):
    """The timestamp up to which a sink is durable, which it stores next to the records.

    Args:
        timestamp: Every record of the source up to here is in the sink.
        watermark: The watermark at the time of the write; ``None``: never collected.
        origin: The first timestamp that was collected; ``None``: the beginning of the source.
        run_id: The run that wrote it; ``None``: the sink does not keep that. It distinguishes a run
            that did not end from a watermark that an operator moved back to that run's start. A
            sink that can keep only numbers gives its `run_digest`.
        document: The digest of the source's document whose records are all in the sink: 30
            hexadecimal digits; ``None``: the last complete reading had nothing, or no document.
        order_shown: Whether a complete pass came in the order that the source declares.
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
    """The result of a sink's write of a page.

    Args:
        new: The records whose ids the sink did not have, one for each id.
        changed: The records of ids that it had, whose version is new or replaced the current one.
        superseded: The records that it passed over, since it holds a later version: of an id that
            it has at a later time, or, where all versions are kept, one that another followed. If
            there are any, the position of the page was not written: only the end of the run shows
            whether they must become current.
    """

    new: Sequence[Record] = ()
    changed: Sequence[Record] = ()
    superseded: Sequence[Record] = ()

    @property
    def written(self) -> int:
        """The number of new or changed rows."""
        return len(self.new) + len(self.changed)


@runtime_checkable
class Sink(Protocol):
    """A sink that makes records durable, entered before its first page and left after its last.

    It may support more: `SupportsPosition`, `SupportsRemoval`, `SupportsReversion`,
    `SupportsLookup`, `SupportsCount`. It may have ``batch_characters``, the characters of waiting
    pages that it takes at once: more where a large commit costs less than two, fewer where what
    waits is memory that it needs itself.
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
        """Make a page durable atomically, and return the changes.

        A sink that cannot distinguish new records from changed ones returns the number of rows.

        Writes are idempotent: the same records again, in this page or a later one, change nothing.
        Rejects go into the quarantine, the same one once. ``position`` replaces the stored position
        in the same transaction; ``None`` leaves it.
        """
        ...


@runtime_checkable
class SupportsPosition(Protocol):
    """A sink that remembers the position up to which it is durable."""

    async def position(self, source_id: str) -> Position | None:
        """Return the last position that was written; ``None``: none was."""
        ...


@runtime_checkable
class SupportsRemoval(Protocol):
    """A sink that marks the records that its source no longer lists."""

    async def mark_removed(self, source_id: str, listed_ids: Set[str], max_share: float) -> int:
        """Mark the records whose ids are not in ``listed_ids``; return the number of new marks.

        A record that is back loses its mark. Nothing is deleted.

        Raises:
            SourceError: More than the share ``max_share`` of the unmarked records would be marked;
                none was.
        """
        ...


@runtime_checkable
class SupportsReversion(Protocol):
    """A sink that can make an earlier version the current one again."""

    async def revert(self, source_id: str, records: Sequence[Record], *, run_id: str = ...) -> int:
        """Make these versions the current ones, whatever their time; return how many changed.

        Versions that were stored in this run, behind the current one, are not counted again.

        It is called at the end of a run, for the versions that the source went back to.
        """
        ...


@runtime_checkable
class SupportsLookup(Protocol):
    """A sink that can look up which of a source's records it lacks."""

    async def lacking(self, source_id: str, listed: Mapping[str, datetime]) -> set[str]:
        """Return the ids of ``listed`` whose current version is not of that time or later."""
        ...


@runtime_checkable
class SupportsCount(Protocol):
    """A sink that can count a source's records of a range."""

    async def count_records(
        self, source_id: str, after: datetime | None, before: datetime, limit: int
    ) -> int:
        """Return how many records have a current version between two times, at most ``limit``.

        Both times are excluded, and so are records that are marked as removed. The engine asks
        after a reading without items, whether the source delivered records of its range before.
        """
        ...


@cache
def _methods(protocol: object) -> list[str]:
    return [name for name in vars(protocol) if not name.startswith("_")]


def supports(sink: object, protocol: Callable[..., P]) -> TypeGuard[P]:
    """Return whether a sink has the methods of one of these protocols.

    `isinstance` says the same. Before Python 3.12 it lists the members of the protocol at each
    call, which for each of many sources takes longer than the look into an open sink.
    """
    return all(getattr(sink, name, None) is not None for name in _methods(protocol))


_OPTIONAL_PROTOCOLS = (
    SupportsPosition,
    SupportsRemoval,
    SupportsReversion,
    SupportsLookup,
    SupportsCount,
)
OPTIONAL_MEMBERS = (
    *(name for each in _OPTIONAL_PROTOCOLS for name in _methods(each)),
    "batch_characters",
)
"""The methods and values that not every sink has; an open sink shows which."""


MAX_LEASE = timedelta(days=1)
"""The longest time for which a killed run may block its source."""


class Limits(BaseModel):
    """The start of a first collection, and the limits beyond which a run fails."""

    model_config = ConfigDict(frozen=True, extra="forbid", title="Limits")

    initial_lookback: Days | None = Field(
        None,
        title="Initial lookback (days)",
        description="How far back the first collection of a source reads. If empty, it reads "
        "everything.",
    )
    future_skew: Seconds = duration(
        timedelta(minutes=5),
        timedelta(seconds=1),
        "Future skew (seconds)",
        "How far a record's time may be ahead of the clock before it is reported as in the future.",
    )
    quarantine_share: Annotated[float, Field(ge=0, le=1)] = Field(
        0.1,
        title="Quarantined share",
        description="Share of unusable records beyond which a run fails, if they are more than "
        "ten. 0.1 is 10 %; with 0 the first one fails it.",
    )
    removed_share: Annotated[float, Field(ge=0, le=1)] = Field(
        0.5,
        title="Removed share",
        description="Share of a source's records that may disappear before a run fails. 0.5 is "
        "half of them.",
    )
    lease: Annotated[Seconds, Field(gt=timedelta(0), le=MAX_LEASE)] = duration(
        RUN_LEASE,
        timedelta(seconds=1),
        "Lease (seconds)",
        "How long a killed run keeps other runs from collecting its source, at most a day.",
    )


@dataclass(frozen=True)
class Run:
    """The settings of one run, which are the same for each of its pages.

    Args:
        run_id: The name of the run, as the service and the quarantine record it.
        limits: The start of a first collection, the limits of failures, and the length of a lease.
        clock: The time, as an aware datetime.
        on_progress: Called after each page.
        asked: The range that the source is asked for, in a run that does not hold the watermark.
        stored: The range of records that such a run stores; it counts the others as skipped.
        confirm: Called before such a run writes to the sink; raises where it must not.
        when_busy: The behaviour where another run holds the source.

    Raises:
        ConfigurationError: The service cannot record ``run_id``.
    """

    run_id: str = ""
    limits: Limits = Limits()  # noqa: RUF009 - frozen
    clock: Clock = utc_now
    on_progress: OnProgress | None = None
    asked: TimeRange = ALL_TIME
    stored: TimeRange = ALL_TIME
    confirm: Callable[[], Awaitable[None]] | None = None
    when_busy: WhenBusy = "fail"

    def __post_init__(self) -> None:
        try:  # of what could be collected, no outcome could be written
            check_run_id(self.run_id)
        except ValueError as error:
            raise ConfigurationError(f"{error}. Give the run another.") from None
