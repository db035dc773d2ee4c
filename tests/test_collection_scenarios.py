"""Collection scenarios, each under its number: what other systems are known to get wrong.

``record(id, minute)`` stands for ``id@minute``. Each runs twice and more through one table of
SQLite, with one row per record and with one per version where that makes a difference.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from ladon_storage.collection.engine import Report, run
from ladon_storage.collection.interfaces import Source
from ladon_storage.collection.sinks import sink_from
from ladon_storage.collection.sources import Kev, ThreatFox
from ladon_storage.errors import SourceError, StorageResponseError
from ladon_storage.models import WatermarkStatus
from tests.clock import FakeClock
from tests.collecting import BEGIN, ScriptedSource, ScriptedStorage, Step, at, record, table
from tests.feed_server import Answer, FeedServer

both_keeps = pytest.mark.parametrize("keep", ["latest", "all"])


class World:
    """Be one source's storage, sink and clock over several runs."""

    def __init__(self, path: Path, keep: str = "latest") -> None:
        self.path = path
        self.clock = FakeClock(at(24 * 60))
        self.storage = ScriptedStorage(now=self.clock.now)
        self._sink = {"url": f"sqlite:///{path}", "keep": keep}
        self._runs = 0

    async def run(self, source: Source, **options: Any) -> Report:
        self._runs += 1
        self.clock.advance(60)
        run_id = f"run-{self._runs}"
        return await run(
            source,
            sink_from(self._sink),
            self.storage,
            run_id=run_id,
            clock=self.clock.now,
            **options,
        )

    def collected_up_to(self, minute: float) -> None:
        self.storage.put("feed", status="success", last_successful_timestamp=at(minute))

    @property
    def watermark(self) -> datetime | None:
        stored = self.storage.stored.get("feed")
        return stored.last_successful_timestamp if stored else None

    @property
    def status(self) -> Any:
        return self.storage.stored["feed"].status

    @property
    def rows(self) -> list[str]:
        """The ids in the sink, one for each row."""
        return sorted(row[0] for row in table(self.path))

    @property
    def values(self) -> list[tuple[Any, ...]]:
        return table(self.path, "record_id, json_extract(payload, '$.value')")


@pytest.fixture
def world(tmp_path: Path) -> Callable[..., World]:
    return lambda keep="latest": World(tmp_path / "records.db", keep)


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


@both_keeps
async def test_01_ties_at_the_watermark_are_read_again_and_stored_once(
    world: Callable[..., World], keep: str
) -> None:
    """R1 [1@10, 2@10]; R2 [2@10, 3@10]: 1, 2 and 3 once."""
    w, feed = world(keep), Feed(record("1", 10), record("2", 10))
    await w.run(feed)
    feed.records = [record("2", 10), record("3", 10)]
    report = await w.run(feed)

    assert feed.ranges[1] == (at(10), None)
    assert (w.rows, w.watermark, report.records_written) == (["1", "2", "3"], at(10), 1)


async def test_02_update_at_an_unchanged_timestamp_is_seen(world: Callable[..., World]) -> None:
    """R1 [1@10 v=a]; R2 [1@10 v=b]: the latest is b."""
    w, feed = world(), Feed(record("1", 10, "a"))
    await w.run(feed)
    feed.records = [record("1", 10, "b")]
    report = await w.run(feed)

    assert (w.values, w.watermark, report.records_written) == ([("1", "b")], at(10), 1)


@both_keeps
async def test_04_overlap_adds_nothing_twice(world: Callable[..., World], keep: str) -> None:
    """R1 [1@10]; R2 with an overlap of 5: [2@9, 1@10]."""
    w, feed = world(keep), Feed(record("1", 10), overlap=timedelta(minutes=5))
    await w.run(feed)
    feed.records = [record("2", 9), record("1", 10)]
    await w.run(feed)

    assert feed.ranges[1] == (at(5), None)
    assert (w.rows, w.watermark) == (["1", "2"], at(10))


