"""URLhaus: its dumps, its API, the recordings of both, and its key that is nowhere to be seen."""

from __future__ import annotations

import csv
import io
import json
import logging
import lzma
import sqlite3
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from ladon_storage.collection.protocols import Limits, utc_now
from ladon_storage.collection.records import Page
from ladon_storage.collection.run import Report, run
from ladon_storage.errors import ConfigurationError, SourceError
from ladon_storage.sinks import SqlSink
from ladon_storage.sources import UrlHaus, source_from, urlhaus
from ladon_storage.sources.csv_rows import MOST_LINES
from ladon_storage.testing import SourceContract, SourceFeed
from ladon_storage.testing.clock import FakeClock
from ladon_storage.testing.doubles import MemorySink, RememberingSink, ScriptedStorage
from ladon_storage.testing.feed_server import Answer, Asked, FeedServer
from tests.recordings import members, recording
from tests.tables import table

HEADER = b"""################################################################
# abuse.ch URLhaus Database Dump (CSV - recent URLs only)      #
# Last updated: 2025-04-21 12:35:06 (UTC)                      #
################################################################
#
# id,dateadded,url,url_status,last_online,threat,tags,urlhaus_link,reporter
"""
KEY = "s3cret-key"
OPEN = b'"2","2025-04-21 00:00:00","http://203.0.113.7/2\r\n'


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ABUSE_KEY", KEY)


def line(number: int, added: str, online: str = "", tags: str = "elf,Mozi") -> bytes:
    link = f"https://urlhaus.abuse.ch/url/{number}/"
    cells = [str(number), added, "http://203.0.113.7/i", "online", online, "x", tags, link, "me"]
    return (",".join(f'"{cell}"' for cell in cells) + "\r\n").encode()


def found(number: Any, added: str) -> dict[str, Any]:
    return {"id": number, "date_added": added, "url": "http://203.0.113.7/i", "tags": None}


class Service:
    """Answer as abuse.ch does: the API wants its key in a header, the dump in its path."""

    def __init__(self, urls: list[Any] | None = None, dump: bytes = b"") -> None:
        self.urls = urls
        self.dump = dump

    def __call__(self, asked: Asked) -> Answer:
        if asked.path.endswith(".csv"):
            return Answer(self.dump) if f"/{KEY}/" in asked.path else Answer(status=403)
        if asked.headers.get("Auth-Key") != KEY:
            return Answer(json.dumps({"error": "Unauthorized"}).encode(), status=401)
        if not self.urls:
            return Answer.of({"query_status": "no_results"})
        return Answer.of({"query_status": "ok", "urls": self.urls[: urlhaus.API_LIMIT]})


async def pages(
    source: UrlHaus, start: datetime | None = None, until: datetime | None = None
) -> list[Page]:
    return [page async for page in source.pages(start, until)]


async def dumped(body: bytes, start: datetime | None = None) -> list[Page]:
    async with FeedServer(Answer(body)) as feed:
        return await pages(UrlHaus(url=feed.url), start)


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


async def test_dump_is_read_by_the_names_in_its_comment() -> None:
    """Rows become objects of their columns; an address is as new as it was last seen."""
    rows = [
        line(3, "2025-04-21 12:35:06"),
        line(2, "2025-04-20 10:00:00", "2025-04-21 12:00:00", 'a ""b"", c'),
        line(1, "2025-04-20 10:00:00"),
    ]
    [page] = await dumped(HEADER + b"".join(rows), utc("2025-04-20 12:00:00"))

    assert [(each.record_id, each.timestamp) for each in page.records] == [
        ("3", utc("2025-04-21 12:35:06")),
        ("2", utc("2025-04-21 12:00:00")),
        ("1", utc("2025-04-20 10:00:00")),
    ]
    assert json.loads(page.records[1].payload) == {
        "id": "2",
        "dateadded": "2025-04-20 10:00:00",
        "url": "http://203.0.113.7/i",
        "url_status": "online",
        "last_online": "2025-04-21 12:00:00",
        "threat": "x",
        "tags": 'a "b", c',
        "urlhaus_link": "https://urlhaus.abuse.ch/url/2/",
        "reporter": "me",
    }


