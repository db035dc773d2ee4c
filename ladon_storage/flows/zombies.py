"""A sweep that marks runs whose process is gone as crashed.

A killed process writes nothing. If its runner or its host was killed too, Prefect shows the run as
running for ever, and its deployment, which runs once at a time, starts no other. Live runs send
heartbeats. A sweep looks for runs without them. One that was being cancelled ends as cancelled.

- A run that misses three heartbeats is suspected, and counts as dead if two more are missing while
  the server answers. A heartbeat may be late where a process is suspended, and all are missing
  where the server itself was down: a live run must not be crashed.
- A run without any heartbeat is left alone.
- It is a sweep and not one of Prefect's automations. An automation that waits for events writes to
  the server's database at each of them, and with SQLite that made runs wait for a minute.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from prefect import get_client
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY
from prefect.states import Cancelled, Crashed

from ladon_storage.collection.protocols import Clock, utc_now

logger = logging.getLogger("ladon_storage.flows")

AUTOMATION = "Crash runs whose process is gone"
"""The former automation for this, which kept the server's database locked."""

MISSED = 3
"""The missing heartbeats after which a run is suspected."""

CONFIRMED = 2
"""The further missing heartbeats after which it counts as dead."""

HEARTBEAT = "prefect.flow-run.heartbeat"
_PAGE = 200
_LONGEST_RUN = timedelta(days=180)


class Sweeper:
    """A repeated search for runs of this environment's Prefect whose process is gone.

    Args:
        heartbeat: The interval of heartbeats.
        clock: The time.
        only: The runs to look at, which may grow; ``None``: all.
    """

    def __init__(
        self,
        heartbeat: timedelta,
        clock: Clock = utc_now,
        only: Collection[UUID] | None = None,
    ) -> None:
        self._only = only
        self.silence = MISSED * heartbeat
        self.confirmation = CONFIRMED * heartbeat
        self._clock = clock
        self._suspects: dict[UUID, _Suspect] = {}

    async def sweep(self) -> list[UUID]:
        """End the runs that are gone, and return their ids."""
        async with get_client() as client:
            now, before = self._clock(), self._suspects
            self._suspects = {
                run.id: before[run.id] if before.get(run.id) == suspect else suspect
                for run in await _unfinished(client)
                if self._only is None or run.id in self._only
                if (suspect := await self._suspect(client, run, now)) is not None
            }
            due = [
                run_id
                for run_id, suspect in self._suspects.items()
                if now - suspect.since >= self.confirmation
            ]
            return [run_id for run_id in due if await self._end(client, run_id)]

    @property
    def has_suspects(self) -> bool:
        """Whether a run is suspected, and does not count as dead yet."""
        return bool(self._suspects)

    async def _suspect(self, client: PrefectClient, run: FlowRun, now: datetime) -> _Suspect | None:
        if run.state is None or now - run.state.timestamp <= self.silence:
            return None
        last = await last_heard(client, run.id, now)
        if last is None or now - last <= self.silence:
            return None
        return _Suspect(run.state.id, last, now)

    async def _end(self, client: PrefectClient, run_id: UUID) -> bool:
        suspect = self._suspects.pop(run_id)
        state = (await client.read_flow_run(run_id)).state
        if state is None or state.id != suspect.state:  # it ended while others were asked about
            return False
        message = f"Its process is gone: no heartbeat for {self.silence.total_seconds():.0f} s."
        end: State[Any] = (
            Cancelled(message=message) if state.is_cancelling() else Crashed(message=message)
        )
        await client.set_flow_run_state(run_id, end, force=True)
        logger.warning("Run %s is %s. %s", run_id, end.type.value.lower(), message)
        return True


@dataclass(frozen=True)
class _Suspect:
    """A run whose last heartbeat in its present state was long ago."""

    state: UUID
    last_heard: datetime
    since: datetime = field(compare=False)


async def _unfinished(client: PrefectClient) -> list[FlowRun]:
    found: list[FlowRun] = []
    states = [StateType.RUNNING, StateType.CANCELLING]
    state = FlowRunFilterState(type=FlowRunFilterStateType(any_=states))
    while True:
        page = await client.read_flow_runs(
            flow_run_filter=FlowRunFilter(state=state), limit=_PAGE, offset=len(found)
        )
        found += page
        if len(page) < _PAGE:
            return found


async def last_heard(client: PrefectClient, run_id: UUID, now: datetime) -> datetime | None:
    """Return the time of a run's last heartbeat; ``None``: there was none."""
    chosen = {
        "event": {"name": [HEARTBEAT]},
        "resource": {"id": [f"prefect.flow-run.{run_id}"]},
        # By default up to now: the clock of a run's host may be ahead.
        "occurred": {
            "since": (now - _LONGEST_RUN).isoformat(),
            "until": (now + timedelta(days=1)).isoformat(),
        },
    }
    asked = {"filter": {**chosen, "order": "DESC"}, "limit": 1}
    # Prefect's client has no method for events.
    answer = await client._client.post("/events/filter", json=asked)  # noqa: SLF001
    events = answer.json()["events"]
    return datetime.fromisoformat(events[0]["occurred"]) if events else None


async def remove_automation() -> None:
    """Delete the automation of earlier releases from this environment's Prefect."""
    async with get_client() as client:
        for before in await client.read_automations_by_name(AUTOMATION):
            await client.delete_automation(before.id)


async def keep_sweeping(heartbeat: timedelta, only: Collection[UUID] | None = None) -> None:
    """Sweep once per heartbeat until cancelled; errors are only logged.

    Args:
        heartbeat: The interval of heartbeats.
        only: The runs to look at, which may grow; ``None``: all.
    """
    sweeper = Sweeper(heartbeat, only=only)
    while True:
        try:
            await sweeper.sweep()
        except Exception as error:  # whatever Prefect's API says
            logger.warning("Runs whose process is gone were not looked for: %s", error)
        await asyncio.sleep(heartbeat.total_seconds())


def frequency() -> timedelta:
    """Return the interval of heartbeats of this environment's runs."""
    return timedelta(seconds=PREFECT_FLOWS_HEARTBEAT_FREQUENCY.value() or 180)


async def sweep_once(heartbeat: timedelta) -> list[UUID]:
    """Sweep, and again where a run is suspected, when that can be confirmed."""
    await remove_automation()
    sweeper = Sweeper(heartbeat)
    gone = await sweeper.sweep()
    if sweeper.has_suspects:
        await asyncio.sleep(sweeper.confirmation.total_seconds())
        gone += await sweeper.sweep()
    return gone
