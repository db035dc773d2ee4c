"""A run's hold on its source: the lease, its renewal, and who is told what when two runs meet."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from ladon_storage import MockStorageClient, StorageServiceClient
from ladon_storage.collection import lease as module
from ladon_storage.collection.lease import SourceLease
from ladon_storage.collection.protocols import Limits, Run
from ladon_storage.collection.records import Page
from ladon_storage.collection.run import Report, extract, run
from ladon_storage.errors import (
    InvalidResponseError,
    SourceBusyError,
    StorageConnectionError,
    StorageResponseError,
    WatermarkConflictError,
)
from ladon_storage.models import EMPTY_WATERMARK, Watermark, WatermarkStatus, WatermarkUpdate
from ladon_storage.testing.clock import FakeClock
from ladon_storage.testing.doubles import (
    MemorySink,
    RememberingSink,
    ScriptedSource,
    ScriptedStorage,
    at,
    record,
)
from tests.base_service import base_service
from tests.service import calling, embedded_service, path

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
    assert module.RENEWALS_PER_LEASE >= 3


def held(
    storage: Any, *, ahead: timedelta = timedelta(0), lease: float = 60, run_id: str = "run-1"
) -> SourceLease:
    """Return a run's hold whose worker's clock is ``ahead`` of the service's, which is at NOW."""
    limits = Limits(lease=timedelta(seconds=lease))
    return SourceLease(storage, "feed", Run(run_id, limits, lambda: NOW + ahead))


@pytest.mark.parametrize(
    "ahead",
    [timedelta(seconds=90), timedelta(days=1), timedelta(seconds=-90), timedelta(days=-1)],
    ids=str,
)
async def test_workers_clock_does_not_judge_a_lease(ahead: timedelta) -> None:
    """Neither does a worker that is ahead take a live run's source, nor one behind wait for long.

    The service's time of its answer is what counts, and its time of the write.
    """
    storage = ScriptedStorage(now=lambda: NOW, tells_time=True)
    running(storage, seconds_ago=59)
    with pytest.raises(SourceBusyError) as caught:
        await held(storage, ahead=ahead).read()
    assert caught.value.until == NOW + timedelta(seconds=1)
    running(storage, seconds_ago=60)
    lease = held(storage, ahead=ahead)
    await lease.read()
    await lease.acquire()
    assert storage.stored["feed"].run_id == "run-1"


@pytest.mark.parametrize("readers", [1, 3600])
async def test_lease_is_that_of_who_holds_it(readers: float) -> None:
    """A reader's own lease neither takes a source too early nor waits for it too long."""
    clock = FakeClock(NOW)
    storage = MockStorageClient(clock=clock.now)
    other = held(storage, lease=600, run_id="other")
    await other.read()
    await other.acquire()
    clock.advance(599)
    with pytest.raises(SourceBusyError) as caught:
        await held(storage, lease=readers).read()
    assert caught.value.until == NOW + timedelta(seconds=600)
    clock.advance(1)
    await held(storage, lease=readers).read()


async def test_record_from_beyond_the_services_time_holds_nothing() -> None:
    """Where the service's clock was set back, a run that lives has written again by now."""
    storage = ScriptedStorage(now=lambda: NOW, tells_time=True)
    running(storage, seconds_ago=-61)
    await held(storage).read()
    running(storage, seconds_ago=-59)
    with pytest.raises(SourceBusyError):
        await held(storage).read()


async def test_service_without_a_time_is_judged_by_our_own() -> None:
    """Our clock stands in where the service does not tell its time; a live run is left alone."""
    storage = ScriptedStorage()
    running(storage, seconds_ago=-3600)
    with pytest.raises(SourceBusyError):
        await held(storage).read()


async def test_now_is_the_services_time_and_what_passed_since() -> None:
    """Between two answers the time goes on by seconds, whatever our clock does."""
    clock, ours = FakeClock(NOW), FakeClock()
    storage = MockStorageClient(clock=clock.now)
    await storage.update_watermark("feed", at(1))
    lease = SourceLease(storage, "feed", Run("run-1", clock=lambda: at(7)), monotonic=ours)
    assert lease.now() == at(7)
    await lease.read()
    ours.advance(5)
    assert lease.now() == NOW + timedelta(seconds=5)
    clock.advance(9)
    await lease.acquire()
    assert lease.now() == NOW + timedelta(seconds=9)


