"""Any JSON API by configuration: paging of every kind, ranges, times, keys, and what goes wrong."""

from __future__ import annotations

import asyncio
import itertools
import json
import lzma
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar

import pytest
import stamina
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from ladon_storage.circuit.breaker import CircuitState
from ladon_storage.collection.protocols import Source
from ladon_storage.collection.records import Page, Record, paged
from ladon_storage.collection.run import run
from ladon_storage.errors import ConfigurationError, SourceError
from ladon_storage.sinks import SqlSink
from ladon_storage.sources import RestApi, problems, source_from
from ladon_storage.sources.http.client import HttpResponse, source_http
from ladon_storage.sources.http.hosts import circuit_of
from ladon_storage.sources.http.urls import as_written
from ladon_storage.sources.rest.body import put_at
from ladon_storage.sources.rest.links import next_in
from ladon_storage.sources.rest.listing import ListPage
from ladon_storage.sources.rest.page import PageRequest, PageResponse
from ladon_storage.sources.rest.pagination import NextLinkPagination
from ladon_storage.sources.rest.positions import PageTrail, pages_behind
from ladon_storage.sources.rest.requests import ApiRequests
from ladon_storage.testing import SourceContract, SourceFeed
from ladon_storage.testing.doubles import MemorySink, ScriptedStorage, at
from ladon_storage.testing.feed_server import Answer, Asked, FeedServer
from tests.recordings import recording
from tests.tables import table

pytestmark = pytest.mark.usefixtures("no_waiting")


def row(number: int, minute: float | None = None) -> dict[str, Any]:
    return {"id": number, "at": at(number if minute is None else minute).isoformat()}


ROWS = [row(number) for number in range(25)]
IDS = [str(number) for number in range(25)]


class Api:
    """Answer as APIs do: at most ten rows, paged in every way that there is.

    What a request asks for is in its query, or in its body under ``ask``.
    """

    most = 10

    def __init__(self, rows: list[dict[str, Any]] = ROWS) -> None:
        self.rows = rows

    def __call__(self, asked: Asked) -> Answer:
        ask = {**asked.query, **((asked.body or {}).get("ask", {}))}
        size = min(int(ask.get("limit", self.most)), self.most)
        first = int(ask.get("offset", ask.get("cursor", 0)))
        if "page" in ask:
            first = (int(ask["page"]) - 1) * size
        last = first + size
        more = last < len(self.rows)
        document = {
            "rows": self.rows[first:last],
            "total": len(self.rows),
            "more": more,
            "cursor": str(last) if more else None,
            "links": {"next": f"{asked.path}?offset={last}" if more else None},
        }
        link = f'<{asked.path}?offset=0>; rel="first"'
        if more:
            link += f', <{asked.path}?offset={last}>; rel="next"'
        return Answer(json.dumps(document).encode(), headers={"Link": link})


def api(feed: FeedServer, **fields: Any) -> RestApi:
    """Return a source as a file or a form describes it."""
    described = {
        "kind": "rest",
        "source_id": "feed",
        "url": feed.url,
        "records": "rows",
        "timestamps": ["at"],
        **fields,
    }
    source = source_from(described)
    assert isinstance(source, RestApi)
    return source


async def read(
    source: Source, start: datetime | None = None, until: datetime | None = None
) -> list[str]:
    return [each.record_id async for page in source.pages(start, until) for each in page.records]


async def failure(source: Source) -> str:
    with pytest.raises(SourceError) as caught:
        await read(source)
    assert caught.value.source_id == "feed"
    return str(caught.value)


PAGINGS = [
    {"kind": "page"},
    {"kind": "page", "end": "short", "page_size": 10},
    {"kind": "page", "end": "total", "total": "total", "size_parameter": "limit", "page_size": 4},
    {"kind": "offset"},
    {"kind": "offset", "page_size": 7},
    {"kind": "offset", "end": "short", "page_size": 10},
    {"kind": "offset", "end": "total", "total": "total", "page_size": 500},
    {
        "kind": "offset",
        "location": "body",
        "parameter": "ask.offset",
        "size_parameter": "ask.limit",
    },
    {"kind": "next", "path": "links.next"},
    {"kind": "next", "path": "links.next", "more": "more"},
    {"kind": "cursor", "path": "cursor"},
    {"kind": "cursor", "path": "cursor", "more": "more"},
    {"kind": "cursor", "path": "cursor", "location": "body", "parameter": "ask.cursor"},
    {"kind": "link"},
]


@pytest.mark.parametrize("paging", PAGINGS, ids=lambda paging: "-".join(map(str, paging.values())))
async def test_every_way_of_paging_reads_all(paging: dict[str, Any]) -> None:
    """Each record comes once, whatever leads from page to page and ends the reading."""
    method = "POST" if paging.get("location") == "body" else "GET"
    async with FeedServer(play=Api()) as feed:
        assert await read(api(feed, method=method, paging=paging)) == IDS


@pytest.mark.parametrize("count", [0, 10, 20])
@pytest.mark.parametrize("paging", PAGINGS, ids=lambda paging: "-".join(map(str, paging.values())))
async def test_paging_ends_where_the_last_page_is_full(paging: dict[str, Any], count: int) -> None:
    """An end that falls between two pages, and no record at all, are ends as well."""
    method = "POST" if paging.get("location") == "body" else "GET"
    async with FeedServer(play=Api(ROWS[:count])) as feed:
        assert await read(api(feed, method=method, paging=paging)) == IDS[:count]


