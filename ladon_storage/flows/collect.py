"""The collection flow: one body for code and the command line, and a flow of each kind for the UI.

A flow of each kind, because Prefect's form of a union offers the fields of one kind with the
defaults of another.
"""

from __future__ import annotations

import dataclasses
from typing import Any
from uuid import uuid4

from prefect import runtime
from pydantic import AwareDatetime

from ladon_storage.blocks import RecordSink, StorageService
from ladon_storage.collection.protocols import Limits, Sink, Source
from ladon_storage.collection.run import Report, run
from ladon_storage.collection.standby import WhenBusy
from ladon_storage.collection.summaries import outcome
from ladon_storage.errors import ConfigurationError
from ladon_storage.flows import naming
from ladon_storage.flows.artifacts import completed, report_run
from ladon_storage.flows.concurrency import source_slot
from ladon_storage.flows.ending import Ending, signals_noted
from ladon_storage.flows.parameters import CheckedFlow, checked_flow, refuse_unchosen_block
from ladon_storage.settings import StorageSettings
from ladon_storage.sinks import sink_from
from ladon_storage.sources import SOURCES, source_from
from ladon_storage.tasks import TaskStorage, collect_in_task, resolve_storage


@checked_flow("collect", naming.collection)
async def collect(
    source: Source | dict[str, Any],
    sink: Sink | RecordSink | dict[str, Any] | str | None = None,
    storage: StorageService | StorageSettings | str | None = None,
    since: AwareDatetime | None = None,
    until: AwareDatetime | None = None,
    limits: Limits = Limits(),  # noqa: B008 - frozen
    when_busy: WhenBusy = "fail",
) -> Report:
    """Collect one source from where durable data ends, and write the outcome to its watermark.

    Args:
        source: The kind of a source and its fields; in code, any source.
        sink: Where records go; by default, to the block called default.
        storage: Where the watermark is kept; by default, where the worker's environment says, or
            else the block called default.
        since: First instant of a backfill, with its zone. A backfill leaves the watermark alone.
        until: Instant before which a backfill ends, with its zone.
        limits: Where a first collection starts, and what makes a run fail.
        when_busy: What the run does while another run collects the source: fail, wait until it is
            free, or skip, which completes without a collection.
    """
    refuse_unchosen_block()
    collected = source_from(source)
    with signals_noted():
        ending = Ending()
        is_backfill = since is not None or until is not None
        reported = report_run(collected, ending, is_backfill=is_backfill)
        async with reported as reporter, source_slot(collected.source_id, when_busy=when_busy):
            reporter.report = await run(
                collected,
                _resolved(sink),
                TaskStorage(await resolve_storage(storage), ending.named),
                run_id=str(runtime.flow_run.id or uuid4()),
                since=since,
                until=until,
                limits=limits,
                on_progress=reporter.progress,
                extract=collect_in_task,
                when_busy=when_busy,
            )
    return completed(reporter.report, outcome(reporter.report, reporter.report.skipped))


def _resolved(sink: Any) -> Any:
    """Return a sink that needs no Prefect; a block's name as it is, for the task to load.

    A block that cannot be loaded then fails a run that has started, and its watermark records it.
    """
    if sink is None or isinstance(sink, str):
        return sink
    return sink.get_sink() if isinstance(sink, RecordSink) else sink_from(sink)


def flow_of(source: type[Any]) -> CheckedFlow[..., Any]:
    """Return the flow `collect` with a form for one class of sources, made from its fields.

    Give it the name ``collect_`` and the source's, in the module of the class: Prefect finds a flow
    by its module and its name.

    Args:
        source: A pydantic model or a dataclass with the members of a source. Its field ``kind``
            names the flow, or else the class does.

    Raises:
        ConfigurationError: The class has no fields that a form could show.

    Example:
        ```python
        collect_tickets = flow_of(Tickets)
        ```
    """
    fields = getattr(source, "model_fields", None)
    if fields is None and not dataclasses.is_dataclass(source):
        raise ConfigurationError(
            f"{source.__qualname__} has no fields for a form. Make it a pydantic model or a "
            "dataclass, or name it as the `kind` of the flow collect."
        )

    async def collect_kind(  # type: ignore[no-untyped-def]
        source,
        sink=None,
        storage=None,
        since=None,
        until=None,
        limits=Limits(),  # noqa: B008 - frozen
        when_busy="fail",
    ):
        return await collect.fn(source, sink, storage, since, until, limits, when_busy)

    kind = fields.get("kind") if fields else None
    name = kind.default if kind and isinstance(kind.default, str) else source.__name__.lower()
    is_own = not source.__module__.startswith("ladon_storage.")
    if is_own:
        collect_kind.__module__ = source.__module__
    collect_kind.__name__ = collect_kind.__qualname__ = f"collect_{name.replace('-', '_')}"
    said = next(iter((source.__doc__ or "").split("\n")), "").strip() or "The fields of the source."
    documented = (collect.fn.__doc__ or "").splitlines()
    collect_kind.__doc__ = "\n".join(
        f"        source: {said}" if each.lstrip().startswith("source: ") else each
        for each in documented
    )
    collect_kind.__annotations__ = {
        "source": source,
        "sink": RecordSink | None,
        "storage": StorageService | None,
        "since": AwareDatetime | None,
        "until": AwareDatetime | None,
        "limits": Limits,
        "when_busy": WhenBusy,
        "return": Report,
    }
    return checked_flow(f"collect-{name}", naming.collection)(collect_kind)


collect_threatfox: CheckedFlow[..., Any]
collect_urlhaus: CheckedFlow[..., Any]
collect_kev: CheckedFlow[..., Any]
collect_otx: CheckedFlow[..., Any]
collect_misp: CheckedFlow[..., Any]
collect_nvd: CheckedFlow[..., Any]
collect_taxii: CheckedFlow[..., Any]
collect_sql: CheckedFlow[..., Any]
collect_rest: CheckedFlow[..., Any]


def __getattr__(name: str) -> CheckedFlow[..., Any]:
    """Return the flow of a shipped kind, `collect_kev` of kev, and make it at its first use.

    Its form takes a tenth of a second, and a process that runs a flow needs no form of another.
    """
    kind = name.removeprefix("collect_")
    if kind == name or kind not in SOURCES.shipped:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    made = globals()[name] = flow_of(SOURCES.find(kind))
    return made
