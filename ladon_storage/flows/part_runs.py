"""The flow run of one part on a work pool, from its start until it ends or is taken over.

- A run that never begins has no end either. It is silent when it has not begun in time, or has sent
  no heartbeat in time after it began. From the first heartbeat on, the sweep looks after it.
- Changes between waiting states are no sign of a process: a run that waits for a concurrency limit
  changes for ever.
- A process that begins late all the same finds in its run's states that its part was taken over.
"""

from __future__ import annotations

import asyncio
import logging
from datetime import timedelta
from typing import Any
from uuid import UUID

import httpx
from prefect import get_client, runtime
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelled

from ladon_storage.collection.protocols import utc_now
from ladon_storage.collection.summaries import one_line
from ladon_storage.flows.zombies import last_heard

logger = logging.getLogger("ladon_storage.flows")

TAKEN_OVER = "TakenOver"
"""The name of the state of a run whose part another run has taken over."""


class PartRun:
    """The flow run of one part, and whether a process of it has been heard of.

    Args:
        run: The run, as it was started.
        patience: The time in which it should begin, and from its begin until its first heartbeat.
        pause: The seconds between two looks at it.
    """

    def __init__(self, run: FlowRun, patience: timedelta, pause: float) -> None:
        self.run = run
        self._pause = pause
        self._patience = patience.total_seconds()
        self._loop = asyncio.get_running_loop()
        self._since = self._loop.time()
        self._is_heard = False
        self._is_gone = False

    async def ends_in_time(self) -> bool:
        """Wait until the run ends, or is silent for too long; return whether it has ended."""
        async with get_client() as client:
            while not self._has_ended:
                if await self._is_silent(client):
                    return False
                await asyncio.sleep(self._pause)
                await self._look(client)
        return True

    async def cancel(self, message: str) -> bool:
        """Cancel the run if it is silent still, and return whether its part is to be taken over.

        A run that was being cancelled is cancelled, and its part is not taken over.
        """
        async with get_client() as client:
            await self._look(client)
            if self._has_ended or not await self._is_silent(client):
                return False
            if self._is_gone:
                logger.warning("The run %s was deleted. %s", self.run.name, message)
                return True
            is_wanted = self.run.state is None or self.run.state.type is not StateType.CANCELLING
            state: State[Any] = (
                Cancelled(name=TAKEN_OVER, message=message) if is_wanted else Cancelled()
            )
            try:
                await client.set_flow_run_state(self.run.id, state)
            except ObjectNotFound:
                self._is_gone = True
            except httpx.HTTPError as error:  # a lease keeps the two executions apart
                logger.warning("Run %s could not be cancelled: %s", self.run.name, one_line(error))
            logger.warning(
                "The run %s was %s, and its process was not heard of for %.0f s. %s",
                self.run.name, self.run.state.name if self.run.state else "new", self._patience,
                message if is_wanted else "It counts as cancelled.",
            )  # fmt: skip
            if not is_wanted:
                self.run.state = state
            return is_wanted

    @property
    def _has_ended(self) -> bool:
        return self.run.state is not None and self.run.state.is_final()

    async def _look(self, client: PrefectClient) -> None:
        """Read the run again; where Prefect does not answer, nothing new is known of it."""
        before = self.run.state
        try:
            self.run = await client.read_flow_run(self.run.id)
        except ObjectNotFound:
            self._is_gone = True
        except httpx.HTTPError as error:
            logger.debug("Run %s could not be read: %s", self.run.name, one_line(error))
        now = self.run.state
        is_changed = (before and before.id) != (now and now.id)
        if is_changed and not (_is_waiting(before) and _is_waiting(now)):
            self._since = self._loop.time()

    async def _is_silent(self, client: PrefectClient) -> bool:
        if self._is_gone:
            return True
        if self._loop.time() - self._since < self._patience:
            return False
        if self.run.state is None or not self.run.state.is_running():
            return True
        try:
            self._is_heard = self._is_heard or bool(
                await last_heard(client, self.run.id, utc_now())
            )
        except httpx.HTTPError as error:
            logger.debug("Heartbeats could not be read: %s", one_line(error))
            return False
        return not self._is_heard


def _is_waiting(state: State[Any] | None) -> bool:
    return state is None or state.type in (StateType.SCHEDULED, StateType.PENDING)


async def taken_over() -> str | None:
    """Return the message with which another run took this run's part over, if one did.

    A run that was scheduled again after that is meant to collect.
    """
    if (run_id := runtime.flow_run.id) is None:
        return None
    async with get_client() as client:
        states: list[State[Any]] = await client.read_flow_run_states(UUID(str(run_id)))
    for state in reversed(states):
        if state.type is StateType.SCHEDULED:
            return None
        if state.name == TAKEN_OVER:
            message: str | None = state.message
            return message
    return None
