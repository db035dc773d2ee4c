"""Where a list ends: everything is read, or the run fails, and what says so is said."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import stamina

from ladon_storage.collection.records import Page
from ladon_storage.collection.run import run
from ladon_storage.errors import SourceError
from ladon_storage.sources.http import sending
from ladon_storage.sources.rest import reading
from ladon_storage.testing.doubles import MemorySink, ScriptedStorage, at
from ladon_storage.testing.feed_server import Answer, Asked, FeedServer
from tests.sources.test_rest import api, row


@pytest.fixture(autouse=True)
def _no_waiting() -> Iterator[None]:
    with stamina.set_testing(True, attempts=sending.ATTEMPTS, cap=True):
        yield


ROWS = [row(number) for number in range(7)]
IDS = [str(number) for number in range(7)]


def answer(
    rows: list[Any], headers: dict[str, str] | None = None, status: int = 200, **more: Any
) -> Answer:
    return Answer(json.dumps({"rows": rows, **more}).encode(), status, headers or {})


def cut(asked: Asked, size: int, rows: list[Any] = ROWS) -> list[Any]:
    """Return the rows of a page that is asked for by number or offset."""
    if "page" in asked.query:
        first = (int(asked.query["page"]) - 1) * size
    else:
        first, size = int(asked.query["offset"]), min(size, int(asked.query["limit"]))
    return rows[first : first + size]


async def pages_of(feed: FeedServer, **fields: Any) -> list[Page]:
    return [page async for page in api(feed, **fields).pages(None, None)]


async def ids_of(feed: FeedServer, **fields: Any) -> list[str]:
    return [each.record_id for page in await pages_of(feed, **fields) for each in page.records]


async def refused(feed: FeedServer, **fields: Any) -> str:
    with pytest.raises(SourceError) as caught:
        await pages_of(feed, **fields)
    return str(caught.value)


# One document that is not all.

SIGNS: list[dict[str, Any]] = [
    {"next": "/feed.json?page=2"},
    {"links": {"next": "/feed.json?page=2"}},
    {"_links": {"next": {"href": "/feed.json?page=2"}}},
    {"meta": {"next": "x"}},
    {"paging": {"next": "x"}},
    {"paging": {"cursors": {"next_cursor": "x"}}},
    {"next_page": 2},
    {"nextPageToken": "abc"},
    {"@odata.nextLink": "http://example.org/more"},
    {"next_cursor": "abc"},
    {"cursor": "abc"},
    {"response_metadata": {"next_cursor": "abc"}},
    {"has_more": True},
    {"hasMore": "true"},
    {"more": 1},
    {"is_last": False},
    {"last": False},
    {"done": False},
    {"pageInfo": {"hasNextPage": True}},
    {"incomplete_results": True},
    {"total": 8},
    {"total": "8"},
    {"count": 8},
    {"totalResults": 8},
    {"total_count": 8},
    {"meta": {"total": 8}},
    {"meta": {"pagination": {"total": 8}}},
    {"page": {"totalElements": 8}},
    {"hits": {"total": {"value": 8, "relation": "eq"}}},
    {"total": {"value": 8, "relation": "gte"}},
    {"@odata.count": 8},
    {"total_pages": 2},
    {"meta": {"last_page": 2}},
    {"pages": 2},
    {"pagination": {"page": 1, "pages": 2}},
    {"result_info": {"total_pages": 2}},
    {"result_info": {"total_count": 8}},
    {"hydra:totalItems": 8},
    {"hydra:view": {"hydra:next": "/feed.json?page=2"}},
    {"link": [{"relation": "self", "url": "/"}, {"relation": "next", "url": "/feed.json?page=2"}]},
    {"links": [{"rel": "next", "href": "/feed.json?page=2"}]},
    {"end_of_stream": False},
    {"after_url": "/feed.json?after=2"},
    {"after_cursor": "abc"},
    {"LastEvaluatedKey": {"id": 2}},
    {"meta": {"pagination": {"cursors": {"after": "x"}}}},
    {"is_more": True},
    {"hasMoreItems": True},
    {"hasMoreResults": True},
    {"moreDataAvailable": True},
    {"limit_reached": True},
    {"eof": False},
    {"exhausted": False},
    {"moreItemsInCollection": True},
    {"has_more": "1"},
    {"has_more": "yes"},
    {"hits": {"total": {"value": 7, "relation": "gte"}}},
    {"total": 7, "next": "/feed.json?page=2"},
    {"total": "1,330"},
    {"total": "1 330"},
    {"total": "1\u202f330"},
    {"total": "1.234.567"},
    {"total": "10000+"},
    {"total": ">10,000"},
    {"total": "over 10000"},
    {"total": "7+"},
    {"total": {"count": 330}},
]
NO_SIGNS: list[dict[str, Any]] = [
    {"next": None},
    {"next": ""},
    {"next": {}},
    {"next": []},
    {"links": {"next": None, "last": "/feed.json"}},
    {"_links": {"next": {"href": None}}},
    {"next": "/feed.json"},
    {"next_cursor": "", "has_more": False},
    {"has_more": False, "next_cursor": "for the next time"},
    {"is_last": True, "cursor": "for the next time"},
    {"last": 0, "last_page": 1, "more": "https://example.org/about"},
    {"total": 7, "count": 7},
    {"count": 3},
    {"total": "many", "total_count": None, "totalResults": True},
    {"total_pages": 1},
    {"hits": {"total": {"value": 7, "relation": "eq"}}},
    {"total": 7, "_links": {"next": "/feed.json?offset=100"}},
    {"next": "2024-02-01T00:00:00Z"},
    {"next_page": -1},
    {"has_more": "N", "next_cursor": "for the next time"},
    {"eof": True, "end": 7, "last": "0"},
    {"total": "5+"},
    {"total": "about 330"},
    {"total": -1},
    {"total": {"count": 7}},
    {"total": {"value": 5, "relation": "gte"}},
]
HEADERS = [
    {"Link": "</feed.json?page=2>; rel='next'"},
    {"X-MS-Continuation": "abc"},
    {"x-ms-continuationtoken": "abc"},
    {"Opc-Next-Page": "abc"},
    {"X-Pagination": '{"TotalCount": 8}'},
    {"X-Pagination": '{"HasNext": true}'},
    {"X-Has-More": "true"},
    {"X-Total-Items": "8"},
    {"Pagination-Count": "8"},
    {"X-Pagination-Page-Count": "2"},
    {"X-Next": "/feed.json?page=2"},
    {"Link": '</feed.json?page=2>; rel="next"'},
    {"X-Total-Count": "8"},
    {"X-Total": "8"},
    {"X-WP-Total": "8"},
    {"X-WP-TotalPages": "2"},
    {"X-Result-Count": "8"},
    {"X-Next-Page": "2"},
    {"Content-Range": "items 0-6/330"},
    {"Content-Range": "0-6/8"},
    {"Content-Range": "items=0-6/330"},
    {"X-Total-Count": "1,330"},
    {"X-Total-Count": "7+"},
    {"Next-Range": "id 7..; max=7"},
]
NO_HEADERS = [
    {"Link": '</feed.json?page=1>; rel="first", </feed.json>; rel="next"'},
    {"X-Total-Count": "7"},
    {"X-Next-Page": ""},
    {"Content-Range": "items 0-6/7"},
    {"Content-Range": "items 0-6/*"},
]


@pytest.mark.parametrize("sign", SIGNS, ids=json.dumps)
async def test_document_that_says_there_is_more_is_never_green(sign: dict[str, Any]) -> None:
    """Twenty of 330 records are no collection, whatever was declared."""
    async with FeedServer(play=lambda _: answer(ROWS, **sign)) as feed:
        assert "and " in await refused(feed)
        [page, *_] = await pages_of(feed, paging={"kind": "none", "only_declared": True})

    assert (len(page.records), page.completeness) == (7, "declared")


@pytest.mark.parametrize("sign", NO_SIGNS, ids=json.dumps)
async def test_document_that_says_no_more_is_whole(sign: dict[str, Any]) -> None:
    """What is empty, leads to itself or counts what came contradicts nothing."""
    async with FeedServer(play=lambda _: answer(ROWS, **sign)) as feed:
        [page] = await pages_of(feed)

    assert page.completeness == "whole document"


@pytest.mark.parametrize("headers", HEADERS, ids=json.dumps)
async def test_header_that_says_there_is_more_is_heard(headers: dict[str, str]) -> None:
    """Also where the document is a list alone."""
    async with FeedServer(play=lambda _: Answer(json.dumps(ROWS).encode(), 200, headers)) as feed:
        await refused(feed, records="")


@pytest.mark.parametrize("headers", NO_HEADERS, ids=json.dumps)
async def test_header_that_says_no_more_is_heard(headers: dict[str, str]) -> None:
    """What counts what came contradicts nothing."""
    async with FeedServer(play=lambda _: Answer(json.dumps(ROWS).encode(), 200, headers)) as feed:
        assert await ids_of(feed, records="") == IDS


async def test_total_is_found_beside_the_records() -> None:
    """Where the list is, and not only at the top."""
    document = {"data": {"rows": ROWS, "total": 8}}
    async with FeedServer(play=lambda _: Answer.of(document)) as feed:
        assert "states 8 items at 'data.total'" in await refused(feed, records="data.rows")


async def test_keys_of_keyed_records_are_no_signs() -> None:
    """A record whose id is next is a record."""
    document = {"next": {"at": "2024-01-01"}, "total": {"at": "2024-01-01"}}
    async with FeedServer(play=lambda _: Answer.of(document)) as feed:
        assert await ids_of(feed, records="", records_keyed_by_id=True) == ["next", "total"]


@pytest.mark.parametrize(("limit", "completeness"), [(7, "declared"), (8, "whole document")])
async def test_document_of_just_the_size_asked_for_is_no_proof(
    limit: int, completeness: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Where so many came as a parameter asks for at most, the log says what is not known."""
    async with FeedServer(play=lambda _: answer(ROWS)) as feed:
        with caplog.at_level(logging.WARNING):
            [page] = await pages_of(feed, params={"per_page": limit})

    assert page.completeness == completeness
    assert ("Declare its paging" in caplog.text) == (completeness == "declared")


