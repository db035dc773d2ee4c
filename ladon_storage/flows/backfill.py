"""The flow over a past range, read window by window, and resumed after an interruption."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Any
from uuid import uuid4

from prefect import runtime
from prefect.artifacts import acreate_progress_artifact, aupdate_progress_artifact
from pydantic import AwareDatetime, Field

from ladon_storage.blocks import RecordSink, StorageService
from ladon_storage.collection import backfill as backfilling
from ladon_storage.collection.backfill import BackfillReport
from ladon_storage.collection.credentials import secret_lookup
from ladon_storage.collection.protocols import Limits, Sink, Source, WatermarkStore
from ladon_storage.collection.run import ExtractCallable, extract
from ladon_storage.collection.sharing import CheckedStorage
from ladon_storage.connect import shared_client
from ladon_storage.flows import naming
from ladon_storage.flows.artifacts import best_effort
from ladon_storage.flows.ending import Ending, signals_noted
from ladon_storage.flows.parameters import checked_flow, refuse_unchosen_block
from ladon_storage.settings import StorageSettings
from ladon_storage.sources import source_from
from ladon_storage.sources.http.client import shared_connections
from ladon_storage.tasks import (
    TaskStorage,
    collect_in_task,
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
        async with shared_connections():
            with secret_lookup(secret_block):
                return await backfilling.backfill(
                    source_from(source),
                    await resolve_sink(sink),
                    kept,
                    since,
                    until,
                    window=timedelta(hours=window_hours),
                    run_id=str(runtime.flow_run.id or uuid4()),
                    limits=limits,
                    collect=collect,
                    windows=windows,
                    workers=workers,
                    first_collection=first_collection,
                )


async def _show(artifact: Any, done: int, of: int) -> Any:
    share, text = 100 * done / of, f"{done:,} of {of:,} windows"
    async with best_effort("show the progress"):
        if artifact is None:
            return await acreate_progress_artifact(share, description=text)
        await aupdate_progress_artifact(artifact, share, description=text)
    return artifact
