"""The collection of many sources: one after another by a few, and added up.

- A *group* is a part of the sources, which one worker of a task runner collects as one task run. It
  is made of values, and opens its own sink and client: a worker is another process, or host.
- Each execution of a group has a run id of its own, so that its writes are fenced against those of
  an execution whose worker is thought to be dead. The source that such a worker held is waited for:
  it is free when the lease has ended.
- A tally does not grow with the number of sources: counts are kept, and the rows of the table.
"""

from __future__ import annotations

import heapq
import logging
import pickle
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

from prefect.cache_policies import NO_CACHE
from prefect.futures import PrefectFuture
from prefect.tasks import Task

from ladon_storage.client.metrics import count_collected
from ladon_storage.collection.credentials import secret_lookup
from ladon_storage.collection.foreign_errors import Entered
from ladon_storage.collection.garbage import note_made, objects_set_aside
from ladon_storage.collection.ledger import Counts
from ladon_storage.collection.protocols import Limits, WatermarkStore
from ladon_storage.collection.run import Report, run
from ladon_storage.collection.sharing import CheckedStorage, SharedSink
from ladon_storage.collection.standby import Holder, WhenBusy
from ladon_storage.collection.summaries import code, instant_or_never, one_line, source_label
from ladon_storage.collection.workers import run_workers
from ladon_storage.connect import batched, share_hosts_of, shared_client
from ladon_storage.errors import ConfigurationError, LadonStorageError, SourceBusyError
from ladon_storage.events import FAILED, GAP, SKIPPED, emit_of_source
from ladon_storage.flows.artifacts import COUNTS
from ladon_storage.flows.ending import Ending
from ladon_storage.flows.overview import MAX_ROWS, SourceFacts, shown_id
from ladon_storage.registry import add_to_path
from ladon_storage.settings import StorageSettings
from ladon_storage.sources import source_from
from ladon_storage.sources.http.client import shared_connections
from ladon_storage.tasks import SinkLike, resolve_sink, secret_block

logger = logging.getLogger("ladon_storage.flows")

_OBJECTS = 10
"""The objects that collecting a source leaves to the garbage collector, at the least."""

MAX_FAILURES = 100
"""The number of failed sources that a tally names."""

SourceFields = dict[str, Any]


class Collected(NamedTuple):
    """One of many sources, and how its run behaves; the number is its place in the list."""

    number: int
    fields: SourceFields
    limits: Limits
    when_busy: WhenBusy

    @property
    def name(self) -> str:
        """The source's name, even of a wrong source."""
        named = self.fields.get("source_id") or self.fields.get("kind")
        return str(named or f"number {self.number + 1}")


class Row(NamedTuple):
    """A row of the table, and its place: failed sources first, then the most new records."""

    has_failed: bool
    written: int
    number: int
    cells: dict[str, Any]
    facts: SourceFacts | None


@dataclass
class Tally:
    """The outcome of some sources, which adds up."""

    sums: Counter[str] = field(default_factory=Counter)
    counts: Counts = field(default_factory=Counts)
    reasons: Counter[str] = field(default_factory=Counter)
    failures: dict[str, str] = field(default_factory=dict)
    """The errors of the first sources that failed, by name."""
    rows: list[Row] = field(default_factory=list)

    def add(self, other: Tally) -> None:
        """Add the outcome of other sources."""
        self.sums.update(other.sums)
        self.counts += other.counts
        self.reasons.update(other.reasons)
        self.failures |= dict(islice(other.failures.items(), MAX_FAILURES - len(self.failures)))
        for row in other.rows:
            self._keep(row)

    def failed(self, each: Collected, name: str, error: BaseException, seconds: float) -> None:
        """Count a source that failed, log it, and emit its event."""
        text = one_line(error)
        self.sums.update(("ended", "failed"))
        if len(self.failures) < MAX_FAILURES:
            self.failures[name] = text
        ours = isinstance(error, LadonStorageError)
        logger.error("Source %r failed: %s", name, text, exc_info=None if ours else error)
        emit_of_source(FAILED, name, {"error": text})
        facts = SourceFacts.of_failure(name, text, 0)
        cells = _cells(name, "failed", seconds, error=code(text))
        self._keep(Row(True, 0, -each.number, cells, facts))

    def completed(self, each: Collected, report: Report) -> None:
        """Count a source that was collected, or skipped."""
        self.sums["ended"] += 1
        if report.skipped is not None:
            self._skipped(each, report, report.skipped)
            return
        self.counts += report
        self.reasons.update(report.reasons)
        counts = {name: getattr(report, name) for name in COUNTS}
        count_collected(report.source_id, counts, report.reasons)
        if report.gap is not None:
            self.sums["gaps"] += 1
            emit_of_source(GAP, report.source_id, report.gap.model_dump(mode="json"))
        if not self._keeps((False, report.records_written, -each.number)):
            return  # as for nearly all of very many sources
        cells = _cells(
            report.source_id, "completed", report.seconds, read=report.records_read,
            written=report.records_written, quarantined=report.records_quarantined,
            watermark=instant_or_never(report.watermark_after), gap=report.gap is not None,
        )  # fmt: skip
        facts = SourceFacts.of_report(report)
        self._keep(Row(False, report.records_written, -each.number, cells, facts))

    def _skipped(self, each: Collected, report: Report, holder: Holder) -> None:
        self.sums["skipped"] += 1
        emit_of_source(SKIPPED, report.source_id, holder.model_dump(mode="json"))
        cells = _cells(report.source_id, "skipped", report.seconds, error=code(str(holder)))
        self._keep(Row(False, 0, -each.number, cells, None))

    def _keeps(self, place: tuple[bool, int, int]) -> bool:
        return len(self.rows) < MAX_ROWS or place > self.rows[0][:3]

    def _keep(self, row: Row) -> None:
        if len(self.rows) < MAX_ROWS:
            heapq.heappush(self.rows, row)
        else:
            heapq.heappushpop(self.rows, row)

    def sorted_rows(self) -> list[Row]:
        """Return the rows, the most telling first."""
        return sorted(self.rows, key=lambda row: row[:3], reverse=True)