async def test_dump_may_end_with_comments_and_hold_line_breaks() -> None:
    """A comment after the rows is none of them; a cell may go over several lines."""
    body = HEADER + line(2, "2025-04-21", tags="a\n# b") + b"# Number of entries: 1\n"
    [page] = await dumped(body)

    assert [json.loads(each.payload)["tags"] for each in page.records] == ["a\n# b"]
    assert page.rejects == []


@pytest.mark.parametrize(
    ("bad", "reason", "record_id"),
    [
        (b'"2","2025-04-21"\n', "has 2 columns instead of 9", "2"),
        (line(2, "soon"), "dateadded: should be an ISO 8601", "2"),
        (line(2, ""), "date_added and dateadded and last_online: missing", "2"),
        (b'"2","2025-04-21"x,\n', "is no CSV: ", "2"),
        (b'x"\n', "has 1 columns instead of 9", None),
        (line(2, "2025-04-21", tags="\xff").replace(b"\xc3\xbf", b"\xff"), "is not UTF-8", "2"),
        (line(2, "2025-04-21", tags="x" * 200_000), "is no CSV: field larger than", "2"),
    ],
)
async def test_unusable_row_is_rejected_and_the_rest_goes_on(
    bad: bytes, reason: str, record_id: str | None
) -> None:
    """One bad row is kept with its reason; those after it are collected."""
    [page] = await dumped(HEADER + bad + line(1, "2025-04-21"))

    assert [each.record_id for each in page.records] == ["1"]
    [reject] = page.rejects
    assert reject.reason.startswith(reason)
    assert reject.record_id == record_id


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "was cut off: after 0 bytes"),
        (HEADER, "is empty"),
        (HEADER + b"# Number of entries: 0\n", "is empty"),
        (HEADER + line(1, "2025-04-21")[:-9], "it ends in the middle of a line"),
        (HEADER.decode().encode("utf-16"), "is not UTF-8, but UTF-16: it begins with b'\\xff"),
        (HEADER.decode().encode("utf-16-be"), "is not UTF-8, but UTF-16: it begins with b'\\x00#"),
        (b"<html>\n</html>\n", "has no header line with the columns"),
        (line(1, "2025-04-21"), "has no header line with the columns"),
        (HEADER.replace(b"reporter", b"id") + line(1, "2025-04-21"), "has a column twice"),
        (HEADER.replace(b"id,", b"\xff,") + b"\n", "has no header line with the columns"),
        (HEADER + line(1, "2025-04-21") + b"# Number of entries: 2\n", "1 entries and states 2"),
        (
            b"# Number of entries: 2\n" + HEADER + line(1, "2025-04-21"),
            "was cut off: it has 1 entries and states 2",
        ),
        (
            b"# Number of entries: 3\n"
            + HEADER
            + line(1, "2025-04-21") * 2
            + line(2, "2025-04-20"),
            "states 3 entries, and has 2 ids in 3 of them: others are missing",
        ),
        (
            HEADER + line(1, "2025-04-21") + b"# ERROR: query timed out\n",
            "was cut off: it ends with '# ERROR: query timed out'",
        ),
        (HEADER + line(2, "2025-04-21") + OPEN, "was cut off: its last line is no CSV"),
        (
            HEADER + line(2, "2025-04-21") + b"Error: the database went away\n\n",
            "was cut off: its last line has 1 columns instead of 9",
        ),
    ],
    ids=[
        *(
            "nothing",
            "no rows",
            "no entries",
            "cut off",
            "utf-16",
            "utf-16 without its mark",
            "html",
            "no header",
            "column twice",
            "not text",
        ),
        *("fewer entries", "fewer entries, said before", "fewer ids", "comment"),
        *("cut in quotes", "an error"),
    ],
)
async def test_dump_that_is_none_fails_the_run(body: bytes, message: str) -> None:
    """An empty, truncated or other document is no news."""
    with pytest.raises(SourceError) as caught:
        await dumped(body)

    assert message in str(caught.value)
    assert caught.value.source_id == "urlhaus"


