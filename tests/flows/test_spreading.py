"""Parts of a run over many sources: on a work pool, and on workers that die."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from prefect import flow, get_client
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterDeploymentId,
    FlowRunFilterId,
)
from prefect.client.schemas.objects import FlowRun, State
from prefect.flow_engine import run_flow
from prefect.states import (
    AwaitingConcurrencySlot,
    Cancelling,
    Completed,
    Crashed,
    Late,
    Paused,
    Pending,
    Running,
    Scheduled,
)

from ladon_storage.errors import CollectionError, ConfigurationError
from ladon_storage.flows import spreading
from ladon_storage.flows.collect_many import collect_many
from ladon_storage.flows.part_runs import PartRun, taken_over
from ladon_storage.flows.spreading import by_task_runner, parted
from ladon_storage.settings import StorageSettings
from ladon_storage.testing.feed_server import Answer, FeedServer
from tests.flaky import Flaky
from tests.flows.test_busy import hold
from tests.flows.test_deployments import beat
from tests.tables import table

CATALOGUE = Answer.of(
    {"count": 1, "vulnerabilities": [{"cveID": "CVE-2024-0001", "dateAdded": "2024-01-01"}]}
)


def sources(feed: FeedServer, count: int) -> list[dict[str, Any]]:
    """Return catalogues under names of their own."""
    return [{"kind": "kev", "url": feed.url, "source_id": f"p{number}"} for number in range(count)]


def test_parts_are_all_there_is() -> None:
    """Each item is in one part, no part is empty, and none is longer than another by two."""
    for count in range(1, 12):
        for length in range(1, 12):
            parts = parted(range(length), count)
            assert [each for part in parts for each in part] == list(range(length))
            assert len(parts) == min(count, length)
            assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert parted([], 4) == []


async def test_parts_collect_their_own_sources(storage: StorageSettings, tmp_path: Path) -> None:
    """Every source is in one part, and the parts' reports add up."""
    sink = {"url": f"sqlite:///{tmp_path}/records.db"}
    async with FeedServer(play=lambda _: CATALOGUE) as feed:
        reports = [
            await collect_many(sources(feed, 5), sink=sink, storage=storage, part=f"{number}/2")
            for number in (1, 2)
        ]
    assert [each.sources for each in reports] == [3, 2]
    assert len(table(tmp_path / "records.db")) == 5


@pytest.mark.parametrize(
    "options",
    [
        *({"part": part} for part in ("3/2", "0/2", "half", "1/-2")),
        *({"spread": spread} for spread in (0, 1001)),
    ],
)
async def test_part_or_spread_that_is_none_is_refused(
    storage: StorageSettings, tmp_path: Path, options: dict[str, Any]
) -> None:
    """One sentence, before anything is collected."""
    with pytest.raises(ConfigurationError, match=r"is none; write it as 2/8|Set it to 1 to 1000"):
        await collect_many(
            [{"kind": "kev"}],
            sink={"url": f"sqlite:///{tmp_path}/r.db"},
            storage=storage,
            **options,
        )


async def test_group_is_given_to_another_worker_and_then_up() -> None:
    """A group whose workers die again and again is an outcome, and the others are not touched."""
    calls: list[str] = []

    class Future:
        def __init__(self, group: str) -> None:
            self._group = group

        def result(self, **_: Any) -> str:
            calls.append(self._group)
            if self._group == "cursed" or (self._group == "once" and calls.count("once") == 1):
                raise RuntimeError("the worker died")
            return f"{self._group} is collected"

    outcomes: dict[str, Any] = {}
    groups = ["fine", "once", "cursed", "last"]
    await by_task_runner(Future, groups, 2, outcomes.__setitem__)  # type: ignore[arg-type]
    assert outcomes["once"] == "once is collected"
    assert (outcomes["fine"], outcomes["last"]) == ("fine is collected", "last is collected")
    assert isinstance(outcomes["cursed"], RuntimeError)
    assert calls.count("cursed") == spreading.ATTEMPTS


@pytest.fixture
async def deployment() -> UUID:
    """Return a deployment of the flow on a work pool, which nothing runs."""
    async with get_client() as client:
        name = f"pool-{uuid4().hex[:8]}"
        await client.create_work_pool(WorkPoolCreate(name=name, type="process"))
        flow_id = await client.create_flow(collect_many)
        return await client.create_deployment(flow_id, name, work_pool_name=name)


def present(monkeypatch: pytest.MonkeyPatch, deployment: UUID, given: dict[str, Any]) -> None:
    """Let the present run be one of a deployment."""

    class Context:
        class flow_run:  # noqa: N801 - as Prefect's
            name = "first"
            deployment_id = deployment
            parameters = given

        @staticmethod
        def get() -> type[Context]:
            return Context

    monkeypatch.setattr(spreading, "FlowRunContext", Context)