async def test_without_paging_one_document_is_read() -> None:
    """The list may be the whole document; ids and contents are the API's."""
    async with FeedServer(Answer.of([{"a": {"id": "x"}, "at": "2024-01-01T00:00:00Z"}])) as feed:
        source = api(feed, records="", id="a.id")
        [page] = [page async for page in source.pages(None, None)]

    [record] = page.records
    assert (record.record_id, record.timestamp) == ("x", at(0))
    assert record.payload == '{"a":{"id":"x"},"at":"2024-01-01T00:00:00Z"}'


async def test_page_below_the_start_ends_nothing() -> None:
    """What is new may come after a page in which nothing is, and nothing is dropped."""
    rows = [row(number, -number) for number in range(10)] + [row(10, 60)]
    async with FeedServer(play=Api(rows)) as feed:
        source = api(feed, paging={"kind": "next", "path": "links.next"})

        assert await read(source, at(30)) == [str(number) for number in range(11)]


MOMENT = datetime(2024, 1, 2, 3, 4, 5, 600_000, tzinfo=UTC)


@pytest.mark.parametrize(
    ("form", "since", "until"),
    [
        ("iso", "2024-01-02T03:04:05.600000Z", "2024-01-02T03:04:05.600000Z"),
        ("date", "2024-01-02", "2024-01-03"),
        ("seconds", "1704164645", "1704164646"),
        ("milliseconds", "1704164645600", "1704164645600"),
        ("%Y-%m-%dT%H:%M:%S+00:00", "2024-01-02T03:04:05+00:00", "2024-01-02T03:04:06+00:00"),
        ("%Y%m%d%H%M", "202401020304", "202401020305"),
        ("%d.%m.%Y %H", "02.01.2024 03", "02.01.2024 04"),
        ("%H:%M:%S.%f", "03:04:05.600000", "03:04:05.600000"),
    ],
)
async def test_api_is_told_the_range_in_its_own_words(form: str, since: str, until: str) -> None:
    """A start is rounded down and an end up: an API that counts in days leaves nothing out."""
    async with FeedServer(play=Api(ROWS[:9])) as feed:
        bounds = {
            "since": {"parameter": "from", "format": form},
            "until": {"parameter": "to", "format": form},
        }
        await read(api(feed, params={"a": "b"}, **bounds), MOMENT, MOMENT)
        await read(api(feed, **bounds))
        await read(api(feed, **bounds), MOMENT)

    assert dict(feed.asks[0].query) == {"a": "b", "from": since, "to": until}
    assert feed.requests[1] == "/feed.json"
    # An API that wants both ends of a range is asked until now.
    assert set(feed.asks[2].query) == {"from", "to"}


async def test_api_that_knows_only_an_end_is_asked_until_now() -> None:
    """What is later comes with the next run."""
    before = int(datetime.now(UTC).timestamp())
    async with FeedServer(play=Api(ROWS[:9])) as feed:
        await read(api(feed, until={"parameter": "to", "format": "seconds"}))

    assert before <= int(feed.asks[0].query["to"]) <= before + 60


async def test_range_that_begins_after_now_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a clock is behind, an API would be asked for a range without anything, each time."""
    monkeypatch.setattr(problems, "utc_now", lambda: at(0))
    async with FeedServer(play=Api(ROWS[:9])) as feed:
        bounds = {"since": {"parameter": "from"}, "until": {"parameter": "to"}}
        with pytest.raises(SourceError, match=r"clock of this machine .* Set the clock\.$"):
            await read(api(feed, **bounds), at(61))
        assert feed.requests == []
        await read(api(feed, **bounds), at(59))
        await read(api(feed, since=bounds["since"]), at(61))


async def test_range_is_told_in_the_zone_of_the_api() -> None:
    """That of its records is another matter; an instant with its offset is the same everywhere."""
    async with FeedServer(play=Api(ROWS[:9])) as feed:
        since = {"parameter": "from", "format": "%Y-%m-%d %H:%M:%S", "zone": "Asia/Tokyo"}
        until = {"parameter": "to"}
        source = api(feed, since=since, until=until, zone="Europe/Berlin")
        await read(source, at(0), at(1))

    assert dict(feed.asks[0].query) == {"from": "2024-01-01 09:00:00", "to": "2024-01-01T00:01:00Z"}


async def test_body_of_a_post_is_a_template() -> None:
    """Bounds and paging are put where they belong, and the template stays as it is."""
    async with FeedServer(play=Api()) as feed:
        source = api(
            feed,
            method="POST",
            body={"query": "all", "ask": {"kind": "x"}},
            since={"parameter": "ask.from", "location": "body", "format": "seconds"},
            paging={
                "kind": "cursor",
                "path": "cursor",
                "location": "body",
                "parameter": "ask.cursor",
            },
        )
        await read(source, at(0))
        await read(source)

    begin = int(at(0).timestamp())
    assert feed.asks[0].body == {"query": "all", "ask": {"kind": "x", "from": begin}}
    assert feed.asks[1].body == {
        "query": "all",
        "ask": {"kind": "x", "from": begin, "cursor": "10"},
    }
    assert feed.asks[3].body == {"query": "all", "ask": {"kind": "x"}}


async def test_number_in_a_path_of_the_body_is_an_index() -> None:
    """A list of filters keeps all of them, and the start is in its place."""
    filters = [{"field": "changed", "value": "0"}, {"field": "kind", "value": "x"}]
    async with FeedServer(Answer.of({"rows": ROWS[:1]})) as feed:
        since = {"parameter": "groups.0.filters.-2.value", "location": "body", "format": "seconds"}
        source = api(feed, method="POST", body={"groups": [{"filters": filters}]}, since=since)
        await read(source, at(0))

    begin = int(at(0).timestamp())
    assert feed.asks[0].body == {
        "groups": [{"filters": [{**filters[0], "value": begin}, filters[1]]}]
    }


@pytest.mark.parametrize(
    ("ranged", "expected"),
    [
        ({"event.ingested": {"lt": "now"}}, {"event.ingested": {"lt": "now", "gte": 60}}),
        ({"event.ingested.gte": 1}, {"event.ingested.gte": 60}),
        (
            {"event": {}, "event.ingested": {}},
            {"event": {"ingested": {"gte": 60}}, "event.ingested": {}},
        ),
        ({"event.ing": {}}, {"event.ing": {}, "event": {"ingested": {"gte": 60}}}),
    ],
)
def test_key_of_the_body_may_contain_dots(ranged: dict[str, Any], expected: dict[str, Any]) -> None:
    """As a field of Elasticsearch's does, in the query that the body has."""
    body = {"query": {"range": ranged}}
    put_at(body, "query.range.event.ingested.gte", 60)
    assert body == {"query": {"range": expected}}


