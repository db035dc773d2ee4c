"""Backfills by several workers: their time, their failures, their gaps, and first collections."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from functools import partial
from typing import Any

import pytest

from ladon_storage.collection.backfill import BackfillReport, backfill
from ladon_storage.collection.lease import SourceLease
from ladon_storage.collection.protocols import Limits, Run
from ladon_storage.collection.ranges import TimeRange
from ladon_storage.collection.records import Page
from ladon_storage.collection.run import run
from ladon_storage.collection.windows import MAX_PARTS, Progress, StoredProgress
from ladon_storage.errors import (
    CollectionError,
    ConfigurationError,
    SourceBusyError,
    SourceError,
    StorageConnectionError,
    WatermarkConflictError,
)
from ladon_storage.testing.clock import FakeClock
from ladon_storage.testing.doubles import (
    LatestSink,
    MemorySink,
    RememberingSink,
    ScriptedStorage,
    at,
    record,
)
from tests.collection.simulated import SimulatedLoop, simulate

DAY = timedelta(days=1)
START = at(0)
NOW = START + 1200 * DAY
NAME = "feed/backfill/20240101T000000.000000Z/20240110T000000.000000Z"


def kept(**options: Any) -> ScriptedStorage:
    """Return a storage whose time is after all that is collected."""
    return ScriptedStorage(now=lambda: NOW, tells_time=True, **options)


class Archive:
    """A source with a record at each noon, whose windows fail as they are told to."""

    source_id = "feed"
    overlap = timedelta(hours=1)

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.asked: list[int] = []
        """The day of each window that was asked for."""
        self.failing: dict[int, int] = {}
        """The number of times that a day fails; -1: always."""
        self.retry_after: float | None = None
        self.active = self.most = 0

    async def pages(self, start: datetime | None, until: datetime | None) -> AsyncIterator[Page]:
        start = START if start is None else start
        until = START + 30 * DAY if until is None else until
        day = (start - START).days
        self.asked.append(day)
        self.active += 1
        self.most = max(self.most, self.active)
        try:
            await asyncio.sleep(self.seconds)
            if self.failing.get(day):
                self.failing[day] -= 1
                raise SourceError(f"day {day} is down", "feed", retry_after=self.retry_after)
            noons = (START + number * DAY + DAY / 2 for number in range(-1, 120))
            yield Page([record(f"{each:%j}", each) for each in noons if start <= each < until])
        finally:
            self.active -= 1


async def read(
    source: Archive, storage: ScriptedStorage, sink: MemorySink | None = None, **options: Any
) -> BackfillReport:
    """Backfill some days, nine unless said otherwise."""
    days = options.pop("days", 9)
    return await backfill(
        source, sink or MemorySink(), storage, START, START + days * DAY, run_id="b", **options
    )


def parts(storage: ScriptedStorage) -> tuple[int, list[tuple[int, int]]]:
    """Return the days up to which a backfill has read all, and the days behind a gap."""
    stored = storage.stored[NAME]
    assert stored.last_successful_timestamp
    assert stored.ledger
    behind = [tuple(map(datetime.fromisoformat, each)) for each in stored.ledger["finished"]]
    reached = (stored.last_successful_timestamp - START).days
    return reached, [((start - START).days, (end - START).days) for start, end in behind]


def test_eight_workers_take_at_most_a_sixth_of_the_time() -> None:
    """Ninety windows with 0.3 s a page: by a simulated clock, so that no machine matters."""

    async def timed(loop: SimulatedLoop, workers: int) -> float:
        source, sink = Archive(0.3), MemorySink()
        began = loop.time()
        report = await read(source, kept(), sink, days=90, workers=workers)
        assert (report.windows, report.records_new, source.most) == (90, 90, workers)
        assert len(source.asked) == 90
        return loop.time() - began

    one = simulate(lambda loop: timed(loop, 1))
    eight = simulate(lambda loop: timed(loop, 8))
    assert eight <= one / 6


def test_failed_window_is_read_again_alone() -> None:
    """It fails while eight others are read, and is read once more when they have ended."""

    async def play(_loop: SimulatedLoop) -> None:
        source, storage = Archive(0.1), kept()
        source.failing = {2: 1, 5: 1}
        report = await read(source, storage, workers=4)
        assert sorted(source.asked) == sorted([*range(9), 2, 5])
        assert source.asked[-2:] == [2, 5]
        assert (report.records_new, report.windows) == (9, 9)
        assert parts(storage) == (9, [])

    simulate(play)


def test_open_circuit_is_waited_for_when_a_window_is_read_alone() -> None:
    """The failures of the others may have opened it; a source that is away for long is not."""

    async def play(loop: SimulatedLoop, retry_after: float) -> float:
        source, storage = Archive(0.1), kept()
        source.failing, source.retry_after = {5: 2}, retry_after
        began = loop.time()
        report = await read(source, storage, workers=4)
        assert (report.records_new, source.asked[-3:].count(5)) == (9, 2)
        return loop.time() - began

    assert 59 < simulate(lambda loop: play(loop, 59)) < 62
    with pytest.raises(CollectionError, match="1 of 9 windows"):
        simulate(lambda loop: play(loop, 3600))


async def test_window_that_stays_down_leaves_a_gap_that_is_remembered() -> None:
    """The watermark stops before it, the rest is durable, and the next run reads only it."""
    source, storage, sink = Archive(), kept(), MemorySink()
    source.failing = {3: -1}
    with pytest.raises(CollectionError, match=r"1 of 9 windows of source 'feed' failed") as caught:
        await read(source, storage, sink, workers=3)
    text = str(caught.value)
    assert "2024-01-04T00:00:00+00:00 to 2024-01-05T00:00:00+00:00 (SourceError: day 3" in text
    assert "reads only what is not finished" in text
    assert parts(storage) == (3, [(4, 9)])

    source.failing, source.asked = {}, []
    report = await read(source, storage, sink, workers=3)
    assert source.asked == [3]
    assert (report.windows_done_before, report.records_new) == (8, 1)
    assert parts(storage) == (9, [])
    assert len(sink.rows) == 9
    again = await read(source, storage, sink)
    assert (again.windows_done_before, source.asked) == (9, [3])


async def test_source_that_is_down_is_not_asked_for_every_window() -> None:
    """When each worker has failed in turn, no further window is begun."""
    source, storage = Archive(), kept()
    source.failing = dict.fromkeys(range(9), -1)
    with pytest.raises(CollectionError, match="were not begun"):
        await read(source, storage, workers=3)
    assert len(source.asked) <= 6
    assert NAME not in storage.stored


@pytest.mark.parametrize("workers", [1, 4])
async def test_what_is_still_to_come_is_read_by_a_later_run(
    workers: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A range that ends in the future is finished up to now, and no further."""
    source, sink, storage = Archive(), MemorySink(), kept()
    now = [START + 3.75 * DAY]
    module = sys.modules[backfill.__module__]
    monkeypatch.setattr(module, "Run", partial(Run, clock=lambda: now[0]))
    report = await read(source, storage, sink, workers=workers)
    assert (report.until, report.windows, report.records_new) == (now[0], 4, 4)
    assert "ends in the future" in caplog.text
    assert storage.stored[NAME].last_successful_timestamp == now[0]
    now[0] = START + 9 * DAY
    report = await read(source, storage, sink, workers=workers)
    assert (report.windows_done_before, report.records_new) == (3, 5)
    assert report.until == START + 9 * DAY
    now[0] = START
    with pytest.raises(ConfigurationError, match="begins in the future"):
        await read(source, storage, sink, workers=workers)


