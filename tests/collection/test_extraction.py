"""The way from a source into a sink: where it starts, what it promotes, and what makes it fail."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
import traceback
import weakref
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, cast

import pytest

from ladon_storage.collection import extraction as passage
from ladon_storage.collection import prefetch as ahead
from ladon_storage.collection import resolve_secret, resume
from ladon_storage.collection.ledger import Gap, SinkBehind
from ladon_storage.collection.protocols import Limits, Position
from ladon_storage.collection.records import Columns, Page, Record, Reject
from ladon_storage.collection.run import Report, run
from ladon_storage.collection.sharing import SharedSink
from ladon_storage.errors import SinkError, SourceError, StorageConnectionError
from ladon_storage.models import EMPTY_WATERMARK
from ladon_storage.sinks.worker import WorkerThread
from ladon_storage.testing.doubles import (
    MemorySink,
    RememberingSink,
    ScriptedSource,
    ScriptedStorage,
    Step,
    at,
    record,
)

NOW = at(24 * 60)


class Ordered(ScriptedSource):
    """A source whose requests ask for the order."""

    ordered = True
    order_guaranteed = True


class World:
    """Be a storage and a sink that several runs of one source meet."""

    def __init__(self, sink: MemorySink | None = None) -> None:
        self.storage = ScriptedStorage(now=lambda: NOW)
        self.sink = RememberingSink() if sink is None else sink
        self.runs = 0
        self.source: ScriptedSource = ScriptedSource()

    async def run(
        self, *pages: Step, kind: type[ScriptedSource] = ScriptedSource, **options: Any
    ) -> Report:
        self.runs += 1
        overlap = options.pop("overlap", timedelta(0))
        self.source = kind(list(pages), overlap=overlap)
        for name in ("retention", "full_snapshot"):
            if name in options:
                setattr(self.source, name, options.pop(name))
        run_id = f"run-{self.runs}"
        return await run(
            self.source, self.sink, self.storage, run_id=run_id, clock=lambda: NOW, **options
        )

    @property
    def asked_from(self) -> datetime | None:
        return self.source.ranges[0][0]

    @property
    def position(self) -> Position | None:
        assert isinstance(self.sink, RememberingSink)
        return self.sink.positions.get("feed")

    @property
    def watermark(self) -> datetime | None:
        return self.storage.stored["feed"].last_successful_timestamp

    @property
    def checkpoints(self) -> list[datetime]:
        """The instants that were promoted, the last one by the end of the run."""
        return [each["timestamp"] for each in self.storage.updates if each["status"] == "success"]


@pytest.fixture
def every_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a sink that remembers be checkpointed after each page, as one that does not is."""
    monkeypatch.setattr(ahead, "GATHER_SECONDS", 0.0)
    monkeypatch.setattr(passage, "CHECKPOINT_SECONDS", 0.0)


# The position


async def test_position_is_written_with_the_last_page_of_an_unordered_source() -> None:
    """Before that nobody knows what is still to come."""
    world = World()
    await world.run([record("2", 20)], [record("1", 10)])
    assert isinstance(world.sink, RememberingSink)
    assert world.sink.noted == [None, None, Position(timestamp=at(20), run_id="run-1")]


async def test_position_is_written_with_each_page_of_an_ordered_source() -> None:
    """It is part of the page's transaction, so that it never says more than what is durable."""
    world = World()
    await world.run([record("1", 10)], [record("2", 20)], kind=Ordered)
    assert isinstance(world.sink, RememberingSink)
    assert world.sink.noted == [
        Position(timestamp=at(minute), run_id="run-1") for minute in (10, 20)
    ]


async def test_run_without_news_writes_nothing_to_the_sink() -> None:
    """An empty run costs no transaction."""
    world = World()
    await world.run([record("1", 10)])
    assert isinstance(world.sink, RememberingSink)
    before = len(world.sink.noted)
    await world.run()
    assert len(world.sink.noted) == before


async def test_run_goes_on_from_the_sink_after_a_lost_success() -> None:
    """What the sink has from a run that did not end is not collected again."""
    world = World()
    world.storage.plan("success", StorageConnectionError("no answer"))
    with pytest.raises(StorageConnectionError):
        await world.run([record("1", 10)])
    report = await world.run(overlap=timedelta(minutes=2))
    assert world.asked_from == at(8)
    assert (report.watermark_before, report.watermark_after) == (None, at(10))


