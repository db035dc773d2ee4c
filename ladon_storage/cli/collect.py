"""``ladon-storage collect``: sources from where durable data ends, with or without Prefect.

- Without Prefect the engine is the same, and so are the stored records.
- A source that fails, or is misconfigured, does not affect the others.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from ladon_storage.cli import DONE, FAILED, USAGE
from ladon_storage.cli.options import (
    SOURCE_HELP,
    File,
    LimitsText,
    Prefect,
    SinkText,
    WhenBusyOption,
)
from ladon_storage.cli.output import Json, log_to_notes, note, print_json, print_table
from ladon_storage.errors import ConfigurationError

if TYPE_CHECKING:
    from ladon_storage.cli.choosing import SinkChoice, SourceChoice
    from ladon_storage.cli.progress import Display
    from ladon_storage.cli.running import Signals
    from ladon_storage.collection.run import Report
    from ladon_storage.collection.sharing import SharedSink
    from ladon_storage.collection.standby import WhenBusy
    from ladon_storage.project.project import Project


def collect(
    *names: Annotated[str, Parameter(help=f"Each a {SOURCE_HELP}")],
    all_: Annotated[
        bool, Parameter(name="--all", show_default=False, help="Collect every source in the file.")
    ] = False,
    sink: SinkText = None,
    limits: LimitsText = None,
    concurrency: Annotated[int, Parameter(help="Sources that are collected at once.")] = 4,
    when_busy: WhenBusyOption = None,
    file: File = None,
    prefect: Prefect = None,
    json: Json = False,
) -> int:
    """Collect sources from where durable data ends."""
    from ladon_storage.cli import choosing, running

    log_to_notes()
    if concurrency < 1:
        raise ConfigurationError(f"--concurrency is {concurrency}. Set it to 1 or more.")
    project = choosing.load_project(file)
    with_prefect = running.is_prefect_configured() if prefect is None else prefect
    chosen = choosing.choose_sources(project, names, all_=all_)
    jobs = [
        Job(
            each,
            choosing.choose_sink(project, each, sink, with_prefect=with_prefect),
            choosing.with_limits(each.limits, limits),
            when_busy or each.when_busy,
        )
        for each in chosen
    ]
    unclosed: list[str] = []
    if with_prefect:
        outcomes = _by_flows(jobs, project, concurrency)
    else:
        signals = running.Signals()
        work = _by_engine(jobs, project, concurrency, signals, unclosed)
        outcomes = running.run(work, signals)
    code = _tell(outcomes, as_json=json)
    for each in unclosed:
        note(each)
    return FAILED if unclosed else code


@dataclass(frozen=True)
class Job:
    """One source, its sink, its limits, and its behaviour where another run holds it."""

    source: SourceChoice
    sink: SinkChoice
    limits: Any
    when_busy: WhenBusy


@dataclass(frozen=True)
class Outcome:
    """The outcome of a source: a report, or the reason for having none."""

    name: str
    report: Report | None = None
    error: str | None = None
    seconds: float = 0.0
    is_configuration: bool = False


async def _by_engine(
    jobs: Sequence[Job],
    project: Project | None,
    concurrency: int,
    signals: Signals,
    unclosed: list[str],
) -> list[Outcome]:
    """Return the outcome of each job, and add a sentence for each sink that cannot be closed."""
    from uuid import uuid4

    from ladon_storage.cli import running
    from ladon_storage.cli.progress import display
    from ladon_storage.cli.storing import checked_storage
    from ladon_storage.collection.run import run
    from ladon_storage.collection.sharing import SharedSink
    from ladon_storage.sources.http.client import shared_connections

    storage = await checked_storage(project, signals.named)
    sinks: dict[str, SharedSink] = {}
    with display() as shown:

        async def one(job: Job) -> Report:
            if job.sink.name not in sinks:
                sinks[job.sink.name] = SharedSink(job.sink.make())
            source = job.source.make()
            try:
                return await run(
                    source,
                    sinks[job.sink.name],
                    storage,
                    # Each job has its own: a run takes over the lease of a run with its name.
                    run_id=str(uuid4()),
                    limits=job.limits,
                    on_progress=shown.follow(source.source_id),
                    when_busy=job.when_busy,
                )
            finally:
                await running.push_metrics(source.source_id)

        try:
            async with shared_connections():
                return await each_of(jobs, one, concurrency, shown)
        finally:
            for name, sink in sinks.items():
                if (problem := await _close(sink)) is not None:
                    unclosed.append(f"Sink {name} could not be closed: {problem}")


async def _close(sink: SharedSink) -> str | None:
    """Close a sink, and return why it cannot be closed; ``None``: it is."""
    from ladon_storage.cli.output import said

    try:
        await sink.close()
    except (Exception, asyncio.CancelledError) as error:
        task = asyncio.current_task()
        if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
            raise
        return said(error)
    return None


def _by_flows(jobs: Sequence[Job], project: Project | None, concurrency: int) -> list[Outcome]:
    from ladon_storage.cli.choosing import file_settings
    from ladon_storage.cli.with_prefect import run_flows
    from ladon_storage.flows.collect import collect as flow

    async def one(job: Job) -> Report:
        report: Report = await flow(
            job.source.fields(),
            job.sink.described,
            await file_settings(project),
            limits=job.limits,
            when_busy=job.when_busy,
        )
        return report

    return run_flows(lambda: each_of(jobs, one, concurrency))


async def each_of(
    jobs: Sequence[Job],
    one: Callable[[Job], Awaitable[Report]],
    concurrency: int,
    shown: Display | None = None,
) -> list[Outcome]:
    """Return the outcome of each job, with bounded concurrency."""
    from ladon_storage.collection.workers import run_workers

    outcomes: dict[int, Outcome] = {}
    left = iter(enumerate(jobs))

    async def work() -> None:
        for number, job in left:
            outcomes[number] = await _outcome(job, one)
            if shown is not None:
                shown.ended(job.source.name)

    await run_workers(min(concurrency, len(jobs)), work)
    return [outcomes[number] for number in sorted(outcomes)]


async def _outcome(job: Job, one: Callable[[Job], Awaitable[Report]]) -> Outcome:
    from ladon_storage.cli.output import said

    began = time.monotonic()
    try:
        report = await one(job)
    except Exception as error:
        return Outcome(
            job.source.name,
            error=said(error),
            seconds=time.monotonic() - began,
            is_configuration=isinstance(error, ConfigurationError),
        )
    return Outcome(job.source.name, report, seconds=report.seconds)


def _tell(outcomes: Sequence[Outcome], *, as_json: bool) -> int:
    """Print the outcome of each source, and return the exit code."""
    from ladon_storage.collection.summaries import summary

    failed = [each for each in outcomes if each.error is not None]
    if as_json:
        print_json([_fields(each) for each in outcomes])
    else:
        print_table(
            ("source", "outcome", "read#", "new#", "changed#", "quarantined#", "watermark", "s#"),
            (_row(each) for each in outcomes),
        )
    for each in outcomes:
        report = each.report
        if report is not None and (report.records_quarantined or report.gap or report.sink_behind):
            note(f"{each.name}: {summary(report)}")
        if report is not None and (skipped := report.records_skipped):
            note(f"{each.name}: records before limits.initial_lookback left out: {skipped:,}.")
    for each in outcomes:
        if each.report is not None and each.report.skipped is not None:
            note(f"{each.name} is skipped: {each.report.skipped}.")
    for each in failed:
        note(f"{each.name} failed: {each.error}")
    if not failed:
        return DONE
    # Nothing was done only where none was collected.
    return USAGE if all(each.is_configuration for each in outcomes) else FAILED


def _row(outcome: Outcome) -> tuple[object, ...]:
    from ladon_storage.collection.summaries import instant_or_never

    report = outcome.report
    seconds = f"{outcome.seconds:.1f}"
    if report is None:
        return (outcome.name, "failed", None, None, None, None, None, seconds)
    if report.skipped is not None:
        watermark = instant_or_never(report.watermark_after)
        return (outcome.name, "skipped", None, None, None, None, watermark, seconds)
    return (
        outcome.name,
        "done",
        report.records_read,
        report.records_new,
        report.records_changed,
        report.records_quarantined,
        instant_or_never(report.watermark_after),
        seconds,
    )


def _fields(outcome: Outcome) -> dict[str, Any]:
    told = {"name": outcome.name, "outcome": "failed" if outcome.error else "done"}
    if outcome.report is not None:
        if outcome.report.skipped is not None:
            told["outcome"] = "skipped"
        return {**told, **outcome.report.model_dump(mode="json")}
    return {**told, "error": outcome.error, "seconds": outcome.seconds}
