"""Runs that stand by for a source: they fail, wait or skip, and none writes while another holds."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from datetime import datetime, timedelta
from functools import partial
from typing import Any

import pytest

from ladon_storage import MockStorageClient
from ladon_storage.collection import standby
from ladon_storage.collection.lease import SourceLease
from ladon_storage.collection.protocols import Run
from ladon_storage.collection.run import Report, run
from ladon_storage.collection.standby import Holder, WhenBusy
from ladon_storage.errors import (
    SourceBusyError,
    StorageConnectionError,
    StorageResponseError,
    WatermarkConflictError,
)
from ladon_storage.models import WatermarkStatus
from ladon_storage.testing.doubles import MemorySink, ScriptedSource, ScriptedStorage, at, record
from tests.collection.simulated import SimulatedLoop

LEASE = 60.0


@pytest.fixture
def simulated(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[SimulatedLoop], Any]], Any]:
    """Return a function that runs a coroutine by a simulated clock."""

    def simulate(work: Callable[[SimulatedLoop], Coroutine[Any, Any, Any]]) -> Any:
        loop = SimulatedLoop()
        made = SourceLease.__init__
        monkeypatch.setattr(
            SourceLease,
            "__init__",
            lambda self, *given, **named: made(self, *given, **named, monotonic=loop.time),
        )
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            return runner.run(work(loop))

    return simulate


def held(storage: ScriptedStorage, until: float, run_id: str | None = "other") -> None:
    """Let a run hold the source until a second of the simulated time."""
    storage.put(
        "feed",
        status="running",
        last_run_timestamp=at((until - LEASE) / 60),
        last_successful_timestamp=at(-100),
        lease_seconds=LEASE,
        run_id=run_id,
    )


async def collected(
    storage: Any, when_busy: WhenBusy, clock: Callable[[], datetime] = lambda: at(0), **options: Any
) -> Report:
    """Collect one record."""
    return await run(
        ScriptedSource([[record("1", at(-1))]]),
        options.pop("sink", None) or MemorySink(),
        storage,
        run_id=options.pop("run_id", "run-1"),
        clock=clock,
        when_busy=when_busy,
        **options,
    )


async def test_skipped_run_completes_and_touches_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """The report names the holder; neither the watermark nor the sink is touched."""
    storage, sink = ScriptedStorage(), MemorySink()
    held(storage, 30)
    before = storage.stored["feed"]
    with caplog.at_level(logging.INFO, "ladon_storage"):
        report = await collected(storage, "skip", sink=sink)
    assert report.skipped == Holder(run_id="other", until=at(0.5))
    assert (report.records_read, report.watermark_before) == (0, at(-100))
    assert report.watermark_after == report.watermark_before
    assert storage.stored["feed"] == before
    assert not storage.updates
    assert not sink.events
    assert "Source 'feed' is skipped: run 'other' is collecting the source." in caplog.text


@pytest.mark.parametrize("when_busy", ["fail", "wait", "skip"])
async def test_free_source_is_collected_whatever_a_run_does_otherwise(when_busy: WhenBusy) -> None:
    """The choice matters only while another run holds the source."""
    storage = ScriptedStorage()
    report = await collected(storage, when_busy)
    assert report.skipped is None
    assert report.records_new == 1
    assert storage.stored["feed"].status == "success"


async def test_run_that_loses_the_race_for_a_free_source_is_skipped() -> None:
    """Both read a free source and one writes first: the other has nothing to do, and is green."""
    storage, sink = ScriptedStorage(), MemorySink()
    storage.plan("running", lambda: held(storage, 60))
    report = await collected(storage, "skip", sink=sink)
    assert report.skipped == Holder(run_id="other", until=at(1))
    assert [each["status"] for each in storage.updates] == ["running"]
    assert not sink.events


async def test_lost_race_against_a_run_that_has_ended_is_run_again() -> None:
    """Another run that was faster and is through leaves the source free, so it is collected."""
    storage = ScriptedStorage()
    storage.plan("running", lambda: storage.put("feed", status="success",
                                                last_successful_timestamp=at(-50)))  # fmt: skip
    report = await collected(storage, "skip")
    assert (report.skipped, report.watermark_before) == (None, at(-50))


async def test_service_that_refuses_every_write_is_an_error() -> None:
    """A condition that never holds is a fault, not a race without an end."""
    storage = ScriptedStorage()
    conflicts = [WatermarkConflictError("no", status=412) for _ in range(100)]
    storage.plan("running", *conflicts)
    with pytest.raises(WatermarkConflictError):
        await collected(storage, "wait")
    assert storage.calls.count("running") < 20


@pytest.mark.parametrize("tells_time", [True, False])
def test_waiting_run_begins_when_the_lease_has_ended(simulated: Any, tells_time: bool) -> None:
    """The end is the one of the service's clock, and nothing is written before it."""

    async def play(loop: SimulatedLoop) -> float:
        storage = ScriptedStorage(now=loop.now, tells_time=tells_time)
        held(storage, 47)
        times: list[float] = []
        storage.plan("running", lambda: times.append(loop.seconds))
        # A worker's clock that is wrong by an hour changes nothing where the service tells its own.
        wrong = timedelta(hours=1) if tells_time else timedelta(0)
        report = await collected(storage, "wait", lambda: loop.now() - wrong)
        assert report.skipped is None
        return times[0]

    assert 47 <= simulated(play) <= 49