async def test_05_watermark_never_goes_back(world: Callable[..., World]) -> None:
    """WM 100; R2 returns only 9@97: it is stored, and WM stays."""
    w = world()
    w.collected_up_to(100)
    await w.run(ScriptedSource([[record("9", 97)]]))

    assert (w.rows, w.watermark, w.status) == (["9"], at(100), WatermarkStatus.SUCCESS)


async def test_08_record_from_the_future_is_stored_and_moves_nothing(
    world: Callable[..., World], caplog: pytest.LogCaptureFixture
) -> None:
    """Now = 01-03; R1 [1@01-01, 2@2099-01-01]; R2 [3@01-02]: all stored, 2 flagged."""
    w, far = world(), datetime(2099, 1, 1, tzinfo=UTC)
    w.clock.start = BEGIN + timedelta(days=2)
    feed = Feed(record("1", BEGIN), record("2", far))
    first = await w.run(feed)
    assert (w.watermark, first.records_in_future) == (BEGIN, 1)
    assert "1 records from the future" in caplog.text

    feed.records.append(record("3", BEGIN + timedelta(days=1)))
    await w.run(feed)

    assert w.rows == ["1", "2", "3"]
    assert w.watermark == BEGIN + timedelta(days=1)


async def test_10_late_record_within_the_overlap_is_collected(
    world: Callable[..., World],
) -> None:
    """R1 reads to 105; 9@103 becomes visible later; the overlap is 2."""
    w, feed = world(), Feed(record("1", 105), overlap=timedelta(minutes=2))
    await w.run(feed)
    feed.records.append(record("9", 103))
    await w.run(feed)

    assert (w.rows, w.watermark) == (["1", "9"], at(105))


async def test_11_timestamps_are_instants_whatever_their_offset(
    world: Callable[..., World],
) -> None:
    """R1 1@02:00+02:00; R2 2@01:00Z: both once, WM 01:00Z."""
    w = world()
    east = datetime(2024, 1, 1, 2, tzinfo=timezone(timedelta(hours=2)))
    feed = Feed(record("1", east))
    await w.run(feed)
    assert w.watermark == datetime(2024, 1, 1, tzinfo=UTC)
    feed.records = [record("2", datetime(2024, 1, 1, 1, tzinfo=UTC))]
    await w.run(feed)

    assert (w.rows, w.watermark) == (["1", "2"], datetime(2024, 1, 1, 1, tzinfo=UTC))


async def test_12_offset_is_applied_not_relabelled(world: Callable[..., World]) -> None:
    """1@2024-01-02T21:59:38+05:30 moves WM to 16:29:38Z."""
    w = world()
    w.clock.start = BEGIN + timedelta(days=9)
    india = timezone(timedelta(hours=5, minutes=30))
    await w.run(Feed(record("1", datetime(2024, 1, 2, 21, 59, 38, tzinfo=india))))

    assert w.watermark == datetime(2024, 1, 2, 16, 29, 38, tzinfo=UTC)


async def test_15_naive_and_aware_times_of_one_source_meet(world: Callable[..., World]) -> None:
    """Naive 00:00:00 at a source declared UTC, then aware 00:01Z: both once."""
    w = world()
    answers = [
        {"1": [{"first_seen_utc": "2024-01-01T00:00:00"}]},
        {"2": [{"first_seen_utc": "2024-01-01T00:01Z"}]},
    ]
    async with FeedServer(*map(Answer.of, answers)) as server:
        source = ThreatFox(url=server.url, source_id="feed", overlap=timedelta(0))
        await w.run(source)
        await w.run(source)

    assert (w.rows, w.watermark) == (["1", "2"], at(1))


@both_keeps
async def test_21_record_on_two_pages_is_stored_once(
    world: Callable[..., World], keep: str
) -> None:
    """Pages [1@1, 2@2], [2@2, 3@3]: 1, 2 and 3 once."""
    w, two = world(keep), record("2", 2)
    report = await w.run(ScriptedSource([[record("1", 1), two], [two, record("3", 3)]]))

    assert (w.rows, w.watermark) == (["1", "2", "3"], at(3))
    assert (report.records_read, report.records_written) == (4, 3)


