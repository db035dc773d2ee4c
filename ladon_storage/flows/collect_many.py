"""Many sources in one run, independent of each other, with bounded concurrency and one table.

- A source is no task run: a thousand task runs would cost Prefect more than the collections. Where
  several workers share the sources, a group of them is one. The
  outcome of each source is in its watermark and in the run's table. A failed source also has a line
  in the log and an event.
- All sources share one client pool, the connections to a host and one open sink, and there is one
  health check of the service.
- A source that fails or is misconfigured does not affect the others. It fails the run when all have
  ended.
- Memory does not grow with the number of sources: counts are kept, and the rows of the table.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import time
import tomllib
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import islice
from pathlib import Path
from typing import Any
from uuid import uuid4

from prefect import runtime
from prefect.artifacts import (
    acreate_progress_artifact,
    acreate_table_artifact,
    aupdate_progress_artifact,
)
from pydantic import Field

from ladon_storage.blocks import RecordSink, StorageService
from ladon_storage.collection.credentials import secret_lookup
from ladon_storage.collection.foreign_errors import Entered
from ladon_storage.collection.ledger import Counts, Ledger
from ladon_storage.collection.protocols import Limits
from ladon_storage.collection.sharing import CheckedStorage
from ladon_storage.collection.standby import WhenBusy
from ladon_storage.collection.summaries import summary
from ladon_storage.connect import batched, shared_client
from ladon_storage.errors import CollectionError, ConfigurationError
from ladon_storage.flows import naming
from ladon_storage.flows.artifacts import PROGRESS_SECONDS, best_effort, completed
from ladon_storage.flows.ending import Ending, signals_noted
from ladon_storage.flows.fleet import (
    Collected,
    Collector,
    Group,
    SourceFields,
    Tally,
)
from ladon_storage.flows.overview import update_overview
from ladon_storage.flows.parameters import checked_flow, refuse_unchosen_block
from ladon_storage.flows.part_runs import taken_over
from ladon_storage.flows.spreading import (
    GROUPS_PER_WORKER,
    by_flow_runs,
    by_task_runner,
    is_local,
    parted,
    publish_part,
    spread_of,
    work_pool,
)
from ladon_storage.project import Project
from ladon_storage.project.tables import CollectManyTable
from ladon_storage.settings import StorageSettings
from ladon_storage.sources.http.client import shared_connections
from ladon_storage.tasks import SinkLike, TaskStorage, resolve_sink, resolve_storage, secret_block

TABLE_ROWS = 100
"""The rows of a run's table: failed sources first, then those with the most new records."""

CONCURRENCY = 10
"""The number of sources that are collected at once, unless a run or its file says another."""

NAMED_FAILURES = 10
"""The number of failed sources that the run's state names."""


class ManyReport(Counts):
    """The result of a run over many sources."""

    sources: int
    failed: int
    skipped: int = 0
    gaps: int
    seconds: float
    failures: dict[str, str] = Field({})
    """The errors of the first sources that failed, by name."""


class SourcesFailedError(CollectionError):
    """Raised when sources of a run failed; it has the report of all, which Prefect does not keep.

    Args:
        message: The whole sentence.
        report: The report.
    """

    def __init__(self, message: str, report: ManyReport | None = None) -> None:
        super().__init__(message)
        self.report = report