async def test_key_in_the_path_is_shown_nowhere(caplog: pytest.LogCaptureFixture) -> None:
    """The key in the address of a dump is told to the server, and to nobody else."""
    caplog.set_level(logging.DEBUG)
    dump = HEADER + line(1, "2025-04-21")
    async with FeedServer(play=Service(dump=dump)) as feed:
        source = UrlHaus(url=feed.at("exports/{key}/recent.csv"), key="ABUSE_KEY")
        [page] = await pages(source)
        feed.script.extend([Answer(status=404), Answer(b"{")])
        for _ in range(2):
            with pytest.raises(SourceError) as caught:
                await pages(source)
            assert KEY not in str(caught.value) + repr(source)

    assert [each.record_id for each in page.records] == ["1"]
    assert KEY not in caplog.text


@pytest.mark.parametrize("around", ["good", "broken", "last row"])
async def test_row_with_an_open_quote_costs_itself_alone(around: str) -> None:
    """Neither the next row goes with it nor the one before, and its text is kept."""
    before, after = line(3, "2025-04-21"), line(1, "2025-04-20")
    wrong = {
        "good": OPEN + after,
        "broken": OPEN + OPEN + after,
        "last row": after + OPEN + b"# end\n",
    }[around]

    [page] = await dumped(HEADER + before + wrong)

    assert [each.record_id for each in page.records] == ["3", "1"]
    assert {each.record_id for each in page.rejects} == {"2"}
    assert {json.loads(each.raw) for each in page.rejects} == {OPEN.decode().strip()}


@pytest.mark.parametrize("tags", ['""', 'x"', '"x"'])
async def test_quote_that_closes_in_the_next_row_takes_no_row(tags: str) -> None:
    """A row that stands for itself is no part of the one before, whatever its quotes close."""
    head = "# id,dateadded,url,tags\n"
    rows = [f"{number},2025-04-21,http://e/{number}," for number in (3, 2, 1)]

    [page] = await dumped(f'{head}{rows[0]}"a\n{rows[1]}{tags}\n{rows[2]}"b"\n'.encode())

    assert [each.record_id for each in page.records] == ["2", "1"]
    assert [each.record_id for each in page.rejects] == ["3"]


@pytest.mark.parametrize(("lines", "found"), [(MOST_LINES - 1, ["2"]), (MOST_LINES, [])])
async def test_row_of_too_many_lines_is_broken(lines: int, found: list[str]) -> None:
    """An open quote is followed only so far, or a dump of them would take for ever."""
    row = line(2, "2025-04-21", tags="a" + "\n" * lines + "b")
    [page] = await dumped(HEADER + row + b"# end\n")

    assert [each.record_id for each in page.records] == found
    assert bool(page.rejects) == (not found)


async def test_broken_row_is_kept_once(tmp_path: Path) -> None:
    """It is the same one in the next poll, where it stands further down."""
    path, storage = tmp_path / "records.db", ScriptedStorage(now=utc_now)
    dump = line(4, "2025-04-21") + OPEN + line(1, "2025-04-20")
    async with FeedServer(
        Answer(HEADER + dump), Answer(HEADER + line(5, "2025-04-21") + dump)
    ) as feed:
        for number in range(2):
            await run(
                UrlHaus(url=feed.url),
                SqlSink(f"sqlite:///{path}", "records", "all"),
                storage,
                run_id=str(number),
                clock=lambda: utc("2025-04-22"),
            )

    assert sorted(row[0] for row in table(path, "record_id")) == ["1", "4", "5"]
    with closing(sqlite3.connect(path)) as database:
        kept = database.execute("SELECT raw FROM records_quarantine").fetchall()
    assert [json.loads(raw) for (raw,) in kept] == [OPEN.decode().strip()]


def days(*ages: int) -> bytes:
    return b"".join(
        line(100 - age, f"{utc('2025-04-21') - timedelta(days=age):%Y-%m-%d %H:%M:%S}")
        for age in ages
    )


async def polled(*dumps: bytes, **limits: Any) -> tuple[list[object], MemorySink]:
    """Return how runs over these dumps ended, and what they stored."""
    storage, sink, outcomes = ScriptedStorage(now=utc_now), RememberingSink(), []
    async with FeedServer(*map(Answer, dumps)) as feed:
        for number in range(len(dumps)):
            try:
                outcome: object = await run(
                    UrlHaus(url=feed.url),
                    sink,
                    storage,
                    run_id=str(number),
                    limits=Limits(**limits),
                    clock=lambda: utc("2025-04-22"),
                )
            except SourceError as error:
                outcome = error
            outcomes.append(outcome)
    return outcomes, sink