async def test_23_page_below_the_watermark_does_not_end_the_reading(
    world: Callable[..., World],
) -> None:
    """Page 1 is all below WM, page 2 is new: page 2 is requested."""
    w = world()
    w.collected_up_to(50)
    source = ScriptedSource([[record("1", 1), record("2", 2)], [], [record("3", 60)]])
    await w.run(source)

    assert (source.yielded, w.watermark) == (3, at(60))
    assert "3" in w.rows


async def test_24_empty_run_is_recorded_as_success(world: Callable[..., World]) -> None:
    """WM is unchanged; last run and success are recorded."""
    w = world()
    w.storage.put("feed", status="failed", error_message="old", last_successful_timestamp=at(5))
    await w.run(ScriptedSource([]))

    stored = w.storage.stored["feed"]
    assert (w.watermark, w.status, stored.error_message) == (at(5), "success", None)
    assert stored.last_run_timestamp == w.clock.now()


@both_keeps
async def test_27_lost_success_is_written_by_the_next_run(
    world: Callable[..., World], keep: str
) -> None:
    """PUT answers 500 after the sink committed: the run fails; the next adds nothing twice."""
    w, feed = world(keep), Feed(record("1", 10), record("2", 20))
    down = StorageResponseError("The Storage Service answered 500.", 500)
    w.storage.plan("success", down)
    w.storage.plan("failed", down)
    with pytest.raises(StorageResponseError):
        await w.run(feed)
    assert (w.rows, w.watermark, w.status) == (["1", "2"], None, "running")

    report = await w.run(feed)

    assert (w.rows, w.watermark, w.status) == (["1", "2"], at(20), "success")
    assert report.records_written == 0


async def test_29_source_that_breaks_in_the_middle_keeps_the_last_success(
    world: Callable[..., World],
) -> None:
    """The source answers 500 on page 3 of 5: WM stays, `failed` with the error, nothing is lost."""
    w = world()
    w.collected_up_to(5)
    pages: list[Step] = [[record(str(n), n)] for n in range(10, 15)]
    broken = [*pages[:2], SourceError("Source 'feed' answered 500.", "feed")]
    source = ScriptedSource(broken, pages)
    with pytest.raises(SourceError):
        await w.run(source)

    assert (w.rows, w.watermark, w.status) == (["10", "11"], at(5), "failed")
    assert w.storage.stored["feed"].error_message == "SourceError: Source 'feed' answered 500."
    report = await w.run(source)
    assert (w.rows, w.watermark) == (["10", "11", "12", "13", "14"], at(14))
    assert report.records_written == 3


async def test_33_backfill_leaves_the_watermark_alone(world: Callable[..., World]) -> None:
    """Backfill [0, 20), WM 90, rows 1@1, 2@20, 9@90: only 1 is added."""
    w = world()
    w.collected_up_to(90)
    before = w.storage.stored["feed"]
    feed = Feed(record("1", 1), record("2", 20), record("9", 90))
    report = await w.run(feed, since=at(0), until=at(20))

    assert w.rows == ["1"]
    assert report.backfill
    assert w.storage.stored["feed"] is before


@pytest.mark.parametrize(
    "answer",
    [
        Answer.of({"count": 0, "vulnerabilities": []}),
        Answer.of({"count": 2, "vulnerabilities": [{"cveID": "1", "dateAdded": "2024-01-01"}]}),
        Answer(b'{"count": 2, "vulnerabilities": [{"cveID": "1", "dateAd'),
        Answer(b""),
    ],
    ids=["empty", "short", "cut off", "nothing"],
)
async def test_40_empty_or_truncated_catalogue_fails_and_deletes_nothing(
    world: Callable[..., World], answer: Answer
) -> None:
    """The feed had records and now answers a document without them: WM and sink stay."""
    w = world()
    entries = [{"cveID": cve, "dateAdded": "2024-01-01"} for cve in ("1", "2")]
    whole = Answer.of({"count": 2, "vulnerabilities": entries})
    async with FeedServer(whole, answer) as server:
        source = Kev(url=server.url, source_id="feed")
        await w.run(source)
        with pytest.raises(SourceError):
            await w.run(source)

    assert (w.rows, w.watermark, w.status) == (["1", "2"], BEGIN, "failed")