async def test_first_failure_of_one_worker_ends_it() -> None:
    """As ever: with one worker the error is the source's own, and the next run goes on there."""
    source, storage = Archive(), kept()
    source.failing = {2: 1}
    with pytest.raises(SourceError, match="day 2"):
        await read(source, storage)
    assert source.asked == [0, 1, 2]
    await read(source, storage)
    assert source.asked == [0, 1, 2, *range(2, 9)]


async def test_service_without_a_ledger_forgets_only_what_is_behind_a_gap() -> None:
    """A service of the base contract keeps the contiguous part; the rest is read again."""
    source, storage, sink = Archive(), kept(etags=False), MemorySink()
    source.failing = {3: -1}
    with pytest.raises(CollectionError):
        await read(source, storage, sink, workers=3)
    source.failing, source.asked = {}, []
    report = await read(source, storage, sink, workers=3)
    assert sorted(source.asked) == list(range(3, 9))
    assert (report.windows_done_before, report.records_new) == (3, 1)


@pytest.mark.parametrize(
    "ledger",
    [
        None,
        {},
        {"finished": "all"},
        {"reached": "2024-01-04T00:00:00+00:00", "finished": [["2024-01-05", "soon"]]},
        {"reached": "2024-01-04T00:00:00+00:00", "finished": [[1, 2, 3]], "candidate": []},
        {
            "reached": "2024-01-02T00:00:00+00:00",  # an operator moved the watermark
            "finished": [["2024-01-05T00:00:00+00:00", "2024-01-10T00:00:00+00:00"]],
        },
    ],
)
async def test_ledger_that_does_not_fit_is_not_believed(ledger: Any) -> None:
    """What is not certain to be durable is read again."""
    source, storage = Archive(), kept()
    storage.put(NAME, status="success", last_successful_timestamp=START + 3 * DAY, ledger=ledger)
    await read(source, storage, workers=2)
    assert sorted(source.asked) == list(range(3, 9))