@checked_flow("collect-many", naming.many)
async def collect_many(
    sources: list[SourceFields] | None = None,
    file: str | None = None,
    sink: RecordSink | dict[str, Any] | str | None = None,
    storage: StorageService | StorageSettings | str | None = None,
    concurrency: int | None = None,
    limits: Limits = Limits(),  # noqa: B008 - frozen
    when_busy: WhenBusy | None = None,
    spread: int | None = None,
    part: str | None = None,
) -> ManyReport:
    """Collect many sources into one sink, each from where its durable data ends.

    Args:
        sources: The sources, each with its ``kind``; empty where a file is given.
        file: Path of a ``ladon.toml``, or of a TOML or JSON file with a list ``sources``, as the
            worker sees it.
        sink: Where records go: a Record Sink block; empty for the one that a ``ladon.toml`` names,
            or else the one called default.
        storage: Where the watermarks are: a Storage Service block; empty for what a ``ladon.toml``
            says, for the environment of the worker, or else the block called default.
        concurrency: How many sources are collected at once; empty for what a ``ladon.toml`` says,
            or else ten.
        limits: Where a first collection starts, and what makes a source fail; the sources of a
            ``ladon.toml`` have their own.
        when_busy: What happens while another run collects a source: fail, wait until it is free, or
            skip, which is no failure; empty for what a ``ladon.toml`` says, or else fail.
        spread: How many workers share the sources: of the task runner, or runs on the work pool of
            the deployment; empty for what the file says, or else one.
        part: The part of the sources that this run collects, such as 2/8; empty for all.
    """
    refuse_unchosen_block()
    if part is not None and (why := await _taken_over()):
        return completed(ManyReport(sources=0, failed=0, gaps=0, seconds=0.0), f"skipped: {why}")
    if concurrency is not None and concurrency < 1:
        raise ConfigurationError(f"concurrency should be 1 or more, not {concurrency}.")
    project = _project(sources, file)
    opening: SinkLike = sink
    if project is None:
        listed, asked = _sources(sources, file)
        told = [
            Collected(number, each, limits, when_busy or "fail")
            for number, each in enumerate(listed)
        ]
    else:
        table = project.collect_many or CollectManyTable()
        asked, concurrency = table.spread, concurrency or table.concurrency
        told = [
            Collected(number, _fields_of(project, name), each.limits, when_busy or each.when_busy)
            for number, (name, each) in enumerate(project.sources.items())
        ]
        _check_names([each.fields for each in told])
        opening = only_sink(project) if opening is None else opening
        if storage is None:
            with secret_lookup(secret_block):
                storage = await project.storage_settings()
    told, concurrency = _part_of(told, part), concurrency or CONCURRENCY
    workers = spread_of(asked if spread is None else spread)
    settings = await resolve_storage(storage)
    fleet = _Fleet(len(told))
    with signals_noted():
        await TaskStorage(settings).health_check()
        if workers == 1:
            await _collect_here(fleet, told, opening, settings, concurrency)
        elif part is None and is_local() and await work_pool():
            group = Group(told, opening, settings, _family(), concurrency)
            return await _collect_by_flow_runs(fleet, group, min(workers, len(told)))
        else:
            folder = project.path.absolute().parent if project else Path.cwd()
            group = Group([], opening, settings, _family(), concurrency, folder)
            await _collect_by_groups(fleet, told, group, workers)
        report = await fleet.finish()
        if part is not None:
            async with best_effort("leave the report of the part"):
                await publish_part(_report_in(report).model_dump(mode="json"))
        return report


async def _collect_here(
    fleet: _Fleet,
    sources: list[Collected],
    sink: SinkLike,
    settings: StorageSettings,
    concurrency: int,
) -> None:
    checked = CheckedStorage(batched(shared_client(settings)), Ending().named)
    run_id, family = str(runtime.flow_run.id or uuid4()), _family()
    if family != run_id:  # a part, which may be the second execution of it
        run_id = f"{family}/{run_id}"
    with secret_lookup(secret_block):
        entered = Entered(await resolve_sink(sink))
        async with entered as opened, shared_connections(), fleet.watched():
            collector = Collector(opened, checked, run_id, family, fleet.tally)
            await collector.collect(sources, concurrency)


async def _collect_by_groups(
    fleet: _Fleet, sources: list[Collected], empty: Group, workers: int
) -> None:
    parts = parted(sources, workers * GROUPS_PER_WORKER)
    groups = [dataclasses.replace(empty, sources=list(part)) for part in parts]

    def done(group: Group, outcome: Any) -> None:
        if isinstance(outcome, Tally):
            fleet.tally.add(outcome)
            return
        for each in group.sources:
            fleet.tally.failed(each, each.name, outcome, 0.0)

    async with fleet.watched():
        await by_task_runner(Group.submit, groups, workers, done)


async def _collect_by_flow_runs(fleet: _Fleet, group: Group, count: int) -> ManyReport:
    """Let runs on the work pool collect parts of a group, and collect those that never begin."""
    ending = Ending()

    async def take_over(number: int) -> str:
        own = _part_of(group.sources, f"{number}/{count}")
        part, tally = dataclasses.replace(group, sources=own), Tally()
        try:
            tally = await part.collect(ending)
        except Exception as error:  # of the sink, before the first source
            for each in own:
                tally.failed(each, each.name, error, 0.0)
        fleet.tally.add(tally)
        fleet.taken_over += 1
        await fleet.publish()
        return _failures(tally, len(own))

    runs = await by_flow_runs(count, take_over)
    return fleet.of_parts([report for _, report in runs])