async def begun(storage: ScriptedStorage, clock: FakeClock) -> SourceLease:
    """Return the lease of a minute of a run that has begun."""
    limits = Limits(lease=timedelta(seconds=60))
    lease = SourceLease(storage, "feed", Run("run-1", limits, lambda: NOW), monotonic=clock)
    await lease.read()
    await lease.begin()
    return lease


async def asleep(
    storage: ScriptedStorage, sink: MemorySink, *meanwhile: Callable[[], Any], seconds: float = 60
) -> None:
    """Collect a page that was there before this process slept, and others did what they do."""
    clock = FakeClock()
    limits = Limits(lease=timedelta(seconds=60))
    this = Run("run-1", limits, clock=lambda: NOW)
    lease = SourceLease(storage, "feed", this, monotonic=clock)
    await lease.read()
    await lease.begin()
    source = ScriptedSource([lambda: clock.advance(seconds), *meanwhile, [record("1", 10)]])
    async with lease.renewed():
        await extract(source, sink, this, lease)


async def test_run_that_slept_for_a_lease_stores_nothing_over_who_took_over() -> None:
    """Its page is older than what the other run has stored by now."""
    storage, sink = ScriptedStorage(), RememberingSink()
    with pytest.raises(WatermarkConflictError, match="run 'other'"):
        await asleep(storage, sink, lambda: running(storage, seconds_ago=0))
    assert not sink.rows
    assert not sink.noted


async def test_run_that_slept_and_gets_no_answer_stores_nothing() -> None:
    """Whether another run took over is unknown; the next run reads the page again."""
    storage, sink = ScriptedStorage(), MemorySink()
    storage.plan("running", None, StorageConnectionError("no answer"))
    with pytest.raises(StorageConnectionError):
        await asleep(storage, sink)
    assert not sink.rows


@pytest.mark.parametrize("seconds", [59, 60, 3_600])
async def test_run_that_slept_and_still_holds_its_source_goes_on(seconds: float) -> None:
    """It asks once, and only after a whole lease."""
    storage, sink = ScriptedStorage(), MemorySink()
    await asleep(storage, sink, seconds=seconds)
    assert sink.ids == ["1"]
    assert storage.calls.count("running") == 1 + (seconds >= 60)


async def test_sleep_is_counted_from_the_last_renewal_and_not_from_the_last_page() -> None:
    """Another run takes over a lease after the renewal, however lately a page was stored."""
    storage, clock = ScriptedStorage(), FakeClock()
    lease = await begun(storage, clock)
    clock.advance(19)
    await lease.confirm()
    clock.advance(50)
    running(storage, seconds_ago=0)
    with pytest.raises(WatermarkConflictError):
        await lease.confirm()


async def test_sleep_after_a_renewal_that_failed_may_end_the_lease_sooner() -> None:
    """What counts is the last write that the service answered, not the length of the sleep."""
    storage, clock = ScriptedStorage(), FakeClock()
    lease = await begun(storage, clock)
    storage.plan("running", StorageConnectionError("no answer"))
    clock.advance(20)
    with pytest.raises(StorageConnectionError):
        await lease._hold()
    clock.advance(39)
    await lease.confirm()  # the lease has a second left
    clock.advance(1)
    running(storage, seconds_ago=0)
    with pytest.raises(WatermarkConflictError):
        await lease.confirm()


async def test_outage_of_the_service_ends_no_run_that_is_awake() -> None:
    """Its renewals fail, and its pages are stored: nobody else can take over meanwhile."""
    storage, clock = ScriptedStorage(), FakeClock()
    lease = await begun(storage, clock)
    storage.plan("running", *[StorageConnectionError("no answer")] * 9)
    for _ in range(9):
        clock.advance(20)
        with pytest.raises(StorageConnectionError):
            await lease._hold()
        await lease.confirm()


