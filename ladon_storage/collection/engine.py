"""How a run commits: the one place that knows the order of storage, source and sink.

::

    check health -> read the watermark -> write `running` -> [page -> durable]* -> write `success`
                                                |_____________ any failure ____-> write `failed`

- The watermark moves once, at the end, to the greatest timestamp of durable records: a source may
  yield its pages in any order. It never goes back, and never beyond now plus `FUTURE_SKEW`.
- Each write of a run carries the version tag that came with the one before. So whoever else wrote
  in between, a faster run or an operator, wins, and a loser writes nothing more, not even `failed`.
- Nothing is written before the watermark was read: a failure that is not fenced could take the
  watermark away from a run that is well.
- Nothing is retried here. Requests of a source are retried where they are made, calls of the
  storage by who passes it in.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

from pydantic import BaseModel, ConfigDict

from ladon_storage.collection.interfaces import (
    Clock,
    Collect,
    Collected,
    Sink,
    Source,
    Storage,
    utc_now,
)
from ladon_storage.collection.records import Page
from ladon_storage.errors import (
    ConfigurationError,
    InvalidResponseError,
    WatermarkConflictError,
)
from ladon_storage.models import Watermark, WatermarkStatus, to_utc

logger = logging.getLogger(__name__)

__all__ = [
    "Clock",
    "Collect",
    "Collected",
    "Report",
    "Sink",
    "Source",
    "Storage",
    "collect",
    "run",
    "utc_now",
]

FUTURE_SKEW = timedelta(minutes=5)
"""How far a source's clock may be ahead of ours before its records no longer move the watermark."""

FAILURE_SECONDS = 30.0
"""How long a failed or cancelled run may take to write that it failed."""

NOTHING_COLLECTED = datetime.min.replace(tzinfo=UTC)
"""The watermark of a source that was collected whole and had nothing yet.

The contract wants a timestamp for every success. No record can be older than this one, so that it
skips nothing that appears later; any other, also the first of 1970, could.
"""

_LONGEST_ERROR = 2_000


class Report(BaseModel):
    """Say what a run did.

    ``start`` and ``until`` are what the source was asked for. A backfill neither reads nor writes
    the watermark, and has ``None`` for it.
    """

    model_config = ConfigDict(frozen=True)

    source_id: str
    run_id: str
    backfill: bool
    start: datetime | None
    until: datetime | None
    pages: int
    records_read: int
    records_written: int
    records_in_future: int
    watermark_before: datetime | None
    watermark_after: datetime | None
    seconds: float


async def collect(
    source: Source,
    sink: Sink,
    start: datetime | None,
    until: datetime | None = None,
    *,
    clock: Clock = utc_now,
) -> Collected:
    """Read a source's pages and make each durable before the next; touch no watermark.

    When it returns, everything that it counted is durable. When it raises, whole pages are.
    """
    pages = read = written = in_future = 0
    candidate: datetime | None = None
    async with sink, _closing(source.pages(start, until)) as incoming:
        async for page in incoming:
            # Asked for each page: what came up during a run of hours is not from the future.
            latest = clock() + FUTURE_SKEW
            if page.records:
                written += await sink.write(source.source_id, page)
            times = [record.timestamp for record in page.records if record.timestamp <= latest]
            candidate = max(times if candidate is None else [candidate, *times], default=None)
            pages += 1
            read += len(page.records)
            in_future += len(page.records) - len(times)
    if in_future:
        logger.warning(
            "Source %r has %d records from the future; they are stored and move no watermark.",
            source.source_id,
            in_future,
            extra={"source_id": source.source_id},
        )
    return Collected(
        pages=pages,
        records_read=read,
        records_written=written,
        records_in_future=in_future,
        candidate=candidate,
    )


async def run(
    source: Source,
    sink: Sink,
    storage: Storage,
    *,
    run_id: str,
    since: datetime | None = None,
    until: datetime | None = None,
    collect: Collect = collect,
    clock: Clock = utc_now,
) -> Report:
    """Collect a source from where durable data ends, and write the outcome back.

    With ``since`` or ``until`` it is a backfill: it reads that range and leaves the watermark
    alone.

    On any failure, cancellation and a signal's exception included, `failed` is written for at most
    `FAILURE_SECONDS`, and the original error goes on unchanged; that `failed` could not be written
    is a note on it. Cancelling again does not cut the writing short.

    Args:
        source: What is collected.
        sink: Where it becomes durable; entered and left by ``collect``.
        storage: Where the watermark is.
        run_id: The name of this run, as the service records it.
        since: The first instant of a backfill; naive is UTC.
        until: The instant before which a backfill ends; naive is UTC.
        collect: What reads and writes the pages: `collect` of this module, or a wrapper of it.
        clock: The time, as an aware datetime.

    Raises:
        ConfigurationError: The range of the backfill is empty.
        WatermarkConflictError: Another run was faster; its watermark was left as it is.
        LadonStorageError: The storage, the source or the sink failed.
    """
    began = time.monotonic()
    since, until = _checked_range(since, until)
    await storage.health_check()
    if since is not None or until is not None:
        collected = await collect(source, sink, since, until, clock=clock)
        return _report(source, run_id, since, until, collected, began, backfill=True)
    stored = await storage.get_watermark(source.source_id)
    before = _last_success(source.source_id, stored)
    start = _start(before, source.overlap)
    turn = _Turn(storage, source.source_id, run_id, clock, stored.etag if stored else None)
    try:
        await turn.write(WatermarkStatus.RUNNING, clock())
        collected = await collect(source, sink, start, None, clock=clock)
        after = max(before or NOTHING_COLLECTED, collected.candidate or NOTHING_COLLECTED)
        await turn.write(
            WatermarkStatus.SUCCESS, after, records_collected=collected.records_written
        )
    except BaseException as error:
        # A coroutine that is being closed cannot await; after a conflict another run is in charge.
        if not isinstance(error, WatermarkConflictError | GeneratorExit):
            await turn.fail(error)
        raise
    return _report(
        source,
        run_id,
        start,
        None,
        collected,
        began,
        watermark_before=before,
        watermark_after=after,
    )


