"""The commit protocol: what storage, source and sink are asked, in which order, also on failure."""

from __future__ import annotations

import asyncio
import gc
import logging
import weakref
from collections.abc import AsyncIterator, Callable
from contextlib import nullcontext, suppress
from datetime import UTC, datetime, timedelta
from typing import Any, Self

import pytest

from ladon_storage.collection import lease as turn
from ladon_storage.collection.lateness import Lateness
from ladon_storage.collection.ledger import ExtractionResult
from ladon_storage.collection.protocols import Run
from ladon_storage.collection.records import Page
from ladon_storage.collection.run import Report, extract, run
from ladon_storage.errors import (
    CollectionError,
    ConfigurationError,
    InvalidResponseError,
    LadonStorageError,
    SinkError,
    SourceError,
    StorageConnectionError,
    StorageUnhealthyError,
    WatermarkConflictError,
)
from ladon_storage.testing.doubles import MemorySink, ScriptedSource, ScriptedStorage, at, record

LOST = StorageConnectionError("no answer")


class OutOfTime(asyncio.CancelledError):
    """A cancellation of a library's own, which no task was asked for, as Prefect's timeouts are."""


def now() -> datetime:
    return datetime(2026, 1, 1, tzinfo=UTC)


async def collected(
    source: ScriptedSource, sink: MemorySink, storage: ScriptedStorage, **options: Any
) -> Report:
    return await run(source, sink, storage, run_id="run-1", clock=now, **options)


async def test_run_asks_health_then_watermark_then_collects_then_writes_success() -> None:
    """The order of the protocol: nothing is promoted before it is durable."""
    storage, sink = ScriptedStorage(), MemorySink()
    source = ScriptedSource([lambda: storage.calls.append("page"), [record("1", 10)]])

    await collected(source, sink, storage)

    assert storage.calls == ["health", "get", "running", "page", "success"]
    assert sink.events == ["open", "write", "close"]


async def test_success_is_written_only_after_the_sink_was_left() -> None:
    """A sink that fails while it is closed fails the run: its records may not be durable."""

    class Unclosable(MemorySink):
        async def __aexit__(self, *_: object) -> None:
            raise SinkError("the last flush failed")

    storage = ScriptedStorage()
    with pytest.raises(SinkError, match="last flush"):
        await collected(ScriptedSource([[record("1", 10)]]), Unclosable(), storage)

    assert storage.calls == ["health", "get", "running", "failed"]
    assert storage.stored["feed"].last_successful_timestamp is None


@pytest.mark.parametrize("fails", [False, True])
async def test_objects_of_the_process_are_no_garbage_to_look_for_during_a_run(fails: bool) -> None:
    """They are set aside once many records were made, and looked at again afterwards."""
    seen: list[int] = []
    many = [record(str(number), 10) for number in range(1_000)]

    def look_first() -> None:
        seen.append(gc.get_freeze_count())

    def look() -> None:
        look_first()
        if fails:
            raise SourceError("the feed is gone")

    with pytest.raises(SourceError) if fails else nullcontext():
        source = ScriptedSource([many[:1], look_first, many, many[:1], look])
        await collected(source, MemorySink(), ScriptedStorage())

    assert seen[0] == 0 < seen[1]
    assert gc.get_freeze_count() == 0


async def test_page_of_a_source_that_failed_ends_with_its_run() -> None:
    """No cycle keeps it until garbage is searched: of many sources, many may fail."""

    class Document:
        """The parsed document from which the pages are."""

    kept: list[weakref.ref[Document]] = []

    class Failing(ScriptedSource):
        async def pages(
            self, start: datetime | None, until: datetime | None
        ) -> AsyncIterator[Page]:
            document = Document()
            kept.append(weakref.ref(document))
            yield Page([record("1", 10)])
            raise SourceError("the feed is gone")

    gc.disable()
    try:
        with suppress(SourceError):
            await collected(Failing(), MemorySink(), ScriptedStorage())
        await asyncio.sleep(0)  # the task that read it ends
        assert [each() for each in kept] == [None]
    finally:
        gc.enable()