# Pages that are counted.

SHORT = [
    {"kind": "offset", "end": "short", "page_size": 100},
    {"kind": "offset", "page_size": 2},
    {"kind": "offset", "page_size": 1},
    {"kind": "page", "end": "short", "page_size": 100, "size_parameter": "limit"},
    {"kind": "page"},
]


@pytest.mark.parametrize("size", [1, 2, 3, 6, 7, 8])
@pytest.mark.parametrize("paging", SHORT, ids=json.dumps)
async def test_server_that_caps_its_pages_is_read_whole(paging: dict[str, Any], size: int) -> None:
    """A page that is shorter than was asked for is no end."""
    async with FeedServer(play=lambda asked: answer(cut(asked, size))) as feed:
        pages = await pages_of(feed, paging=paging)

    assert [each.record_id for page in pages for each in page.records] == IDS
    assert pages[-1].completeness == "last page"


async def test_short_page_in_the_middle_is_no_end() -> None:
    """Servers filter what they found, and give a page with less, or with little."""
    pages = [ROWS[:2], ROWS[2:3], ROWS[3:5], ROWS[5:]]

    def filtered(asked: Asked) -> Answer:
        number = int(asked.query["page"])
        return answer(pages[number - 1] if number <= len(pages) else [])

    async with FeedServer(play=filtered) as feed:
        assert await ids_of(feed, paging={"kind": "page", "end": "short", "page_size": 2}) == IDS


@pytest.mark.parametrize(
    ("kind", "sign"),
    [
        *(
            (kind, sign)
            for kind in ("page", "offset")
            for sign in ({"total": 9}, {"has_more": True}, {"next": "/feed.json?page=9"})
        ),
        ("page", {"total_pages": 4}),
    ],
)
async def test_empty_page_that_is_contradicted_is_no_end(kind: str, sign: dict[str, Any]) -> None:
    """A total, a plain word or a link that is still there says that more follows."""
    async with FeedServer(play=lambda asked: answer(cut(asked, 3), **sign)) as feed:
        await refused(feed, paging={"kind": kind})


async def test_total_that_only_pages_with_items_state_is_heard() -> None:
    """An empty page that says 0 takes nothing back."""

    def fading(asked: Asked) -> Answer:
        rows = cut(asked, 3) if asked.query["page"] == "1" else []
        return answer(rows, total=7 if rows else 0)

    async with FeedServer(play=fading) as feed:
        assert "states 7 items at 'total'" in await refused(feed, paging={"kind": "page"})


@pytest.mark.parametrize(
    ("total", "asked"),
    [(7, 4), ("7", 4), (7.0, 4), ({"value": 7, "relation": "eq"}, 4)],
)
async def test_total_ends_a_reading_without_another_request(total: Any, asked: int) -> None:
    """Also one that is a text; pages overlap by one, and the front is looked at again."""
    async with FeedServer(play=lambda each: answer(cut(each, 3), n=total)) as feed:
        paging = {"kind": "offset", "end": "total", "total": "n", "page_size": 3}
        pages = await pages_of(feed, paging=paging)

    assert [each.record_id for page in pages for each in page.records] == IDS
    assert (pages[-1].completeness, pages[-1].total) == ("total", 7)
    assert len(feed.requests) == asked


async def test_page_may_call_itself_a_part() -> None:
    """206 with a range is how some APIs page; as one document it lacks the rest."""

    def part(asked: Asked) -> Answer:
        rows, first = cut(asked, 3), int(asked.query["offset"])
        ranged = {"Content-Range": f"{first}-{first + len(rows) - 1}/7"}
        return answer(rows, ranged, 206) if rows else Answer(status=416)

    async with FeedServer(play=part) as feed:
        pages = await pages_of(feed, paging={"kind": "offset", "end_status": [416]})
        message = await refused(feed, params={"offset": 0, "limit": 3})

    assert [each.record_id for page in pages for each in page.records] == IDS
    assert (pages[-1].completeness, pages[-1].total) == ("total", 7)
    assert "answered 206" in message


async def test_total_may_be_in_a_header() -> None:
    """Declared by the header's name."""
    async with FeedServer(
        play=lambda each: answer(cut(each, 3), {"X-Found": "7"}, count=3)
    ) as feed:
        paging = {"kind": "offset", "end": "total", "total": "X-Found", "page_size": 3}
        pages = await pages_of(feed, paging=paging)

    assert (pages[-1].completeness, pages[-1].total) == ("total", 7)


