"""Parts of a run over many sources: on a work pool, and on workers that die."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from prefect import flow, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.objects import FlowRun, State
from prefect.states import Completed, Crashed, Running

from ladon_storage.errors import CollectionError, ConfigurationError
from ladon_storage.flows import spreading
from ladon_storage.flows.collect_many import collect_many
from ladon_storage.flows.spreading import by_task_runner, parted
from ladon_storage.settings import StorageSettings
from ladon_storage.testing.feed_server import Answer, FeedServer
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
            deployment_id = deployment
            parameters = given

        @staticmethod
        def get() -> type[Context]:
            return Context

    monkeypatch.setattr(spreading, "FlowRunContext", Context)


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
    runs = await spreading.by_flow_runs(3)
    assert [each.name for each, _ in runs] == ["1/3", "2/3", "3/3"]
    assert sorted(started) == ["1/3", "2/3", "2/3", "2/3", "3/3"]
    end = Crashed(message="no memory")
    with pytest.raises(CollectionError, match=r"3 of 3 parts failed: 1/3 \(no memory\)"):
        await spreading.by_flow_runs(3)


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
    [(found, _)] = await spreading.by_flow_runs(1)
    assert [found.id] == started[1:]


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
