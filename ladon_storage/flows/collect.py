"""The collection flow: one body for code and the command line, and a flow of each kind for the UI.

A flow of each kind, because Prefect's form of a union offers the fields of one kind with the
defaults of another.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

from prefect import runtime
from prefect.flows import Flow
from pydantic import AwareDatetime, BaseModel, ValidationError

from ladon_storage.blocks import RecordSink, StorageService
from ladon_storage.collection.protocols import Limits, Sink, Source
from ladon_storage.collection.run import Report, run
from ladon_storage.collection.summaries import summary
from ladon_storage.errors import ConfigurationError
from ladon_storage.flows import naming
from ladon_storage.flows.artifacts import completed, report_run
from ladon_storage.flows.command import run_command
from ladon_storage.flows.concurrency import source_slot
from ladon_storage.flows.ending import Ending, signals_noted
from ladon_storage.flows.parameters import checked_flow, refuse_unchosen_block
from ladon_storage.settings import StorageSettings
from ladon_storage.sinks import sink_from
from ladon_storage.sources import (
    Kev,
    Misp,
    Nvd,
    Otx,
    RestApi,
    SqlTable,
    Taxii,
    ThreatFox,
    UrlHaus,
    source_from,
)
from ladon_storage.tasks import TaskStorage, collect_in_task, resolve_storage


@checked_flow("collect", naming.collection)
async def collect(
    source: Source | dict[str, Any],
    sink: Sink | RecordSink | dict[str, Any] | str | None = None,
    storage: StorageService | StorageSettings | str | None = None,
    since: AwareDatetime | None = None,
    until: AwareDatetime | None = None,
    limits: Limits = Limits(),  # noqa: B008 - frozen
) -> Report:
    """Collect one source from where durable data ends, and write the outcome to its watermark.

    Args:
        source: Any source, or a dictionary with its ``kind``, such as ``{"kind": "kev"}``.
        sink: Where records go; by default, to the block called default.
        storage: Where the watermark is kept; by default, where the worker's environment says, or
            else the block called default.
        since: First instant of a backfill, with its zone. A backfill leaves the watermark alone.
        until: Instant before which a backfill ends, with its zone.
        limits: Where a first collection starts, and what makes a run fail.
    """
    refuse_unchosen_block()
    collected = source_from(source)
    with signals_noted():
        ending = Ending()
        is_backfill = since is not None or until is not None
        reported = report_run(collected, ending, is_backfill=is_backfill)
        async with reported as reporter, source_slot(collected.source_id):
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
            )
    return completed(reporter.report, summary(reporter.report))


def _resolved(sink: Any) -> Any:
    """Return a sink that needs no Prefect; a block's name as it is, for the task to load.

    A block that cannot be loaded then fails a run that has started, and its watermark records it.
    """
    if sink is None or isinstance(sink, str):
        return sink
    return sink.get_sink() if isinstance(sink, RecordSink) else sink_from(sink)


def _flow_of(kind: type[BaseModel]) -> Flow[..., Any]:
    """Return the same flow with a form for one kind of source."""

    async def collect_kind(  # type: ignore[no-untyped-def]
        source,
        sink=None,
        storage=None,
        since=None,
        until=None,
        limits=Limits(),  # noqa: B008 - frozen
    ):
        return await collect.fn(source, sink, storage, since, until, limits)

    name = kind.model_fields["kind"].default
    # Prefect's runner finds a flow in this module by its qualified name.
    collect_kind.__name__ = collect_kind.__qualname__ = f"collect_{name}"
    collect_kind.__doc__ = re.sub(
        "source: .*", f"source: {(kind.__doc__ or '').splitlines()[0]}", collect.fn.__doc__ or ""
    )
    collect_kind.__annotations__ = {
        "source": kind,
        "sink": RecordSink | None,
        "storage": StorageService | None,
        "since": AwareDatetime | None,
        "until": AwareDatetime | None,
        "limits": Limits,
        "return": Report,
    }
    return checked_flow(f"collect-{name}", naming.collection)(collect_kind)


collect_threatfox = _flow_of(ThreatFox)
collect_urlhaus = _flow_of(UrlHaus)
collect_kev = _flow_of(Kev)
collect_otx = _flow_of(Otx)
collect_misp = _flow_of(Misp)
collect_nvd = _flow_of(Nvd)
collect_taxii = _flow_of(Taxii)
collect_sql = _flow_of(SqlTable)
collect_rest = _flow_of(RestApi)


def main(arguments: list[str] | None = None) -> int:
    """Run one collection from the command line, and print its report as JSON.

    The Storage Service comes from the environment. Returns the exit code: 0, or 1 for a failed run.
    """
    parser = argparse.ArgumentParser(
        prog="python -m ladon_storage.flows.collect",
        description="Collect one source into one sink.",
    )
    parser.add_argument(
        "source",
        help="a kind (kev, threatfox), a JSON object with a kind, or a file that holds one",
    )
    parser.add_argument("sink", help="address of the sink, or the name of a block")
    parser.add_argument("--table", default="records", help="table of the sink (%(default)s)")
    parser.add_argument(
        "--keep", default="latest", choices=["latest", "all"], help="versions to keep (%(default)s)"
    )
    parser.add_argument(
        "--since", type=parse_timestamp, help="first instant of a backfill, with its offset"
    )
    parser.add_argument(
        "--until", type=parse_timestamp, help="instant before which a backfill ends"
    )
    parser.add_argument(
        "--limits", default="{}", help='what makes a run fail, as JSON: {"initial_lookback": 30}'
    )
    options = parser.parse_args(arguments)
    sink = parse_sink(options.sink, table=options.table, keep=options.keep)
    return run_command(
        lambda: collect(
            parse_source(options.source),
            sink,
            since=options.since,
            until=options.until,
            limits=_limits(options.limits),
        ),
        lambda report: report.model_dump_json(indent=2),
    )


def _limits(text: str) -> Limits:
    try:
        return Limits.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(map(str, first["loc"])) or "they"
    raise ConfigurationError(
        f"The limits cannot be used: {field}: {first['msg']}; "
        f"their names are {', '.join(Limits.model_fields)}."
    )


def parse_source(text: str) -> dict[str, Any]:
    """Return the source of a command line: a kind, a JSON object, or a file with one.

    Raises:
        ConfigurationError: The text describes no source.
    """
    if not text.lstrip().startswith("{"):
        if not Path(text).is_file():
            return {"kind": text}
        text = Path(text).read_text(encoding="utf-8")
    try:
        return dict(json.loads(text))
    except ValueError as error:
        raise ConfigurationError(f"The source is no JSON object with a kind: {error}.") from None


def parse_sink(text: str, **fields: Any) -> dict[str, Any] | str:
    """Return the sink of a command line: a URL with its fields, or a block's name."""
    return {"url": text, **fields} if "://" in text else text


def parse_timestamp(text: str) -> datetime:
    """Return the timestamp of a command line, with its offset."""
    told = datetime.fromisoformat(text)
    if told.tzinfo is None:
        raise argparse.ArgumentTypeError("has no offset; write 2024-01-01T00:00:00+00:00, say")
    return told


if __name__ == "__main__":
    sys.exit(main())