@pytest.mark.parametrize(
    ("path", "place"),
    [
        ("a.rows.value", "a list of 2 at a.rows"),
        ("a.rows.2", "a list of 2 at a.rows"),
        ("a.rows.1.x", "a value at a.rows.1"),
        ("text.0", "a value at text"),
    ],
)
@pytest.mark.parametrize("kind", ["since", "until", "paging", "size"])
def test_path_that_the_body_contradicts_is_refused(path: str, place: str, kind: str) -> None:
    """Nothing that a body has gives way to a parameter, which may be the filter of its records."""
    part = {"parameter": path, "location": "body"}
    paged = {"paging": {"kind": "offset", "location": "body", "size_parameter": path}}
    fields = {
        "size": paged,
        "paging": {"paging": {**part, "kind": "cursor"}},
    }.get(kind, {kind: part})
    body = {"a": {"rows": [{}, 1], "nothing": None}, "text": "SECRET"}
    made = {"source_id": "feed", "url": "http://a/", "timestamps": ["at"], "body": body}
    with pytest.raises(ConfigurationError) as caught:
        source_from({"kind": "rest", "method": "POST", **made, **fields})

    assert f"{path} is no place in body, which has {place}" in str(caught.value)
    assert "SECRET" not in str(caught.value)


async def test_next_link_is_followed_as_it_is() -> None:
    """An address of the API's own has all the parameters; only the key is added."""
    page = {"rows": [], "next": "/api/more?token=a%2Bb"}
    async with FeedServer(Answer.of(page), Answer.of({"rows": [], "next": None})) as feed:
        await read(api(feed, params={"size": 10}, paging={"kind": "next"}))

    assert feed.requests == ["/feed.json?size=10", "/api/more?token=a%2Bb"]


