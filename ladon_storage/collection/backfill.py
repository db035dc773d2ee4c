"""A backfill of a past range, read window by window, and resumed after an interruption.

The watermark of the source is left alone. A backfill's progress is in a watermark of its own, whose
name has the range. So the same backfill resumes after its last complete window.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta

from ladon_storage.collection.ledger import Counts
from ladon_storage.collection.protocols import Limits, Run, Sink, Source, WatermarkStore
from ladon_storage.collection.ranges import TimeRange
from ladon_storage.collection.run import ExtractCallable, extract
from ladon_storage.collection.stores import watermark_store
from ladon_storage.errors import ConfigurationError
from ladon_storage.models import Precondition, WatermarkStatus, WatermarkUpdate
from ladon_storage.values import to_utc

Windows = Callable[[int, int], Awaitable[None]]
"""A function that is called with the number of finished windows, and of all windows."""


class BackfillReport(Counts):
    """The result of a backfill; windows that an earlier one had finished are not read again."""

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
) -> BackfillReport:
    """Read a past range again, window by window; resume where the same backfill broke off.

    Args:
        source: The source.
        sink: The sink; entered and left for each window.
        storage: The storage of the backfill's progress.
        since: The first timestamp; naive is UTC.
        until: The timestamp before which it ends; naive is UTC.
        window: The part that is repeated after a failure.
        run_id: The name of this run, as the service records it.
        limits: The limits beyond which a window fails.
        collect: The function that reads and writes the pages: `run.extract`, or a wrapper of it.
        windows: Called after each window.

    Raises:
        ConfigurationError: The range or the window is empty.
        LadonStorageError: The storage, the source or the sink failed.
    """
    since, until = to_utc(since), to_utc(until)
    asked = TimeRange(since, until)
    if window <= timedelta(0):
        raise ConfigurationError(f"The window of a backfill is {window}. Set it to more than 0.")
    every = list(asked.windows(window))
    await storage.health_check()
    name = _name(source.source_id, asked)
    store = watermark_store(storage)
    stored = await store.get_watermark(name)
    reached = stored.last_successful_timestamp if stored else None
    left = [each for each in every if reached is None or _end(each) > reached]
    done, counts = len(every) - len(left), Counts()
    if windows is not None:
        await windows(done, len(every))
    for number, each in enumerate(left, start=done + 1):
        rest = each if reached is None or reached not in each else TimeRange(reached, each.end)
        counts += await collect(source, sink, Run(run_id, limits, asked=rest))
        update = WatermarkUpdate.of(
            _end(each),
            WatermarkStatus.SUCCESS,
            records_collected=counts.records_written,
            run_id=run_id,
        )
        stored = await store.put_watermark(name, update, Precondition.unchanged(stored))
        if windows is not None:
            await windows(number, len(every))
    return BackfillReport(
        source_id=source.source_id,
        since=since,
        until=until,
        windows=len(every),
        windows_done_before=done,
        **dict(counts),
    )


def _end(window: TimeRange) -> datetime:
    assert window.end is not None  # noqa: S101 - a window has both ends
    return window.end


def _name(source_id: str, asked: TimeRange) -> str:
    return f"{source_id}/backfill/{asked.start:%Y%m%dT%H%M%S.%fZ}/{asked.end:%Y%m%dT%H%M%S.%fZ}"
