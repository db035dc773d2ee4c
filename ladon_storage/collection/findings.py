"""The findings of a reading about its feed: refusals before it is promoted, warnings after it."""

from __future__ import annotations

import logging
from datetime import datetime, timedelta

from ladon_storage.collection.counts import ExtractionCounts
from ladon_storage.collection.protocols import Limits, Source
from ladon_storage.collection.reversions import MAX_IDS, Reversions
from ladon_storage.errors import SourceError, visible

logger = logging.getLogger("ladon_storage.collection")

QUARANTINE_MINIMUM = 10
"""Up to this many rejected records never fail a run with usable ones, unless the share is 0."""

HOPELESS_RECORDS = 10_000
"""The number of records, none of them usable, after which a run does not wait for the rest."""

_NARROW = 0.8
"""The share of the overlap beyond which a record's first sight shows that it is too narrow."""


def has_changed(counts: ExtractionCounts, limits: Limits) -> bool:
    """Return whether too many of the records cannot be used."""
    share = limits.quarantine_share
    most = max(QUARANTINE_MINIMUM, share * counts.seen) if share else 0
    return counts.quarantined > most or counts.is_useless


def is_hopeless(counts: ExtractionCounts) -> bool:
    """Return whether so many records came without a usable one that the rest is not awaited."""
    return counts.is_useless and counts.quarantined >= HOPELESS_RECORDS


def refuse_changed_feed(source: Source, counts: ExtractionCounts, limits: Limits) -> None:
    """Refuse a reading of which too many records cannot be used.

    Raises:
        SourceError: The feed has changed.
    """
    if not has_changed(counts, limits):
        return
    reasons = "; ".join(f"{reason} ({count})" for reason, count in counts.most_frequent(3))
    beyond = "" if counts.is_useless else f", more than {limits.quarantine_share * 100:g}%"
    raise SourceError(
        f"Of {counts.seen} records of source {source.source_id!r} {counts.quarantined} "
        f"cannot be used{beyond}: {reasons}. The feed has changed, or the source is set up "
        "wrong; the records are in the quarantine.",
        source.source_id,
    )


def refuse_missed_total(source: Source, counts: ExtractionCounts) -> None:
    """Refuse a reading with fewer items than the source states.

    Raises:
        SourceError: Items are missing.
    """
    is_compared = counts.total is not None and counts.completeness != "declared"
    if not is_compared or counts.is_unchanged or counts.seen >= (counts.total or 0):
        return
    raise SourceError(
        f"Source {source.source_id!r} states {counts.total} records and delivered "
        f"{counts.seen}. Look at how it is read; nothing of it was promoted.",
        source.source_id,
    )


def warn(source: Source, counts: ExtractionCounts, reversions: Reversions) -> None:
    """Log the findings of a completed run that need attention."""
    if counts.quarantined:
        reasons = "; ".join(f"{why} ({count})" for why, count in counts.most_frequent(3))
        tell(
            logging.WARNING,
            source,
            f"Source {source.source_id!r}: {counts.quarantined} of {counts.seen} records "
            f"cannot be used and are in the quarantine: {reasons}.",
        )
    if counts.in_future:
        tell(
            logging.WARNING,
            source,
            f"Records of source {source.source_id!r} from the future: {counts.in_future}; "
            "stored, and moving no watermark.",
        )
    if reversions.left:
        tell(
            logging.WARNING,
            source,
            f"Source {source.source_id!r} went back to earlier versions of more records than a "
            f"run takes: {reversions.left} of them are not current yet. The watermark "
            "stays, so that the next run goes on with them.",
        )
    if reversions.unknown:
        tell(
            logging.WARNING,
            source,
            f"Source {source.source_id!r} delivered {reversions.unknown} records older "
            f"than those in the sink behind its first {MAX_IDS} ids: where it went back to them, "
            "the sink still shows the later ones.",
        )
    overlap = source.overlap
    if overlap and counts.behind > _NARROW * overlap:
        right = timedelta(hours=-(-counts.behind * 1.5 // timedelta(hours=1)))
        tell(
            logging.WARNING,
            source,
            f"The overlap of source {source.source_id!r} is narrow: news was "
            f"{counts.behind} behind the watermark, and the overlap is {overlap}. Set it to "
            f"{right // timedelta(hours=1)} hours.",
        )


def warn_of_superseded(source: Source, count: int, since: datetime | None) -> None:
    """Log that a reading beside the regular runs delivered older versions than the sink's."""
    if not count:
        return
    back = (
        ""
        if source.overlap is None
        else (
            f"reset the watermark to before {since.isoformat()} and " if since else "reset it and "
        )
    )
    tell(
        logging.WARNING,
        source,
        f"Source {source.source_id!r} delivered {count:,} record{'s' * (count != 1)} in an older "
        f"version than the sink has, which stays. If the source went back to it, {back}collect: "
        "a regular run makes current what the source says last.",
    )


def warn_of_clock(source: Source, horizon: datetime) -> None:
    """Log that a source's clock is far behind, and holds its watermark back."""
    tell(
        logging.WARNING,
        source,
        f"The clock of source {source.source_id!r} says {horizon.isoformat()}, more than a day "
        "behind this one. Some records are later: they are stored, and move no watermark. "
        "Correct the clock.",
    )


def tell(level: int, source: Source, text: str) -> None:
    """Log a sentence about a source, whose texts it may quote."""
    logger.log(level, visible(text), extra={"source_id": source.source_id})
