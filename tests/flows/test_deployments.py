"""The table of deployments, served and deployed, the sweep for vanished runs, and turns."""

from __future__ import annotations

import asyncio
import os
import sys
from asyncio.subprocess import PIPE, STDOUT
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
import yaml
from prefect import flow, get_client
from prefect.automations import AutomationCore, EventTrigger
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.responses import DeploymentResponse
from prefect.events.schemas.automations import Posture
from prefect.exceptions import PrefectException
from prefect.settings import PREFECT_API_URL
from prefect.states import Cancelling, Running

from ladon_storage import blocks
from ladon_storage.cli import deployments as of_file
from ladon_storage.errors import SourceBusyError
from ladon_storage.flows import zombies
from ladon_storage.flows.concurrency import CONCURRENCY_VARIABLE, limit_name, source_slot
from ladon_storage.flows.serve import DEPLOYMENTS_FILE, deployments
from ladon_storage.project.project import Project
from ladon_storage.sources import KINDS, source_from
from tests.forks import Forks

ROOT = Path(__file__).resolve().parent.parent.parent


def described() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = yaml.safe_load(DEPLOYMENTS_FILE.read_text())["deployments"]
    return found


def collections() -> list[dict[str, Any]]:
    return [each for each in described() if "flows/collect.py" in each["entrypoint"]]


def test_reconciliations_are_weekly_and_of_what_is_collected() -> None:
    """Each has the source and the switch of the collection of its name, and runs once a week."""
    of_name = {each["name"]: each for each in collections()}
    found = [each for each in described() if "flows/reconcile.py" in each["entrypoint"]]
    assert {"threatfox", "urlhaus", "kev", "nvd"} <= {each["name"] for each in found}
    for each in found:
        collection = of_name[each["name"]]
        assert each["parameters"]["source"] == collection["parameters"]["source"]
        assert each.get("paused") == collection.get("paused")
        (schedule,) = each["schedules"]
        assert schedule["cron"].endswith("* * 0")


@pytest.mark.parametrize(
    ("kind", "default", "others", "days"),
    [("urlhaus", "recent", ["online"], None), ("misp", "restsearch", ["feed"], 30)],
)
def test_default_way_of_reading_that_is_written_out_keeps_the_second_reading(
    tmp_path: Path, kind: str, default: str, others: list[str], days: int | None
) -> None:
    """A table with `via` as it is by default deploys what a table without it does."""
    address = 'url = "https://feed.example/"\nkey = "feed-key"\n'
    table = f'[sinks.r]\nurl = "sqlite:///r.db"\n[sources.x]\nkind = "{kind}"\n{address}'
    found: dict[str | None, list[Any]] = {}
    for via in (None, default, *others):
        written = "" if via is None else f'via = "{via}"\n'
        (tmp_path / "ladon.toml").write_text(f'{table}{written}schedule.cron = "0 6 * * *"\n')
        made = of_file.deployments(Project.load(tmp_path / "ladon.toml"), ["x"])
        found[via] = [
            each.parameters.get("last_days") for each in made if each.flow_name == "reconcile"
        ]
    assert found.pop(None) == found.pop(default) == [days]
    assert found == {each: [] for each in others}


def test_table_has_every_kind_and_what_needs_a_key_is_paused() -> None:
    """Each kind of source has a deployment whose parameters make a source; no key is a value."""
    kinds = set()
    for each in collections():
        kinds.add(each["entrypoint"].removeprefix("flows/collect.py:collect_"))
        source = each.get("parameters", {}).get("source")
        if source is None:
            assert not each.get("schedules"), each["name"]
            continue
        source_from(source)
        assert bool(source.get("key")) is each.get("paused", False), each["name"]
        assert each["schedules"]
    assert kinds == {kind.model_fields["kind"].default for kind in KINDS}
    sources = [
        source_from(each["parameters"]["source"]) for each in collections() if "parameters" in each
    ]
    assert len({source.source_id for source in sources}) == len(sources)
    assert all(each["concurrency_limit"]["limit"] == 1 for each in described())
    assert all(each["description"].endswith(".") for each in described())


def facts(deployment: DeploymentResponse) -> dict[str, Any]:
    """Return what a person sees of a deployment."""
    assert deployment.concurrency_options
    assert deployment.global_concurrency_limit
    return {
        "name": deployment.name,
        "entrypoint": deployment.entrypoint,
        "description": deployment.description,
        "tags": deployment.tags,
        "parameters": deployment.parameters,
        "paused": deployment.paused,
        "schedules": [(str(each.schedule), each.active) for each in deployment.schedules],
        "limit": deployment.global_concurrency_limit.limit,
        "collision": deployment.concurrency_options.collision_strategy,
        "form": deployment.parameter_openapi_schema,
    }


