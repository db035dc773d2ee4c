"""The commit protocol of a run: the one place that knows the order of storage, source and sink.

::

    check health -> read the watermark -> write `running` -> [page -> durable]* -> write `success`
                                                |_____________ any failure ____-> write `failed`

- The watermark moves to the greatest timestamp of durable records, at the end, and for a source
  whose pages come in order also on the way. It never goes back, and never beyond the time at which
  the run began to read.
- `resume` plans where a run starts, `extraction` does the work between `running` and the outcome,
  and `lease` holds the watermark.
- Nothing is retried here. A source retries its own requests; the caller that passes the storage in
  retries its calls.
"""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, Protocol

from pydantic import ValidationError

from ladon_storage.collection.extraction import Extraction
from ladon_storage.collection.findings import tell, warn_of_superseded
from ladon_storage.collection.foreign_errors import (
    Entered,
    cancellations_checked,
    errors_fit_to_show,
)
from ladon_storage.collection.garbage import objects_set_aside
from ladon_storage.collection.lateness import Lateness
from ladon_storage.collection.lease import SourceLease, lease_of
from ladon_storage.collection.ledger import Counts, ExtractionResult, Ledger, OnProgress
from ladon_storage.collection.protocols import (
    Clock,
    Limits,
    Run,
    Sink,
    Source,
    WatermarkStore,
    utc_now,
)
from ladon_storage.collection.ranges import ALL_TIME, TimeRange
from ladon_storage.collection.resume import ResumePoint, latest, plan_resume
from ladon_storage.collection.standby import Holder, WhenBusy
from ladon_storage.errors import ConfigurationError, WatermarkConflictError
from ladon_storage.models import Watermark, WatermarkStatus, meant

logger = logging.getLogger(__name__)

_NOTHING_YET = ExtractionResult()
_NOT_KEPT = ExtractionResult.model_fields.keys() - Ledger.model_fields.keys()

MOST_READINGS = 3
"""The most readings of a range, until a reading beside the regular runs gives up being alone."""


class Report(Ledger):
    """The result of one run: its ledger, and its watermark.

    The watermark is ``None`` for a backfill, which leaves it alone, and for a source of
    which nothing was ever collected. ``skipped`` is the run that held the source, where this one
    collected nothing for that reason.
    """

    source_id: str
    run_id: str
    backfill: bool
    watermark_before: datetime | None
    watermark_after: datetime | None
    seconds: float
    skipped: Holder | None = None


class ExtractCallable(Protocol):
    """The signature of `extract`, shared by the Prefect task that wraps it."""

    async def __call__(
        self, source: Source, sink: Sink, run: Run, lease: SourceLease | None = None
    ) -> ExtractionResult:
        """Collect all records, and return when they are durable."""
        ...


async def extract(
    source: Source, sink: Sink, run: Run, lease: SourceLease | None = None
) -> ExtractionResult:
    """Make a source's pages durable one after another, the next one read while one is written.

    When it returns, all counted records are durable. When it raises, complete pages are.

    Args:
        source: The source.
        sink: The sink; entered and left.
        run: The run, with the range that the source is asked for where there is no ``lease``.
        lease: The run's hold on the watermark, from which it starts, and which it moves on the way.

    Raises:
        SourceError: The source failed, or has changed beyond the limits.
        SinkError: The sink failed.
        WatermarkConflictError: Another run took over; only with ``lease``.
    """
    with cancellations_checked(source.source_id), errors_fit_to_show(source.source_id):
        async with Entered(sink):
            if lease is None:
                begin = ResumePoint(run.asked.start)
            else:
                begin = await plan_resume(source, sink, lease, run)
                run = replace(run, asked=ALL_TIME, stored=TimeRange(begin.origin))
            with objects_set_aside():
                return await Extraction(source, sink, begin, run, lease).run()


