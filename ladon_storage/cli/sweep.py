"""``ladon-storage sweep``: runs whose process is gone, which Prefect would show as running."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated

from cyclopts import Parameter

from ladon_storage.cli.options import check_above_zero
from ladon_storage.cli.output import Json, print_json, print_text
from ladon_storage.errors import ConfigurationError

_VARIABLE, _LEAST_SECONDS = "PREFECT_FLOWS_HEARTBEAT_FREQUENCY", 30
"""The setting of Prefect, and the shortest interval that it lets runs have."""


def sweep(
    *,
    heartbeat: Annotated[
        float | None,
        Parameter(
            help="Seconds between heartbeats of the runs; by default what "
            "PREFECT_FLOWS_HEARTBEAT_FREQUENCY is here."
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Mark runs whose process is gone as crashed, or as cancelled."""
    from ladon_storage.cli.running import prefect_setting, refuse_without_prefect

    refuse_without_prefect()
    if heartbeat is not None:
        check_above_zero("--heartbeat", heartbeat)
        _check_interval("--heartbeat", heartbeat)
    elif given := prefect_setting(_VARIABLE):
        _check_interval(_VARIABLE, given)
    # Prefect prints what it logs, and refuses a wrong setting in its own terms when it is imported.
    from ladon_storage.cli.with_prefect import run_flows
    from ladon_storage.flows.zombies import frequency, sweep_once

    every = frequency() if heartbeat is None else timedelta(seconds=heartbeat)
    gone = [str(each) for each in run_flows(lambda: sweep_once(every))]
    if json:
        print_json(gone)
    elif gone:
        print_text("\n".join(gone))


def _check_interval(name: str, given: float | str) -> None:
    """Refuse an interval that no runs have: live ones would seem dead.

    Raises:
        ConfigurationError: It is shorter than Prefect allows, or no number.
    """
    try:
        is_possible = float(given) >= _LEAST_SECONDS
    except ValueError:
        is_possible = False
    if not is_possible:
        raise ConfigurationError(
            f"{name} is {str(given)[:100]}. Set it to the seconds between heartbeats of the runs, "
            f"which are {_LEAST_SECONDS} or more."
        )