@pytest.mark.slow
async def test_deployed_and_served_are_the_same(tmp_path: Path) -> None:
    """`prefect deploy --all` and the flow `serve` make the same of `prefect.yaml`."""
    async with get_client() as client:
        served = {}
        for each in deployments():
            served[each.full_name] = facts(await client.read_deployment(await each.aapply()))
            await client.delete_deployment(
                (await client.read_deployment_by_name(each.full_name)).id
            )
        await client.create_work_pool(WorkPoolCreate(name="ladon", type="process"))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"),
        cwd=ROOT, stdout=PIPE, stderr=STDOUT,
        env=os.environ | {"PREFECT_API_URL": str(PREFECT_API_URL.value())},
    )  # fmt: skip
    output, _ = await asyncio.wait_for(process.communicate(), 120)
    assert process.returncode == 0, output.decode()
    async with get_client() as client:
        for name, expected in served.items():
            deployment = await client.read_deployment_by_name(name)
            assert deployment.work_pool_name == "ladon"
            assert facts(deployment) == expected
            await client.delete_deployment(deployment.id)
    assert len(served) == len(described())


async def running_flow() -> tuple[UUID, datetime]:
    """Return a run that Prefect takes for running, and since when; Prefect dates it itself."""

    @flow(name="vanishing")
    async def vanishing() -> None: ...

    async with get_client() as client:
        run = await client.create_flow_run(vanishing, state=Running())
        state = (await client.read_flow_run(run.id)).state
    assert state
    return run.id, state.timestamp


async def beat(run_id: UUID, *times: datetime) -> None:
    """Let a run say at these times that it lives, the last of them last."""
    async with get_client() as client:
        events = [
            {
                "event": zombies.HEARTBEAT,
                "occurred": each.isoformat(),
                "resource": {"prefect.resource.id": f"prefect.flow-run.{run_id}"},
                "id": str(uuid4()),
            }
            for each in times
        ]
        await client._client.post("/events", json=events)
        async with asyncio.timeout(20):
            while await zombies.last_heard(client, run_id, times[-1]) != times[-1]:
                await asyncio.sleep(0.05)


async def state_of(run_id: UUID) -> str:
    async with get_client() as client:
        state = (await client.read_flow_run(run_id)).state
    assert state
    return state.type.value


@pytest.mark.slow
async def test_run_that_is_heard_of_no_more_is_crashed() -> None:
    """Three missed heartbeats and two more crash a run; one that lives, or never spoke, stays."""
    (gone, one), (alive, other), (silent, last) = [await running_flow() for _ in range(3)]
    ours = {gone, alive, silent}  # other tests leave runs behind
    began = max(one, other, last)
    await beat(gone, began)
    await beat(alive, began, began + timedelta(seconds=100))
    now = [began]
    sweeper = zombies.Sweeper(timedelta(seconds=30), clock=lambda: now[0])
    for seconds in (60, 90, 91, 150):
        now[0] = began + timedelta(seconds=seconds)
        assert ours.isdisjoint(await sweeper.sweep()), seconds
        assert (gone in sweeper._suspects) is (seconds > 90)
    now[0] = began + timedelta(seconds=152)
    assert ours.intersection(await sweeper.sweep()) == {gone}
    assert [await state_of(each) for each in (gone, alive, silent)] == [
        "CRASHED",
        "RUNNING",
        "RUNNING",
    ]


@pytest.mark.slow
async def test_run_that_was_being_cancelled_when_it_vanished_is_cancelled() -> None:
    """Nobody is left who could end it; before it is silent for long, its process may."""
    (gone, one), (alive, other) = [await running_flow() for _ in range(2)]
    await beat(gone, one)
    await beat(alive, other)
    async with get_client() as client:
        for run_id in (gone, alive):
            await client.set_flow_run_state(run_id, Cancelling(), force=True)
        state = (await client.read_flow_run(alive)).state
    assert state
    now = [state.timestamp + timedelta(seconds=91)]
    sweeper = zombies.Sweeper(timedelta(seconds=30), clock=lambda: now[0])
    assert {gone, alive}.isdisjoint(await sweeper.sweep())
    await beat(alive, now[0])
    now[0] += timedelta(seconds=61)
    assert {gone, alive}.intersection(await sweeper.sweep()) == {gone}
    assert [await state_of(each) for each in (gone, alive)] == ["CANCELLED", "CANCELLING"]


async def test_sweep_says_once_on_standard_error_what_it_ended(
    tmp_path: Path, forks: Forks
) -> None:
    """Prefect logs what the package warns of; a line of the command's own would repeat it."""
    code = (
        "import sys\n"
        "from ladon_storage.cli import main\n"
        "from ladon_storage.flows import zombies\n"
        "async def sweep_once(_):\n"
        "    zombies.logger.warning('Run 1 is crashed.')\n"
        "    return []\n"
        "zombies.sweep_once = sweep_once\n"
        "sys.exit(main(['sweep']))\n"
    )
    api = str(PREFECT_API_URL.value())
    async with forks.run(code, folder=tmp_path, PREFECT_API_URL=api) as process:
        _, log = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0, log
    assert log.count("Run 1 is crashed.") == 1