async def test_windows_of_another_length_read_what_is_left() -> None:
    """Finished parts count by time, whatever the windows of the next run are."""
    source, storage = Archive(), kept()
    source.failing = {1: -1, 4: -1}
    with pytest.raises(CollectionError):
        await read(source, storage, workers=2)
    source.failing, source.asked = {}, []
    report = await read(source, storage, workers=2, window=3 * DAY)
    assert sorted(source.asked) == [1, 4]
    assert (report.windows, report.windows_done_before) == (3, 1)


async def test_outage_of_the_service_is_not_taken_for_progress() -> None:
    """A window whose end could not be remembered is read again, and the run does not say it is."""
    source, storage = Archive(), kept()
    away = StorageConnectionError("no answer")
    storage.plan("success", None, away)
    report = await read(source, storage, workers=2)
    assert len(source.asked) == 10
    assert report.records_new == 9
    assert parts(storage) == (9, [])
    storage = kept()
    storage.plan("success", *[away] * 50)
    with pytest.raises(CollectionError, match="no answer"):
        await read(Archive(), storage, workers=2)


async def test_two_backfills_of_one_range_do_not_both_win() -> None:
    """The second writer's progress is fenced off, with the one error that says so."""
    storage = kept()
    source = Archive()

    def other() -> None:
        storage.put(NAME, status="success", last_successful_timestamp=START, run_id="other")

    storage.plan("success", None, other)
    with pytest.raises(WatermarkConflictError):
        await read(source, storage, workers=3)