@pytest.mark.parametrize(
    ("fields", "header", "value", "path"),
    [
        ({}, "Authorization", "s3cret", "/feed.json"),
        ({"auth_prefix": "Bearer "}, "Authorization", "Bearer s3cret", "/feed.json"),
        ({"key_header": "X-Api-Key"}, "X-Api-Key", "s3cret", "/feed.json"),
        ({"key_param": "apikey"}, "Authorization", None, "/feed.json?apikey=s3cret"),
    ],
)
async def test_key_is_sent_where_it_belongs(
    fields: dict[str, str],
    header: str,
    value: str | None,
    path: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In a header, after a prefix, or in the query; on every page."""
    monkeypatch.setenv("FEED_KEY", "s3cret")
    page = {"rows": [], "next": "/feed.json"}
    async with FeedServer(Answer.of(page), Answer(status=401)) as feed:
        source = api(feed, key="FEED_KEY", paging={"kind": "next"}, params={}, **fields)
        message = await failure(source)

    assert [each.headers.get(header) for each in feed.asks] == [value] * 2
    assert feed.requests == [path] * 2
    assert "answered 401" in message
    assert "s3cret" not in message + repr(source)


async def test_missing_key_is_told_before_anything_is_asked() -> None:
    """The error says what to set."""
    async with FeedServer(play=Api()) as feed:
        with pytest.raises(ConfigurationError, match="'NOT_SET_ANYWHERE' of source 'feed'"):
            await read(api(feed, key="NOT_SET_ANYWHERE"))

    assert feed.requests == []


@pytest.mark.parametrize("key", ["hunter2secret", "sk_live_4eC39HqLyjWDarjtT1"])
async def test_key_in_place_of_its_name_is_shown_in_part(key: str) -> None:
    """What looks like no name may be the secret itself, pasted."""
    async with FeedServer(play=Api()) as feed:
        with pytest.raises(ConfigurationError, match=f"'{key[:2]}…' of source 'feed'") as caught:
            await read(api(feed, key=key))

    assert key not in str(caught.value)


@pytest.mark.parametrize("key", [None, "FEED_KEY"])
@pytest.mark.parametrize("paging", ["next", "link"])
async def test_next_page_on_another_host_is_not_asked(
    key: str | None, paging: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A feed cannot send us, or our key, anywhere else."""
    monkeypatch.setenv("FEED_KEY", "s3cret")
    async with FeedServer(play=Api()) as other:
        page = json.dumps({"rows": [row(1)], "next": other.url}).encode()
        answer = Answer(page, headers={"Link": f"<{other.url}>; rel=next"})
        async with FeedServer(answer) as feed:
            message = await failure(api(feed, key=key, paging={"kind": paging}))

    assert other.requests == []
    assert f"leads to a next page on another host, {other.url}" in message


@pytest.mark.parametrize(
    ("paging", "pages", "message"),
    [
        (
            {"kind": "next"},
            [{"next": "/feed.json?p=2"}] * 9,
            "so the reading would never end",
        ),
        ({"kind": "next"}, [{"next": "/feed.json?p=2"}, {"next": "/feed.json?p=1"}] * 9, "never"),
        ({"kind": "next"}, [{"next": 7}], "has a next link that is not a valid address"),
        ({"kind": "next"}, [{"next": "http://["}], "next link that is not a valid address"),
        ({"kind": "next", "more": "more"}, [{"more": True}], "there are more, and nothing at"),
        (
            {"kind": "cursor"},
            [{"next_cursor": "a"}] * 9,
            "so the reading would never end",
        ),
        ({"kind": "cursor"}, [{"next_cursor": [[]]}], "at 'next_cursor' instead of a cursor"),
        ({"kind": "next"}, [{"next": "mailto:me@example.org"}], "that is not a valid address"),
        ({"kind": "next"}, [{"next": "//"}], "that is not a valid address"),
        ({"kind": "next"}, [{"next": "http:///x?p=2"}], "that is not a valid address"),
        ({"kind": "next"}, [{"next": "http://a:99999/x"}], "that is not a valid address"),
        ({"kind": "next"}, [{"next": ["/x"]}], "that is not a valid address"),
        ({"kind": "cursor"}, [{"next_cursor": {"a": 1}}], "at 'next_cursor' instead of a cursor"),
        ({"kind": "cursor", "more": "more"}, [{"more": 1}], "there are more, and nothing at"),
        (
            {"kind": "cursor", "more": "more"},
            [{"more": True, "next_cursor": ""}],
            "there are more, and nothing at",
        ),
        (
            {"kind": "page", "end": "total", "total": "n"},
            [{"n": 3}, {"n": 3, "rows": []}, {"n": 3}],
            "and returned 1",
        ),
        ({"kind": "page", "end": "total", "total": "n"}, [{}], "states no total at 'n'"),
        ({"kind": "page", "end": "total", "total": "n"}, [{"n": "all"}], "states no total at 'n'"),
        ({"kind": "page"}, [{}] * 9, "returned the same page again"),
        ({"kind": "offset"}, [{}] * 9, "returned the same page again"),
    ],
)
async def test_paging_that_leads_nowhere_fails(
    paging: dict[str, Any], pages: list[dict[str, Any]], message: str
) -> None:
    """No endless loop, no loss and no success."""
    answers = [Answer.of({"rows": [row(1)], **page}) for page in pages]
    async with FeedServer(*answers) as feed:
        assert message in await failure(api(feed, paging=paging))

    assert len(feed.requests) <= 3


async def test_end_that_is_told_is_an_end() -> None:
    """An API that says there are no more is believed, whatever cursor it still gives."""
    page = {"rows": [row(1)], "more": False, "next_cursor": "a"}
    async with FeedServer(Answer.of(page)) as feed:
        assert await read(api(feed, paging={"kind": "cursor", "more": "more"})) == ["1"]


@pytest.mark.parametrize(
    ("headers", "link"),
    [
        ([], None),
        (["</a>; rel=next"], "/a"),
        (['</a>; rel="prev next"'], "/a"),
        (['</a,b>; title="x, y; rel=next"; rel=prev, </c>;REL="NEXT"'], "/c"),
        (["</a>; rel=prev", "</b>; rel=next"], "/b"),
        (["</a>; rel=nextish", "</b>", "nothing"], None),
    ],
)
def test_link_header_is_read_in_every_form(headers: list[str], link: str | None) -> None:
    """Several links in one header or in several, quoted or not."""
    assert next_in(headers) == link


@pytest.mark.parametrize(
    ("link", "expected"),
    [
        ("http://a.org/y?p=2", "https://a.org/y?p=2"),
        ("http://b.org/y", "http://b.org/y"),
        ("?p=2", "https://a.org/x?p=2"),
        ("//a.org/z", "https://a.org/z"),
        ("http://a.org/y?q=caf%E9;a=%20%2f", "https://a.org/y?q=caf%E9;a=%20%2f"),
    ],
)
def test_next_link_of_a_service_behind_tls_stays_there(link: str, expected: str) -> None:
    """A service that takes itself for http is asked as it was before."""
    answer = HttpResponse(URL("https://a.org/x"), 200, CIMultiDictProxy(CIMultiDict()), b"")

    step = NextLinkPagination(path="next").next_request(
        PageRequest(), PageResponse(answer, {"next": link}, [])
    )

    assert step
    assert str(step.url) == expected


def test_page_that_is_found_by_counting_has_the_rest_of_the_link_as_it_was_written() -> None:
    """A link's other parameters say what the list is of, in whatever charset."""
    link = PageRequest(as_written("https://a.org/?q=caf%E9;a&page=4"))
    answer = HttpResponse(URL("https://a.org/"), 200, CIMultiDictProxy(CIMultiDict()), b"")
    page, trail = ListPage(link, PageResponse(answer, {}, []), ["1"]), PageTrail()
    trail.add(page)

    requests = (*pages_behind(NextLinkPagination(), page, trail), trail.passed_over)

    assert [str(each and each.url) for each in requests] == [
        "https://a.org/?q=caf%E9;a&page=5",
        "https://a.org/?q=caf%E9;a&page=3",
    ]


def test_links_to_one_page_are_the_same_however_they_are_written() -> None:
    """A list that leads in a circle is recognised, whatever its links encode."""
    one, same, other = (
        PageRequest(as_written(f"https://a.org/?q={each}")).place for each in ("%7e", "~", "%E9")
    )

    assert one == same
    assert one != other


@pytest.mark.parametrize(
    ("link", "expected"),
    [
        ("http://backend:8080/api/x?p=2&q=a%2Bb", "https://me@a.org:8443/api/x?p=2&q=a%2Bb"),
        ("http://backend/x?p=2", "https://me@a.org:8443/api/x?p=2"),
        ("http://backend/other", "https://me@a.org:8443/other"),
        ("//backend/api/x?p=2#top", "https://me@a.org:8443/api/x?p=2"),
        ("?p=2", "https://me@a.org:8443/api/x?p=2"),
    ],
)
def test_next_link_of_a_backend_can_be_kept_on_the_host(link: str, expected: str) -> None:
    """Scheme, host, port and a prefix that only the gateway has are those that were configured."""
    url = URL("https://me@a.org:8443/api/x?p=1")
    answer = HttpResponse(url, 200, CIMultiDictProxy(CIMultiDict()), b"")

    step = NextLinkPagination(keep_host=True).next_request(
        PageRequest(), PageResponse(answer, {"next": link}, [])
    )

    assert step
    assert str(step.url) == expected


@pytest.mark.parametrize(
    ("document", "fields", "message"),
    [
        ([], {}, "does not have a list at 'rows'"),
        ({}, {}, "does not have a list at 'rows'"),
        ({"rows": {}}, {}, "does not have a list at 'rows'"),
        ({"rows": None}, {}, "does not have a list at 'rows'"),
        (
            {"rows": []},
            {"records_keyed_by_id": True},
            "does not have an object keyed by ids at 'rows'",
        ),
        ({}, {"records": ""}, "does not have a list at its top level"),
        ([], {"records_optional": True}, "does not have a list at 'rows'"),
        (
            {"rows": []},
            {"expected_values": {"status": ["ok"]}},
            "has None at 'status' instead of ['ok']",
        ),
        (
            {"rows": [], "status": True},
            {"expected_values": {"status": [1]}},
            "has True at 'status'",
        ),
    ],
)
async def test_document_of_another_structure_fails(
    document: Any, fields: dict[str, Any], message: str
) -> None:
    """What is not the API's answer is not taken for an empty one."""
    async with FeedServer(Answer.of(document)) as feed:
        assert message in await failure(api(feed, **fields))


@pytest.mark.parametrize(
    ("document", "fields"),
    [
        ({}, {"records_optional": True}),
        ({}, {"records_optional": True, "records_keyed_by_id": True}),
        ({"rows": [], "status": "ok"}, {"expected_values": {"status": ["none", "ok"]}}),
    ],
)
async def test_empty_answer_is_no_error_where_it_was_declared(
    document: Any, fields: dict[str, Any]
) -> None:
    """Some APIs leave an empty list out."""
    async with FeedServer(Answer.of(document)) as feed:
        assert await read(api(feed, **fields)) == []


async def test_keyed_records_have_their_keys_as_ids() -> None:
    """An object of ids, with an object each, or a list of one."""
    document = {"rows": {"a": {"at": "2024-01-01"}, "b": [{"at": "2024-01-01"}], "c": 7}}
    async with FeedServer(Answer.of(document)) as feed:
        [page] = [page async for page in api(feed, records_keyed_by_id=True).pages(None, None)]

    assert [each.record_id for each in page.records] == ["a", "b"]
    assert [each.record_id for each in page.rejects] == ["c"]


@pytest.mark.parametrize(
    ("item", "reason"),
    [
        (None, "should be an object, not null"),
        ({"at": "2024-01-01"}, "id: should be an id, and is none"),
        ({"id": "", "at": "2024-01-01"}, "id: should be an id, and is none"),
        ({"id": 1.5, "at": "2024-01-01"}, "id: should be an id, and is none"),
        ({"id": 1}, "at: missing"),
        ({"id": 1, "at": ""}, "at: missing"),
        ({"id": 1, "at": 17_000_000}, "at: should be an ISO 8601"),
        ({"id": 1, "at": "0001-01-01T00:00:00+14:00"}, "at: should be an ISO 8601"),
    ],
)
async def test_unusable_item_is_rejected_and_the_rest_goes_on(item: Any, reason: str) -> None:
    """A record without an id or time is kept apart, with the reason."""
    async with FeedServer(Answer.of({"rows": [row(1), item, row(2)]})) as feed:
        [page] = [page async for page in api(feed).pages(None, None)]

    assert [each.record_id for each in page.records] == ["1", "2"]
    [reject] = page.rejects
    assert reject.reason.startswith(reason)
    assert json.loads(reject.raw) == item


@pytest.mark.parametrize(
    ("form", "zone", "value", "expected"),
    [
        ("iso", "UTC", "2024-01-02T21:59:38+05:30", "2024-01-02T16:29:38"),
        ("iso", "UTC", "2024-01-01 00:00:00", "2024-01-01T00:00:00"),
        ("iso", "UTC", "2024-01-01 00:00:00 UTC", "2024-01-01T00:00:00"),
        ("iso", "UTC", "2024-01-01T00:00:00.1234567Z", "2024-01-01T00:00:00.123456"),
        ("iso", "Europe/Berlin", "2024-07-01T02:00:00", "2024-07-01T00:00:00"),
        ("iso", "Europe/Berlin", "2024-07-01T02:00:00Z", "2024-07-01T02:00:00"),
        ("iso", "Europe/Berlin", "2024-07-01 02:00:00 UTC", "2024-07-01T02:00:00"),
        ("iso", "Europe/Berlin", "2024-10-27T02:30:00", "2024-10-27T00:30:00"),
        ("seconds", "UTC", 1_704_067_200, "2024-01-01T00:00:00"),
        ("seconds", "UTC", "1704067200", "2024-01-01T00:00:00"),
        ("seconds", "UTC", 1_704_067_200.75, "2024-01-01T00:00:00.750000"),
        ("seconds", "UTC", "1704067200.1234567", "2024-01-01T00:00:00.123456"),
        ("seconds", "UTC", -1, "1969-12-31T23:59:59"),
        ("milliseconds", "UTC", 1_704_067_200_123, "2024-01-01T00:00:00.123000"),
        ("milliseconds", "UTC", "1704067200123", "2024-01-01T00:00:00.123000"),
    ],
)
async def test_times_are_read_as_declared(form: str, zone: str, value: Any, expected: str) -> None:
    """In their notation and zone, cut to microseconds and never rounded up."""
    async with FeedServer(Answer.of({"rows": [{"id": 1, "at": value}]})) as feed:
        [page] = [p async for p in api(feed, timestamp_format=form, zone=zone).pages(None, None)]

    assert page.records[0].timestamp == datetime.fromisoformat(expected).replace(tzinfo=UTC)


@pytest.mark.parametrize("value", [True, "x", "", [], "nan", "inf", 1e300, 10**30, "²"])
async def test_count_that_is_no_time_is_rejected(value: Any) -> None:
    """What is no number, or beyond the calendar, is not a time."""
    async with FeedServer(Answer.of({"rows": [{"id": 1, "at": value}]})) as feed:
        [page] = [page async for page in api(feed, timestamp_format="seconds").pages(None, None)]

    assert page.records == []
    assert page.rejects[0].record_id == "1"


async def test_integers_as_text_are_compared_as_numbers() -> None:
    """9 comes before 10, also as text."""
    rows = [{"id": "a", "at": "9"}, {"id": "b", "at": "10"}]
    async with FeedServer(Answer.of({"rows": rows})) as feed:
        start = datetime(1970, 1, 1, 0, 0, 10, tzinfo=UTC)
        assert await read(api(feed, timestamp_format="seconds"), start) == ["a", "b"]


async def test_latest_of_several_times_counts() -> None:
    """A missing one is none; one that makes no sense rejects the record."""
    rows = [
        {"id": 1, "made": "2024-01-01", "seen": {"last": "2024-01-03"}},
        {"id": 2, "made": "2024-01-04", "seen": {"last": None}},
        {"id": 3, "made": "2024-01-04", "seen": {"last": "soon"}},
    ]
    async with FeedServer(Answer.of({"rows": rows})) as feed:
        source = api(feed, timestamps=["made", "seen.last"])
        [page] = [page async for page in source.pages(None, None)]

    assert [each.timestamp.day for each in page.records] == [3, 4]
    assert page.rejects[0].reason.startswith("seen.last: should be an ISO 8601")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"timestamps": []}, "timestamps: "),
        ({"method": "PUT"}, "method: "),
        ({"body": {}}, "a GET has no body"),
        ({"paging": {"kind": "cursor", "location": "body"}}, "a GET has no body"),
        ({"since": {"parameter": "x", "location": "body"}}, "a GET has no body"),
        ({"since": {"parameter": "x", "format": "yesterday"}}, "should be one of iso, seconds"),
        ({"since": {"parameter": "x", "format": "%Y-%m-%d %I"}}, "with %p next to %I"),
        ({"since": {"parameter": "x", "format": "%Y-%m-%d %H CET"}}, "set zone to"),
        ({"timestamp_format": ["iso", "%Y-%m-%d %H:%M CET"]}, "set zone to"),
        ({"since": {"parameter": ""}}, "since.parameter"),
        ({"full_snapshot": True, "overlap": 24}, "leave overlap empty"),
        ({"url": "https://me:SECRET@example.org/"}, "the address contains a password"),
        ({"headers": {"Authorization": "SECRET"}}, "set key to"),
        ({"headers": {"X-Api-Key": "SECRET"}}, "set key to"),
        ({"headers": {"X-A": "a\r\nX-B: SECRET"}}, "printable ASCII"),
        ({"headers": {"X A": "a"}}, "should be the name of a header"),
        ({"key_header": "X-Key: SECRET"}, "should be the name of a header"),
        ({"zone": "Mars/Olympus"}, "should be a time zone"),
        ({"zone": "../../etc/passwd"}, "should be a time zone"),
        ({"paging": {"kind": "page", "end": "total"}}, "requires the path of the total"),
        ({"paging": {"kind": "page", "end": "short"}}, "requires a page size"),
        ({"paging": {"kind": "page", "size_parameter": "n"}}, "requires a page size"),
        ({"paging": {"kind": "scroll"}}, "paging"),
        ({"rate": {"requests": 0, "seconds": 1}}, "rate.requests"),
        ({"retention": "PT0S"}, "retention"),
    ],
)
async def test_wrong_configuration_is_told_by_field(fields: dict[str, Any], message: str) -> None:
    """What makes no sense is refused when the source is made, and no value is shown."""
    async with FeedServer() as feed:
        with pytest.raises(ConfigurationError) as caught:
            api(feed, **fields)

    assert message in str(caught.value)
    assert "SECRET" not in str(caught.value)


