"""The tasks in a stranger's flow: alone, submitted, retried, uncached, and silent about secrets."""

from __future__ import annotations

import inspect
import json
import logging
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import cloudpickle  # type: ignore[import-untyped]
import pytest
from prefect import flow, get_client, unmapped
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId
from prefect.client.schemas.sorting import LogSort
from prefect.logging.handlers import APILogHandler
from prefect.runtime import flow_run
from prefect.tasks import Task
from pydantic import SecretStr

from ladon_storage import tasks
from ladon_storage.collection.ledger import ExtractionResult
from ladon_storage.connect import shared_client
from ladon_storage.errors import (
    CircuitOpenError,
    StorageResponseError,
    StorageUnhealthyError,
    WatermarkConflictError,
)
from ladon_storage.models import Precondition, Watermark, WatermarkUpdate
from ladon_storage.settings import StorageSettings
from ladon_storage.testing.doubles import ScriptedSource, record
from tests.flaky import Flaky, flaky_service
from tests.tables import table

MOMENT = datetime(2026, 1, 1, tzinfo=UTC)
EVERY_TASK = [each for each in vars(tasks).values() if isinstance(each, Task)]


async def run_logs(run_id: str) -> list[str]:
    """Return what Prefect's UI shows as the log of a run."""
    await APILogHandler.aflush()
    async with get_client() as client:
        found = await client.read_logs(
            LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run_id])), sort=LogSort.TIMESTAMP_ASC
        )
    return [each.message for each in found]


async def test_each_task_works_alone_in_a_flow(storage: StorageSettings, tmp_path: Path) -> None:
    """A stranger's flow reads, collects and writes with single tasks, as one would expect."""
    source = ScriptedSource([[record("1", 1)], [record("2", 2)]])

    @flow
    async def stranger() -> tuple[Watermark | None, ExtractionResult, list[Watermark]]:
        assert await tasks.check_storage_health(storage)
        before = await tasks.read_watermark("feed", storage)
        running = await tasks.write_running_watermark("feed", MOMENT, storage, run_id="r")
        collected = await tasks.collect_source(source, {"url": f"sqlite:///{tmp_path}/records.db"})
        assert collected.candidate
        success = await tasks.write_success_watermark(
            "feed", collected.candidate, storage, if_match=running.etag, records_collected=2
        )
        failure = await tasks.write_failure_watermark(
            "feed", MOMENT, "boom", storage, if_match=success.etag
        )
        return before, collected, [running, success, failure]

    before, collected, written = await stranger()
    assert before is None
    assert (collected.records_read, collected.records_written) == (2, 2)
    assert [each.status for each in written] == ["running", "success", "failed"]
    assert written[2].last_successful_timestamp == collected.candidate
    assert written[2].error_message == "boom"
    assert table(tmp_path / "records.db") == [("1",), ("2",)]


async def test_one_pool_serves_the_tasks_of_a_run(storage: StorageSettings, service: Flaky) -> None:
    """Awaited tasks share the flow's event loop, and so one connection."""

    @flow
    async def five() -> None:
        for _ in range(5):
            await tasks.read_watermark("feed", storage)

    await five()
    assert service.calls == ["GET"] * 5
    assert len(service.connections) == 1


async def test_submitted_and_mapped_tasks_have_pools_of_their_own(
    storage: StorageSettings, service: Flaky
) -> None:
    """Tasks on other event loops work beside awaited ones; each pool ends with its loop."""

    @flow
    async def mixed() -> list[str]:
        await tasks.write_success_watermark("first", MOMENT, storage)
        submitted = [tasks.write_success_watermark.submit(name, MOMENT, storage) for name in "abc"]
        written: list[Any] = [future.result() for future in submitted]
        assert [each.source_id for each in written] == ["a", "b", "c"]
        names = ["first", "a", "b", "c"]
        read: list[Any] = tasks.read_watermark.map(names, unmapped(storage)).result()
        again = await tasks.read_watermark("first", storage)
        return [each.source_id for each in [*read, again]]

    assert await mixed() == ["first", "a", "b", "c", "first"]
    assert len(service.connections) > 1


async def test_flow_retry_reads_the_watermark_again(storage: StorageSettings) -> None:
    """The second attempt of a flow sees the watermark of now, not the one that the first read."""
    seen = []

    @flow(retries=1, retry_delay_seconds=0)
    async def retried() -> None:
        await tasks.check_storage_health(storage)
        seen.append(await tasks.read_watermark("feed", storage))
        await tasks.write_success_watermark("feed", MOMENT, storage)
        if len(seen) == 1:
            raise RuntimeError("once")

    await retried()
    assert seen[0] is None
    assert seen[1] is not None