def _cells(
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
        "source": shown_id(name),
        "ended": ended,
        "records read": read,
        "new or changed": written,
        "quarantined": quarantined,
        "watermark": watermark,
        "gap": "yes" if gap else "",
        "seconds": round(seconds, 2),
        "error": error,
    }


class Collector:
    """The collection of sources in this process, into one open sink.

    Args:
        sink: The open sink.
        storage: The storage, whose health is known.
        run_id: The run, as the service records it.
        family: The flow run; sources that its other executions hold are waited for.
        tally: The tally.
    """

    def __init__(
        self, sink: Any, storage: WatermarkStore, run_id: str, family: str, tally: Tally
    ) -> None:
        self.tally = tally
        self._sink = SharedSink(sink, is_open=True)
        self._storage = storage
        self._run_id = run_id
        self._family = family

    async def collect(self, sources: Sequence[Collected], concurrency: int) -> None:
        """Collect all sources, with bounded concurrency."""
        left = iter(sources)

        async def work() -> None:
            for each in left:
                await self._collect_one(each)

        with objects_set_aside():
            # At once: a search of all objects of a Prefect process takes as long as 100 sources.
            note_made(_OBJECTS * len(sources))
            await run_workers(concurrency, work)

    async def _collect_one(self, each: Collected) -> None:
        name, began = each.name, time.monotonic()
        try:
            source = source_from(each.fields)
            name = source.source_id
            report = await self._run(source, each)
        except Exception as error:
            self.tally.failed(each, name, error, time.monotonic() - began)
        else:
            self.tally.completed(each, report)

    async def _run(self, source: Any, each: Collected) -> Report:
        async def collect(when_busy: WhenBusy) -> Report:
            return await run(
                source,
                self._sink,
                self._storage,
                run_id=self._run_id,
                limits=each.limits,
                when_busy=when_busy,
            )

        try:
            report = await collect(each.when_busy)
        except SourceBusyError as busy:
            if not self._is_ours(busy.run_id):
                raise
        else:
            if report.skipped is None or not self._is_ours(report.skipped.run_id):
                return report
        return await collect("wait")

    def _is_ours(self, holder: str | None) -> bool:
        """Return whether a source is held by an execution of this flow run whose worker died."""
        return holder is not None and holder.startswith(f"{self._family}/")


def pickled(value: object, what: str) -> bytes:
    """Return a value as bytes for another process.

    Args:
        value: The value.
        what: The part of it that a user may have made.

    Raises:
        ConfigurationError: It cannot leave this process.
    """
    try:
        return pickle.dumps(value)
    except (pickle.PicklingError, TypeError, AttributeError) as error:
        raise ConfigurationError(
            f"The {what} cannot be sent to another process ({one_line(error)}). Describe it by its "
            "kind and fields instead of an object."
        ) from error


@dataclass(frozen=True)
class Group:
    """A part of the sources of a flow run, by values that another process can have.

    Args:
        sources: The sources.
        sink: The sink, as a description, a block or its name.
        storage: The storage.
        family: The flow run.
        concurrency: The number of sources that are collected at once.
        folder: The folder of custom classes; ``None``: there are none.
    """

    sources: list[Collected]
    sink: SinkLike
    storage: StorageSettings
    family: str
    concurrency: int
    folder: Path | None = None

    @property
    def label(self) -> str:
        """The name of the group's task run."""
        return f"{len(self.sources):,} sources from {source_label(self.sources[0].name)}"

    def submit(self) -> PrefectFuture[Tally]:
        """Give the group to a worker of the flow's task runner.

        It goes as bytes: the libraries of task runners look for futures in what they are given, and
        each of them changes another kind of values.
        """
        future: PrefectFuture[Any] = collect_group.submit(self.label, pickled(self, "sink"))
        return future

    async def collect(self, ending: Ending) -> Tally:
        """Collect the sources in this process, as an execution of its own.

        Args:
            ending: The cause of this process's end, for the error of a source.
        """
        checked = CheckedStorage(batched(shared_client(self.storage)), ending.named)
        run_id, tally = f"{self.family}/{uuid4().hex[:12]}", Tally()
        with secret_lookup(secret_block):
            async with Entered(await resolve_sink(self.sink)) as opened, shared_connections():
                collector = Collector(opened, checked, run_id, self.family, tally)
                await collector.collect(self.sources, self.concurrency)
        return tally


async def _collect_group(_label: str, given: bytes) -> Tally:
    group: Group = pickle.loads(given)  # noqa: S301 - of the flow that submits it
    if group.folder is not None:
        add_to_path(group.folder)
    share_hosts_of(group.storage)
    return await group.collect(Ending())


collect_group = Task(
    _collect_group,
    name="Collect group",
    description="Collect a part of many sources.",
    task_run_name="Collect {_label}",
    tags=["ladon-storage"],
    cache_policy=NO_CACHE,
)
"""The task in which a worker collects a group, by its label and its bytes."""