async def test_engine_heeds_what_is_declared() -> None:
    """Order, whole and retention are attributes that the engine looks at."""
    async with FeedServer() as feed:
        plain = api(feed)
        full = api(feed, ordered=True, full_snapshot=True, retention="P30D")

    assert (plain.ordered, plain.full_snapshot, plain.retention) == (False, False, None)
    assert plain.overlap == timedelta(hours=24)
    assert (full.ordered, full.full_snapshot, full.retention) == (True, True, timedelta(days=30))
    assert full.overlap is None  # also where no null can be written, as in a file of TOML


async def collected(source: Source, sink: Any, storage: ScriptedStorage, at_: datetime) -> None:
    await run(source, sink, storage, run_id="run-1", clock=lambda: at_)


@pytest.mark.parametrize("ordered", [True, False])
async def test_page_that_fails_in_the_middle_fails_the_run_and_loses_nothing(
    ordered: bool, tmp_path: Path
) -> None:
    """Pages before it are durable; the next run goes on from there, or reads them again."""
    path, storage = tmp_path / "records.db", ScriptedStorage()
    whole = Api()

    def failing(asked: Asked) -> Answer:
        return Answer(status=500) if asked.query.get("offset") == "18" else whole(asked)

    async with FeedServer(play=failing) as feed:
        source = api(feed, ordered=ordered, overlap="PT0S", paging={"kind": "offset"})
        sink = SqlSink(f"sqlite:///{path}", "records", "all")
        with pytest.raises(SourceError, match="answered 500"):
            await collected(source, sink, storage, at(60))
        assert len(table(path)) == 19
        assert storage.stored["feed"].status == "failed"
        expected = at(18) if ordered else None
        assert storage.stored["feed"].last_successful_timestamp in (None, expected)

        feed.play = whole
        circuit_of(URL(feed.url)).reset()
        await collected(source, sink, storage, at(61))

    assert sorted(each for (each,) in table(path)) == sorted(IDS)
    assert storage.stored["feed"].last_successful_timestamp == at(24)


