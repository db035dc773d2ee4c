"""Automations that pause collections while the Storage Service's circuit is open, and a probe.

Two automations act on the circuit's events: one pauses deployments or work pools when it opens, the
other resumes them when it closes. Paused deployments make no calls, so none would ever close the
circuit again. Hence the flow `probe_storage` runs every minute, in a deployment that is not paused.
While the circuit is closed it makes no request.
"""

from __future__ import annotations

import glob
from collections.abc import Sequence
from contextlib import suppress
from uuid import UUID

from prefect import get_client
from prefect.automations import AutomationCore, EventTrigger
from prefect.client.orchestration import PrefectClient
from prefect.events.actions import (
    ActionTypes,
    PauseDeployment,
    PauseWorkPool,
    ResumeDeployment,
    ResumeWorkPool,
)
from prefect.events.schemas.automations import Posture
from prefect.exceptions import ObjectNotFound

from ladon_storage.blocks import StorageService
from ladon_storage.circuit.breaker import CircuitState
from ladon_storage.circuit.urls import service_key
from ladon_storage.connect import shared_client
from ladon_storage.errors import ConfigurationError, StorageError
from ladon_storage.events import CLOSED, OPENED, resource_id
from ladon_storage.flows import naming
from ladon_storage.flows.parameters import checked_flow
from ladon_storage.settings import StorageSettings
from ladon_storage.tasks import resolve_storage

# Never collected, and read all the same: 404 is a response of a service that works.
PROBED = "circuit-probe"


@checked_flow("probe-storage-service", naming.probe)
async def probe_storage(storage: StorageService | StorageSettings | str | None = None) -> str:
    """Read one watermark if the circuit is not closed and admits a call; return its state.

    Args:
        storage: The Storage Service: a block, its name, or nothing for the environment.
    """
    client = shared_client(await resolve_storage(storage))
    if client.circuit_breaker.state is not CircuitState.CLOSED:
        with suppress(StorageError):
            await client.get_watermark(PROBED)
    return client.circuit_breaker.state.value


def automations(
    address: str, deployments: Sequence[UUID] = (), work_pools: Sequence[UUID] = ()
) -> list[AutomationCore]:
    """Return the two automations of the service at ``address``, to be created.

    A deployment that an operator paused is resumed with the others.
    """
    key = service_key(address)

    def automation(name: str, event: str, actions: Sequence[ActionTypes]) -> AutomationCore:
        return AutomationCore(
            name=f"{name}: {key}",
            description=f"Acts on {event} of the Storage Service at {key}.",
            trigger=EventTrigger(
                expect={event},
                # Prefect matches by patterns, to which [::1] is one character.
                match={"prefect.resource.id": glob.escape(resource_id(address))},
                posture=Posture.Reactive,
                threshold=1,
            ),
            actions=list(actions),
        )

    pauses = [PauseDeployment(deployment_id=each) for each in deployments]
    resumes = [ResumeDeployment(deployment_id=each) for each in deployments]
    return [
        automation(
            "Pause collections while the circuit is open",
            OPENED,
            [*pauses, *(PauseWorkPool(work_pool_id=each) for each in work_pools)],
        ),
        automation(
            "Resume collections when the circuit closes",
            CLOSED,
            [*resumes, *(ResumeWorkPool(work_pool_id=each) for each in work_pools)],
        ),
    ]


async def deploy(
    address: str, deployments: Sequence[str] = (), work_pools: Sequence[str] = ()
) -> list[str]:
    """Create the automations in the Prefect of this environment, or replace the earlier ones.

    Args:
        address: Address of the Storage Service.
        deployments: Names of the deployments to pause, such as ``collect-kev/hourly``.
        work_pools: Names of the work pools to pause.

    Returns:
        The names of the automations.

    Raises:
        ConfigurationError: Nothing is named, or something that does not exist.
    """
    if not deployments and not work_pools:
        raise ConfigurationError("There is nothing to pause; name a deployment or a work pool.")
    async with get_client() as client:
        made = automations(
            address,
            [await _deployment(client, name) for name in deployments],
            [await _work_pool(client, name) for name in work_pools],
        )
        for each in made:
            for before in await client.read_automations_by_name(each.name):
                await client.delete_automation(before.id)
            await client.create_automation(each)
    return [each.name for each in made]


async def _deployment(client: PrefectClient, name: str) -> UUID:
    with suppress(ObjectNotFound, ValueError):
        return (await client.read_deployment_by_name(name)).id
    raise ConfigurationError(f"There is no deployment {name!r}; name it as flow/deployment.")


async def _work_pool(client: PrefectClient, name: str) -> UUID:
    with suppress(ObjectNotFound):
        return (await client.read_work_pool(name)).id
    raise ConfigurationError(f"There is no work pool {name!r}; create it first.")