async def test_run_goes_on_from_the_sink_after_a_crash_in_the_middle() -> None:
    """An ordered source is read from the page that was durable last."""
    world = World()
    await world.run([record("1", 10)])
    with pytest.raises(SourceError):
        await world.run([record("2", 20)], [record("3", 30)], SourceError("down"), kind=Ordered)
    await world.run([record("4", 40)], kind=Ordered)
    assert world.asked_from == at(30)
    assert world.watermark == at(40)


async def test_crash_of_an_unordered_source_starts_over() -> None:
    """What is durable of it promises nothing about what was not read."""
    world = World()
    await world.run([record("1", 10)])
    with pytest.raises(SourceError):
        await world.run([record("3", 30)], SourceError("down"))
    await world.run([record("2", 20), record("3", 30)])
    assert world.asked_from == at(10)


async def test_dropped_sink_is_filled_from_the_beginning(caplog: pytest.LogCaptureFixture) -> None:
    """A watermark is no proof that this sink has anything."""
    world = World()
    await world.run([record("1", 10)])
    world.sink = RememberingSink()
    report = await world.run([record("1", 10), record("2", 20)])
    assert world.asked_from is None
    assert "has nothing of source 'feed'" in caplog.text
    assert report.sink_behind == SinkBehind(end=at(10))
    assert (world.sink.ids, report.watermark_after) == (["1", "2"], at(20))


