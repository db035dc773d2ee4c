"""Proposals and trials of sources: twenty shapes of APIs, and answers that are no source."""

from __future__ import annotations

import json
import sqlite3
import time
import tomllib
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from ladon_storage.collection.protocols import Source
from ladon_storage.collection.records import Page, Record
from ladon_storage.collection.run import run
from ladon_storage.errors import ConfigurationError
from ladon_storage.probing import Guess, guess, guessing, try_source
from ladon_storage.sources import RestApi, source_from
from ladon_storage.testing.doubles import MemorySink, ScriptedStorage
from ladon_storage.testing.feed_server import Answer, Asked, FeedServer
from tests.api_shapes import COUNT, SHAPES, Shape, answer, instant, iso, uuid

Play = Callable[[str, Asked], Answer]
SECRET = "k3y-9f8e7d6c5b4a39281706f5e4d3c2b1a0"
TRIED = [
    "github",
    "stripe",
    "slack",
    "graph",
    "okta",
    "nvd",
    "kev",
    "geojson",
    "drf",
    "elasticsearch scroll",
    "taxii",
    "ckan",
    "keyed",
]


@pytest.fixture(autouse=True)
def _keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set the secrets that shapes name, and those that are proposed for them."""
    for name in ("OTX_KEY", "MISP_KEY", "EVENTS_KEY", "FEED_KEY", "ITEMS_API_KEY"):
        monkeypatch.setenv(name, SECRET)


@asynccontextmanager
async def served(play: Play) -> AsyncIterator[FeedServer]:
    async with FeedServer() as feed:
        base = feed.at("")
        feed.play = lambda asked: play(base, asked)
        yield feed


def always(document: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Play:
    """Return an API that answers the same, whatever it is asked."""
    return lambda _, __: answer(document, status, headers)


async def proposed(play: Play, path: str = "items", **asks: Any) -> Guess:
    async with served(play) as feed:
        found = await guess(feed.at(path), **asks)
        assert len(feed.requests) == found.requests
        return found


async def collected(source: Source) -> list[str]:
    """Return the ids that a whole run of the engine stores."""
    sink, storage = MemorySink(), ScriptedStorage(now=lambda: datetime.now(UTC))
    await run(source, sink, storage, run_id="run-1")
    return sink.ids


def rows(count: int = COUNT, **fields: Any) -> list[dict[str, Any]]:
    """Return records whose fields are values, or made of their number."""
    return [
        {name: value(number) if callable(value) else value for name, value in fields.items()}
        for number in range(1, count + 1)
    ]


ROWS = rows(id=int, updated_at=iso)
NUMBERS_OF_SEVEN = ["1", "2", "3", "4", "5", "6", "7"]
NUMBERS = sorted(str(each["id"]) for each in ROWS)


# What works.


@pytest.mark.parametrize("name", SHAPES)
async def test_proposal_collects_all_records_of_a_shape(name: str) -> None:
    """The table that is proposed for a known shape reads all of its pages, after four requests."""
    shape: Shape = SHAPES[name]
    async with served(shape.play) as feed:
        found = await guess(feed.at(shape.path), **shape.asks)
        assert len(feed.requests) == found.requests <= 4
        described = tomllib.loads(found.toml)["sources"][found.name]
        assert described == found.settings
        assert await collected(source_from(described)) == sorted(shape.ids), found.toml


KINDS = {"nvd": "nvd", "kev": "kev", "otx": "otx", "misp": "misp", "taxii": "taxii"}


@pytest.mark.parametrize("name", SHAPES)
async def test_proposal_names_the_kind_of_a_known_service(name: str) -> None:
    """A service that has a kind of its own is recognised by its answer; others are `rest`."""
    shape = SHAPES[name]
    found = await proposed(shape.play, shape.path, **shape.asks)
    assert found.settings["kind"] == KINDS.get(name, "rest")


async def test_kind_that_needs_a_key_is_not_proposed_without_one() -> None:
    """What was read without a key stays readable without."""
    async with served(SHAPES["otx"].play) as feed:
        found = await guess(feed.at(SHAPES["otx"].path))
        assert found.settings["kind"] == "rest"
        assert "key" not in found.settings
        assert await collected(found.source()) == sorted(SHAPES["otx"].ids)


def _threatfox(_: str, asked: Asked) -> Answer:
    if asked.body != {"query": "get_iocs", "days": 7}:
        return answer({"query_status": "illegal_days", "data": "none"})
    data = rows(id=str, ioc="192.0.2.1:80", first_seen=lambda n: f"{instant(n):%F %T} UTC")
    return answer({"query_status": "ok", "data": data})


ABUSE_CH: list[tuple[dict[str, Any], str]] = [
    ({}, "rest"),
    ({"headers": {"Auth-Key": SECRET}}, "threatfox"),
    ({"key": "FEED_KEY", "key_header": "Auth-Key"}, "threatfox"),
]


@pytest.mark.parametrize(("asks", "kind"), ABUSE_CH)
async def test_api_that_takes_a_question_is_asked_it(
    asks: dict[str, Any], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A body makes a POST, and is a setting of the source where no kind knows the API."""
    async with served(_threatfox) as feed:
        found = await guess(feed.at("v1/"), body={"query": "get_iocs", "days": 7}, **asks)
        assert found.settings["kind"] == kind
        monkeypatch.setenv(found.settings.get("key", "NO_KEY"), SECRET)
        assert await collected(found.source()) == NUMBERS, found.toml