async def test_throttled_page_is_waited_for_and_nothing_is_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """429 with Retry-After on page 2: the wait is kept, the circuit stays closed."""
    waited: list[float] = []
    pause = asyncio.sleep

    async def sleep(seconds: float) -> None:
        if seconds and seconds < 10:  # the lease is renewed every 20 s
            waited.append(seconds)
            seconds = 0
        await pause(seconds)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    throttled = [Answer(status=429, headers={"Retry-After": "2"})] * 3
    whole = Api()

    def busy(asked: Asked) -> Answer:
        is_second = asked.query.get("offset") == "9"
        return throttled.pop() if is_second and throttled else whole(asked)

    storage, sink = ScriptedStorage(), MemorySink()
    with stamina.set_testing(False):
        async with FeedServer(play=busy) as feed:
            source = api(feed, paging={"kind": "offset"})
            await collected(source, sink, storage, at(60))
            circuit = circuit_of(URL(feed.url))

    assert waited == [2, 2, 2]
    assert (circuit.state, circuit.failure_count) == (CircuitState.CLOSED, 0)
    assert sink.ids == sorted(IDS)
    assert storage.stored["feed"].last_successful_timestamp == at(24)


async def test_rejects_of_a_run_are_counted_and_kept_apart(tmp_path: Path) -> None:
    """Unusable records do not hold the watermark back."""
    path, storage = tmp_path / "records.db", ScriptedStorage()
    rows = [row(1), {"id": 2, "at": None}, row(3), {"id": 4, "at": "x"}]
    async with FeedServer(play=lambda _: Answer.of({"rows": rows})) as feed:
        for _ in range(2):
            sink = SqlSink(f"sqlite:///{path}", "records", "latest")
            report = await run(api(feed), sink, storage, run_id="r", clock=lambda: at(60))
            assert report.records_quarantined == 2

    assert [each for (each,) in table(path)] == ["1", "3"]
    assert storage.stored["feed"].last_successful_timestamp == at(3)