def beside_runs(extract: ExtractCallable, storage: WatermarkStore) -> ExtractCallable:
    """Return ``extract`` for a range that is read beside the regular runs, without their lease.

    An answer that was on its way while a regular run stored a later content puts the earlier one
    back where both have the same timestamp. So a reading that changed records while a regular run
    wrote the watermark is repeated: the last answer is younger than that run's.

    Args:
        extract: The function that reads and writes the pages.
        storage: The storage of the watermark, which is only read.
    """

    async def extract_beside(
        source: Source, sink: Sink, run: Run, lease: SourceLease | None = None
    ) -> ExtractionResult:
        counts = Counts()
        for _ in range(MOST_READINGS):
            before = await storage.get_watermark(source.source_id)
            collected = await extract(source, sink, run, lease)
            counts += collected
            if not collected.records_changed:
                break
            if _is_alone(before, await storage.get_watermark(source.source_id)):
                break
        else:
            tell(
                logging.WARNING,
                source,
                f"Source {source.source_id!r} was read {MOST_READINGS} times, changed records each "
                "time, and may have been collected by regular runs meanwhile: a record may have an "
                "earlier content. Read it again while no regular run does.",
            )
        # What the sink keeps is what the last reading says, and no sum.
        counted = {**dict(counts), "records_superseded": collected.records_superseded}
        return collected.model_copy(update=counted)

    return extract_beside


def _is_alone(before: Watermark | None, after: Watermark | None) -> bool:
    """Return whether no regular run wrote the watermark in between, nor is at work now."""
    if before is None or after is None:
        return before is after
    written = before.etag, before.last_run_timestamp
    if not any(written) or written != (after.etag, after.last_run_timestamp):
        return False
    return after.status != WatermarkStatus.RUNNING or _is_dead(after)


def _is_dead(held: Watermark) -> bool:
    """Return whether the run that holds a source has not renewed its lease, and will not."""
    now, written, lease = held.answered_at, held.last_run_timestamp, lease_of(held)
    if now is None or written is None or lease is None:
        return False
    return now - written >= lease


async def run(
    source: Source,
    sink: Sink,
    storage: WatermarkStore,
    *,
    run_id: str,
    since: datetime | None = None,
    until: datetime | None = None,
    limits: Limits = Limits(),  # noqa: B008 - frozen
    on_progress: OnProgress | None = None,
    extract: ExtractCallable = extract,
    clock: Clock = utc_now,
    when_busy: WhenBusy = "fail",
) -> Report:
    """Collect a source from where durable data ends, and write the outcome back.

    With ``since`` or ``until`` it is a backfill: it reads that range and leaves the watermark
    alone.

    On any failure, including cancellation and a signal's exception, `failed` is written within a
    bounded time, and the original error propagates unchanged. If `failed` could not be written,
    that error has a note. A second cancellation does not interrupt the write.

    Args:
        source: The source.
        sink: The sink; entered and left by ``extract``.
        storage: The storage of the watermark.
        run_id: The name of this run, as the service records it.
        since: The first timestamp of a backfill; naive is UTC.
        until: The timestamp before which a backfill ends; naive is UTC.
        limits: The start of a first collection, the limits of failures, and the length of a lease.
        on_progress: Called after each page.
        extract: The function that reads and writes the pages: `extract`, or a wrapper of it.
        clock: The time, as an aware datetime.
        when_busy: The behaviour where another run holds the source; a backfill holds none.

    Raises:
        ConfigurationError: The range of the backfill is empty, or the service cannot record
            ``run_id``; or the source is none.
        SourceBusyError: Another run holds the source; nothing was touched. With ``wait``, it still
            did after an hour.
        WatermarkConflictError: Another run was faster; its watermark was left as it is.
        LadonStorageError: The storage, the source or the sink failed, or raised a cancellation that
            was not requested.
    """
    began = time.monotonic()
    asked = TimeRange(since, until)
    so_far = _NOTHING_YET

    async def noted(collected: ExtractionResult) -> None:
        nonlocal so_far
        so_far = collected
        if on_progress is not None:
            await on_progress(collected)

    this = Run(run_id, limits, clock, noted, when_busy=when_busy)
    _check_source(source)
    with cancellations_checked(source.source_id):
        await storage.health_check()
        if asked.is_bounded:
            extract = beside_runs(extract, storage)
            collected = await extract(source, sink, replace(this, asked=asked, stored=asked))
            warn_of_superseded(source, collected.records_superseded, collected.superseded_since)
            return _report(source, run_id, collected, began, backfill=True)
        lease = SourceLease(storage, source.source_id, this)
        if not await lease.read():
            return _skipped(lease, began)
    try:
        with cancellations_checked(source.source_id):
            if not await lease.begin():
                return _skipped(lease, began)
            async with lease.renewed():
                collected = await extract(source, sink, this, lease)
            collected = _with_lateness(collected, lease)
            after = latest(lease.before, collected.candidate)
            kept = _kept(collected, source, getattr(source, "reading_digest", None))
            await lease.commit(after, collected.records_written, kept)
    except BaseException as error:
        # A coroutine that is being closed cannot await; after a conflict another run is in charge.
        if not isinstance(error, WatermarkConflictError | GeneratorExit):
            # What a run with other settings did not read is told until one has read it all.
            kept = _kept(_with_lateness(so_far, lease), source, lease.reading_digest)
            await lease.abort(error, kept)
        raise
    return _report(source, run_id, collected, began, before=lease.before, after=after)


