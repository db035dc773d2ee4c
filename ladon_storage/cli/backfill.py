"""``ladon-storage backfill``: a past range of one source, window by window."""

from __future__ import annotations

from contextlib import AsyncExitStack
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from ladon_storage.cli.options import File, LimitsText, Prefect, SinkText, Source, check_above_zero
from ladon_storage.cli.output import Json, log_to_notes, print_facts, print_json
from ladon_storage.errors import ConfigurationError

if TYPE_CHECKING:
    from ladon_storage.cli.running import Signals
    from ladon_storage.cli.single import Single
    from ladon_storage.collection.backfill import BackfillReport


def backfill(
    source: Source,
    since: Annotated[str, Parameter(help="First instant, such as 2024-01-01.")],
    until: Annotated[str, Parameter(help="Instant before which it ends.")],
    /,
    *,
    sink: SinkText = None,
    window_hours: Annotated[
        float, Parameter(help="Hours of the part that is repeated after a failure.")
    ] = 24,
    workers: Annotated[int, Parameter(help="Windows that are read at once.")] = 1,
    first_collection: Annotated[
        bool,
        Parameter(
            negative=(),
            help="The regular runs go on from its end. The source must never have been collected.",
        ),
    ] = False,
    limits: LimitsText = None,
    file: File = None,
    prefect: Prefect = None,
    json: Json = False,
) -> None:
    """Read a past range of a source again."""
    from ladon_storage.cli import choosing, running, single
    from ladon_storage.collection.backfill import MAX_WORKERS

    log_to_notes()
    check_above_zero("--window-hours", window_hours)
    if not 1 <= workers <= MAX_WORKERS:
        raise ConfigurationError(f"--workers is {workers}. Set it to 1 to {MAX_WORKERS}.")
    begin, end = choosing.instant(since, "SINCE"), choosing.instant(until, "UNTIL")
    job = single.single(source, sink, limits, file, prefect)
    if job.with_prefect:
        report = _by_flow(
            job,
            begin,
            end,
            window_hours=window_hours,
            workers=workers,
            first_collection=first_collection,
        )
    else:
        signals = running.Signals()
        report = running.run(
            _by_engine(
                job,
                begin,
                end,
                signals,
                window=timedelta(hours=window_hours),
                workers=workers,
                first_collection=first_collection,
            ),
            signals,
        )
    if json:
        print_json(report.model_dump(mode="json"))
        return
    done = report.windows_done_before
    before = f", {done:,} of them by an earlier backfill" if done else ""
    print_facts(
        [
            ("source", report.source_id),
            ("range", f"{report.since.isoformat()} to {report.until.isoformat()}"),
            ("windows", f"{report.windows:,}{before}"),
            ("read", f"{report.records_read:,}"),
            ("new or changed", f"{report.records_written:,}"),
            ("older than in the sink", f"{report.records_superseded:,}"),
        ]
    )


async def _by_engine(
    job: Single, since: datetime, until: datetime, signals: Signals, **options: Any
) -> BackfillReport:
    from uuid import uuid4

    from ladon_storage.cli.progress import display
    from ladon_storage.cli.storing import checked_storage
    from ladon_storage.collection.backfill import backfill as run
    from ladon_storage.sources.http.client import shared_connections

    async with AsyncExitStack() as opened:
        shown = opened.enter_context(display())
        await opened.enter_async_context(shared_connections())
        return await run(
            job.source.make(),
            job.sink.make(),
            await checked_storage(job.project, signals.named),
            since,
            until,
            **options,
            run_id=str(uuid4()),
            limits=job.limits,
            windows=shown.windows(job.source.name),
        )


def _by_flow(job: Single, since: datetime, until: datetime, **options: Any) -> BackfillReport:
    from ladon_storage.cli.choosing import file_settings
    from ladon_storage.cli.with_prefect import run_flows
    from ladon_storage.flows.backfill import backfill as flow

    async def run() -> BackfillReport:
        report: BackfillReport = await flow(
            job.source.fields(),
            since,
            until,
            job.sink.described,
            await file_settings(job.project),
            **options,
            limits=job.limits,
        )
        return report

    return run_flows(run)