@pytest.mark.parametrize("path", ["root/collections/91a7b528/", "root/collections/91a7b528"])
async def test_taxii_collection_is_recognised_by_its_own_address(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The address of a collection is enough, and a user in it is one of the source."""

    def play(base: str, asked: Asked) -> Answer:
        if "Basic" not in asked.headers.get("Authorization", ""):
            return answer({}, 401)
        if not asked.path.endswith("/objects/"):
            media = {"Content-Type": "application/taxii+json;version=2.1"}
            return answer({"id": "91a7b528", "title": "a", "can_read": True}, headers=media)
        return SHAPES["taxii"].play(base, asked)

    async with served(play) as feed:
        found = await guess(feed.at(path).replace("://", f"://reader:{SECRET}@"))
        assert found.settings["kind"] == "taxii"
        assert found.settings["user"] == "reader"
        assert SECRET not in found.model_dump_json()
        monkeypatch.setenv(found.settings["key"], SECRET)
        assert await collected(found.source()) == sorted(SHAPES["taxii"].ids)


async def test_misp_instance_without_a_key_is_paged_in_its_body() -> None:
    """A page and a limit in the body are the paging of the body."""
    shape = SHAPES["misp"]
    async with served(shape.play) as feed:
        found = await guess(feed.at(shape.path), body=shape.asks["body"])
        assert found.settings["kind"] == "rest"
        assert found.settings["body"] == {"returnFormat": "json"}
        assert found.settings["paging"]["location"] == "body"
        assert await collected(found.source()) == NUMBERS, found.toml


def _refusing(name: str, first: int, total: bool) -> Play:
    """Return an API of one page today, which refuses what lies beyond its end."""

    def play(_: str, asked: Asked) -> Answer:
        number = int(asked.query.get(name, first))
        skipped = number if name == "offset" else (number - first) * 100
        if skipped >= 7:
            return answer({"code": "invalid page"}, 400)
        return answer({"items": ROWS[skipped:7], **({"total": 7} if total else {})})

    return play


@pytest.mark.parametrize("total", [True, False])
@pytest.mark.parametrize(("name", "first"), [("page", 1), ("page", 0), ("offset", 0)])
async def test_paging_of_the_address_is_kept_where_all_fits_on_one_page(
    name: str, first: int, total: bool
) -> None:
    """Tomorrow's second page is read, and today's refusal beyond the end is no failure."""
    async with served(_refusing(name, first, total)) as feed:
        found = await guess(feed.at(f"items?{name}={first}&limit=100"))
        assert found.settings["paging"]["parameter"] == name
        assert await collected(found.source()) == NUMBERS_OF_SEVEN


def _paged(name: str, **more: Any) -> Play:
    """Return an API that takes an offset by a name, and says nothing of it."""

    def play(_: str, asked: Asked) -> Answer:
        first = int(asked.query.get(name, 0))
        return answer({"items": ROWS[first : first + 10], **more})

    return play


def _numbered(first: int, **more: Any) -> Play:
    def play(_: str, asked: Asked) -> Answer:
        number = int(asked.query.get("page", first)) - first
        return answer({"items": ROWS[number * 10 : number * 10 + 10], **more})

    return play


def _spring(_: str, asked: Asked) -> Answer:
    number = int(asked.query.get("page", 0))
    state = {"last": number >= 2, "totalPages": 3, "totalElements": COUNT, "number": number}
    return answer({"content": ROWS[number * 10 : number * 10 + 10], **state})


def _hosted(_: str, asked: Asked) -> Answer:
    number = int(asked.query.get("page", 1))
    link = f'<https://api.example.org/api/items?page={number + 1}>; rel="next"'
    headers = {"Link": link} if number < 3 else {}
    return answer(ROWS[number * 10 - 10 : number * 10], headers=headers)


def _always_next(base: str, asked: Asked) -> Answer:
    first = int(asked.query.get("after", 0))
    link = f'<{base}items?after={min(first + 10, COUNT)}>; rel="next"'
    return answer(ROWS[first : first + 10], headers={"Link": link})


def _listed_links(base: str, asked: Asked) -> Answer:
    first = int(asked.query.get("offset", 0))
    links = [{"rel": "self", "href": f"{base}items"}]
    if first:
        links.insert(0, {"rel": "prev", "href": f"{base}items?offset={first - 10}&limit=10"})
    if first + 10 < COUNT:
        links.append({"rel": "next", "href": f"{base}items?offset={first + 10}&limit=10"})
    return answer({"features": ROWS[first : first + 10], "links": links})


def _token(name: str, parameter: str) -> Play:
    def play(_: str, asked: Asked) -> Answer:
        first = int(asked.query.get(parameter, 0))
        following = {name: str(first + 10)} if first + 10 < COUNT else {}
        return answer({"items": ROWS[first : first + 10], "meta": following})

    return play


def _graphql(_: str, asked: Asked) -> Answer:
    first = int(asked.body["variables"].get("after") or 0)
    edges = [{"node": each} for each in ROWS[first : first + 10]]
    info = {"hasNextPage": first + 10 < COUNT, "endCursor": str(first + 10)}
    return answer({"data": {"repository": {"issues": {"edges": edges, "pageInfo": info}}}})


def _world_bank(_: str, asked: Asked) -> Answer:
    number = int(asked.query.get("page", 1))
    return answer([{"page": number, "total": COUNT}, ROWS[number * 10 - 10 : number * 10]])


PAGED: dict[str, tuple[Play, dict[str, Any]]] = {
    "offset without a sign": (_paged("offset", total=COUNT), {}),
    "skip": (_paged("skip", total=COUNT), {}),
    "offset in the answer": (_paged("startAt", total=COUNT, startAt=0, maxResults=10), {}),
    "pages from one": (_numbered(1, total=COUNT), {}),
    "pages from zero": (_numbered(0, total=COUNT), {}),
    "pages without a total": (_numbered(1), {}),
    "pages of Spring": (_spring, {}),
    "links of another host": (_hosted, {}),
    "a next link always": (_always_next, {}),
    "links in a list": (_listed_links, {}),
    "nextPageToken": (_token("nextPageToken", "pageToken"), {}),
    "next_page_token": (_token("next_page_token", "page_token"), {}),
    "next_token": (_token("next_token", "pagination_token"), {}),
    "continuationToken": (_token("continuationToken", "continuationToken"), {}),
    "GraphQL": (_graphql, {"body": {"query": "query($after: String) {…}", "variables": {}}}),
    "a list in a list": (_world_bank, {}),
}


@pytest.mark.parametrize("name", PAGED)
async def test_proposal_finds_a_way_of_paging_that_no_provider_names(name: str) -> None:
    """Links, cursors and counts are found by what the answers say, and by trying."""
    play, asks = PAGED[name]
    async with served(play) as feed:
        found = await guess(feed.at("items"), **asks)
        assert len(feed.requests) <= 4
        assert await collected(found.source()) == NUMBERS, found.toml


async def test_parameters_of_the_address_become_the_paging_and_the_range() -> None:
    """A page, a size and a beginning in the address are settings, not parts of the address."""

    def play(_: str, asked: Asked) -> Answer:
        page, size = int(asked.query.get("page", 1)), int(asked.query.get("size", 10))
        return answer({"items": ROWS[(page - 1) * size : page * size], "total": COUNT})

    path = "items?q=a&page=1&size=5&updated_since=2024-01-01T00:00:00Z"
    found = await proposed(play, path)
    assert found.settings["url"].endswith("/items?q=a")
    assert found.settings["since"] == {"parameter": "updated_since", "format": "%Y-%m-%dT%H:%M:%SZ"}
    assert found.settings["paging"] == {
        "kind": "page",
        "parameter": "page",
        "size_parameter": "size",
        "page_size": 5,
        "end": "total",
        "total": "total",
    }


# Fields.


TIMES: dict[str, tuple[list[dict[str, Any]], dict[str, Any]]] = {
    "updated before created": (
        rows(id=int, created_at=iso, updated_at=iso, expires_at="2099-01-01T00:00:00Z"),
        {"timestamps": ["updated_at"]},
    ),
    "another one where it is missing": (
        rows(id=int, created=iso, modified=lambda n: iso(n) if n % 2 else None),
        {"timestamps": ["modified", "created"]},
    ),
    "its own before its author's": (
        rows(id=int, posted=iso, author={"id": 1, "updated_at": iso(1)}),
        {"timestamps": ["posted"]},
    ),
    "seconds": (
        rows(id=int, time=lambda n: int(instant(n).timestamp())),
        {"timestamps": ["time"], "timestamp_format": "seconds"},
    ),
    "milliseconds as text": (
        rows(id=int, time=lambda n: str(int(instant(n).timestamp() * 1000))),
        {"timestamps": ["time"], "timestamp_format": "milliseconds"},
    ),
    "nanoseconds": (
        rows(id=int, timestamp=lambda n: int(instant(n).timestamp()) * 10**9),
        {"timestamps": ["timestamp"], "timestamp_format": "nanoseconds"},
    ),
    "an id as long as a count": (
        rows(id=lambda n: 1_700_000_000 + n, day=lambda n: instant(n).strftime("%Y-%m-%d")),
        {"timestamps": ["day"], "id": "id"},
    ),
    "day before month": (
        rows(id=int, when=lambda n: instant(n).strftime("%d/%m/%Y %H:%M")),
        {"timestamps": ["when"], "timestamp_format": "%d/%m/%Y %H:%M"},
    ),
    "month before day": (
        rows(id=int, when=lambda n: instant(n + 90).strftime("%m/%d/%Y")),
        {"timestamps": ["when"], "timestamp_format": "%m/%d/%Y"},
    ),
    "a zero for none": (
        rows(
            id=int,
            created=lambda n: int(instant(n).timestamp()),
            updated=lambda n: 0 if n % 2 else int(instant(n).timestamp()),
        ),
        {"timestamps": ["updated", "created"], "no_time": [0]},
    ),
    "RFC 2822": (
        rows(id=int, pubDate=lambda n: instant(n).strftime("%a, %d %b %Y %H:%M:%S GMT")),
        {"timestamps": ["pubDate"]},
    ),
}


@pytest.mark.parametrize("name", TIMES)
async def test_time_that_says_how_new_a_record_is_is_chosen(name: str) -> None:
    """Times are found by value and name, in any form; what changes with a record comes first."""
    items, expected = TIMES[name]
    async with served(always(items)) as feed:
        found = await guess(feed.at("items"))
        assert {field: found.settings.get(field) for field in expected} == expected, found.toml
        assert len(await collected(found.source())) == COUNT


IDS: dict[str, tuple[list[dict[str, Any]], str | list[str]]] = {
    "the own one": (rows(user_id=1, uuid=uuid, title="a", at=iso), "uuid"),
    "not the one of something else": (rows(parent_id=int, guid=uuid, at=iso), "guid"),
    "two fields": (
        rows(asn=1, ip=lambda n: f"192.0.2.{n // 2}", port=lambda n: 443 + n % 2, at=iso),
        ["ip", "port"],
    ),
    "versions of one record": (
        rows(id=lambda n: n // 2, name=lambda n: f"n{n}", modified=iso),
        "id",
    ),
    "a time that differs by chance": (rows(at=iso, value=lambda n: [n]), []),
    "a series": (
        rows(station_id=lambda n: n % 2, at=lambda n: iso(n // 2), value=lambda n: [n]),
        ["station_id", "at"],
    ),
    "a message of Slack": (
        rows(user=lambda n: f"U{n % 4}", ts=lambda n: f"{1_700_000_000 + n}.000100"),
        "ts",
    ),
    "nothing": (rows(at=iso(1), value=lambda n: [n]), []),
}


@pytest.mark.parametrize("name", IDS)
async def test_id_is_what_tells_records_apart(name: str) -> None:
    """An id is unique in what came; where no field is, several are, or the content."""
    items, expected = IDS[name]
    async with served(always({"results": items})) as feed:
        found = await guess(feed.at("items"))
        assert found.settings["id"] == expected, found.toml
        assert len(await collected(found.source())) == COUNT


async def test_ids_that_repeat_on_the_second_page_are_no_ids() -> None:
    """What is unique on one page alone is not taken."""
    items = rows(id=lambda n: n % 10, key=uuid, at=iso(1))
    items = [{**each, "id": index % 10} for index, each in enumerate(items)]

    def play(_: str, asked: Asked) -> Answer:
        first = int(asked.query.get("offset", 0))
        return answer({"items": items[first : first + 10], "offset": 0, "total": COUNT})

    found = await proposed(play)
    assert found.settings["id"] == "key", found.toml


# Where the records are.


async def test_records_are_the_list_with_times_not_the_longest_one() -> None:
    """What stands beside records may be a longer list; what else has times is named."""
    document = {
        "fields": [{"name": str(number)} for number in range(90)],
        "data": {"rows": ROWS, "archive": ROWS[:4]},
    }
    found = await proposed(always(document))
    assert found.settings["records"] == "data.rows"
    assert any("data.archive (4)" in each for each in found.unsure)


async def test_keyed_objects_are_found_where_they_are() -> None:
    """An object of records has its ids as keys, also below a path."""
    document = {"status": "ok", "data": {f"k{each['id']}": each for each in ROWS}}
    async with served(always(document)) as feed:
        found = await guess(feed.at("items"))
        assert found.settings["records_keyed_by_id"] is True
        assert found.settings["records"] == "data"
        assert len(await collected(found.source())) == COUNT


async def test_one_record_only_is_a_source_with_doubts() -> None:
    """One record shows no uniqueness and no paging, and the proposal says so."""
    found = await proposed(always({"items": ROWS[:1]}))
    assert found.settings["id"] == "id"
    assert any("one record only" in each for each in found.unsure)


NONE: dict[str, tuple[Play, str]] = {
    "HTML": (lambda _, __: Answer(b"<!DOCTYPE html><p>Sign in</p>"), "is a page of HTML"),
    "XML": (lambda _, __: Answer(b"<?xml version='1.0'?><rss/>"), "is XML"),
    "CSV": (lambda _, __: Answer(b"id,name,at\n1,a,2024-01-01\n"), "looks like CSV"),
    "JSON lines": (lambda _, __: Answer(b'{"id": 1}\n{"id": 2}\n'), "JSON document in each line"),
    "nothing": (lambda _, __: Answer(b""), "is empty"),
    "cut JSON": (lambda _, __: Answer(b'{"items": [{"id": 1'), "is not valid"),
    "no number": (lambda _, __: Answer(b'[{"id": 1, "at": "2024-01-01", "x": NaN}]'), "not valid"),
    "keys with dots": (always({"a.b": {"c.d": ROWS}}), "no list of records"),
    "collections of TAXII": (
        always({"collections": [{"id": uuid(1), "title": "a", "can_read": True}]}),
        "not of a collection",
    ),
    "a redirect": (lambda _, __: Answer(b"", 302, {"Location": "https://a.example.org/"}), "site"),
    "a link that is none": (
        always({"items": ROWS[:10], "next": "http://[::1"}),
        "no way to the next page",
    ),
    "a header that is none": (
        always(ROWS[:10], headers={"Link": '<http://[::1>; rel="next"'}),
        "no way to the next page",
    ),
    "deep JSON": (lambda _, __: Answer(b"[" * 100_000), "is "),
    "no records": (always({"items": []}), "The list at 'items' is empty"),
    "an empty list": (always([]), "is empty"),
    "no list": (always({"version": 1, "name": "api"}), "no list of records"),
    "texts": (always(["a", "b"]), "list of str values"),
    "records without a time": (always(rows(id=int, name="a")), "have no time in any field"),
    "a list for each day": (
        always({"days": {f"2024-01-0{day}": rows(3, id=int, at=iso) for day in range(1, 8)}}),
        "The records are in 7 lists",
    ),
    "lists in a list": (always([rows(3, id=int, at=iso)] * 2), "The records are in 2 lists"),
    "a missing page": (always({}, 404), "answered 404"),
    "a refusal": (always({"message": "since is required"}, 400), "'since is required'"),
    "another method": (always({}, 405), "another method"),
    "a null": (always(None), "no list of records"),
    "a number": (always(7), "no list of records"),
}


@pytest.mark.parametrize("name", NONE)
async def test_answer_of_which_no_source_can_be_made_is_explained(name: str) -> None:
    """No source is proposed, and the problem says what the answer is."""
    play, problem = NONE[name]
    found = await proposed(play)
    assert problem in str(found.problem)
    assert found.settings == {}
    assert found.toml == ""
    with pytest.raises(ConfigurationError, match="No source is proposed"):
        found.source()


async def test_pages_that_no_request_leads_to_are_no_source() -> None:
    """A first page alone is not proposed where the API says that there are more."""
    found = await proposed(always({"items": ROWS[:10], "total": COUNT}))
    assert "states 23 records at 'total'" in str(found.problem)
    assert found.requests == 4
    assert not found.settings


async def test_scroll_without_sorting_is_said_not_to_work() -> None:
    """The pages of a scroll have another address, which a source cannot ask."""
    hits = [{"_id": str(each["id"]), "_source": each} for each in ROWS[:10]]
    total = {"value": COUNT, "relation": "eq"}
    document = {"_scroll_id": "abc", "hits": {"total": total, "hits": hits}}
    found = await proposed(always(document))
    assert "a scroll has an address of its own" in str(found.problem)


async def test_round_number_of_records_is_doubted() -> None:
    """As many records as a limit could be are not said to be all."""
    found = await proposed(always(ROWS[:20]))
    assert "paging" not in found.settings
    assert any("20 records are all there is" in each for each in found.unsure)


@pytest.mark.parametrize(
    ("headers", "body", "text"),
    [
        ({"WWW-Authenticate": "Bearer realm=x"}, {}, 'auth_prefix to "Bearer "'),
        ({"WWW-Authenticate": "Basic realm=x"}, {}, 'auth_prefix to "Basic "'),
        ({}, {"error": "Missing header X-Api-Key"}, "key_header to X-Api-Key"),
        ({}, {"error": "unauthorized"}, "key_header"),
    ],
)
@pytest.mark.parametrize("status", [401, 403])
async def test_refusal_says_which_fields_hold_the_key(
    status: int, headers: dict[str, str], body: dict[str, str], text: str
) -> None:
    """The problem names the fields that hold a key, and that a source has its name alone."""
    found = await proposed(always(body, status, headers))
    assert text in str(found.problem)
    assert "secret" in str(found.problem)


# Keys.


def _needs(place: str) -> Play:
    def play(_: str, asked: Asked) -> Answer:
        given = {
            "query": asked.query.get("api_key"),
            "header": asked.headers.get("X-Api-Key"),
            "bearer": asked.headers.get("Authorization", "").removeprefix("Bearer "),
        }[place]
        if given != SECRET:
            return answer({"error": "no key"}, 401)
        first = int(asked.query.get("offset", 0))
        return answer({"items": ROWS[first : first + 10], "offset": first, "total": COUNT})

    return play


@pytest.mark.parametrize(
    ("place", "path", "asks"),
    [
        ("query", f"items?api_key={SECRET}&offset=0", {}),
        ("header", "items", {"headers": {"X-Api-Key": SECRET}}),
        ("bearer", "items", {"headers": {"Authorization": f"Bearer {SECRET}"}}),
        ("header", "items", {"key": "FEED_KEY", "key_header": "X-Api-Key"}),
        ("query", "items", {"key": "FEED_KEY", "key_param": "api_key"}),
    ],
)
async def test_key_is_used_and_returned_nowhere(
    place: str, path: str, asks: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A key that comes with an address or a header becomes the name of a secret."""
    async with served(_needs(place)) as feed:
        found = await guess(feed.at(path), **asks)
        assert SECRET not in found.model_dump_json() + repr(found)
        monkeypatch.setenv(found.settings["key"], SECRET)
        assert await collected(found.source()) == NUMBERS, found.toml
        trial = await try_source(found.source())
        assert trial.ok
        assert SECRET not in trial.model_dump_json()


@pytest.mark.parametrize(
    "url",
    [
        f"http://127.0.0.1:1/items?token={SECRET}",
        f"http://127.0.0.1:1/items?appid={SECRET}",
        f"http://user:{SECRET}@127.0.0.1:1/items",
        f"http://127.0.0.1:1/items#{SECRET}",
        f"http://127.0.0.1:1/items?a={SECRET}&key={SECRET}",
        f"ftp://127.0.0.1/items?token={SECRET}",
        f"//{SECRET}",
    ],
)
async def test_key_of_an_address_is_in_no_message(url: str) -> None:
    """An error names no key that the address had."""
    try:
        text = (await guess(url)).model_dump_json()
    except ConfigurationError as error:
        text = f"{error} {error.__cause__} {error.__context__}"
    assert SECRET not in text


async def test_key_in_the_path_of_a_dump_is_taken_out_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A kind that takes a key in its path has a place for it there."""
    part = "0123456789abcdef" * 3
    lines = "".join(
        f'"{n}","{instant(n):%F %T}","http://192.0.2.1/{n}","online","","a","b","c","d"\r\n'
        for n in range(COUNT, 0, -1)
    )
    dump = "id,dateadded,url,url_status,last_online,threat,tags,urlhaus_link,reporter\r\n" + lines

    def play(_: str, asked: Asked) -> Answer:
        return Answer(dump.encode()) if f"/{part}/" in asked.path else answer({}, 403)

    async with served(play) as feed:
        found = await guess(feed.at(f"exports/{part}/csv_online/"))
        assert found.settings["kind"] == "urlhaus"
        assert part not in found.model_dump_json()
        monkeypatch.setenv(found.settings["key"], part)
        assert await collected(found.source()) == NUMBERS


async def test_key_that_an_answer_repeats_is_masked() -> None:
    """A refusal that repeats the key is reported without it."""
    play = always({"message": f"the key {SECRET} is not valid"}, 400)
    found = await proposed(play, f"items?api_key={SECRET}")
    assert "is not valid" in str(found.problem)
    assert SECRET not in found.model_dump_json()


# Samples.


async def test_sample_is_read_without_a_request(tmp_path: Path) -> None:
    """A file is enough for the fields; what only requests would show is left open."""
    sample = tmp_path / "sample.json"
    sample.write_text(json.dumps({"items": ROWS, "next_cursor": "abc"}))
    found = await guess(sample=sample)
    assert found.requests == 0
    assert found.settings["records"] == "items"
    assert found.settings["paging"]["parameter"] == "cursor"
    assert any("a sample was read" in each for each in found.unsure)
    assert any("set url" in each for each in found.notes)


async def test_sample_that_cannot_be_read_is_said_so(tmp_path: Path) -> None:
    """A missing file is a configuration error that names it."""
    with pytest.raises(ConfigurationError, match=r"missing\.json"):
        await guess("https://example.org/", sample=tmp_path / "missing.json")


async def test_texts_of_an_answer_do_not_leave_their_comment() -> None:
    """Names of fields may hold line ends and quotes, and the table is still TOML."""
    evil = 'id"\n[sources.evil]\nkind = "kev"\n#'
    items = [{evil: uuid(number), "up\ndated": iso(number)} for number in range(9)]
    found = await guess(sample=json.dumps(items).encode())
    described = tomllib.loads(found.toml)["sources"]
    assert list(described) == [found.name]
    assert described[found.name] == found.settings


async def test_large_answer_is_read_in_bounded_time() -> None:
    """Fifty thousand records are no reason for a proposal to take long."""
    items = [{"id": number, "updated": iso(number % 500)} for number in range(50_000)]
    began = time.monotonic()
    found = await guess("https://example.org/items", sample=json.dumps({"data": items}).encode())
    assert found.settings["id"] == "id"
    assert time.monotonic() - began < 10


async def test_answer_that_is_too_large_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """What would fill the memory is not read, and the next step is said."""
    monkeypatch.setattr(guessing, "MAX_ANSWER_BYTES", 1_000)
    found = await proposed(always({"items": ROWS}))
    assert "larger than 1000 bytes" in str(found.problem)
    assert "sample" in str(found.problem)


@pytest.mark.parametrize(
    "asks", [{"method": "PUT"}, {"headers": {"X-A": "a\nb"}}, {"key": "NOT_SET_KEY"}]
)
async def test_question_that_cannot_be_asked_is_a_configuration_error(asks: dict[str, Any]) -> None:
    """What a person gave wrong is refused before anything is asked."""
    with pytest.raises(ConfigurationError):
        await guess("http://127.0.0.1:1/items", **asks)


async def test_unreachable_host_is_reported_at_once() -> None:
    """Nothing is asked again and again while a person waits."""
    began = time.monotonic()
    found = await guess("http://127.0.0.1:1/items")
    assert "could not be reached" in str(found.problem)
    assert time.monotonic() - began < 5


# Trials.


@pytest.mark.parametrize("name", TRIED)
async def test_trial_of_a_shape_has_records_and_the_next_request_within_two_seconds(
    name: str,
) -> None:
    """A trial reads a page or two, and tells what a run would do next."""
    shape = SHAPES[name]
    async with served(shape.play) as feed:
        source = (await guess(feed.at(shape.path), **shape.asks)).source()
        before = len(feed.requests)
        trial = await try_source(source, records=3)
        assert trial.ok
        assert trial.error is None
        assert len(feed.requests) - before == len(trial.requests) <= 4
    assert trial.seconds < 2
    assert len(trial.records) == 3
    assert {each.record_id for each in trial.records} <= {*shape.ids}
    assert json.loads(trial.records[0].payload)
    assert trial.is_finished == (trial.next_request is None)
    assert trial.delivered >= (COUNT if trial.is_finished else 19)


def api(feed: FeedServer, **fields: Any) -> RestApi:
    described = {"kind": "rest", "source_id": "feed", "url": feed.at("items"), "records": "items"}
    source = source_from({**described, "timestamps": ["updated_at"], **fields})
    assert isinstance(source, RestApi)
    return source


async def test_trial_tells_the_next_request_and_does_not_make_it() -> None:
    """The request for the third page is known, with its parameters, and not made."""
    async with served(_numbered(1, total=COUNT)) as feed:
        trial = await try_source(api(feed, paging={"kind": "page"}, params={"q": "a"}))
        assert not any("page=3" in each for each in feed.requests)
    assert trial.next_request is not None
    assert trial.next_request.url.endswith("/items?q=a&page=3")
    assert trial.paging == "The reading goes on by page numbers in 'page'."
    assert trial.total == COUNT
    assert trial.delivered == 20


async def test_trial_of_one_document_ends_with_it() -> None:
    """What is all there is says how that is known."""
    async with served(always({"items": ROWS})) as feed:
        trial = await try_source(api(feed))
    assert trial.is_finished
    assert trial.completeness == "whole document"
    assert trial.paging == "The reading ends here: one document is all there is."


WARNINGS: dict[str, tuple[list[Any], str]] = {
    "times in the future": (
        rows(id=int, updated_at=lambda n: f"2999-01-{n:02}T00:00:00Z"),
        "All times are in the future",
    ),
    "equal times": (rows(id=int, updated_at=iso(1)), "All 23 times are equal"),
    "shared ids": (
        rows(id=lambda n: n // 2, updated_at=iso(1), value=int),
        "ids belong to several different records",
    ),
    "no times": (rows(id=int), "All 23 items are rejected, most for: updated_at: missing"),
    "some rejects": (
        rows(id=int, updated_at=lambda n: iso(n) if n % 3 else "soon"),
        "7 of 23 items are rejected",
    ),
    "no record": ([], "No record came"),
}


@pytest.mark.parametrize("name", WARNINGS)
async def test_trial_warns_of_what_a_run_would_meet(name: str) -> None:
    """Doubtful times, ids and rejects are said before anything is collected."""
    items, text = WARNINGS[name]
    async with served(always({"items": items})) as feed:
        trial = await try_source(api(feed))
    assert any(text in each for each in trial.warnings), trial.warnings


async def test_trial_keeps_rejects_with_their_reasons() -> None:
    """What would go into the quarantine is part of the result, as it came."""
    async with served(always({"items": [*ROWS[:4], {"id": 9}, 7]})) as feed:
        trial = await try_source(api(feed))
    assert (trial.delivered, trial.rejected) == (6, 2)
    assert [each.raw for each in trial.rejects] == ['{"id":9}', "7"]
    assert trial.rejects[0].record_id == "9"
    assert "missing" in trial.rejects[0].reason


async def test_trial_warns_of_an_order_that_is_declared_and_wrong() -> None:
    """A source that is declared as ordered, and comes newest first, is said to be."""

    def play(_: str, asked: Asked) -> Answer:
        number = int(asked.query.get("page", 1))
        return answer({"items": ROWS[::-1][number * 10 - 10 : number * 10]})

    async with served(play) as feed:
        trial = await try_source(api(feed, paging={"kind": "page"}, ordered=True))
    assert any("declared as ordered" in each for each in trial.warnings)
    assert any("no total" in each for each in trial.warnings)
    assert any("declared in since" in each for each in trial.warnings)


@pytest.mark.parametrize(
    ("script", "text"),
    [
        (answer({}, 503), "answered 503"),
        (answer({}, 429, {"Retry-After": "300"}), "answered 429"),
        (answer({"rows": []}), "does not have a list at 'items'"),
        (Answer(b"<html>"), "is not JSON"),
        (Answer(b"{}", cut_at=1), "cut its answer off"),
    ],
)
async def test_trial_of_a_failing_source_is_a_result_at_once(script: Answer, text: str) -> None:
    """A failure is not waited for and repeated, and the requests tell what was answered."""
    began = time.monotonic()
    async with FeedServer(script) as feed:
        trial = await try_source(api(feed))
    assert text in str(trial.error)
    assert not trial.ok
    assert len(trial.requests) == 1
    assert time.monotonic() - began < 5


async def test_trial_without_its_secret_says_which_one() -> None:
    """A key that is not set is a result that names it."""
    async with served(always({"items": ROWS})) as feed:
        trial = await try_source(api(feed, key="NOT_SET_KEY"))
    assert "NOT_SET_KEY" in str(trial.error)
    assert trial.requests == ()


async def test_trial_of_no_source_is_a_configuration_error() -> None:
    """What describes no source is refused as everywhere."""
    with pytest.raises(ConfigurationError, match="kind should be one of"):
        await try_source({"kind": "kve"})


async def test_trial_of_a_table_ends_after_a_few_pages(tmp_path: Path) -> None:
    """A source that asks no HTTP is tried as well, and not read to its end."""
    with closing(sqlite3.connect(tmp_path / "t.db")) as database, database:
        database.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, updated_at TEXT)")
        values = [(number, iso(number)) for number in range(5_000)]
        database.executemany("INSERT INTO t VALUES (?, ?)", values)
    url = f"sqlite:///{tmp_path / 't.db'}"
    trial = await try_source({"kind": "sql", "source_id": "t", "url": url, "table": "t"})
    assert trial.ok
    assert trial.delivered == 3_000
    assert trial.paging == "The reading goes on: there is more than the trial reads."


class Endless:
    """A source of one's own that never ends, and asks no HTTP."""

    source_id = "endless"
    overlap = None

    def __init__(self) -> None:
        self.closed = False

    async def pages(self, start: datetime | None, until: datetime | None) -> AsyncIterator[Page]:
        try:
            for number in range(10**9):
                yield Page([Record.of(str(number), instant(number), {"n": number})])
        finally:
            self.closed = True


async def test_trial_of_an_own_endless_source_ends_and_closes_it() -> None:
    """A source without HTTP is tried by its pages, and left in order."""
    source = Endless()
    trial = await try_source(source)
    assert trial.ok
    assert trial.kind == "Endless"
    assert not trial.is_finished
    assert source.closed
    assert trial.delivered == 3


async def test_trial_ends_where_the_next_page_does_not_come() -> None:
    """A page that lets wait is not waited for, once another one came."""
    pages: Iterator[Answer] = iter(
        [answer({"items": ROWS[:10], "total": COUNT}), Answer(b"{}", stall_at=1)]
    )
    async with served(lambda _, __: next(pages)) as feed:
        trial = await try_source(api(feed, paging={"kind": "page"}))
    assert trial.error is None
    assert trial.delivered == 10
    assert trial.next_request is not None
    assert trial.next_request.url.endswith("?page=2")
    assert trial.seconds < 2
