"""``ladon-storage collect-many``: one flow run over all the sources that a list names."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from ladon_storage.cli.options import SinkText, WhenBusyOption
from ladon_storage.cli.output import Json, log_to_notes, print_facts, print_json
from ladon_storage.errors import ConfigurationError

if TYPE_CHECKING:
    from ladon_storage.flows.collect_many import ManyReport


def collect_many(
    sources: Annotated[
        Path,
        Parameter(help="A ladon.toml, or a TOML or JSON file with a list of sources."),
    ],
    /,
    *,
    sink: SinkText = None,
    concurrency: Annotated[
        int | None,
        Parameter(help="Sources that are collected at once; by default as the file says, or 10."),
    ] = None,
    when_busy: WhenBusyOption = None,
    json: Json = False,
) -> None:
    """Collect the sources of a list in one flow run."""
    from ladon_storage.cli.choosing import choose_sink_text
    from ladon_storage.cli.with_prefect import run_flows

    log_to_notes()
    if concurrency is not None and concurrency < 1:
        raise ConfigurationError(f"--concurrency is {concurrency}. Set it to 1 or more.")
    if not sources.is_file():
        raise ConfigurationError(f"There is no file {str(sources)!r} of sources; name another.")
    from ladon_storage.flows.collect_many import SourcesFailedError, checked_file
    from ladon_storage.flows.collect_many import collect_many as flow

    checked_file(sources)  # before Prefect starts a server for a run that would fail
    described = None if sink is None else choose_sink_text(None, sink, with_prefect=True).described

    async def run() -> ManyReport:
        report: ManyReport = await flow(
            file=str(sources), sink=described, concurrency=concurrency, when_busy=when_busy
        )
        return report

    failure = None
    try:
        report = run_flows(run)
    except SourcesFailedError as error:  # the others are collected, and its report has them
        if error.report is None:
            raise
        failure, report = error, error.report
    if json:
        print_json(report.model_dump(mode="json"))
    else:
        facts = report.model_dump(mode="json", exclude={"failures"})
        print_facts([(name.replace("_", " "), str(value)) for name, value in facts.items()])
    if failure is not None:
        raise failure
