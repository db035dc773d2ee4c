"""The refusal of a reading without items, and the warning of one with few, after one with more.

- A listing that had items is not suddenly empty, however few they were.
- A source that is asked for a range delivers again what it delivered from there before: the sink's
  records are the evidence. A source may delete a few of them, but not all of many.
- A source may exclude the start of its range, or deliver only what is newer than the watermark
  (an overlap of 0): nothing is expected from there. Nor is what its ``retention`` lets it forget,
  and of a range with an end it may have changed everything since.
- Few items after many are only warned of: feeds have quiet days, and exports that keep a day. So
  are new items alone: a source that delivers only its latest ones has a gap before them.
"""

from __future__ import annotations

import logging
from datetime import datetime, timedelta

from ladon_storage.collection.counts import ExtractionCounts
from ladon_storage.collection.findings import tell
from ladon_storage.collection.lease import SourceLease
from ladon_storage.collection.protocols import (
    Run,
    Sink,
    Source,
    SupportsCount,
    SupportsPosition,
    supports,
)
from ladon_storage.collection.resume import ResumePoint, back, latest
from ladon_storage.errors import SourceError
from ladon_storage.models import EMPTY_WATERMARK, WatermarkStatus

MAX_DELETED = 10
"""Up to this many records of a range may be gone at once without failing the run."""


class Vanished:
    """The check of a reading that delivered nothing.

    Args:
        source: The source.
        sink: The open sink.
        start: The resume point.
        run: The run.
        lease: The run's hold on the watermark; ``None`` for a reading that does not move it.
    """

    def __init__(
        self,
        source: Source,
        sink: Sink,
        start: ResumePoint,
        run: Run,
        lease: SourceLease | None,
    ) -> None:
        self._source = source
        self._sink = sink
        self._start = start
        self._run = run
        self._lease = lease

    async def refuse(self, counts: ExtractionCounts, horizon: datetime) -> None:
        """Refuse a reading without items if the source delivered some before, or warn of it.

        Args:
            counts: The counts of the complete reading.
            horizon: The beginning of the reading; records of the future are no evidence.

        Raises:
            SourceError: A listing had items, or more than a few records of the range are gone.
        """
        if counts.is_unchanged or self._run.limits.removed_share >= 1:
            return
        if counts.seen:
            await self._warn_of_few(counts.seen, horizon)
            await self._warn_of_a_gap(counts, horizon)
            return
        if self._lease is not None and self._ignores_range:
            if self._had_some(self._lease):
                raise self._error("lists nothing, and had records before")
            return
        count = await self._count(horizon, MAX_DELETED + 1)
        start = self._start.instant
        since = "" if start is None else f" from {start.isoformat()} on"
        if count > MAX_DELETED and self._run.asked.end is None:
            raise self._error(
                f"delivers nothing{since}, and delivered more than {MAX_DELETED} records before "
                "that the sink has from there"
            )
        if count:
            more = f"more than {MAX_DELETED}" if count > MAX_DELETED else str(count)
            tell(
                logging.WARNING,
                self._source,
                f"Source {self._source.source_id!r} delivers nothing{since}, and the sink has "
                f"{more} of its records from there. Check whether they were removed at the source.",
            )

    async def _warn_of_few(self, seen: int, horizon: datetime) -> None:
        """Warn of a reading with far fewer items than the one before it.

        A range may have few of them: it is compared with the records of the sink from there.
        """
        stored = self._lease.stored if self._lease is not None else None
        if stored is None or stored.status != WatermarkStatus.SUCCESS or self._run.asked.end:
            return
        if getattr(self._source, "full_snapshot", self._source.overlap is None):
            # It has a rule of its own.
            return
        before = (stored.ledger or {}).get("records_delivered")
        if not isinstance(before, int) or not self._are_few(seen, before):
            return
        where = f", and {before} in the run before"
        if not self._ignores_range:
            most = int(seen / (1 - self._run.limits.removed_share)) + MAX_DELETED + 1
            count = await self._count(horizon, most)
            if not self._are_few(seen, count):
                return
            start = self._start.instant
            since = "" if start is None else f" from {start.isoformat()} on"
            where = f"{since}, and the sink has {'more than ' * (count == most)}{count} from there"
        tell(
            logging.WARNING,
            self._source,
            f"Source {self._source.source_id!r} delivered {seen} record{'s' * (seen > 1)}{where}. "
            "Check whether its answer is complete, or the others were removed at the source.",
        )

    async def _warn_of_a_gap(self, counts: ExtractionCounts, horizon: datetime) -> None:
        """Warn of a reading with new records alone, where the sink has others of its range.

        A source that keeps or delivers only its latest records lost those in between. It is warned
        of once: counting them takes a sink of many records long.
        """
        are_all_new = counts.new == counts.delivered - counts.quarantined - counts.skipped > 0
        if (
            self._lease is None
            or counts.is_first
            or counts.listed
            or not _had_known(self._lease)
            or not are_all_new
            or getattr(self._source, "full_snapshot", self._source.overlap is None)
        ):
            return
        most = counts.new + MAX_DELETED + 1
        if await self._count(horizon, most) < most:
            return
        start = self._start.instant
        since = "" if start is None else f" from {start.isoformat()} on"
        tell(
            logging.WARNING,
            self._source,
            f"Source {self._source.source_id!r} delivered {counts.new} new records{since}, and "
            f"none of the more than {MAX_DELETED} that the sink has from there. Records in between "
            "may be missing. Check whether it delivers only its latest ones, and collect it more "
            "often.",
        )

    def _are_few(self, seen: int, before: int) -> bool:
        share = self._run.limits.removed_share
        return before - seen > MAX_DELETED and seen < (1 - share) * before

    @property
    def _ignores_range(self) -> bool:
        return bool(getattr(self._source, "ignores_range", self._source.overlap is None))

    def _had_some(self, lease: SourceLease) -> bool:
        """Return whether the last complete listing had items."""
        if supports(self._sink, SupportsPosition):
            position = self._start.position
            return position is not None and position.document is not None
        # A lookback alone moves the watermark to where it begins.
        stored = lease.stored.records_collected if lease.stored else None
        is_moved = lease.before not in (None, EMPTY_WATERMARK)
        return is_moved and (self._run.limits.initial_lookback is None or bool(stored))

    async def _count(self, horizon: datetime, most: int) -> int:
        """Return how many records of the range the sink has, up to a limit."""
        start, end = self._start.instant, self._run.asked.end
        if not supports(self._sink, SupportsCount):
            return 0
        if self._lease is not None and self._source.overlap == timedelta(0) and start is not None:
            return 0
        kept = back(horizon, getattr(self._source, "retention", None))
        after = None if start is None and kept is None else latest(start, kept)
        before = horizon if end is None else min(end, horizon)
        if after is not None and after >= before:
            return 0
        return await self._sink.count_records(self._source.source_id, after, before, most)

    def _error(self, problem: str) -> SourceError:
        return SourceError(
            f"Source {self._source.source_id!r} {problem}: its answer is incomplete, or all were "
            "removed. Look at the source, and set removed_share to 1 if that is right.",
            self._source.source_id,
        )


def _had_known(lease: SourceLease) -> bool:
    """Return whether the run before was delivered known records too, or does not say so.

    The first run could not be, and one that failed or left no ledger is no evidence.
    """
    stored = lease.stored
    if stored is None or stored.status != WatermarkStatus.SUCCESS or not stored.ledger:
        return True
    return stored.ledger.get("start") is None or bool(stored.ledger.get("records_known"))