async def test_dump_that_does_not_reach_back_fails() -> None:
    """What it has is stored, the watermark stays, and the next whole one ends the matter."""
    whole = HEADER + days(*range(31))
    (_, cut, last), sink = await polled(
        HEADER + days(*range(12, 43)), HEADER + days(*range(3)), whole
    )

    assert isinstance(cut, SourceError)
    assert "start at 2025-04-19T00:00:00+00:00, and the sink has them up to 2025-04-09" in str(cut)
    assert isinstance(last, Report)
    assert last.watermark_before == utc("2025-04-09")
    assert (last.records_new, len(sink.ids)) == (9, 43)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (range(12, 43), range(13)),  # from the newest that is durable on
        (range(40, 70), range(31)),  # older than what a dump has: the run's report says so
        (range(40, 70), range(30)),
        (range(1, 3), [0, 1]),  # a feed that is young
        (range(3), range(3)),  # nothing new
    ],
)
async def test_dump_that_reaches_back_is_collected(first: Any, second: Any) -> None:
    """To what is durable, or as far as a dump does."""
    outcomes, _ = await polled(HEADER + days(*first), HEADER + days(*second))

    assert all(isinstance(each, Report) for each in outcomes)


async def test_first_dump_need_not_reach_back() -> None:
    """Nothing lies between it and nothing, also where the first run looks back further."""
    [outcome], sink = await polled(HEADER + days(0, 1), initial_lookback=timedelta(days=20))

    assert isinstance(outcome, Report)
    assert sink.ids == ["100", "99"]


async def test_api_yields_what_it_has() -> None:
    """Times end in UTC; ids are numbers, texts, or the end of a link."""
    urls = [
        found(9, "2026-02-01 13:22:19 UTC"),
        found("8", "2026-02-01 13:22:19 UTC"),
        {
            "urlhaus_reference": "https://urlhaus.abuse.ch/url/7/",
            "date_added": "2026-02-01 13:00:00 UTC",
        },
        {"urlhaus_link": "https://example.org/", "date_added": "2026-02-01 13:00:00 UTC"},
        found(6, "2026-01-30 00:00:00 UTC"),
    ]
    async with FeedServer(play=Service(urls)) as feed:
        source = UrlHaus(via="api", url=feed.url, key="ABUSE_KEY")
        [page] = await pages(source, utc("2026-02-01"))

    assert [each.record_id for each in page.records] == ["9", "8", "7", "6"]
    assert [each.reason for each in page.rejects] == ["id: should be an id, and is none"]


async def test_api_without_results_is_empty() -> None:
    """That there is nothing is no error."""
    async with FeedServer(play=Service()) as feed:
        [page] = await pages(UrlHaus(via="api", url=feed.url, key="ABUSE_KEY"))

    assert (len(page), page.completeness) == (0, "whole document")


async def test_wrong_key_fails_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """A refusal is told, and not asked again."""
    monkeypatch.setenv("ABUSE_KEY", "other")
    async with FeedServer(play=Service()) as feed:
        with pytest.raises(SourceError, match="answered 401"):
            await pages(UrlHaus(via="api", url=feed.url, key="ABUSE_KEY"))

    assert len(feed.requests) == 1


@pytest.mark.parametrize(
    "document",
    [
        {},
        [],
        {"query_status": "ok"},
        {"query_status": "ok", "urls": []},
        {"query_status": "x"},
        {"query_status": "no_results", "urls": [{"id": 1}]},
    ],
)
async def test_api_says_no_inside_of_an_answer(document: Any) -> None:
    """Only the status ok with a list is a success."""
    async with FeedServer(Answer.of(document)) as feed:
        with pytest.raises(SourceError, match="answered "):
            await pages(UrlHaus(via="api", url=feed.url, key="ABUSE_KEY"))


