"""What a run is given, stores and leaves out, and what it says of that: numbers that add up."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from ladon_storage.client import MockStorageClient
from ladon_storage.collection.lateness import BOUNDS, Lateness
from ladon_storage.collection.protocols import KnownContent, Limits, WriteResult
from ladon_storage.collection.records import Page, Reject
from ladon_storage.collection.run import Report, run
from ladon_storage.errors import ConfigurationError, SinkError, SourceError
from ladon_storage.models import EMPTY_WATERMARK, HONEST_SKEW, WatermarkUpdate
from ladon_storage.testing.doubles import (
    MemorySink,
    RememberingSink,
    ScriptedSource,
    ScriptedStorage,
    at,
    record,
)
from tests.collection.schedules.oracle import assert_adds_up

NOW = at(24 * 60)


class World:
    """A storage and a sink that several runs of one source meet."""

    def __init__(self, sink: MemorySink | None = None, *, etags: bool = True) -> None:
        self.now = NOW
        self.storage: Any = ScriptedStorage(etags=etags, now=lambda: self.now)
        self.sink: Any = sink or RememberingSink()
        self.runs = 0

    async def run(self, source: Any, **options: Any) -> Report:
        self.runs += 1
        run_id = options.pop("run_id", f"run-{self.runs}")
        report = await run(
            source, self.sink, self.storage, run_id=run_id, clock=lambda: self.now, **options
        )
        assert_adds_up(report)
        return report

    async def collect(self, *pages: Any, **options: Any) -> Report:
        overlap = options.pop("overlap", timedelta(0))
        source = ScriptedSource(list(pages), overlap=overlap)
        for name in ("ignores_range", "full_snapshot", "ordered"):
            if name in options:
                setattr(source, name, options.pop(name))
        self.source = source
        return await self.run(source, **options)

    @property
    def watermark(self) -> datetime | None:
        found: datetime | None = self.storage.stored["feed"].last_successful_timestamp
        return found


# What is stored


async def test_record_older_than_the_start_is_stored() -> None:
    """The start is what a source is asked for: what it delivers besides is stored as well."""
    world = World()
    await world.collect([record("1", 100)])
    report = await world.collect([record("1", 100), record("old", 1)])
    assert world.source.ranges == [(at(100), None)]
    assert world.sink.ids == ["1", "old"]
    assert (report.records_new, report.records_known, report.records_skipped) == (1, 1, 0)


async def test_feed_that_goes_from_milliseconds_to_seconds_is_stored() -> None:
    """Times that are suddenly of 1970 move nothing, and their records are kept."""
    world = World()
    await world.collect([record("1", 100)])
    await world.collect([record("2", datetime(1970, 1, 20, tzinfo=UTC))])
    assert (world.sink.ids, world.watermark) == (["1", "2"], at(100))


async def test_backfill_leaves_out_what_is_outside_of_its_range() -> None:
    """Its bounds are the user's choice; what they leave out is counted as skipped."""
    world = World()
    pages = [record(str(minute), minute) for minute in (9, 10, 19, 20)]
    report = await world.collect(pages, since=at(10), until=at(20))
    assert world.sink.ids == ["10", "19"]
    assert (report.records_delivered, report.records_new, report.records_skipped) == (4, 2, 2)


async def test_initial_lookback_leaves_out_what_is_older_than_the_origin() -> None:
    """Also in later runs, to which a source may deliver everything again."""
    world = World()
    limits = Limits(initial_lookback=timedelta(minutes=30))
    old, new = record("old", NOW - timedelta(hours=1)), record("new", NOW - timedelta(minutes=1))
    first = await world.collect([old, new], limits=limits)
    world.now += timedelta(hours=5)
    again = await world.collect([old, new, record("newer", world.now)], limits=limits)
    assert world.sink.ids == ["new", "newer"]
    assert (first.records_skipped, again.records_skipped, again.records_new) == (1, 1, 1)