@pytest.mark.recordings
async def test_earthquakes_are_collected_by_configuration_alone(tmp_path: Path) -> None:
    """A feed that nobody wrote code for, whose time runs backwards 917 times, is complete."""
    recorded = recording("usgs/all_week_2018-02-07.geojson.xz")
    document = lzma.decompress(recorded.read_bytes())
    truth = {each["id"]: each for each in json.loads(document)["features"]}
    times = [each["properties"]["updated"] for each in truth.values()]
    path, storage = tmp_path / "records.db", ScriptedStorage()
    async with FeedServer(play=lambda _: Answer(document)) as feed:
        source = source_from(
            {
                "kind": "rest",
                "source_id": "usgs",
                "url": feed.url,
                "expected_values": {"type": ["FeatureCollection"]},
                "records": "features",
                "timestamps": ["properties.updated", "properties.time"],
                "timestamp_format": "milliseconds",
                "retention": "P7D",
            }
        )
        now = datetime(2018, 2, 7, 2, tzinfo=UTC)
        for written in (1_707, 0):
            sink = SqlSink(f"sqlite:///{path}", "records", "all")
            report = await run(source, sink, storage, run_id="r", clock=lambda: now)
            assert (report.records_written, report.records_quarantined) == (written, 0)

    assert sum(one > other for one, other in itertools.pairwise(times)) == 917
    rows = table(path, "record_id, payload")
    assert {record_id: json.loads(payload) for record_id, payload in rows} == truth
    assert len(rows) == 1_707
    last = storage.stored["usgs"].last_successful_timestamp
    assert last
    assert last.timestamp() * 1_000 == pytest.approx(max(times))


