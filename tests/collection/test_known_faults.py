"""What other systems that collect are known to get wrong.

``record(id, minute)`` stands for ``id@minute``. Each test runs against the real embedded service,
and where a sink has a part in it, against each sink. What only one kind of source can show stands
with that source.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from ladon_storage import StorageServiceClient, Watermark
from ladon_storage.collection import extraction as passage
from ladon_storage.collection import prefetch as ahead
from ladon_storage.collection.ledger import Gap
from ladon_storage.collection.protocols import Limits, Source
from ladon_storage.collection.records import Page, Reject
from ladon_storage.collection.run import Report, run
from ladon_storage.errors import (
    SourceBusyError,
    SourceError,
    StorageResponseError,
    WatermarkConflictError,
)
from ladon_storage.sources import Kev, ThreatFox
from ladon_storage.testing import SinkPlace
from ladon_storage.testing.clock import FakeClock
from ladon_storage.testing.doubles import BEGIN, ScriptedSource, Step, at, record
from ladon_storage.testing.feed_server import Answer, FeedServer
from tests.flaky import Flaky, flaky_service
from tests.sinks.places import OURS, place
from tests.waiting import reached


@dataclass
class World:
    """Be one source's service, sink and clock over several runs."""

    service: Flaky
    client: StorageServiceClient
    place: SinkPlace
    clock: FakeClock
    runs: int = 0

    async def run(self, source: Source, **options: Any) -> Report:
        """Collect once, half a minute after the time before."""
        self.runs += 1
        self.clock.advance(30)
        run_id = options.pop("run_id", f"run-{self.runs}")
        return await run(
            source,
            self.place.make(),
            self.client,
            run_id=run_id,
            clock=self.clock.now,
            **options,
        )

    async def collected_up_to(self, minute: float) -> None:
        """Let an earlier run have succeeded, which left nothing in this sink but its position."""
        await self.run(ScriptedSource([[record("0", minute)]]))

    async def stored(self) -> Watermark:
        """Return what the service has."""
        watermark = await self.client.get_watermark("feed")
        assert watermark
        return watermark

    async def watermark(self) -> datetime | None:
        """Return up to where the source is collected."""
        return (await self.stored()).last_successful_timestamp

    @property
    def rows(self) -> list[str]:
        """The ids in the sink, one for each row."""
        return [row.record_id for row in self.place.rows()]


QUICK = {"sqlite-latest", "sqlite-all", "jsonl-all"}
"""The sinks which take least of the time of a run; the faults are of the engine."""


def each_sink() -> list[Any]:
    """Return the sinks of the package; one that takes long is slow."""
    names = [each if isinstance(each, str) else each.values[0] for each in OURS]
    return [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in names]


@pytest.fixture(params=each_sink())
async def world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    """Be a world whose sink is each in turn."""
    clock = FakeClock(at(24 * 60))
    here = place(request.param, tmp_path, request)
    with flaky_service(tmp_path / "storage.db", now=clock.now) as service:
        async with StorageServiceClient(service.url) as client:
            yield World(service, client, here, clock)


