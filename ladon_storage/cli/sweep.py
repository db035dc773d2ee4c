"""``ladon-storage sweep``: runs whose process is gone, which Prefect would show as running."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated

from cyclopts import Parameter

from ladon_storage.cli.options import check_above_zero
from ladon_storage.cli.output import Json, print_json, print_text


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
    from ladon_storage.cli.running import refuse_without_prefect
    from ladon_storage.cli.with_prefect import run_flows
    from ladon_storage.flows.zombies import frequency, sweep_once  # Prefect prints what it logs

    refuse_without_prefect()
    if heartbeat is not None:
        check_above_zero("--heartbeat", heartbeat)
    every = frequency() if heartbeat is None else timedelta(seconds=heartbeat)
    gone = [str(each) for each in run_flows(lambda: sweep_once(every))]
    if json:
        print_json(gone)
    elif gone:
        print_text("\n".join(gone))