async def test_source_whose_closing_looks_like_its_end_fails() -> None:
    """What fails in its middle is no complete reading, however it closes."""

    class Pages:
        def __init__(self) -> None:
            self.left = [Page([record("1", 10)])]

        def __aiter__(self) -> Self:
            return self

        async def __anext__(self) -> Page:
            if self.left:
                return self.left.pop()
            raise OSError("cut off")

        async def aclose(self) -> None:
            raise StopAsyncIteration

    class Odd(ScriptedSource):
        def pages(self, start: datetime | None, until: datetime | None) -> Any:
            return Pages()

    storage = ScriptedStorage()
    with pytest.raises(RuntimeError, match="while they closed"):
        await collected(Odd(), MemorySink(), storage)
    assert storage.calls[-1] == "failed"


@pytest.mark.parametrize("where", ["source", "sink", "storage"])
async def test_cancellation_from_within_fails_the_run(where: str) -> None:
    """Whatever runs many sources would take it for the end of a task that its caller cancelled."""
    lost = asyncio.CancelledError()
    source = ScriptedSource([[record("1", 10)], *([lost] if where == "source" else [])])
    sink = MemorySink(*([lost] if where == "sink" else []))
    storage = ScriptedStorage()
    if where == "storage":
        storage.plan("success", lost)

    with pytest.raises(CollectionError, match="a cancellation that was not requested"):
        await collected(source, sink, storage)

    assert storage.calls[-1] == "failed"
    assert "not requested" in (storage.stored["feed"].error_message or "")


async def test_objects_that_the_program_set_aside_stay_so() -> None:
    """What a server did before it forked is its own."""
    gc.freeze()
    try:
        await collected(ScriptedSource([[record("1", 10)]]), MemorySink(), ScriptedStorage())
        assert gc.get_freeze_count() > 0
    finally:
        gc.unfreeze()


async def test_report_says_what_the_run_did() -> None:
    """The report has the counts, the range that was asked for, and the watermark on both sides."""
    storage = ScriptedStorage()
    storage.put("feed", status="success", last_successful_timestamp=at(10))
    source = ScriptedSource(
        [[record("1", 9), record("1", 9)], [], [record("2", 20)]], overlap=timedelta(minutes=5)
    )

    report = await collected(source, MemorySink(), storage)

    assert report.model_dump(exclude={"seconds"}) == {
        "source_id": "feed",
        "run_id": "run-1",
        "backfill": False,
        "skipped": None,
        "sink_behind": None,
        "start": at(5),
        "until": None,
        "pages": 3,
        "records_delivered": 3,
        "records_new": 2,
        "records_changed": 0,
        "records_known": 1,
        "records_quarantined": 0,
        "records_skipped": 0,
        "records_in_future": 0,
        "records_removed": 0,
        "records_superseded": 0,
        "records_read": 3,
        "records_written": 2,
        "reasons": {},
        "completeness": None,
        "total": None,
        "gap": None,
        "lateness": Lateness.of([now() - at(9), now() - at(20)]).model_dump(),
        "behind_seconds": 60.0,
        "watermark_before": at(10),
        "watermark_after": at(20),
    }
    assert report.seconds >= 0


async def test_each_write_carries_the_version_tag_of_the_one_before() -> None:
    """Writes are fenced from the watermark that was read up to the success."""
    storage = ScriptedStorage()
    storage.put("feed", status="success", last_successful_timestamp=at(10))

    await collected(ScriptedSource([[record("1", 11)]]), MemorySink(), storage)

    assert [(each["status"], each["if_match"]) for each in storage.updates] == [
        ("running", '"1"'),
        ("success", '"2"'),
    ]
    assert {each["run_id"] for each in storage.updates} == {"run-1"}
    assert storage.updates[0]["timestamp"] == now()
    assert storage.updates[1]["records_collected"] == 1


async def test_service_without_version_tags_is_written_without_fence() -> None:
    """The base contract is enough for a run."""
    storage = ScriptedStorage(etags=False)

    await collected(ScriptedSource([[record("1", 11)]]), MemorySink(), storage)

    assert [each["if_match"] for each in storage.updates] == [None, None]
    assert storage.stored["feed"].last_successful_timestamp == at(11)