@pytest.mark.parametrize(
    "total", [lambda rows: len(rows), lambda rows: {"value": 3, "relation": "gte"}]
)
async def test_total_that_is_none_ends_nothing(total: Callable[[Any], Any]) -> None:
    """One that counts its page, or is only a lower bound, is not believed to be the end."""

    def paged(asked: Asked) -> Answer:
        rows = cut(asked, 3)
        return answer(rows, n=total(rows))

    async with FeedServer(play=paged) as feed:
        for paging in ({"kind": "offset", "page_size": 3}, {"kind": "page", "page_size": 3}):
            assert await ids_of(feed, paging={**paging, "end": "total", "total": "n"}) == IDS


@pytest.mark.parametrize(
    ("fields", "status", "body"),
    [({}, 404, b'{"detail": "Invalid page."}'), ({"end_status": [404, 416]}, 416, b"no")],
)
async def test_status_beyond_the_end_ends_a_reading(
    fields: dict[str, Any], status: int, body: bytes
) -> None:
    """A declared one does, and what Django REST framework says."""

    def beyond(asked: Asked) -> Answer:
        rows = cut(asked, 3)
        return answer(rows) if rows else Answer(body, status)

    async with FeedServer(play=beyond) as feed:
        pages = await pages_of(feed, paging={"kind": "page", **fields})

    assert [each.record_id for page in pages for each in page.records] == IDS
    assert pages[-1].completeness == "last page"


@pytest.mark.parametrize(
    ("number", "body", "sign", "fields"),
    [
        (1, b'{"detail": "Invalid page."}', {}, {}),
        (1, b"", {}, {"end_status": [404]}),
        (3, b'{"detail": "Not found."}', {}, {}),
        (3, b"404 page not found", {}, {}),
        (2, b'{"detail": "Invalid page."}', {"count": 7}, {}),
        (2, b"", {"total": 7}, {"end_status": [404]}),
    ],
)
async def test_status_that_may_be_no_end_fails(
    number: int, body: bytes, sign: dict[str, Any], fields: dict[str, Any]
) -> None:
    """Not on the first page, not where it is not the API's own, nor against a total."""

    def broken(asked: Asked) -> Answer:
        is_there = int(asked.query["page"]) < number
        return answer(cut(asked, 3), **sign) if is_there else Answer(body, 404)

    async with FeedServer(play=broken) as feed:
        await refused(feed, paging={"kind": "page", **fields})


async def test_last_page_again_is_the_end() -> None:
    """A number beyond the end answers the last page, for ever."""
    async with FeedServer(
        play=lambda asked: answer(
            ROWS[(min(int(asked.query["page"]), 3) - 1) * 3 :][:3],
        )
    ) as feed:
        assert await ids_of(feed, paging={"kind": "page"}) == IDS


@pytest.mark.parametrize(
    ("sign", "fields", "is_whole"),
    [
        ({}, {}, False),
        ({"count": 3}, {}, False),
        ({"total": 3}, {}, True),
        ({"total": 7}, {"end": "repeat"}, False),
        ({}, {"end": "repeat"}, True),
    ],
)
@pytest.mark.parametrize("kind", ["page", "offset"])
async def test_first_page_again_proves_nothing(
    kind: str, sign: dict[str, Any], fields: dict[str, Any], is_whole: bool
) -> None:
    """An API that ignores the paging may have more; a total, or a declaration, says it has not."""
    async with FeedServer(play=lambda _: answer(ROWS[:3], **sign)) as feed:
        paging = {"kind": kind, **fields}
        if is_whole:
            assert await ids_of(feed, paging=paging) == IDS[:3]
        else:
            await refused(feed, paging=paging)


@pytest.mark.parametrize("end", [answer([]), Answer(b"", 204), Answer(b"no", 416)])
@pytest.mark.parametrize(
    ("sign", "headers"),
    [
        ({"total": 9}, {}),
        ({"total_pages": 4}, {}),
        ({}, {"X-Total-Pages": "4"}),
        ({}, {"Link": '</feed.json?page=4>; rel="last"'}),
    ],
)
async def test_silent_end_is_bound_by_what_pages_before_it_stated(
    sign: dict[str, Any], headers: dict[str, str], end: Answer
) -> None:
    """A total or a number of pages is not taken back by an answer that says nothing."""

    def silenced(asked: Asked) -> Answer:
        rows = cut(asked, 3) if asked.query["page"] in "12" else []
        return answer(rows, headers, **sign) if rows else end

    async with FeedServer(play=silenced) as feed:
        await refused(feed, paging={"kind": "page", "end_status": [416]})


NEXT = "/feed.json?page=9"


@pytest.mark.parametrize(
    ("sign", "end", "outcome"),
    [
        ({"has_more": True}, answer([]), "says at 'has_more' that there are more, and then"),
        ({"has_more": True}, Answer(b"", 204), "says at 'has_more' that there are more, and then"),
        ({"next": NEXT}, Answer(b"", 204), "has a next page at 'next', and then"),
        ({"next": NEXT, "api": 1, "took": 3}, answer([]), "has no 'api' nor 'took' on its last"),
        ({"has_more": True}, answer([], has_more=False), "last page"),
        ({"next": NEXT}, answer([], next=None), "last page"),
        ({"next": NEXT}, answer([]), "declared"),
        ({"has_more": True}, Answer(b"no", 416), "declared"),
        ({"took": 3}, answer([]), "last page"),
        ({"has_more": True, "total": 7}, answer([]), "total"),
    ],
)
async def test_silent_end_behind_a_sign_of_more_is_asked_again_and_refused(
    sign: dict[str, Any], end: Answer, outcome: str
) -> None:
    """A flag is not taken back in silence; a link may be, by a list that is empty."""

    def full(asked: Asked) -> Answer:
        rows = cut(asked, 3)
        return answer(rows, **sign) if rows else end

    async with FeedServer(play=full) as feed:
        paging = {"kind": "page", "end_status": [416]}
        if outcome in ("declared", "last page", "total"):
            pages = await pages_of(feed, paging=paging)
            assert [each.record_id for page in pages for each in page.records] == IDS
            assert pages[-1].completeness == outcome
        else:
            assert outcome in await refused(feed, paging=paging)
            assert [each.query["page"] for each in feed.asks].count("4") == 2


async def test_list_without_a_link_behind_a_page_that_had_one_is_refused() -> None:
    """Pages by number that are bare lists: a header says that there are more, then nothing does."""

    def linked(asked: Asked) -> Answer:
        rows = cut(asked, 2) if asked.query["page"] in "12" else []
        headers = {"Link": f"<{NEXT}>; rel=next"} if rows else {}
        return Answer(json.dumps(rows).encode(), 200, headers)

    async with FeedServer(play=linked) as feed:
        message = await refused(feed, records="", paging={"kind": "page"})
        assert "has a next link in its header Link, and then" in message


@pytest.mark.parametrize("kind", ["next", "cursor", "link"])
async def test_chain_that_breaks_off_is_asked_again_and_refused(kind: str) -> None:
    """A link that leads to no content leads nowhere; one to an empty list leads to the end."""
    ends = [Answer(b"", 204), answer([])]

    def chained(asked: Asked) -> Answer:
        number = int(asked.query.get("cursor", 1))
        if number == 4:
            return end
        link = f"/feed.json?cursor={number + 1}"
        headers = {"Link": f"<{link}>; rel=next"}
        return answer(cut_at(number), headers, next=link, next_cursor=str(number + 1))

    def cut_at(number: int) -> list[Any]:
        return ROWS[number * 3 - 3 : number * 3]

    for end in ends:
        async with FeedServer(play=chained) as feed:
            if end.status == 200:
                assert await ids_of(feed, paging={"kind": kind}) == IDS
            else:
                message = await refused(feed, paging={"kind": kind})
                assert "leads to a page that has no content" in message
                assert [each.query.get("cursor") for each in feed.asks].count("4") == 2


