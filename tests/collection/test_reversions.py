"""What a source went back to: told apart from replays, duplicates and history."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from ladon_storage.collection import reversions as returns
from ladon_storage.collection.protocols import WriteResult
from ladon_storage.collection.records import Page, Record
from ladon_storage.collection.reversions import Reversions
from ladon_storage.errors import WatermarkConflictError
from ladon_storage.testing.doubles import (
    LatestSink,
    MemorySink,
    RememberingSink,
    ScriptedSource,
    at,
    record,
)
from tests.collection.test_ledger import World


class Guaranteed(ScriptedSource):
    """A source whose requests ask for the order, with an overlap of five minutes."""

    ordered = True
    order_guaranteed = True

    def __init__(self, *runs: Any) -> None:
        super().__init__(*runs, overlap=timedelta(minutes=5))


async def run(world: World, *pages: list[Record]) -> None:
    await world.run(ScriptedSource(list(pages), overlap=None))


async def test_content_of_an_older_time_is_current_again() -> None:
    """The sink shows what the source said last, also where its time went back."""
    world = World(sink := LatestSink())
    await run(world, [record("1", 5, "A")])
    await run(world, [record("1", 9, "B")])
    await run(world, [record("1", 5, "A")])
    assert sink.current["1"].timestamp == at(5)
    assert world.watermark == at(9)


async def test_return_is_counted_as_a_change() -> None:
    """It is no known record: the ledger adds up with it."""
    world = World(LatestSink())
    await run(world, [record("1", 9, "B")])
    report = await world.run(ScriptedSource([[record("1", 5, "A")]], overlap=None))
    assert (report.records_changed, report.records_known) == (1, 0)


async def test_listing_that_has_an_id_twice_has_not_gone_back() -> None:
    """Whatever the order of the two, and on whichever pages: a run without news changes nothing."""
    older, newer = record("1", 5, "A"), record("1", 9, "B")
    for pages in ([[older, newer]], [[newer, older]], [[older], [newer]], [[newer], [older]]):
        world = World(sink := LatestSink())
        for _ in range(3):
            await run(world, *pages)
        assert (sink.current["1"], sink.reverted) == (newer, [])


@pytest.mark.parametrize("is_guaranteed", [True, False])
async def test_last_of_an_id_is_current_where_the_order_is_guaranteed(is_guaranteed: bool) -> None:
    """Also where the one before it was stored at a later time: a page has one, its last."""
    source = Guaranteed if is_guaranteed else ScriptedSource
    world = World(sink := LatestSink())
    await world.run(source([[record("1", 20, "A"), record("2", 20)]]))
    for _ in range(2):
        await world.run(source([[record("1", 15, "A")], [record("1", 16, "B")], [record("2", 20)]]))
        assert sink.current["1"].version == record("1", 0, "AB"[is_guaranteed]).version


async def test_pages_without_times_are_in_no_order() -> None:
    """A source that guarantees one may not be able to keep it: then an older one is history."""
    newer, older = record("1", 9, "B"), record("1", 5, "A")
    world = World(sink := LatestSink())
    for _ in range(2):
        pages = [Page([newer], undated=True), Page([older], undated=True)]
        await world.run(Guaranteed(pages))
    assert (sink.current["1"], sink.reverted) == (newer, [])


async def test_failed_run_has_gone_back_to_nothing() -> None:
    """What the source says last is known at the end of the run alone."""
    world = World(sink := LatestSink())
    await run(world, [record("1", 9, "B")])
    with pytest.raises(OSError, match="down"):
        await world.run(ScriptedSource([[record("1", 5, "A")], OSError("down")], overlap=None))
    assert sink.reverted == []


async def test_crash_behind_a_return_reads_it_again() -> None:
    """Neither the position nor a checkpoint passes what is current only at the end of the run."""
    world = World(sink := LatestSink())
    await world.run(Guaranteed([[record("1", 9, "B")], [record("2", 10)]]))
    pages: list[Any] = [[record("2", 9.5, "A"), record("3", 11)], [record("4", 12)]]
    with pytest.raises(OSError, match="down"):
        await world.run(Guaranteed([*pages, OSError("down")]))
    await world.run(source := Guaranteed(pages))
    assert source.ranges == [(at(5), None)]
    assert sink.current["2"].timestamp == at(9.5)


async def test_checkpoint_waits_for_a_return_where_no_position_does() -> None:
    """A sink that remembers nothing has the watermark alone to say where the next run begins."""

    class Forgetful(MemorySink):
        """A sink that can go back, and remembers no position."""

        kept = LatestSink()
        revert = kept.revert

        async def write(self, source_id: str, page: Page, **more: Any) -> WriteResult:
            return await self.kept.write(source_id, page)

    world = World(Forgetful())
    await world.run(Guaranteed([[record("1", 9, "B")], [record("2", 10)]]))
    pages: list[Any] = [[record("2", 9.5, "A"), record("3", 20)], [record("4", 21)]]
    with pytest.raises(OSError, match="down"):
        await world.run(Guaranteed([*pages, OSError("down")]))
    assert world.watermark == at(10)
    await world.run(source := Guaranteed(pages))
    assert source.ranges == [(at(5), None)]
    assert Forgetful.kept.current["2"].timestamp == at(9.5)


async def test_position_follows_where_nothing_was_gone_back_to() -> None:
    """A page of which something was passed over moved none; the end of the run does."""
    world = World(sink := LatestSink())
    await world.run(Guaranteed([[record("1", 9, "B"), record("1", 8, "A")]]))
    await world.run(Guaranteed([[record("1", 8, "A"), record("1", 9, "B"), record("2", 10)]]))
    assert sink.positions["feed"].timestamp == at(10)
    assert sink.reverted == []


async def test_backfill_has_gone_back_to_nothing() -> None:
    """It is asked for what was, and not for what is."""
    world = World(sink := LatestSink())
    await run(world, [record("1", 9, "B")])
    source = ScriptedSource([[record("1", 5, "A")]], overlap=None)
    await world.run(source, since=at(0), until=at(8))
    assert sink.reverted == []


async def test_backfill_counts_what_the_sink_keeps_a_later_version_of(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It cannot know whether the source went back, and says what a regular run makes current."""
    world = World(LatestSink())
    await run(world, [record("1", 9, "B"), record("2", 2)])
    source = ScriptedSource([[record("1", 5, "A"), record("2", 2)]], overlap=timedelta(1))
    report = await world.run(source, since=at(0), until=at(8))
    assert (report.records_superseded, report.records_known) == (1, 2)
    assert f"reset the watermark to before {at(5).isoformat()} and collect" in caplog.text


