"""The resume point of a run: the range to request, and the records that are durable already.

- A sink that remembers its position decides. If the position is behind the watermark (restored from
  a backup, dropped), a run starts there instead of leaving a hole. If it is ahead (a crash), the
  run resumes there. A watermark that an operator moved back wins: that range is read again.
- A watermark that an operator moved forward wins where the history knows it, and only over a sink
  that reaches to where it was: another one lacks more than the operator left out.
- A watermark in the future is not believed. The latest plausible one in the service's history
  replaces it, and the rules above apply. Without a history the sink's position replaces it.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import datetime, timedelta

from ladon_storage.collection.lease import SourceLease
from ladon_storage.collection.ledger import Gap, SinkBehind
from ladon_storage.collection.protocols import (
    Limits,
    Position,
    Run,
    Sink,
    Source,
    SupportsPosition,
    supports,
)
from ladon_storage.errors import visible
from ladon_storage.models import EMPTY_WATERMARK, WatermarkStatus, meant

logger = logging.getLogger("ladon_storage.collection")

_CLOCK_RESOLUTION = timedelta(seconds=1)
"""The most by which a service whose time has only seconds may be behind itself."""


def latest(*instants: datetime | None) -> datetime:
    """Return the latest of the timestamps that are set, or `EMPTY_WATERMARK`."""
    return max((each for each in instants if each is not None), default=EMPTY_WATERMARK)


@dataclass(frozen=True)
class ResumePoint:
    """The start of a run, and the records that it leaves out.

    Args:
        instant: The first timestamp that the source is asked for; ``None``: all records.
        durable: The timestamp up to which all records are durable already; ``None``: none is.
        position: The position that the sink remembers.
        origin: The first timestamp that is collected; ``None``: the beginning of the source. Older
            records are left out.
        gap: The records that the source no longer has.
        document: The digest of the document whose records are all in the sink; ``None``: read it.
        sink_behind: The range that the watermark covers and the sink does not have.
        has_other_settings: Whether other records are asked for than the last complete run did, so
            that a record with an early time is not late.
    """

    instant: datetime | None
    durable: datetime | None = None
    position: Position | None = None
    origin: datetime | None = None
    gap: Gap | None = None
    document: str | None = None
    sink_behind: SinkBehind | None = None
    has_other_settings: bool = False


async def plan_resume(source: Source, sink: Sink, lease: SourceLease, run: Run) -> ResumePoint:
    """Return the resume point of a run, and log it where that is not simply its watermark."""
    ours, limits = run.clock(), run.limits
    # A clock that is ahead would leave out what the lookback has, and promise the future.
    now = min(ours, lease.now())
    position = None
    if supports(sink, SupportsPosition):
        position = await sink.position(source.source_id)
    limit = lease.now() + _CLOCK_RESOLUTION
    if lease.before is not None and lease.before > limit:
        lease.before = await _last_sane(source, lease, position, limit, limits)
    durable, behind = lease.before, None
    if supports(sink, SupportsPosition):
        behind = _behind(position, lease.before)
        if behind is not None and await lease.is_set_by_hand(behind.start):
            _tell_left_out(source, behind)
            behind = None
        else:
            durable = _durable(source, lease, position, limit)
    if durable is None or durable == EMPTY_WATERMARK:
        origin = _origin(source, lease, position, limits, now)
        # A later run resumes here if there is nothing yet: its own lookback would begin later.
        return ResumePoint(origin, origin or durable, position, origin, sink_behind=behind)
    asked = back(durable, source.overlap)
    origin = position.origin if position else None
    if origin is not None and durable < origin:  # an operator went back behind it
        origin = asked
    _warn_of_lookback(source, now, limits, origin)
    if has_other_settings := _has_other_settings(source, lease):
        _warn_of_settings(source, asked)
    is_continued = position is not None and position.timestamp == durable
    return ResumePoint(
        asked,
        durable,
        position,
        origin,
        _gap(source, durable, now),
        position.document if position and is_continued else None,
        behind,
        has_other_settings,
    )


def _behind(position: Position | None, watermark: datetime | None) -> SinkBehind | None:
    """Return what a sink lacks of what the watermark covers; ``None``: nothing."""
    if watermark is None or watermark == EMPTY_WATERMARK:
        return None
    if position is None:
        return SinkBehind(end=watermark)
    if position.timestamp < watermark:
        return SinkBehind(start=meant(position.timestamp), end=watermark)
    return None


async def _last_sane(
    source: Source, lease: SourceLease, position: Position | None, limit: datetime, limits: Limits
) -> datetime | None:
    """Return the watermark that replaces one in the future.

    The sink's position does not count if the service has a history: an operator may have moved the
    watermark back behind the position, or the sink may have been restored.
    """
    before = lease.before
    assert before is not None  # noqa: S101 - it is in the future
    sane = await lease.last_sane(limit)
    if sane is None and position is not None:
        told = (position.timestamp, position.watermark)
        sane = max((each for each in told if each and each <= limit), default=None)
    success = meant(sane)
    instead = "nothing" if success is None else success.isoformat()
    _tell(
        logging.WARNING if before > limit + limits.future_skew else logging.INFO,
        source,
        f"The watermark of source {source.source_id!r} is in the future, at {before.isoformat()}: "
        f"it is not believed, and {instead} counts in its place. Look at the clock of its writer.",
    )
    return sane


def _origin(
    source: Source,
    lease: SourceLease,
    position: Position | None,
    limits: Limits,
    now: datetime,
) -> datetime | None:
    """Return the origin of a source's collection where sink or watermark know nothing of it.

    Records since what the other one knows were never collected, however long ago that is.
    """
    origins = [back(now, limits.initial_lookback)]
    if lease.before not in (None, EMPTY_WATERMARK):
        origins.append(back(lease.before, source.overlap))
    if position is not None and position.timestamp != EMPTY_WATERMARK:
        # A source that lists everything each time left out what is before its origin alone.
        lists_all = source.overlap is None
        origins.append(position.origin if lists_all else back(position.timestamp, source.overlap))
    bounds = [each for each in origins if each is not None]
    return min(bounds) if len(bounds) == len(origins) else None


def _durable(
    source: Source, lease: SourceLease, position: Position | None, limit: datetime
) -> datetime | None:
    """Return the timestamp up to which all is durable by both the sink and the watermark."""
    before, stored = lease.before, lease.stored
    if position is None:
        if before is not None:
            _tell(
                logging.WARNING,
                source,
                f"The sink has nothing of source {source.source_id!r}, whose watermark is at "
                f"{before.isoformat()}: it is new or was dropped, or the watermark was set by "
                "hand or imported; it is filled from the beginning.",
            )
        return None
    if position.timestamp > limit:
        return before
    if before is not None and position.timestamp < before:
        _tell(
            logging.WARNING,
            source,
            f"The sink has source {source.source_id!r} up to {position.timestamp.isoformat()}, "
            f"and its watermark is at {before.isoformat()}: the sink was restored from a backup, "
            "another one is collected into, or the watermark was set by hand or imported; it is "
            "filled from its own position.",
        )
        return position.timestamp
    # An operator who moved or deleted the watermark since that run wants it read again.
    unfinished = stored is not None and stored.status != WatermarkStatus.SUCCESS
    if stored is not None and stored.etag is not None and position.run_id is not None:
        # Even to the start of that run: such a watermark was not written by that run.
        unfinished = unfinished and position.is_of(stored.run_id)
    if unfinished and position.watermark == before and position.timestamp > latest(before):
        _tell(
            logging.INFO,
            source,
            f"The sink has source {source.source_id!r} up to {position.timestamp.isoformat()} from "
            "a run that did not end; it goes on from there.",
        )
        return position.timestamp
    return before


def _tell_left_out(source: Source, behind: SinkBehind) -> None:
    bounds = f"until={behind.end.isoformat()}"
    has = "nothing"
    if behind.start is not None:
        bounds = f"since={behind.start.isoformat()}, {bounds}"
        has = f"all up to {behind.start.isoformat()}"
    _tell(
        logging.WARNING,  # a mistake of the operator's is a hole that no later run reads
        source,
        f"The sink has {has} of source {source.source_id!r}, and an operator moved its watermark "
        f"to {behind.end.isoformat()}: the run begins there; collect what that leaves out by a "
        f"backfill: {bounds}.",
    )


def _warn_of_lookback(
    source: Source, now: datetime, limits: Limits, origin: datetime | None
) -> None:
    asked = back(now, limits.initial_lookback)
    if asked is None or origin is None or asked >= origin:
        return
    _tell(
        logging.WARNING,
        source,
        f"The initial lookback of source {source.source_id!r} reaches back to {asked.isoformat()}, "
        f"and it is collected from {origin.isoformat()} on; collect what is before by a backfill: "
        f"since={asked.isoformat()}, until={origin.isoformat()}.",
    )


def _has_other_settings(source: Source, lease: SourceLease) -> bool:
    before, now = lease.reading_digest, getattr(source, "reading_digest", None)
    return None not in (before, now) and before != now


def _warn_of_settings(source: Source, asked: datetime | None) -> None:
    if asked is None or getattr(source, "ignores_range", source.overlap is None):
        return  # everything is read
    _tell(
        logging.WARNING,
        source,
        f"The settings of source {source.source_id!r} that decide what it reads have changed since "
        f"its last complete run, and this one reads from {asked.isoformat()} on; collect what they "
        f"now include of before by a backfill: until={asked.isoformat()}.",
    )


def _gap(source: Source, durable: datetime, now: datetime) -> Gap | None:
    kept = back(now, getattr(source, "retention", None))
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


def back(instant: datetime, by: timedelta | None) -> datetime | None:
    """Return the time before an instant by a length; ``None``: there is no limit."""
    if by is None:
        return None
    try:
        return instant - by
    except OverflowError:  # before the year 1, where no record is
        return None


def _tell(level: int, source: Source, text: str) -> None:
    logger.log(level, visible(text), extra={"source_id": source.source_id})