@pytest.mark.parametrize("kind", ["next", "link"])
@pytest.mark.parametrize("is_lost", [False, True])
async def test_page_that_lost_its_next_link_once_is_asked_again(kind: str, is_lost: bool) -> None:
    """No link on the last page is how many end, so that one is believed that says so twice."""
    asked_before = set[str]()

    def forgetful(asked: Asked) -> Answer:
        number = asked.query.get("p", "1")
        rows = ROWS[int(number) * 2 - 2 : int(number) * 2]
        link = f"/feed.json?p={int(number) + 1}"
        is_there = number != "4" and (number != "2" or not is_lost or number in asked_before)
        asked_before.add(number)
        if not is_there:
            return answer(rows)
        return answer(rows, {"Link": f"<{link}>; rel=next"}, next=link)

    async with FeedServer(play=forgetful) as feed:
        assert await ids_of(feed, paging={"kind": kind}) == IDS


async def test_page_that_lost_its_envelope_is_not_the_last() -> None:
    """Where no field is left of what stood around each list before."""

    def cut_off(asked: Asked) -> Answer:
        if "p" in asked.query:
            return answer(ROWS[3:5])
        return answer(ROWS[:3], next="/feed.json?p=2", version=2, took=3)

    async with FeedServer(play=cut_off) as feed:
        assert "has no 'took' nor 'version'" in await refused(feed, paging={"kind": "next"})


async def test_flag_that_the_last_page_leaves_out_is_only_declared() -> None:
    """Some leave out what is false; whether that was so is not known."""

    def omitting(asked: Asked) -> Answer:
        number = int(asked.query.get("cursor", 0))
        rows = ROWS[number : number + 3]
        is_last = number + 3 >= len(ROWS)
        return answer(rows) if is_last else answer(rows, more=True, next_cursor=str(number + 3))

    async with FeedServer(play=omitting) as feed:
        pages = await pages_of(feed, paging={"kind": "cursor", "more": "more"})

    assert [each.record_id for page in pages for each in page.records] == IDS
    assert pages[-1].completeness == "declared"


@pytest.mark.parametrize("kind", ["next", "cursor", "link"])
async def test_number_of_pages_binds_whatever_leads_on(kind: str) -> None:
    """A next link that is lost on the way is noticed by it."""
    async with FeedServer(play=lambda _: answer(ROWS, total_pages=2, next=None)) as feed:
        assert "states 2 pages, and returned 1" in await refused(feed, paging={"kind": kind})


@pytest.mark.parametrize("paging", [{"kind": "next"}, {"kind": "page"}])
async def test_total_that_shrinks_binds_as_it_was(paging: dict[str, Any]) -> None:
    """The smaller one is not believed before the first page states it, too."""

    def shrinking(asked: Asked) -> Answer:
        number = int(asked.query.get("page", 1))
        rows = ROWS[number * 2 - 2 : number * 2] if number < 3 else []
        link = "/feed.json?page=2" if number == 1 and paging["kind"] == "next" else None
        return answer(rows, total=7 if number == 1 else 4, next=link)

    async with FeedServer(play=shrinking) as feed:
        assert "states 7 items at 'total', and returned 4" in await refused(feed, paging=paging)


@pytest.mark.parametrize("number", ["3", "4"])
async def test_total_that_shrank_with_the_list_is_believed(number: str) -> None:
    """Where the first page, which is asked for again, states it as well."""
    left = list(ROWS)

    def shrinking(asked: Asked) -> Answer:
        if asked.query["page"] == number:
            del left[5:]
        return answer(cut(asked, 2, left), total=len(left))

    async with FeedServer(play=shrinking) as feed:
        pages = await pages_of(feed, paging={"kind": "page"})

    assert {each.record_id for page in pages for each in page.records} >= set(IDS[:5])
    assert (pages[-1].completeness, pages[-1].total) == ("total", 5)


async def test_counter_of_what_remains_is_read_to_its_end() -> None:
    """It falls by a page's size each time, and its first value is the total."""
    async with FeedServer(
        play=lambda asked: answer(
            cut(asked, 3), total=len(ROWS) - min((int(asked.query["page"]) - 1) * 3, 7)
        )
    ) as feed:
        pages = await pages_of(feed, paging={"kind": "page"})

    assert [each.record_id for page in pages for each in page.records] == IDS
    assert pages[-1].total == 7


@pytest.mark.parametrize("kind", ["none", "page", "next", "cursor", "link"])
async def test_declared_total_that_is_nowhere_fails(kind: str) -> None:
    """A wrong path of the total compares nothing."""

    def paged(asked: Asked) -> Answer:
        return answer(cut(asked, 3) if "page" in asked.query else ROWS, found=7)

    async with FeedServer(play=paged) as feed:
        message = await refused(feed, paging={"kind": kind, "total": "meta.total"})
    assert "states no total at 'meta.total'" in message


@pytest.mark.parametrize("kind", ["none", "page", "offset", "next"])
@pytest.mark.parametrize(
    ("sign", "is_other"),
    [({"total": 99}, True), ({"info": {"count": 99, "pages": 40}}, True), ({"count": 99}, False)],
)
async def test_total_of_all_times_is_not_that_of_a_range(
    kind: str, sign: dict[str, Any], is_other: bool
) -> None:
    """A total is that of the list unless a range in which nothing is has the same one."""

    def ranged(asked: Asked) -> Answer:
        is_ahead = asked.query["since"] > "2025"
        rows = [] if is_ahead else ROWS if kind in ("none", "next") else cut(asked, 3)
        told = sign if is_other or not is_ahead else {"count": 0}
        return answer(rows, next=None, **told)

    paging = {"kind": kind}
    async with FeedServer(play=ranged) as feed:
        source = api(feed, paging=paging, since={"parameter": "since"})
        if is_other:
            pages = [page async for page in source.pages(at(0), None)]
            assert [each.record_id for page in pages for each in page.records] == IDS
            assert pages[-1].completeness in ("last page", "whole document")
        else:
            with pytest.raises(SourceError, match="states 99 items at 'count', and returned"):
                _ = [page async for page in source.pages(at(0), None)]
        declared = api(
            feed, paging={**paging, "total": next(iter(sign))}, since={"parameter": "since"}
        )
        with pytest.raises(SourceError, match=r"states 99 items|states no total"):
            _ = [page async for page in declared.pages(at(0), None)]


async def test_total_is_that_of_the_list_where_the_range_is_not_heeded() -> None:
    """An API that answers the same for each range leaves out what its total counts."""
    async with FeedServer(play=lambda asked: answer(cut(asked, 3), total=99)) as feed:
        source = api(feed, paging={"kind": "page"}, since={"parameter": "since"})
        with pytest.raises(SourceError, match=r"states 99 items at .*, and returned 7"):
            _ = [page async for page in source.pages(at(0), None)]


