"""A past range, read window by window, and resumed where it broke off.

The watermark of the source is left alone. How far a backfill is stands in a watermark of its own,
whose name has the range, so that the same backfill goes on after its last whole window.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any
from uuid import uuid4

from prefect import runtime
from prefect.artifacts import acreate_progress_artifact, aupdate_progress_artifact
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from flows.collect import instant, source_fields, told_sink
from flows.command import run_command
from flows.ending import signals_noted
from flows.parameters import checked_flow
from flows.reports import harmless
from ladon_storage.blocks import RecordSink, StorageService
from ladon_storage.collection.interfaces import Limits, Sink, Source
from ladon_storage.collection.sources import source_from
from ladon_storage.errors import ConfigurationError
from ladon_storage.models import WatermarkStatus
from ladon_storage.settings import StorageSettings
from ladon_storage.tasks import (
    TaskStorage,
    collect_in_task,
    record_sink,
    storage_settings,
)


class BackfillReport(BaseModel):
    """Say what a backfill did; windows that an earlier one had finished are not read again."""

    model_config = ConfigDict(frozen=True)

    source_id: str
    since: datetime
    until: datetime
    windows: int
    windows_done_before: int
    records_read: int
    records_written: int


@checked_flow("backfill")
async def backfill(
    source: Source | dict[str, Any],
    since: AwareDatetime,
    until: AwareDatetime,
    sink: Sink | RecordSink | dict[str, Any] | str | None = None,
    storage: StorageService | StorageSettings | str | None = None,
    window_hours: Annotated[float, Field(gt=0)] = 24,
    limits: Limits = Limits(),  # noqa: B008 - frozen
) -> BackfillReport:
    """Read a past range again, window by window; go on where the same backfill broke off.

    Args:
        source: Any source, or a dictionary told apart by ``kind``, such as ``{"kind": "nvd"}``.
        since: First instant, with its zone.
        until: Instant before which it ends, with its zone.
        sink: Where records go: a Record Sink block; empty for the one called default.
        storage: Where it is remembered how far it is: a Storage Service block; empty for the
            environment of the worker, or else the block called default.
        window_hours: Hours of one window, which is the part that is repeated after a failure.
        limits: What makes a window fail.
    """
    with signals_noted():
        collected, (since, until) = source_from(source), _range(since, until)
        every = list(_windows(since, until, timedelta(hours=window_hours)))
        run_id = str(runtime.flow_run.id or uuid4())
        storage_of_tasks = TaskStorage(await storage_settings(storage))
        await storage_of_tasks.health_check()
        name = _name(collected.source_id, since, until)
        stored = await storage_of_tasks.get_watermark(name)
        reached = stored.last_successful_timestamp if stored else None
        left = [each for each in every if reached is None or each[1] > reached]
        etag = stored.etag if stored else None
        opened = await record_sink(sink)
        read = written = 0
        shown = await _show(None, len(every) - len(left), len(every))
        for number, (start, end) in enumerate(left, start=len(every) - len(left) + 1):
            done = await collect_in_task(
                collected, opened, max(start, reached or start), end, run_id=run_id, limits=limits
            )
            read, written = read + done.records_read, written + done.records_written
            answer = await storage_of_tasks.update_watermark(
                name, end, WatermarkStatus.SUCCESS, if_match=etag, if_none_match=etag is None,
                records_collected=written, run_id=run_id,
            )  # fmt: skip
            etag = answer.etag
            shown = await _show(shown, number, len(every))
        return BackfillReport(
            source_id=collected.source_id, since=since, until=until, windows=len(every),
            windows_done_before=len(every) - len(left), records_read=read, records_written=written,
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


async def _show(artifact: Any, done: int, of: int) -> Any:
    share, text = 100 * done / of, f"{done:,} of {of:,} windows"
    async with harmless("show the progress"):
        if artifact is None:
            return await acreate_progress_artifact(share, description=text)
        await aupdate_progress_artifact(artifact, share, description=text)
    return artifact


def main(arguments: list[str] | None = None) -> int:
    """Read a past range, print the report as JSON, and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m flows.backfill", description="Read a past range of a source again."
    )
    parser.add_argument(
        "source", help="a kind, a JSON object with a kind, or a file that holds one"
    )
    parser.add_argument("sink", help="address of the sink, or the name of a block")
    parser.add_argument("since", type=instant, help="first instant, with its offset")
    parser.add_argument("until", type=instant, help="instant before which it ends")
    parser.add_argument("--keep", default="latest", choices=["latest", "all"])
    parser.add_argument("--window-hours", type=float, default=24, help="default: %(default)s")
    options = parser.parse_args(arguments)
    return run_command(
        lambda: backfill(
            source_fields(options.source),
            options.since,
            options.until,
            told_sink(options.sink, keep=options.keep),
            window_hours=options.window_hours,
        ),
        lambda report: report.model_dump_json(indent=2),
    )


if __name__ == "__main__":
    sys.exit(main())