async def refused(number: int) -> str:
    """Fail a part that should not have been taken over."""
    raise AssertionError(f"part {number} was taken over")


async def test_crashed_run_of_a_part_is_started_again(
    monkeypatch: pytest.MonkeyPatch, deployment: UUID
) -> None:
    """Each part is a run with the parameters of the first, and a failed one fails the whole."""
    given = {"file": "ladon.toml", "spread": 3, "part": None}
    present(monkeypatch, deployment, given)
    started: list[str] = []
    end: Any = Completed()

    async def run(_deployment: UUID, *, parameters: dict[str, Any], **_: Any) -> FlowRun:
        assert _deployment == deployment
        assert (parameters["file"], parameters["spread"]) == ("ladon.toml", 1)
        started.append(parameters["part"])
        crashed = parameters["part"] == "2/3" and started.count("2/3") < 3
        state = Crashed() if crashed else end
        return FlowRun(flow_id=uuid4(), name=parameters["part"], state=state)

    monkeypatch.setattr(spreading, "arun_deployment", run)
    assert await spreading.work_pool()
    runs = await spreading.by_flow_runs(3, refused)
    assert [each.name for each, _ in runs] == ["1/3", "2/3", "3/3"]
    assert sorted(started) == ["1/3", "2/3", "2/3", "2/3", "3/3"]
    end = Crashed(message="no memory")
    with pytest.raises(CollectionError, match=r"3 of 3 parts failed: 1/3 \(no memory\)"):
        await spreading.by_flow_runs(3, refused)


