"""The flow that reads a past range, or a whole source, again to find missed records."""

from __future__ import annotations

import logging
from datetime import timedelta
from typing import Annotated, Any
from uuid import uuid4

from prefect import runtime
from prefect.artifacts import acreate_markdown_artifact
from pydantic import AwareDatetime, Field

from ladon_storage.blocks import RecordSink, StorageService
from ladon_storage.client.metrics import count_missed
from ladon_storage.client.pushing import push_metrics
from ladon_storage.collection import reconciliation
from ladon_storage.collection.protocols import Limits, Sink, Source, utc_now
from ladon_storage.collection.reconciliation import Reconciliation
from ladon_storage.collection.summaries import code, instant_or_never
from ladon_storage.errors import ConfigurationError
from ladon_storage.events import MISSED, emit_of_source
from ladon_storage.flows import naming
from ladon_storage.flows.artifacts import (
    best_effort,
    completed,
    ledger_facts,
    reconciliation_key,
)
from ladon_storage.flows.ending import signals_noted
from ladon_storage.flows.overview import shown_id
from ladon_storage.flows.parameters import checked_flow, refuse_unchosen_block
from ladon_storage.settings import StorageSettings
from ladon_storage.sources import source_from
from ladon_storage.tasks import TaskStorage, collect_in_task, resolve_sink, resolve_storage

logger = logging.getLogger("ladon_storage.flows")


@checked_flow("reconcile", naming.reconciliation)
async def reconcile(
    source: Source | dict[str, Any],
    sink: Sink | RecordSink | dict[str, Any] | str | None = None,
    storage: StorageService | StorageSettings | str | None = None,
    since: AwareDatetime | None = None,
    until: AwareDatetime | None = None,
    last_days: Annotated[float, Field(gt=0)] | None = None,
    limits: Limits = Limits(),  # noqa: B008 - frozen
) -> Reconciliation:
    """Read a source again, store the records that the regular runs missed, and report them.

    Args:
        source: The kind of a source and its fields; in code, any source.
        sink: Where the regular runs store: a Record Sink block; empty for the one called default.
        storage: Where the watermark is, which stays: a Storage Service block; empty for the
            environment of the worker, or else the block called default.
        since: First instant, with its zone; empty for all since it was first collected.
        until: Instant before which it ends, with its zone.
        last_days: How many days before now it begins, instead of since.
        limits: What makes it fail.
    """
    refuse_unchosen_block()
    if last_days is not None:
        if since is not None:
            raise ConfigurationError("Give either since or last_days, and not both.")
        since = utc_now() - timedelta(days=last_days)
    with signals_noted():
        report = await reconciliation.reconcile(
            source_from(source),
            await resolve_sink(sink),
            TaskStorage(await resolve_storage(storage)),
            run_id=str(runtime.flow_run.id or uuid4()),
            since=since,
            until=until,
            limits=limits,
            extract=collect_in_task,
        )
        await _tell(report)
        return completed(report, summary(report))


def summary(report: Reconciliation) -> str:
    """Return the result in one line."""
    older = f", {report.superseded:,} older than in the sink" if report.superseded else ""
    return (
        f"{report.missed:,} of {report.due:,} missed ({report.rate:.2%}), "
        f"{report.changed:,} changed since{older}"
    )


async def _tell(report: Reconciliation) -> None:
    """Log the missed records, write their page, and emit the event for automations."""
    level = logging.WARNING if report.missed else logging.INFO
    ids = ", ".join(map(repr, report.missed_ids[:10]))
    logger.log(level, "Source %r: %s%s", report.source_id, summary(report), ids and f": {ids}")
    count_missed(report.source_id, report.missed)
    # Its group is not that of the regular runs, whose next push would take it away.
    await push_metrics(f"{report.source_id} reconciliation")
    if report.missed:
        emit_of_source(MISSED, report.source_id, report.model_dump(mode="json"))
    async with best_effort("write the artifact"):
        await acreate_markdown_artifact(
            _page(report),
            key=reconciliation_key(report.source_id),
            description=f"What the regular runs of {shown_id(report.source_id)} missed.",
        )


def _page(report: Reconciliation) -> str:
    facts = [
        ("missed", f"{report.missed:,} of {report.due:,} ({report.rate:.2%})"),
        ("changed since", f"{report.changed:,}"),
        ("new, and still to be read by the next run", f"{report.early:,}"),
        ("watermark", instant_or_never(report.watermark)),
        ("everything should be there up to", instant_or_never(report.horizon)),
        *ledger_facts(report.ledger),
    ]
    lines = [f"# {shown_id(report.source_id)}: {summary(report)}", "", "| | |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in facts]
    for title, count, ids in (
        ("Missed", report.missed, report.missed_ids),
        ("Changed", report.changed, report.changed_ids),
        ("Older than in the sink", report.superseded, report.superseded_ids),
    ):
        if ids:
            shown = f"the first {len(ids)} of {count:,}" if count > len(ids) else f"{count:,}"
            lines += ["", f"## {title}: {shown}", "", *(f"- {code(each)}" for each in ids)]
    return "\n".join(lines) + "\n"
