"""A backfill of a past range, read window by window, and resumed after an interruption.

The watermark of the source is left alone. A backfill's progress is in a watermark of its own, whose
name has the range. So the same backfill resumes after its last complete window.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime, timedelta

from pydantic import BaseModel, ConfigDict

from ladon_storage.collection.protocols import Limits, Sink, Source, WatermarkStore
from ladon_storage.collection.run import ExtractCallable, extract
from ladon_storage.collection.stores import watermark_store
from ladon_storage.errors import ConfigurationError
from ladon_storage.models import Precondition, WatermarkStatus, WatermarkUpdate

Windows = Callable[[int, int], Awaitable[None]]
"""A function that is called with the number of finished windows, and of all windows."""


class BackfillReport(BaseModel):
    """The result of a backfill; windows that an earlier one had finished are not read again."""

    model_config = ConfigDict(frozen=True)

    source_id: str
    since: datetime
    until: datetime
    windows: int
    windows_done_before: int
    records_read: int
    records_written: int


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
        since: The first timestamp.
        until: The timestamp before which it ends.
        window: The part that is repeated after a failure.
        run_id: The name of this run, as the service records it.
        limits: The limits beyond which a window fails.
        collect: The function that reads and writes the pages: `run.extract`, or a wrapper of it.
        windows: Called after each window.

    Raises:
        ConfigurationError: The range or the window is empty.
        LadonStorageError: The storage, the source or the sink failed.
    """
    since, until = _range(since, until)
    if window <= timedelta(0):
        raise ConfigurationError(f"The window of a backfill is {window}. Set it to more than 0.")
    every = list(_windows(since, until, window))
    await storage.health_check()
    name = _name(source.source_id, since, until)
    store = watermark_store(storage)
    stored = await store.get_watermark(name)
    reached = stored.last_successful_timestamp if stored else None
    left = [each for each in every if reached is None or each[1] > reached]
    read = written = 0
    done = len(every) - len(left)
    if windows is not None:
        await windows(done, len(every))
    for number, (start, end) in enumerate(left, start=done + 1):
        collected = await collect(
            source, sink, max(start, reached or start), end, run_id=run_id, limits=limits
        )
        read, written = read + collected.records_read, written + collected.records_written
        update = WatermarkUpdate.of(
            end, WatermarkStatus.SUCCESS, records_collected=written, run_id=run_id
        )
        stored = await store.put_watermark(name, update, Precondition.unchanged(stored))
        if windows is not None:
            await windows(number, len(every))
    return BackfillReport(
        source_id=source.source_id, since=since, until=until, windows=len(every),
        windows_done_before=done, records_read=read, records_written=written,
    )  # fmt: skip


def _range(since: datetime, until: datetime) -> tuple[datetime, datetime]:
    if since >= until:
        raise ConfigurationError(
            f"A backfill from {since.isoformat()} until {until.isoformat()} is empty; "
            "set until to a later instant than since."
        )
    return since.astimezone(UTC), until.astimezone(UTC)


def _windows(
    since: datetime, until: datetime, length: timedelta
) -> Iterator[tuple[datetime, datetime]]:
    start = since
    while start < until:
        end = min(start + length, until)
        yield start, end
        start = end


def _name(source_id: str, since: datetime, until: datetime) -> str:
    return f"{source_id}/backfill/{since:%Y%m%dT%H%M%S.%fZ}/{until:%Y%m%dT%H%M%S.%fZ}"
