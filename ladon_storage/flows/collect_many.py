"""Many sources in one run, independent of each other, with bounded concurrency and one table.

- A source is no task run: a thousand task runs would cost Prefect more than the collections. The
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
import heapq
import itertools
import json
import logging
import time
import tomllib
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

from prefect import runtime
from prefect.artifacts import (
    acreate_progress_artifact,
    acreate_table_artifact,
    aupdate_progress_artifact,
)

from ladon_storage.blocks import RecordSink, StorageService
from ladon_storage.client.metrics import count_collected
from ladon_storage.collection.credentials import secret_lookup
from ladon_storage.collection.ledger import Counts, Ledger
from ladon_storage.collection.protocols import (
    Limits,
    Sink,
    WatermarkStore,
)
from ladon_storage.collection.run import Report, run
from ladon_storage.collection.sharing import CheckedStorage, SharedSink
from ladon_storage.collection.standby import Holder, WhenBusy
from ladon_storage.collection.summaries import code, instant_or_never, one_line, summary
from ladon_storage.connect import shared_client
from ladon_storage.errors import CollectionError, ConfigurationError, LadonStorageError
from ladon_storage.events import FAILED, GAP, SKIPPED, emit_of_source
from ladon_storage.flows import naming
from ladon_storage.flows.artifacts import COUNTS, PROGRESS_SECONDS, best_effort, completed
from ladon_storage.flows.ending import Ending, signals_noted
from ladon_storage.flows.overview import MAX_ROWS, SourceFacts, update_overview
from ladon_storage.flows.parameters import checked_flow, refuse_unchosen_block
from ladon_storage.project import Project
from ladon_storage.settings import StorageSettings
from ladon_storage.sources import source_from
from ladon_storage.sources.http.client import shared_connections
from ladon_storage.tasks import SinkLike, TaskStorage, resolve_sink, resolve_storage, secret_block

logger = logging.getLogger("ladon_storage.flows")

TABLE_ROWS = 100
"""The rows of a run's table: failed sources first, then those with the most new records."""

NAMED_FAILURES = 10
"""The number of failed sources that the run's state names."""

SourceFields = dict[str, Any]


class ManyReport(Counts):
    """The result of a run over many sources."""

    sources: int
    failed: int
    skipped: int = 0
    gaps: int
    seconds: float


