"""The source that is a TAXII 2.1 collection: of a real server, and behind a misbehaving proxy."""

from __future__ import annotations

import json
import traceback
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import stamina

from ladon_storage.collection.protocols import Source
from ladon_storage.collection.records import Page
from ladon_storage.collection.run import run
from ladon_storage.errors import ConfigurationError, SourceError
from ladon_storage.sources import source_from
from ladon_storage.sources.taxii import Taxii
from ladon_storage.testing.doubles import (
    LatestSink,
    MemorySink,
    RememberingSink,
    ScriptedStorage,
    at,
)
from ladon_storage.testing.feed_server import Answer, Asked, FeedServer
from tests.sources.taxii_process import LARGEST_PAGE, PASSWORD, USER
from tests.sources.taxii_server import MEDIA_TYPE, Proxy, TaxiiServer, stix, taxii_server

FIRST, LAST = "X-TAXII-Date-Added-First", "X-TAXII-Date-Added-Last"


@pytest.fixture(scope="module")
def server() -> Iterator[TaxiiServer]:
    with taxii_server() as running:
        yield running


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAXII_KEY", PASSWORD)


def collection_at(url: str, **fields: Any) -> Taxii:
    return Taxii(url=url, **{"user": USER, "key": "TAXII_KEY", "page_size": 4, **fields})


def through(feed: FeedServer, path: str) -> str:
    """Return the address of a collection behind a proxy, which has the server's own path."""
    return feed.url.removesuffix("/feed.json") + path


async def read(
    source: Taxii, start: datetime | None = None, until: datetime | None = None
) -> list[Page]:
    *pages, end = [page async for page in source.pages(start, until)]
    assert end == Page(completeness="last page")
    return pages


def ids(pages: list[Page]) -> list[str]:
    return [each.record_id for page in pages for each in page.records]


def numbered(*numbers: int) -> list[str]:
    return [str(stix(each)["id"]) for each in numbers]


def spread(count: int) -> list[tuple[datetime, dict[str, Any]]]:
    return [(at(n), stix(n)) for n in range(count)]


def tied(count: int, minute: float = 5) -> list[tuple[datetime, dict[str, Any]]]:
    return [(at(minute), stix(n)) for n in range(count)]


def drop_next(document: dict[str, Any], _: object) -> None:
    document.pop("next", None)


def expire_next(query: dict[str, str]) -> None:
    if "next" in query:
        query["next"] = "6d6e7b2c-0000-4000-8000-000000000000"


# The server as it is.


async def test_pages_are_followed_by_next_with_the_same_question(server: TaxiiServer) -> None:
    """A server refuses a `next` that comes with another question; the last page has none."""
    path = server.collection(*spread(11))
    proxy = Proxy(server)
    async with FeedServer(play=proxy) as feed:
        pages = await read(collection_at(through(feed, path)), at(1))
        asked = [dict(each.query) for each in feed.asks]

    assert ids(pages) == numbered(*range(1, 11))
    assert [page.records[0].timestamp for page in pages] == [at(4), at(8), at(10)]
    same = {"limit": "4", "match[version]": "all", "added_after": "2024-01-01T00:00:59.999000Z"}
    assert asked[0] == same
    assert [{**each, "next": ""} for each in asked[1:]] == [{**same, "next": ""}] * 2
    assert {each.headers["Accept"] for each in feed.asks} == {MEDIA_TYPE}
    assert json.loads(pages[0].records[0].payload) == stix(1)


@pytest.mark.parametrize("missing", [None, FIRST, LAST])
async def test_page_over_the_end_of_a_range_is_in_the_range(
    server: TaxiiServer, missing: str | None
) -> None:
    """Nobody knows which of its objects are: in windows, those of each page are read."""
    path = server.collection(*spread(11))
    proxy = Proxy(server)

    def without(asked: Asked) -> Answer:
        answer = proxy(asked)
        headers = {name: each for name, each in answer.headers.items() if name != missing}
        return replace(answer, headers=headers)

    found: set[str] = set()
    async with FeedServer(play=without) as feed:
        for first in range(0, 11, 2):
            start, until = at(first), at(first + 2)
            pages = await read(collection_at(through(feed, path)), start, until)
            times = [each.timestamp for page in pages for each in page.records]
            assert all(start <= each < until for each in times)
            found |= {*ids(pages)}

    assert found == {*numbered(*range(11))}


