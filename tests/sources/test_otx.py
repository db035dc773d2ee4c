"""OTX: subscribed pulses, whose pages shift while pulses change."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlencode

import pytest
import stamina

from ladon_storage.collection.run import run
from ladon_storage.errors import SourceError
from ladon_storage.sources import Otx
from ladon_storage.sources.http import sending
from ladon_storage.testing import SourceContract, SourceFeed
from ladon_storage.testing.doubles import MemorySink, ScriptedStorage, at
from ladon_storage.testing.feed_server import Answer, Asked, FeedServer
from tests.recordings import recording

KEY = "s3cret-key"


@pytest.fixture(autouse=True)
def _key_and_no_waiting(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("OTX_KEY", KEY)
    with stamina.set_testing(True, attempts=sending.ATTEMPTS, cap=True):
        yield


def pulse(number: int, minute: float) -> dict[str, Any]:
    modified = at(minute).replace(tzinfo=None).isoformat(timespec="microseconds")
    return {"id": f"p{number}", "modified": modified, "name": f"Pulse {number}"}


class Service:
    """Answer as OTX does: oldest first, by pages, as its pulses are at that moment.

    ``between`` is called after each page that is not the last.
    """

    def __init__(self, *pulses: dict[str, Any]) -> None:
        self.pulses = list(pulses)
        self.between: Callable[[], None] = lambda: None

    def __call__(self, asked: Asked) -> Answer:
        if asked.headers.get("X-OTX-API-KEY") != KEY:
            return Answer(json.dumps({"detail": "Authentication required"}).encode(), status=403)
        since = asked.query.get("modified_since", "")
        limit, page = int(asked.query["limit"]), int(asked.query.get("page", 1))
        found = sorted(
            (each for each in self.pulses if each["modified"] >= since[:19]),
            key=lambda each: each["modified"],
        )
        following = None
        if page * limit < len(found):
            query = {"limit": limit, "modified_since": since, "page": page + 1}
            following = f"http://{asked.headers['Host']}{asked.path}?{urlencode(query)}"
        document = {
            "results": found[(page - 1) * limit : page * limit],
            "count": len(found),
            "previous": None,
            "next": following,
        }
        if following:
            self.between()
        return Answer.of(document)

    def modify(self, number: int, minute: float) -> None:
        """Change a pulse, which moves to the end."""
        self.pulses = [each for each in self.pulses if each["id"] != f"p{number}"]
        self.pulses.append(pulse(number, minute))


def source(feed: FeedServer, **fields: Any) -> Otx:
    return Otx(url=feed.at("v1/pulses/subscribed"), key="OTX_KEY", **fields)


async def read(
    from_: Otx, start: datetime | None = None, until: datetime | None = None
) -> list[tuple[str, datetime]]:
    return [
        (each.record_id, each.timestamp)
        async for page in from_.pages(start, until)
        for each in page.records
    ]


async def test_pulses_are_read_to_the_last_page() -> None:
    """`next` is followed; times without a zone are UTC; the key is on every request."""
    async with FeedServer(play=Service(*(pulse(n, n) for n in range(5)))) as feed:
        assert await read(source(feed, page_size=2)) == [(f"p{n}", at(n)) for n in range(5)]

    # Each page is looked at again behind the next one, and the first one at the end.
    pages = [each.query.get("page") for each in feed.asks]
    assert pages == [None, "2", None, "3", "2", None]
    assert {each.headers["X-OTX-API-KEY"] for each in feed.asks} == {KEY}
    assert not any(KEY in each for each in feed.requests)


async def test_service_is_asked_for_what_was_modified_since() -> None:
    """The start is told in seconds; what is delivered besides is not dropped."""
    async with FeedServer(play=Service(*(pulse(n, n) for n in range(5)))) as feed:
        start = at(1) + timedelta(milliseconds=1)
        assert await read(source(feed), start, at(4)) == [(f"p{n}", at(n)) for n in range(1, 5)]

    assert feed.asks[0].query["modified_since"] == "2024-01-01T00:01:00Z"


async def test_list_that_shifted_is_read_on_where_it_is() -> None:
    """A pulse that was pushed onto a page that was read already is not lost."""
    service = Service(*(pulse(n, n) for n in range(4)))

    def once() -> None:
        service.between = lambda: None
        service.modify(0, 60)

    service.between = once
    async with FeedServer(play=service) as feed:
        sink, storage = MemorySink(), ScriptedStorage()
        await run(source(feed, page_size=2), sink, storage, run_id="r", clock=lambda: at(99))

    # Page 1 has p0 and p1, then p0 moves behind p3: page 2 would have p3 and p0, without p2.
    assert sorted(set(sink.ids)) == ["p0", "p1", "p2", "p3"]
    assert storage.stored["otx"].last_successful_timestamp == at(60)


async def test_list_that_shifts_every_time_fails_the_run() -> None:
    """Reading ends, and is no success, since something may be missing."""
    service = Service(*(pulse(n, n) for n in range(8)))
    minutes = itertools.count(60)

    def always() -> None:
        for first in sorted(service.pulses, key=lambda each: each["modified"])[:3]:
            service.modify(int(first["id"][1:]), next(minutes))

    service.between = always
    async with FeedServer(play=service) as feed:
        with pytest.raises(SourceError, match="changed in each of 5 readings") as caught:
            await read(source(feed, page_size=2))

    assert caught.value.transient


async def test_fewer_pulses_than_are_stated_fail_the_run() -> None:
    """A list that ends before its count is no whole one."""
    page = {"results": [pulse(1, 1)], "count": 2, "next": None}
    async with FeedServer(play=lambda _: Answer.of(page)) as feed:
        with pytest.raises(SourceError, match="states 2 items at 'count', and returned"):
            await read(source(feed))


async def test_gateway_that_times_out_is_asked_again() -> None:
    """A 504 in the middle passes."""
    service = Service(*(pulse(n, n) for n in range(4)))
    answers = [Answer(status=504)]

    def slow(asked: Asked) -> Answer:
        return answers.pop() if answers and "page" in asked.query else service(asked)

    async with FeedServer(play=slow) as feed:
        assert len(await read(source(feed, page_size=2))) == 4


async def test_wrong_key_fails_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """A refusal is told, and not asked again."""
    monkeypatch.setenv("OTX_KEY", "other")
    async with FeedServer(play=Service()) as feed:
        with pytest.raises(SourceError, match="answered 403"):
            await read(source(feed))

    assert len(feed.requests) == 1


async def test_next_page_on_another_host_does_not_get_the_key() -> None:
    """The service cannot send our key anywhere."""
    async with FeedServer(play=Service()) as other:
        page = {"results": [], "count": 0, "next": other.url}
        async with FeedServer(Answer.of(page)) as feed:
            with pytest.raises(SourceError, match="on another host"):
                await read(source(feed))

    assert other.requests == []


async def test_answer_of_another_shape_fails_the_run() -> None:
    """What is not a page of pulses is no empty one."""
    async with FeedServer(Answer.of({"detail": "maintenance"})) as feed:
        with pytest.raises(SourceError, match="does not have a list at 'results'"):
            await read(source(feed))


def test_defaults_are_the_public_service() -> None:
    """A key is all that must be set; a day is read again."""
    made = Otx(key="OTX_KEY")

    assert made.url == "https://otx.alienvault.com/api/v1/pulses/subscribed"
    assert (made.source_id, made.overlap) == ("otx", timedelta(hours=24))
    assert not getattr(made, "ordered", False)


@pytest.mark.recordings
async def test_recorded_page_is_read() -> None:
    """The recorded page has the shape that is expected here; its `next` is not asked."""
    recorded = recording("otx/pulses_subscribed_page.json")
    document = json.loads(recorded.read_bytes())
    async with FeedServer(Answer.of({**document, "next": None, "count": 1})) as feed:
        [(pulse_id, modified)] = await read(source(feed))

    [truth] = document["results"]
    assert pulse_id == truth["id"]
    assert modified == datetime.fromisoformat(truth["modified"]).replace(tzinfo=UTC)


async def test_count_is_met_by_pulses_that_differ() -> None:
    """A pulse that comes twice stands for another, which never came."""

    def twice(asked: Asked) -> Answer:
        page = int(asked.query.get("page", 1))
        results = [pulse(page, page), pulse(page + 1, page + 1)]
        following = f"{asked.path}?page=2" if page == 1 else None
        return Answer.of({"results": results, "count": 4, "next": following})

    async with FeedServer(play=twice) as feed:
        with pytest.raises(SourceError, match=r"4 items at .*, and returned 3 different ones"):
            await read(source(feed))


async def test_sentence_instead_of_pulses_fails_the_run() -> None:
    """An empty list beside a refusal is no sign that there are no pulses."""
    async with FeedServer(Answer.of({"results": [], "detail": "Request was throttled."})) as feed:
        with pytest.raises(SourceError, match="throttled"):
            await read(source(feed))


class TestContract(SourceContract):
    """Subscribed pulses keep the contract of sources."""

    step = timedelta(seconds=1)

    def new_source(self, feed: SourceFeed) -> Otx:
        return source(feed, page_size=2)

    def item(self, record_id: str, time: datetime, value: str) -> object:
        modified = time.replace(tzinfo=None).isoformat(timespec="microseconds")
        return {"id": record_id, "modified": modified, "name": value}

    def answer(self, request: Asked, items: list[Any]) -> Answer:
        return Service(*({"modified": "2024-01-01", **each} for each in items))(request)
