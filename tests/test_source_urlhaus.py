"""URLhaus: its dumps, its API, the recordings of both, and its key that is nowhere to be seen."""

from __future__ import annotations

import csv
import io
import json
import logging
import lzma
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from ladon_storage.collection.engine import run
from ladon_storage.collection.records import Page
from ladon_storage.collection.sinks import SqlSink
from ladon_storage.collection.sources import UrlHaus, source_from, urlhaus
from ladon_storage.errors import ConfigurationError, SourceError
from tests.clock import FakeClock
from tests.collecting import ScriptedStorage, table
from tests.feed_server import Answer, Asked, FeedServer
from tests.recordings import members, recording

HEADER = b"""################################################################
# abuse.ch URLhaus Database Dump (CSV - recent URLs only)      #
# Last updated: 2025-04-21 12:35:06 (UTC)                      #
################################################################
#
# id,dateadded,url,url_status,last_online,threat,tags,urlhaus_link,reporter
"""
KEY = "s3cret-key"


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
        (b'"2","2025-04-21"x,\n', "line 1 of the rows is no CSV", None),
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
        (b"<html>\n</html>\n", "has no line that names the columns"),
        (line(1, "2025-04-21"), "has no line that names the columns"),
        (HEADER + b"\xff\n", "is not UTF-8 at byte"),
    ],
    ids=["nothing", "no rows", "no entries", "cut off", "html", "no header", "not text"],
)
async def test_dump_that_is_none_fails_the_run(body: bytes, message: str) -> None:
    """An empty, truncated or other document is no news (scenario 40)."""
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

    assert [each.record_id for each in page.records] == ["9", "8", "7"]
    assert [each.reason for each in page.rejects] == ["id: should be an id, and is none"]


async def test_api_without_results_is_empty() -> None:
    """That there is nothing is no error."""
    async with FeedServer(play=Service()) as feed:
        assert await pages(UrlHaus(via="api", url=feed.url, key="ABUSE_KEY")) == []


async def test_wrong_key_fails_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """A refusal is told, and not asked again."""
    monkeypatch.setenv("ABUSE_KEY", "other")
    async with FeedServer(play=Service()) as feed:
        with pytest.raises(SourceError, match="answered 401"):
            await pages(UrlHaus(via="api", url=feed.url, key="ABUSE_KEY"))

    assert len(feed.requests) == 1


@pytest.mark.parametrize("document", [{}, [], {"query_status": "ok"}, {"query_status": "x"}])
async def test_api_says_no_inside_of_an_answer(document: Any) -> None:
    """Only the status ok with a list is a success."""
    async with FeedServer(Answer.of(document)) as feed:
        with pytest.raises(SourceError, match="answers "):
            await pages(UrlHaus(via="api", url=feed.url, key="ABUSE_KEY"))


@pytest.mark.parametrize(("count", "fails"), [(999, False), (1_000, True), (1_001, True)])
async def test_full_answer_that_does_not_reach_back_fails(count: int, fails: bool) -> None:
    """What no longer fits into the API's answer is a gap, and no silent success (scenario 38)."""
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

    assert "what is between is not there any more; collect it once with via 'recent'" in str(
        caught.value
    )


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
    with pytest.raises(ConfigurationError, match="it needs a key"):
        source_from({"kind": "urlhaus", **fields})


@pytest.mark.recordings
async def test_recorded_dump_is_collected_whole(tmp_path: Path) -> None:
    """11,125 rows, of which most share their time with another, are in the sink once."""
    recorded = recording("urlhaus/csv_online_2025-04-21.csv.xz")
    body = lzma.decompress(recorded.read_bytes())
    truth = list(csv.DictReader(io.StringIO(body.decode())))
    path, storage = tmp_path / "records.db", ScriptedStorage()
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
    path, storage = tmp_path / "records.db", ScriptedStorage()
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