@pytest.mark.parametrize("page_size", [1, 2, 3, 9])
async def test_version_that_is_listed_last_is_current_wherever_pages_end(page_size: int) -> None:
    """Whenever it was modified, also of one instant, and in each further run."""
    modified_last = stix(1, "2024-01-03T00:00:00.000Z", "modified last")
    added_last = stix(1, "2024-01-01T00:00:00.000Z", "added last")
    at_once = [stix(3, f"2024-01-0{day}T00:00:00.000Z") for day in (3, 1, 2)]
    added = [(at(1), modified_last), (at(2), stix(2)), *((at(3), each) for each in at_once)]
    late = [(at(1.5), added_last), (at(4), stix(4))]  # visible after what was added later

    def play(asked: Asked) -> Answer:
        after = datetime.fromisoformat(asked.query.get("added_after", "2023-01-01T00:00:00Z"))
        found = sorted((each for each in added if each[0] > after), key=lambda each: each[0])
        first = int(asked.query.get("next", 0))
        end = first + int(asked.query["limit"])
        page, more = found[first:end], end < len(found)
        ends = (each[0].isoformat() for each in (page[0], page[-1]))
        document = {"objects": [each for _, each in page], "more": more}
        return Answer(
            json.dumps(document | ({"next": str(end)} if more else {})).encode(),
            headers=dict(zip((FIRST, LAST), ends, strict=True)),
        )

    storage, sink = ScriptedStorage(), LatestSink()
    async with FeedServer(play=play) as feed:
        for number, size in enumerate((9, page_size, 9, page_size)):
            source = collection_at(feed.at("c"), page_size=size)
            await run(source, sink, storage, run_id=str(number), clock=lambda: at(60))
            if not number:
                added += late
                continue
            current = {key: json.loads(each.payload) for key, each in sink.current.items()}
            assert current[added_last["id"]] == added_last
            assert current[at_once[-1]["id"]] == at_once[-1]


@pytest.mark.parametrize("digits", [3, 6])
async def test_start_is_included(server: TaxiiServer, digits: int) -> None:
    """`added_after` is exclusive, so that it is asked for what is a little earlier."""
    moment = at(1) + timedelta(milliseconds=123)
    path = server.collection((at(0), stix(0)), (moment, stix(1)), digits=digits)

    assert ids(await read(collection_at(server.url(path)), moment)) == numbered(1)
    after = moment + timedelta(milliseconds=2)
    assert await read(collection_at(server.url(path)), after) == []


@pytest.mark.parametrize("slash", ["", "/", "/objects", "/objects/"])
async def test_address_may_end_as_people_write_it(server: TaxiiServer, slash: str) -> None:
    """The address of the collection, or of its objects."""
    path = server.collection(*spread(1)).rstrip("/") + slash

    assert ids(await read(collection_at(server.url(path)))) == numbered(0)


async def test_collection_without_anything_new_is_empty(server: TaxiiServer) -> None:
    """Such an answer is `{}` without headers, and a success that moves nothing."""
    path = server.collection(*spread(3))
    sink, storage = MemorySink(), ScriptedStorage()
    source = collection_at(server.url(path), overlap=timedelta(0))
    storage.put("taxii", status="success", last_successful_timestamp=at(50))

    report = await run(source, sink, storage, run_id="1", clock=lambda: at(60))

    assert (report.records_read, report.watermark_after) == (0, at(50))


async def test_every_version_of_an_object_is_collected(server: TaxiiServer) -> None:
    """The same id with a newer `modified` is one more version, also within one page."""
    newer = stix(1, "2021-01-01T00:00:00.000Z", "b")
    path = server.collection((at(1), stix(1)), (at(2), newer))
    sink, storage = MemorySink(), ScriptedStorage()

    await run(collection_at(server.url(path)), sink, storage, run_id="1", clock=lambda: at(60))

    assert sorted(json.loads(each.payload)["name"] for each in sink.rows.values()) == ["a", "b"]
    assert sink.ids == numbered(1, 1)


async def test_ties_wider_than_a_page_are_all_read(server: TaxiiServer) -> None:
    """With `next` their number does not matter, not even beyond what the server gives at once."""
    path = server.collection(*tied(3 * LARGEST_PAGE), (at(6), stix(99)))

    found = ids(await read(collection_at(server.url(path), page_size=1_000)))

    assert sorted(found) == sorted(numbered(*range(3 * LARGEST_PAGE), 99))


async def test_objects_added_while_paging_come_in_the_next_run(server: TaxiiServer) -> None:
    """They are behind the watermark that the first run leaves, and nothing comes twice."""
    path = server.collection(*spread(8))
    storage = ScriptedStorage(now=lambda: datetime.now(UTC))
    sink = MemorySink(lambda: server.add(path, stix(20), stix(21)))
    source = collection_at(server.url(path))

    await run(source, sink, storage, run_id="1")
    assert sink.ids == sorted(numbered(*range(8)))
    assert storage.stored["taxii"].last_successful_timestamp == at(7)
    await run(source, sink, storage, run_id="2")

    assert sink.ids == sorted(numbered(*range(8), 20, 21))
    moved = storage.stored["taxii"].last_successful_timestamp
    assert moved is not None
    assert moved > at(1_000)


