"""``ladon-storage source try``: the first pages of a source, as a run would store them."""

from __future__ import annotations

import json as json_text
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from ladon_storage.cli.options import File, Source
from ladon_storage.cli.output import (
    Json,
    counted,
    note,
    print_facts,
    print_heading,
    print_json,
    print_table,
    said,
)
from ladon_storage.errors import ConfigurationError, LadonStorageError

if TYPE_CHECKING:
    from ladon_storage.probing import Trial, TrialRequest

_PAYLOAD = 300
"""The most characters of a record in the table; ``--json`` has more."""


def source_try(
    source: Source,
    /,
    *,
    records: Annotated[int, Parameter(help="Records and rejects to print at most.")] = 10,
    since: Annotated[
        str | None, Parameter(help="Time from which the source is asked, such as 2024-01-01.")
    ] = None,
    file: File = None,
    json: Json = False,
) -> int:
    """Ask a source for its first pages; store nothing."""
    from ladon_storage.cli import choosing, running
    from ladon_storage.probing import try_source

    if records < 0:
        raise ConfigurationError(f"--records is {records}. Set it to 0 or more.")
    start = None if since is None else choosing.instant(since, "--since")
    chosen = choosing.choose_source(choosing.load_project(file), source)
    made = chosen.make()
    try:
        trial = running.run(try_source(made, records=records, since=start, limits=chosen.limits))
    except LadonStorageError:
        raise
    except Exception as error:  # of another package's class
        note(f"ladon-storage: The source {chosen.name!r} raised {said(error)}.")
        return 1
    if json:
        print_json(trial.model_dump(mode="json"))
    else:
        _show(trial)
    if trial.error is not None:
        note(f"ladon-storage: {trial.error}")
    return 0 if trial.ok else 1


def _show(trial: Trial) -> None:
    usable = trial.delivered - trial.rejected
    items = counted(trial.delivered, "item")
    facts = [
        ("source", f"{trial.source_id} ({trial.kind})"),
        ("delivered", f"{items}: {usable:,} usable, {trial.rejected:,} rejected"),
    ]
    facts += [("request", _request(each)) for each in trial.requests]
    if trial.next_request is not None:
        facts.append(("next request", _request(trial.next_request)))
    if trial.paging:
        facts.append(("paging", trial.paging))
    if trial.total is not None:
        facts.append(("total", f"{trial.total:,}, as the source states"))
    if trial.completeness is not None:
        facts.append(("end known by", str(trial.completeness)))
    facts.append(("took", f"{trial.seconds:.2f} s"))
    print_facts(facts)
    if trial.records:
        print_heading(f"Records (the first {len(trial.records)} of {usable:,})")
        print_table(
            ("id", "time", "record"),
            (
                (each.record_id, each.timestamp.isoformat(), _one_line(each.payload))
                for each in trial.records
            ),
        )
    if trial.rejected:
        print_heading(f"Rejects ({trial.rejected:,})")
        print_table(("reason", "items#"), trial.reasons.items())
        if trial.rejects:
            print_table(
                ("reason", "item"), ((each.reason, _one_line(each.raw)) for each in trial.rejects)
            )
    if trial.warnings:
        print_heading("Look at this before a run")
        for each in trial.warnings:
            print_facts([("warning", each)])


def _one_line(payload: str) -> str:
    return payload if len(payload) <= _PAYLOAD else f"{payload[:_PAYLOAD]}…"


def _request(request: TrialRequest) -> str:
    body = f" {request.body}" if request.body else ""
    answer = "" if request.status is None else f" -> {request.status}, {request.bytes or 0:,} bytes"
    return f"{request.method} {request.url}{json_text.dumps(body)[1:-1] if body else ''}{answer}"