async def _taken_over() -> str | None:
    """Return why this part needs no collection; where Prefect does not say, it needs one."""
    async with best_effort("look whether another run took the part over"):
        return await taken_over()
    return None


def _family() -> str:
    """Return the flow run to which all executions of parts of the sources belong."""
    parent = runtime.flow_run.parent_flow_run_id if runtime.flow_run.id else None
    return str(parent or runtime.flow_run.id or uuid4())


def _report_in(report: Any) -> ManyReport:
    """Return the report in the state with which a flow completes."""
    found: ManyReport = getattr(report, "data", report)
    return found


def _part_of(sources: list[Collected], part: str | None) -> list[Collected]:
    """Return one part of the sources, such as the second of eight.

    Raises:
        ConfigurationError: There is no such part.
    """
    if part is None:
        return sources
    number, _, count = part.partition("/")
    if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise ConfigurationError(f"The part {part[:50]!r} is none; write it as 2/8.")
    return sources[int(number) - 1 :: int(count)]


class _Fleet:
    """A run over many sources, as Prefect shows it."""

    def __init__(self, count: int) -> None:
        self.tally = Tally()
        self.taken_over = 0
        self._count = count
        self._began = time.monotonic()

    @asynccontextmanager
    async def watched(self) -> AsyncIterator[None]:
        """Publish the number of finished sources meanwhile."""
        watching = asyncio.create_task(self._watch())
        try:
            yield
        finally:
            watching.cancel()
            await asyncio.wait({watching})

    async def _watch(self) -> None:
        """Publish the number of finished sources every two seconds."""
        artifact, sums = None, self.tally.sums
        async with best_effort("show the progress"):
            while True:
                await asyncio.sleep(PROGRESS_SECONDS)
                share = 100 * sums["ended"] / max(self._count, 1)
                text = f"{sums['ended']:,} of {self._count:,} sources, {sums['failed']:,} failed"
                if artifact is None:
                    artifact = await acreate_progress_artifact(share, description=text)
                else:
                    await aupdate_progress_artifact(artifact, share, description=text)

    async def publish(self) -> None:
        """Write the table, and update the overview."""
        kept = self.tally.sorted_rows()
        rows = [row.cells for row in kept[:TABLE_ROWS]]
        shown = f"{len(rows)} of {self._count:,}" if self._count > len(rows) else f"{len(rows)}"
        async with best_effort("write the table"):
            await acreate_table_artifact(
                rows,
                key="ladon-collect-many",
                description=f"{shown} sources: those that failed, then those with the most news.",
            )
        async with best_effort("update the overview"):
            await update_overview([row.facts for row in kept if row.facts is not None])

    async def finish(self) -> ManyReport:
        """Write the table, and return the report.

        Raises:
            SourcesFailedError: A source failed.
        """
        await self.publish()
        report = self._report()
        if failed := _failures(self.tally, self._count):
            raise SourcesFailedError(
                f"{failed}. The others are collected; see the run's table and log.", report
            )
        return self._completed(report)

    def _report(self) -> ManyReport:
        sums = self.tally.sums
        return ManyReport(
            sources=self._count,
            failed=sums["failed"],
            skipped=sums["skipped"],
            gaps=sums["gaps"],
            seconds=time.monotonic() - self._began,
            failures=self.tally.failures,
            **dict(self.tally.counts),
        )

    def of_parts(self, reports: list[dict[str, Any]]) -> ManyReport:
        """Return the report of a run whose parts were runs of their own."""
        told = [ManyReport.model_validate(each) for each in reports if each]
        for each in told:
            self.tally.counts += each
            self.tally.sums.update(skipped=each.skipped, gaps=each.gaps)
        return self._completed(self._report(), len(reports) - len(told))

    def _completed(self, report: ManyReport, unknown: int = 0) -> ManyReport:
        skipped = f", {report.skipped:,} of them skipped" if report.skipped else ""
        if unknown:  # of parts that could not leave their reports
            skipped += f", without the counts of {unknown:,} part{'s' * (unknown != 1)}"
        if taken := self.taken_over:
            skipped += f", those of {taken:,} part{'s' * (taken != 1)} collected by this run"
        reasons = dict(self.tally.reasons.most_common())
        told = summary(Ledger(**dict(self.tally.counts), reasons=reasons))
        return completed(report, f"{self._count:,} sources{skipped}: {told}")


