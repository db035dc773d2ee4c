"""The extraction from a source into a sink: durability, checkpoints, and faults of the feed.

- All delivered records are stored, whatever their time. Only two choices of the user leave records
  out, a backfill's range and the initial lookback, and those records are counted.
- A position is only written together with its page, and never claims more than is durable. For a
  source without order that is nothing before the last page.
- A declared order is used to resume only after a complete pass has shown it. A source that breaks
  its order is read to its end without checkpoints. Until then the sink's position goes back to the
  start of the run.
- A source that finds its declarations refuted takes its position back to the start of the run: a
  run with others would go on behind records that these left out.
- The watermark never moves beyond the time at which the run began to read, by the source's clock
  where its responses give it: records with later timestamps may have neighbours that come later.
- The run fails before the watermark moves if no record can be used, or if too many cannot be used
  or disappeared.
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from ladon_storage.collection.counts import ExtractionCounts
from ladon_storage.collection.findings import (
    has_changed,
    is_hopeless,
    refuse_changed_feed,
    refuse_missed_total,
    tell,
    warn,
    warn_of_clock,
)
from ladon_storage.collection.lease import SourceLease
from ladon_storage.collection.ledger import ExtractionResult
from ladon_storage.collection.prefetch import prefetch
from ladon_storage.collection.protocols import (
    Position,
    Run,
    Sink,
    Source,
    SupportsLookup,
    SupportsPosition,
    SupportsRemoval,
    WriteResult,
    supports,
)
from ladon_storage.collection.ranges import TimeRange
from ladon_storage.collection.records import Columns, Page, Record
from ladon_storage.collection.resume import ResumePoint, back, latest
from ladon_storage.collection.reversions import Reversions
from ladon_storage.collection.vanished import Vanished
from ladon_storage.errors import ConfigurationError, SinkError, SourceError
from ladon_storage.models import EMPTY_WATERMARK
from ladon_storage.values import to_utc

CHECKPOINT_SECONDS = 10.0
"""The interval of checkpoints for a sink that remembers its position anyway."""

LISTED = "0" * 30
"""The digest in a position for a listing that is not in one document."""

_LATER = timedelta(seconds=1)
"""A later time at any sink, of which one may keep whole seconds."""

_LONGEST_LEAD = timedelta(days=1)
"""The most by which a source's clock may be ahead, or behind unmentioned."""