@pytest.mark.parametrize("sign", [{"first": False}, {"hasPreviousPage": True}])
async def test_first_page_that_is_not_the_first_fails(sign: dict[str, Any]) -> None:
    """Pages that count from 0, asked for from 1 on, lack the first one."""
    async with FeedServer(play=lambda asked: answer(cut(asked, 3), **sign)) as feed:
        assert "is not its first" in await refused(feed, paging={"kind": "page"})


@pytest.mark.parametrize("rows", [ROWS, ROWS[:2]])
async def test_list_that_counts_from_zero_is_not_read_from_one(rows: list[Any]) -> None:
    """Its first page would be missed, which may be all there is; the one before is asked once."""

    def zero_based(asked: Asked) -> Answer:
        first = int(asked.query["page"]) * 3
        return answer(rows[first : first + 3])

    async with FeedServer(play=zero_based) as feed:
        message = await refused(feed, paging={"kind": "page"})
        whole = await ids_of(feed, paging={"kind": "page", "first_number": 0})

    assert "has records on page 0 that are on no page from the first one, 1, on" in message
    assert whole == IDS[: len(rows)]


async def test_pages_of_any_number_are_no_evidence_of_a_first_one() -> None:
    """A service that makes records of whatever number it is asked for has no page 0."""

    def made(asked: Asked) -> Answer:
        number = int(asked.query["page"])
        return answer([row(number)]) if number <= 2 else Answer(b'{"detail": "Invalid page."}', 404)

    async with FeedServer(play=made) as feed:
        assert await ids_of(feed, paging={"kind": "page"}) == ["1", "2"]


@pytest.mark.parametrize(
    "zero",
    [
        answer(ROWS[:3]),
        answer(ROWS[6:]),
        answer(ROWS),
        answer([]),
        answer([], error="no such page"),
        Answer(b"", 204),
        Answer(b"no", 400),
        Answer(b"no", 404),
        Answer(b"no", 500),
        Answer(b"<html>"),
    ],
)
async def test_page_before_the_first_that_has_nothing_else_is_no_evidence(zero: Answer) -> None:
    """A page 0 that is the first one, the last one, all or an error is asked for once."""
    async with FeedServer(
        play=lambda asked: zero if asked.query["page"] == "0" else answer(cut(asked, 3))
    ) as feed:
        pages = await pages_of(feed, paging={"kind": "page"})

    assert [each.record_id for page in pages for each in page.records] == IDS
    assert pages[-1].completeness == "last page"
    assert [each.query["page"] for each in feed.asks].count("0") == 1


@pytest.mark.parametrize("fields", [{"stable": True}, {"only_declared": True}, {"total": "total"}])
async def test_page_before_the_first_is_not_asked_where_the_end_is_known(
    fields: dict[str, Any],
) -> None:
    """A total proves all of it; a declaration is believed."""
    async with FeedServer(play=lambda asked: answer(cut(asked, 3), total=7)) as feed:
        assert await ids_of(feed, paging={"kind": "page", **fields}) == IDS

    assert "0" not in [each.query["page"] for each in feed.asks]


@pytest.mark.parametrize(
    ("zero", "rows", "is_read"), [(1, ROWS, True), (1, ROWS[:2], True), (9, ROWS, False)]
)
async def test_list_that_counts_from_one_may_be_read_from_zero(
    zero: int, rows: list[Any], is_read: bool
) -> None:
    """A page 0 that is page 1 costs a request; one that is empty is not taken for the end."""

    def one_based(asked: Asked) -> Answer:
        number = int(asked.query["page"]) or zero
        return answer(rows[number * 3 - 3 : number * 3])

    async with FeedServer(play=one_based) as feed:
        paging = {"kind": "page", "first_number": 0}
        if is_read:
            assert await ids_of(feed, paging=paging) == IDS[: len(rows)]
        else:
            assert "has records on page 1, and none on the page before it" in await refused(
                feed, paging=paging
            )


@pytest.mark.parametrize("is_turned", [False, True])
async def test_page_that_comes_twice_is_only_the_last_where_none_is_behind_it(
    is_turned: bool,
) -> None:
    """The last page may come again in another order; a page in the middle that does is none."""
    numbers = [1, 2, 2, 3]

    def repeating(asked: Asked) -> Answer:
        number = int(asked.query["page"])
        rows = ROWS[(min(number, 3) - 1) * 3 :][:3]
        if not is_turned:
            rows = ROWS[numbers[number - 1] * 3 - 3 :][:3] if number < 5 else []
        return answer(rows[:: -1 if number > 3 else 1])

    async with FeedServer(play=repeating) as feed:
        if is_turned:
            assert await ids_of(feed, paging={"kind": "page"}) == IDS
        else:
            message = await refused(feed, paging={"kind": "page"})
            assert "returned one page twice, and a different one after it" in message


@pytest.mark.parametrize("status", [400, 404, 410, 416, 422])
@pytest.mark.parametrize(
    ("sign", "headers"), [({"total": 7}, {}), ({"pages": 3}, {}), ({}, {"X-WP-Total": "7"})]
)
async def test_refusal_behind_all_that_was_stated_is_an_end(
    status: int, sign: dict[str, Any], headers: dict[str, str]
) -> None:
    """Whatever the status: a total, or a number of pages, is met. Before that it is none."""

    def beyond(asked: Asked) -> Answer:
        rows = cut(asked, 3) if int(asked.query["page"]) <= last else []
        return answer(rows, headers, **sign) if rows else Answer(b"no", status)

    last = 9
    async with FeedServer(play=beyond) as feed:
        assert await ids_of(feed, paging={"kind": "page"}) == IDS
        last = 2
        await refused(feed, paging={"kind": "page"})


@pytest.mark.parametrize(
    ("status", "body", "is_end"),
    [
        (400, b'{"code": "rest_post_invalid_page_number", "data": {"status": 400}}', True),
        (416, b"", True),
        (400, b'{"code": "rest_forbidden"}', False),
        (400, b"[]", False),
        (422, b"", False),
    ],
)
async def test_refusal_that_says_what_it_means_is_an_end(
    status: int, body: bytes, is_end: bool
) -> None:
    """As WordPress does, and HTTP itself by 416; any other names the setting."""
    async with FeedServer(
        play=lambda asked: answer(rows) if (rows := cut(asked, 3)) else Answer(body, status)
    ) as feed:
        if is_end:
            assert await ids_of(feed, paging={"kind": "page"}) == IDS
        else:
            message = await refused(feed, paging={"kind": "page"})
            assert f"answered {status}" in message
            assert "to end_status" in message


@pytest.mark.parametrize(("wrong", "asked"), [("", 4), ("1", 5), ("2", 5)])
async def test_flag_of_no_more_on_a_page_that_is_full_is_tried(wrong: str, asked: int) -> None:
    """Its link may be for the next time, and leads to nothing new then."""

    def flagged(asked: Asked) -> Answer:
        number = int(asked.query.get("p", 1))
        rows = ROWS[:6][number * 2 - 2 : number * 2]
        more = number < 3 and str(number) != wrong
        return answer(rows, has_more=more, next_cursor=str(number + 1))

    async with FeedServer(play=flagged) as feed:
        paging = {"kind": "cursor", "parameter": "p", "more": "has_more", "stable": True}
        assert await ids_of(feed, paging=paging) == IDS[:6]
    assert len(feed.requests) == asked