def _failures(tally: Tally, count: int) -> str:
    """Return how many of so many sources failed, and why; empty: none did."""
    failed = tally.sums["failed"]
    first = islice(tally.failures.items(), NAMED_FAILURES)
    named = [f"{name} ({error})" for name, error in first]
    more = failed - len(named)
    if not failed:
        return ""
    return (
        f"{failed:,} of {count:,} sources failed: "
        f"{'; '.join(named)}{f'; and {more:,} more' if more else ''}"
    )


def _project(sources: list[SourceFields] | None, file: str | None) -> Project | None:
    """Return the project of a file that is a ``ladon.toml``, whose sources have names."""
    if sources or not file or not isinstance(_document(Path(file)).get("sources"), dict):
        return None
    return Project.load(file, check_sources=False)


def checked_file(file: Path) -> None:
    """Refuse a file that lists no sources.

    Raises:
        ConfigurationError: It cannot be read, or has none.
    """
    if _project(None, str(file)) is None:
        _sources(None, str(file))


def _fields_of(project: Project, name: str) -> SourceFields:
    """Return a source's fields, or the error with which its run fails."""
    try:
        return project.source_fields(name)
    except ConfigurationError:
        return {"source_id": name, **project.sources[name].fields}


def only_sink(project: Project) -> dict[str, Any]:
    """Return the fields of the sink to which all sources of a project go.

    Raises:
        ConfigurationError: They go to several, or it is wrong.
    """
    names = sorted({project.sink_of(name) for name in project.sources})
    if not names:
        raise ConfigurationError(
            f"The file {str(project.path)!r} has no source; add a table [sources.NAME]."
        )
    if len(names) > 1:
        raise ConfigurationError(
            f"The sources of {str(project.path)!r} go to several sinks, {', '.join(names)}, and "
            "one run has one. Name a sink, or collect them by their own deployments."
        )
    project.sink(names[0])  # refuses a wrong one
    return dict(project.sinks[names[0]].fields)


def _sources(
    sources: list[SourceFields] | None, file: str | None
) -> tuple[list[SourceFields], int | None]:
    """Return the sources, and the number of workers that their file says."""
    if bool(sources) == bool(file):
        raise ConfigurationError("Give either sources or a file that lists them, and one of both.")
    told, spread = (sources, None) if sources else _from_file(Path(str(file)))
    _check_names(told)
    if wrong := [each for each in told if not isinstance(each, dict)]:
        raise ConfigurationError(
            "A source must be a table of fields, such as its kind, not a "
            f"{type(wrong[0]).__name__}."
        )
    return told, spread


def _check_names(told: list[SourceFields]) -> None:
    """Refuse two sources of one name: each would overwrite the other's watermark."""
    names = Counter(
        str(each.get("source_id") or each.get("kind")) for each in told if isinstance(each, dict)
    )
    twice = [name for name, count in names.items() if count > 1]
    if twice:
        raise ConfigurationError(
            f"Several sources are called {twice[0]!r}; give each a source_id of its own."
        )


def _from_file(path: Path) -> tuple[list[SourceFields], int | None]:
    document = _document(path)
    listed, spread = document.get("sources"), document.get("spread")
    if not isinstance(listed, list) or not listed:
        raise ConfigurationError(f"The file {str(path)!r} has no list of sources; add [[sources]].")
    if spread is not None and type(spread) is not int:
        raise ConfigurationError(f"The file {str(path)!r}: spread should be a number of workers.")
    return listed, spread


def _document(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
        document = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except (OSError, ValueError) as error:  # ours, whatever the parser calls it
        raise ConfigurationError(
            f"The file {str(path)!r} of sources cannot be read ({error}); name a TOML or JSON file "
            "that the worker has."
        ) from None
    return document if isinstance(document, dict) else {"sources": document}
