"""The flow over a past range, read window by window, and resumed after an interruption."""

from __future__ import annotations

import pickle
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any
from uuid import uuid4

from prefect import runtime
from prefect.artifacts import acreate_progress_artifact, aupdate_progress_artifact
from prefect.cache_policies import NO_CACHE
from prefect.tasks import Task
from pydantic import AwareDatetime, Field

from ladon_storage.blocks import RecordSink, StorageService
from ladon_storage.collection import backfill as backfilling
from ladon_storage.collection.backfill import BackfillReport
from ladon_storage.collection.credentials import secret_lookup
from ladon_storage.collection.ledger import ExtractionResult
from ladon_storage.collection.protocols import Limits, Run, Sink, Source, WatermarkStore
from ladon_storage.collection.ranges import TimeRange
from ladon_storage.collection.run import ExtractCallable, beside_runs, extract
from ladon_storage.collection.sharing import CheckedStorage, SharedSink
from ladon_storage.collection.summaries import one_line
from ladon_storage.connect import share_hosts_of, shared_client
from ladon_storage.errors import CollectionError
from ladon_storage.flows import naming
from ladon_storage.flows.artifacts import best_effort
from ladon_storage.flows.ending import Ending, signals_noted
from ladon_storage.flows.fleet import pickled
from ladon_storage.flows.parameters import checked_flow, refuse_unchosen_block
from ladon_storage.flows.spreading import by_task_runner, is_local
from ladon_storage.registry import add_to_path
from ladon_storage.settings import StorageSettings
from ladon_storage.sources import source_from
from ladon_storage.sources.http.client import shared_connections
from ladon_storage.tasks import (
    SinkLike,
    TaskStorage,
    collect_in_task,
    label_of,
    resolve_sink,
    resolve_storage,
    secret_block,
)


@checked_flow("backfill", naming.backfill)
async def backfill(
    source: Source | dict[str, Any],
    since: AwareDatetime,
    until: AwareDatetime,
    sink: Sink | RecordSink | dict[str, Any] | str | None = None,
    storage: StorageService | StorageSettings | str | None = None,
    window_hours: Annotated[float, Field(gt=0)] = 24,
    limits: Limits = Limits(),  # noqa: B008 - frozen
    workers: Annotated[int, Field(ge=1, le=backfilling.MAX_WORKERS)] = 1,
    first_collection: bool = False,
) -> BackfillReport:
    """Read a past range again, window by window; resume an interrupted backfill.

    Args:
        source: The kind of a source and its fields; in code, any source.
        since: First instant, with its zone.
        until: Instant before which it ends, with its zone.
        sink: Where records go: a Record Sink block; empty for the one called default.
        storage: Where it is remembered how far it is: a Storage Service block; empty for the
            environment of the worker, or else the block called default.
        window_hours: Hours of one window, which is the part that is repeated after a failure.
        limits: What makes a window fail.
        workers: How many windows are read at once.
        first_collection: Whether the regular runs go on from its end. The source must never have
            been collected.
    """
    refuse_unchosen_block()
    with signals_noted():
        artifact: Any = None

        async def windows(done: int, of: int) -> None:
            nonlocal artifact
            artifact = await _show(artifact, done, of)

        settings, ending = await resolve_storage(storage), Ending()
        kept: WatermarkStore = TaskStorage(settings, ending.named)
        collect: ExtractCallable = collect_in_task
        if workers > 1:  # task runs would take longer than short windows
            await kept.health_check()
            kept, collect = CheckedStorage(shared_client(settings), ending.named), extract
        run_id = str(runtime.flow_run.id or uuid4())
        batch = None
        if workers > 1 and not is_local():
            stored = backfilling.stored_range(
                TimeRange(since, until), first_collection=first_collection
            )
            elsewhere = _Elsewhere(
                source,
                sink,
                settings,
                run_id,
                limits,
                stored,
                is_beside_runs=not first_collection,
            )
            batch = elsewhere.collect
        async with shared_connections():
            with secret_lookup(secret_block):
                return await backfilling.backfill(
                    source_from(source),
                    await resolve_sink(sink),
                    kept,
                    since,
                    until,
                    window=timedelta(hours=window_hours),
                    run_id=run_id,
                    limits=limits,
                    collect=collect,
                    windows=windows,
                    workers=workers,
                    first_collection=first_collection,
                    collect_batch=batch,
                )


@dataclass(frozen=True)
class _Elsewhere:
    """What a worker of another process needs to read windows."""

    source: Any
    sink: SinkLike
    storage: StorageSettings
    run_id: str
    limits: Limits
    stored: TimeRange
    is_beside_runs: bool
    parts: tuple[TimeRange, ...] = ()

    async def collect(self, parts: list[TimeRange]) -> list[ExtractionResult | Exception]:
        """Read parts of the range in one task run on a worker of the flow's task runner."""
        job = replace(self, parts=tuple(parts))
        outcomes: list[ExtractionResult | Exception] = []

        def submit(each: _Elsewhere) -> Any:
            named = f"{len(each.parts):,} windows of {label_of(each.source)}"
            return collect_windows.submit(named, pickled(each, "source or sink"))

        def done(_job: _Elsewhere, outcome: Any) -> None:
            if isinstance(outcome, BaseException):
                raise CollectionError(f"Its worker ended: {one_line(outcome)}", _id_of(self.source))
            outcomes.extend(
                CollectionError(each, _id_of(self.source)) if isinstance(each, str) else each
                for each in outcome
            )

        await by_task_runner(submit, [job], 1, done)
        return outcomes


def _id_of(source: Any) -> str:
    return str(source_from(source).source_id)


async def _collect_windows(_label: str, given: bytes) -> list[ExtractionResult | str]:
    job: _Elsewhere = pickle.loads(given)  # noqa: S301 - of the flow that submits it
    add_to_path(Path.cwd())
    share_hosts_of(job.storage)
    found: list[ExtractionResult | str] = []
    read: ExtractCallable = extract
    if job.is_beside_runs:
        read = beside_runs(extract, shared_client(job.storage))
    with secret_lookup(secret_block):
        sink = SharedSink(await resolve_sink(job.sink))
        try:
            async with shared_connections():
                for part in job.parts:
                    run = Run(job.run_id, job.limits, asked=part, stored=job.stored)
                    try:
                        found.append(await read(source_from(job.source), sink, run))
                    except Exception as error:  # as text: not every error survives the way back
                        found.append(one_line(error))
        finally:
            await sink.close()
    return found


collect_windows = Task(
    _collect_windows,
    name="Collect windows",
    description="Read some windows of a backfill.",
    task_run_name="Collect {_label}",
    tags=["ladon-storage"],
    cache_policy=NO_CACHE,
)
"""The task in which a worker reads windows, by their label and the bytes of their job."""


async def _show(artifact: Any, done: int, of: int) -> Any:
    share, text = 100 * done / of, f"{done:,} of {of:,} windows"
    async with best_effort("show the progress"):
        if artifact is None:
            return await acreate_progress_artifact(share, description=text)
        await aupdate_progress_artifact(artifact, share, description=text)
    return artifact
