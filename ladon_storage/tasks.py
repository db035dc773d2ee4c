"""Prefect tasks: each call of the Storage Service, and the collection of one source, as a task run.

- Tasks take a block, settings or a block's name, never a live client: a submitted task runs on an
  event loop of its own, where another loop's session fails. `connect.shared_client` has one client
  for equal settings, with a pool for each loop.
- Tasks are async. In a flow that is not, a plain call is a coroutine that never runs: submit the
  task. A future raises the task's error at ``.result()``, and not at ``.wait()``.
- No task is cached. A retried flow reads the watermark again; with Prefect's default it would
  collect from the one that its first attempt read.
- Prefect retries, and the client does not. Prefect retries only faults that another attempt can
  cure: not an open circuit, a 4xx, a conflict or a collection, whose source retries its requests.
- Records never pass through a result: a collection returns counts.
- All runs share one circuit, in a file unless a store is set, and its changes are events. A single
  run makes too few calls to detect that the service is down.
- A source's key is looked up by its name inside the task, in a Secret block or the environment.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from datetime import datetime
from typing import Any, TypeVar

from prefect import runtime, task
from prefect.blocks.core import Block
from prefect.blocks.system import Secret
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.context import FlowRunContext, TaskRunContext
from prefect.exceptions import PrefectSignal
from prefect.logging.handlers import APILogHandler
from prefect.tasks import Task, exponential_backoff

from ladon_storage.blocks import RecordSink, StorageService, wrong_values
from ladon_storage.circuit.breaker import CircuitChange
from ladon_storage.collection.credentials import secret_lookup
from ladon_storage.collection.lease import SourceLease
from ladon_storage.collection.ledger import ExtractionResult
from ladon_storage.collection.protocols import Limits, Run, Sink, Source
from ladon_storage.collection.ranges import ALL_TIME, TimeRange
from ladon_storage.collection.run import extract
from ladon_storage.collection.summaries import source_label
from ladon_storage.connect import (
    check_health,
    on_circuit_change,
    settings_by_hand,
    share_hosts_of,
    shared_client,
)
from ladon_storage.consoles import let_consoles_go
from ladon_storage.errors import ConfigurationError, StorageError
from ladon_storage.events import emit_change
from ladon_storage.fallback import Errors, body, by_task
from ladon_storage.models import (
    UNCONDITIONAL,
    HistoryPage,
    Precondition,
    Watermark,
    WatermarkStatus,
    WatermarkUpdate,
)
from ladon_storage.settings import StorageSettings
from ladon_storage.sinks import sink_from
from ladon_storage.sources import source_from

__all__ = [
    "check_storage_health",
    "collect_source",
    "read_watermark",
    "write_failure_watermark",
    "write_running_watermark",
    "write_success_watermark",
]

let_consoles_go()

B = TypeVar("B", bound=Block)

StorageLike = StorageSettings | str | None
"""A `StorageService` block, settings, the name of a saved block, or ``None``.

