"""A run's hold on its source: the lease, its renewal, and who is told what when two runs meet."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from ladon_storage.collection import turn as module
from ladon_storage.collection.engine import Report, run
from ladon_storage.collection.interfaces import Limits
from ladon_storage.errors import (
    SourceBusyError,
    StorageConnectionError,
    WatermarkConflictError,
)
from tests.collecting import MemorySink, ScriptedSource, ScriptedStorage, at, record

NOW = datetime(2026, 1, 1, tzinfo=UTC)
QUICK = Limits(lease=timedelta(milliseconds=30))


def running(storage: ScriptedStorage, *, seconds_ago: float, run_id: str | None = "other") -> None:
    """Let another run hold the source."""
    storage.put(
        "feed",
        status="running",
        last_run_timestamp=NOW - timedelta(seconds=seconds_ago),
        last_successful_timestamp=at(5),
        run_id=run_id,
    )


async def collected(
    storage: ScriptedStorage, *pages: Any, sink: MemorySink | None = None, **options: Any
) -> Report:
    source = ScriptedSource(list(pages))
    return await run(
        source, sink or MemorySink(), storage, run_id="run-1", clock=lambda: NOW, **options
    )


@pytest.mark.parametrize(
    ("run_id", "named"), [("other", "run 'other'"), (None, "another run")], ids=["named", "unnamed"]
)
async def test_source_that_is_held_is_refused_and_names_the_run(
    run_id: str | None, named: str
) -> None:
    """The later run collects and writes nothing, and says who holds the source and until when."""
    storage, sink = ScriptedStorage(), MemorySink()
    running(storage, seconds_ago=59, run_id=run_id)
    before = storage.stored["feed"]
    with pytest.raises(SourceBusyError, match=named) as caught:
        await collected(storage, [record("1", 1)], sink=sink)
    assert caught.value.until == NOW + timedelta(seconds=1)
    assert (caught.value.source_id, caught.value.run_id) == ("feed", run_id)
    assert storage.stored["feed"] == before
    assert not sink.events


async def test_run_that_died_blocks_nobody_beyond_its_lease() -> None:
    """When the lease is over, the next run takes the source."""
    storage = ScriptedStorage()
    running(storage, seconds_ago=60)
    await collected(storage, [record("1", 10)])
    assert storage.stored["feed"].status == "success"


async def test_run_that_begins_again_holds_its_own_source() -> None:
    """Prefect repeats a run that crashed under the same id; it need not wait for itself."""
    storage = ScriptedStorage()
    running(storage, seconds_ago=1, run_id="run-1")
    await collected(storage, [record("1", 10)])
    assert storage.stored["feed"].status == "success"


async def test_first_run_of_a_source_is_fenced_too() -> None:
    """Where nothing is stored, the first write demands that it stays so."""
    storage = ScriptedStorage()
    storage.plan("running", lambda: running(storage, seconds_ago=0))
    with pytest.raises(WatermarkConflictError, match="run 'other' was faster"):
        await collected(storage, [record("1", 1)])
    assert storage.stored["feed"].run_id == "other"


async def test_lease_is_renewed_while_the_source_is_slow() -> None:
    """A run of any length keeps its source; its last write goes by the last renewal."""
    storage, renewed = ScriptedStorage(), asyncio.Event()
    storage.plan("running", None, None, renewed.set)
    await collected(storage, [record("1", 1)], renewed.wait, [record("2", 2)], limits=QUICK)
    assert storage.calls.count("running") >= 3
    assert storage.stored["feed"].last_successful_timestamp == at(2)


async def test_run_that_was_overtaken_ends_in_the_middle() -> None:
    """A paused run learns at its next renewal that another took over, and does not go on."""
    storage, sink = ScriptedStorage(), MemorySink()
    never = asyncio.Event()
    storage.plan("running", None, lambda: running(storage, seconds_ago=0))
    with pytest.raises(WatermarkConflictError, match="run 'other' was faster"):
        await collected(
            storage, [record("1", 1)], never.wait, [record("2", 2)], sink=sink, limits=QUICK
        )
    assert storage.stored["feed"].run_id == "other"
    assert sink.ids == ["1"]
    assert sink.events[-1] == "close"


async def test_cancelling_an_overtaken_run_is_still_a_cancellation() -> None:
    """Who cancels the run at the same moment is not told of a conflict instead."""
    storage = ScriptedStorage()
    task: list[asyncio.Task[Report]] = []

    def overtake() -> None:
        running(storage, seconds_ago=0)
        task[0].cancel()

    storage.plan("running", None, overtake)
    task.append(asyncio.ensure_future(collected(storage, asyncio.Event().wait, limits=QUICK)))
    with pytest.raises(asyncio.CancelledError):
        await task[0]


async def test_renewal_that_fails_does_not_end_the_run(caplog: pytest.LogCaptureFixture) -> None:
    """An outage of the service in the middle is told, and matters only if it lasts to the end."""
    storage, renewed = ScriptedStorage(), asyncio.Event()
    storage.plan("running", None, StorageConnectionError("no answer"), renewed.set)
    report = await collected(storage, renewed.wait, [record("1", 1)], limits=QUICK)
    assert report.watermark_after == at(1)
    assert "could not be renewed: no answer" in caplog.text


def lost_answer(storage: ScriptedStorage, **fields: Any) -> Callable[[], None]:
    """Return what stores a write and loses its answer."""

    def lose() -> None:
        storage.put("feed", last_successful_timestamp=at(5), **fields)
        raise StorageConnectionError("hung up")

    return lose


async def test_renewal_whose_answer_was_lost_is_no_other_run() -> None:
    """A request that arrived although its answer did not, does not make the run lose to itself."""
    storage, renewed = ScriptedStorage(), asyncio.Event()
    storage.put("feed", status="success", last_successful_timestamp=at(5))
    lose = lost_answer(storage, status="running", run_id="run-1")
    storage.plan("running", None, lose, renewed.set)
    await collected(storage, renewed.wait, [record("1", 10)], limits=QUICK)
    assert storage.stored["feed"].status == "success"


async def test_lost_answer_and_another_run_is_a_conflict() -> None:
    """What is stored under another run's name is not taken for one's own."""
    storage = ScriptedStorage()
    storage.put("feed", status="success", last_successful_timestamp=at(5))
    lose = lost_answer(storage, status="running", run_id="other")
    storage.plan("running", None, lose)
    with pytest.raises(WatermarkConflictError):
        await collected(storage, asyncio.Event().wait, [record("1", 10)], limits=QUICK)
    assert storage.stored["feed"].run_id == "other"


async def test_operator_who_resets_during_a_run_wins() -> None:
    """A reset moves the version and is no run's: the run's next write is refused."""
    storage = ScriptedStorage()
    storage.put("feed", status="success", last_successful_timestamp=at(5))

    def reset() -> None:
        storage.put("feed", status="running", last_successful_timestamp=at(1))

    with pytest.raises(WatermarkConflictError):
        await collected(storage, reset, [record("1", 10)])
    assert storage.stored["feed"].last_successful_timestamp == at(1)


async def test_lease_ends_with_the_run() -> None:
    """Nothing is renewed after the last word, whether the run succeeds or fails."""
    storage = ScriptedStorage()
    await collected(storage, [record("1", 1)], limits=QUICK)
    with pytest.raises(StorageConnectionError):
        await collected(storage, StorageConnectionError("no answer"), limits=QUICK)
    assert not [task for task in asyncio.all_tasks() if "lease" in task.get_name()]
    assert storage.calls[-1] == "failed"


def test_lease_leaves_room_for_lost_renewals() -> None:
    """Two renewals may be lost before anybody else takes the source."""
    assert module.BEATS_PER_LEASE >= 3