def _check_source(source: Source) -> None:
    """Refuse an object that is no source, or one with attributes that would lose records."""
    # As `isinstance` says, which before Python 3.12 takes longer than all other looks at a source.
    has_values = hasattr(source, "source_id") and hasattr(source, "overlap")
    if not has_values or getattr(source, "pages", None) is None:
        raise ConfigurationError(
            f"A {type(source).__name__} is no source. Give it source_id, overlap and pages."
        )
    overlap: object = source.overlap
    if overlap is not None and (not isinstance(overlap, timedelta) or overlap < timedelta(0)):
        raise ConfigurationError(
            f"The overlap of source {source.source_id!r} is {overlap!r}. Set it to a timedelta of "
            "0 or more, or to None for a source that is read whole."
        )
    retention: object = getattr(source, "retention", None)
    if retention is not None and not isinstance(retention, timedelta):
        raise ConfigurationError(
            f"The retention of source {source.source_id!r} is {retention!r}. Set it to a "
            "timedelta, or to None for a source that keeps all its records."
        )


def _with_lateness(collected: ExtractionResult, lease: SourceLease) -> ExtractionResult:
    """Return the result with the lateness of all runs whose ledgers the service keeps."""
    told = getattr(lease.stored, "ledger", None) or {}
    try:
        lateness = Lateness.model_validate(told.get("lateness") or {}) + collected.lateness
    except ValidationError:  # of another program, or another release
        return collected
    if lateness == collected.lateness:
        return collected
    return collected.model_copy(update={"lateness": lateness})


def _kept(collected: ExtractionResult, source: Source, reading_digest: object) -> dict[str, Any]:
    """Return the ledger in the form that the service stores, with the numbers of its metrics."""
    late = collected.lateness.quantile(0.99)
    return {
        **collected.model_dump(mode="json", exclude=_NOT_KEPT, exclude_none=True),
        **({} if late is None else {"lateness_p99_seconds": late.total_seconds()}),
        **({"overlap_seconds": source.overlap.total_seconds()} if source.overlap else {}),
        **({"reading_digest": reading_digest} if isinstance(reading_digest, str) else {}),
    }


def _skipped(lease: SourceLease, began: float) -> Report:
    before = meant(lease.stored.last_successful_timestamp) if lease.stored else None
    logger.info("Source %r is skipped: %s.", lease.source_id, lease.holder)
    return Report(
        source_id=lease.source_id,
        run_id=lease.run_id,
        backfill=False,
        watermark_before=before,
        watermark_after=before,
        seconds=time.monotonic() - began,
        skipped=lease.holder,
    )


def _report(
    source: Source,
    run_id: str,
    collected: ExtractionResult,
    began: float,
    *,
    backfill: bool = False,
    before: datetime | None = None,
    after: datetime | None = None,
) -> Report:
    return Report(
        source_id=source.source_id,
        run_id=run_id,
        backfill=backfill,
        watermark_before=meant(before),
        watermark_after=meant(after),
        seconds=time.monotonic() - began,
        **collected.as_fields(),
    )