``None`` is the environment where it has settings, or else the block named ``default``. Without that
block, a run by hand keeps its watermarks in a file of the working directory.
"""

SinkLike = Sink | RecordSink | dict[str, Any] | str | None
"""A sink, a `RecordSink` block, a description, the name of a block, or ``None``: ``default``."""

DEFAULT_BLOCK = "default"


async def _is_transient(_task: Task[Any, Any], _run: TaskRun, state: State[Any]) -> bool:
    error = await state.aresult(raise_on_failure=False)
    return isinstance(error, StorageError) and error.transient


_OPTIONS: dict[str, Any] = {"tags": ["ladon-storage"], "cache_policy": NO_CACHE}
_RETRIED: dict[str, Any] = {
    **_OPTIONS,
    "retries": 3,
    "retry_delay_seconds": exponential_backoff(1),
    "retry_jitter_factor": 0.5,
    "retry_condition_fn": _is_transient,
}


def label_of(source: object) -> str:
    """Return the label of a source, of its description, or of its id, even of a wrong one."""
    source_id = source if isinstance(source, str) else getattr(source, "source_id", None)
    if isinstance(source, Mapping):
        source_id = source.get("source_id")
        if not source_id:
            with suppress(Exception):  # whatever a custom class raises; its run says why
                source_id = source_from(source).source_id
        source_id = source_id or source.get("kind")
    return source_label(str(source_id or type(source).__name__))


def _named(action: str) -> Callable[..., str]:
    """Return what names a task run: its action, and the source."""

    def name(parameters: dict[str, Any]) -> str:
        return f"{action} {label_of(parameters.get('source_id') or parameters.get('source'))}"

    return name


async def resolve_storage(storage: StorageLike = None) -> StorageSettings:
    """Return the settings that ``storage`` stands for; in a run, with the circuit that runs share.

    Raises:
        ConfigurationError: There is no block of that name, or it has a wrong value. Or, in a run
            of a deployment, ``storage`` is ``None``, the environment is not complete, and there is
            no block ``default``.
    """
    if storage is None:
        settings = await _default_settings()
    elif isinstance(storage, str):
        settings = await _block(StorageService, storage)
    else:
        settings = storage
    if not _is_in_a_run():
        return settings
    share_hosts_of(settings)
    return settings.with_shared_circuit()


async def _default_settings() -> StorageSettings:
    try:
        return StorageSettings.from_environment()
    except ConfigurationError as incomplete:
        if os.environ.get("STORAGE_SERVICE_URL") or os.environ.get("ENVIRONMENT"):
            raise
        if (saved := await _saved(StorageService, DEFAULT_BLOCK)) is not None:
            return saved
        if not _is_deployed():
            return settings_by_hand()
        block = f"{StorageService.get_block_type_slug()}/{DEFAULT_BLOCK}"
        raise ConfigurationError(f"{str(incomplete)[:-1]}; or save a block {block}.") from None


async def _block(kind: type[B], name: str) -> B:
    if (saved := await _saved(kind, name)) is not None:
        return saved
    raise ConfigurationError(
        f"There is no block {kind.get_block_type_slug()}/{name}; save one, in Prefect's UI "
        "under Blocks or by `.save()`, or choose another."
    )


async def _saved(kind: type[B], name: str) -> B | None:
    """Return the block of this name, if there is one.

    Raises:
        ConfigurationError: It has a wrong value.
    """
    try:
        loaded: Any = await kind.aload(name)
    except ValueError:
        return None
    except RuntimeError as error:
        if (problem := wrong_values(error)) is None:
            raise
    else:
        block: B = loaded
        return block
    raise ConfigurationError(problem)


def _is_deployed() -> bool:
    """Return whether this is a run of a deployment, whose folder may be deleted after it."""
    # A process that was started for a run has the variable; there, Prefect would ask its API.
    return bool(os.environ.get("PREFECT__FLOW_RUN_ID") or runtime.deployment.id)


def _is_in_a_run() -> bool:
    return bool(FlowRunContext.get() or TaskRunContext.get())


def _emit_in_runs(service: str, change: CircuitChange) -> None:
    """Emit an event in a run; outside one there may be no server, and emitting would start one."""
    if _is_in_a_run():
        emit_change(service, change)


on_circuit_change(_emit_in_runs)


async def resolve_sink(sink: SinkLike = None) -> Sink:
    """Return the sink that ``sink`` stands for.

    Raises:
        ConfigurationError: There is no sink for its address, no block of its name, or a wrong
            value in that block.
    """
    if sink is None or isinstance(sink, str):
        sink = await _block(RecordSink, sink or DEFAULT_BLOCK)
    return sink.get_sink() if isinstance(sink, RecordSink) else sink_from(sink)


@task(
    name="Check Storage Service health",
    description="Ask the Storage Service for its health. In production the run fails without it.",
    **_RETRIED,
)
@body
async def check_storage_health(storage: StorageLike = None) -> bool:
    """Return whether the storage is healthy; in development the mock stands in if it is not.

    Raises:
        StorageUnhealthyError: The service is unhealthy or unreachable, in production.
    """
    return await check_health(await resolve_storage(storage))


@task(
    name="Read watermark",
    description="Read up to which instant a source's records are durably collected.",
    task_run_name=_named("Read watermark of"),
    **_RETRIED,
)
@body
async def read_watermark(source_id: str, storage: StorageLike = None) -> Watermark | None:
    """Return the watermark of ``source_id``; ``None`` if and only if it was never collected.

    Raises:
        StorageError: The watermark could not be read, which is not the same as *never collected*.
    """
    client = shared_client(await resolve_storage(storage))
    return await client.get_watermark(source_id)


@task(
    name="Write running watermark",
    description="Say that a run of this source has begun; the last success stays.",
    task_run_name=_named("Write running watermark of"),
    **_RETRIED,
)
@body
async def write_running_watermark(
    source_id: str,
    timestamp: datetime,
    storage: StorageLike = None,
    *,
    if_match: str | None = None,
    if_none_match: bool = False,
    run_id: str | None = None,
) -> Watermark:
    """Write that a run began at ``timestamp``, and return the stored watermark.

    ``run_id`` names this task run of the flow run unless it is given.

    Raises:
        WatermarkConflictError: Another run wrote since the version of ``if_match`` was read.
        StorageError: The watermark could not be written.
    """
    run_id = run_id or _current_run_id()
    update = WatermarkUpdate.of(timestamp, WatermarkStatus.RUNNING, run_id=run_id)
    return await _written(source_id, update, Precondition(if_match, if_none_match), storage)


@task(
    name="Write success watermark",
    description="Move the watermark to the instant up to which all records are durable.",
    task_run_name=_named("Write success watermark of"),
    **_RETRIED,
)
@body
async def write_success_watermark(
    source_id: str,
    timestamp: datetime,
    storage: StorageLike = None,
    *,
    if_match: str | None = None,
    records_collected: int | None = None,
    run_id: str | None = None,
    ledger: Mapping[str, Any] | None = None,
) -> Watermark:
    """Write that everything up to ``timestamp`` is durable, and return the stored watermark.

    ``run_id`` names this task run of the flow run unless it is given.

    Raises:
        WatermarkConflictError: Another run was faster.
        StorageError: The watermark could not be written.
    """
    update = WatermarkUpdate.of(
        timestamp,
        WatermarkStatus.SUCCESS,
        records_collected=records_collected,
        run_id=run_id or _current_run_id(),
        ledger=ledger,
    )
    return await _written(source_id, update, Precondition(if_match), storage)


@task(
    name="Write failure watermark",
    description="Record that the run failed, and why; the last success stays.",
    task_run_name=_named("Write failure watermark of"),
    **_RETRIED,
)
@body
async def write_failure_watermark(
    source_id: str,
    timestamp: datetime,
    error_message: str,
    storage: StorageLike = None,
    *,
    if_match: str | None = None,
    run_id: str | None = None,
    ledger: Mapping[str, Any] | None = None,
) -> Watermark:
    """Write that the run failed at ``timestamp``, and return the stored watermark.

    ``run_id`` names this task run of the flow run unless it is given.

    Raises:
        WatermarkConflictError: Another run was faster.
        StorageError: The watermark could not be written.
    """
    run_id = run_id or _current_run_id()
    update = WatermarkUpdate.of(
        timestamp, WatermarkStatus.FAILED, error_message, run_id=run_id, ledger=ledger
    )
    return await _written(source_id, update, Precondition(if_match), storage)


def _current_run_id() -> str | None:
    """Return a name of this task run, by which the service knows a write that is sent again.

    It is not the flow run's alone: two tasks of one flow are two writers.
    """
    if not (task_run := runtime.task_run.id):
        return None
    return "/".join(map(str, filter(None, (runtime.flow_run.id, task_run))))


async def _written(
    source_id: str,
    update: WatermarkUpdate,
    precondition: Precondition,
    storage: StorageLike,
) -> Watermark:
    client = shared_client(await resolve_storage(storage))
    return await client.put_watermark(source_id, update, precondition)


_write_watermark = Task(
    body(_written),
    name="Write watermark",
    description="Write the outcome of a run by values.",
    **_RETRIED,
)
_WRITES: dict[WatermarkStatus, Task[..., Any]] = {  # named as the public tasks
    status: _write_watermark.with_options(
        name=public.name,
        description=public.description,
        task_run_name=public.task_run_name,
    )
    for status, public in (
        (WatermarkStatus.RUNNING, write_running_watermark),
        (WatermarkStatus.SUCCESS, write_success_watermark),
        (WatermarkStatus.FAILED, write_failure_watermark),
    )
}


@task(
    name="Collect source",
    description="Read one source from an instant on and make its records durable in one sink.",
    task_run_name=_named("Collect"),
    **_OPTIONS,
)
@body
async def collect_source(
    source: Source | dict[str, Any],
    sink: SinkLike = None,
    start: datetime | None = None,
    until: datetime | None = None,
    *,
    bounded: bool = False,
    run_id: str = "",
    limits: Limits = Limits(),  # noqa: B008 - frozen
) -> ExtractionResult:
    """Make the records from ``start`` on durable and return their ledger; touch no watermark.

    ``start`` and ``until`` are the range that the source is asked for. A ``bounded`` task leaves
    out records outside it.

    Raises:
        SourceError: The source failed; its complete pages until then are durable.
        SinkError: The sink failed.
        ConfigurationError: ``source`` or ``sink`` makes no sense, or the range is empty.
    """
    asked = TimeRange(start, until)
    stored = asked if bounded else ALL_TIME
    return await _extracted(source, sink, Run(run_id, limits, asked=asked, stored=stored))


async def _extracted(
    source: Source | dict[str, Any],
    sink: SinkLike,
    run: Run,
    lease: SourceLease | None = None,
) -> ExtractionResult:
    with secret_lookup(secret_block):
        return await extract(source_from(source), await resolve_sink(sink), run, lease)


_collect_source = Task(
    body(_extracted),
    name=collect_source.name,
    description=collect_source.description,
    task_run_name=collect_source.task_run_name,
    **_OPTIONS,
)
"""The task of the flows: as `collect_source`, by the values of a run."""


async def secret_block(name: str) -> str | None:
    """Return the value of Prefect's Secret block of this name, if there is one."""
    try:
        block: Any = await Secret.aload(name)
    except ValueError:
        return None
    return str(block.get())


