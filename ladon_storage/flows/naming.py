"""The names of flow runs: the source and the time of a run, instead of two random words.

- A name that a user gave stays. Prefect's server and both forms fill in words joined by dashes, so
  only such a name is replaced.
- Prefect asks for the name in the run, before its body. A fault here leaves the name as it was.
- Times are those for which a run was scheduled, in UTC or in the zone of the variable ``TZ``.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, tzinfo
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from prefect.context import FlowRunContext

from ladon_storage.collection.protocols import utc_now
from ladon_storage.collection.summaries import cut
from ladon_storage.tasks import label_of

logger = logging.getLogger("ladon_storage.flows")

NameOf = Callable[[Mapping[str, Any], str], str]
"""Returns the name of a run from its parameters and its time, such as 06:00."""

_GENERATED = re.compile(r"[^\W_]+(-[^\W\d_]+)+")
_LONGEST = 200


def named_run(name_of: NameOf) -> Callable[[], str]:
    """Return the function that Prefect asks for the name of the present run."""

    def name() -> str:
        context = FlowRunContext.get()
        run = context.flow_run if context else None
        if context is None or run is None:
            return ""
        if not _GENERATED.fullmatch(run.name):
            return run.name
        try:
            time = (run.expected_start_time or utc_now()).astimezone(_zone())
            return cut(name_of(context.parameters or {}, f"{time:%H:%M}"), _LONGEST)
        except Exception as error:  # whatever a custom source raises
            logger.debug("The run %s keeps its name: %r", run.name, error)
            return run.name

    return name


def collection(parameters: Mapping[str, Any], time: str) -> str:
    """Return the name of a collection, such as ``kev 06:00``; with bounds it is a backfill."""
    label = label_of(parameters.get("source"))
    span = _span(parameters.get("since"), parameters.get("until"))
    return f"backfill {label} {span}" if span else f"{label} {time}"


def backfill(parameters: Mapping[str, Any], time: str) -> str:
    """Return the name of a backfill, such as ``backfill kev 2026-01-01 to 2026-02-01``."""
    span = _span(parameters.get("since"), parameters.get("until"))
    return f"backfill {label_of(parameters.get('source'))} {span or time}"


def reconciliation(parameters: Mapping[str, Any], time: str) -> str:
    """Return the name of a reconciliation, such as ``reconcile kev 04:33``."""
    span = _span(parameters.get("since"), parameters.get("until"))
    return f"reconcile {label_of(parameters.get('source'))} {span or time}"


def many(parameters: Mapping[str, Any], time: str) -> str:
    """Return the name of a run over many sources, such as ``12 sources 06:00``.

    That of a part is such as ``part 2/8 of 12 sources 06:00``.
    """
    sources, part = parameters.get("sources"), parameters.get("part")
    prefix = f"part {part} of " if part else ""
    if sources:
        return f"{prefix}{len(sources):,} source{'s' * (len(sources) != 1)} {time}"
    return f"{prefix}sources of {Path(str(parameters.get('file'))).name} {time}"


def freshness(_parameters: Mapping[str, Any], time: str) -> str:
    """Return the name of a check of ages."""
    return f"freshness {time}"


def probe(_parameters: Mapping[str, Any], time: str) -> str:
    """Return the name of a probe of the Storage Service."""
    return f"probe {time}"


def _span(since: datetime | None, until: datetime | None) -> str:
    if since is None:
        return "" if until is None else f"until {_instant(until)}"
    return f"from {_instant(since)}" if until is None else f"{_instant(since)} to {_instant(until)}"


def _instant(value: datetime) -> str:
    """Return an instant in the zone of names; midnight is its date."""
    local = value.astimezone(_zone())
    return f"{local:%Y-%m-%d}" if local.time() == local.min.time() else f"{local:%Y-%m-%d %H:%M}"


def _zone() -> tzinfo:
    try:
        return ZoneInfo(os.environ.get("TZ", "").lstrip(":"))
    except (ValueError, KeyError, OSError):  # none is named, or none that there is
        return UTC