@pytest.mark.parametrize("fails", [False, True])
async def test_renewal_is_not_stored_after_the_outcome(fails: bool) -> None:
    """A service without versions takes writes in any order, and would say running for a lease."""
    storage, sent, told = ScriptedStorage(etags=False), asyncio.Event(), asyncio.Event()
    lease = SourceLease(storage, "feed", Run("run-1", QUICK, lambda: NOW))
    await lease.read()
    await lease.begin()

    async def on_its_way() -> None:
        async def arrive() -> None:  # whatever becomes of the request
            await told.wait()
            running(storage, seconds_ago=0, run_id="run-1")

        sent.set()
        await asyncio.shield(asyncio.create_task(arrive()))

    storage.plan("running", on_its_way)
    error = ValueError("the feed broke")
    with contextlib.suppress(ValueError):
        async with lease.renewed():
            await sent.wait()
            asyncio.get_running_loop().call_later(0.01, told.set)
            if fails:
                raise error
    await (lease.abort(error) if fails else lease.commit(at(1), 1))
    await told.wait()
    for _ in range(9):
        await asyncio.sleep(0)
    assert storage.stored["feed"].status == ("failed" if fails else "success")


async def test_no_renewal_begins_after_the_outcome() -> None:
    """A first collection by a backfill closes its sink afterwards, which may take a moment."""
    storage = ScriptedStorage()
    lease = SourceLease(storage, "feed", Run("run-1", QUICK, lambda: NOW))
    await lease.read()
    await lease.begin()
    await lease.commit(at(1), 1)
    owner = asyncio.current_task()
    assert owner
    await lease._renew(owner)  # as the next beat does
    assert storage.calls[-1] == "success"