class TaskStorage:
    """The storage of `run`, in which each call is a task run of the current flow.

    Where Prefect does not start a task run in time, the call is made without it: a run's outcome is
    written whatever Prefect's API does, also after a suspension, when no other task begins. The
    renewal of a lease, and a checkpoint inside a task, are no task runs anyway: a run of hours
    would have hundreds of them.

    Args:
        storage: The storage of the watermarks.
        named: Returns the watermark's text for a failure, such as the cause of a cancelled run.
    """

    def __init__(
        self, storage: StorageSettings, named: Callable[[str], Awaitable[str]] | None = None
    ) -> None:
        self._storage = storage
        self._named = named
        self._has_begun = False
        self._has_read: set[str] = set()

    async def health_check(self) -> bool:
        """Run `check_storage_health`."""
        is_healthy: bool = await _by_task(check_storage_health, self._storage)
        return is_healthy

    async def get_watermark(self, source_id: str) -> Watermark | None:
        """Run `read_watermark`; a run that waits for its source reads again without a task run."""
        if source_id in self._has_read:
            with suppress(StorageError):  # the task run repeats it
                return await shared_client(self._storage).get_watermark(source_id)
        self._has_read.add(source_id)
        stored: Watermark | None = await _by_task(read_watermark, source_id, self._storage)
        return stored

    async def watermark_history(self, source_id: str, **options: Any) -> HistoryPage | None:
        """Return a page of a watermark's changes; ``None``: the service keeps none."""
        client = shared_client(self._storage)
        return await client.watermark_history(source_id, **options)

    async def put_watermark(
        self, source_id: str, update: WatermarkUpdate, precondition: Precondition = UNCONDITIONAL
    ) -> Watermark:
        """Run the task that writes this status."""
        is_running = update.status is WatermarkStatus.RUNNING
        if (is_running and self._has_begun) or TaskRunContext.get():
            return await _written(source_id, update, precondition, self._storage)
        self._has_begun = self._has_begun or is_running
        if update.status is WatermarkStatus.FAILED:
            message = update.error_message or "failed"
            named = message if self._named is None else await self._named(message)
            update = update.with_error(named)
        write = _WRITES[update.status]
        despite = Exception if is_running else (Exception, PrefectSignal)
        stored: Watermark = await _by_task(
            write, source_id, update, precondition, self._storage, despite=despite
        )
        return stored


async def collect_in_task(
    source: Source, sink: Any, run: Run, lease: SourceLease | None = None
) -> ExtractionResult:
    """Call `run.extract` as a task run, or directly where Prefect does not start one."""
    collected: ExtractionResult = await _by_task(_collect_source, source, sink, run, lease)
    return collected


async def _by_task(called: Task[..., Any], *arguments: Any, despite: Errors = Exception) -> Any:
    return await by_task(
        called.name, lambda: called(*arguments), lambda: called.fn(*arguments), despite=despite
    )


class _RunLogHandler(APILogHandler):
    """A handler that sends this package's log records to the current run, and drops all others."""

    def emit(self, record: logging.LogRecord) -> None:
        if _is_in_a_run():
            super().emit(record)


def _log_to_runs() -> None:
    """Send this package's log records to Prefect's UI without any setting.

    PREFECT_LOGGING_EXTRA_LOGGERS=ladon_storage has the same effect, and is not applied twice.
    """
    package = logging.getLogger("ladon_storage")
    if not any(isinstance(handler, APILogHandler) for handler in package.handlers):
        package.addHandler(_RunLogHandler())
        if package.level == logging.NOTSET:
            package.setLevel(logging.INFO)


_log_to_runs()