async def test_operator_who_goes_back_behind_the_origin_is_heeded() -> None:
    """What was left out in the beginning is asked for now, and stored."""
    world = World()
    limits = Limits(initial_lookback=timedelta(minutes=30))
    old, new = record("old", NOW - timedelta(hours=1)), record("new", NOW - timedelta(minutes=1))
    await world.collect([old, new], limits=limits)
    world.storage.put("feed", status="success", last_successful_timestamp=old.timestamp)
    await world.collect([old, new], limits=limits)
    assert world.sink.ids == ["new", "old"]


async def test_ledger_goes_with_the_success(monkeypatch: pytest.MonkeyPatch) -> None:
    """The service that keeps it is told what was asked for and given."""
    told: list[Mapping[str, Any] | None] = []
    from ladon_storage.collection.lease import SourceLease

    succeed = SourceLease.commit

    async def noted(
        lease: SourceLease, timestamp: datetime, records: int, ledger: Any = None
    ) -> None:
        told.append(ledger)
        await succeed(lease, timestamp, records, ledger)

    monkeypatch.setattr(SourceLease, "commit", noted)
    await World().collect(Page([record("1", 1)], [Reject.of("no id", {})], total=2))
    [ledger] = told
    assert ledger is not None
    assert (ledger["records_delivered"], ledger["reasons"]) == (2, {"no id": 1})
    assert (ledger["total"], "candidate" in ledger) == (2, False)


async def test_sink_that_claims_too_much_fails_the_run() -> None:
    """More rows than records cannot have been written: the ledger would not add up."""

    class Boasting(MemorySink):
        async def write(self, *arguments: Any, **options: Any) -> WriteResult:
            return WriteResult(changed=[record("1", 1)] * 7)

    with pytest.raises(SinkError, match="7 rows of 1 record"):
        await World(Boasting()).collect([record("1", 1)])


async def test_end_of_the_reading_is_told() -> None:
    """The last page that says how it was known counts, and is no page of its own."""
    world = World()
    report = await world.collect([record("1", 1)], Page(completeness="total", total=1))
    assert (report.completeness, report.total, report.pages) == ("total", 1, 1)


@pytest.mark.parametrize("completeness", ["total", "last page", None])
async def test_reading_of_less_than_the_stated_total_fails(completeness: Any) -> None:
    """Whoever wrote the source: what it states is compared with what came."""
    page = Page([record("1", 1)], total=500, completeness=completeness)
    with pytest.raises(SourceError, match="states 500 records and delivered 1"):
        await World().collect(page)
    await World().collect(Page([record("1", 1)], total=500, completeness="declared"))


async def test_ledger_goes_with_a_failure() -> None:
    """The service shows what the failed run was given, and not what the one before it was."""
    world = World()
    await world.collect([record(str(number), number) for number in range(30)])
    with pytest.raises(SourceError):
        await world.collect([record("a", 40)], SourceError("down"))
    ledger = world.storage.stored["feed"].ledger
    assert ledger is not None
    assert ledger["records_delivered"] == 1


@pytest.mark.parametrize("result", [None, 1.5, "1", True, -1])
async def test_sink_that_returns_nothing_of_use_is_told_what_to_return(result: Any) -> None:
    """A mistake in a sink of one's own ends in a sentence."""

    class Odd(MemorySink):
        async def write(self, *arguments: Any, **options: Any) -> Any:
            return result

    with pytest.raises(SinkError, match=r"`write`"):
        await World(Odd()).collect([record("1", 1)])


