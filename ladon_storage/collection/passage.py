"""From a source into a sink: where to start, what is durable, and what is wrong with the feed.

- A sink that remembers its position decides where a run starts. Behind the watermark (restored from
  a backup, dropped) it starts there, instead of leaving a hole; ahead of it (a crash) it goes on
  from there. A watermark that an operator moved back wins: what is asked for again is read again.
- A position is only ever written with the page that it is about, and never says more than what is
  durable. For a source without order that is nothing before the last page.
- A source that breaks the order it declares is read to its end without checkpoints, and the sink's
  position goes back to where the run began until that is done.
- Too many unusable records, or too many that disappeared, fail the run before anything is promoted.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from ladon_storage.collection.ahead import read_ahead
from ladon_storage.collection.interfaces import (
    Clock,
    Collected,
    Gap,
    Limits,
    MarksRemoved,
    Position,
    Progress,
    RemembersPosition,
    Sink,
    Source,
)
from ladon_storage.collection.records import Page
from ladon_storage.collection.turn import Turn
from ladon_storage.errors import SourceError
from ladon_storage.models import WatermarkStatus

logger = logging.getLogger(__name__)

CHECKPOINT_SECONDS = 10.0
"""How far apart checkpoints are where the sink remembers its position anyway."""

QUARANTINE_MINIMUM = 10
"""So many unusable records prove nothing, whatever their share."""

NOTHING_COLLECTED = datetime.min.replace(tzinfo=UTC)
"""The watermark of a source that was collected whole and had nothing yet.

