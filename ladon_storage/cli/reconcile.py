"""``ladon-storage reconcile``: the records that a source's regular runs missed."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from ladon_storage.cli.options import File, LimitsText, Prefect, SinkText, Source, check_above_zero
from ladon_storage.cli.output import (
    Json,
    log_to_notes,
    print_facts,
    print_heading,
    print_json,
    print_table,
)
from ladon_storage.errors import ConfigurationError

if TYPE_CHECKING:
    from ladon_storage.cli.running import Signals
    from ladon_storage.cli.single import Single
    from ladon_storage.collection.reconciliation import Reconciliation


def reconcile(
    source: Source,
    /,
    *,
    sink: SinkText = None,
    since: Annotated[
        str | None, Parameter(help="First instant, such as 2024-01-01; by default all there is.")
    ] = None,
    until: Annotated[str | None, Parameter(help="Instant before which it ends.")] = None,
    last_days: Annotated[
        float | None, Parameter(help="Days before now at which it begins, instead of --since.")
    ] = None,
    limits: LimitsText = None,
    file: File = None,
    prefect: Prefect = None,
    json: Json = False,
) -> None:
    """Find and store what regular runs missed."""
    from ladon_storage.cli import choosing, running, single
    from ladon_storage.collection.protocols import utc_now

    log_to_notes()
    begin = None if since is None else choosing.instant(since, "--since")
    end = None if until is None else choosing.instant(until, "--until")
    if last_days is not None:
        if since is not None:
            raise ConfigurationError("Give either --since or --last-days, and not both.")
        check_above_zero("--last-days", last_days)
        begin = utc_now() - timedelta(days=last_days)
    job = single.single(source, sink, limits, file, prefect)
    if job.with_prefect:
        report = _by_flow(job, begin, end)
    else:
        signals = running.Signals()
        report = running.run(_by_engine(job, begin, end, signals), signals)
    if json:
        print_json(report.model_dump(mode="json"))
    else:
        _show(report)


def _show(report: Reconciliation) -> None:
    from ladon_storage.collection.summaries import instant_or_never

    print_facts(
        [
            ("source", report.source_id),
            ("missed", f"{report.missed:,} of {report.due:,} ({report.rate:.2%})"),
            ("changed since", f"{report.changed:,}"),
            ("older than in the sink", f"{report.superseded:,}"),
            ("new, for the next run", f"{report.early:,}"),
            ("watermark", instant_or_never(report.watermark)),
        ]
    )
    for title, count, ids in (
        ("Missed", report.missed, report.missed_ids),
        ("Changed", report.changed, report.changed_ids),
        ("Older than in the sink", report.superseded, report.superseded_ids),
    ):
        if ids:
            print_heading(f"{title} (the first {len(ids)} of {count:,})")
            print_table(("id",), ((each,) for each in ids))


async def _by_engine(
    job: Single, since: datetime | None, until: datetime | None, signals: Signals
) -> Reconciliation:
    from uuid import uuid4

    from ladon_storage.cli import running
    from ladon_storage.cli.progress import display
    from ladon_storage.cli.storing import checked_storage
    from ladon_storage.collection.reconciliation import reconcile as run

    with display() as shown:
        report = await run(
            job.source.make(),
            job.sink.make(),
            await checked_storage(job.project, signals.named),
            run_id=str(uuid4()),
            since=since,
            until=until,
            limits=job.limits,
            on_progress=shown.follow(job.source.name),
        )
    # As the flow does: an alert sees what is missed until another reconciliation finds nothing.
    await running.push_metrics(
        f"{report.source_id} reconciliation", {report.source_id: report.missed}
    )
    return report


def _by_flow(job: Single, since: datetime | None, until: datetime | None) -> Reconciliation:
    from ladon_storage.cli.choosing import file_settings
    from ladon_storage.cli.with_prefect import run_flows
    from ladon_storage.flows.reconcile import reconcile as flow

    async def run() -> Reconciliation:
        report: Reconciliation = await flow(
            job.source.fields(),
            job.sink.described,
            await file_settings(job.project),
            since=since,
            until=until,
            limits=job.limits,
        )
        return report

    return run_flows(run)