async def test_regular_run_counts_none_that_it_made_current() -> None:
    """What is superseded is what the sink does not show at the end of the run."""
    world = World(LatestSink())
    await run(world, [record("1", 9, "B")])
    report = await world.run(ScriptedSource([[record("1", 5, "A")]], overlap=None))
    assert report.records_superseded == 0


async def test_what_a_sink_that_cannot_go_back_keeps_is_counted() -> None:
    """Its ledger says so, and neither a checkpoint nor the watermark waits for it."""

    class Onward(RememberingSink):
        """A sink with a current version of each record, which cannot go back."""

        kept = LatestSink()

        async def write(self, source_id: str, page: Page, **more: Any) -> WriteResult:
            return await self.kept.write(source_id, page, **more)

    world = World(Onward())
    await run(world, [record("1", 9, "B")])
    report = await world.run(ScriptedSource([[record("1", 5, "A"), record("2", 10)]], overlap=None))
    assert (report.records_superseded, world.watermark) == (1, at(10))


async def test_run_that_lost_its_source_goes_back_to_nothing() -> None:
    """The hold is renewed before: what a stalled run read may be old."""
    world = World(sink := LatestSink())
    await run(world, [record("1", 9, "B")])

    def take_over() -> None:
        world.storage.put("feed", status="running", run_id="rival", last_run_timestamp=world.now)

    with pytest.raises(WatermarkConflictError):
        await world.run(ScriptedSource([[record("1", 5, "A")], take_over], overlap=None))
    assert sink.reverted == []


async def test_sink_that_cannot_go_back_is_not_asked_to() -> None:
    """A sink of one's own needs no such method."""
    world = World(MemorySink())
    await run(world, [record("1", 9, "B")])
    await run(world, [record("1", 5, "A")])


async def test_memory_of_the_ids_of_a_run_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes behind as many ids is taken for no return."""
    known = Reversions(LatestSink())
    monkeypatch.setattr(returns, "MAX_IDS", 2)
    known.note([record("1", 1), record("2", 1)], [])
    late = record("3", 1)
    known.note([late], [late])
    assert (known.records, known.unknown) == ([], 1)


async def test_return_behind_the_ids_that_are_remembered_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A run that cannot know whether its source went back is not silent about it."""
    monkeypatch.setattr(returns, "MAX_IDS", 2)
    world = World(sink := LatestSink())
    await run(world, [record(each, 9, "B") for each in "123"])
    assert "older than those in the sink" not in caplog.text
    await run(world, [record(each, 9, "B") for each in "12"], [record("3", 5, "A")])
    assert "delivered 1 records older than those in the sink" in caplog.text
    assert sink.current["3"].timestamp == at(9)


async def test_more_returns_than_may_wait_are_left_to_the_next_runs(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The document is read again, and the watermark stays, until all of them are current."""
    monkeypatch.setattr(returns, "MAX_REVERSIONS", 2)
    world = World(sink := LatestSink())
    old = Page([*(record(each, 5, "A") for each in "12345"), record("6", 7)], document="a" * 30)
    await world.run(ScriptedSource([[record(each, 6, "B") for each in "12345"]], overlap=None))
    for left in (3, 1, 0):
        caplog.clear()
        await world.run(ScriptedSource([old], overlap=None))
        assert sum(each.timestamp == at(5) for each in sink.current.values()) == 5 - left
        assert (f"{left} of them are not current yet" in caplog.text) == bool(left)
        assert world.watermark == (at(6) if left else at(7))
        assert (sink.positions["feed"].document == old.document) == (not left)


def test_return_that_may_not_wait_is_none_once_its_listing_says_more() -> None:
    """A history of whatever length is no return."""
    known = Reversions(LatestSink())
    older = [record(str(number), 5, "A") for number in range(returns.MAX_REVERSIONS + 2)]
    known.note(older, older)
    assert (len(known.records), known.left) == (returns.MAX_REVERSIONS, 2)
    again = [*older[:1], *older[-2:]]
    newer = [record(each.record_id, 9, "B") for each in again]
    known.note(newer, [])
    assert (len(known.records), known.left) == (returns.MAX_REVERSIONS - 1, 0)


async def test_id_that_is_delivered_often_takes_the_place_of_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A listing of each record's history has as many ids as it has records."""
    known = Reversions(LatestSink())
    monkeypatch.setattr(returns, "MAX_IDS", 3)
    for minute in range(5):
        known.note([record("1", minute), record("2", minute)], [])
    late = record("3", 1)
    known.note([late], [late])
    assert known.records == [late]
    again = record("1", 1)
    known.note([again], [again])
    assert known.records == [late]