async def test_fault_of_a_source_s_own_code_is_a_failed_window(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Any error counts as one of its window, is logged, and keeps the others."""

    class Faulty(Archive):
        async def pages(
            self, start: datetime | None, until: datetime | None
        ) -> AsyncIterator[Page]:
            if start == START + 2 * DAY:
                raise KeyError("missing")
            async for page in super().pages(start, until):
                yield page

    storage = kept()
    with caplog.at_level(logging.WARNING), pytest.raises(CollectionError, match="KeyError"):
        await read(Faulty(), storage, workers=2)
    assert parts(storage) == (2, [(3, 9)])
    assert "2024-01-03T00:00:00+00:00" in caplog.text


@pytest.mark.parametrize("workers", [1, 3])
async def test_window_that_ends_by_a_cancellation_from_within_has_failed(workers: int) -> None:
    """Its worker would end silently, and the backfill would be complete without it."""

    class Lost(Archive):
        async def pages(
            self, start: datetime | None, until: datetime | None
        ) -> AsyncIterator[Page]:
            if start == START + 2 * DAY:
                raise asyncio.CancelledError
            async for page in super().pages(start, until):
                yield page

    with pytest.raises(CollectionError, match="a cancellation that was not requested"):
        await read(Lost(), kept(), workers=workers)


@pytest.mark.parametrize("workers", [0, -1, 65])
async def test_wrong_number_of_workers_is_refused(workers: int) -> None:
    """The bounds are in the sentence."""
    with pytest.raises(ConfigurationError, match="1 to 64"):
        await read(Archive(), kept(), workers=workers)


@pytest.mark.parametrize("remembers", [True, False])
async def test_first_collection_goes_over_into_regular_runs(remembers: bool) -> None:
    """The next run asks from the last record minus the overlap: no hole, and no more."""
    source, storage = Archive(), kept()
    sink = RememberingSink() if remembers else MemorySink()
    report = await read(source, storage, sink, workers=4, first_collection=True)
    last = START + 8 * DAY + DAY / 2
    stored = storage.stored["feed"]
    assert (stored.status, stored.last_successful_timestamp) == ("success", last)
    assert report.records_new == 9
    source.asked = []
    after = await run(
        source, sink, storage, run_id="regular", clock=lambda: NOW,
        limits=Limits(initial_lookback=timedelta(days=1)),
    )  # fmt: skip
    assert after.start == last - source.overlap
    assert (after.watermark_before, after.records_new, after.records_known) == (last, 21, 1)


async def test_first_collection_holds_its_source() -> None:
    """A regular run meanwhile is refused, and one that is there refuses the first collection."""
    source, storage = Archive(), kept()

    async def regular() -> None:
        with pytest.raises(SourceBusyError):
            await run(Archive(), MemorySink(), storage, run_id="regular", clock=lambda: NOW)

    storage.plan("success", regular)
    await read(source, storage, workers=2, first_collection=True)
    with pytest.raises(ConfigurationError, match="is collected already"):
        await read(source, storage, workers=2, first_collection=True)
    storage.put("feed", status="running", last_run_timestamp=NOW, run_id="regular")
    with pytest.raises(SourceBusyError):
        await read(source, storage, first_collection=True)


async def test_first_collection_that_fails_is_resumed() -> None:
    """The watermark says failed and never collected; the next attempt reads what is left."""
    source, storage, sink = Archive(), kept(), RememberingSink()
    source.failing = {8: -1}
    with pytest.raises(CollectionError):
        await read(source, storage, sink, workers=4, first_collection=True)
    stored = storage.stored["feed"]
    assert (stored.status, stored.last_successful_timestamp) == ("failed", None)
    assert await sink.position("feed") is None
    source.failing, source.asked = {}, []
    source_left = [8]
    await read(source, storage, sink, workers=4, first_collection=True)
    assert source.asked == source_left
    # The greatest record of all windows counts, those of the first attempt included.
    assert storage.stored["feed"].last_successful_timestamp == START + 8 * DAY + DAY / 2


async def test_candidate_of_the_last_attempt_is_not_all_there_is() -> None:
    """A resumed first collection knows the records of the windows that it does not read."""
    source, storage = Archive(), kept()
    source.failing = {1: -1}
    with pytest.raises(CollectionError):
        await read(source, storage, workers=4, first_collection=True)
    source.failing = {}
    await read(source, storage, workers=4, first_collection=True)
    assert storage.stored["feed"].last_successful_timestamp == START + 8 * DAY + DAY / 2


@pytest.mark.parametrize("sink", [RememberingSink, MemorySink])
async def test_first_collection_of_nothing_is_one(sink: type[MemorySink]) -> None:
    """The regular runs read its range again: their own lookback would begin after its end."""

    class Empty(Archive):
        async def pages(
            self, start: datetime | None, until: datetime | None
        ) -> AsyncIterator[Page]:
            yield Page()

    storage, records = kept(), sink()
    await read(Empty(), storage, records, first_collection=True)
    assert storage.stored["feed"].last_successful_timestamp == START
    source = Archive()
    after = await run(
        source, records, storage, run_id="regular", clock=lambda: NOW,
        limits=Limits(initial_lookback=timedelta(days=1)),
    )  # fmt: skip
    assert after.start == START - source.overlap
    assert after.records_new == 30


async def test_first_collection_that_slept_stores_nothing_over_who_took_over() -> None:
    """Another run may hold the source by then, and have its records in a later state."""
    storage, sink, clock = kept(), RememberingSink(), FakeClock()

    class Sleeping(Archive):
        """A source whose process is stopped for an hour when it has its second answer."""

        async def pages(
            self, start: datetime | None, until: datetime | None
        ) -> AsyncIterator[Page]:
            async for page in super().pages(start, until):
                if len(self.asked) == 2:
                    clock.advance(3_600)
                    storage.put("feed", status="running", last_run_timestamp=NOW, run_id="other")
                yield page

    lease = partial(SourceLease, monotonic=clock)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ladon_storage.collection.backfill.SourceLease", lease)
        with pytest.raises(WatermarkConflictError, match="run 'other'"):
            await read(Sleeping(), storage, sink, first_collection=True)
    assert sink.ids == ["001"]
    assert await sink.position("feed") is None


async def test_first_collection_that_slept_hands_nothing_over() -> None:
    """Its position would be behind that of the run which took over."""
    storage, sink, clock = kept(), RememberingSink(), FakeClock()

    def sleep() -> None:
        clock.advance(3_600)
        storage.put("feed", status="running", last_run_timestamp=NOW, run_id="other")

    storage.plan("success", sleep)
    with pytest.MonkeyPatch.context() as patch:
        lease = partial(SourceLease, monotonic=clock)
        patch.setattr("ladon_storage.collection.backfill.SourceLease", lease)
        with pytest.raises(WatermarkConflictError, match="run 'other'"):
            await read(Archive(), storage, sink, days=1, first_collection=True)
    assert await sink.position("feed") is None


class Generous(Archive):
    """A source that delivers a day before each window, and all that is after it."""

    async def pages(self, start: datetime | None, until: datetime | None) -> AsyncIterator[Page]:
        assert start
        async for page in super().pages(start - DAY, START + 60 * DAY):
            yield page


@pytest.mark.parametrize("workers", [1, 2])
async def test_what_lies_outside_of_the_range_is_skipped(workers: int) -> None:
    """It is counted; what belongs to another window than the one that delivers it is stored."""
    sink, storage = MemorySink(), kept()
    report = await read(Generous(), storage, sink, days=2, workers=workers)
    assert sorted(each.timestamp for each in sink.rows.values()) == [
        START + number * DAY + DAY / 2 for number in range(2)
    ]
    # The day before and 58 after, and 58 after: the second window has the first day once more.
    assert (report.records_skipped, report.records_new, report.records_known) == (117, 2, 2)


async def test_first_collection_keeps_what_comes_from_after_its_range() -> None:
    """Only what is before it is left out, as by the regular runs that go on from its end."""
    sink = RememberingSink()
    report = await read(Generous(), kept(), sink, first_collection=True)
    assert report.records_skipped == 1
    assert len(sink.rows) == 60


async def test_records_beyond_the_range_do_not_move_a_first_collection() -> None:
    """A source that delivers more than it was asked for proves nothing beyond the range."""
    storage = kept()
    await read(Generous(), storage, workers=2, first_collection=True)
    assert storage.stored["feed"].last_successful_timestamp == START + 9 * DAY


async def test_first_collection_of_a_whole_document_is_refused() -> None:
    """A source that is read whole has no windows."""
    source = Archive()
    source.overlap = None  # type: ignore[assignment]
    with pytest.raises(ConfigurationError, match="has no windows"):
        await read(source, kept(), first_collection=True)


def test_parts_that_touch_are_one() -> None:
    """However they come, the progress is the union of what is finished."""
    windows = list(TimeRange(START, START + 6 * DAY).windows(DAY))
    progress = Progress(TimeRange(START, START + 6 * DAY))
    for number in (4, 1, 5, 3):
        progress.finish(windows[number])
    assert progress.reached == START
    assert [(start - START).days for start, _ in progress.parts] == [1, 3]
    whole = TimeRange(START, START + 6 * DAY)
    assert [each.start for each in progress.left_of(whole)] == [START, START + 2 * DAY]
    progress.finish(windows[0])
    progress.finish(windows[2])
    assert (progress.reached, list(progress.left_of(whole))) == (START + 6 * DAY, [])


async def test_gaps_beyond_the_ledger_s_room_are_read_again() -> None:
    """A ledger is bounded; what it has no room for is not taken for durable."""
    storage, asked = kept(), TimeRange(START, START + 1000 * DAY)
    progress = StoredProgress(storage, "feed", asked, "b")
    windows = list(asked.windows(DAY))
    for window in windows[1::2]:
        progress.finish(window)
    await progress.finished(windows[0], None, 0)
    other = StoredProgress(storage, "feed", asked, "c")
    await other.read()
    assert len(other.parts) == MAX_PARTS + 1
    assert other.reached == START + 2 * DAY


@pytest.mark.parametrize("first_collection", [False, True])
async def test_versions_older_than_the_sinks_are_counted_over_all_windows(
    first_collection: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """They are told once, with the first of their times; to a first collection none went back."""

    class Old(Archive):
        """A source with a version of each day that is older than the sink's."""

        async def pages(self, start: datetime | None, until: datetime | None) -> Any:
            async for page in super().pages(start, until):
                yield Page([record(each.record_id, 5, "old") for each in page.records])

    sink, storage = LatestSink(), kept()
    for each in ("001", "002", "003"):
        sink.current[each] = record(each, 5_000, "new")
    report = await backfill(
        Old(), sink, storage, START, START + 3 * DAY, run_id="r", first_collection=first_collection
    )
    assert (report.windows, report.records_superseded) == (3, 3)
    assert caplog.text.count("delivered 3 records in an older version") == (not first_collection)
    assert (f"to before {at(5).isoformat()}" in caplog.text) == (not first_collection)