def test_waiting_run_begins_soon_after_a_release(
    simulated: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """A run that ends before its lease does is noticed within seconds, and the wait is said."""

    async def play(loop: SimulatedLoop) -> float:
        storage = ScriptedStorage(now=loop.now, tells_time=True)
        held(storage, 60)

        def release() -> None:
            storage.put("feed", status="success", last_successful_timestamp=at(-50))

        loop.call_later(12, release)
        await collected(storage, "wait", loop.now)
        return loop.seconds

    assert 12 <= simulated(play) <= 12 + standby.POLL_SECONDS
    assert "Source 'feed' is held: run 'other' is collecting the source." in caplog.text
    assert "0:00:00 of at most 1:00:00" in caplog.text


def test_wait_for_a_run_without_an_end_is_bounded(
    simulated: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """A lease that is renewed for ever ends the wait after an hour, with progress each minute."""

    async def play(loop: SimulatedLoop) -> float:
        storage = ScriptedStorage(now=loop.now, tells_time=True)

        def renew() -> None:
            held(storage, loop.seconds + LEASE)
            loop.call_later(20, renew)

        renew()
        with pytest.raises(SourceBusyError, match="was not free within 3600 s: run 'other'"):
            await collected(storage, "wait", loop.now)
        assert not storage.updates
        return loop.seconds

    assert simulated(play) == pytest.approx(standby.WAIT_SECONDS, abs=10)
    assert 55 <= caplog.text.count("of at most 1:00:00") <= 65


def test_outage_of_the_service_does_not_end_a_wait(simulated: Any) -> None:
    """A service that is away for a moment is asked again; an error that stays is an error."""

    async def play(loop: SimulatedLoop) -> None:
        storage = ScriptedStorage(now=loop.now, tells_time=True)
        held(storage, 40)
        storage.plan("get", None, StorageConnectionError("no answer"), None)
        report = await collected(storage, "wait", loop.now)
        assert report.records_new == 1
        held(storage, loop.seconds + 40)
        storage.plan("get", None, StorageResponseError("wrong token", status=401))
        with pytest.raises(StorageResponseError):
            await collected(storage, "wait", loop.now)
        assert storage.stored["feed"].run_id == "other"

    simulated(play)


def test_cancelled_wait_writes_nothing(simulated: Any) -> None:
    """Neither in the first wait nor in one after a lost race: the other run holds the source."""

    async def play(loop: SimulatedLoop) -> None:
        for is_race in (False, True):
            # A service of the base contract has no version that would refuse the write.
            storage = ScriptedStorage(now=loop.now, etags=is_race)
            if is_race:
                storage.plan("running", partial(held, storage, LEASE + 7))
            else:
                held(storage, loop.seconds + LEASE)
            waiting = asyncio.ensure_future(collected(storage, "wait", loop.now))
            await asyncio.sleep(7)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            assert storage.stored["feed"].run_id == "other"
            assert "failed" not in storage.calls

    simulated(play)


@pytest.mark.parametrize("when_busy", ["skip", "wait"])
def test_schedulers_stand_by_for_each_other_for_an_hour(
    simulated: Any, when_busy: WhenBusy
) -> None:
    """Each dies at times; the other takes over within the lease and a schedule, and none is red.

    A death is one without a last word: the task and its writes are dropped, as by SIGKILL.
    """
    every, deaths, minutes = 15.0, [305.0, 1207.0, 1830.0, 2411.0, 3009.0], 60

    async def play(loop: SimulatedLoop) -> None:
        storage = MockStorageClient(clock=loop.now)
        began: list[tuple[float, str]] = []
        red: list[BaseException] = []
        dead: set[str] = set()
        died: list[float] = []
        lives: list[asyncio.Future[None]] = []
        is_over = asyncio.Event()
        skipped = 0

        class Mortal:
            """The storage as one run reaches it, until the run's process is dead."""

            def __init__(self, run_id: str) -> None:
                self._run_id = run_id
                self.health_check = storage.health_check
                self.get_watermark = storage.get_watermark

            async def put_watermark(self, *given: Any, **named: Any) -> Any:
                if self._run_id in dead:
                    await is_over.wait()
                    raise StorageConnectionError("the process is dead")
                return await storage.put_watermark(*given, **named)

        async def once(run_id: str) -> None:
            nonlocal skipped

            async def work() -> None:
                began.append((loop.seconds, run_id))
                await asyncio.sleep(11)

            try:
                report = await run(
                    ScriptedSource([work, [record(run_id, loop.now())]]),
                    MemorySink(),
                    Mortal(run_id),
                    run_id=run_id,
                    clock=loop.now,
                    when_busy=when_busy,
                )
                skipped += report.skipped is not None
            except Exception as error:
                if run_id not in dead:
                    red.append(error)

        async def scheduler(name: str, offset: float) -> None:
            await asyncio.sleep(offset)
            number = 0
            while loop.seconds < minutes * 60:
                number += 1
                life = asyncio.ensure_future(once(f"{name}-{number}"))
                lives.append(life)
                while not life.done() and f"{name}-{number}" not in dead:
                    await asyncio.sleep(1)
                await asyncio.sleep(every)

        def die() -> None:
            stored = storage._watermarks["feed"]
            if stored.status != WatermarkStatus.RUNNING or stored.run_id in dead:
                loop.call_later(1, die)
                return
            assert stored.run_id
            dead.add(stored.run_id)
            died.append(loop.seconds)

        for moment in deaths:
            loop.call_later(moment, die)
        await asyncio.gather(scheduler("a", 0), scheduler("b", 0))
        is_over.set()
        for each in lives:
            each.cancel()
        await asyncio.gather(*lives, return_exceptions=True)
        assert not red
        assert len(dead) == len(deaths)
        for moment in died:
            after = min(start for start, _ in began if start > moment)
            assert after - moment <= LEASE + every + standby.POLL_SECONDS
        assert {name.partition("-")[0] for _, name in began} == {"a", "b"}
        assert bool(skipped) is (when_busy == "skip")

    simulated(play)


def test_run_value_carries_the_choice() -> None:
    """A lease takes it from the run, and fails where nothing is said."""
    assert Run().when_busy == "fail"