async def test_restored_sink_is_filled_from_its_own_position(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A sink that is behind the watermark leaves no hole, and the watermark does not go back."""
    world = World()
    await world.run([record("1", 10)])
    assert isinstance(world.sink, RememberingSink)
    backup = dict(world.sink.positions)
    await world.run([record("2", 20)])
    world.sink.positions = backup
    report = await world.run([record("1", 10)], overlap=timedelta(minutes=1))
    assert world.asked_from == at(9)
    assert "restored from a backup" in caplog.text
    assert report.watermark_after == at(20)
    assert report.sink_behind == SinkBehind(start=at(10), end=at(20))
    report = await world.run()
    assert (world.asked_from, report.sink_behind) == (at(20), None)


async def test_filling_a_restored_sink_may_take_several_runs() -> None:
    """What a run that fails has filled is not promoted beyond what is durable."""
    world = World()
    await world.run([record("1", 10)])
    assert isinstance(world.sink, RememberingSink)
    backup = dict(world.sink.positions)
    await world.run([record("3", 30)])
    world.sink.positions = backup
    with pytest.raises(SourceError):
        await world.run([record("2", 20)], SourceError("down"), kind=Ordered)
    assert world.watermark == at(30)
    await world.run([record("3", 30)], kind=Ordered)
    assert world.asked_from == at(20)
    assert world.position == Position(timestamp=at(30), watermark=at(30), run_id="run-4")


async def test_watermark_that_an_operator_moved_back_wins() -> None:
    """What is asked for again is read again, although the sink has it, also after a crash."""
    world = World()
    await world.run([record("1", 10)])
    await world.run([record("2", 20)])
    world.storage.put(
        "feed", status="success", last_successful_timestamp=at(10), last_run_timestamp=NOW
    )
    with pytest.raises(SourceError):
        await world.run(SourceError("down"))
    assert world.asked_from == at(10)
    await world.run([record("2", 20)])
    assert world.asked_from == at(10)
    assert world.watermark == at(20)


async def test_watermark_that_was_moved_after_a_failure_wins() -> None:
    """An operator who goes back further than the run that failed is heard."""
    world = World()
    await world.run([record("1", 10)])
    world.storage.plan("success", StorageConnectionError("no answer"))
    with pytest.raises(StorageConnectionError):
        await world.run([record("2", 20)])
    world.storage.put("feed", status="failed", last_successful_timestamp=at(5))
    await world.run([record("2", 20)])
    assert world.asked_from == at(5)


@pytest.mark.parametrize("error", [SinkError("no disk"), KeyboardInterrupt()])
async def test_watermark_moved_back_to_where_the_last_run_began_wins(error: BaseException) -> None:
    """Also when the run that was to read it again ended before it wrote anything to the sink."""
    world = World()
    await world.run([record("1", 10)])
    await world.run([record("2", 20)])
    before = world.storage.stored["feed"].model_dump()
    before |= {"last_successful_timestamp": at(10), "run_id": None}
    world.storage.put(before.pop("source_id"), **before)
    world.sink.script.append(error)
    with pytest.raises(type(error)):
        await world.run([record("2", 20)])
    await world.run([record("2", 20)])
    assert world.asked_from == at(10)


async def test_run_that_goes_on_after_a_crash_and_crashes_too_is_gone_on_from() -> None:
    """The position becomes its own, so that the third run has what the first made durable."""
    world = World()
    for _ in range(2):
        with pytest.raises(SourceError):
            await world.run([record("1", 10)], SourceError("down"), kind=Ordered)
    assert world.position == Position(timestamp=at(10), run_id="run-2")
    await world.run(kind=Ordered)
    assert world.asked_from == at(10)


async def test_deleted_watermark_means_everything_again() -> None:
    """A sink that remembers does not keep an operator from starting over, also after a crash."""
    world = World()
    await world.run([record("1", 10)])
    del world.storage.stored["feed"]
    with pytest.raises(SourceError):
        await world.run(SourceError("down"))
    assert world.asked_from is None
    await world.run([record("1", 10)])
    assert world.asked_from is None
    assert world.position == Position(timestamp=at(10), run_id="run-3")


async def test_backfill_moves_no_position() -> None:
    """A past range says nothing about what is durable up to now."""
    world = World()
    await world.run([record("1", 10)])
    before = world.position
    await world.run([record("2", 90)], since=at(80), until=at(100))
    assert world.position == before


# Order and checkpoints


@pytest.mark.parametrize("sink", [MemorySink, RememberingSink])
@pytest.mark.usefixtures("every_page")
async def test_ordered_source_is_checkpointed_after_each_page(sink: type[MemorySink]) -> None:
    """The source stays held: each success is followed by running again."""
    world = World(sink())
    pages: list[Step] = [[record(str(number), number)] for number in (1, 2, 3)]
    await world.run(*pages, kind=Ordered)
    assert world.checkpoints == [at(1), at(2), at(3), at(3)]
    statuses = [each["status"] for each in world.storage.updates]
    assert statuses == ["running", *["success", "running"] * 3, "success"]


async def test_sink_that_remembers_is_not_checkpointed_for_each_page() -> None:
    """It needs none, and a service with thousands of sources has other things to do."""
    world = World()
    await world.run(*[[record(str(number), number)] for number in range(9)], kind=Ordered)
    assert world.checkpoints == [at(8)]


async def test_unordered_source_is_not_checkpointed() -> None:
    """A sink that does not remember changes nothing about that."""
    world = World(MemorySink())
    await world.run([record("2", 20)], [record("1", 10)])
    assert world.checkpoints == [at(20)]


@pytest.mark.usefixtures("every_page")
async def test_checkpoint_never_goes_back() -> None:
    """The overlap's records are below the watermark, and promote nothing."""
    world = World()
    await world.run([record("1", 10)])
    await world.run([record("1", 8)], [record("2", 9)], [record("3", 11)], kind=Ordered)
    assert world.checkpoints == [at(10), at(11), at(11)]


@pytest.mark.usefixtures("every_page")
async def test_source_that_breaks_its_order_loses_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """The pages after the break are read before anything more is promoted, also after a crash."""
    world = World()
    pages: list[Step] = [[record("4", 4)], [record("8", 8)], [record("5", 5)]]
    with pytest.raises(SourceError):
        await world.run(*pages, SourceError("down"), kind=Ordered)
    assert "declares that its pages come in order" in caplog.text
    assert world.watermark == at(8)
    await world.run(*pages, [record("6", 6)], kind=Ordered)
    assert world.asked_from is None
    assert world.sink.ids == ["4", "5", "6", "8"]
    assert world.watermark == at(8)
    assert world.position
    assert world.position.timestamp == at(8)


@pytest.mark.usefixtures("every_page")
async def test_position_of_refuted_settings_does_not_count() -> None:
    """Other settings would go on behind records that these left out, though a checkpoint stands."""
    world = World()
    await world.run([record("1", 1)], kind=Ordered)
    refuted = SourceError("two rows with one id", refutes=True)
    with pytest.raises(SourceError, match="two rows"):
        await world.run([record("4", 4)], [record("8", 8)], refuted, kind=Ordered)
    assert world.watermark == at(8)

    await world.run([record("a5", 5)], kind=Ordered)

    assert world.asked_from == at(1)
    assert world.sink.ids == ["1", "4", "8", "a5"]


async def test_settings_refuted_before_the_first_page_leave_the_sink_alone() -> None:
    """Nothing was promoted under them."""
    world = World()
    with pytest.raises(SourceError):
        await world.run(SourceError("two rows with one id", refutes=True), kind=Ordered)
    assert world.position is None


async def test_order_within_a_page_is_nobodys_business() -> None:
    """A page is durable whole, or not at all."""
    world = World(MemorySink())
    await world.run([record("2", 2), record("1", 1)], [record("3", 3)], kind=Ordered)
    assert world.checkpoints == [at(2), at(3), at(3)]


async def test_tie_between_two_pages_is_in_order() -> None:
    """Equal times may go on over any number of pages."""
    world = World(MemorySink())
    await world.run([record("1", 1)], [record("2", 1)], [record("3", 3)], kind=Ordered)
    assert world.checkpoints == [at(1), at(3), at(3)]


@pytest.mark.usefixtures("every_page")
async def test_record_from_the_future_breaks_no_order() -> None:
    """It is stored, and neither promoted nor compared with."""
    world = World()
    pages: list[Step] = [[record("1", 1)], [record("9", NOW + timedelta(days=1))], [record("2", 2)]]
    report = await world.run(*pages, kind=Ordered)
    assert world.checkpoints == [at(1), at(2), at(2)]
    assert report.records_in_future == 1


async def test_future_skew_decides_what_is_reported_and_nothing_else() -> None:
    """A record that is ahead of the clock moves no watermark, reported or not."""
    ahead = NOW + timedelta(minutes=4)
    for skew, reported in ((timedelta(0), 1), (timedelta(minutes=5), 0)):
        world = World()
        report = await world.run(
            [record("0", 5), record("1", ahead)], limits=Limits(future_skew=skew)
        )
        assert (world.watermark, report.records_in_future) == (at(5), reported)


async def test_sink_is_believed_beyond_the_last_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a run made durable after a checkpoint, before it died, is not collected again."""
    monkeypatch.setattr(passage, "CHECKPOINT_SECONDS", 0.0)
    no_more = partial(monkeypatch.setattr, passage, "CHECKPOINT_SECONDS", 3_600.0)
    world = World(RememberingSink(None, no_more))
    with pytest.raises(SourceError, match="down"):
        await world.run([record("1", 10)], [record("2", 20)], SourceError("down"), kind=Ordered)
    assert world.watermark == at(10)
    await world.run([record("3", 30)], kind=Ordered)
    assert world.asked_from == at(20)


# Reading ahead


async def test_what_comes_while_the_sink_writes_is_written_at_once() -> None:
    """Source and sink work at the same time, and a slow sink makes fewer and larger commits."""
    fetched = asyncio.Event()
    sink = RememberingSink(fetched.wait)
    world = World(sink)
    report = await world.run(
        [record("1", 1)], [record("2", 2)], [record("3", 3)], fetched.set, [record("4", 4)]
    )
    assert world.sink.ids == ["1", "2", "3", "4"]
    assert report.pages == 4
    assert sink.sizes == [1, 3]


async def test_page_of_a_slow_source_is_written_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """No page waits for another one that may come much later."""
    monkeypatch.setattr(ahead, "QUICK_SECONDS", 0.0)
    sink = RememberingSink()
    await World(sink).run([record("1", 1)], [record("2", 2)], [record("3", 3)])
    assert sink.sizes == [1, 1, 1]


async def test_pages_that_come_quickly_are_one_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    """A commit costs as much as hundreds of records; the end of the source ends the wait."""
    monkeypatch.setattr(ahead, "QUICK_SECONDS", 60.0)
    monkeypatch.setattr(ahead, "GATHER_SECONDS", 60.0)
    sink = RememberingSink()
    await World(sink).run([record("1", 1)], [record("2", 2)], [record("3", 3)])
    assert sink.sizes == [1, 2]


async def test_source_waits_when_enough_is_read_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow a sink is, memory does not grow with what the source has."""
    big = [record(str(number), number, value="x" * 1_000) for number in range(10)]
    monkeypatch.setattr(ahead, "MAX_PREFETCH_CHARS", 3_000)
    fetched: list[int] = []

    async def write_slowly() -> None:
        for _ in range(100):
            await asyncio.sleep(0)
        assert len(fetched) == 4  # the one that is written, and three that wait

    sink = RememberingSink(write_slowly)
    steps = [step for each in big for step in (lambda: fetched.append(1), [each])]
    await World(sink).run(*steps)
    assert len(fetched) == 10
    assert max(sink.sizes) == 3


@pytest.mark.parametrize("is_shared", [False, True])
@pytest.mark.parametrize(("most", "sizes"), [(5_000, [1, 5, 5]), (2_000, [1, 2, 2, 2, 2, 2])])
async def test_sink_has_as_much_at_once_as_it_asks_for(
    most: int, sizes: list[int], is_shared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One large commit into an index costs less than two; another sink has memory of its own."""
    for name in ("QUICK_SECONDS", "GATHER_SECONDS"):
        monkeypatch.setattr(ahead, name, 60.0)
    monkeypatch.setattr(ahead, "MAX_PREFETCH_CHARS", 3_000)
    pages = [[record(str(number), number, value="x" * 1_000)] for number in range(11)]
    sink = RememberingSink()
    sink.batch_characters = most  # type: ignore[attr-defined]
    await World(cast(MemorySink, SharedSink(sink)) if is_shared else sink).run(*pages)
    assert sink.sizes == sizes


async def test_page_that_is_stored_is_not_held_while_the_next_one_is_awaited(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is durable leaves its memory to what follows: a run holds one group, not two."""
    monkeypatch.setattr(ahead, "QUICK_SECONDS", 0.0)
    held: list[bool] = []
    sink = RememberingSink()

    class Page1(list[Any]):
        """A list that can be referred to weakly."""

    class Watching(ScriptedSource):
        """A source that looks, before its last page, whether its first one still exists."""

        async def pages(self, start: Any, until: Any) -> Any:
            first = Page1([record("1", 1)])
            reference = weakref.ref(first)
            yield Page(first)
            del first
            for _ in range(100):
                await asyncio.sleep(0)
            held.append(reference() is not None)
            assert sink.ids == ["1"]
            yield Page([record("2", 2)])

    await World(sink).run(kind=Watching)
    assert (held, sink.ids) == ([False], ["1", "2"])


@pytest.mark.parametrize("form", [list, Columns.of], ids=["list", "columns"])
async def test_source_may_use_its_page_again(form: Callable[[list[Record]], Any]) -> None:
    """It goes on before its page is written; what it changes there is another page."""

    class Reusing(ScriptedSource):
        """A source of one page, and of one record, which it fills again and again."""

        async def pages(self, start: Any, until: Any) -> Any:
            only = record("0", 0)
            page = Page(form([only]), [Reject("odd", "0")])
            for number in range(5):
                yield page
                only.record_id = only.version = only.payload = str(number + 1)
                page.records.clear()
                page.records.append(only)
                page.rejects[0] = Reject("odd", str(number + 1))

    world = World()
    report = await world.run(kind=Reusing)
    assert isinstance(world.sink, RememberingSink)
    assert world.sink.ids == [each for _, _, each in sorted(world.sink.rejects)] == [*"01234"]
    assert (report.records_delivered, report.records_new) == (10, 5)


async def test_time_limit_around_a_yield_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is over while the sink writes; its author finds it in the source, not in the engine."""
    monkeypatch.setattr(ahead, "MAX_PREFETCH_CHARS", 1)
    ended = asyncio.Event()

    class Limited(ScriptedSource):
        """A source that limits its whole reading."""

        async def pages(self, start: Any, until: Any) -> Any:
            try:
                async with asyncio.timeout(None) as limit:
                    yield Page([record("1", 1)])
                    limit.reschedule(0)
                    yield Page([record("2", 2)])
            finally:
                ended.set()

    with pytest.raises(SourceError, match="time limit or a task group around a `yield`"):
        await World(RememberingSink(ended.wait)).run(kind=Limited)


async def test_failure_in_a_task_group_around_a_yield_is_the_cause(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What failed is in the traceback, without a secret, and the run ends as any other."""
    monkeypatch.setattr(ahead, "MAX_PREFETCH_CHARS", 1)
    monkeypatch.setenv("FEED_KEY", "a s3cret key")
    ended = asyncio.Event()

    class Grouped(ScriptedSource):
        """A source that asks for details beside its pages."""

        async def pages(self, start: Any, until: Any) -> Any:
            secret = await resolve_secret("FEED_KEY", self.source_id)

            async def ask() -> None:
                await asking.wait()
                raise ValueError(f"?key={secret} answered 500")

            asking = asyncio.Event()
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(ask())
                    yield Page([record("1", 1)])
                    asking.set()
                    yield Page([record("2", 2)])
            finally:
                ended.set()

    with pytest.raises(SourceError, match="a task group around a `yield`") as caught:
        await World(RememberingSink(ended.wait)).run(kind=Grouped)
    shown = "".join(traceback.format_exception(caught.value))
    assert "?key=********** answered 500" in shown
    assert "s3cret" not in shown


async def test_record_of_a_derived_class_reaches_the_sink() -> None:
    """It has what its own sink looks for."""

    class Mine(Record):
        """A record with a field more, such as a tenant."""

    mine = Mine("1", at(1), "{}", "a")
    world = World()
    await world.run([record("0", 0), mine])
    assert isinstance(world.sink.rows["feed", "1", "a"], Mine)


async def test_source_that_never_waits_leaves_the_thread_of_the_sink_its_turn() -> None:
    """Pages of a millisecond would keep the interpreter for as long as there are any."""
    thread, began, pages = WorkerThread(), threading.Event(), range(100)
    await thread.do(int)
    seen: list[bool] = []

    def work() -> None:
        end = time.perf_counter() + 0.001
        while time.perf_counter() < end:
            pass
        seen.append(began.is_set())

    world = World(RememberingSink(partial(thread.do, began.set)))
    steps = [step for number in pages for step in (work, [record(str(number), number)])]
    await world.run(*steps)
    await thread.close(began.set)
    assert seen.index(True) < len(pages) / 2


async def test_order_is_watched_within_what_is_written_at_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A page that is older than the one before it is noticed, though both are one commit."""
    fetched = asyncio.Event()
    world = World(RememberingSink(fetched.wait))
    await world.run([record("1", 1)], [record("3", 3)], [record("2", 2)], fetched.set, kind=Ordered)
    assert "declares that its pages come in order" in caplog.text
    assert world.watermark == at(3)


async def test_pages_before_an_error_are_durable() -> None:
    """What was read ahead of an error of the source is written before the run fails."""
    world = World()
    with pytest.raises(SourceError, match="down"):
        await world.run([record("1", 1)], [record("2", 2)], SourceError("down"))
    assert world.sink.ids == ["1", "2"]


async def test_failing_sink_ends_the_source() -> None:
    """The source is closed when the run ends, however far it has read."""
    world = World(RememberingSink(ValueError("disk full")))
    with pytest.raises(ValueError, match="disk full"):
        await world.run([record("1", 1)], asyncio.Event().wait, [record("2", 2)])
    assert world.source.closed == 1
    assert not [task for task in asyncio.all_tasks() if task.get_name() == "read ahead"]


# Gap and lookback


async def test_gap_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    """What the source no longer keeps is told, and never a silent success."""
    world = World()
    await world.run([record("1", 10)])
    report = await world.run([record("2", 20)], retention=timedelta(minutes=30))
    assert report.gap == Gap(start=at(10), end=NOW - timedelta(minutes=30))
    assert "keeps nothing from before" in caplog.text
    report = await world.run(retention=timedelta(days=2))
    assert report.gap is None


async def test_first_collection_has_no_gap() -> None:
    """Nothing was promised about what was before."""
    assert (await World().run(retention=timedelta(minutes=30))).gap is None


async def test_initial_lookback_bounds_the_first_collection() -> None:
    """A source that was never collected need not be read from its beginning."""
    world = World()
    found = record("1", NOW - timedelta(minutes=30))
    await world.run([found], limits=Limits(initial_lookback=timedelta(hours=1)))
    assert world.asked_from == NOW - timedelta(hours=1)
    await world.run(limits=Limits(initial_lookback=timedelta(minutes=1)))
    assert world.asked_from == found.timestamp


@pytest.mark.parametrize("sink", [MemorySink, RememberingSink])
async def test_lookback_that_found_nothing_is_not_shortened_by_time(sink: type[MemorySink]) -> None:
    """A source that was empty at first is read from where it was read then, however late."""
    world = World(sink())
    limits = Limits(initial_lookback=timedelta(hours=1))
    await world.run(limits=limits)
    began = NOW - timedelta(hours=1)
    assert (world.asked_from, world.watermark) == (began, began)
    await world.run(limits=Limits(initial_lookback=timedelta(minutes=1)))
    assert world.asked_from == began


async def test_lookback_into_a_dropped_sink_reaches_back_to_the_watermark() -> None:
    """What came since was never collected: a short lookback must not skip it."""
    world = World()
    await world.run([record("1", 10)])
    world.sink = RememberingSink()
    limits = Limits(initial_lookback=timedelta(hours=1))
    await world.run(limits=limits, overlap=timedelta(minutes=2))
    assert world.asked_from == at(8)


async def test_lookback_without_a_watermark_reaches_back_to_the_position() -> None:
    """A service restored from before the source was there must not skip what came since."""
    world = World()
    await world.run([record("1", 10)])
    del world.storage.stored["feed"]
    limits = Limits(initial_lookback=timedelta(hours=1))
    await world.run(limits=limits, overlap=timedelta(minutes=2))
    assert world.asked_from == at(8)


async def test_lookback_without_a_watermark_stays_that_of_a_whole_listing() -> None:
    """What it left out of a source that lists everything each time is not asked for."""
    world = World()
    limits = Limits(initial_lookback=timedelta(hours=1))
    old, new = record("old", NOW - timedelta(hours=2)), record("new", NOW - timedelta(minutes=5))
    await world.run([old, new], limits=limits, overlap=None)
    del world.storage.stored["feed"]
    await world.run([old, new], limits=limits, overlap=None)
    assert world.sink.ids == ["new"]


async def test_longer_lookback_later_names_the_backfill(caplog: pytest.LogCaptureFixture) -> None:
    """What is before the first collection does not come by itself."""
    world = World()
    caplog.set_level(logging.WARNING)
    for _ in range(2):
        await world.run([record("1", 10)], limits=Limits(initial_lookback=timedelta(hours=1)))
    assert not caplog.records
    await world.run(limits=Limits(initial_lookback=timedelta(hours=2)))
    since, until = NOW - timedelta(hours=2), NOW - timedelta(hours=1)
    assert f"backfill: since={since.isoformat()}, until={until.isoformat()}" in caplog.text


async def test_changed_settings_name_the_backfill_until_a_run_is_complete(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What a wider filter includes of before the watermark does not come by itself."""

    class Filtered(ScriptedSource):
        reading_digest = "severity=high"

    world = World()
    caplog.set_level(logging.WARNING)
    for _ in range(2):
        await world.run([record("1", 10)], kind=Filtered, overlap=timedelta(minutes=1))
    assert not caplog.records
    Filtered.reading_digest = "severity=any"
    steps: list[Step] = [SourceError("down"), [record("0", 9), record("2", 20)]]
    for step in steps:
        caplog.clear()
        with suppress(SourceError):
            await world.run(step, kind=Filtered, overlap=timedelta(minutes=1))
        assert f"reads from {at(9).isoformat()} on" in caplog.text
        assert f"by a backfill: until={at(9).isoformat()}" in caplog.text
        assert "overlap" not in caplog.text
    caplog.clear()
    await world.run(kind=Filtered)
    assert not caplog.records


async def test_lookback_before_the_first_year_is_the_beginning() -> None:
    """Any length is one that a source can be asked for."""
    world = World()
    await world.run(limits=Limits(initial_lookback=timedelta(days=3_000_000)))
    assert world.asked_from is None


# Quarantine


def rejects(number: int) -> Page:
    return Page([], [Reject("no id", f"item {each}") for each in range(number)])


async def test_changed_feed_is_read_again_from_where_it_changed() -> None:
    """A run that refuses its feed promotes nothing in the sink either, to be read when repaired."""
    world = World()
    await world.run([record("1", 10)])
    with pytest.raises(SourceError, match="The feed has changed"):
        await world.run([record("2", 20)], rejects(20), [record("3", 30)], kind=Ordered)
    assert world.position
    assert world.position.timestamp == at(10)
    await world.run([record("2", 20), record("3", 30)], kind=Ordered)
    assert world.asked_from == at(10)


async def test_unusable_records_are_quarantined_and_the_rest_goes_on() -> None:
    """A few bad records fail no run, whatever their share."""
    world = World()
    report = await world.run([record("1", 1)], rejects(10), [record("3", 3)])
    assert (report.records_read, report.records_quarantined) == (2, 10)
    assert isinstance(world.sink, RememberingSink)
    assert ("feed", "no id", "item 9") in world.sink.rejects
    assert world.watermark == at(3)


async def test_changed_feed_fails_the_run() -> None:
    """Above the share nothing is promoted; what was good is stored, and the rest quarantined."""
    world = World()
    with pytest.raises(SourceError, match=r"Of 21 records .* 11 cannot be used, more than 10%"):
        await world.run([record(str(number), number) for number in range(10)], rejects(11))
    assert isinstance(world.sink, RememberingSink)
    assert (len(world.sink.ids), len(world.sink.rejects)) == (10, 11)
    assert world.watermark is None
    assert world.position is None


async def test_quarantined_share_can_be_set() -> None:
    """A feed that is known to be bad may be worse than ten percent."""
    world = World()
    await world.run([record("1", 1)], rejects(30), limits=Limits(quarantine_share=1))
    assert world.watermark == at(1)


async def test_share_of_zero_fails_at_the_first_reject() -> None:
    """Whoever allows none is not given ten."""
    world = World()
    none = Limits(quarantine_share=0)
    with pytest.raises(SourceError, match="1 cannot be used, more than 0%"):
        await world.run([record("1", 1)], rejects(1), limits=none)
    assert world.watermark is None
    await world.run([record("1", 1)], limits=none)
    assert world.watermark == at(1)


@pytest.mark.usefixtures("every_page")
async def test_changed_feed_is_not_checkpointed() -> None:
    """The share is looked at before each promotion, not only at the end."""
    world = World(MemorySink())
    with pytest.raises(SourceError, match="The feed has changed"):
        await world.run(rejects(20), [record("1", 1)], kind=Ordered)
    assert world.checkpoints == []


# What disappeared


async def test_whole_source_reports_what_disappeared() -> None:
    """It is marked and counted, and loses the mark when it is back."""
    world = World()
    both, one = [record("1", 1), record("2", 2)], [record("1", 1)]
    await world.run(both, overlap=None)
    report = await world.run(one, overlap=None)
    assert isinstance(world.sink, RememberingSink)
    assert (report.records_removed, world.sink.removed) == (1, {"2"})
    report = await world.run(both, overlap=None)
    assert (report.records_removed, world.sink.removed) == (0, set())


async def test_implausible_loss_fails_the_run() -> None:
    """A document that lost more than half is not believed; the watermark stays."""
    world = World()
    await world.run([record(str(number), number) for number in range(4)], overlap=None)
    with pytest.raises(SourceError, match="3 of its 4 records"):
        await world.run([record("0", 9)], overlap=None)
    assert world.watermark == at(3)
    report = await world.run([record("0", 9)], overlap=None, limits=Limits(removed_share=0.75))
    assert report.records_removed == 3


async def test_listed_and_rejected_records_have_not_disappeared() -> None:
    """What a source lists without its content, or with a broken one, is still there."""
    world = World()
    await world.run([record("1", 1), record("2", 2), record("3", 3)], full_snapshot=True)
    page = Page([], [Reject("no time", "{}", "2")], ["3"])
    report = await world.run([record("1", 1)], page, full_snapshot=True)
    assert report.records_removed == 0


async def test_record_without_an_id_could_be_any(caplog: pytest.LogCaptureFixture) -> None:
    """Where one cannot be named, nothing is marked, and the run says so."""
    world = World()
    await world.run([record("1", 1), record("2", 2)], overlap=None)
    report = await world.run([record("1", 1)], Page([], [Reject("no id", "{}")]), overlap=None)
    assert report.records_removed == 0
    assert "nothing is marked" in caplog.text


async def test_incremental_source_and_backfill_mark_nothing() -> None:
    """What a range does not have is not gone."""
    world = World()
    await world.run([record("1", 1), record("2", 2)])
    assert (await world.run([record("2", 2)])).records_removed == 0
    report = await world.run([record("2", 2)], overlap=None, since=at(2), until=at(3))
    assert report.records_removed == 0


def test_nothing_is_older_than_the_watermark_of_nothing() -> None:
    """No record can be skipped by it."""
    assert datetime.min.replace(tzinfo=UTC) == EMPTY_WATERMARK
    assert resume.latest(None, at(1), at(3), at(2)) == at(3)