@pytest.mark.parametrize(("count", "fails"), [(999, False), (1_000, True), (1_001, True)])
async def test_full_answer_that_does_not_reach_back_fails(count: int, fails: bool) -> None:
    """What no longer fits into the API's answer is a gap, and no silent success."""
    begin = utc("2026-02-05")
    urls: list[Any] = [
        found(number, f"{begin + timedelta(seconds=number):%Y-%m-%d %H:%M:%S} UTC")
        for number in range(count, 0, -1)
    ]
    urls[5] = {}
    async with FeedServer(play=Service(urls)) as feed:
        source = UrlHaus(via="api", url=feed.url, key="ABUSE_KEY")
        assert sum(map(len, await pages(source))) == min(count, 1_000)
        durable = begin + timedelta(seconds=500)
        assert await pages(source, durable - source.overlap)
        if not fails:
            assert await pages(source, begin - source.overlap)
            return
        with pytest.raises(SourceError) as caught:
            await pages(source, begin - source.overlap)

    assert "Collect once with via 'recent'" in str(caught.value)


@pytest.mark.parametrize(("second", "fails"), [(1, True), (2, True), (3, False)])
async def test_full_answer_reaches_back_beyond_the_durable_second(second: int, fails: bool) -> None:
    """It may be cut between addresses of that second; a quiet feed's is full again, and fine."""
    begin = utc("2026-02-05")
    urls = [  # two of each second; of the seven newest one is alone, and its twin was cut off
        found(number, f"{begin + timedelta(seconds=number // 2):%Y-%m-%d %H:%M:%S} UTC")
        for number in range(12)
    ]
    storage, sink, failures = ScriptedStorage(now=utc_now), MemorySink(), list[str]()
    async with FeedServer() as feed:
        url = feed.at("urls/recent/limit/7/")
        source = UrlHaus(via="api", url=url, key="ABUSE_KEY")
        for count in (2 * second + 1, 12, 12):
            newest = sorted(urls[:count], key=lambda each: (-(each["id"] // 2), each["id"]))
            feed.play = Service(newest[:7])
            try:
                await run(source, sink, storage, run_id="r", clock=lambda: utc("2026-02-06"))
            except SourceError as error:
                failures.append(str(error))

    assert len(failures) == (2 if fails else 0)
    assert all(("others of that time may be missing" in each) is (second == 2) for each in failures)
    assert (len({*sink.ids}) < len(urls)) is fails
    success = storage.stored["urlhaus"].last_successful_timestamp
    assert success == begin + timedelta(seconds=second if fails else 5)


async def test_limit_in_the_address_is_that_of_the_answer() -> None:
    """A full answer of a hundred leaves as much out as one of a thousand."""
    urls: list[Any] = [found(n, f"2026-02-05 00:{n:02}:00 UTC") for n in range(50, 0, -1)]
    async with FeedServer(play=Service(urls)) as feed:
        for limit, message in ((50, "its last 50 addresses"), (51, None)):
            url = feed.at(f"urls/recent/limit/{limit}/")
            source = UrlHaus(via="api", url=url, key="ABUSE_KEY")
            if message is None:
                assert await pages(source, utc("2026-02-01"))
                continue
            with pytest.raises(SourceError, match=message):
                await pages(source, utc("2026-02-01"))


def test_defaults_are_the_public_dump() -> None:
    """Without a key the dump of 30 days is read; each way says how far back it goes."""
    assert UrlHaus().url == "https://urlhaus.abuse.ch/downloads/csv_recent/"
    assert UrlHaus().retention == timedelta(days=30)
    assert UrlHaus(via="online").url == "https://urlhaus.abuse.ch/downloads/csv_online/"
    assert UrlHaus(via="online").retention is None
    assert UrlHaus(via="api", key="K").url == "https://urlhaus-api.abuse.ch/v1/urls/recent/"
    assert UrlHaus(via="api", key="K").retention == timedelta(days=3)


@pytest.mark.parametrize("fields", [{"via": "api"}, {"url": "https://example.org/{key}/x.csv"}])
def test_key_is_required_where_it_is_needed(fields: dict[str, str]) -> None:
    """It is told when the source is made, not by a refusal in the night."""
    with pytest.raises(ConfigurationError, match="it requires a key"):
        source_from({"kind": "urlhaus", **fields})


@pytest.mark.recordings
async def test_recorded_dump_is_collected_whole(tmp_path: Path) -> None:
    """11,125 rows, of which most share their time with another, are in the sink once."""
    recorded = recording("urlhaus/csv_online_2025-04-21.csv.xz")
    body = lzma.decompress(recorded.read_bytes())
    truth = list(csv.DictReader(io.StringIO(body.decode())))
    path, storage = tmp_path / "records.db", ScriptedStorage(now=utc_now)
    now = utc("2025-04-21 13:00:00")
    async with FeedServer(play=lambda _: Answer(body)) as feed:
        for expected in (11_125, 0):
            sink = SqlSink(f"sqlite:///{path}", "records", "all")
            source = UrlHaus(via="online", url=feed.url)
            report = await run(source, sink, storage, run_id="r", clock=lambda: now)
            assert (report.records_written, report.records_quarantined) == (expected, 0)

    rows = table(path, "record_id, payload")
    assert len(rows) == len(truth) == 11_125
    assert {row[0]: json.loads(row[1]) for row in rows} == {row["id"]: row for row in truth}
    newest = max(max(row["dateadded"], row["last_online"]) for row in truth)
    assert storage.stored["urlhaus"].last_successful_timestamp == utc(newest)


@pytest.mark.recordings
async def test_recorded_polls_lose_nothing_and_repeat_nothing(tmp_path: Path) -> None:
    """Every version of 25 polls is in the sink once."""
    path, storage = tmp_path / "records.db", ScriptedStorage(now=utc_now)
    published: set[tuple[str, str]] = set()
    written = 0
    async with FeedServer(play=Service()) as feed:
        source = UrlHaus(via="api", url=feed.url, key="ABUSE_KEY")
        for name, body in members("urlhaus/threatpulse_urlhaus_25polls_2026-02.tar.xz"):
            urls = json.loads(body)["urls"]
            published |= {
                (each["urlhaus_link"].split("/")[-2], json.dumps(each, sort_keys=True))
                for each in urls
            }
            feed.play = Service(urls)
            moment = datetime.strptime(name.split("_")[1], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
            sink = SqlSink(f"sqlite:///{path}", "records", "all")
            clock = FakeClock(moment)
            report = await run(source, sink, storage, run_id="r", clock=clock.now)
            written += report.records_written
            assert (report.gap, report.records_quarantined) == (None, 0)

    rows = table(path, "record_id, payload")
    assert len(rows) == written == len(published)
    assert {(row[0], json.dumps(json.loads(row[1]), sort_keys=True)) for row in rows} == published
    assert len(feed.requests) == 25


class TestDumpContract(SourceContract):
    """The dump keeps the contract of sources."""

    step = timedelta(seconds=1)
    begin = SourceContract.begin.replace(microsecond=0)

    def unusable(self) -> object:
        return b'"2","2025-04-21"\n'

    def new_source(self, feed: SourceFeed) -> UrlHaus:
        return UrlHaus(url=feed.url)

    def record_id(self, number: int) -> str:
        return str(number + 1)

    def item(self, record_id: str, time: datetime, value: str) -> object:
        return line(int(record_id), f"{time:%Y-%m-%d %H:%M:%S}", tags=value)

    def answer(self, request: Asked, items: list[Any]) -> Answer:
        return Answer(HEADER + b"".join(items))


class TestApiContract(SourceContract):
    """The API keeps the contract of sources."""

    step = timedelta(seconds=1)
    begin = SourceContract.begin.replace(microsecond=0)
    most = urlhaus.API_LIMIT

    def unusable(self) -> object:
        return {"id": 9, "date_added": "soon"}

    def new_source(self, feed: SourceFeed) -> UrlHaus:
        return UrlHaus(via="api", url=feed.url, key="ABUSE_KEY")

    def record_id(self, number: int) -> str:
        return str(number + 1)

    def item(self, record_id: str, time: datetime, value: str) -> object:
        return {**found(record_id, f"{time:%Y-%m-%d %H:%M:%S} UTC"), "tags": [value]}

    def answer(self, request: Asked, items: list[Any]) -> Answer:
        return Service(items)(request)
