"""The circuit's events and the automations that act on them, with a real Prefect server."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from prefect import flow, get_client
from prefect.automations import EventTrigger
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.objects import WorkPoolStatus

from ladon_storage import cli, events, tasks
from ladon_storage.circuit.stores.sqlite import SqliteStore
from ladon_storage.circuit.urls import SharedCircuit
from ladon_storage.connect import shared_client
from ladon_storage.errors import CircuitOpenError, ConfigurationError, StorageResponseError
from ladon_storage.events import resource_id
from ladon_storage.flows.circuit import automations, deploy, probe_storage
from ladon_storage.settings import StorageSettings
from tests.flaky import Flaky
from tests.forks import Forks


@flow
async def collection() -> None:
    """Be what is paused."""


async def until(holds: Callable[[], Awaitable[bool]]) -> None:
    """Wait until Prefect's server has done something."""
    deadline = time.monotonic() + 30
    while not await holds():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)


async def circuit_events(storage: StorageSettings) -> list[str]:
    """Return the events of the service's circuit that the server has, the first one first."""
    assert storage.url
    wanted = {
        "occurred": {"since": "2020-01-01T00:00:00Z"},
        "resource": {"id": [resource_id(storage.url)]},
        "order": "ASC",
    }
    async with get_client() as client:
        answer = await client._client.post("/events/filter", json={"filter": wanted})
    events: list[dict[str, Any]] = answer.json()["events"]
    return [each["event"].removeprefix("ladon.circuit.") for each in events]


def shared(storage: StorageSettings) -> SharedCircuit:
    found = shared_client(storage).circuit_breaker
    assert isinstance(found, SharedCircuit)
    return found


def set_clock(storage: StorageSettings, seconds: float) -> None:
    """Let the store's clock stand still, for this process: Prefect may take longer than a probe."""
    found = shared(storage)
    assert isinstance(found.store, SqliteStore)
    found.store._clock = lambda: seconds
    found._fresh_until = 0.0


@pytest.mark.slow
async def test_collections_are_paused_while_the_circuit_is_open(
    storage: StorageSettings, service: Flaky
) -> None:
    """Runs find out, the deployment and the pool pause; a probe finds out, and they resume.

    Each change is one event, and an operator's name for what does not exist is refused.
    """
    assert storage.url
    async with get_client() as client:
        deployment = await client.create_deployment(await client.create_flow(collection), "hourly")
        await client.create_work_pool(WorkPoolCreate(name="collectors", type="process"))

        async def is_paused(expected: bool) -> bool:
            pool = await client.read_work_pool("collectors")
            is_pool_paused = pool.status == WorkPoolStatus.PAUSED
            return (await client.read_deployment(deployment)).paused == is_pool_paused == expected

        names = await deploy(storage.url, ["collection/hourly"], ["collectors"])
        assert await deploy(storage.url, ["collection/hourly"], ["collectors"]) == names
        for name in names:
            assert len(await client.read_automations_by_name(name)) == 1
        with pytest.raises(ConfigurationError, match="'collection/daily'"):
            await deploy(storage.url, ["collection/daily"])
        with pytest.raises(ConfigurationError, match="'nobody'"):
            await deploy(storage.url, work_pools=["nobody"])
        with pytest.raises(ConfigurationError, match="nothing to pause"):
            await deploy(storage.url)

        @flow
        async def reading() -> None:
            await tasks.read_watermark("feed", storage)

        began = time.monotonic()
        set_clock(storage, began)
        assert await probe_storage(storage) == "closed"
        assert service.calls == []  # nothing to find out
        service.fail(503, "GET")
        with pytest.raises(StorageResponseError):
            await reading()
        assert await is_paused(False)
        with pytest.raises(CircuitOpenError):
            await reading()
        await until(lambda: is_paused(True))

        assert await probe_storage(storage) == "open"
        assert len(service.calls) == 5  # not its time yet
        set_clock(storage, began + 61)
        service.heal()
        assert await probe_storage(storage) == "closed"
        await until(lambda: is_paused(False))

    async def are_told() -> bool:
        return await circuit_events(storage) == ["opened", "half-opened", "closed"]

    await until(are_told)


@pytest.mark.parametrize("address", ["http://[::1]:8000", "https://storage.example/[a]*"])
def test_automation_matches_the_events_of_any_address(address: str) -> None:
    """An address with characters that are special in Prefect's patterns matches its own events."""
    from prefect.server.events.schemas.events import Resource, ResourceSpecification

    for trigger in (each.trigger for each in automations(address)):
        assert isinstance(trigger, EventTrigger)
        match = ResourceSpecification.model_validate(trigger.model_dump()["match"])
        assert match.matches(Resource({"prefect.resource.id": resource_id(address)}))
        assert not match.matches(Resource({"prefect.resource.id": resource_id(f"{address}/b")}))


async def test_each_change_of_a_circuit_is_emitted(
    storage: StorageSettings, service: Flaky, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The calls of a run that open it are an event, and so is what an operator does."""
    assert storage.url
    emitted: list[tuple[str, str, str]] = []

    def emit(event: str, resource: dict[str, str], payload: dict[str, str]) -> None:
        emitted.append((event, resource["prefect.resource.id"], payload["after"]))

    monkeypatch.setattr(events, "emit_event", emit)
    monkeypatch.setenv("STORAGE_SERVICE_URL", storage.url)
    for name in ("logThreads", "logProcesses", "logMultiprocessing"):
        monkeypatch.setattr(logging, name, getattr(logging, name))
    service.fail(503, "GET")
    read = tasks.read_watermark.with_options(retries=0)
    await asyncio.gather(*(read(name, storage) for name in "abcde"), return_exceptions=True)
    for act in ("reset", "trip"):
        assert await asyncio.to_thread(cli.main, ["circuit", act]) == 0
    ours = resource_id(storage.url)
    assert emitted == [
        (f"ladon.circuit.{name}", ours, after)
        for name, after in (("opened", "open"), ("closed", "closed"), ("opened", "open"))
    ]


@pytest.mark.slow
async def test_events_of_a_run_that_ends_at_once_arrive(
    storage: StorageSettings, service: Flaky, tmp_path: Path, forks: Forks
) -> None:
    """A process that opens the circuit and exits has told the server before."""
    assert storage.url
    code = (
        "import asyncio\n"
        "from prefect import flow\n"
        "from ladon_storage import tasks\n"
        "@flow\n"
        "async def ends() -> None:\n"
        "    await asyncio.gather(\n"
        "        *(tasks.read_watermark.with_options(retries=0)(x) for x in 'abcde'),\n"
        "        return_exceptions=True)\n"
        "asyncio.run(ends())\n"
    )
    service.fail(503, "GET")
    async with forks.run(code, folder=tmp_path, STORAGE_SERVICE_URL=storage.url) as process:
        _, log = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0, log
    assert shared(storage).state == "open"

    async def is_told() -> bool:
        return await circuit_events(storage) == ["opened"]

    await until(is_told)


@pytest.mark.slow
async def test_what_an_operator_does_is_an_event_too(
    storage: StorageSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Paused collections resume when the circuit is reset by hand."""
    monkeypatch.setenv("STORAGE_SERVICE_URL", str(storage.url))
    for name in ("logThreads", "logProcesses", "logMultiprocessing"):
        monkeypatch.setattr(logging, name, getattr(logging, name))
    for act in ("trip", "reset"):
        assert await asyncio.to_thread(cli.main, ["circuit", act]) == 0

    async def are_told() -> bool:
        return await circuit_events(storage) == ["opened", "closed"]

    await until(are_told)