async def test_source_never_collected_is_read_from_its_beginning() -> None:
    """No watermark, and one that no run has moved yet, both mean everything that the source has."""
    storage = ScriptedStorage()
    source = ScriptedSource([SourceError("down")], [[record("1", 10)]])

    with pytest.raises(SourceError):
        await collected(source, MemorySink(), storage)
    await collected(source, MemorySink(), storage)

    assert source.ranges == [(None, None), (None, None)]


async def test_overlap_before_the_first_year_reads_everything() -> None:
    """An operator may reset a watermark to the beginning of time."""
    storage = ScriptedStorage()
    storage.put("feed", status="success", last_successful_timestamp=datetime(1, 1, 1, tzinfo=UTC))
    source = ScriptedSource([[record("1", 10)]], overlap=timedelta(hours=1))

    await collected(source, MemorySink(), storage)

    assert source.ranges == [(None, None)]


async def test_source_without_overlap_is_read_whole_each_time() -> None:
    """A catalogue whose entries change in place has no time before which nothing changes."""
    storage = ScriptedStorage()
    storage.put("feed", status="success", last_successful_timestamp=at(10))
    source = ScriptedSource([[record("1", 10)]], overlap=None)

    await collected(source, MemorySink(), storage)

    assert source.ranges == [(None, None)]


async def test_first_collection_of_an_empty_source_succeeds_and_skips_nothing_later() -> None:
    """An empty feed is no failure, and the timestamp that a success needs hides no late record."""
    storage, sink = ScriptedStorage(), MemorySink()
    old = record("old", datetime(1601, 1, 1, tzinfo=UTC))
    source = ScriptedSource([], [[old]], overlap=timedelta(hours=1))

    first = await collected(source, sink, storage)
    second = await collected(source, sink, storage)

    assert first.watermark_before is None
    assert first.watermark_after is None  # never collected, to people
    assert source.ranges[1] == (None, None)
    assert sink.ids == ["old"]
    assert second.watermark_after == old.timestamp
    assert storage.stored["feed"].status == "success"


async def test_unhealthy_service_in_production_ends_the_run_before_anything_is_collected() -> None:
    """Nothing is read, collected or written when the health check raises."""
    storage, sink = ScriptedStorage(), MemorySink()
    storage.plan("health", StorageUnhealthyError("unhealthy", 503))
    source = ScriptedSource([[record("1", 10)]])

    with pytest.raises(StorageUnhealthyError):
        await collected(source, sink, storage)

    assert storage.calls == ["health"]
    assert (source.ranges, sink.events) == ([], [])


async def test_unhealthy_service_in_development_does_not_end_the_run() -> None:
    """A health check that only says False lets the run try."""
    storage = ScriptedStorage()
    storage.healthy = False

    report = await collected(ScriptedSource([[record("1", 10)]]), MemorySink(), storage)

    assert report.watermark_after == at(10)


async def test_outage_while_reading_is_not_a_missing_watermark() -> None:
    """A watermark that could not be read fails the run: it must not start from the beginning."""
    storage, sink = ScriptedStorage(), MemorySink()
    storage.put("feed", status="success", last_successful_timestamp=at(10))
    storage.plan("get", LOST)
    source = ScriptedSource([[record("1", 10)]])

    with pytest.raises(StorageConnectionError):
        await collected(source, sink, storage)

    assert (source.ranges, sink.events, storage.updates) == ([], [], [])


async def test_success_without_a_timestamp_is_not_a_missing_watermark() -> None:
    """A broken watermark fails the run and is left as it is, for whoever repairs it."""
    storage = ScriptedStorage()
    storage.put("feed", status="success", last_successful_timestamp=None)

    with pytest.raises(InvalidResponseError, match=r"'feed'.*repair or delete"):
        await collected(ScriptedSource([[record("1", 10)]]), MemorySink(), storage)

    assert storage.updates == []


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (SourceError("the feed\n  is down", "feed"), "SourceError: the feed is down"),
        (SinkError("the disk is full", "feed"), "SinkError: the disk is full"),
        (ValueError(), "ValueError"),
        (OutOfTime(), "cancelled"),
        (SystemExit(1), "SystemExit: 1"),
        (KeyboardInterrupt(), "KeyboardInterrupt"),
    ],
    ids=lambda value: type(value).__name__,
)
async def test_any_failure_is_written_and_goes_on_unchanged(
    error: BaseException, message: str
) -> None:
    """`failed` has the error in one line, is fenced, and leaves the last success alone."""
    storage = ScriptedStorage()
    storage.put("feed", status="success", last_successful_timestamp=at(5))

    async def fail(*_: Any, **__: Any) -> ExtractionResult:
        raise error

    with pytest.raises(type(error)) as caught:
        await collected(ScriptedSource(), MemorySink(), storage, extract=fail)

    assert caught.value is error
    assert not getattr(error, "__notes__", [])
    assert storage.updates[-1] == {
        "status": "failed",
        "timestamp": now(),
        "if_match": '"2"',
        "error_message": message,
        "records_collected": None,
        "run_id": "run-1",
    }
    assert storage.stored["feed"].last_successful_timestamp == at(5)