@pytest.mark.parametrize(
    ("is_dated", "is_taken"), [(True, True), (True, False), (False, True), (False, False)]
)
async def test_run_that_slept_asks_first_where_no_version_would_refuse_it(
    is_dated: bool, is_taken: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own write would be accepted; where the service does not date writes, it may be taken."""
    storage, clock = ScriptedStorage(etags=False, now=lambda: NOW), FakeClock()
    lease = SourceLease(storage, "feed", Run("run-1", clock=lambda: NOW), monotonic=clock)
    if not is_dated:
        answered = storage._answered
        monkeypatch.setattr(
            storage,
            "_answered",
            lambda stored: answered(stored).model_copy(update={"last_run_timestamp": None}),
        )
    await lease.read()
    await lease.begin()
    clock.advance(3_600)
    if is_taken:
        running(storage, seconds_ago=-60)
    if is_dated and not is_taken:
        await lease.confirm()
        return
    with pytest.raises(WatermarkConflictError, match="or may have been, while this one slept"):
        await lease.confirm()
    assert storage.calls.count("running") == 1


@pytest.mark.parametrize(
    "written", [datetime.max.replace(tzinfo=UTC), datetime(1, 1, 1, tzinfo=UTC)]
)
async def test_time_at_the_end_of_the_calendar_holds_nothing(written: datetime) -> None:
    """No run wrote it, and the source is collected."""
    storage = ScriptedStorage()
    storage.put("feed", status="running", last_run_timestamp=written, lease_seconds=1e300)
    await collected(storage, [record("1", 1)])
    assert storage.stored["feed"].status == "success"


async def test_answer_from_before_a_sleep_confirms_nothing() -> None:
    """A renewal was under way; what was stored meanwhile is younger than its answer."""
    storage, clock = ScriptedStorage(), FakeClock()
    limits = Limits(lease=timedelta(milliseconds=30))
    lease = SourceLease(storage, "feed", Run("run-1", limits, lambda: NOW), monotonic=clock)
    await lease.read()
    await lease.begin()
    answered, asleep, awake = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def sleep() -> None:
        asleep.set()
        await answered.wait()

    storage.plan("running", sleep, awake.set)
    async with lease.renewed():
        await asleep.wait()
        clock.advance(60)
        lease._note_awake()  # as the next beat does
        answered.set()
        while lease._writing.locked():
            await asyncio.sleep(0)
        await lease.confirm()
        assert awake.is_set()


async def test_no_renewal_begins_at_the_end_of_a_run() -> None:
    """One that was due while the last one is awaited would hold a source that nobody collects."""
    storage, renewing, ended = ScriptedStorage(), asyncio.Event(), asyncio.Event()
    lease = SourceLease(storage, "feed", Run("run-1", QUICK, lambda: NOW))
    await lease.read()
    await lease.begin()

    async def hang() -> None:
        renewing.set()
        try:
            await asyncio.Event().wait()
        finally:  # the loop is busy until the next renewal is due
            due = asyncio.get_running_loop().time() + 0.05
            while asyncio.get_running_loop().time() < due:
                pass
            ended.set()

    storage.plan("running", hang)
    async with lease.renewed():
        await renewing.wait()
    assert ended.is_set()
    await lease.commit(at(1), 1)
    assert not [each for each in asyncio.all_tasks() if "lease" in each.get_name()]
    assert storage.stored["feed"].status == "success"


async def test_run_that_slept_marks_nothing_as_removed() -> None:
    """The listing that lacks a record is older than the run that stored it."""
    storage, sink = ScriptedStorage(), RememberingSink()
    clock = FakeClock()
    this = Run("run-1", clock=lambda: NOW)
    lease = SourceLease(storage, "feed", this, monotonic=clock)
    await lease.read()
    await lease.begin()
    await sink.write("feed", Page([record("2", 2)]))

    def sleep() -> None:
        clock.advance(60)
        running(storage, seconds_ago=0)

    source = ScriptedSource([[record("1", 1)], sleep, Page()], overlap=None)
    with pytest.raises(WatermarkConflictError):
        await extract(source, sink, this, lease)
    assert not sink.removed


async def test_begin_renewal_and_failure_are_dated_by_the_services_time() -> None:
    """A service that takes these timestamps for its own record gets its own time back."""
    storage = ScriptedStorage(now=lambda: NOW, tells_time=True)
    storage.put("feed", status="success", last_successful_timestamp=at(1))
    lease = SourceLease(storage, "feed", Run("run-1", clock=lambda: at(7)), monotonic=FakeClock())
    await lease.read()
    await lease.acquire()
    await lease.checkpoint(at(2), 1)
    await lease.abort(StorageConnectionError("no answer"))
    told = [each["timestamp"] for each in storage.updates if each["status"] != "success"]
    assert told == [NOW] * 3


async def test_lease_and_clock_hold_over_a_real_service(tmp_path: Path) -> None:
    """Client and embedded service carry the holder's lease and the time from the first write on."""
    clock = FakeClock(NOW)
    async with (
        embedded_service(tmp_path / "w.db", now=clock.now) as address,
        StorageServiceClient(address) as client,
    ):
        other = held(client, lease=600, run_id="other", ahead=timedelta(days=1))
        await other.read()
        await other.acquire()
        clock.advance(599)
        with pytest.raises(SourceBusyError):
            await held(client, ahead=timedelta(days=9), lease=1).read()
        clock.advance(2)
        lease = held(client, ahead=timedelta(days=-9), lease=3600)
        await lease.read()
        await lease.acquire()
        assert lease.now() >= NOW + timedelta(seconds=601)


async def test_base_service_gets_no_lease_and_no_ledger() -> None:
    """What it did not show that it knows is not sent; its `Date` and the reader's lease decide."""
    async with (
        base_service(lambda: datetime.now(UTC)) as address,
        StorageServiceClient(address) as client,
    ):
        lease = held(client)
        await lease.read()
        await lease.acquire()
        with pytest.raises(SourceBusyError):
            await held(client, run_id="late", ahead=timedelta(days=9)).read()
        await lease.commit(at(1), 1, {"pages": 1})
        read = await client.get_watermark("feed")
        assert read is not None
        assert (read.last_successful_timestamp, read.ledger, read.lease_seconds) == (
            at(1), None, None,
        )  # fmt: skip


async def test_storage_of_ones_own_may_know_neither_lease_nor_ledger() -> None:
    """A class that was written before there were any goes on as it is."""

    class Older:
        def __init__(self) -> None:
            self.inner = MockStorageClient()
            self.get_watermark = self.inner.get_watermark

        async def health_check(self) -> bool:
            return True

        async def update_watermark(
            self,
            source_id: str,
            timestamp: datetime,
            status: str = "success",
            error_message: str | None = None,
            *,
            if_match: str | None = None,
            if_none_match: bool = False,
            records_collected: int | None = None,
            run_id: str | None = None,
        ) -> Any:
            return await self.inner.update_watermark(
                source_id, timestamp, status, error_message, if_match=if_match, run_id=run_id
            )

    storage = Older()
    store: Any = storage
    report = await run(ScriptedSource([[record("1", 1)]]), MemorySink(), store, run_id="run-1")
    assert report.watermark_after == at(1)
    assert await held(store).last_sane(NOW) is None


async def test_ledger_goes_with_the_outcome_and_stays_until_the_next_one_is_told() -> None:
    """What a run was given is kept with its success or failure, and in its line of history."""
    storage = MockStorageClient(clock=lambda: NOW)
    lease = held(storage)
    await lease.read()
    await lease.acquire()
    await lease.checkpoint(at(1), 1)
    await lease.commit(at(2), 2, {"pages": 2, "start": at(0)})
    told = {"pages": 2, "start": "2024-01-01T00:00:00Z"}
    lease = held(storage)
    await lease.read()
    assert lease.stored is not None
    assert lease.stored.ledger == told
    await lease.acquire()
    await lease.abort(StorageConnectionError("no answer"))
    stored = await storage.get_watermark("feed")
    assert stored is not None
    assert (stored.status, stored.ledger) == ("failed", told)
    lease = held(storage)
    await lease.read()
    await lease.abort(StorageConnectionError("no answer"), {"pages": 1})
    history = await storage.watermark_history("feed")
    assert history is not None
    assert [change.ledger for change in history.changes if change.ledger] == [{"pages": 1}, told]


async def test_last_sane_watermark_is_found_in_the_history(tmp_path: Path) -> None:
    """The last one that was not in the future counts, and none from before a deletion."""
    clock = FakeClock(NOW)
    async with (
        embedded_service(tmp_path / "w.db", now=clock.now) as address,
        calling(address) as call,
        StorageServiceClient(address) as client,
    ):
        lease = held(client)
        await client.update_watermark("feed", at(9))
        reset = {"timestamp": at(5).isoformat(), "reason": "test"}
        await call("POST", path("feed", "/reset"), reset)
        for _ in range(60):
            await client.update_watermark("feed", at(6), "running")
        await client.update_watermark("feed", NOW + timedelta(hours=9))
        await client.update_watermark("feed", NOW, "failed")
        assert await lease.last_sane(NOW) == at(5)
        assert await lease.last_sane(at(4)) is None
        await call("DELETE", path("feed"))
        await client.update_watermark("feed", NOW + timedelta(hours=9))
        assert await lease.last_sane(NOW) == EMPTY_WATERMARK
        await client.update_watermark("feed", at(7))
        reset = {"timestamp": EMPTY_WATERMARK.isoformat(), "reason": "test"}
        assert (await call("POST", path("feed", "/reset"), reset)).status == 200
        await client.update_watermark("feed", NOW + timedelta(hours=9))
        assert await lease.last_sane(NOW) == EMPTY_WATERMARK


async def test_last_sane_watermark_is_not_looked_for_without_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A bounded number of pages is read, of a bounded number of changes each."""
    monkeypatch.setattr(module, "CHANGES_PER_PAGE", 1)
    monkeypatch.setattr(module, "HISTORY_PAGES", 3)
    storage = MockStorageClient(clock=lambda: NOW)
    await storage.update_watermark("feed", at(1))
    for minute in range(3):
        await storage.update_watermark("feed", NOW + timedelta(minutes=1 + minute))
    assert await held(storage).last_sane(NOW) is None
    monkeypatch.setattr(module, "HISTORY_PAGES", 4)
    assert await held(storage).last_sane(NOW) == at(1)


@pytest.mark.parametrize(("status", "known"), [(400, True), (405, True), (500, False)])
async def test_history_that_is_not_there_is_none_and_one_that_fails_is_an_error(
    status: int, known: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A service from before the question has no answer; an outage is not the same."""

    async def refuse(*_: Any, **__: Any) -> None:
        raise StorageResponseError("no", status)

    storage = MockStorageClient()
    monkeypatch.setattr(storage, "watermark_history", refuse)
    if known:
        assert await held(storage).last_sane(NOW) is None
        return
    with pytest.raises(StorageResponseError):
        await held(storage).last_sane(NOW)


async def test_success_that_found_nothing_is_no_damaged_watermark() -> None:
    """A source that had nothing yet is collected again; a success without a timestamp is not."""
    storage = MockStorageClient()
    await storage.update_watermark("feed", EMPTY_WATERMARK)
    lease = held(storage)
    await lease.read()
    assert lease.before == EMPTY_WATERMARK
    damaged = ScriptedStorage()
    damaged.put("feed", status="success", last_successful_timestamp=None)
    with pytest.raises(InvalidResponseError):
        await held(damaged).read()


async def test_conflict_with_another_status_of_ones_own_run_is_a_conflict() -> None:
    """A write whose answer was lost has its own status; under another one it is not that write."""
    storage = ScriptedStorage()
    storage.put("feed", status="success", last_successful_timestamp=at(5))
    lease = held(storage)
    await lease.read()
    await lease.acquire()
    storage.plan("success", lost_answer(storage, status="running", run_id="run-1"))
    with pytest.raises(StorageConnectionError):
        await lease.checkpoint(at(6), 1)
    with pytest.raises(WatermarkConflictError):
        await lease.commit(at(7), 1)
    assert storage.stored["feed"].status == "running"


async def test_answer_that_came_ends_the_search_for_a_lost_one() -> None:
    """After a write that was answered, a conflict is not explained by an answer lost before it."""
    storage = ScriptedStorage()
    storage.put("feed", status="success", last_successful_timestamp=at(5))
    lease = held(storage)
    await lease.read()
    storage.plan("running", StorageConnectionError("never arrived"))
    with pytest.raises(StorageConnectionError):
        await lease.acquire()
    await lease.acquire()
    # An impostor under the same name, such as the same flow run started twice.
    storage.put("feed", status="running", run_id="run-1", last_successful_timestamp=at(5))
    reads = storage.calls.count("get")
    with pytest.raises(WatermarkConflictError):
        await lease.commit(at(7), 1)
    assert storage.calls.count("get") == reads
    assert storage.stored["feed"].status == "running"


async def test_lost_answer_explains_one_conflict() -> None:
    """Once a lost write was found, the next conflict is another run's, whatever its name is."""
    storage = ScriptedStorage()
    storage.put("feed", status="success", last_successful_timestamp=at(5))
    lease = held(storage)
    await lease.read()
    impostor = {"status": "success", "run_id": "run-1", "last_successful_timestamp": at(5)}
    lose = lost_answer(storage, status="success", run_id="run-1")
    storage.plan("success", lose, None, lambda: storage.put("feed", **impostor))
    with pytest.raises(StorageConnectionError):
        await lease.commit(at(7), 1)
    with pytest.raises(WatermarkConflictError):
        await lease.commit(at(7), 1)
    with pytest.raises(WatermarkConflictError):
        await lease.commit(at(7), 1)
    assert storage.stored["feed"].last_successful_timestamp == at(5)


async def test_first_write_in_our_time_is_written_again_in_the_services() -> None:
    """A service that dates its records by what it is sent has no record of two clocks."""
    storage = ScriptedStorage(etags=False, now=lambda: NOW, tells_time=True)
    put = storage.put_watermark

    async def dated_by_us(source_id: str, update: WatermarkUpdate, *condition: Any) -> Any:
        await put(source_id, update, *condition)
        dated = {"last_run_timestamp": update.timestamp}
        stored = storage.stored[source_id].model_copy(update=dated)
        storage.stored[source_id] = stored
        return stored.as_answered(NOW)

    storage.put_watermark = dated_by_us  # type: ignore[method-assign, assignment]
    lease = held(storage, ahead=timedelta(days=1))
    await lease.read()
    await lease.acquire()
    written = storage.stored["feed"].last_run_timestamp
    assert written is not None
    assert NOW <= written < NOW + timedelta(seconds=30)


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (asyncio.CancelledError(), "cancelled"),
        (asyncio.CancelledError("by SIGTERM"), "cancelled: by SIGTERM"),
        (KeyboardInterrupt(), "KeyboardInterrupt"),
        (StorageConnectionError("no\nanswer"), "StorageConnectionError: no answer"),
    ],
    ids=["cancelled", "cancelled and why", "no text", "two lines"],
)
async def test_failure_says_who_ended_the_run(error: BaseException, text: str) -> None:
    """The reason that is recorded is one line, and for a cancelled run what is known of who did."""
    storage = ScriptedStorage()
    await held(storage).abort(error)
    assert storage.stored["feed"].error_message == text