async def test_runs_write_under_the_names_of_the_public_tasks(
    storage: StorageSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """People find the writes of a flow in Prefect's UI by the same names as those of the tasks."""
    names = []

    async def noted(
        name: str, _task: Any, directly: Callable[[], Awaitable[Any]], **_options: Any
    ) -> Any:
        names.append(name)
        return await directly()

    monkeypatch.setattr(tasks, "by_task", noted)
    store, stored = tasks.TaskStorage(storage), None
    for status in ("running", "running", "success", "failed"):
        update = WatermarkUpdate.of(MOMENT, status)
        stored = await store.put_watermark("feed", update, Precondition.unchanged(stored))
    assert names == [f"Write {each} watermark" for each in ("running", "success", "failure")]


@pytest.mark.parametrize("name", tasks.__all__)
def test_public_tasks_take_what_a_flow_can_give(name: str) -> None:
    """The run's hold on a source, its clock and its callback stay inside of the engine."""
    parameters = inspect.signature(getattr(tasks, name).fn).parameters
    assert not {"lease", "clock", "on_progress", "run"} & set(parameters)


@pytest.mark.parametrize("each", EVERY_TASK, ids=lambda each: each.name)
def test_tasks_read_well_and_are_never_cached(each: Task[Any, Any]) -> None:
    """Each task has a name, a description and a tag for people, and no cache and no result."""
    assert each.name[0].isupper()
    assert "_" not in each.name
    assert each.description
    assert each.description.endswith(".")
    assert each.tags == {"ladon-storage"}
    assert each.cache_policy == NO_CACHE
    assert not each.persist_result


async def attempts(service: Flaky, call: Callable[[], Any], error: type[Exception]) -> int:
    """Return how many requests a task's run makes that ends in ``error``."""

    @flow
    async def failing() -> None:
        await call()

    service.calls.clear()
    with pytest.raises(error):
        await failing()
    return len(service.calls)


async def test_transient_errors_are_retried(service: Flaky, storage: StorageSettings) -> None:
    """A service that is out of order is asked four times; one that recovers ends the retries."""
    service.fail(503, "GET")
    read = lambda: tasks.read_watermark("feed", storage)  # noqa: E731
    assert await attempts(service, read, StorageResponseError) == 4
    service.fail(503, "GET", times=2)

    @flow
    async def recovering() -> Watermark | None:
        return await tasks.read_watermark("never", storage)

    shared_client(storage).circuit_breaker.reset()
    service.calls.clear()
    assert await recovering() is None
    assert len(service.calls) == 3


async def test_two_tasks_of_a_flow_are_two_writers(storage: StorageSettings) -> None:
    """The second one with a version that the first one replaced conflicts, as in any two flows."""

    @flow
    async def twice() -> None:
        first = await tasks.write_success_watermark("feed", MOMENT, storage)
        for count in (10, 20):
            await tasks.write_success_watermark(
                "feed", MOMENT, storage, if_match=first.etag, records_collected=count
            )

    with pytest.raises(WatermarkConflictError):
        await twice()
    alone = await tasks.write_running_watermark.fn("feed", MOMENT, storage)
    assert (alone.records_collected, alone.run_id) == (10, None)


async def test_write_whose_answer_was_lost_is_known_by_its_task_run(
    service: Flaky, storage: StorageSettings
) -> None:
    """Prefect sends it again with the same precondition, and no other run was faster."""
    writes: list[tuple[Any, tuple[Any, ...]]] = [
        (tasks.write_running_watermark, (MOMENT,)),
        (tasks.write_success_watermark, (MOMENT,)),
        (tasks.write_failure_watermark, (MOMENT, "boom")),
    ]

    @flow
    async def written() -> list[str | None]:
        first = await tasks.write_success_watermark("feed", MOMENT - timedelta(hours=1), storage)
        etags = [first.etag]
        for write, arguments in writes:
            service.lose_one_answer(str(MOMENT.year))
            again = await write.with_options(retry_delay_seconds=0)(
                "feed", *arguments, storage, if_match=etags[-1]
            )
            assert str(again.run_id).startswith(f"{flow_run.id}/")
            etags.append(again.etag)
        return etags

    assert len(set(await written())) == 1 + len(writes)
    assert service.calls == ["PUT"] * (1 + 2 * len(writes))


async def test_what_repetition_cannot_cure_is_not_retried(
    service: Flaky, storage: StorageSettings
) -> None:
    """A 4xx, a conflict and an open circuit end the task at once."""
    read = lambda: tasks.read_watermark("feed", storage)  # noqa: E731
    service.fail(403, "GET")
    assert await attempts(service, read, StorageResponseError) == 1
    service.heal()
    await tasks.write_success_watermark.fn("feed", MOMENT, storage)
    conflicting = lambda: tasks.write_success_watermark(  # noqa: E731
        "feed", MOMENT, storage, if_match='"999"'
    )
    assert await attempts(service, conflicting, WatermarkConflictError) == 1
    shared_client(storage).circuit_breaker.trip()
    assert await attempts(service, read, CircuitOpenError) == 0


async def test_unhealthy_service_fails_the_flow_in_production(
    service: Flaky, storage: StorageSettings
) -> None:
    """The health check is retried, fails the run, and counts for the next ones."""
    service.fail(503, "HEALTH")
    check = lambda: tasks.check_storage_health(storage)  # noqa: E731
    assert await attempts(service, check, StorageUnhealthyError) == 4
    assert shared_client(storage).circuit_breaker.failure_count == 4
    assert await attempts(service, check, StorageUnhealthyError) == 1
    assert await attempts(service, check, StorageUnhealthyError) == 0


async def test_library_logs_reach_the_run(service: Flaky, storage: StorageSettings) -> None:
    """What the client logs stands in the run's log in the UI, with its facts in the message."""
    service.fail(403, "GET")
    runs = []

    @flow
    async def failing() -> None:
        runs.append(flow_run.id)
        await tasks.read_watermark("quiet-feed", storage)

    with pytest.raises(StorageResponseError):
        await failing()
    shown = [line for line in await run_logs(runs[0]) if "quiet-feed" in line]
    assert any("403" in line and "Storage Service" in line for line in shown), shown


def test_library_logs_outside_of_a_run_are_silent() -> None:
    """A record from outside of any run is no warning of Prefect's, and no request."""
    logging.getLogger("ladon_storage.client.client").info("outside")


async def test_no_secret_reaches_prefect(tmp_path: Path) -> None:
    """Token and password stand in no parameter, log, state, event or result of a run that fails."""
    secrets = ["t0ken-0f-the-service", "passw0rd-of-the-proxy", "passw0rd-0f-redis"]
    with flaky_service(tmp_path / "storage.db", token=secrets[0]) as service:
        service.fail(500, "PUT")
        withheld = StorageSettings(url=service.url, token=SecretStr(secrets[0]))
        url = service.url.replace("http://", f"http://user:{secrets[1]}@")
        redis = SecretStr(f"redis://:{secrets[2]}@127.0.0.1:1")  # where nothing answers
        behind_proxy = StorageSettings(url=url, circuit_url=redis)
        runs = []

        @flow(persist_result=False)
        async def failing(storage: StorageSettings) -> None:
            runs.append(flow_run.id)
            await tasks.write_success_watermark("feed", MOMENT, storage)

        for each in (withheld, behind_proxy):
            with pytest.raises(StorageResponseError):
                await failing(each)
        logs = [line for run_id in runs for line in await run_logs(run_id)]
        async with get_client() as client:
            found = [
                (await client.read_flow_run(run_id)).model_dump(mode="json") for run_id in runs
            ]
            for run_id in runs:
                states = await client.read_flow_run_states(run_id)
                found += [state.model_dump(mode="json") for state in states]
    assert logs
    text = "\n".join([*logs, *map(json.dumps, found)])
    assert "feed" in text
    for secret in secrets:
        assert secret not in text


async def test_unhealthy_service_means_the_mock_in_development(
    service: Flaky, caplog: pytest.LogCaptureFixture
) -> None:
    """In development a run goes on in memory, says so, and returns to a service that recovers."""
    storage = StorageSettings(url=service.url, environment="development")
    service.fail(503, "HEALTH")

    @flow
    async def developing() -> Watermark | None:
        await tasks.check_storage_health(storage)
        await tasks.write_success_watermark("feed", MOMENT, storage)
        return await tasks.read_watermark("feed", storage)

    watermark = await developing()
    assert watermark is not None
    assert watermark.last_successful_timestamp == MOMENT
    assert set(service.calls) == {"HEALTH"}
    assert "will not persist" in caplog.text
    service.heal()

    @flow
    async def recovered() -> Watermark | None:
        assert await tasks.check_storage_health(storage)
        return await tasks.read_watermark("feed", storage)

    assert await recovered() is None


@pytest.mark.parametrize(
    "task",
    [
        tasks.check_storage_health,
        tasks.read_watermark,
        tasks.write_success_watermark,
        tasks.write_failure_watermark,
        tasks.collect_source,
    ],
    ids=lambda task: task.name,
)
def test_task_can_be_sent_to_another_process(task: Any) -> None:
    """Task runners on other machines take a task by its bytes."""
    assert cloudpickle.loads(cloudpickle.dumps(task)).name == task.name