async def test_credentials_in_a_next_link_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """They would stand beside the source's own key."""
    monkeypatch.setenv("FEED_KEY", "s3cret")

    def linked(asked: Asked) -> Answer:
        if "p" in asked.query:
            return answer(ROWS[4:], next=None)
        host = feed.url.removeprefix("http://")
        return answer(ROWS[:4], next=f"http://user:word@{host}?p=2")

    async with FeedServer(play=linked) as feed:
        assert await ids_of(feed, key="FEED_KEY", paging={"kind": "next"}) == IDS
    assert {each.headers["Authorization"] for each in feed.asks} == {"s3cret"}


@pytest.mark.parametrize("kind", ["page", "offset"])
async def test_same_page_again_that_leads_on_is_no_end(kind: str) -> None:
    """A page that has a next link, and is answered for the next one, is a limit of the API."""
    async with FeedServer(
        play=lambda asked: answer(ROWS[:3], next="/feed.json?page=2&offset=3")
    ) as feed:
        message = await refused(feed, paging={"kind": kind, "end": "repeat"})
    assert "has a next page at 'next', and returned the same page again" in message


@pytest.mark.parametrize("pages", [[ROWS[:3], [], ROWS[3:]], [[], ROWS]])
async def test_empty_page_in_front_of_another_is_no_end(pages: list[list[Any]]) -> None:
    """Where an empty page says nothing, the one behind it is looked at."""

    def filtered(asked: Asked) -> Answer:
        number = int(asked.query["page"])
        return answer(pages[number - 1] if 0 < number <= len(pages) else [])

    async with FeedServer(play=filtered) as feed:
        assert "and none on the page before it" in await refused(feed, paging={"kind": "page"})


@pytest.mark.parametrize(
    "paging", [{"kind": "page", "page_size": 3}, {"kind": "offset", "page_size": 3}]
)
@pytest.mark.parametrize("is_stale", [False, True])
async def test_total_that_counts_until_now_ends_nothing(
    paging: dict[str, Any], is_stale: bool
) -> None:
    """Neither that of the items so far, nor one that is behind; more than it says prove nothing."""

    def so_far(asked: Asked) -> Answer:
        rows = cut(asked, 3)
        first = int(asked.query.get("offset", (int(asked.query.get("page", 1)) - 1) * 3))
        return answer(rows, total=6 if is_stale else first + len(rows))

    async with FeedServer(play=so_far) as feed:
        pages = await pages_of(feed, paging={**paging, "end": "total", "total": "total"})

    assert [each.record_id for page in pages for each in page.records] == IDS
    assert pages[-1].completeness == ("last page" if is_stale else "total")


@pytest.mark.parametrize("total", [{}, {"totalResults": 7}])
async def test_offsets_that_count_from_one_are_read_once(total: dict[str, Any]) -> None:
    """As those of SCIM do, for which 0 is 1; nothing moved there."""

    def scim(asked: Asked) -> Answer:
        first = max(int(asked.query["startIndex"]), 1) - 1
        return answer(ROWS[first : first + int(asked.query["count"])], **total)

    paging = {"parameter": "startIndex", "size_parameter": "count", "limit": 3}
    async with FeedServer(play=scim) as feed:
        assert await ids_of(feed, paging={"kind": "offset", **paging}) == IDS


@pytest.mark.parametrize(
    "window", [lambda first: first >= 4, lambda first: first in (3, 6), lambda first: first > 0]
)
async def test_offsets_that_are_no_offsets_fail_soon(window: Callable[[int], bool]) -> None:
    """What is not given again where it was is asked for a few times, and not a thousand."""

    def odd(asked: Asked) -> Answer:
        first = int(asked.query["offset"])
        return answer([] if window(first) else ROWS[first : first + int(asked.query["limit"])])

    async with FeedServer(play=odd) as feed:
        await refused(feed, paging={"kind": "offset", "page_size": 3})
    assert len(feed.requests) < 150


async def test_number_of_each_page_is_not_that_of_all() -> None:
    """Where it is 6 on an empty sixth page, too, it counts what was asked for."""
    async with FeedServer(
        play=lambda asked: answer(cut(asked, 3), pages=int(asked.query["page"]))
    ) as feed:
        assert await ids_of(feed, paging={"kind": "page"}) == IDS


# Pages that lead on.


@pytest.mark.parametrize("end", ["0", 0, None, ""])
async def test_cursor_that_leads_to_the_beginning_is_the_end(end: Any) -> None:
    """As that of Redis does, and of old Twitter."""

    def scan(asked: Asked) -> Answer:
        number = int(asked.query.get("cursor", 0))
        following = {0: "17", 17: "4", 4: end}[number]
        first = [0, 17, 4].index(number) * 3
        return answer(ROWS[first : first + 3], next_cursor=following)

    async with FeedServer(play=scan) as feed:
        pages = await pages_of(feed, paging={"kind": "cursor"})

    assert [each.record_id for page in pages for each in page.records] == IDS
    assert pages[-1].completeness == "last page"


async def test_cursor_of_an_item_may_be_zero() -> None:
    """An item may well have a 0 where a cursor is."""
    scored = [{**each, "score": number - 3} for number, each in enumerate(ROWS)]

    def search(asked: Asked) -> Answer:
        after = int(asked.query.get("after", -9))
        return answer([each for each in scored if each["score"] > after][:2])

    async with FeedServer(play=search) as feed:
        paging = {"kind": "cursor", "path": "rows.-1.score", "parameter": "after"}
        assert await ids_of(feed, paging=paging) == IDS


async def test_link_of_another_document_is_not_followed() -> None:
    """A Link with an anchor says what follows something else."""
    link = '<http://other.invalid/>; rel="next"; anchor="#chapter2", </feed.json?p=2>; rel="next"'

    def anchored(asked: Asked) -> Answer:
        is_first = "p" not in asked.query
        return answer(ROWS[:4] if is_first else ROWS[4:], {"Link": link} if is_first else {})

    async with FeedServer(play=anchored) as feed:
        assert await ids_of(feed, paging={"kind": "link"}) == IDS


@pytest.mark.parametrize("name", ["isLast", "is_last", "last", "final", "end", "eof", "done"])
async def test_declared_flag_is_read_by_its_name(name: str) -> None:
    """What says that a page is the last one means the opposite of more."""

    def paged(asked: Asked) -> Answer:
        number = int(asked.query.get("cursor", 0))
        rows = ROWS[number : number + 3]
        flag: dict[str, Any] = {name: number + 3 >= len(ROWS)}
        return answer(rows, next_cursor=str(number + 3), **flag)

    async with FeedServer(play=paged) as feed:
        assert await ids_of(feed, paging={"kind": "cursor", "more": name}) == IDS


@pytest.mark.parametrize(
    ("sign", "more"),
    [
        (lambda last: {"total": 7}, ""),
        (lambda last: {"meta": {"has_more": not last}}, ""),
        (lambda last: {"more": "N" if last else "Y"}, "more"),
    ],
)
async def test_next_link_that_never_goes_away_leads_to_an_end(
    sign: Callable[[bool], dict[str, Any]], more: str
) -> None:
    """All of a total came, or a flag says that nothing follows."""

    def paged(asked: Asked) -> Answer:
        after = int(asked.query.get("after", 0))
        link = f"/feed.json?after={after + 3}"
        return answer(ROWS[after : after + 3], next=link, **sign(after + 3 >= len(ROWS)))

    async with FeedServer(play=paged) as feed:
        paging = {"kind": "next", "more": more}
        pages = await pages_of(feed, paging=paging)

    assert [each.record_id for page in pages for each in page.records] == IDS
    assert len(feed.requests) <= 4