async def test_source_that_is_none_is_told_what_is_missing() -> None:
    """A mistake in a source of one's own ends in a sentence, too."""

    class Mistaken(ScriptedSource):
        async def pages(self, start: Any, until: Any) -> Any:  # type: ignore[override]
            return []

    class Listing(ScriptedSource):
        async def pages(self, start: Any, until: Any) -> Any:
            yield [record("1", 1)]

    world = World()
    with pytest.raises(ConfigurationError, match="is no source"):
        await world.run(object())
    with pytest.raises(ConfigurationError, match="overlap of source 'feed'"):
        await world.run(ScriptedSource(overlap=timedelta(hours=-5)))
    forgetful = ScriptedSource()
    forgetful.retention = 30  # type: ignore[attr-defined]
    with pytest.raises(ConfigurationError, match="retention of source 'feed' is 30"):
        await world.run(forgetful)
    with pytest.raises(ConfigurationError, match="gives a coroutine"):
        await world.run(Mistaken())
    with pytest.raises(ConfigurationError, match="yields a list"):
        await world.run(Listing())


# The clock of the source


async def test_watermark_never_passes_the_beginning_of_the_reading() -> None:
    """A record that is a second ahead may have neighbours that come a second later."""
    world = World()
    ahead = NOW + timedelta(seconds=1)
    report = await world.collect([record("1", NOW), record("2", ahead)])
    assert (world.watermark, report.records_in_future) == (NOW, 0)
    assert world.sink.ids == ["1", "2"]


@pytest.mark.parametrize("zone", [UTC, None])
@pytest.mark.parametrize("lead", [timedelta(minutes=-3), timedelta(minutes=3)])
async def test_beginning_is_by_the_clock_of_the_source(lead: timedelta, zone: Any) -> None:
    """Its records carry its time: ours may be ahead or behind. A naive one is UTC, as theirs."""
    world = World()
    asked_at = NOW + lead
    late = asked_at + timedelta(microseconds=1)
    page = Page([record("1", asked_at), record("2", late)], asked_at=asked_at.replace(tzinfo=zone))
    await world.collect(page)
    assert world.watermark == asked_at


async def test_source_whose_clock_is_absurd_is_not_believed() -> None:
    """A day ahead of ours at most."""
    world = World()
    far = NOW + timedelta(days=400)
    await world.collect(Page([record("1", NOW), record("2", far)], asked_at=far))
    assert world.watermark == NOW


