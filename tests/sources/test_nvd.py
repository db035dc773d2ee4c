"""NVD: windows of 120 days, offsets that slip, throttling by 403, and the rate that is kept."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import stamina
from yarl import URL

from ladon_storage.collection.run import run
from ladon_storage.errors import SourceError
from ladon_storage.sources import Nvd, nvd, problems
from ladon_storage.sources.fields import Rate
from ladon_storage.sources.http import hosts, sending
from ladon_storage.sources.http.hosts import circuit_of
from ladon_storage.sources.nvd import _windows
from ladon_storage.testing import SourceContract, SourceFeed
from ladon_storage.testing.doubles import MemorySink, ScriptedStorage, at
from ladon_storage.testing.feed_server import Answer, Asked, FeedServer
from tests.recordings import recording

NOW = at(1_000)
KEY = "s3cret-key"


@pytest.fixture(autouse=True)
def rates(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Rate | None]]:
    """Note the rate of each request without waiting for it, and do not wait for retries."""
    asked: list[Rate | None] = []

    async def admitted(_: URL, rate: Rate | None) -> None:
        asked.append(rate)

    monkeypatch.setattr(sending, "wait_for_rate_limit", admitted)
    monkeypatch.setattr(problems, "utc_now", lambda: NOW)
    monkeypatch.setenv("NVD_KEY", KEY)
    with stamina.set_testing(True, attempts=sending.ATTEMPTS, cap=True):
        yield asked


def cve(number: int, minute: float) -> dict[str, Any]:
    modified = at(minute).replace(tzinfo=None).isoformat(timespec="milliseconds")
    return {"cve": {"id": f"CVE-2024-{number}", "lastModified": modified}}


class Service:
    """Answer as NVD does: both ends of a range or none, 120 days at most, by offsets.

    ``between`` is called after each page that is not the last.
    """

    def __init__(self, *cves: dict[str, Any]) -> None:
        self.cves = list(cves)
        self.between: Callable[[], None] = lambda: None

    def __call__(self, asked: Asked) -> Answer:
        assert "+" not in asked.query.get("apiKey", "")
        found = self.cves
        ends = [asked.query.get(name) for name in ("lastModStartDate", "lastModEndDate")]
        if any(ends):
            if not all(ends):
                return Answer(status=404, headers={"message": "both ends are needed"})
            first, last = (datetime.fromisoformat(str(end)) for end in ends)
            if last - first > timedelta(days=120):
                return Answer(status=404, headers={"message": "the range is too long"})
            found = [each for each in found if first <= modified(each) <= last]
        start, size = int(asked.query["startIndex"]), int(asked.query["resultsPerPage"])
        if size > 2_000:
            return Answer(status=404)
        page = found[start : start + size]
        document = {
            "resultsPerPage": len(page),
            "startIndex": start,
            "totalResults": len(found),
            "format": "NVD_CVE",
            "vulnerabilities": page,
        }
        if start + size < len(found):
            self.between()
        return Answer.of(document)

    def modify(self, number: int, minute: float) -> None:
        """Change a CVE where it stands."""
        for index, each in enumerate(self.cves):
            if each["cve"]["id"] == f"CVE-2024-{number}":
                self.cves[index] = cve(number, minute)


def modified(each: dict[str, Any]) -> datetime:
    return datetime.fromisoformat(each["cve"]["lastModified"]).replace(tzinfo=UTC)


async def read(
    source: Nvd, start: datetime | None = None, until: datetime | None = None
) -> list[str]:
    return [
        each.record_id.removeprefix("CVE-2024-")
        async for page in source.pages(start, until)
        for each in page.records
    ]


async def test_first_collection_reads_all_without_a_range(rates: list[Rate | None]) -> None:
    """What was never collected has no beginning; pages overlap by one, and the front is read again.

    Nothing is yielded twice.
    """
    async with FeedServer(play=Service(*(cve(n, n) for n in range(7)))) as feed:
        assert await read(Nvd(url=feed.url, page_size=3)) == [str(n) for n in range(7)]

    assert [each.query["startIndex"] for each in feed.asks] == ["0", "2", "4", "0"]
    assert not any("lastMod" in each for each in feed.requests)
    assert rates == [Rate(requests=5, seconds=30)] * 4


async def test_key_is_a_header_and_raises_the_rate(rates: list[Rate | None]) -> None:
    """With a key ten times as many requests are allowed."""
    async with FeedServer(play=Service(cve(1, 1))) as feed:
        await read(Nvd(url=feed.url, key="NVD_KEY"))

    assert feed.asks[0].headers["apiKey"] == KEY
    assert KEY not in feed.requests[0]
    assert rates == [Rate(requests=50, seconds=30)]


async def test_range_is_told_with_its_offset_encoded() -> None:
    """A bare + would be read as a space; the range is widened to seconds, and selects nothing."""
    async with FeedServer(play=Service(*(cve(n, n) for n in range(5)))) as feed:
        start, until = at(1), at(3) - timedelta(milliseconds=1)
        assert await read(Nvd(url=feed.url), start, until) == ["1", "2", "3"]

    assert "lastModStartDate=2024-01-01T00:01:00.000%2B00:00" in feed.requests[0].replace(
        "%3A", ":"
    )
    assert "lastModEndDate=2024-01-01T00:03:00.000%2B00:00" in feed.requests[0].replace("%3A", ":")


@pytest.mark.parametrize("fraction", [timedelta(0), timedelta(microseconds=123_456)])
async def test_long_range_is_read_in_windows(fraction: timedelta) -> None:
    """No request spans more than 120 days, whole seconds or not, and no moment is left out."""
    days = [0, 119, 120, 121, 240, 299]
    service = Service(*(cve(n, -day * 1_440) for n, day in enumerate(days)))
    async with FeedServer(play=service) as feed:
        found = await read(Nvd(url=feed.url), NOW - timedelta(days=300) + fraction)

    assert sorted(set(found)) == ["0", "1", "2", "3", "4", "5"]
    assert len(feed.requests) == 3


@pytest.mark.parametrize(
    ("refusal", "said"),
    [
        (Answer(status=404, headers={"message": "the range is too long"}), "the range is too long"),
        (Answer(b'{"error": "Result limit exceeded"}', status=404), "Result limit exceeded"),
        (Answer(status=404), ""),
    ],
)
async def test_range_that_is_refused_is_named(refusal: Answer, said: str) -> None:
    """Smaller pages did not help, so the error says what was asked for, and what the API said."""
    async with FeedServer(play=lambda _: refusal) as feed:
        with pytest.raises(SourceError) as caught:
            await read(Nvd(url=feed.url), NOW - timedelta(days=119))

    assert (
        "with lastModStartDate=2023-09-04T16:40:00.000+00:00 and "
        "lastModEndDate=2024-01-01T16:40:00.000+00:00"
    ) in str(caught.value)
    assert said in str(caught.value)
    assert not caught.value.transient


@pytest.mark.parametrize(
    ("start", "until", "count"),
    [
        (None, None, 1),
        (None, NOW, 1),
        (NOW - timedelta(days=120), None, 1),
        (NOW - timedelta(days=120, seconds=1), None, 2),
        (NOW - timedelta(days=360, microseconds=1), None, 4),
        (NOW - timedelta(days=240), NOW - timedelta(days=120, microseconds=1), 1),
        (NOW - timedelta(days=500), NOW - timedelta(days=400), 1),
        (NOW - timedelta(days=1), NOW + timedelta(days=9), 1),
        (NOW + timedelta(days=1), None, 0),
    ],
)
def test_windows_follow_each_other(
    start: datetime | None, until: datetime | None, count: int
) -> None:
    """Each begins where the last one ends; none is too long, and none lies in the future."""
    windows = list(_windows(start, until, NOW))

    assert len(windows) == count
    if start is None or not windows:
        return
    end = min(until or NOW, NOW)
    assert windows[0][0]
    assert windows[-1][1]
    assert timedelta(0) <= start - windows[0][0] < timedelta(seconds=1)
    assert timedelta(0) <= windows[-1][1] - end < timedelta(seconds=1)
    for (_, last), (first, _) in itertools.pairwise(windows):
        assert last == first
    for first, last in windows:
        assert first
        assert last
        assert timedelta(0) < last - first <= timedelta(days=120)


async def test_window_that_lost_a_cve_is_read_again() -> None:
    """A CVE that is modified meanwhile moves all behind it up; none of them is skipped."""
    service = Service(*(cve(n, n) for n in range(5)))

    def once() -> None:
        service.between = lambda: None
        service.modify(0, 2_000)

    service.between = once
    async with FeedServer(play=service) as feed:
        sink, storage = MemorySink(), ScriptedStorage()
        storage.put("nvd", last_successful_timestamp=at(0), status="success")
        source = Nvd(url=feed.url, page_size=2, overlap=timedelta(0))
        await run(source, sink, storage, run_id="r", clock=lambda: NOW)

        assert sink.ids == [f"CVE-2024-{n}" for n in range(5)]
        assert storage.stored["nvd"].last_successful_timestamp == at(4)


async def test_window_whose_cve_left_and_another_entered_loses_none() -> None:
    """A total that stays as it was hides nothing: the CVE that moved up is read."""
    service = Service(*(cve(n, n) for n in range(6)))

    def once() -> None:
        service.between = lambda: None
        service.modify(0, 2_000)
        service.cves.append(cve(6, 6))

    service.between = once
    async with FeedServer(play=service) as feed:
        found = await read(Nvd(url=feed.url, page_size=3), at(0))

    assert set(found) == {str(n) for n in range(7)}


async def test_window_that_is_gone_every_time_fails_the_run() -> None:
    """A result that may have a hole is no success."""
    service = Service(*(cve(n, n) for n in range(40)))
    numbers = iter(range(40, 9_999))

    def replace_all() -> None:
        service.cves = [cve(next(numbers), n) for n in range(40)]

    service.between = replace_all
    async with FeedServer(play=service) as feed:
        with pytest.raises(SourceError, match="records may have been skipped") as caught:
            await read(Nvd(url=feed.url, page_size=20), at(0))

    assert caught.value.transient
    assert caught.value.source_id == "nvd"


async def test_cves_that_are_added_meanwhile_need_no_second_reading() -> None:
    """What grows at its end skips nothing, and is read to where it ends then."""
    service = Service(*(cve(n, n) for n in range(4)))

    def once() -> None:
        service.between = lambda: None
        service.cves.append(cve(4, 4))

    service.between = once
    async with FeedServer(play=service) as feed:
        assert await read(Nvd(url=feed.url, page_size=3)) == ["0", "1", "2", "3", "4"]

    assert [each.query["startIndex"] for each in feed.asks] == ["0", "2", "0"]


async def test_throttled_is_403_and_is_waited_for() -> None:
    """It is no refusal, and says nothing against the host."""
    script = [Answer(status=403)] * (sending.ATTEMPTS - 1)
    async with FeedServer(*script, play=Service(cve(1, 1))) as feed:
        assert await read(Nvd(url=feed.url)) == ["1"]
        assert circuit_of(URL(feed.url)).failure_count == 0

    assert len(feed.requests) == sending.ATTEMPTS


async def test_wrong_key_fails_the_run() -> None:
    """NVD answers 404 to a key that it does not know, as to a page that is too large."""
    async with FeedServer(play=lambda _: Answer(status=404)) as feed:
        with pytest.raises(SourceError, match="answered 404"):
            await read(Nvd(url=feed.url, key="NVD_KEY"))

    sizes = [each.query["resultsPerPage"] for each in feed.asks]
    assert sizes == ["2000", "1000", "500", "250", "125", "100"]


@pytest.mark.parametrize("most", [1_000, 999, 100])
async def test_page_that_is_refused_as_too_large_is_asked_for_smaller(most: int) -> None:
    """Also in the middle of a reading: the offset stays, and nothing is lost."""
    service = Service(*(cve(n, n / 100) for n in range(2_500)))
    refuses = [2_000]

    def cves(asked: Asked) -> Answer:
        if int(asked.query["resultsPerPage"]) > refuses[0]:
            return Answer(status=404)
        refuses[0] = most
        return service(asked)

    async with FeedServer(play=cves) as feed:
        found = await read(Nvd(url=feed.url))

    assert sorted(map(int, found)) == list(range(2_500))


async def test_page_that_is_empty_before_the_total_fails() -> None:
    """A service that breaks off is not believed to have ended."""
    page: dict[str, Any] = {"totalResults": 2, "vulnerabilities": []}
    async with FeedServer(Answer.of(page)) as feed:
        with pytest.raises(SourceError, match="states 2 items"):
            await read(Nvd(url=feed.url))


@pytest.mark.parametrize("total", [None, "", "no", float("inf"), []])
async def test_empty_page_without_a_total_fails(total: object) -> None:
    """A service that tells no total is not believed to have nothing."""
    page: dict[str, Any] = {"totalResults": total, "vulnerabilities": []}
    async with FeedServer(Answer(body=json.dumps(page).encode())) as feed:
        with pytest.raises(SourceError, match=r"states no total at 'totalResults'|JSON"):
            await read(Nvd(url=feed.url))


async def test_unusable_cve_is_rejected() -> None:
    """One bad entry does not hold the others back."""
    page = {"totalResults": 3, "vulnerabilities": [cve(1, 1), {"cve": {}}, {"cve": {"id": "x"}}]}
    async with FeedServer(Answer.of(page)) as feed:
        [found] = [each async for each in Nvd(url=feed.url).pages(None, None)]

    assert [each.reason for each in found.rejects] == [
        "cve.lastModified: missing",
        "cve.lastModified: missing",
    ]


async def test_reading_says_how_its_end_is_known() -> None:
    """By the total; that of several windows is their sum."""
    service = Service(*(cve(n, -n * 1_440) for n in range(300)))
    async with FeedServer(play=service) as feed:
        source = Nvd(url=feed.url)
        for start, total in ((NOW - timedelta(days=290), 290), (NOW - timedelta(days=9), 9)):
            pages = [page async for page in source.pages(start, None)]
            known = [page.total for page in pages if page.total is not None]
            assert (pages[-1].completeness, known[-1]) == ("total", total)


def test_rate_is_what_the_service_asks_for() -> None:
    """Six seconds between two requests without a key."""
    assert nvd.RATE.seconds / nvd.RATE.requests == 6
    assert hosts.CIRCUIT_FAILURES >= sending.ATTEMPTS


@pytest.mark.recordings
async def test_recorded_page_is_read() -> None:
    """The recorded page has the shape that is expected here."""
    recorded = recording("nvd/nvd_cves_2.0_page.json")
    document = json.loads(recorded.read_bytes())
    async with FeedServer(Answer.of(document)) as feed:
        [page] = [page async for page in Nvd(url=feed.url).pages(None, None)]

    truth = {each["cve"]["id"]: modified(each) for each in document["vulnerabilities"]}
    assert {each.record_id: each.timestamp for each in page.records} == truth
    assert len(page.records) == 47
    assert page.rejects == []


class TestContract(SourceContract):
    """CVEs keep the contract of sources."""

    step = timedelta(milliseconds=1)
    begin = NOW - timedelta(minutes=1)

    def unusable(self) -> object:
        return {"cve": {"id": "CVE-2024-9"}}

    def new_source(self, feed: SourceFeed) -> Nvd:
        return Nvd(url=feed.url, page_size=2)

    def record_id(self, number: int) -> str:
        return f"CVE-2024-{number}"

    def item(self, record_id: str, time: datetime, value: str) -> object:
        text = time.replace(tzinfo=None).isoformat(timespec="milliseconds")
        return {"cve": {"id": record_id, "lastModified": text, "descriptions": [value]}}

    def answer(self, request: Asked, items: list[Any]) -> Answer:
        return Service(*items)(request)