The contract wants a timestamp for every success. No record can be older than this one, so that it
skips nothing that appears later; any other, also the first of 1970, could.
"""


def latest(*instants: datetime | None) -> datetime:
    """Return the latest of the instants that there are, or `NOTHING_COLLECTED`."""
    return max((each for each in instants if each is not None), default=NOTHING_COLLECTED)


@dataclass(frozen=True)
class Start:
    """Say where a passage starts.

    Args:
        instant: What the source is asked for; ``None``: all that it has.
        durable: Up to where everything is durable already; ``None``: nothing is.
        position: What the sink remembers.
        origin: From where the source is collected; ``None``: from its beginning.
        gap: What the source no longer has.
    """

    instant: datetime | None
    durable: datetime | None = None
    position: Position | None = None
    origin: datetime | None = None
    gap: Gap | None = None


async def find_start(source: Source, sink: Sink, turn: Turn, limits: Limits, clock: Clock) -> Start:
    """Return where a run starts, and say so where that is not simply its watermark."""
    now = clock()
    durable, position = turn.before, None
    if isinstance(sink, RemembersPosition):
        position = await sink.position(source.source_id)
        durable = _durable(source, turn, position)
    if durable is None or durable == NOTHING_COLLECTED:
        origin = _origin(source, turn, limits, now)
        # Where a later run goes on if there is nothing yet: its own lookback would begin later.
        return Start(origin, origin or durable, position, origin)
    origin = position.origin if position else None
    _warn_of_lookback(source, now, limits, origin)
    return Start(
        _back(durable, source.overlap), durable, position, origin, _gap(source, durable, now)
    )


def _origin(source: Source, turn: Turn, limits: Limits, now: datetime) -> datetime | None:
    """Return from where a source is collected into a sink that has nothing of it."""
    origin = _back(now, limits.initial_lookback)
    if origin is None or turn.before is None or turn.before == NOTHING_COLLECTED:
        return origin
    # What came since the watermark was never collected, however long ago that is.
    resumed = _back(turn.before, source.overlap)
    return None if resumed is None else min(origin, resumed)


def _durable(source: Source, turn: Turn, position: Position | None) -> datetime | None:
    """Return the instant up to which the sink and the watermark agree that all is durable."""
    before, stored = turn.before, turn.stored
    if position is None:
        if before is not None:
            _tell(
                logging.WARNING,
                source,
                f"The sink has nothing of source {source.source_id!r}, whose watermark is at "
                f"{before.isoformat()}: it is new or was dropped; it is filled from the beginning.",
            )
        return None
    if before is not None and position.timestamp < before:
        _tell(
            logging.WARNING,
            source,
            f"The sink has source {source.source_id!r} up to {position.timestamp.isoformat()}, "
            f"and its watermark is at {before.isoformat()}: the sink was restored from a backup, "
            "or another one is collected into; it is filled from its own position.",
        )
        return position.timestamp
    # Whoever moved the watermark since that run, or deleted it, wants what is there read again.
    unfinished = stored is not None and stored.status != WatermarkStatus.SUCCESS
    if stored is not None and stored.etag is not None and position.run_id is not None:
        # To the instant where that run began, too: such a watermark was not written by that run.
        unfinished = unfinished and stored.run_id == position.run_id
    if unfinished and position.watermark == before and position.timestamp > latest(before):
        _tell(
            logging.INFO,
            source,
            f"The sink has source {source.source_id!r} up to {position.timestamp.isoformat()} from "
            "a run that did not end; it goes on from there.",
        )
        return position.timestamp
    return before


def _warn_of_lookback(
    source: Source, now: datetime, limits: Limits, origin: datetime | None
) -> None:
    asked = _back(now, limits.initial_lookback)
    if asked is None or origin is None or asked >= origin:
        return
    _tell(
        logging.WARNING,
        source,
        f"The initial lookback of source {source.source_id!r} reaches back to {asked.isoformat()}, "
        f"and it is collected from {origin.isoformat()} on; collect what is before by a backfill: "
        f"since={asked.isoformat()}, until={origin.isoformat()}.",
    )


def _gap(source: Source, durable: datetime, now: datetime) -> Gap | None:
    kept = _back(now, getattr(source, "retention", None))
    if kept is None or durable >= kept:
        return None
    _tell(
        logging.WARNING,
        source,
        f"Source {source.source_id!r} keeps nothing from before {kept.isoformat()}, and is durable "
        f"up to {durable.isoformat()}: what changed in between is lost, unless it can be had "
        "elsewhere.",
    )
    return Gap(start=durable, end=kept)


def _back(instant: datetime, by: timedelta | None) -> datetime | None:
    if by is None:
        return None
    try:
        return instant - by
    except OverflowError:  # before the year 1, where no record is
        return None


def _tell(level: int, source: Source, text: str) -> None:
    logger.log(level, text, extra={"source_id": source.source_id})


@dataclass
class _Tally:
    pages: int = 0
    read: int = 0
    written: int = 0
    in_future: int = 0
    quarantined: int = 0
    skipped: int = 0
    removed: int = 0
    highest: datetime | None = None
    in_order: bool = True
    present: set[str] = field(default_factory=set)
    nameless: int = 0
    """Rejects without an id: any record could be one of them."""

    @property
    def seen(self) -> int:
        """How many items the source showed, usable or not, asked for or not."""
        return self.read + self.quarantined + self.skipped


class Passage:
    """Take a source's pages into an open sink, once.

    Args:
        source: What is collected.
        sink: Where it becomes durable.
        start: Where it starts.
        run_id: The run, as the quarantine records it.
        limits: What is too much.
        clock: The time.
        turn: The run's hold on the watermark; ``None`` for a range that moves nothing.
        progress: Who hears of each page.
    """

    def __init__(
        self,
        source: Source,
        sink: Sink,
        start: Start,
        run_id: str,
        limits: Limits,
        clock: Clock,
        *,
        turn: Turn | None = None,
        progress: Progress | None = None,
    ) -> None:
        self._source = source
        self._sink = sink
        self._start = start
        self._run_id = run_id
        self._limits = limits
        self._clock = clock
        self._turn = turn
        self._progress = progress
        self._tally = _Tally()
        self._remembers = turn is not None and isinstance(sink, RemembersPosition)
        self._position = start.position
        self._is_ordered = bool(getattr(source, "ordered", False))
        self._is_whole = turn is not None and getattr(source, "whole", source.overlap is None)
        self._checkpointed = time.monotonic()
        self._watermark = turn.before if turn else None

    async def through(self, until: datetime | None) -> Collected:
        """Make every page durable, promote what may be promoted, and count."""
        tally, start = self._tally, self._start
        if self._remembers and self._must_say_where_it_starts():
            self._position = None
            await self._write(Page(), latest(start.durable))
        async with read_ahead(self._source.pages(start.instant, until)) as pages:
            async for group in pages:
                await self._take(group)
                if self._progress is not None:
                    await self._progress(self._collected())
        self._refuse_a_changed_feed()
        await self._mark_removed()
        if self._remembers and self._turn:
            candidate = latest(start.durable, tally.highest, self._turn.before)
            await self._write(Page(), candidate)
        if tally.in_future:
            _tell(
                logging.WARNING,
                self._source,
                f"Records of source {self._source.source_id!r} from the future: {tally.in_future}; "
                "stored, and moving no watermark.",
            )
        return self._collected()

    def _collected(self) -> Collected:
        tally, start = self._tally, self._start
        candidate = latest(start.durable, tally.highest)
        return Collected(
            start=start.instant,
            pages=tally.pages,
            records_read=tally.read,
            records_written=tally.written,
            records_in_future=tally.in_future,
            records_quarantined=tally.quarantined,
            records_removed=tally.removed,
            gap=start.gap,
            candidate=None if candidate is NOTHING_COLLECTED else candidate,
        )

    def _must_say_where_it_starts(self) -> bool:
        """Tell whether the position is wrong for this run, or says that another did not end."""
        position = self._start.position
        if position is None or self._turn is None:
            return False
        is_ahead = position.timestamp > latest(self._turn.before)
        return position.timestamp != latest(self._start.durable) or (
            is_ahead and position.run_id != self._run_id
        )

    async def _take(self, pages: list[Page]) -> None:
        """Make pages durable together, and promote what may be promoted."""
        for page in pages:
            self._count(page)
        tally, promoted = self._tally, None
        if self._is_ordered and tally.highest is not None:
            # What a changed feed hides is read again once it is repaired, so it must not be passed.
            is_sound = tally.in_order and not self._has_changed()
            promoted = latest(self._start.durable, tally.highest if is_sound else None)
        await self._write(Page.of(pages), promoted)
        if promoted is not None:
            await self._checkpoint(promoted)

    def _count(self, page: Page) -> None:
        tally = self._tally
        # Asked for each page: what came up during a run of hours is not from the future.
        horizon = self._clock() + self._limits.future_skew
        times = [record.timestamp for record in page.records if record.timestamp <= horizon]
        self._see_order(times)
        tally.highest = max(
            times if tally.highest is None else [tally.highest, *times], default=None
        )
        tally.pages += 1
        tally.read += len(page.records)
        tally.in_future += len(page.records) - len(times)
        tally.quarantined += len(page.rejects)
        tally.skipped += page.skipped
        if self._is_whole:
            self._note_present(page)

    def _see_order(self, times: list[datetime]) -> None:
        tally = self._tally
        if not self._is_ordered or not tally.in_order or not times or tally.highest is None:
            return
        if (lowest := min(times)) < tally.highest:
            tally.in_order = False
            _tell(
                logging.WARNING,
                self._source,
                f"Source {self._source.source_id!r} declares that its pages come in order, and "
                f"{lowest.isoformat()} comes after {tally.highest.isoformat()}; it is read to its "
                "end before anything more is promoted; do not declare an order.",
            )

    def _note_present(self, page: Page) -> None:
        present = self._tally.present
        present.update(record.record_id for record in page.records)
        present.update(page.listed)
        for reject in page.rejects:
            if reject.record_id is None:
                self._tally.nameless += 1
            else:
                present.add(reject.record_id)

    async def _write(self, page: Page, promoted: datetime | None) -> None:
        """Write a page with the position after it, or only the one that changed."""
        position = self._position
        if self._remembers and self._turn and promoted is not None:
            position = Position(
                timestamp=promoted,
                watermark=self._watermark,
                origin=self._start.origin,
                run_id=self._run_id,
            )
        moved = position if _differ(position, self._position) else None
        if len(page) or moved:
            self._tally.written += await self._sink.write(
                self._source.source_id, page, run_id=self._run_id, position=moved
            )
            self._position = position

    async def _checkpoint(self, promoted: datetime) -> None:
        turn = self._turn
        if turn is None or promoted <= latest(self._watermark):
            return
        if self._remembers and time.monotonic() - self._checkpointed < CHECKPOINT_SECONDS:
            return
        await turn.checkpoint(promoted, self._tally.written)
        self._checkpointed, self._watermark = time.monotonic(), promoted
        _tell(
            logging.INFO,
            self._source,
            f"Source {self._source.source_id!r}: page {self._tally.pages}, "
            f"{self._tally.read} records read, {self._tally.written} new or changed, "
            f"watermark {promoted.isoformat()}.",
        )

    def _has_changed(self) -> bool:
        tally = self._tally
        share = self._limits.quarantine_share * tally.seen
        return tally.quarantined > max(QUARANTINE_MINIMUM, share)

    def _refuse_a_changed_feed(self) -> None:
        tally = self._tally
        if self._has_changed():
            raise SourceError(
                f"Of {tally.seen} records of source {self._source.source_id!r} {tally.quarantined} "
                f"cannot be used, more than {self._limits.quarantine_share:.0%}: the feed has "
                "changed; see the quarantine for the reasons.",
                self._source.source_id,
            )

    async def _mark_removed(self) -> None:
        if not self._is_whole or not isinstance(self._sink, MarksRemoved):
            return
        if self._tally.nameless:
            _tell(
                logging.WARNING,
                self._source,
                f"Source {self._source.source_id!r} has {self._tally.nameless} records without an "
                "id; so nobody can tell what it removed, and nothing is marked.",
            )
            return
        self._tally.removed = await self._sink.mark_removed(
            self._source.source_id, self._tally.present, self._limits.removed_share
        )


def _differ(one: Position | None, other: Position | None) -> bool:
    """Tell whether two positions say different things; the rest matters only to a crash."""
    if one is None or other is None:
        return one is not other
    return (one.timestamp, one.origin) != (other.timestamp, other.origin)
