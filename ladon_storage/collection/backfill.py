"""A backfill of a past range, read window by window or several at once, and resumed.

- The watermark of the source is left alone. A backfill's progress is in a watermark of its own, so
  the same backfill reads only what earlier runs of it have not finished.
- What lies outside of its whole range is left out; what is in another window of it is stored. A
  first collection leaves out what is before, as regular runs do: what is after it is collected
  anyway, and a source may not deliver it again.
- Several windows are read at once by *workers*: of this process, or of another. A window that fails
  does not end the others, and is read once more, alone, when they have ended: a source may only
  have been overrun.
- The first collection of a source may be a backfill. It holds the source, and hands over to the
  regular runs when all windows are finished: the sink's position first, and then the watermark.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from itertools import islice

from ladon_storage.collection.findings import warn_of_superseded
from ladon_storage.collection.foreign_errors import Entered
from ladon_storage.collection.lease import SourceLease
from ladon_storage.collection.ledger import Counts, ExtractionResult
from ladon_storage.collection.protocols import (
    Limits,
    Position,
    Run,
    Sink,
    Source,
    SupportsPosition,
    WatermarkStore,
)
from ladon_storage.collection.ranges import TimeRange
from ladon_storage.collection.records import Page
from ladon_storage.collection.resume import latest
from ladon_storage.collection.run import ExtractCallable, beside_runs, extract
from ladon_storage.collection.sharing import SharedSink
from ladon_storage.collection.stores import watermark_store
from ladon_storage.collection.summaries import one_line
from ladon_storage.collection.windows import StoredProgress
from ladon_storage.collection.workers import run_workers
from ladon_storage.errors import (
    CollectionError,
    ConfigurationError,
    SourceError,
    WatermarkConflictError,
)
from ladon_storage.values import to_utc

logger = logging.getLogger(__name__)

Windows = Callable[[int, int], Awaitable[None]]
"""A function that is called with the number of finished windows, and of all windows."""

CollectBatch = Callable[[list[TimeRange]], Awaitable[list[ExtractionResult | Exception]]]
"""A function that reads parts of the range elsewhere, and returns the outcome of each."""

MAX_WORKERS = 64
MAX_WINDOWS = 100_000
"""The most windows of a backfill: eleven years by the hour. All of them are held in memory."""
BATCHES_PER_WORKER = 4
MAX_PAUSE_SECONDS = 120.0
"""The longest wait for a source that says when it is to be asked again."""

_NAMED = 3


class BackfillReport(Counts):
    """The result of a backfill; windows that an earlier one had finished are not read again.

    ``until`` is the end of what was read, which is never in the future.
    """

    source_id: str
    since: datetime
    until: datetime
    windows: int
    windows_done_before: int


async def backfill(
    source: Source,
    sink: Sink,
    storage: WatermarkStore,
    since: datetime,
    until: datetime,
    *,
    window: timedelta = timedelta(days=1),
    run_id: str,
    limits: Limits = Limits(),  # noqa: B008 - frozen
    collect: ExtractCallable = extract,
    windows: Windows | None = None,
    workers: int = 1,
    first_collection: bool = False,
    collect_batch: CollectBatch | None = None,
) -> BackfillReport:
    """Read a past range again, window by window; resume where the same backfill broke off.

    Args:
        source: The source.
        sink: The sink; entered and left for each window, or for all where several are read at once.
        storage: The storage of the backfill's progress.
        since: The first timestamp; naive is UTC.
        until: The timestamp before which it ends; naive is UTC.
        window: The part that is repeated after a failure.
        run_id: The name of this run, as the service records it.
        limits: The limits beyond which a window fails.
        collect: The function that reads and writes the pages: `run.extract`, or a wrapper of it.
        windows: Called after each window.
        workers: The number of windows that are read at once. With one, the first failure ends it.
        first_collection: Whether the regular runs go on from its end. The source must never have
            been collected, and is held meanwhile.
        collect_batch: Reads several windows for a worker that is elsewhere; ``None``: ``collect``
            reads each here.

    Raises:
        ConfigurationError: The range or the window is empty, or the source has a watermark already.
        SourceBusyError: Another run holds the source of a first collection.
        CollectionError: A window failed twice; the others are finished.
        LadonStorageError: The storage, the source or the sink failed.
    """
    asked = TimeRange(to_utc(since), to_utc(until))
    if window <= timedelta(0):
        raise ConfigurationError(f"The window of a backfill is {window}. Set it to more than 0.")
    if not 1 <= workers <= MAX_WORKERS:
        raise ConfigurationError(
            f"The workers of a backfill are {workers}. Set them to 1 to {MAX_WORKERS}."
        )
    run = Run(run_id, limits, stored=stored_range(asked, first_collection=first_collection))
    elapsed = _elapsed(source, asked, run.clock())
    every = list(islice(elapsed.windows(window), MAX_WINDOWS + 1))
    if len(every) > MAX_WINDOWS:
        raise ConfigurationError(
            f"The range of a backfill has more than {MAX_WINDOWS:,} windows of {window}. Set a "
            "longer window."
        )
    await storage.health_check()
    progress = StoredProgress(watermark_store(storage), source.source_id, asked, run_id)
    async with AsyncExitStack() as held:
        lease = None
        if first_collection:
            lease = await held.enter_async_context(_held(source, storage, run))
            run = replace(run, confirm=lease.confirm)
        else:
            collect = beside_runs(collect, storage)
        await progress.read()
        if workers > 1 and not isinstance(sink, SharedSink):
            sink = SharedSink(sink)
            held.push_async_callback(sink.close)
        job = _Backfill(source, sink, run, progress, collect, windows, every)
        job.collect_batch, done = collect_batch, job.done
        await job.read(workers)
        if lease is not None:
            await _hand_over(source, sink, lease, progress, job.counts)
        else:
            warn_of_superseded(source, job.counts.records_superseded, job.superseded_since)
    return BackfillReport(
        source_id=source.source_id,
        since=progress.start,
        until=every[-1].end,
        windows=len(every),
        windows_done_before=done,
        **dict(job.counts),
    )


def stored_range(asked: TimeRange, *, first_collection: bool) -> TimeRange:
    """Return the range of records that each window of a backfill stores."""
    return TimeRange(asked.start) if first_collection else asked


def _elapsed(source: Source, asked: TimeRange, now: datetime) -> TimeRange:
    """Return the part of a range that is over; what is still to come must not count as finished.

    Raises:
        ConfigurationError: There is none.
    """
    assert asked.start is not None  # noqa: S101
    assert asked.end is not None  # noqa: S101
    if asked.start >= now:
        raise ConfigurationError(
            f"The range of a backfill begins in the future, at {asked.start.isoformat()}. Set "
            "since to an earlier time."
        )
    if asked.end > now:
        logger.warning(
            "The backfill of source %r ends in the future, at %s. It reads up to now; the same "
            "backfill reads the rest later.",
            source.source_id,
            asked.end.isoformat(),
            extra={"source_id": source.source_id},
        )
    return TimeRange(asked.start, min(asked.end, now))


class _Backfill:
    """The windows of one backfill, and what became of them."""

    def __init__(
        self,
        source: Source,
        sink: Sink,
        run: Run,
        progress: StoredProgress,
        collect: ExtractCallable,
        windows: Windows | None,
        every: list[TimeRange],
    ) -> None:
        self.counts = Counts()
        self.superseded_since: datetime | None = None
        self.collect_batch: CollectBatch | None = None
        self._source = source
        self._sink = sink
        self._run = run
        self._progress = progress
        self._collect = collect
        self._windows = windows
        self._count = len(every)
        self._left = deque(each for each in every if any(progress.left_of(each)))
        self.done = self._count - len(self._left)
        self._failed: list[tuple[TimeRange, Exception]] = []
        self._failures_in_a_row = 0

    async def read(self, workers: int) -> None:
        """Read all windows that are left.

        Raises:
            CollectionError: Some failed, and again when each was read alone.
        """
        await self._tell()
        if workers == 1:
            while self._left:
                await self._read(self._left.popleft())
            return
        await run_workers(min(workers, len(self._left)), lambda: self._work(workers))
        failed, self._failed = self._failed, []
        if self._left:  # all workers failed one after another: the source is down
            raise self._error(failed)
        for number, (window, _) in enumerate(failed):
            try:
                await self._read_alone(window)
            except WatermarkConflictError:
                raise
            except Exception as error:
                raise self._error([(window, error), *failed[number + 1 :]]) from error

    async def _work(self, workers: int) -> None:
        size = 1
        if self.collect_batch is not None:
            size = max(1, len(self._left) // (workers * BATCHES_PER_WORKER))
        while self._left and self._failures_in_a_row < workers:
            batch = [self._left.popleft() for _ in range(min(size, len(self._left)))]
            try:
                await self._read(*batch)
            except WatermarkConflictError:
                raise
            except Exception as error:  # of a source of one's own, too
                self._failures_in_a_row += 1
                for window in batch:
                    if any(self._progress.left_of(window)):
                        self._note_failure(window, error)
            else:
                self._failures_in_a_row = 0

    async def _read_alone(self, window: TimeRange) -> None:
        """Read a failed window again, and once more when the source is to be asked again.

        The failures of several windows may have opened its circuit, which rejects the reading
        without a request.
        """
        try:
            await self._read(window)
        except SourceError as error:
            pause = error.retry_after
            if pause is None or pause > MAX_PAUSE_SECONDS:
                raise
            await asyncio.sleep(pause)
            await self._read(window)

    def _note_failure(self, window: TimeRange, error: Exception) -> None:
        self._failed.append((window, error))
        logger.warning(
            "The window %s of source %r failed: %s",
            _named(window),
            self._source.source_id,
            one_line(error),
            extra={"source_id": self._source.source_id},
        )

    async def _read(self, *windows: TimeRange) -> None:
        """Read windows; the first error is raised when all are read that could be."""
        first: Exception | None = None
        parts = [(window, list(self._progress.left_of(window))) for window in windows]
        flat = [part for _, each in parts for part in each]
        if self.collect_batch is None:
            for part in flat:
                run = replace(self._run, asked=part)
                await self._note(part, await self._collect(self._source, self._sink, run))
        else:
            for part, outcome in zip(flat, await self.collect_batch(flat), strict=True):
                if isinstance(outcome, Exception):
                    first = first or outcome
                else:
                    await self._note(part, outcome)
        self.done += sum(not any(self._progress.left_of(window)) for window in windows)
        await self._tell()
        if first is not None:
            raise first

    async def _note(self, part: TimeRange, collected: ExtractionResult) -> None:
        self.counts += collected
        times = [self.superseded_since, collected.superseded_since]
        self.superseded_since = min((each for each in times if each is not None), default=None)
        await self._progress.finished(part, collected.candidate, self.counts.records_written)

    async def _tell(self) -> None:
        if self._windows is not None:
            await self._windows(self.done, self._count)

    def _error(self, failed: list[tuple[TimeRange, Exception]]) -> CollectionError:
        named = "; ".join(
            f"{_named(window)} ({one_line(error)})" for window, error in failed[:_NAMED]
        )
        more = f"; and {len(failed) - _NAMED:,} more" if len(failed) > _NAMED else ""
        unread = f" {len(self._left):,} were not begun." if self._left else ""
        return CollectionError(
            f"{len(failed):,} of {self._count:,} windows of source {self._source.source_id!r} "
            f"failed: {named}{more}.{unread} Run the same backfill again: it reads only what is "
            "not finished.",
            self._source.source_id,
        )


@asynccontextmanager
async def _held(source: Source, storage: WatermarkStore, run: Run) -> AsyncIterator[SourceLease]:
    """Hold a source that was never collected; write `failed` if the block fails."""
    if source.overlap is None:
        raise ConfigurationError(
            f"Source {source.source_id!r} is read whole by each run, so its first collection has "
            "no windows. Collect it."
        )
    lease = SourceLease(storage, source.source_id, run)
    await lease.read()
    if lease.before is not None:
        raise ConfigurationError(
            f"Source {source.source_id!r} is collected already, up to {lease.before.isoformat()}, "
            "so this range is not its first collection. Run the backfill without that."
        )
    try:
        await lease.begin()
        async with lease.renewed():
            yield lease
    except BaseException as error:
        if not isinstance(error, WatermarkConflictError | GeneratorExit):
            await lease.abort(error)
        raise


async def _hand_over(
    source: Source, sink: Sink, lease: SourceLease, progress: StoredProgress, counts: Counts
) -> None:
    """Let the regular runs go on from the end of a complete first collection.

    A source may deliver more than it was asked for, which proves nothing beyond the range. Where
    nothing is known to be collected, they begin where it began: their own lookback may begin later.
    """
    highest, run_id = latest(progress.candidate, progress.start), lease.run_id
    candidate = min(highest, progress.reached)
    await lease.confirm()
    async with Entered(sink):
        if isinstance(sink, SupportsPosition):
            position = Position(timestamp=candidate, origin=progress.start, run_id=run_id)
            await sink.write(source.source_id, Page(), run_id=run_id, position=position)
    await lease.commit(candidate, counts.records_written)


def _named(window: TimeRange) -> str:
    assert window.start is not None  # noqa: S101
    assert window.end is not None  # noqa: S101
    return f"{window.start.isoformat()} to {window.end.isoformat()}"
