"""Turn runs whose process is gone without a word into crashed ones.

A process that is killed writes nothing, and where its runner or its host went with it, Prefect
shows its run as running for ever, and its deployment, which runs once at a time, starts no other.
Runs say by heartbeats that they live; an automation waits for them, and this creates it.

- A run that misses three heartbeats is taken for dead. One is late where a process is suspended or
  the server restarts, and a run that lives must not be crashed.
- Any other news of a run ends the waiting: of its end, whatever its state is called, or of a pause.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence
from datetime import timedelta

from prefect import get_client
from prefect.automations import AutomationCore, EventTrigger
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import Posture
from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY

NAME = "Crash runs whose process is gone"
MISSED = 3
HEARTBEAT = "prefect.flow-run.heartbeat"


def automation(heartbeat: timedelta) -> AutomationCore:
    """Return the automation for runs that have a ``heartbeat`` so often, to be created."""
    within = MISSED * heartbeat
    return AutomationCore(
        name=NAME,
        description=f"A run that is not heard of for {within.total_seconds():.0f} s is crashed.",
        trigger=EventTrigger(
            after={HEARTBEAT},
            expect={"prefect.flow-run.*"},
            match={"prefect.resource.id": "prefect.flow-run.*"},
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=within,
        ),
        actions=[
            ChangeFlowRunState(
                state=StateType.CRASHED,
                message=f"Its process is gone: no heartbeat for {within.total_seconds():.0f} s.",
            )
        ],
    )


async def deploy(heartbeat: timedelta) -> str:
    """Create the automation in the Prefect of this environment, or replace the one of before."""
    made = automation(heartbeat)
    async with get_client() as client:
        for before in await client.read_automations_by_name(made.name):
            await client.delete_automation(before.id)
        await client.create_automation(made)
    return made.name


def main(arguments: Sequence[str] | None = None) -> int:
    """Create the automation from the command line, and print its name."""
    parser = argparse.ArgumentParser(
        prog="python -m flows.zombies",
        description="Turn runs whose process is gone without a word into crashed ones.",
    )
    parser.add_argument(
        "--heartbeat",
        type=float,
        default=PREFECT_FLOWS_HEARTBEAT_FREQUENCY.value() or 180,
        metavar="SECONDS",
        help="PREFECT_FLOWS_HEARTBEAT_FREQUENCY where the runs are (here: %(default)s)",
    )
    options = parser.parse_args(arguments)
    print(asyncio.run(deploy(timedelta(seconds=options.heartbeat))))  # noqa: T201 - a command
    return 0


if __name__ == "__main__":
    sys.exit(main())