async def test_run_that_was_cut_off_goes_on_behind_its_last_page(server: TaxiiServer) -> None:
    """At most a page and its ties are asked for again."""
    path = server.collection(*spread(12))
    storage, sink = ScriptedStorage(), RememberingSink(None, KeyboardInterrupt())
    source = collection_at(server.url(path), overlap=timedelta(0))
    with pytest.raises(KeyboardInterrupt):
        await run(source, sink, storage, run_id="1", clock=lambda: at(60))

    report = await run(source, sink, storage, run_id="2", clock=lambda: at(60))

    assert (report.start, report.records_read) == (at(3), 9)
    assert sink.ids == sorted(numbered(*range(12)))


async def test_backfill_ends_with_the_page_that_reaches_its_end(server: TaxiiServer) -> None:
    """Pages that lie behind it are not read, and the watermark stays."""
    path = server.collection(*spread(20))
    proxy = Proxy(server)
    async with FeedServer(play=proxy) as feed:
        source = collection_at(through(feed, path))
        pages = await read(source, None, at(8))

    assert ids(pages) == numbered(*range(8))
    assert len(feed.asks) == 3


async def test_wrong_password_is_refused_and_not_shown(
    server: TaxiiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is in no error, neither as it is nor as the header has it."""
    monkeypatch.setenv("TAXII_KEY", "SECRET")
    path = server.collection(*spread(1))

    with pytest.raises(SourceError, match="answered 401") as caught:
        await read(collection_at(server.url(path)))
    text = "".join(traceback.format_exception(caught.value))
    assert "SECRET" not in text
    assert b64encode(f"{USER}:SECRET".encode()).decode() not in text


# The server behind a proxy.


async def proxied(
    proxy: Proxy, path: str, start: datetime | None = None, **fields: Any
) -> tuple[list[str], FeedServer]:
    """Return the ids that came, once each, in order, and the proxy's server."""
    async with FeedServer(play=proxy) as feed:
        source = collection_at(through(feed, path), **fields)
        return list(dict.fromkeys(ids(await read(source, start)))), feed


@pytest.mark.parametrize("digits", [0, 3, 6])
@pytest.mark.parametrize("fault", ["more without next", "next that expires"])
async def test_reading_goes_on_at_the_last_instant(
    server: TaxiiServer, digits: int, fault: str
) -> None:
    """The ties of a page's last object are on the next one, and none is lost."""
    objects = [(at(n // 3), stix(n)) for n in range(20)]
    path = server.collection(*objects, digits=digits)
    proxy = (
        Proxy(server, answer=drop_next) if "more" in fault else Proxy(server, question=expire_next)
    )

    found, _ = await proxied(proxy, path)

    assert sorted(found) == sorted(numbered(*range(20)))


async def test_server_that_rounds_to_milliseconds_is_asked_for_one_less(
    server: TaxiiServer,
) -> None:
    """A microsecond before the last instant would be that instant, and its ties be lost."""
    path = server.collection(*((at(n // 3), stix(n)) for n in range(20)), digits=3)

    def round_up(query: dict[str, str]) -> None:
        if "added_after" in query:
            moment = datetime.fromisoformat(query["added_after"]) + timedelta(microseconds=500)
            query["added_after"] = f"{moment.isoformat(timespec='milliseconds')[:23]}Z"

    proxy = Proxy(server, question=round_up, answer=drop_next)

    found, _ = await proxied(proxy, path, at(0))

    assert sorted(found) == sorted(numbered(*range(20)))


@pytest.mark.parametrize("fault", ["more without next", "next that expires"])
async def test_ties_wider_than_a_page_are_asked_for_with_a_larger_limit(
    server: TaxiiServer, fault: str
) -> None:
    """Paging on the last instant alone would lose them, or never end."""
    path = server.collection((at(1), stix(50)), *tied(13), (at(6), stix(51)))
    proxy = (
        Proxy(server, answer=drop_next) if "more" in fault else Proxy(server, question=expire_next)
    )

    found, _ = await proxied(proxy, path)

    assert sorted(found) == sorted(numbered(50, *range(13), 51))
    # Those of expired ones are asked in vain.
    assert list(dict.fromkeys(proxy.limits)) == [4, 8, 16]


@pytest.mark.parametrize("fault", ["more without next", "next that expires"])
async def test_ties_wider_than_any_page_fail_loudly(server: TaxiiServer, fault: str) -> None:
    """Nobody can read them; the run fails, and the watermark stays where nothing is missing."""
    path = server.collection((at(1), stix(90)), *tied(LARGEST_PAGE + 1), (at(9), stix(91)))
    proxy = (
        Proxy(server, answer=drop_next) if "more" in fault else Proxy(server, question=expire_next)
    )
    storage = ScriptedStorage()
    async with FeedServer(play=proxy) as feed:
        source = collection_at(through(feed, path))
        with pytest.raises(SourceError, match="added more than 16 objects at 2024-01-01T00:05:00"):
            await run(source, RememberingSink(), storage, run_id="1", clock=lambda: at(60))
    stored = storage.stored["taxii"].last_successful_timestamp
    assert stored is None or stored <= at(5)


async def test_next_that_expires_once_is_recovered_from(server: TaxiiServer) -> None:
    """Later ones are followed again, with their own question."""
    path = server.collection(*spread(20))
    followed = 0

    def expire_the_second(query: dict[str, str]) -> None:
        nonlocal followed
        if "next" in query:
            followed += 1
            if followed == 2:
                expire_next(query)

    found, feed = await proxied(Proxy(server, question=expire_the_second), path)

    assert found == numbered(*range(20))
    assert [each.query.get("added_after") for each in feed.asks] == [
        *[None] * 3,
        *["2024-01-01T00:06:59.999999Z"] * 4,
    ]


async def test_more_without_next_and_headers_fails() -> None:
    """Nothing says where to go on: that is no end."""
    async with FeedServer(Answer.of({"more": True})) as feed:
        with pytest.raises(SourceError, match="without `next` and without the time"):
            await read(collection_at(feed.at("c")))


@pytest.mark.parametrize("following", ["same", "new"])
async def test_page_that_repeats_does_not_loop(following: str) -> None:
    """Whether `next` is the same or not, nothing new will come."""

    def play(_: object) -> Answer:
        document = {
            "more": True,
            "next": following + str(len(feed.asks) if following == "new" else ""),
        }
        added = "2024-01-01T00:00:00Z"
        body = json.dumps({**document, "objects": [stix(1)]}).encode()
        return Answer(body, headers={FIRST: added, LAST: added})

    async with FeedServer(play=play) as feed:
        with pytest.raises(SourceError, match="would never end"):
            await read(collection_at(feed.at("c")))
    assert len(feed.asks) == 2


async def test_throttled_server_is_waited_for(server: TaxiiServer) -> None:
    """The page is asked for again, with its `next`."""
    path = server.collection(*spread(8))
    proxy = Proxy(server)
    stamina.set_testing(True, attempts=3, cap=True)
    try:
        async with FeedServer(play=proxy) as feed:
            source = collection_at(through(feed, path))
            found = []
            async for page in source.pages(None, None):
                found += [each.record_id for each in page.records]
                if len(feed.asks) == 1:
                    feed.script.append(Answer(status=429))
    finally:
        stamina.set_testing(False)

    assert found == numbered(*range(8))


async def test_page_that_goes_back_is_seen_to_go_back() -> None:
    """A server that does not sort must not be promoted from page to page."""
    texts = [("00:05", "00:09"), ("00:01", "00:12")]
    script = [
        Answer(
            json.dumps({"objects": [stix(n)], "more": n == 0, "next": "x"}).encode(),
            headers={
                FIRST: f"2024-01-01T{first}:00Z",
                LAST: f"2024-01-01T{last}:00Z",
            },
        )
        for n, (first, last) in enumerate(texts)
    ]
    async with FeedServer(*script) as feed:
        pages = await read(collection_at(feed.at("c")))

    assert [page.records[0].timestamp for page in pages] == [at(9), at(1)]


# Servers that tell times in other forms, or none.


@pytest.mark.parametrize(
    "told",
    [
        "Mon Jan 01 2024 00:05:00 GMT+0000 (Coordinated Universal Time)",
        "Mon Jan 01 2024 05:35:00 GMT+0530 (India Standard Time)",
        "Mon, 01 Jan 2024 00:05:00 GMT",
        "2024-01-01 00:05:00 UTC",
        "1704067500",
    ],
)
async def test_time_of_adding_is_read_in_other_forms(told: str) -> None:
    """MITRE's server prints what JavaScript does; an instant is one however it is written."""
    body = json.dumps({"objects": [stix(1)]}).encode()
    async with FeedServer(Answer(body, headers={FIRST: told, LAST: told})) as feed:
        (page,) = await read(collection_at(feed.at("c")))

    assert [each.timestamp for each in page.records] == [at(5)]


async def test_times_in_whole_seconds_lose_no_ties() -> None:
    """What was added within the second that a server prints comes again after an interruption."""
    answers = [{"objects": [stix(1)], "more": True}, {"objects": [stix(2)], "more": False}]
    told = {FIRST: "Mon Jan 01 2024 00:05:00 GMT+0000", LAST: "Mon Jan 01 2024 00:05:00 GMT+0000"}
    script = [Answer(json.dumps(each).encode(), headers=told) for each in answers]
    async with FeedServer(*script) as feed:
        await read(collection_at(feed.at("c")))

    assert feed.asks[1].query["added_after"] == "2024-01-01T00:04:59Z"


@pytest.mark.parametrize("headers", [{}, {FIRST: "yesterday", LAST: ""}])
async def test_server_that_tells_no_times_is_read_whole(
    headers: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    """Its objects are stored by their own times, in each run, and no watermark moves."""
    newer = stix(1, "2021-01-01T00:00:00.000Z", "b")
    observable = {"type": "ipv4-addr", "id": "ipv4-addr--1", "value": "192.0.2.1"}
    pages = {None: [stix(2), newer], "2": [stix(1), observable], "3": []}
    following = {None: "2", "2": "3", "3": None}

    def play(asked: Asked) -> Answer:
        place = asked.query.get("next")
        after = following[place]
        content = {"objects": pages[place], "more": after is not None, "next": after}
        return Answer(json.dumps(content).encode(), headers=headers)

    storage, sink = ScriptedStorage(), RememberingSink()
    async with FeedServer(play=play) as feed:
        source = collection_at(feed.at("c"))
        first = await run(source, sink, storage, run_id="1", clock=lambda: at(60))
        pages["2"].append(stix(3))
        again = await run(source, sink, storage, run_id="2", clock=lambda: at(61))

    assert (first.records_written, again.records_delivered, again.records_written) == (4, 5, 1)
    assert (first.watermark_after, again.watermark_after) == (None, None)
    assert [each.query.get("added_after") for each in feed.asks] == [None] * 6
    times = {each.version: each.timestamp.year for each in sink.rows.values()}
    assert sorted(times.values()) == [1, 2020, 2020, 2020, 2021]
    assert "come in order" not in caplog.text
    assert caplog.text.count("does not state in") == 2


async def test_server_that_tells_no_times_any_more_is_read_whole() -> None:
    """What it leaves out of a question by time is unknown; the watermark stays where it is."""
    body = json.dumps({"objects": [stix(1)]}).encode()
    storage, sink = ScriptedStorage(), RememberingSink()
    told = Answer(body, headers={FIRST: "2024-01-01T00:05:00Z"})
    async with FeedServer(told, Answer(body), Answer(body)) as feed:
        source = collection_at(feed.at("c"))
        for number in range(2):
            await run(source, sink, storage, run_id=str(number), clock=lambda: at(60))

    assert ["added_after" in each.query for each in feed.asks] == [False, True, False]
    assert storage.stored["taxii"].last_successful_timestamp == at(5)


async def test_server_that_tells_times_on_some_pages_fails() -> None:
    """Nobody knows up to where the rest was read."""
    script = [
        Answer(
            json.dumps({"objects": [stix(1)], "more": True, "next": "2"}).encode(),
            headers={LAST: "2024-01-01T00:05:00Z"},
        ),
        Answer(json.dumps({"objects": [stix(2)]}).encode()),
    ]
    async with FeedServer(*script) as feed:
        with pytest.raises(SourceError, match="no longer states when its objects were added"):
            await read(collection_at(feed.at("c")))


# What an end is.


OBJECTS = [stix(n) for n in range(11)]


def in_pages(
    *pages: dict[str, Any], dated: bool = False, headers: dict[str, str] | None = None
) -> Any:
    """Play a server whose `next` is the number of a page; `added_after` is honoured if ``dated``.

    Object n was added at minute n. A page is what stands in it, or its four objects.
    """

    def play(asked: Asked) -> Answer:
        after = asked.query.get("added_after")
        first = 0
        if dated and after is not None:
            first = sum(at(n) <= datetime.fromisoformat(after) for n in range(len(OBJECTS)))
        number = int(asked.query.get("next", 0))
        page = pages[number] if not first and number < len(pages) else {}
        if first:
            page = {"objects": OBJECTS[first : first + 4], "more": first + 4 < len(OBJECTS)}
        told = dict(headers or {})
        if dated and page.get("objects"):
            numbers = [OBJECTS.index(each) for each in page["objects"]]
            told |= {FIRST: at(numbers[0]).isoformat(), LAST: at(numbers[-1]).isoformat()}
        return Answer(json.dumps(page).encode(), headers=told)

    return play


@pytest.mark.parametrize("more", [False, "false", "False", 0, "0"])
async def test_flag_of_more_may_be_a_text(more: Any) -> None:
    """A server that writes truth values as texts says that there is no more."""
    async with FeedServer(
        play=in_pages({"objects": OBJECTS[:4], "more": more}, dated=True)
    ) as feed:
        assert ids(await read(collection_at(feed.at("c")))) == numbered(*range(4))


@pytest.mark.parametrize("dated", [True, False])
@pytest.mark.parametrize("more", [{}, {"more": False}, {"more": None}, {"more": "false"}])
async def test_next_is_followed_whatever_more_says(dated: bool, more: dict[str, Any]) -> None:
    """A page that says where the next one is is not the last."""
    pages = [
        {"objects": OBJECTS[:4], "next": "1", **more},
        {"objects": OBJECTS[4:8], "next": "2", **more},
        {"objects": OBJECTS[8:]},
    ]
    async with FeedServer(play=in_pages(*pages, dated=dated)) as feed:
        assert ids(await read(collection_at(feed.at("c")))) == numbered(*range(11))


@pytest.mark.parametrize(
    "last", [Answer(b"{}"), Answer(status=404), Answer.of({"objects": OBJECTS[:4], "next": "1"})]
)
async def test_next_behind_the_end_may_lead_nowhere(last: Answer) -> None:
    """A server that says that there is no more may give a `next` for another time."""
    first = Answer.of({"objects": OBJECTS[:4], "more": False, "next": "1"})
    async with FeedServer(first, last) as feed:
        assert set(ids(await read(collection_at(feed.at("c"))))) == set(numbered(*range(4)))
    assert len(feed.asks) == 2


@pytest.mark.parametrize(
    "empty", [{}, {"more": False}, {"objects": []}, {"objects": [], "more": False}]
)
async def test_empty_page_in_place_of_more_is_asked_for_anew(empty: dict[str, Any]) -> None:
    """What was promised is found from the last object on."""
    pages = [{"objects": OBJECTS[:4], "more": True, "next": "1"}, empty]
    async with FeedServer(play=in_pages(*pages, dated=True)) as feed:
        found = ids(await read(collection_at(feed.at("c"))))

    assert sorted(set(found)) == numbered(*range(11))


async def test_empty_page_behind_the_last_object_is_the_end() -> None:
    """A server may promise more than it has: asked anew, it shows its last objects alone."""
    pages = [{"objects": OBJECTS[7:], "more": True, "next": "1"}, {}]
    async with FeedServer(play=in_pages(*pages, dated=True)) as feed:
        found = ids(await read(collection_at(feed.at("c"))))

    assert found == numbered(7, 8, 9, 10, 10)


@pytest.mark.parametrize("empty", [{}, {"objects": []}, {"objects": OBJECTS[:4]}])
async def test_empty_page_in_place_of_more_fails_without_times(empty: dict[str, Any]) -> None:
    """Nothing says where to ask anew; a page that came before is as good as empty."""
    pages = [{"objects": OBJECTS[:4], "more": True, "next": "1"}, empty]
    async with FeedServer(play=in_pages(*pages)) as feed:
        with pytest.raises(SourceError, match="more, and then returned nothing"):
            await read(collection_at(feed.at("c")))


async def test_server_that_gives_nothing_anew_fails() -> None:
    """The last object itself must come again."""
    added = "2024-01-01T00:00:00Z"
    body = json.dumps({"objects": OBJECTS[:4], "more": True, "next": "1"}).encode()
    first = Answer(body, headers={FIRST: added, LAST: added})
    async with FeedServer(first, Answer(b"{}"), Answer(b"{}")) as feed:
        with pytest.raises(SourceError, match="more, and then returned nothing"):
            await read(collection_at(feed.at("c")))
    assert len(feed.asks) == 3


def cut_at_the_limit(
    count: int, *, dated: bool, largest: int = 99, refused: int = 99, status: int = 400
) -> Any:
    """Play a server that never states `more`; object n was added at minute n // 2."""

    def play(asked: Asked) -> Answer:
        after = datetime.fromisoformat(asked.query.get("added_after", "2023-01-01T00:00:00Z"))
        limit = int(asked.query["limit"])
        if limit >= refused:
            return Answer(b'{"title": "limit"}', status=status)
        found = [n for n in range(count) if at(n // 2) > after or not dated][: min(limit, largest)]
        page = {"objects": [OBJECTS[n] for n in found]} if found else {}
        ends = [at(n // 2).isoformat() for n in (*found[:1], *found[-1:])]
        told = dict(zip((FIRST, LAST), ends, strict=False)) if dated else {}
        return Answer(json.dumps(page).encode(), headers=told)

    return play


@pytest.mark.parametrize("dated", [True, False])
@pytest.mark.parametrize("size", [2, 3, 4, 11])
async def test_full_page_that_says_nothing_is_checked(dated: bool, size: int) -> None:
    """A server that cuts at the limit, and never states `more`, is read to its end."""
    async with FeedServer(play=cut_at_the_limit(11, dated=dated)) as feed:
        found = ids(await read(collection_at(feed.at("c"), page_size=size)))

    assert list(dict.fromkeys(found)) == numbered(*range(11))


@pytest.mark.parametrize("largest", [3, 4, 7, 10, 11])
async def test_server_with_a_smaller_limit_of_its_own_is_read_to_its_end(largest: int) -> None:
    """One that never states `more` shows it by a request from its last object on."""
    play = cut_at_the_limit(11, dated=True, largest=largest)
    async with FeedServer(play=play) as feed:
        found = ids(await read(collection_at(feed.at("c"), page_size=20)))

    assert list(dict.fromkeys(found)) == numbered(*range(11))


def silent_page(first: float, last: float, *numbers: int, name: str = "a") -> Answer:
    """Return a page that says nothing about more; its objects were added at and between minutes."""
    body = json.dumps({"objects": [stix(each, name=name) for each in numbers]}).encode()
    return Answer(body, headers={FIRST: at(first).isoformat(), LAST: at(last).isoformat()})


async def test_ties_as_wide_as_the_pages_of_a_server_fail() -> None:
    """A check that brings as many objects, all of the last instant, may hide others of it."""
    async with FeedServer(silent_page(0, 1, 0, 1), silent_page(1, 1, 1, 2)) as feed:
        with pytest.raises(SourceError, match="more than 2 objects at 2024-01-01T00:01:00"):
            await read(collection_at(feed.at("c")))


@pytest.mark.parametrize("names", ["aa", "ab"])
async def test_server_that_repeats_all_at_the_time_of_its_answer_is_read_once(names: str) -> None:
    """It ignores `added_after`, and its check shows nothing, whether its content changes or not."""
    script = [silent_page(0, minute, 0, 1, name=name) for minute, name in enumerate(names, 5)]
    async with FeedServer(*script) as feed:
        assert set(ids(await read(collection_at(feed.at("c"))))) == {*numbered(0, 1)}


async def test_server_that_states_more_is_believed_where_it_does_not() -> None:
    """The absence of `more` means that there is none, also in a query that began anew."""
    promised = silent_page(0, 3, 0, 1, 2, 3)
    script = [
        replace(promised, body=promised.body[:-1] + b', "more": true}'),
        silent_page(3, 4, 3, 4),
    ]
    async with FeedServer(*script) as feed:
        found = ids(await read(collection_at(feed.at("c"))))
    assert found == numbered(0, 1, 2, 3, 3, 4)


@pytest.mark.parametrize(
    ("count", "size", "requests"), [(0, 4, 1), (1, 4, 1), (2, 4, 1), (3, 4, 2), (4, 4, 2)]
)
async def test_check_of_a_page_is_one_request(count: int, size: int, requests: int) -> None:
    """One of a single instant is checked only where it is full: it would only come again."""
    async with FeedServer(play=cut_at_the_limit(count, dated=True)) as feed:
        found = ids(await read(collection_at(feed.at("c"), page_size=size)))

    assert list(dict.fromkeys(found)) == numbered(*range(count))
    assert len(feed.asks) == requests


async def test_check_that_asks_for_no_more_at_once_may_not_be_refused() -> None:
    """An error there is one as on any page: what lies behind may be missing."""
    play, count = cut_at_the_limit(11, dated=True), 0

    def fail(asked: Asked) -> Answer:
        nonlocal count
        count += 1
        return play(asked) if count == 1 else Answer(status=403)

    async with FeedServer(play=fail) as feed:
        with pytest.raises(SourceError, match="answered 403"):
            await read(collection_at(feed.at("c"), page_size=4))


@pytest.mark.parametrize(
    "limits",
    [{"largest": 2}, *({"refused": 3, "status": status} for status in (400, 413, 422, 500))],
)
@pytest.mark.parametrize("dated", [True, False])
async def test_check_that_shows_nothing_fails_no_run(dated: bool, limits: dict[str, int]) -> None:
    """The collection may be complete: no more of it was promised."""
    async with FeedServer(play=cut_at_the_limit(2, dated=dated, **limits)) as feed:
        found = ids(await read(collection_at(feed.at("c"), page_size=2)))

    assert set(found) == set(numbered(0, 1))


@pytest.mark.parametrize("dated", [True, False])
@pytest.mark.parametrize(
    ("told", "is_whole"), [("items 0-3/11", False), ("items 0-10/11", True), ("items 0-3/*", True)]
)
async def test_fewer_objects_than_are_stated_fail(dated: bool, told: str, is_whole: bool) -> None:
    """TAXII 2.0 states how many there are, and servers of both versions still do."""
    page = {"objects": OBJECTS if "10" in told else OBJECTS[:4]}
    play = in_pages(page, dated=dated, headers={"Content-Range": told})
    async with FeedServer(play=play) as feed:
        source = collection_at(feed.at("c"))
        if is_whole:
            found = dict.fromkeys(ids(await read(source)))
            # The page of an unknown total is full: this server has more if it is asked by time.
            expected = OBJECTS if dated else page["objects"]
            assert list(found) == [each["id"] for each in expected]
            return
        with pytest.raises(SourceError, match="states 11 objects, and returned 4"):
            await read(source)


# Answers that no good server gives.


@pytest.mark.parametrize(
    ("document", "headers", "message"),
    [
        ([], {}, "not answer with an envelope that has a list of objects"),
        ({"objects": {}}, {}, "not answer with an envelope that has a list of objects"),
        ({"objects": [], "title": "Unauthorized"}, {}, "next to its objects; it says title 'Unau"),
        ({"objects": [], "http_status": "500"}, {}, "answered with an error next to its objects"),
        ({"objects": [{"id": "a"}], "error_code": "E7"}, {}, "objects; it says error_code 'E7'"),
        ({"objects": None}, {}, "not answer with an envelope that has a list of objects"),
        ({"objects": [{"id": "a"}], "more": True}, {}, "without `next` and without the time"),
        ({"objects": [], "next": 7, "more": True}, {}, "a `next` that is a int"),
    ],
)
async def test_answer_of_another_structure_fails(
    document: Any, headers: dict[str, str], message: str
) -> None:
    """It is no empty page, which would be a silent success."""
    async with FeedServer(Answer(json.dumps(document).encode(), headers=headers)) as feed:
        with pytest.raises(SourceError, match=message):
            await read(collection_at(feed.at("c")))


async def test_unusable_objects_are_rejected_and_the_rest_goes_on() -> None:
    """An object without an id is quarantined; the others of its page are not."""
    body = json.dumps({"objects": [{"type": "x"}, 7, {"id": 7}, stix(1)]}).encode()
    async with FeedServer(Answer(body, headers={FIRST: "2024-01-01T00:00:00Z"})) as feed:
        (page,) = await read(collection_at(feed.at("c")))

    assert ids([page]) == numbered(1)
    assert [each.reason for each in page.rejects] == ["id: missing, or not a text"] * 3


async def test_key_without_a_user_is_a_bearer_token() -> None:
    """It goes to the server, and to no other."""
    async with FeedServer(Answer()) as feed:
        await read(collection_at(feed.at("c"), user=""))
        assert feed.asks[0].headers["Authorization"] == f"Bearer {PASSWORD}"
        assert feed.asks[0].path == "/api/c/objects/"


async def test_earliest_start_asks_for_everything() -> None:
    """Nothing was added before the year 1."""
    async with FeedServer(Answer()) as feed:
        await read(collection_at(feed.at("c")), datetime.min.replace(tzinfo=UTC))
        assert "added_after" not in feed.asks[0].query


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"user": "me"}, "a user requires a password"),
        ({"url": "https://me:SECRET@taxii.example.org/c/"}, "the address contains a password"),
        ({"page_size": 0}, "page_size"),
        ({"added_after": "2024"}, "added_after: There is no such field"),
    ],
)
def test_wrong_setting_is_named(fields: dict[str, Any], message: str) -> None:
    """It is refused before anything is asked."""
    with pytest.raises(ConfigurationError, match=message) as caught:
        source_from({"kind": "taxii", "url": "https://taxii.example.org/c/", **fields})
    assert "SECRET" not in str(caught.value)


def test_collection_is_a_source() -> None:
    """It is told by its kind, and its pages come in order."""
    source = source_from({"kind": "taxii", "url": "https://taxii.example.org/c/"})

    assert isinstance(source, Source)
    assert isinstance(source, Taxii)
    assert source.ordered