async def test_long_error_is_cut_to_what_the_contract_takes() -> None:
    """An error of any length can be written."""
    storage = ScriptedStorage()

    with pytest.raises(SourceError):
        await collected(ScriptedSource([SourceError("x" * 100_000)]), MemorySink(), storage)

    assert len(storage.updates[-1]["error_message"]) == 2_000


async def test_failing_to_write_running_fails_the_run_before_it_collects() -> None:
    """A run that cannot say that it runs collects nothing."""
    storage, sink = ScriptedStorage(), MemorySink()
    storage.plan("running", LOST)
    source = ScriptedSource([[record("1", 10)]])

    with pytest.raises(StorageConnectionError):
        await collected(source, sink, storage)

    assert (source.ranges, sink.events) == ([], [])
    assert storage.calls[-1] == "failed"


async def test_failure_that_cannot_be_written_does_not_replace_the_original(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The original error is raised, with a note and a log record about the second one."""
    storage = ScriptedStorage()
    storage.plan("failed", LOST)
    original = SourceError("the feed is down", "feed")

    with caplog.at_level(logging.ERROR), pytest.raises(SourceError) as caught:
        await collected(ScriptedSource([original]), MemorySink(), storage)

    assert caught.value is original
    assert original.__notes__ == [
        "That the run failed could not be written to its watermark: "
        "StorageConnectionError: no answer"
    ]
    [logged] = caplog.records
    assert logged.source_id == "feed"  # type: ignore[attr-defined]  # of `extra`
    assert "StorageConnectionError: no answer" in logged.getMessage()
    assert logged.exc_info


async def test_writing_a_failure_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A service that never answers cannot keep a failed run from ending."""
    monkeypatch.setattr(turn, "FAILURE_SECONDS", 0.02)
    storage = ScriptedStorage()
    storage.plan("failed", asyncio.Event().wait)

    with pytest.raises(SourceError) as caught:
        await collected(ScriptedSource([SourceError("down")]), MemorySink(), storage)

    assert "no answer within 0.02 s" in caught.value.__notes__[0]


async def test_cancelling_again_does_not_cut_the_failure_short() -> None:
    """Whoever cancels a run twice still finds it recorded as failed."""
    storage = ScriptedStorage()
    reached, release, blocked = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def slowly() -> None:
        reached.set()
        await release.wait()

    storage.plan("failed", slowly)
    source = ScriptedSource([blocked.set, asyncio.Event().wait])
    running = asyncio.create_task(collected(source, MemorySink(), storage))
    await asyncio.wait_for(blocked.wait(), 5)
    running.cancel()
    await asyncio.wait_for(reached.wait(), 5)
    running.cancel()
    await asyncio.sleep(0)
    release.set()

    with pytest.raises(asyncio.CancelledError):
        await running
    assert storage.stored["feed"].status == "failed"
    assert storage.stored["feed"].error_message == "cancelled"


async def test_cancelled_run_closes_source_and_sink_first() -> None:
    """When `failed` is written nothing of the run is under way any more."""
    storage, sink, blocked = ScriptedStorage(), MemorySink(), asyncio.Event()
    source = ScriptedSource([[record("1", 10)], blocked.set, asyncio.Event().wait])
    seen: list[tuple[int, str]] = []
    storage.plan("failed", lambda: seen.append((source.closed, sink.events[-1])))
    running = asyncio.create_task(collected(source, sink, storage))
    await asyncio.wait_for(blocked.wait(), 5)
    running.cancel()

    with pytest.raises(asyncio.CancelledError):
        await running
    assert seen == [(1, "close")]


class Hiding(MemorySink):
    """A sink that says of any error that it handled it."""

    async def __aexit__(self, *_: object) -> bool:  # type: ignore[override]
        return True


async def test_sink_hides_no_error_when_it_is_left() -> None:
    """Its own error fails the run, and is what the watermark says."""
    storage, source = ScriptedStorage(), ScriptedSource([[record("1", 10)]])

    with pytest.raises(OSError, match="disk is full"):
        await collected(source, Hiding(OSError("disk is full")), storage)
    assert storage.updates[-1]["error_message"] == "OSError: disk is full"


async def test_sink_hides_no_cancellation_when_it_is_left() -> None:
    """A run that is cancelled ends by that."""
    blocked = asyncio.Event()
    source = ScriptedSource([[record("1", 10)], blocked.set, asyncio.Event().wait])
    running = asyncio.create_task(collected(source, Hiding(), ScriptedStorage()))
    await asyncio.wait_for(blocked.wait(), 5)
    running.cancel()

    with pytest.raises(asyncio.CancelledError):
        await running


async def test_closing_the_coroutine_writes_nothing() -> None:
    """A coroutine that is being closed cannot await, and does not try."""
    storage = ScriptedStorage()
    source = ScriptedSource()

    class Pause:
        def __await__(self) -> Any:
            yield

    async def hang(*_: Any, **__: Any) -> ExtractionResult:
        await Pause()
        return ExtractionResult()

    coroutine = collected(source, MemorySink(), storage, extract=hang)
    coroutine.send(None)
    coroutine.close()

    assert storage.calls == ["health", "get", "running"]


def faster(storage: ScriptedStorage) -> Callable[[], None]:
    return lambda: storage.put("feed", status="running", last_successful_timestamp=at(7))


@pytest.mark.parametrize("status", ["running", "success"])
async def test_conflict_fails_the_run_without_overwriting_the_winner(status: str) -> None:
    """Another run that was faster keeps its watermark: not even `failed` is written over it."""
    storage = ScriptedStorage()
    storage.put("feed", status="success", last_successful_timestamp=at(5))
    storage.plan(status, faster(storage))

    with pytest.raises(WatermarkConflictError) as caught:
        await collected(ScriptedSource([[record("1", 10)]]), MemorySink(), storage)

    assert caught.value.status == 412
    assert storage.calls[-1] == status
    assert storage.stored["feed"].status == "running"
    assert storage.stored["feed"].last_successful_timestamp == at(7)


async def test_failure_of_a_run_that_was_overtaken_is_not_written_over_the_winner() -> None:
    """The write of a failure is fenced too; its conflict is only a note."""
    storage = ScriptedStorage()
    storage.plan("failed", faster(storage))

    with pytest.raises(SourceError) as caught:
        await collected(ScriptedSource([SourceError("down")]), MemorySink(), storage)

    assert "WatermarkConflictError" in caught.value.__notes__[0]
    assert storage.stored["feed"].status == "running"


async def test_failing_sink_leaves_the_watermark_and_the_next_run_brings_all() -> None:
    """A page that was not stored fails the run, and is read again."""
    storage, sink = ScriptedStorage(), MemorySink(None, SinkError("disk full", "feed"))
    pages: list[Any] = [[record("1", 1)], [record("2", 2)]]
    source = ScriptedSource(pages, pages)

    with pytest.raises(SinkError):
        await collected(source, sink, storage)
    assert storage.stored["feed"].last_successful_timestamp is None
    report = await collected(source, sink, storage)

    assert sink.ids == ["1", "2"]
    assert (report.records_written, report.watermark_after) == (1, at(2))


async def test_backfill_reads_its_range_and_leaves_the_watermark_alone() -> None:
    """A backfill writes no watermark, and its report says what it was."""
    storage, sink = ScriptedStorage(), MemorySink()
    source = ScriptedSource([[record("1", 1)]], overlap=None)

    report = await collected(
        source,
        sink,
        storage,
        since=at(0).replace(tzinfo=None),  # naive is UTC
        until=at(20),
    )

    assert storage.calls == ["health", "get"]
    assert source.ranges == [(at(0), at(20))]
    assert report.backfill
    assert (report.start, report.until) == (at(0), at(20))
    assert (report.watermark_before, report.watermark_after) == (None, None)
    assert report.records_written == 1


@pytest.mark.parametrize("run_id", ["x" * 256, "\ud800", 7])
async def test_run_that_cannot_be_recorded_is_refused(run_id: Any) -> None:
    """Its failure could not be written either, so nothing is asked of anybody."""
    storage = ScriptedStorage()

    with pytest.raises(ConfigurationError, match="run_id should be a text of at most 255"):
        await run(ScriptedSource(), MemorySink(), storage, run_id=run_id)
    assert storage.calls == []


@pytest.mark.parametrize("bound", ["since", "until"])
async def test_one_bound_makes_a_backfill(bound: str) -> None:
    """A range that is open on one side is a backfill as well."""
    storage = ScriptedStorage()
    source = ScriptedSource([[record("1", 1)]])

    report = await collected(source, MemorySink(), storage, **{bound: at(3)})

    assert report.backfill
    assert source.ranges == [(at(3), None) if bound == "since" else (None, at(3))]


async def test_failing_backfill_writes_nothing() -> None:
    """A backfill that fails does not mark the source as failed."""
    storage = ScriptedStorage()

    with pytest.raises(SourceError):
        await collected(ScriptedSource([SourceError("x")]), MemorySink(), storage, since=at(1))

    assert storage.updates == []


async def test_empty_range_is_refused_before_anything_is_asked() -> None:
    """A backfill from a later instant than its end is a mistake, not an empty success."""
    storage = ScriptedStorage()

    with pytest.raises(ConfigurationError, match="is empty"):
        await collected(ScriptedSource(), MemorySink(), storage, since=at(2), until=at(2))

    assert storage.calls == []


async def test_records_from_the_future_are_counted_and_warned_of(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """None moves the watermark; those within the allowed skew are not reported."""
    limit = now() + timedelta(minutes=5)
    pages: list[Any] = [
        [record("0", now()), record("1", limit), record("2", limit + timedelta(microseconds=1))],
        [record("3", limit + timedelta(days=1))],
    ]

    outcome = await extract(ScriptedSource(pages), MemorySink(), Run(clock=now))

    assert (outcome.candidate, outcome.records_in_future) == (now(), 2)
    assert outcome.records_written == 4
    assert "'feed' from the future: 2;" in caplog.text


async def test_time_is_asked_for_each_page() -> None:
    """Records that came up during a long run are not from the future, but for the next run."""
    times = iter([at(0), at(60)])
    source = ScriptedSource([[record("1", 0)], [record("2", 60)]])

    outcome = await extract(source, MemorySink(), Run(clock=lambda: next(times)))

    assert (outcome.candidate, outcome.records_in_future) == (at(0), 0)


async def test_candidate_needs_no_order() -> None:
    """The greatest timestamp counts, wherever in the pages it is."""
    source = ScriptedSource([[record("1", 9), record("2", 3)], [record("3", 5)]])

    outcome = await extract(source, MemorySink(), Run(clock=now))

    assert outcome.candidate == at(9)


async def test_source_that_is_no_generator_can_be_collected() -> None:
    """Any asynchronous iterator of pages will do."""
    generator = ScriptedSource([[record("1", 1)]]).pages(None, None)

    class Pages:
        def __aiter__(self) -> Pages:
            return self

        async def __anext__(self) -> Any:
            return await anext(generator)

    class Plain:
        source_id = "feed"
        overlap = timedelta(0)

        def pages(self, start: datetime | None, until: datetime | None) -> Any:
            return Pages()

    outcome = await extract(Plain(), MemorySink(), Run(clock=now))

    assert outcome.records_written == 1


def test_errors_of_the_collection_are_ours() -> None:
    """One `except LadonStorageError` catches what a collection raises on purpose."""
    assert issubclass(SourceError, LadonStorageError)
    assert issubclass(SinkError, LadonStorageError)