def test_lease_that_no_run_should_have_is_refused_when_it_is_told() -> None:
    """A lease beyond a day fails where it is written, and no run that has begun."""
    with pytest.raises(ValidationError, match="lease"):
        Limits(lease=timedelta(days=100_000))
    assert Limits(lease=timedelta(days=1)).lease == timedelta(days=1)


@pytest.mark.parametrize(
    ("fields", "is_believed"),
    [
        ({"last_successful_timestamp": at(-1)}, False),
        ({"last_successful_timestamp": at(99)}, False),
        ({"status": WatermarkStatus.FAILED}, False),
        ({"last_successful_timestamp": at(1).replace(microsecond=999_999)}, True),
        ({"last_successful_timestamp": None}, True),
        ({"status": None}, True),
        ({"status": "stored"}, True),
        ({"status": "error", "last_successful_timestamp": None}, False),
        ({"status": WatermarkStatus.FAILED, "last_successful_timestamp": None}, False),
    ],
)
async def test_success_that_the_service_did_not_store_is_none(
    fields: dict[str, Any], is_believed: bool
) -> None:
    """An answer of 200 that shows another watermark than was sent is no proof of it."""

    class Answering(ScriptedStorage):
        """A storage whose answer to a success is made up."""

        async def put_watermark(self, *arguments: Any) -> Watermark:
            answer = await super().put_watermark(*arguments)
            is_success = answer.status == WatermarkStatus.SUCCESS
            return answer.model_copy(update=fields) if is_success else answer

    storage = Answering(now=lambda: at(5))
    collecting = run(
        ScriptedSource([[record("1", 1)]]), MemorySink(), storage, run_id="R", clock=lambda: at(5)
    )
    if is_believed:
        assert (await collecting).watermark_after == at(1)
        return
    with pytest.raises(InvalidResponseError, match="did not store that"):
        await collecting
    assert storage.stored["feed"].status == WatermarkStatus.FAILED