class Tides:
    """Be a source of one's own: a name, an overlap, and pages."""

    source_id = "tides"
    overlap = timedelta(hours=6)

    def __init__(self, url: str) -> None:
        self.url = url

    async def pages(self, start: datetime | None, until: datetime | None) -> AsyncIterator[Page]:
        async with source_http(self.source_id) as http:
            document = await http.get_json(self.url)
        for page in paged(
            Record.of(station, datetime.fromisoformat(moment), {"station": station, "cm": height})
            for station, moment, height in document
        ):
            yield page


async def test_source_of_ones_own_is_one_small_class() -> None:
    """What has a name, an overlap and pages is collected like any other."""
    storage, sink = ScriptedStorage(), MemorySink()
    async with FeedServer(Answer.of([["cuxhaven", "2024-01-01T00:30:00Z", 512]])) as feed:
        await run(source_from(Tides(feed.url)), sink, storage, run_id="r", clock=lambda: at(60))

    assert sink.ids == ["cuxhaven"]
    assert storage.stored["tides"].last_successful_timestamp == at(30)


@pytest.mark.parametrize(
    "settings",
    [
        {"url": "https://127.0.0.1/?apikey=s3cret"},
        {"params": {"access_token": "s3cret"}},
        {"params": {"key": "k7f3b2a91c0de4f5a6b7"}},
        {"method": "POST", "body": {"login": {"passwd": "s3cret"}}},
    ],
)
def test_parameter_that_would_hold_a_secret_is_refused(settings: dict[str, Any]) -> None:
    """Where it belongs is said, and not what it holds."""
    with pytest.raises(ConfigurationError, match="key_param") as caught:
        source_from(
            {"kind": "rest", "source_id": "r", "url": "https://127.0.0.1/", "timestamps": ["at"]}
            | settings
        )
    assert "s3cret" not in str(caught.value)
    assert "k7f3" not in str(caught.value)


def test_parameter_with_a_harmless_name_is_taken() -> None:
    """A key alone, a page's token and an author are no secrets."""
    params = {"key": "name", "pageToken": "x", "author": "me", "token": ""}
    source = source_from(
        {"kind": "rest", "source_id": "r", "url": "https://127.0.0.1/?key=id", "timestamps": ["at"]}
        | {"params": params}
    )
    assert source.params == params  # type: ignore[attr-defined]


class TestContract(SourceContract):
    """A JSON API keeps the contract of sources, whatever leads from page to page."""

    paging: ClassVar[dict[str, Any]] = {"kind": "offset", "page_size": 2}

    def new_source(self, feed: SourceFeed) -> RestApi:
        return api(feed, paging=self.paging, overlap=60.0)

    def item(self, record_id: str, time: datetime, value: str) -> object:
        return {"id": record_id, "at": time.isoformat(), "value": value}

    def answer(self, request: Asked, items: list[Any]) -> Answer:
        served = Api(items)
        served.most = 2
        return served(request)


class TestContractOfPages(TestContract):
    """Pages that are counted, to an empty one."""

    paging: ClassVar[dict[str, Any]] = {"kind": "page"}


class TestContractOfLinks(TestContract):
    """Pages that name the next one."""

    paging: ClassVar[dict[str, Any]] = {"kind": "next", "path": "links.next"}


class TestContractOfCursors(TestContract):
    """Pages with a cursor."""

    paging: ClassVar[dict[str, Any]] = {"kind": "cursor", "path": "cursor"}


async def test_page_that_comes_again_with_other_bytes_is_read_again() -> None:
    """A page is recognised by all of its bytes: one that differs may differ anywhere."""
    rows = [Answer.of([{"id": "x", "at": each}]) for each in ("2024-01-01", "2024-01-01", "2025")]
    async with FeedServer(*rows) as feed:
        source = RestApi(
            source_id="feed",
            url=str(feed.url),
            timestamps=("at",),
            paging=NextLinkPagination(path="next"),
        )
        async with source.http() as http:
            requests = ApiRequests(source, http, source.bounds_of(None, None))
            one, again, other = [
                await requests.page(PageRequest(), accept=(), may_be_empty=True) for _ in rows
            ]
            keys = [await requests.keys(each.items) for each in (one, again, other)]

    assert one.items is again.items
    assert other.items == [{"id": "x", "at": "2025"}]
    assert keys[0] == keys[1] != keys[2]


def test_digest_of_what_is_read_changes_with_that_alone() -> None:
    """A change of it is warned of, so nothing else changes it: no default that is written out."""
    named: dict[str, Any] = {"kind": "rest", "source_id": "list", "timestamps": ["updated"]}
    named["url"] = "https://api.example/list"

    def digest(**settings: Any) -> str:
        return str(source_from({**named, **settings}).reading_digest)  # type: ignore[attr-defined]

    plain = digest()
    assert digest(params={"a": 1, "b": 2}) == digest(params={"b": 2, "a": 1})
    for same in (
        {"source_id": "other", "overlap": 3, "retention": 9, "rate": {"requests": 1, "seconds": 1}},
        {"id": "id", "method": "GET", "key": "KEY", "connection": {"timeout": 9}},
    ):
        assert digest(**same) == plain
    changes: tuple[dict[str, Any], ...] = (
        {"params": {"severity": "high"}},
        {"id": "uuid"},
        {"timestamps": ["created"]},
        {"paging": {"kind": "link"}},
        {"paging": {"kind": "page"}},
        {"since": {"parameter": "after"}},
    )
    assert len({plain, *(digest(**each) for each in changes)}) == 1 + len(changes)