@pytest.mark.slow
async def test_sweep_for_some_runs_leaves_the_others_alone() -> None:
    """What waits for its own parts crashes no run of another."""
    (ours, one), (other, two) = [await running_flow() for _ in range(2)]
    began = max(one, two)
    await beat(ours, began)
    await beat(other, began)
    now = [began]
    sweeper = zombies.Sweeper(timedelta(seconds=30), clock=lambda: now[0], only={ours})
    for seconds in (100, 200):
        now[0] = began + timedelta(seconds=seconds)
        found = await sweeper.sweep()
    assert found == [ours]
    assert await state_of(other) == "RUNNING"


@pytest.mark.slow
async def test_run_that_was_not_heard_while_the_server_was_away_lives() -> None:
    """A heartbeat that arrives when the server is back clears a run that was suspected."""
    run_id, began = await running_flow()
    await beat(run_id, began)
    now = [began + timedelta(seconds=1_000)]
    sweeper = zombies.Sweeper(timedelta(seconds=30), clock=lambda: now[0])
    assert run_id not in await sweeper.sweep()
    assert sweeper.has_suspects
    await beat(run_id, began + timedelta(seconds=1_010))
    now[0] = began + timedelta(seconds=1_061)
    assert run_id not in await sweeper.sweep()
    assert await state_of(run_id) == "RUNNING"


async def test_automation_of_earlier_releases_is_removed() -> None:
    """Starting anew takes away what kept the server's database locked."""
    before = AutomationCore(
        name=zombies.AUTOMATION,
        trigger=EventTrigger(
            expect={"nothing"}, posture=Posture.Reactive, threshold=1, within=timedelta(0)
        ),
        actions=[],
    )
    async with get_client() as client:
        await client.create_automation(before)
        await zombies.remove_automation()
        assert await client.read_automations_by_name(zombies.AUTOMATION) == []


async def test_runs_of_a_source_wait_for_each_other_where_it_is_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The limit is made where it is missing; a second run waits, and says in the end what to do."""
    monkeypatch.setenv(CONCURRENCY_VARIABLE, "queue")
    async with source_slot("Feed: A"):
        async with get_client() as client:
            limit = await client.read_global_concurrency_limit_by_name(limit_name("Feed: A"))
        assert (limit.limit, limit.active_slots) == (1, 1)
        with pytest.raises(SourceBusyError, match="--active-slots 0"):
            async with source_slot("Feed: A", seconds=0.5):
                pass
        async with source_slot("kev"):
            pass
    async with source_slot("Feed: A", seconds=20):
        pass


@pytest.mark.parametrize(
    "step", ["read_global_concurrency_limit_by_name", "release_concurrency_slots_with_lease"]
)
async def test_run_goes_on_where_prefect_gives_or_releases_no_slot(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, step: str
) -> None:
    """The watermark is what keeps runs apart; a collection that is complete stays green."""
    monkeypatch.setenv(CONCURRENCY_VARIABLE, "queue")

    async def refused(*_: object, **__: object) -> None:
        raise PrefectException("out of order")

    monkeypatch.setattr(PrefectClient, step, refused)
    has_run = False
    async with source_slot(f"green-{step}"):
        has_run = True
    with pytest.raises(ZeroDivisionError):
        async with source_slot(f"red-{step}"):
            raise ZeroDivisionError

    assert has_run
    assert caplog.text.count("out of order") == 2


@pytest.mark.parametrize("asked", ["", "que"])
async def test_turns_are_off_unless_asked_for(
    asked: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Two runs get on at once; the watermark keeps them apart. A value with a mistake is told."""
    monkeypatch.setenv(CONCURRENCY_VARIABLE, asked)
    async with source_slot("kev"), source_slot("kev"):
        pass
    told = [each.message for each in caplog.records if CONCURRENCY_VARIABLE in each.message]
    assert bool(told) is bool(asked)
    assert all("'que'" in each and "'queue'" in each for each in told)


async def test_logo_is_where_the_service_is(tmp_path: Path, forks: Forks) -> None:
    """Blocks that are registered show the logo of the service, whose password stays out of it."""
    code = (
        "from importlib import reload\n"
        "from ladon_storage import blocks\n"
        "print(reload(blocks).RecordSink._logo_url)\n"
    )
    url = "http://me:s3cret@storage.example:8000"
    async with forks.run(code, folder=tmp_path, STORAGE_SERVICE_URL=url) as process:
        printed, log = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0, log
    assert printed.strip() == "http://storage.example:8000/logo.svg"


@pytest.mark.parametrize("service", ["", "ftp://x"])
def test_logo_is_missing_where_no_service_is(service: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks can be registered without a service, and beside one that makes no sense."""
    monkeypatch.setenv("STORAGE_SERVICE_URL", service)
    assert blocks._logo() is None