@pytest.fixture
def every_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a run be checkpointed after each page."""
    monkeypatch.setattr(ahead, "GATHER_SECONDS", 0.0)
    monkeypatch.setattr(passage, "CHECKPOINT_SECONDS", 0.0)


class Feed(ScriptedSource):
    """Hold records, and yield in one page those that are not before the start."""

    def __init__(self, *records: Any, overlap: timedelta = timedelta(0)) -> None:
        super().__init__(overlap=overlap)
        self.records = list(records)

    def pages(self, start: datetime | None, until: datetime | None) -> Any:
        within = [
            each
            for each in self.records
            if (start is None or each.timestamp >= start)
            and (until is None or each.timestamp < until)
        ]
        self.runs.append([within])
        return super().pages(start, until)


async def test_ties_at_the_watermark_are_read_again_and_stored_once(world: World) -> None:
    """R1 [1@10, 2@10]; R2 [2@10, 3@10]: 1, 2 and 3 once."""
    w, feed = world, Feed(record("1", 10), record("2", 10))
    await w.run(feed)
    feed.records = [record("2", 10), record("3", 10)]
    report = await w.run(feed)

    assert feed.ranges[1] == (at(10), None)
    assert (w.rows, await w.watermark(), report.records_written) == (["1", "2", "3"], at(10), 1)


async def test_update_at_an_unchanged_timestamp_is_seen(world: World) -> None:
    """R1 [1@10 v=a]; R2 [1@10 v=b]: the latest is b."""
    w, feed = world, Feed(record("1", 10, "a"))
    await w.run(feed)
    feed.records = [record("1", 10, "b")]
    report = await w.run(feed)

    kept = [("1", "b")] if w.place.keep == "latest" else [("1", "a"), ("1", "b")]
    assert sorted(w.place.values()) == kept
    assert (await w.watermark(), report.records_written) == (at(10), 1)


async def test_overlap_adds_nothing_twice(world: World) -> None:
    """R1 [1@10]; R2 with an overlap of 5: [2@9, 1@10]."""
    w, feed = world, Feed(record("1", 10), overlap=timedelta(minutes=5))
    await w.run(feed)
    feed.records = [record("2", 9), record("1", 10)]
    await w.run(feed)

    assert feed.ranges[1] == (at(5), None)
    assert (w.rows, await w.watermark()) == (["1", "2"], at(10))


async def test_watermark_never_goes_back(world: World) -> None:
    """WM 100; R2 returns only 9@97: it is stored, and WM stays."""
    w = world
    await w.collected_up_to(100)
    await w.run(ScriptedSource([[record("9", 97)]]))

    stored = await w.stored()
    assert (w.rows, stored.last_successful_timestamp) == (["0", "9"], at(100))
    assert stored.status == "success"


@pytest.mark.usefixtures("every_page")
@pytest.mark.parametrize("ordered", [False, True], ids=["unordered", "declared ascending"])
async def test_page_below_the_watermark_ends_nothing(world: World, ordered: bool) -> None:
    """WM 5: pages [4@8], [0@2], [7@7]: 4 and 7 once, whatever order the source declares."""
    w = world
    await w.collected_up_to(5)
    source = ScriptedSource([[record("4", 8)], [record("00", 2)], [record("7", 7)]])
    source.ordered = ordered  # type: ignore[attr-defined]
    await w.run(source)

    assert (w.rows, await w.watermark()) == (["0", "00", "4", "7"], at(8))


async def test_record_from_the_future_is_stored_and_moves_nothing(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """Now = 01-03; R1 [1@01-01, 2@2099-01-01]; R2 [3@01-02]: all stored, 2 flagged."""
    w, far = world, datetime(2099, 1, 1, tzinfo=UTC)
    w.clock.start = BEGIN + timedelta(days=2)
    feed = Feed(record("1", BEGIN), record("2", far))
    first = await w.run(feed)
    assert (await w.watermark(), first.records_in_future) == (BEGIN, 1)
    assert "from the future: 1;" in caplog.text

    feed.records.append(record("3", BEGIN + timedelta(days=1)))
    await w.run(feed)

    assert w.rows == ["1", "2", "3"]
    assert await w.watermark() == BEGIN + timedelta(days=1)


async def test_late_record_within_the_overlap_is_collected(world: World) -> None:
    """R1 reads to 105; 9@103 becomes visible later; the overlap is 2."""
    w, feed = world, Feed(record("1", 105), overlap=timedelta(minutes=2))
    await w.run(feed)
    feed.records.append(record("9", 103))
    await w.run(feed)

    assert (w.rows, await w.watermark()) == (["1", "9"], at(105))


async def test_timestamps_are_instants_whatever_their_offset(world: World) -> None:
    """R1 1@02:00+02:00; R2 2@01:00Z: both once, WM 01:00Z."""
    w = world
    east = datetime(2024, 1, 1, 2, tzinfo=timezone(timedelta(hours=2)))
    feed = Feed(record("1", east))
    await w.run(feed)
    assert await w.watermark() == datetime(2024, 1, 1, tzinfo=UTC)
    feed.records = [record("2", datetime(2024, 1, 1, 1, tzinfo=UTC))]
    await w.run(feed)

    assert (w.rows, await w.watermark()) == (["1", "2"], datetime(2024, 1, 1, 1, tzinfo=UTC))


async def test_offset_is_applied_not_relabelled(world: World) -> None:
    """1@2024-01-02T21:59:38+05:30 moves WM to 16:29:38Z."""
    w = world
    w.clock.start = BEGIN + timedelta(days=9)
    india = timezone(timedelta(hours=5, minutes=30))
    await w.run(Feed(record("1", datetime(2024, 1, 2, 21, 59, 38, tzinfo=india))))

    assert await w.watermark() == datetime(2024, 1, 2, 16, 29, 38, tzinfo=UTC)


async def test_naive_and_aware_times_of_one_source_meet(world: World) -> None:
    """Naive 00:00:00 at a source declared UTC, then aware 00:01Z: both once."""
    w = world
    answers = [
        {"1": [{"first_seen_utc": "2024-01-01T00:00:00", "value": "a"}]},
        {"2": [{"first_seen_utc": "2024-01-01T00:01Z", "value": "a"}]},
    ]
    async with FeedServer(*map(Answer.of, answers)) as server:
        source = ThreatFox(url=server.url, source_id="feed", overlap=timedelta(0))
        await w.run(source)
        await w.run(source)

    assert (w.rows, await w.watermark()) == (["1", "2"], at(1))


@pytest.mark.parametrize(
    "reason", ["the timestamp is missing", "'x' is no timestamp"], ids=["18", "19"]
)
async def test_unusable_record_is_quarantined_once(world: World, reason: str) -> None:
    """[1@1, 2@null or 2@"x", 3@3], twice: 1 and 3 once, 2 quarantined once, WM 3."""
    w = world
    page = Page([record("1", 1), record("3", 3)], [Reject(reason, '{"id": "2"}', "2")])
    reports = [await w.run(ScriptedSource([page])) for _ in range(2)]

    assert (w.rows, await w.watermark()) == (["1", "3"], at(3))
    assert [report.records_quarantined for report in reports] == [1, 1]
    assert w.place.rejects() == [("feed", "run-1", reason)]


async def test_impossible_timestamp_of_a_real_source_is_quarantined(world: World) -> None:
    """[1@1, 2@"x", 3@3] as an export says it: 2 is quarantined with the reason."""
    w = world
    export = {
        str(number): [{"first_seen_utc": time, "value": "a"}]
        for number, time in ((1, "2024-01-01T00:01Z"), (2, "x"), (3, "2024-01-01T00:03Z"))
    }
    async with FeedServer(Answer.of(export)) as server:
        await w.run(ThreatFox(url=server.url, source_id="feed"))

    assert (w.rows, await w.watermark()) == (["1", "3"], at(3))
    ((_, _, reason),) = w.place.rejects()
    assert "ISO 8601" in reason


async def test_record_on_two_pages_is_stored_once(world: World) -> None:
    """Pages [1@1, 2@2], [2@2, 3@3]: 1, 2 and 3 once."""
    w, two = world, record("2", 2)
    report = await w.run(ScriptedSource([[record("1", 1), two], [two, record("3", 3)]]))

    assert (w.rows, await w.watermark()) == (["1", "2", "3"], at(3))
    assert (report.records_read, report.records_written) == (4, 3)


async def test_pages_of_known_records_do_not_end_the_reading(world: World) -> None:
    """Page 1 is all below WM, page 2 is new: page 2 is requested."""
    w = world
    await w.collected_up_to(50)
    source = ScriptedSource([[record("1", 1), record("2", 2)], [], [record("3", 60)]])
    await w.run(source)

    assert (source.yielded, await w.watermark()) == (3, at(60))
    assert "3" in w.rows


async def test_empty_run_is_recorded_as_success(world: World) -> None:
    """WM is unchanged; last run and success are recorded."""
    w = world
    await w.collected_up_to(5)
    with pytest.raises(SourceError):
        await w.run(ScriptedSource([SourceError("down")]))
    await w.run(ScriptedSource([]))

    stored = await w.stored()
    assert (stored.last_successful_timestamp, stored.status) == (at(5), "success")
    assert (stored.error_message, stored.last_run_timestamp) == (None, w.clock.now())


@pytest.mark.usefixtures("every_page")
async def test_ordered_source_goes_on_after_a_crash(world: World) -> None:
    """10 pages of 10, dead after page 3: 100 once; one page is fetched again at the most.

    The run ends as a killed process does, without a last word; the crash harness really kills it.
    """
    w = world
    pages: list[Step] = [
        [record(f"{page}{number}", 10 * page + number) for number in range(10)]
        for page in range(10)
    ]
    dead = asyncio.Event()

    class Ordered(Feed):
        ordered = True
        order_guaranteed = True

    async def die() -> None:
        dead.set()
        await asyncio.Event().wait()

    first = ScriptedSource([*pages[:3], die], overlap=timedelta(0))
    first.ordered = first.order_guaranteed = True  # type: ignore[attr-defined]
    running = asyncio.ensure_future(w.run(first, run_id="killed"))
    await reached(dead, running)
    async with asyncio.timeout(5):
        while len(w.rows) < 30 and not running.done():
            await asyncio.sleep(0.001)
    w.service.fail(503, "GET", "PUT")
    running.cancel()
    with pytest.raises((asyncio.CancelledError, StorageResponseError)):
        await running
    w.service.heal()
    w.clock.advance(60)

    feed = Ordered(*(each for page in pages for each in page))  # type: ignore[union-attr]
    report = await w.run(feed)
    assert (len(w.rows), len(set(w.rows))) == (100, 100)
    assert report.records_read <= 81
    assert await w.watermark() == at(99)


async def test_lost_success_is_written_by_the_next_run(world: World) -> None:
    """PUT answers 500 after the sink committed: the run fails; the next adds nothing twice."""
    w, feed = world, Feed(record("1", 10), record("2", 20))
    w.service.fail(500, "PUT", body='"success"')
    with pytest.raises(StorageResponseError):
        await w.run(feed)
    stored = await w.stored()
    assert (w.rows, stored.last_successful_timestamp) == (["1", "2"], None)
    assert stored.status == "failed"

    w.service.heal()
    report = await w.run(feed)

    assert (w.rows, await w.watermark()) == (["1", "2"], at(20))
    assert report.records_written == 0


async def test_source_that_breaks_in_the_middle_keeps_the_last_success(world: World) -> None:
    """The source answers 500 on page 3 of 5: WM stays, `failed` with the error, nothing is lost."""
    w = world
    await w.collected_up_to(5)
    pages: list[Step] = [[record(str(n), n)] for n in range(10, 15)]
    broken = [*pages[:2], SourceError("Source 'feed' answered 500.", "feed")]
    source = ScriptedSource(broken, pages)
    with pytest.raises(SourceError):
        await w.run(source)

    stored = await w.stored()
    assert w.rows == ["0", "10", "11"]
    assert (stored.last_successful_timestamp, stored.status) == (at(5), "failed")
    assert stored.error_message == "SourceError: Source 'feed' answered 500."
    report = await w.run(source)
    assert (w.rows, await w.watermark()) == (["0", "10", "11", "12", "13", "14"], at(14))
    assert report.records_written == 3


async def test_two_runs_of_one_source_store_it_once(world: World) -> None:
    """100 rows: 100 once; the loser says who is running, and collects nothing."""
    w = world
    records = [record(str(number), number) for number in range(100)]
    meeting = asyncio.Event()

    async def meet() -> None:
        with pytest.raises(SourceBusyError, match="run 'first'") as caught:
            await w.run(loser, run_id="second")
        assert caught.value.run_id == "first"
        meeting.set()

    loser = ScriptedSource([records])
    winner = ScriptedSource([records[:50], meet, records[50:]])
    await w.run(winner, run_id="first")

    assert meeting.is_set()
    assert (len(w.rows), loser.ranges, await w.watermark()) == (100, [], at(99))


async def test_run_that_was_overtaken_is_refused(world: World) -> None:
    """A run is paused, another takes over and commits, the first goes on: its write is refused."""
    w = world
    await w.collected_up_to(5)

    async def take_over() -> None:
        w.clock.advance(120)  # the lease of the paused run is over
        await w.run(ScriptedSource([[record("2", 30)]]), run_id="second")

    with pytest.raises(WatermarkConflictError, match="run 'second' was faster"):
        await w.run(ScriptedSource([[record("1", 10)], take_over]), run_id="first")

    stored = await w.stored()
    assert (stored.last_successful_timestamp, stored.status) == (at(30), "success")
    assert stored.run_id == "second"


async def test_backfill_leaves_the_watermark_alone(world: World) -> None:
    """Backfill [0, 20), WM 90, rows 1@1, 2@20, 9@90: only 1 is added."""
    w = world
    await w.collected_up_to(90)
    before = await w.stored()
    feed = Feed(record("1", 1), record("2", 20), record("9", 90))
    report = await w.run(feed, since=at(0), until=at(20))

    assert w.rows == ["0", "1"]
    assert report.backfill
    assert await w.stored() == before


async def test_reset_during_a_run_wins_and_is_audited(world: World) -> None:
    """An operator resets WM during a run: that run's commit is refused; both are in the history."""
    w = world
    await w.collected_up_to(50)

    async def reset() -> None:
        body = {"timestamp": at(20).isoformat(), "reason": "bad data", "actor": "operator"}
        url = f"{w.service.url}/api/v1/watermarks/feed"
        async with aiohttp.request("POST", f"{url}/reset", json=body) as answer:
            assert answer.status == 200

    with pytest.raises(WatermarkConflictError):
        await w.run(ScriptedSource([[record("1", 60)], reset]))
    assert await w.watermark() == at(20)
    history = f"{w.service.url}/api/v1/watermarks/feed/history"
    async with aiohttp.request("GET", history) as answer:
        last = (await answer.json())["changes"][0]
    assert (last["action"], last["actor"], last["reason"]) == ("reset", "operator", "bad data")
    assert (last["from_timestamp"], last["to_timestamp"]) == (
        at(50).isoformat(),
        at(20).isoformat(),
    )
    w.clock.advance(60)  # the refused run may write nothing, and so its lease has to end
    again = Feed(record("1", 60), record("2", 30))
    await w.run(again)
    assert again.ranges == [(at(20), None)]