@pytest.mark.parametrize(("days", "is_told"), [(0.9, False), (1.1, True), (9_000, True)])
async def test_clock_of_a_source_far_behind_is_told(
    days: float, is_told: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Where it holds a watermark back for ever, the log says so."""
    world = World()
    asked_at = NOW - timedelta(days=days)
    await world.collect(Page([record("1", asked_at), record("2", NOW)], asked_at=asked_at))
    assert world.watermark == asked_at
    assert ("more than a day behind this one" in caplog.text) is is_told
    caplog.clear()
    await world.collect(Page([record("1", asked_at)], asked_at=asked_at))
    assert "behind this one" not in caplog.text


# An order that was only declared


class Declared(ScriptedSource):
    """A source that says that it is ordered, without the request asking for it."""

    ordered = True


async def test_declared_order_is_not_resumed_from_before_it_was_shown() -> None:
    """Wrongly declared, the second page would be lost with the crash behind the first."""
    world = World()
    with pytest.raises(SourceError):
        await world.run(Declared([[record("9", 9)], SourceError("down")]))
    await world.run(source := Declared([[record("9", 9)], [record("1", 1)]]))
    assert source.ranges == [(None, None)]
    assert world.sink.ids == ["1", "9"]


async def test_order_that_a_whole_pass_has_shown_is_resumed_from() -> None:
    """From then on a crash costs no reading again, but of the last instant."""
    world = World()
    await world.run(Declared([[record("1", 1)], [record("2", 2)]]))
    with pytest.raises(SourceError):
        await world.run(Declared([[record("3", 3)], [record("4", 4)], SourceError("down")]))
    await world.run(source := Declared([[record("4", 4)]]))
    # Its API may exclude the start of a range, and may have had more records of that instant.
    assert source.ranges == [(at(4) - timedelta.resolution, None)]


async def test_order_that_was_shown_is_shown_again_by_the_run_that_promotes() -> None:
    """The settings may have changed since, to a list that comes the latest first."""
    world = World()
    await world.run(Declared([[record("1", 1)], [record("2", 2)]]))
    with pytest.raises(SourceError):
        await world.run(Declared([[record("9", 9)], SourceError("down")]))
    await world.run(source := Declared([[record("9", 9)], [record("3", 3)]]))
    assert source.ranges == [(at(2), None)]
    assert world.sink.ids == ["1", "2", "3", "9"]


async def test_order_that_other_settings_had_is_to_be_shown_again() -> None:
    """The first pages of another list may rise by chance, and an earlier one come behind them."""
    world = World()
    first = Declared([[record("1", 1)], [record("2", 2)]])
    first.reading_digest = "sort=updated"  # type: ignore[attr-defined]
    await world.run(first)
    pages: list[Any] = [[record("4", 4)], [record("9", 9)]]
    for end in (SourceError("down"), [record("3", 3)]):
        other = Declared([*pages, end])
        other.reading_digest = "sort=name"  # type: ignore[attr-defined]
        with suppress(SourceError):
            await world.run(other)
        assert other.ranges == [(at(2), None)]
    assert world.sink.ids == ["1", "2", "3", "4", "9"]


async def test_order_that_was_broken_is_to_be_shown_again() -> None:
    """One pass in another order takes the belief away."""
    world = World()
    await world.run(Declared([[record("1", 1)], [record("2", 2)]]))
    await world.run(Declared([[record("4", 4)], [record("3", 3)]]))
    with pytest.raises(SourceError):
        await world.run(Declared([[record("9", 9)], SourceError("down")]))
    await world.run(source := Declared([[record("5", 5)]]))
    assert source.ranges == [(at(4), None)]


async def test_single_page_shows_no_order() -> None:
    """An order between pages needs two of them."""
    world = World()
    await world.run(Declared([[record("1", 1)]]))
    with pytest.raises(SourceError):
        await world.run(Declared([[record("9", 9)], SourceError("down")]))
    await world.run(source := Declared([[record("2", 2)]]))
    assert source.ranges == [(at(1), None)]


async def test_equal_times_show_no_order() -> None:
    """A pass in which no time rose could have come in any order."""
    world = World()
    await world.run(Declared([[record("1", 1)], [record("2", 1)]]))
    with pytest.raises(SourceError):
        await world.run(Declared([[record("9", 9)], SourceError("down")]))
    await world.run(source := Declared([[record("3", 2)]]))
    assert source.ranges == [(at(1), None)]


# A watermark in the future


async def test_watermark_in_the_future_is_not_believed(caplog: pytest.LogCaptureFixture) -> None:
    """The run goes on from what the sink knows, says so, and puts a right one in its place."""
    world = World(etags=False)
    await world.collect([record("1", 10)])
    world.storage.stored.clear()
    future = NOW + timedelta(days=3)
    world.storage.put("feed", status="success", last_successful_timestamp=future)
    report = await world.collect([record("2", 20)])
    assert world.source.ranges == [(at(10), None)]
    assert "is in the future" in caplog.text
    assert (report.watermark_before, report.watermark_after) == (at(10), at(20))


async def test_watermark_a_moment_ahead_is_corrected_by_who_has_read_it() -> None:
    """A run reads anew, and the service takes what it writes for a correction."""
    world = World(MemorySink())
    world.storage = MockStorageClient(clock=lambda: world.now)
    await world.collect([record("1", 10)])
    ahead = WatermarkUpdate.of(NOW + HONEST_SKEW / 2, "success")
    await world.storage.put_watermark("feed", ahead)
    report = await world.collect([record("2", 20)])
    assert world.source.ranges == [(at(10), None)]
    assert (report.watermark_before, report.watermark_after) == (at(10), at(20))
    stored = await world.storage.get_watermark("feed")
    assert stored.last_successful_timestamp == at(20)


async def test_watermark_in_the_future_without_any_memory_is_read_from_the_beginning() -> None:
    """Reading again costs time; believing it would cost records."""
    world = World(MemorySink())
    future = NOW + timedelta(hours=1)
    world.storage.put("feed", status="success", last_successful_timestamp=future)
    await world.collect([record("2", 20)])
    assert world.source.ranges == [(None, None)]


async def test_position_in_the_future_is_not_believed() -> None:
    """A watermark that was put right is not overruled by the sink."""
    world = World()
    await world.collect([record("1", 10)])
    late = world.sink.positions["feed"].model_copy(update={"timestamp": NOW + timedelta(days=1)})
    world.sink.positions["feed"] = late
    await world.collect([record("2", 20)])
    assert world.source.ranges == [(at(10), None)]


async def test_repeated_run_whose_watermark_went_back_says_where_it_starts() -> None:
    """An operator goes back, the same run begins again and dies: the next run heeds it."""
    world = World(etags=False)
    await world.collect([record("0", 10)])
    source = ScriptedSource([[record("1", 20)]], overlap=timedelta(0))
    await world.run(source, run_id="repeated")
    world.storage.put("feed", status="success", last_successful_timestamp=at(10))
    with pytest.raises(SourceError):
        await world.run(ScriptedSource([SourceError("down")]), run_id="repeated")
    await world.collect([record("2", 30)])
    assert world.source.ranges == [(at(10), None)]


# Nothing usable


@pytest.mark.parametrize("count", [1, 10])
async def test_feed_of_which_nothing_can_be_used_fails(count: int) -> None:
    """A wrong path of the id on a feed of ten is no few bad records."""
    world = World()
    rejects = [Reject.of("id: should be an id, and is none", {"n": n}) for n in range(count)]
    with pytest.raises(SourceError, match=rf"id: should be an id, and is none \({count}\)"):
        await world.collect(Page([], rejects))
    assert world.storage.stored["feed"].status == "failed"
    assert len(world.sink.rejects) == count


async def test_feed_of_which_nothing_can_be_used_is_not_read_to_its_end() -> None:
    """Ten thousand unusable records say enough."""
    world = World()
    pages = [
        Page([], [Reject.of("no time", {"n": f"{page} {n}"}) for n in range(1_000)])
        for page in range(30)
    ]
    with pytest.raises(SourceError, match="no time"):
        await world.collect(*pages)
    assert len(world.sink.rejects) < 30_000


async def test_completed_run_says_what_it_quarantined(caplog: pytest.LogCaptureFixture) -> None:
    """The most frequent reasons first, in the report and as a warning."""
    rejects = [Reject.of("no id", {"n": n}) for n in range(2)] + [Reject.of("no time", {})]
    records = [record(str(n), n) for n in range(50)]
    report = await World().collect(Page(records, rejects))
    assert list(report.reasons.items()) == [("no id", 2), ("no time", 1)]
    assert "3 of 53 records cannot be used" in caplog.text
    assert "no id (2); no time (1)" in caplog.text


async def test_listing_that_is_suddenly_empty_fails() -> None:
    """It always had something: nothing at all is an incomplete answer until somebody says more."""
    world = World()
    await world.collect([record("1", 1)], ignores_range=True)
    with pytest.raises(SourceError, match="lists nothing, and had records before"):
        await world.collect([], ignores_range=True)
    await world.collect([], ignores_range=True, limits=Limits(removed_share=1))
    await world.collect([], ignores_range=True)


async def test_listing_that_is_suddenly_empty_fails_without_a_memory_of_the_sink() -> None:
    """The watermark says that there was something."""
    world = World(MemorySink())
    await world.collect([record("1", 1)], ignores_range=True)
    for _ in range(2):
        with pytest.raises(SourceError, match="lists nothing"):
            await world.collect([], ignores_range=True)


async def test_listing_that_is_empty_behind_a_crash_fails() -> None:
    """That a run did not end takes nothing away from what was known."""
    world = World()
    await world.collect([record("1", 1)], ignores_range=True)
    with pytest.raises(SourceError, match="down"):
        await world.collect([record("2", 2)], SourceError("down"), ignores_range=True)
    with pytest.raises(SourceError, match="lists nothing"):
        await world.collect([], ignores_range=True)


async def test_source_that_never_had_anything_may_have_nothing() -> None:
    """A first collection of nothing is one, and so are those behind it."""
    world = World()
    for _ in range(3):
        await world.collect([], ignores_range=True)
    assert world.watermark == EMPTY_WATERMARK


# A document that has not changed


class Catalogue:
    """A document that is delivered whole, and known by its digest."""

    source_id = "feed"
    overlap = None
    uses_known = True

    def __init__(self, digest: str, *ids: str, breaks: bool = False) -> None:
        self.digest = digest * 30
        self.ids = ids
        self.breaks = breaks
        self.was_read = False

    async def pages(
        self, start: datetime | None, until: datetime | None, known: KnownContent
    ) -> AsyncIterator[Page]:
        if known.document == self.digest:
            yield Page(document=self.digest, unchanged=True, completeness="whole document")
            return
        self.was_read = True
        for each in self.ids:
            page = Page([record(each, 1)], document=self.digest, completeness="whole document")
            yield page
            if self.breaks:
                raise SourceError("down")


async def test_document_that_the_sink_knows_is_not_read_again() -> None:
    """Nothing is removed then, and nothing written."""
    world = World()
    await world.run(Catalogue("a", "1", "2"))
    writes = len(world.sink.noted)
    report = await world.run(same := Catalogue("a"))
    assert not same.was_read
    assert (report.records_delivered, report.records_removed) == (0, 0)
    assert report.completeness == "whole document"
    assert len(world.sink.noted) == writes


async def test_document_of_a_run_that_broke_off_is_read_again() -> None:
    """The sink has a part of another one, so that even the old one is no longer known."""
    world = World()
    await world.run(Catalogue("a", "1", "2"))
    with pytest.raises(SourceError, match="down"):
        await world.run(Catalogue("b", "3", "4", breaks=True))
    await world.run(old := Catalogue("a", "1", "2"))
    assert old.was_read


async def test_document_with_unusable_records_is_read_again() -> None:
    """Each run says what cannot be used, until it is mended."""

    class Spoilt(Catalogue):
        async def pages(
            self, start: datetime | None, until: datetime | None, known: KnownContent
        ) -> AsyncIterator[Page]:
            async for page in super().pages(start, until, known):
                yield page
            if self.was_read:
                yield Page([], [Reject.of("no id", {})])

    world = World()
    reports = [await world.run(Spoilt("a", "1", "2")) for _ in range(2)]
    assert [each.records_quarantined for each in reports] == [1, 1]


async def test_document_with_a_record_that_is_ahead_is_read_again() -> None:
    """The next run promotes it, though the document has not changed."""

    class Ahead(Catalogue):
        async def pages(
            self, start: datetime | None, until: datetime | None, known: KnownContent
        ) -> AsyncIterator[Page]:
            async for page in super().pages(start, until, known):
                yield page
            if self.was_read:
                yield Page([record("ahead", NOW + timedelta(seconds=2))])

    world = World()
    await world.run(Ahead("a", "1"))
    world.now += timedelta(seconds=3)
    await world.run(Ahead("a", "1"))
    assert world.watermark == NOW + timedelta(seconds=2)


async def test_document_is_read_again_where_an_operator_went_back() -> None:
    """What is asked for again is read again."""
    world = World()
    await world.run(Catalogue("a", "1", "2"))
    world.storage.put("feed", status="success", last_successful_timestamp=at(0))
    await world.run(again := Catalogue("a", "1", "2"))
    assert again.was_read


# Lateness


async def test_lateness_of_new_records_is_told() -> None:
    """A first collection is history, and says nothing about it."""
    world = World()
    first = await world.collect([record("1", 10)])
    world.now += timedelta(hours=1)
    report = await world.collect([record("1", 10), record("2", world.now - timedelta(minutes=7))])
    assert (first.lateness.count, report.lateness.count) == (0, 1)
    assert report.lateness.worst == timedelta(minutes=7)


async def test_lateness_leaves_out_what_a_restored_sink_had_before() -> None:
    """An earlier run saw those records first; the overlap would seem too narrow for ever."""
    world = World()
    await world.collect([record("1", 10)])
    assert isinstance(world.sink, RememberingSink)
    backup = dict(world.sink.positions)
    await world.collect([record("2", 20)])
    world.sink.positions = backup
    world.now += timedelta(days=30)
    news = record("3", world.now - timedelta(minutes=7))
    report = await world.collect([record("1", 10), record("4", 20), news])
    assert report.sink_behind
    assert report.lateness.count == 2
    assert report.lateness.worst is not None
    assert report.lateness.worst < timedelta(days=1)


@pytest.mark.parametrize(
    "stored",
    [
        {"counts": [1], "worst_seconds": 1e308},
        {"counts": [10**400], "worst_seconds": 1.0},
        {"counts": [-1], "worst_seconds": 1.0},
        {"counts": [2**53], "worst_seconds": 1.0},
        "late",
    ],
)
async def test_stored_lateness_without_sense_fails_no_run(stored: object) -> None:
    """The histogram begins again; what another program wrote is no reason to collect nothing."""
    world = World()
    await world.collect([record("1", 10)])
    world.storage.put(
        "feed", status="success", last_successful_timestamp=at(10), ledger={"lateness": stored}
    )
    world.now += timedelta(hours=1)
    report = await world.collect([record("2", world.now)])
    assert report.watermark_after == world.now
    assert report.lateness.worst == timedelta(0)


async def test_late_record_in_the_oldest_part_of_the_overlap_is_warned_of(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The warning names the overlap that would have been right."""
    world = World()
    overlap = timedelta(hours=10)
    await world.collect([record("1", 1_000)], overlap=overlap)
    await world.collect([record("2", 1_000 - 7.9 * 60)], overlap=overlap)
    assert "is narrow" not in caplog.text
    await world.collect([record("3", 1_000 - 8.1 * 60)], overlap=overlap)
    assert "is narrow" in caplog.text
    assert "Set it to 13 hours" in caplog.text


def test_lateness_merges_over_runs() -> None:
    """The histogram of two runs is that of one which saw what both did."""
    one, two = [timedelta(seconds=each) for each in (3, 70)], [timedelta(days=400)]
    assert Lateness.of(one) + Lateness.of(two) == Lateness.of(one + two)
    assert Lateness.of(one) + Lateness() == Lateness.of(one)


def test_quantile_never_says_too_little() -> None:
    """It is the upper bound of its bucket, and no more than the worst."""
    delays = [timedelta(seconds=each) for each in range(1, 101)]
    seen = Lateness.of(delays)
    assert timedelta(seconds=50) <= (seen.quantile(0.5) or timedelta()) <= timedelta(seconds=60)
    assert seen.quantile(1.0) == seen.worst == timedelta(seconds=100)
    assert Lateness().quantile(0.5) is None
    assert Lateness.of([timedelta(days=999)]).quantile(0.5) == timedelta(days=999)
    assert list(BOUNDS) == sorted(BOUNDS)


async def test_stored_ledger_has_the_lateness_beside_the_overlap() -> None:
    """The service can tell, without knowing the source, that records come nearly too late."""
    world = World()
    await world.collect([record("1", 0)], overlap=timedelta(hours=6))
    first = world.storage.stored["feed"].ledger or {}
    assert (first["overlap_seconds"], "lateness_p99_seconds" in first) == (21_600.0, False)
    world.now += timedelta(minutes=10)
    await world.collect([record("2", 24 * 60 - 50)], overlap=timedelta(hours=6))
    second = world.storage.stored["feed"].ledger or {}
    assert second["lateness_p99_seconds"] == 3600.0
    await world.collect([record("2", 24 * 60 - 50)], overlap=None)
    assert "overlap_seconds" not in (world.storage.stored["feed"].ledger or {})