@checked_flow("collect-many", naming.many)
async def collect_many(
    sources: list[SourceFields] | None = None,
    file: str | None = None,
    sink: RecordSink | dict[str, Any] | str | None = None,
    storage: StorageService | StorageSettings | str | None = None,
    concurrency: int = 10,
    limits: Limits = Limits(),  # noqa: B008 - frozen
    when_busy: WhenBusy | None = None,
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
        concurrency: How many sources are collected at once.
        limits: Where a first collection starts, and what makes a source fail; the sources of a
            ``ladon.toml`` have their own.
        when_busy: What happens while another run collects a source: fail, wait until it is free, or
            skip, which is no failure; empty for what a ``ladon.toml`` says, or else fail.
    """
    refuse_unchosen_block()
    if concurrency < 1:
        raise ConfigurationError(f"concurrency should be 1 or more, not {concurrency}.")
    project = _project(sources, file)
    opening: SinkLike = sink
    if project is None:
        told = [Collected(each, limits, when_busy or "fail") for each in _sources(sources, file)]
    else:
        told = [
            Collected(_fields_of(project, name), table.limits, when_busy or table.when_busy)
            for name, table in project.sources.items()
        ]
        _check_names([each.fields for each in told])
        opening = _only_sink(project) if opening is None else opening
        if storage is None:
            with secret_lookup(secret_block):
                storage = await project.storage_settings()
    settings = await resolve_storage(storage)
    with signals_noted():
        await TaskStorage(settings).health_check()
        checked = CheckedStorage(shared_client(settings), Ending().named)
        async with await resolve_sink(opening) as opened, shared_connections():
            shared = SharedSink(opened, is_open=True)
            many = _Fleet(shared, checked, str(runtime.flow_run.id or uuid4()), len(told))
            with secret_lookup(secret_block):
                await many.collect(told, concurrency)
        return await many.finish()


class Collected(NamedTuple):
    """One of many sources: its fields, its limits, and its behaviour where another run holds it."""

    fields: SourceFields
    limits: Limits
    when_busy: WhenBusy


class _Fleet:
    def __init__(self, sink: Any, storage: WatermarkStore, run_id: str, count: int) -> None:
        self._sink = sink
        self._storage = storage
        self._run_id = run_id
        self._count = count
        self._began = time.monotonic()
        self._sums: Counter[str] = Counter()
        self._counts = Counts()
        self._reasons: Counter[str] = Counter()
        self._failures: list[str] = []
        # The most telling rows; the number keeps equal ones from being compared further.
        self._rows: list[tuple[bool, int, int, dict[str, Any], SourceFacts | None]] = []
        self._numbers = itertools.count()

    async def collect(self, sources: Iterable[Collected], concurrency: int) -> None:
        """Collect all sources, with bounded concurrency."""
        left = enumerate(sources)

        async def work() -> None:
            for number, each in left:
                await self._collect_one(number, each)

        watching = asyncio.create_task(self._watch())
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(concurrency):
                    group.create_task(work())
        finally:
            watching.cancel()
            await asyncio.wait({watching})

    async def _collect_one(self, number: int, each: Collected) -> None:
        fields = each.fields
        name = str(fields.get("source_id") or fields.get("kind") or f"number {number + 1}")
        began = time.monotonic()
        try:
            source = source_from(fields)
            name = source.source_id
            report = await run(
                source,
                self._sink,
                self._storage,
                run_id=self._run_id,
                limits=each.limits,
                when_busy=each.when_busy,
            )
        except Exception as error:
            self._failed(name, error, time.monotonic() - began)
        else:
            self._completed(report)
        self._sums["ended"] += 1

    def _failed(self, name: str, error: Exception, seconds: float) -> None:
        self._sums["failed"] += 1
        text = one_line(error)
        if len(self._failures) < NAMED_FAILURES:
            self._failures.append(f"{name} ({text})")
        ours = isinstance(error, LadonStorageError)
        logger.error("Source %r failed: %s", name, text, exc_info=None if ours else error)
        emit_of_source(FAILED, name, {"error": text})
        facts = SourceFacts.of_failure(name, text, 0)
        self._keep_row(True, 0, _row(name, "failed", seconds, error=code(text)), facts)

    def _skipped(self, source_id: str, holder: Holder, seconds: float) -> None:
        self._sums["skipped"] += 1
        emit_of_source(SKIPPED, source_id, holder.model_dump(mode="json"))
        self._keep_row(False, 0, _row(source_id, "skipped", seconds, error=code(str(holder))), None)

    def _completed(self, report: Report) -> None:
        if report.skipped is not None:
            self._skipped(report.source_id, report.skipped, report.seconds)
            return
        self._counts += report
        self._reasons.update(report.reasons)
        count_collected(report.source_id, report.model_dump(include=COUNTS), report.reasons)
        if report.gap is not None:
            self._sums["gaps"] += 1
            emit_of_source(GAP, report.source_id, report.gap.model_dump(mode="json"))
        self._keep_row(
            False,
            report.records_written,
            _row(
                report.source_id, "completed", report.seconds, read=report.records_read,
                written=report.records_written, quarantined=report.records_quarantined,
                watermark=instant_or_never(report.watermark_after), gap=report.gap is not None,
            ),
            SourceFacts.of_report(report),
        )  # fmt: skip

    def _keep_row(
        self, has_failed: bool, written: int, row: dict[str, Any], facts: SourceFacts | None
    ) -> None:
        entry = (has_failed, written, -next(self._numbers), row, facts)
        if len(self._rows) < MAX_ROWS:
            heapq.heappush(self._rows, entry)
        else:
            heapq.heappushpop(self._rows, entry)

    async def _watch(self) -> None:
        """Publish the number of finished sources every two seconds."""
        artifact = None
        async with best_effort("show the progress"):
            while True:
                await asyncio.sleep(PROGRESS_SECONDS)
                share = 100 * self._sums["ended"] / max(self._count, 1)
                text = (
                    f"{self._sums['ended']:,} of {self._count:,} sources, "
                    f"{self._sums['failed']:,} failed"
                )
                if artifact is None:
                    artifact = await acreate_progress_artifact(share, description=text)
                else:
                    await aupdate_progress_artifact(artifact, share, description=text)

    async def finish(self) -> ManyReport:
        """Write the table, and return the report.

        Raises:
            CollectionError: A source failed.
        """
        sums = self._sums
        kept = sorted(self._rows, key=lambda entry: entry[:3], reverse=True)
        rows = [row for *_, row, _ in kept[:TABLE_ROWS]]
        shown = f"{len(rows)} of {self._count:,}" if self._count > len(rows) else f"{len(rows)}"
        async with best_effort("write the table"):
            await acreate_table_artifact(
                rows,
                key="ladon-collect-many",
                description=f"{shown} sources: those that failed, then those with the most news.",
            )
        async with best_effort("update the overview"):
            await update_overview([facts for *_, facts in kept if facts is not None])
        if sums["failed"]:
            more = sums["failed"] - len(self._failures)
            raise CollectionError(
                f"{sums['failed']:,} of {self._count:,} sources failed: "
                f"{'; '.join(self._failures)}{f'; and {more:,} more' if more else ''}. "
                "The others are collected; see the run's table and log."
            )
        report = ManyReport(
            sources=self._count,
            failed=0,
            skipped=sums["skipped"],
            gaps=sums["gaps"],
            seconds=time.monotonic() - self._began,
            **dict(self._counts),
        )
        skipped = f", {sums['skipped']:,} of them skipped" if sums["skipped"] else ""
        return completed(report, f"{self._count:,} sources{skipped}: {self._summary()}")

    def _summary(self) -> str:
        reasons = dict(self._reasons.most_common())
        return summary(Ledger(**dict(self._counts), reasons=reasons))


def _row(
    name: str,
    ended: str,
    seconds: float,
    *,
    read: int = 0,
    written: int = 0,
    quarantined: int = 0,
    watermark: str = "",
    gap: bool = False,
    error: str = "",
) -> dict[str, Any]:
    return {
        "source": name,
        "ended": ended,
        "records read": read,
        "new or changed": written,
        "quarantined": quarantined,
        "watermark": watermark,
        "gap": "yes" if gap else "",
        "seconds": round(seconds, 2),
        "error": error,
    }


def _project(sources: list[SourceFields] | None, file: str | None) -> Project | None:
    """Return the project of a file that is a ``ladon.toml``, whose sources have names."""
    if sources or not file or not isinstance(_document(Path(file)).get("sources"), dict):
        return None
    return Project.load(file, check_sources=False)


def _fields_of(project: Project, name: str) -> SourceFields:
    """Return a source's fields, or the error with which its run fails."""
    try:
        return project.source_fields(name)
    except ConfigurationError:
        return {"source_id": name, **project.sources[name].fields}


def _only_sink(project: Project) -> Sink:
    """Return the sink to which all sources of a project go."""
    names = sorted({project.sink_of(name) for name in project.sources})
    if len(names) > 1:
        raise ConfigurationError(
            f"The sources of {str(project.path)!r} go to several sinks, {', '.join(names)}, and "
            "one run has one. Name a sink, or collect them by their own deployments."
        )
    return project.sink(names[0])


def _sources(sources: list[SourceFields] | None, file: str | None) -> list[SourceFields]:
    if bool(sources) == bool(file):
        raise ConfigurationError("Give either sources or a file that lists them, and one of both.")
    told = sources if sources else _from_file(Path(str(file)))
    _check_names(told)
    if wrong := [each for each in told if not isinstance(each, dict)]:
        raise ConfigurationError(
            "A source must be a table of fields, such as its kind, not a "
            f"{type(wrong[0]).__name__}."
        )
    return told


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


def _from_file(path: Path) -> list[SourceFields]:
    listed = _document(path).get("sources")
    if not isinstance(listed, list) or not listed:
        raise ConfigurationError(f"The file {str(path)!r} has no list of sources; add [[sources]].")
    return listed


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