async def test_gap_is_reported(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """WM is 40 days old, the API keeps 30: the run says what is lost."""
    w = world
    await w.collected_up_to(0)
    w.clock.advance(timedelta(days=40).total_seconds())
    feed = Feed(record("9", w.clock.now()))
    feed.retention = timedelta(days=30)  # type: ignore[attr-defined]
    report = await w.run(feed)

    kept = w.clock.now() - timedelta(days=30)
    assert report.gap == Gap(start=at(0), end=kept)
    assert f"keeps nothing from before {kept.isoformat()}" in caplog.text


async def test_earlier_start_names_the_backfill(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """The initial start is set earlier than what was collected: a warning names backfill."""
    w, day = world, timedelta(days=1)
    await w.run(Feed(record("1", 10)), limits=Limits(initial_lookback=day))
    assert "backfill" not in caplog.text
    await w.run(Feed(record("1", 10)), limits=Limits(initial_lookback=30 * day))
    assert "collect what is before by a backfill" in caplog.text


@pytest.mark.parametrize(
    "answer",
    [
        Answer.of({"count": 0, "vulnerabilities": []}),
        Answer.of({"count": 2, "vulnerabilities": [{"cveID": "1", "dateAdded": "2024-01-01"}]}),
        Answer(b'{"count": 2, "vulnerabilities": [{"cveID": "1", "dateAd'),
        Answer(b""),
        Answer.of({"count": 1, "vulnerabilities": [{"cveID": "1", "dateAdded": "2024-01-01"}]}),
    ],
    ids=["empty", "short", "cut off", "nothing", "implausible"],
)
async def test_empty_or_truncated_catalogue_fails_and_deletes_nothing(
    world: World, answer: Answer
) -> None:
    """The feed had records and now answers a document without them: WM and sink stay."""
    w = world
    entries = [{"cveID": cve, "dateAdded": "2024-01-01", "value": "a"} for cve in ("1", "2", "3")]
    whole = Answer.of({"count": 3, "vulnerabilities": entries})
    async with FeedServer(whole, answer) as server:
        source = Kev(url=server.url, source_id="feed")
        await w.run(source)
        with pytest.raises(SourceError):
            await w.run(source)

    stored = await w.stored()
    assert set(w.rows) == {"1", "2", "3"}
    assert (stored.last_successful_timestamp, stored.status) == (BEGIN, "failed")