async def test_part_whose_worker_is_gone_is_started_again(
    monkeypatch: pytest.MonkeyPatch, deployment: UUID
) -> None:
    """Nobody says that it ended; what looks for heartbeats is asked about the parts alone."""
    present(monkeypatch, deployment, {})
    monkeypatch.setattr(spreading, "_POLL_SECONDS", 0.01)
    started: list[UUID] = []

    async def run(_deployment: UUID, **_: Any) -> FlowRun:
        state: State = Running() if not started else Completed()
        async with get_client() as client:
            found = await client.create_flow_run(collect_many, state=state)
            started.append(found.id)
            return await client.read_flow_run(found.id)

    async def sweep(_heartbeat: timedelta, only: Collection[UUID]) -> None:
        while not only:
            await asyncio.sleep(0.01)
        assert list(only) == started[:1]
        async with get_client() as client:
            await client.set_flow_run_state(started[0], Crashed(), force=True)
        await asyncio.Event().wait()

    monkeypatch.setattr(spreading, "arun_deployment", run)
    monkeypatch.setattr(spreading, "keep_sweeping", sweep)
    [(found, _)] = await spreading.by_flow_runs(1, refused)
    assert [found.id] == started[1:]


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a run be silent after a tenth of a second, and looked at more often than that."""
    monkeypatch.setattr(spreading, "frequency", lambda: timedelta(seconds=0.02))
    monkeypatch.setattr(spreading, "_POLL_SECONDS", 0.02)


async def state_of(run_id: UUID) -> State[Any]:
    async with get_client() as client:
        state = (await client.read_flow_run(run_id)).state
    assert state
    return state


@pytest.mark.slow
async def test_parts_that_no_worker_begins_are_collected_by_the_first_run(
    deployment: UUID,
    impatient: None,
    service: Flaky,
    storage: StorageSettings,
    tmp_path: Path,
) -> None:
    """They are cancelled; one that begins late all the same is completed, and collects nothing.

    The source that a part held when its host died is collected when its lease has ended.
    """
    async with FeedServer(play=lambda _: CATALOGUE) as feed:
        file = tmp_path / "ladon.toml"
        tables = "".join(
            f'[sources.p{number}]\nkind = "kev"\nurl = "{feed.url}"\n' for number in range(5)
        )
        file.write_text(
            f'[storage]\nurl = "{service.url}"\n[sinks.main]\n'
            f'url = "sqlite:///{tmp_path}/records.db"\n{tables}'
        )
        given = {"file": str(file), "spread": 2}
        async with get_client() as client:
            first = await client.create_flow_run_from_deployment(deployment, parameters=given)
        await hold(storage, "p3", 1, run_id=f"{first.id}/{uuid4()}")
        running: Any = run_flow(collect_many, first, given, return_type="state")
        state = await running
        assert state.is_completed(), state.message
        assert "5 sources, those of 2 parts collected by this run: 5 new" in state.message
        async with get_client() as client:
            parts = await client.read_flow_runs(
                flow_run_filter=FlowRunFilter(
                    deployment_id=FlowRunFilterDeploymentId(any_=[deployment]),
                    id=FlowRunFilterId(not_any_=[first.id]),
                )
            )
        assert [each.state_name for each in parts] == ["TakenOver"] * 2
        before = len(feed.requests)
        late: Any = run_flow(collect_many, parts[0], parts[0].parameters, return_type="state")
        state = await late
        assert len(feed.requests) == before
    assert state.is_completed()
    assert state.message == f"skipped: Run {first.name!r} takes its part over."
    assert len(table(tmp_path / "records.db")) == 5


async def test_part_that_is_run_again_on_purpose_collects(deployment: UUID) -> None:
    """It was taken over once, and scheduled after that."""
    async with get_client() as client:
        run = await client.create_flow_run_from_deployment(deployment)
        part = PartRun(run, timedelta(0), 0.01)
        assert not await part.ends_in_time()
        assert await part.cancel("Run 'first' takes its part over.")
        found: list[str | None] = []

        @flow
        async def late() -> None:
            found.append(await taken_over())

        states: list[State[Any]] = [Scheduled(), Running()]
        for again in states:
            running: Any = run_flow(late, run)
            await running
            await client.set_flow_run_state(run.id, again, force=True)
    assert found == ["Run 'first' takes its part over.", None]


SILENT: dict[str, State[Any]] = {
    "scheduled": Scheduled(),
    "late": Late(),
    "waiting for a limit": AwaitingConcurrencySlot(),
    "pending": Pending(),
    "running": Running(),
    "paused": Paused(timeout_seconds=9_999),
}


@pytest.mark.slow
@pytest.mark.parametrize("how", [*SILENT, "deleted", "renewed"])
async def test_silent_run_of_a_part_is_taken_over(
    monkeypatch: pytest.MonkeyPatch, deployment: UUID, impatient: None, how: str
) -> None:
    """Whatever it waits for, its part is collected once, and the parts that end are not touched."""
    present(monkeypatch, deployment, {})
    started: list[UUID] = []
    taken: list[int] = []

    async def run(_deployment: UUID, *, parameters: dict[str, Any], **_: Any) -> FlowRun:
        state = SILENT.get(how, Pending()) if parameters["part"] == "2/2" else Completed()
        async with get_client() as client:
            begun = await client.create_flow_run(collect_many, state=Pending())
            await client.set_flow_run_state(begun.id, state, force=True)
            found = await client.read_flow_run(begun.id)
            if parameters["part"] == "2/2":
                started.append(found.id)
            if how == "deleted" and parameters["part"] == "2/2":
                await client.delete_flow_run(found.id)
        return found

    async def take_over(number: int) -> str:
        taken.append(number)
        return ""

    monkeypatch.setattr(spreading, "arun_deployment", run)
    async with asyncio.TaskGroup() as group:
        running = group.create_task(spreading.by_flow_runs(2, take_over))
        while how == "renewed" and not running.done():  # as one that a worker takes and gives back
            for each in started:
                async with get_client() as client:
                    if not (await state_of(each)).is_final():
                        await client.set_flow_run_state(each, AwaitingConcurrencySlot(), force=True)
            await asyncio.sleep(0.03)
    assert taken == [2]
    assert len(running.result()) == 1
    if how in SILENT:
        assert (await state_of(started[0])).name == "TakenOver"


async def test_run_that_was_being_cancelled_is_not_taken_over(
    monkeypatch: pytest.MonkeyPatch, deployment: UUID, impatient: None
) -> None:
    """Its worker is gone; what a person has cancelled stays cancelled, and fails the whole."""
    present(monkeypatch, deployment, {})

    async def run(_deployment: UUID, **_: Any) -> FlowRun:
        async with get_client() as client:
            begun = await client.create_flow_run(collect_many, state=Running())
            await client.set_flow_run_state(begun.id, Cancelling(), force=True)
            return await client.read_flow_run(begun.id)

    monkeypatch.setattr(spreading, "arun_deployment", run)
    with pytest.raises(CollectionError, match=r"1 of 1 parts failed: .* \(Cancelled\)"):
        await spreading.by_flow_runs(1, refused)


async def test_run_that_begins_while_another_is_taken_over_keeps_its_part(
    monkeypatch: pytest.MonkeyPatch, deployment: UUID, impatient: None
) -> None:
    """Parts are taken over one after another, and each is looked at again when its turn comes."""
    present(monkeypatch, deployment, {})
    started: dict[str, UUID] = {}
    taken: list[int] = []

    async def run(_deployment: UUID, *, parameters: dict[str, Any], **_: Any) -> FlowRun:
        async with get_client() as client:
            begun = await client.create_flow_run(collect_many, state=Pending())
            started[parameters["part"]] = begun.id
            return await client.read_flow_run(begun.id)

    async def take_over(number: int) -> str:
        taken.append(number)
        await asyncio.sleep(0.2)  # longer than any run may be silent
        async with get_client() as client:
            for part, run_id in started.items():
                if part != f"{number}/3":
                    await client.set_flow_run_state(run_id, Completed(), force=True)
        return ""

    monkeypatch.setattr(spreading, "arun_deployment", run)
    assert len(await spreading.by_flow_runs(3, take_over)) == 2
    assert len(taken) == 1


@pytest.mark.slow
async def test_run_that_has_sent_a_heartbeat_is_left_to_the_sweep(deployment: UUID) -> None:
    """A part that takes hours is not taken over while its process lives."""
    async with get_client() as client:
        run = await client.create_flow_run(collect_many, state=Running())
        run = await client.read_flow_run(run.id)
    assert run.state
    await beat(run.id, run.state.timestamp)
    part = PartRun(run, timedelta(0), 0.01)
    ending = asyncio.create_task(part.ends_in_time())
    ended, _ = await asyncio.wait({ending}, timeout=0.1)
    assert not ended
    assert not await part.cancel("unused")
    async with get_client() as client:
        await client.set_flow_run_state(run.id, Completed(), force=True)
    assert await ending


async def test_part_that_cannot_be_started_ends_the_watch_of_the_others(
    monkeypatch: pytest.MonkeyPatch, deployment: UUID, impatient: None
) -> None:
    """The run fails at once, and takes no part over after that."""
    present(monkeypatch, deployment, {})
    before = asyncio.all_tasks()

    async def run(_deployment: UUID, *, parameters: dict[str, Any], **_: Any) -> FlowRun:
        if parameters["part"] == "2/2":
            raise httpx.ReadTimeout("no answer")
        async with get_client() as client:
            return await client.create_flow_run(collect_many, state=Pending())

    monkeypatch.setattr(spreading, "arun_deployment", run)
    with pytest.raises(httpx.ReadTimeout):
        await spreading.by_flow_runs(2, refused)
    assert asyncio.all_tasks() == before


async def test_run_goes_on_watching_while_prefect_is_away(
    monkeypatch: pytest.MonkeyPatch, deployment: UUID
) -> None:
    """A look without an answer is no sign of an end, and no error of the run that waits."""
    async with get_client() as client:
        run = await client.create_flow_run(collect_many, state=Running())
        await client.set_flow_run_state(run.id, Completed(), force=True)
    read, looks = PrefectClient.read_flow_run, []

    async def away(self: PrefectClient, run_id: UUID) -> FlowRun:
        looks.append(run_id)
        if len(looks) < 3:
            raise httpx.ConnectError("refused")
        return await read(self, run_id)

    monkeypatch.setattr(PrefectClient, "read_flow_run", away)
    part = PartRun(run, timedelta(minutes=1), 0.01)
    assert await part.ends_in_time()
    assert len(looks) == 3


async def test_sources_that_fail_here_fail_the_whole(
    monkeypatch: pytest.MonkeyPatch, deployment: UUID, impatient: None
) -> None:
    """The failure of a part that was taken over is in the message."""
    present(monkeypatch, deployment, {})

    async def run(_deployment: UUID, **_: Any) -> FlowRun:
        async with get_client() as client:
            return await client.create_flow_run(collect_many, state=Pending())

    async def take_over(_: int) -> str:
        return "1 of 2 sources failed: p1 (no answer)"

    monkeypatch.setattr(spreading, "arun_deployment", run)
    with pytest.raises(CollectionError, match=r"1 of 1 parts failed: .*1 of 2 sources failed: p1"):
        await spreading.by_flow_runs(1, take_over)


async def test_pool_that_runs_one_at_a_time_is_refused(
    monkeypatch: pytest.MonkeyPatch, deployment: UUID
) -> None:
    """The parts would wait for the run that starts them, for ever."""
    present(monkeypatch, deployment, {})
    async with get_client() as client:
        name = (await client.read_deployment(deployment)).work_pool_name
        assert name
        await client._client.patch(f"/work_pools/{name}", json={"concurrency_limit": 1})
    with pytest.raises(ConfigurationError, match="concurrency limit of 1"):
        await spreading.work_pool()


async def test_report_of_a_part_reaches_the_run_that_started_it(
    storage: StorageSettings, tmp_path: Path
) -> None:
    """The counts of another process are in an artifact of its run."""
    sink = {"url": f"sqlite:///{tmp_path}/records.db"}
    async with FeedServer(play=lambda _: CATALOGUE) as feed:
        state: Any = await collect_many(
            sources(feed, 4), sink=sink, storage=storage, part="1/2", return_state=True
        )
    report = await spreading._report_of(state.state_details.flow_run_id)
    assert (report["sources"], report["records_new"]) == (2, 2)


def test_runner_decides_the_number_of_workers() -> None:
    """Without a word, one's own cluster is used, and threads are not."""
    told: list[int] = []

    @flow
    async def local() -> None:
        told.append(spreading.spread_of(None))

    asyncio.run(local())
    assert told == [1]