class Extraction:
    """One reading of a source into an open sink.

    Args:
        source: The source.
        sink: The open sink.
        start: The resume point.
        run: The run, with the range of records that are stored.
        lease: The run's hold on the watermark; ``None`` for a reading that does not move it.
    """

    def __init__(
        self,
        source: Source,
        sink: Sink,
        start: ResumePoint,
        run: Run,
        lease: SourceLease | None = None,
    ) -> None:
        self._source = source
        self._sink = sink
        self._start = start
        self._run = run
        self._limits = run.limits
        self._lease = lease
        self._confirm = lease.confirm if lease is not None else run.confirm
        self._counts = ExtractionCounts(
            is_first=start.durable in (None, EMPTY_WATERMARK, start.origin)
        )
        self._remembers = lease is not None and supports(sink, SupportsPosition)
        self._position = start.position
        self._declares_order = bool(getattr(source, "ordered", False))
        self._is_guaranteed = self._declares_order and bool(
            getattr(source, "order_guaranteed", False)
        )
        # An order is that of the settings that had it; the list of others has to show its own.
        self._order_shown = (
            start.position is not None
            and start.position.order_shown
            and not start.has_other_settings
        )
        self._is_ordered = self._declares_order and (self._is_guaranteed or self._order_shown)
        self._learns_order = self._declares_order and not self._is_guaranteed
        self._is_full_snapshot = lease is not None and getattr(
            source, "full_snapshot", source.overlap is None
        )
        self._ignores_range = getattr(source, "ignores_range", source.overlap is None)
        self._vanished = Vanished(source, sink, start, run, lease)
        self._reversions = Reversions.of(sink, may_revert=lease is not None)
        self._checkpointed = time.monotonic()
        self._watermark = lease.before if lease else None
        self._began = run.clock()
        self._horizon = self._began
        """The limit of the watermark: the beginning of the reading, by the source's clock."""

    async def run(self) -> ExtractionResult:
        """Make every page durable, write checkpoints where they are safe, and count."""
        counts, start = self._counts, self._start
        if self._remembers and self._must_say_where_it_starts():
            self._position = None
            await self._write(Page(), latest(start.durable))
        try:
            await self._take_all()
        except SourceError as error:
            if error.refutes:
                await self._go_back()
            raise
        refuse_changed_feed(self._source, counts, self._limits)
        await self._vanished.refuse(counts, self._horizon)
        refuse_missed_total(self._source, counts)
        await self._revert()
        await self._mark_removed()
        if self._remembers and self._lease:
            candidate = latest(start.durable, counts.highest, self._lease.before)
            await self._write(Page(), candidate, is_last=True)
        warn(self._source, counts, self._reversions)
        if counts.is_ahead and self._began - self._horizon > _LONGEST_LEAD:
            warn_of_clock(self._source, self._horizon)
        return self._collected()

    async def _take_all(self) -> None:
        most = getattr(self._sink, "batch_characters", None)
        async with prefetch(self._pages(), self._source.source_id, most) as pages:
            async for group in pages:
                await self._take(group)
                group.clear()  # its memory is that of the next one
                if self._run.on_progress is not None:
                    await self._run.on_progress(self._collected())

    async def _go_back(self) -> None:
        """Return the sink's position to the start of the run, which a later one begins at again."""
        position, durable = self._position, latest(self._start.durable)
        if self._remembers and position is not None and position.timestamp > durable:
            await self._write(Page(), durable)

    def _pages(self) -> AsyncIterator[Page]:
        start, until = self._start.instant, self._run.asked.end
        if getattr(self._source, "uses_known", False):
            durable = None if self._counts.is_first else self._start.durable
            known = _Known(
                self._source,
                self._sink,
                self._start.document,
                start if self._lease is None else durable,
                self._run.stored,
            )
            pages = self._source.pages(start, until, known)  # type: ignore[call-arg]
        else:
            pages = self._source.pages(start, until)
        if hasattr(pages, "__aiter__"):
            return pages
        if hasattr(pages, "close"):  # a coroutine, which would cause a warning
            pages.close()
        raise ConfigurationError(
            f"`pages` of source {self._source.source_id!r} gives a {type(pages).__name__}, and no "
            "pages. Write it as `async def` with `yield`."
        )

    def _collected(self) -> ExtractionResult:
        counts, start = self._counts, self._start
        candidate = latest(start.durable, counts.highest)
        return ExtractionResult(
            start=start.instant,
            until=self._run.asked.end,
            gap=start.gap,
            sink_behind=start.sink_behind,
            candidate=None if candidate == EMPTY_WATERMARK else candidate,
            records_superseded=self._reversions.superseded,
            superseded_ids=self._reversions.superseded_ids,
            superseded_since=self._reversions.superseded_since,
            **counts.as_fields(),
        )

    def _must_say_where_it_starts(self) -> bool:
        """Return whether the stored position must be rewritten before the first page."""
        position = self._start.position
        if position is None or self._lease is None:
            return False
        is_ahead = position.timestamp > latest(self._lease.before)
        return position.timestamp != latest(self._start.durable) or (
            is_ahead and not position.is_of(self._run.run_id)
        )

    async def _take(self, pages: list[Page]) -> None:
        """Make pages durable together, and write a checkpoint where it is safe."""
        pages = [self._count(page) for page in pages]
        counts, promoted = self._counts, None
        if is_hopeless(counts):
            refuse_changed_feed(self._source, counts, self._limits)
        if self._is_ordered and counts.highest is not None:
            # A changed feed is read again once it is repaired: do not move past what it hides.
            # Possible reversions of the source are not durable before the end.
            is_sound = counts.in_order and not has_changed(counts, self._limits)
            is_sound = is_sound and not self._reversions.are_pending
            promoted = latest(self._start.durable, self._passed() if is_sound else None)
        await self._write(Page.of(pages), promoted)
        if promoted is not None and not self._reversions.are_pending:
            await self._checkpoint(promoted)

    def _passed(self) -> datetime | None:
        """Return the instant up to which an ordered source is read; ``None``: not known."""
        counts = self._counts
        if self._is_guaranteed or counts.highest is None:
            return counts.highest
        if not counts.has_risen:  # without ledgers the settings may be others unnoticed
            return None
        # More records of that instant may come, which its API may leave out of a range from there.
        return back(counts.highest, timedelta(0) if self._source.overlap else timedelta.resolution)

    def _count(self, page: Page) -> Page:
        """Count the delivered page, and return the part of it that is stored."""
        counts = self._counts
        if not isinstance(page, Page):
            raise ConfigurationError(
                f"`pages` of source {self._source.source_id!r} yields a {type(page).__name__}. "
                "Yield a Page of records and rejects."
            )
        if page.asked_at is not None and not counts.pages:
            asked_at = to_utc(page.asked_at)
            is_sane = asked_at <= self._began + _LONGEST_LEAD
            self._horizon = asked_at if is_sane else self._began
        counts.note(page, keeps_ids=self._is_full_snapshot)
        stored = page.records
        if self._run.stored.is_bounded:
            stored = [each for each in stored if each.timestamp in self._run.stored]
        if len(stored) < len(page.records):
            counts.skipped += len(page.records) - len(stored)
            page = replace(page, records=stored)
        dated = [] if page.undated else stored
        times = _times_of(dated)
        last = max(times, default=None)
        if last is not None and last > self._horizon:
            times = [each for each in times if each <= self._horizon]
            last = max(times, default=None)
        if self._declares_order and counts.see_order(times):
            tell(
                logging.WARNING,
                self._source,
                f"Source {self._source.source_id!r} declares that its pages come in order, and "
                f"{min(times).isoformat()} comes after {counts.highest}; it is read to its "
                "end before anything more is promoted. Where its settings or its class declare the "
                "order, take that out.",
            )
        if last is not None and (counts.highest is None or last > counts.highest):
            counts.highest = last
        if len(times) < len(stored):
            # Read for each page: a record that appears during a long run is not from the future.
            counts.is_ahead = True
            future = max(self._run.clock(), self._horizon) + self._limits.future_skew
            counts.in_future += sum(each > future for each in _times_of(stored))
        return page

    async def _write(self, page: Page, promoted: datetime | None, *, is_last: bool = False) -> None:
        """Write a page with the position after it, or only the one that changed."""
        position = self._position
        if self._remembers and self._lease and promoted is not None:
            position = Position(
                timestamp=promoted,
                watermark=self._watermark,
                origin=self._start.origin,
                run_id=self._run.run_id,
                order_shown=self._order_shown,
            )
        if position is not None and self._remembers:
            if is_last:
                position = position.model_copy(update=self._learned())
            elif len(page) or promoted is not None:
                # Until the run ends, the sink has only a part of another document.
                before = self._start.position
                had_some = before is not None and before.document is not None
                position = position.model_copy(update={"document": LISTED if had_some else None})
        moved = position if _differ(position, self._position) else None
        if len(page) or moved:
            if self._confirm is not None:
                await self._confirm()
            result = await self._sink.write(
                self._source.source_id, page, run_id=self._run.run_id, position=moved
            )
            self._see(page, result)
            if isinstance(result, int) or not result.superseded:
                self._position = position

    def _learned(self) -> dict[str, object]:
        """Return the fields of the position that a complete pass has established."""
        counts, shown = self._counts, self._order_shown
        if counts.is_unchanged:
            return {"document": self._start.document, "order_shown": shown}
        shown = shown or counts.has_risen
        # A document with faults, or with records to promote later, is read by each run.
        is_read_again = counts.quarantined or counts.is_ahead or self._reversions.left
        known = None if is_read_again else counts.document
        listed = LISTED if self._ignores_range else None
        return {
            "document": (known or listed) if counts.seen else None,
            "order_shown": self._learns_order and counts.in_order and shown,
        }

    def _see(self, page: Page, result: WriteResult | int) -> None:
        """Count the changes of a write, and the lateness of its records."""
        counts = self._counts
        if not isinstance(result, int | WriteResult) or isinstance(result, bool):
            raise SinkError(
                f"The sink of source {self._source.source_id!r} returns a "
                f"{type(result).__name__} from `write`. Return a WriteResult, or how many rows are "
                "new or changed.",
                self._source.source_id,
            )
        written = result if isinstance(result, int) else result.written
        if not 0 <= written <= len(page.records):
            raise SinkError(
                f"The sink of source {self._source.source_id!r} says that it changed "
                f"{written} rows of {len(page.records)} record"
                f"{'s' * (len(page.records) != 1)}. Correct what its `write` returns.",
                self._source.source_id,
            )
        if isinstance(result, int):
            counts.changed += result
            return
        counts.new += len(result.new)
        counts.changed += len(result.changed)
        # Pages without times have shown no order, whatever the source guarantees.
        in_order = self._is_guaranteed and counts.in_order and counts.highest is not None
        self._reversions.note(page.records, result.superseded, in_order=in_order)
        if counts.is_first or self._lease is None or self._start.has_other_settings:
            return
        now = self._horizon + (self._run.clock() - self._began)
        times = [*_times_of(result.new), *_times_of(result.changed)]
        refilled = self._start.sink_behind  # an earlier run saw those records first
        counts.delays += [now - each for each in times if not refilled or each > refilled.end]
        durable = self._start.durable
        if durable is not None and times:
            counts.behind = max(counts.behind, durable - min(times))

    async def _checkpoint(self, promoted: datetime) -> None:
        lease = self._lease
        if lease is None or promoted <= latest(self._watermark):
            return
        if self._remembers and time.monotonic() - self._checkpointed < CHECKPOINT_SECONDS:
            return
        await lease.checkpoint(promoted, self._counts.written)
        self._checkpointed, self._watermark = time.monotonic(), promoted
        tell(
            logging.INFO,
            self._source,
            f"Source {self._source.source_id!r}: page {self._counts.pages}, "
            f"{self._counts.delivered} records delivered, {self._counts.written} new or changed, "
            f"watermark {promoted.isoformat()}.",
        )

    async def _revert(self) -> None:
        """Make reverted versions current again, if the run still holds the source."""
        if not self._reversions.are_pending or self._lease is None:
            return
        await self._lease.acquire()
        self._counts.changed += await self._reversions.revert(
            self._source.source_id, self._run.run_id
        )
        if self._reversions.left:  # the next run reads versions that are not current yet again
            self._counts.highest = None

    async def _mark_removed(self) -> None:
        counts, sink = self._counts, self._sink
        if not self._is_full_snapshot or counts.is_unchanged or not supports(sink, SupportsRemoval):
            return
        if counts.nameless:
            tell(
                logging.WARNING,
                self._source,
                f"Source {self._source.source_id!r} has {counts.nameless} records without an "
                "id, so its removed records are unknown, and nothing is marked.",
            )
            return
        assert self._lease is not None  # noqa: S101 - of a full snapshot
        await self._lease.confirm()
        counts.removed = await sink.mark_removed(
            self._source.source_id, counts.present, self._limits.removed_share
        )