class _Turn:
    """Hold a watermark for one run: each write is fenced by the answer to the one before."""

    def __init__(
        self, storage: Storage, source_id: str, run_id: str, clock: Clock, etag: str | None
    ) -> None:
        self._storage = storage
        self._source_id = source_id
        self._run_id = run_id
        self._clock = clock
        self._etag = etag

    async def write(
        self,
        status: WatermarkStatus,
        timestamp: datetime,
        *,
        error_message: str | None = None,
        records_collected: int | None = None,
    ) -> None:
        stored = await self._storage.update_watermark(
            self._source_id,
            timestamp,
            status,
            error_message,
            if_match=self._etag,
            records_collected=records_collected,
            run_id=self._run_id,
        )
        self._etag = stored.etag

    async def fail(self, error: BaseException) -> None:
        """Write `failed` in a task of its own, which cancelling this one again does not reach."""
        message = _one_line(error)
        writing = asyncio.ensure_future(
            self.write(WatermarkStatus.FAILED, self._clock(), error_message=message)
        )
        deadline = time.monotonic() + FAILURE_SECONDS
        while not writing.done() and (left := deadline - time.monotonic()) > 0:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait({writing}, timeout=left)
        problem: BaseException | None
        if not writing.done():
            writing.cancel()
            problem = TimeoutError(f"no answer within {FAILURE_SECONDS:g} s")
        elif writing.cancelled():
            problem = asyncio.CancelledError()
        else:
            problem = writing.exception()
        if problem is None:
            return
        note = f"That the run failed could not be written to its watermark: {_one_line(problem)}"
        error.add_note(note)
        logger.error(
            "Source %r: %s (the run failed with %s)",
            self._source_id,
            note,
            message,
            exc_info=problem,
            extra={"source_id": self._source_id},
        )


def _checked_range(
    since: datetime | None, until: datetime | None
) -> tuple[datetime | None, datetime | None]:
    since = None if since is None else to_utc(since)
    until = None if until is None else to_utc(until)
    if since is not None and until is not None and since >= until:
        raise ConfigurationError(
            f"A backfill from {since.isoformat()} until {until.isoformat()} is empty; "
            "set until to a later instant than since."
        )
    return since, until


def _last_success(source_id: str, stored: Watermark | None) -> datetime | None:
    if stored is None:
        return None
    before = stored.last_successful_timestamp
    if before is None and stored.status == WatermarkStatus.SUCCESS:
        # Taken for "never collected", it would be overwritten, and the mistake leave no trace.
        raise InvalidResponseError(
            f"Watermark {source_id!r} says success and has no last_successful_timestamp; "
            "repair or delete it before collecting, since without it everything is collected again."
        )
    return before


def _start(before: datetime | None, overlap: timedelta | None) -> datetime | None:
    if before is None or overlap is None:
        return None
    try:
        return before - overlap
    except OverflowError:  # before the year 1, where no record is
        return None


def _report(
    source: Source,
    run_id: str,
    start: datetime | None,
    until: datetime | None,
    collected: Collected,
    began: float,
    *,
    backfill: bool = False,
    watermark_before: datetime | None = None,
    watermark_after: datetime | None = None,
) -> Report:
    return Report(
        source_id=source.source_id,
        run_id=run_id,
        backfill=backfill,
        start=start,
        until=until,
        watermark_before=watermark_before,
        watermark_after=watermark_after,
        seconds=time.monotonic() - began,
        **collected.model_dump(exclude={"candidate"}),
    )


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:_LONGEST_ERROR] if text else type(error).__name__


@contextlib.asynccontextmanager
async def _closing(pages: AsyncIterator[Page]) -> AsyncIterator[AsyncIterator[Page]]:
    """Close a source's generator at once, not when it is collected as garbage, if it is one."""
    try:
        yield pages
    finally:
        if aclose := getattr(pages, "aclose", None):
            await aclose()