async def test_link_to_itself_on_the_last_page_is_the_end() -> None:
    """As long as another page came before."""

    def paged(asked: Asked) -> Answer:
        number = int(asked.query.get("page", 1))
        rows = ROWS[number * 3 - 3 : number * 3]
        return answer(rows, next=f"/feed.json?page={min(number + 1, 3)}")

    async with FeedServer(play=paged) as feed:
        assert await ids_of(feed, paging={"kind": "next"}) == IDS


async def test_next_link_without_an_address_is_none() -> None:
    """An object whose href is null leads nowhere."""
    async with FeedServer(play=lambda _: answer(ROWS, next={"href": None})) as feed:
        assert await ids_of(feed, paging={"kind": "next"}) == IDS


async def test_next_link_in_a_header_may_say_that_it_has_no_results() -> None:
    """As Sentry's does on the last page; another sort of quotes is understood as well."""

    def paged(asked: Asked) -> Answer:
        after = int(asked.query.get("after", 0))
        more = str(after + 3 < len(ROWS)).lower()
        link = f"</feed.json?after={after + 3}>; rel='next'; results=\"{more}\""
        return answer(ROWS[after : after + 3], {"Link": link})

    async with FeedServer(play=paged) as feed:
        assert await ids_of(feed, paging={"kind": "link"}) == IDS
    assert len(feed.requests) == 3


async def test_cursor_that_includes_its_own_item_comes_to_an_end() -> None:
    """The page that has nothing but what was read is the last; one that is full may not be."""
    times = [f"2024-01-01T00:00:{number:02d}Z" for number in range(7)]
    timed = [{**each, "at": time} for each, time in zip(ROWS, times, strict=True)]

    def paged(asked: Asked) -> Answer:
        after = asked.query.get("after", "")
        return answer([each for each in timed if each["at"] >= after][:3])

    async with FeedServer(play=paged) as feed:
        paging = {"kind": "cursor", "path": "rows.-1.at", "parameter": "after"}
        assert set(await ids_of(feed, paging=paging)) == set(IDS)
        for each in timed:
            each["at"] = times[0]
        await refused(feed, paging=paging)


async def test_link_that_is_always_there_ends_on_the_empty_page() -> None:
    """The first empty page whose next link is the one just asked."""

    def log(asked: Asked) -> Answer:
        after = int(asked.query.get("after", 0))
        page = ROWS[after : after + 3]
        link = f'<{asked.path}?after={after + len(page)}>; rel="next"'
        return answer(page, {"Link": link})

    async with FeedServer(play=log) as feed:
        pages = await pages_of(feed, paging={"kind": "link"})

    assert [each.record_id for page in pages for each in page.records] == IDS
    assert pages[-1].completeness == "last page"


async def test_empty_page_that_leads_back_is_the_end() -> None:
    """A link to the beginning from behind the end makes no progress."""
    script = [
        answer(ROWS[:4], next="/feed.json?p=x"),
        answer(ROWS[4:], next="/feed.json?p=y"),
        answer([], next="/feed.json?p=x"),
    ]
    async with FeedServer(*script) as feed:
        assert await ids_of(feed, paging={"kind": "next"}) == IDS


@pytest.mark.parametrize("sign", [{"total": 9}, {"has_more": True}])
async def test_end_of_links_that_is_contradicted_is_none(sign: dict[str, Any]) -> None:
    """Also for cursors and links, a total or a plain word counts."""
    async with FeedServer(play=lambda _: answer(ROWS, next=None, **sign)) as feed:
        await refused(feed, paging={"kind": "next"})
        await refused(feed, paging={"kind": "cursor"})
        await refused(feed, paging={"kind": "link"})


async def test_wrong_path_of_the_next_link_is_noticed() -> None:
    """Where another place has one that was never followed."""
    async with FeedServer(play=lambda _: answer(ROWS, links={"next": "/feed.json?p=2"})) as feed:
        assert "'links.next'" in await refused(feed, paging={"kind": "next"})
        assert "'links.next'" in await refused(feed, paging={"kind": "cursor"})
        assert "'links.next'" in await refused(feed, paging={"kind": "link"})


async def test_one_cursor_leads_through_all_pages() -> None:
    """A scroll has one id, and its empty page ends it."""
    left = list(ROWS)

    def scroll(_: Asked) -> Answer:
        page, left[:] = left[:3], left[3:]
        return answer(page, scroll="always-this")

    async with FeedServer(play=scroll) as feed:
        paging = {"kind": "cursor", "path": "scroll", "parameter": "scroll"}
        assert await ids_of(feed, paging=paging) == IDS

    assert len(feed.requests) == 4


@pytest.mark.parametrize(("method", "where"), [("GET", "query"), ("POST", "body")])
async def test_scroll_whose_answer_was_lost_is_not_asked_again(method: str, where: str) -> None:
    """The next one would be the page after it, and what was lost nobody would miss."""
    pages = [ROWS[:2], ROWS[2:4], ROWS[4:6], ROWS[6:], []]

    def scroll(_: Asked) -> Answer:
        page = answer(pages.pop(0), scroll="always-this")
        return page if len(pages) != 2 else Answer(status=503)

    paging = {"kind": "cursor", "path": "scroll", "parameter": "scroll", "location": where}
    async with FeedServer(play=scroll) as feed:
        assert "answered 503" in await refused(feed, method=method, paging=paging)

    assert len(feed.requests) == 3


async def test_cursor_that_is_ignored_fails() -> None:
    """Ever new ones that lead to the same page."""
    numbers = iter(range(99))
    async with FeedServer(play=lambda _: answer(ROWS, next_cursor=f"c{next(numbers)}")) as feed:
        assert "would never end" in await refused(feed, paging={"kind": "cursor"})

    assert len(feed.requests) == 2