def _times_of(records: Sequence[Record]) -> list[datetime]:
    if isinstance(records, Columns):
        return records.timestamps
    return [each.timestamp for each in records]


@dataclass(frozen=True)
class _Known:
    """The content of the sink, as far as its source may ask for it."""

    source: Source
    sink: Sink
    document: str | None
    must_reach: datetime | None
    stored: TimeRange

    async def lacking(self, listed: Mapping[str, datetime]) -> Set[str]:
        """Ask the sink for what would be stored; one that does not look up lacks all of it."""
        if self.stored.is_bounded:
            listed = {each: time for each, time in listed.items() if time in self.stored}
        if supports(self.sink, SupportsLookup):
            return await self.sink.lacking(self.source.source_id, listed)
        return set(listed)

    async def ahead(self, listed: Mapping[str, datetime]) -> Set[str]:
        """Ask the sink; one that does not look up is not known to be ahead."""
        if not supports(self.sink, SupportsLookup):
            return set()
        later = {each: time + _LATER for each, time in listed.items()}
        return later.keys() - await self.sink.lacking(self.source.source_id, later)


def _differ(one: Position | None, other: Position | None) -> bool:
    """Return whether two positions differ in fields that matter without a crash, too."""
    if one is None or other is None:
        return one is not other
    return _said(one) != _said(other)


def _said(position: Position) -> tuple[object, ...]:
    return position.timestamp, position.origin, position.document, position.order_shown
