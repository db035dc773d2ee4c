"""The way to the next page that a proposal finds."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from ladon_storage.collection.run import run
from ladon_storage.errors import ConfigurationError
from ladon_storage.probing import guess
from ladon_storage.testing.doubles import MemorySink, ScriptedStorage
from ladon_storage.testing.feed_server import Answer, Asked
from tests.probing.api_shapes import COUNT, answer
from tests.probing.asking import (
    NUMBERS,
    NUMBERS_OF_SEVEN,
    ROWS,
    Play,
    always,
    collected,
    numbered,
    proposed,
    served,
)


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
    "pages from one": (numbered(1, total=COUNT), {}),
    "pages from zero": (numbered(0, total=COUNT), {}),
    "pages without a total": (numbered(1), {}),
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
    """A page, a size and a beginning in the address are settings; the first run begins there."""

    def play(_: str, asked: Asked) -> Answer:
        page, size = int(asked.query.get("page", 1)), int(asked.query.get("size", 10))
        return answer({"items": ROWS[(page - 1) * size : page * size], "total": COUNT})

    path = "items?q=caf%E9&page=1&size=5&updated_since=2024-01-01T00:00:00Z"
    found = await proposed(play, path)
    assert found.settings["url"].endswith("/items?q=caf%E9&updated_since=2024-01-01T00:00:00Z")
    assert found.settings["since"] == {"parameter": "updated_since", "format": "%Y-%m-%dT%H:%M:%SZ"}
    assert found.settings["paging"] == {
        "kind": "page",
        "parameter": "page",
        "size_parameter": "size",
        "page_size": 5,
        "end": "total",
        "total": "total",
    }


def _recent(_: str, asked: Asked) -> Answer:
    since = asked.query.get("since")
    found = ROWS[-5:] if since is None else [each for each in ROWS if each["updated_at"] >= since]
    return answer({"items": found})


def _bounded(_: str, asked: Asked) -> Answer:
    if not {"since", "until"} <= asked.query.keys():
        return answer({"error": "since and until are required"}, 400)
    first, last = asked.query["since"], asked.query["until"]
    return answer({"items": [each for each in ROWS if first <= each["updated_at"] <= last]})


@pytest.mark.parametrize(
    ("play", "more"),
    [(_recent, ""), (_bounded, "&until=2025-01-01T00:00:00Z")],
    ids=["default of the last ones", "both required"],
)
async def test_first_run_asks_for_the_range_that_was_tried(play: Play, more: str) -> None:
    """A request without the time of the address was never made, and may be another question."""
    async with served(play) as feed:
        found = await guess(feed.at(f"items?since=2024-01-01T00:00:00Z{more}"))
        assert any("before the time of since" in each for each in found.unsure)
        source, sink = found.source(), MemorySink()
        storage = ScriptedStorage(now=lambda: datetime.now(UTC))
        await run(source, sink, storage, run_id="run-1")
        assert sink.ids == NUMBERS
        await run(source, sink, storage, run_id="run-2")
        assert "since=2024-03-07" in feed.requests[-1], "the next run goes on from the watermark"
        assert "until=2025" not in "".join(feed.requests[-2:]), "what is tried had its own end"
        asked = len(feed.requests)
        with pytest.raises(ConfigurationError, match="Set since as well"):
            await run(
                source, sink, storage, run_id="before", until=datetime(2023, 1, 1, tzinfo=UTC)
            )
        assert len(feed.requests) == asked


def _cursor_is_the_start(_: str, asked: Asked) -> Answer:
    after = asked.query.get("after", ROWS[-5]["updated_at"])
    found = [each for each in ROWS if each["updated_at"] >= after]
    more = len(found) > 10
    return answer({"items": found[:10], "next": found[10]["updated_at"] if more else None})


def _last_id_is_the_start(_: str, asked: Asked) -> Answer:
    after = asked.query.get("after", ROWS[-5]["updated_at"])
    by_id = after.isdecimal()
    found = [e for e in ROWS if (e["id"] > int(after) if by_id else e["updated_at"] >= after)]
    return answer({"items": found[:10], "has_more": len(found) > 10})


@pytest.mark.parametrize("play", [_cursor_is_the_start, _last_id_is_the_start])
async def test_start_of_the_address_stays_where_a_cursor_has_its_name(play: Play) -> None:
    """Without it the first run would begin where the API begins by itself."""
    async with served(play) as feed:
        found = await guess(feed.at("items?after=2024-01-01T00:00:00Z"))
        assert found.settings["paging"]["parameter"] == "after"
        assert "after=2024-01-01T00:00:00Z" in found.settings["url"]
        assert await collected(found.source()) == NUMBERS


async def test_next_page_is_tried_with_the_end_of_the_address() -> None:
    """With another end there are other records, which are no next page."""
    async with served(_bounded) as feed:
        found = await guess(feed.at("items?since=2024-01-01T00:00:00Z&until=2024-03-04T00:00:00Z"))
        assert "paging" not in found.settings, found.toml
        assert len(feed.requests) > 1
        assert all("until=2024-03-04" in each for each in feed.requests)


def _from(name: str, first: int = 0, size: int = 10) -> Callable[[Asked], tuple[int, int]]:
    """Return what reads the position of a page, and the next one, from a parameter."""

    def read(asked: Asked) -> tuple[int, int]:
        begin = int(asked.query.get(name, first))
        return begin, begin + size

    return read


def _next_results(_: str, asked: Asked) -> Answer:
    begin, end = _from("max")(asked)
    following = f"?max={end}" if end < COUNT else None
    return answer({"statuses": ROWS[begin:end], "search_metadata": {"next_results": following}})


def _start_cursor(_: str, asked: Asked) -> Answer:
    begin, end = _from("start_cursor")(asked)
    more = end < COUNT
    found = {
        "results": ROWS[begin:end],
        "has_more": more,
        "next_cursor": str(end) if more else None,
    }
    return answer(found)


def _starting_after(_: str, asked: Asked) -> Answer:
    begin, end = _from("starting_after")(asked)
    pages = {"page": 1, "next": {"page": 2, "starting_after": f"{end}"}} if end < COUNT else {}
    return answer({"data": ROWS[begin:end], "pages": pages})


def _couch(_: str, asked: Asked) -> Answer:
    begin, end = _from("skip")(asked)
    found = [{"id": str(each["id"]), "doc": each} for each in ROWS[begin:end]]
    return answer({"total_rows": COUNT, "offset": begin, "rows": found})


def _hits_from(_: str, asked: Asked) -> Answer:
    begin, end = _from("from")(asked)
    found = [{"_id": str(each["id"]), "_source": each} for each in ROWS[begin:end]]
    return answer({"hits": {"total": {"value": COUNT}, "hits": found}})


def _named_after_its_parameter(_: str, asked: Asked) -> Answer:
    begin, end = _from("rccontinue")(asked)
    following = {"continue": {"rccontinue": f"{end}", "continue": "-||"}} if end < COUNT else {}
    return answer({"query": {"recentchanges": ROWS[begin:end]}, **following})


def _continue(_: str, asked: Asked) -> Answer:
    begin, end = _from("continue")(asked)
    following = {"continue": f"{end}", "remainingItemCount": COUNT - end} if end < COUNT else {}
    return answer({"kind": "EventList", "metadata": following, "items": ROWS[begin:end]})


def _end_of_stream(base: str, asked: Asked) -> Answer:
    begin, end = _from("cursor")(asked)
    end = min(end, COUNT)
    following = {"after_url": f"{base}items?cursor={end}", "after_cursor": f"{end}"}
    return answer({"tickets": ROWS[begin:end], **following, "end_of_stream": end == COUNT})


def _more_topics(base: str, asked: Asked) -> Answer:
    begin, end = _from("start")(asked)
    following = {"more_topics_url": f"{base}items?start={end}"} if end < COUNT else {}
    return answer({"topic_list": {"topics": ROWS[begin:end], **following}})


def _silent(_: str, asked: Asked) -> Answer:
    page = int(asked.query.get("page", 1)) - 1
    return answer({"items": ROWS[page * 7 : page * 7 + 7]})


@pytest.mark.parametrize(
    "play",
    [
        _next_results, _start_cursor, _starting_after, _couch, _hits_from,
        _named_after_its_parameter, _continue, _end_of_stream, _more_topics, _silent,
    ],
)  # fmt: skip
async def test_paging_of_other_names_collects_all(play: Play) -> None:
    """Other names of cursors and links, and pages of an odd size without any sign of more."""
    async with served(play) as feed:
        found = await guess(feed.at("items"))
        assert found.problem is None, found.problem
        assert len(await collected(found.source())) == COUNT


@pytest.mark.parametrize(
    ("size", "skip"),
    [("$limit", "$offset"), ("$top", "$skip"), ("sysparm_limit", "sysparm_offset")],
)
async def test_offset_is_called_as_the_size_in_the_address(size: str, skip: str) -> None:
    """An API of its own style names both parameters in it, and may say nothing of further pages."""

    def play(_: str, asked: Asked) -> Answer:
        begin, end = _from(skip, size=int(asked.query.get(size, 10)))(asked)
        return answer(ROWS[begin:end])

    async with served(play) as feed:
        found = await guess(feed.at(f"items?{size}=5"))
        assert found.settings["paging"]["parameter"] == skip
        assert await collected(found.source()) == NUMBERS


@pytest.mark.parametrize(
    "header", ["x-ms-continuationtoken", "X-Continuation", "Next-Page-Token", "Opc-Next-Page"]
)
async def test_cursor_in_a_header_alone_is_no_whole_answer(header: str) -> None:
    """If it leads nowhere, nothing is proposed that would end after a page."""
    found = await proposed(always({"value": ROWS[:10]}, headers={header: "abc"}))
    assert found.settings == {}
    assert f"has a next page in its header {header}" in (found.problem or "")


def _header(header: str, parameter: str, form: str) -> Play:
    def play(_: str, asked: Asked) -> Answer:
        begin = int(asked.query.get(parameter, "0").strip("t"))
        end = begin + 10
        headers = {header: form.format(end)} if end < COUNT else {}
        return answer({"value": ROWS[begin:end]}, headers=headers)

    return play


@pytest.mark.parametrize(
    ("header", "parameter", "form", "kind"),
    [
        ("NextPageUri", "nextPage", "?nextPage={}", "next"),
        ("x-ms-continuationtoken", "continuationToken", "t{}t", "cursor"),
        ("X-Next-Cursor", "cursor", "t{}t", "cursor"),
    ],
)
async def test_next_page_in_a_header_is_found(
    header: str, parameter: str, form: str, kind: str
) -> None:
    """Under a name that only this service has."""
    async with served(_header(header, parameter, form)) as feed:
        found = await guess(feed.at("items"))
        assert found.settings["paging"]["kind"] == kind, found.problem
        assert found.settings["paging"]["path"] == header
        assert await collected(found.source()) == NUMBERS


@pytest.mark.parametrize(
    "sign",
    [
        {"counts": {"returned": 10, "total": 53}},
        {"list_info": {"has_more_rows": True}},
        {"more_items_url": "/api/items?after=2"},
        {"total": -10},
        {"before": None, "after": "t3_abc"},
    ],
)
async def test_sign_of_more_in_any_place_is_no_whole_answer(sign: dict[str, Any]) -> None:
    """No single document is proposed, as its run would fail."""
    found = await proposed(always({"items": ROWS[:10], **sign}))
    assert found.settings == {}
    assert "no way to the next page was found" in str(found.problem)


async def test_sign_of_another_list_asks_nothing() -> None:
    """A list of comments beside the records may go on, and has a total of its own."""
    comments = {"has_more": True, "total": 53}
    found = await proposed(always({"items": ROWS[:7], "comments": comments}))
    assert found.settings["records"] == "items"
    assert not any("comments" in each for each in found.unsure)


@pytest.mark.parametrize(
    ("sign", "place"),
    [({"summary": {"total": 53}}, "summary.total"), ({"is_limited": True}, "is_limited")],
)
async def test_sign_that_may_be_about_something_else_is_an_open_question(
    sign: dict[str, Any], place: str
) -> None:
    """The proposal names it, and leaves open whether there is more."""
    found = await proposed(always({"items": ROWS[:7], **sign}))
    assert any("more records: the API s" in each and place in each for each in found.unsure)


@pytest.mark.parametrize("count", [7, 10])
async def test_answer_without_any_sign_leaves_open_whether_it_is_all(count: int) -> None:
    """An API may cut its answers in silence at any number."""
    found = await proposed(always({"items": ROWS[:count]}))
    assert found.requests == 4
    assert any(f"whether {count} records are all there is" in each for each in found.unsure)


async def test_answer_that_states_its_total_is_asked_once() -> None:
    """What is whole by its own word needs no second request."""
    found = await proposed(always({"items": ROWS[:7], "total": 7}))
    assert found.requests == 1
    assert not any("all there is:" in each for each in found.unsure)


def _by_time(following: int) -> Play:
    """Return an API whose cursor is the time of the last record, or of the one behind it."""

    def play(_: str, asked: Asked) -> Answer:
        after = asked.query.get("since_time", "")
        found = [each for each in ROWS if each["updated_at"] > after]
        more = len(found) > 10
        return answer(
            {"items": found[:10], "next": found[following]["updated_at"] if more else None}
        )

    return play


async def test_time_that_is_a_cursor_is_not_passed_over() -> None:
    """The name under which it is sent is not found, so the first page alone is never proposed."""
    found = await proposed(_by_time(9))
    assert found.settings == {}
    assert "has a next page at 'next', and no way to the next page was found" in str(found.problem)


async def test_time_that_may_be_a_cursor_is_an_open_question() -> None:
    """A date next to records may be that of their next edition."""
    found = await proposed(_by_time(10))
    assert "whether next leads to more records" in found.unsure