async def test_cursors_that_lead_nowhere_end_with_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A bounded number of pages without a record; some of them are none."""
    monkeypatch.setattr(reading, "EMPTY_PAGES", 20)
    numbers = iter(range(99))

    def empty(_: Asked) -> Answer:
        number = next(numbers)
        rows = [row(number)] if number in (0, 15) else []
        return answer(rows, next_cursor=f"c{number}")

    async with FeedServer(play=empty) as feed:
        assert "20 times without a record" in await refused(feed, paging={"kind": "cursor"})

    assert len(feed.requests) == 36


@pytest.mark.parametrize(
    ("cursor", "sent"),
    [
        (["170", "ab,c"], "170,ab,c"),
        ([170, 2.5], "170,2.5"),
        ("a b&c", "a b&c"),
        (12345678901234567890123, "12345678901234567890123"),
    ],
)
async def test_cursor_is_handed_back_in_the_query(cursor: Any, sent: str) -> None:
    """A list is joined by commas, and the digits are those that came."""
    script = [answer(ROWS[:3], next_cursor=cursor), answer(ROWS[3:], next_cursor=None)]
    async with FeedServer(*script) as feed:
        assert await ids_of(feed, paging={"kind": "cursor"}) == IDS

    assert feed.asks[1].query["cursor"] == sent


@pytest.mark.parametrize("cursor", [[1, "a"], {"id": 7}, 12345678901234567890123, 2.5])
async def test_cursor_is_itself_in_the_body(cursor: Any) -> None:
    """A list stays a list, and an object an object: search_after is one."""
    script = [answer(ROWS[:3], next_cursor=cursor), answer(ROWS[3:], next_cursor=None)]
    paging = {"kind": "cursor", "location": "body", "parameter": "search_after"}
    async with FeedServer(*script) as feed:
        assert await ids_of(feed, method="POST", paging=paging) == IDS

    assert feed.asks[1].body == {"search_after": cursor}


@pytest.mark.parametrize("characters", [1, 700_000])
async def test_cursor_may_be_of_the_last_item(characters: int) -> None:
    """As Elasticsearch sorts, also on a large page: the end is a page without any."""
    text = "x" * characters
    hits = [{**each, "sort": [number, "x"], "text": text} for number, each in enumerate(ROWS)]

    def search(asked: Asked) -> Answer:
        after = (asked.body or {}).get("search_after", [-1])[0]
        return answer(hits[after + 1 : after + 4])

    paging = {
        "kind": "cursor",
        "path": "rows.-1.sort",
        "location": "body",
        "parameter": "search_after",
    }
    async with FeedServer(play=search) as feed:
        assert await ids_of(feed, method="POST", body={"size": 3}, paging=paging) == IDS


@pytest.mark.parametrize("kind", ["next", "link"])
async def test_next_link_of_a_backend_stays_on_the_host(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where that was set, the key goes to the configured host, and nothing to another."""
    monkeypatch.setenv("FEED_KEY", "s3cret")
    there = "http://backend.invalid:8080/feed.json?p=2"

    def gateway(asked: Asked) -> Answer:
        if "p" in asked.query:
            return answer(ROWS[4:], next=None)
        return answer(ROWS[:4], {"Link": f"<{there}>; rel=next"}, next=there)

    async with FeedServer(play=gateway) as feed:
        assert await ids_of(feed, key="FEED_KEY", paging={"kind": kind, "keep_host": True}) == IDS
        message = await refused(feed, key="FEED_KEY", paging={"kind": kind})

    assert "another host, http://backend.invalid:8080/feed.json" in message
    assert {each.headers["Authorization"] for each in feed.asks} == {"s3cret"}


async def test_key_in_a_next_link_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither in its query nor in its path."""
    monkeypatch.setenv("FEED_KEY", "s3cret")
    link = "http://other.invalid/s3cret/more?key=s3cret"
    async with FeedServer(play=lambda _: answer(ROWS, next=link)) as feed:
        message = await refused(feed, key="FEED_KEY", paging={"kind": "next"})

    assert "another host" in message
    assert "s3cret" not in message


# Answers without anything.


@pytest.mark.parametrize("body", [b"", b"  \n"])
@pytest.mark.parametrize("status", [200, 204])
async def test_answer_without_a_body_is_nothing_where_it_was_declared(
    status: int, body: bytes
) -> None:
    """Else it is no answer, and the error names the setting."""
    async with FeedServer(play=lambda _: Answer(body if status == 200 else b"", status)) as feed:
        assert await ids_of(feed, records_optional=True) == []
        assert "Set records_optional" in await refused(feed)


async def test_no_content_behind_the_last_page_is_an_end() -> None:
    """204 says so by itself, and an empty body does not."""

    def beyond(asked: Asked) -> Answer:
        rows = cut(asked, 3)
        return answer(rows) if rows else Answer(b"", status)

    for status in (204, 200):
        async with FeedServer(play=beyond) as feed:
            if status == 204:
                assert await ids_of(feed, paging={"kind": "page"}) == IDS
            else:
                assert "without a body" in await refused(feed, paging={"kind": "page"})


async def test_contradicted_end_fails_the_run_and_keeps_what_came() -> None:
    """What was delivered is durable, and the watermark stays."""
    storage, sink = ScriptedStorage(), MemorySink()
    async with FeedServer(play=lambda _: answer(ROWS, total=330)) as feed:
        with pytest.raises(SourceError, match="states 330 items"):
            await run(api(feed), sink, storage, run_id="r", clock=lambda: at(60))

    assert sink.ids == IDS
    assert storage.stored["feed"].status == "failed"
    assert storage.stored["feed"].last_successful_timestamp is None


async def test_report_says_how_the_end_was_known() -> None:
    """What cannot be known is said."""
    async with FeedServer(play=lambda asked: answer(cut(asked, 3), total=7)) as feed:
        source = api(feed, paging={"kind": "offset"})
        report = await run(source, MemorySink(), ScriptedStorage(), run_id="r")

    assert (report.completeness, report.total) == ("total", 7)


# Signs that are larger than any sign is.

LONG = "9" * 100_000


@pytest.mark.parametrize("paging", [{"kind": "next"}, {"kind": "cursor", "path": "next"}])
@pytest.mark.parametrize("value", [LONG, f"http://127.0.0.1/{LONG}", [LONG], {"a": {"b": LONG}}])
async def test_next_address_of_any_length_is_refused_in_few_words(
    paging: dict[str, Any], value: Any
) -> None:
    """No address or cursor of more than 64 KiB is followed, masked or shown."""
    async with FeedServer(answer(ROWS, next=value)) as feed:
        told = await refused(feed, paging=paging)
    assert "leads to" in told or "has more than 65536 characters at 'next'" in told
    assert len(told) < 500


async def test_long_link_to_another_host_is_shown_in_part() -> None:
    """A message holds no more of an address than a reader needs."""
    link = f'<http://elsewhere.invalid/{"a" * 60_000}>; rel="next"'
    async with FeedServer(answer(ROWS, {"Link": link})) as feed:
        told = await refused(feed, paging={"kind": "link"})
    assert "another host" in told
    assert len(told) < 2_000


@pytest.mark.parametrize("more", [{}, {"meta": {f"m{n}": n for n in range(6_000)}}])
async def test_more_names_than_are_examined_are_refused(more: dict[str, Any]) -> None:
    """A sign that an end is none cannot hide among names that nothing looks at."""
    crowd = more or {f"m{n}": n for n in range(6_000)}
    async with FeedServer(answer(ROWS, **crowd)) as feed:
        assert "more than 5000 names that are no records" in await refused(
            feed, paging={"kind": "none"}
        )


@pytest.mark.parametrize(
    "sign",
    [
        {"state": LONG},
        {"total": LONG},
        {"total": f"{LONG}+"},
        {"pages": "1,000" + ",000" * 25_000},
        {"has_more": LONG},
        {LONG: True},
        {"next": json.loads('{"a":' * 400 + "null" + "}" * 400)},
        {"errors": json.loads("[" * 400 + "]" * 400)},
    ],
)
async def test_sign_of_any_size_is_read_or_no_sign(sign: dict[str, Any]) -> None:
    """A number, a word or a structure that is too large for a sign never breaks a run."""
    async with FeedServer(answer(ROWS, **sign)) as feed:
        assert await ids_of(feed, paging={"kind": "none"}) == IDS


async def test_header_with_a_total_of_any_length_is_no_sign() -> None:
    """A total of thousands of digits in a header never breaks a run."""
    async with FeedServer(answer(ROWS, {"Content-Range": f"items 0-6/{LONG[:5_000]}"})) as feed:
        assert await ids_of(feed, paging={"kind": "none"}) == IDS


async def test_many_reasons_beside_records_are_a_failure() -> None:
    """Thousands of entries in a place for errors are not read one by one."""
    async with FeedServer(answer(ROWS, errors=[0] * 2_000)) as feed:
        assert "failure" in await refused(feed, paging={"kind": "none"})