async def test_begin_that_the_service_did_not_store_collects_nothing() -> None:
    """A service that answers `failed` to each write has no hold to give."""

    class Failing(ScriptedStorage):
        """A storage whose writes fail, as it says with 200."""

        async def put_watermark(self, *arguments: Any) -> Watermark:
            answer = await super().put_watermark(*arguments)
            return answer.model_copy(update={"status": WatermarkStatus.FAILED})

    sink = MemorySink()
    with pytest.raises(InvalidResponseError, match="written as running"):
        await collected(Failing(), [record("1", 1)], sink=sink)
    assert not sink.rows


class Broken(MockStorageClient):
    """A client of which a program overrides the wide write alone."""

    async def update_watermark(self, *arguments: Any, **named: Any) -> Any:
        """Fail each success, and write everything else."""
        if "success" in map(str, arguments):
            raise StorageConnectionError("the network is away")
        return await super().update_watermark(*arguments, **named)


async def test_overridden_wide_write_is_the_one_that_runs_use() -> None:
    """A subclass that overrides `update_watermark` is not passed over by the other method."""
    storage = Broken()
    with pytest.raises(StorageConnectionError, match="away"):
        await run(ScriptedSource([[record("1", 1)]]), MemorySink(), storage, run_id="r")
    stored = await storage.get_watermark("feed")
    assert stored is not None
    assert (stored.status, stored.last_successful_timestamp) == ("failed", None)
