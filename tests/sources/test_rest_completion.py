"""Where a document ends: everything is read, or the run fails, and what says so is said."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest

from ladon_storage.collection.run import run
from ladon_storage.errors import SourceError
from ladon_storage.sources.rest import reading
from ladon_storage.testing.doubles import MemorySink, ScriptedStorage, at
from ladon_storage.testing.feed_server import Answer, Asked, FeedServer
from tests.sources.rest_lists import IDS, ROWS, answer, cut, ids_of, pages_of, refused
from tests.sources.test_rest import api, row

pytestmark = pytest.mark.usefixtures("no_waiting")


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
    {"exceededTransferLimit": True},
    {"properties": {"exceededTransferLimit": True}},
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
    {"total": "8 rows"},
    {"metadata": {"continue": "eyJ2IjoibWV0YSJ9"}},
    {"continue": {"rowcontinue": "8", "continue": "-||"}},
    {"metadata": {"remainingItemCount": 1}},
    {"offset": "itrX/rec7"},
    {"nextForwardToken": "f/8"},
    {"resumption_token": "abc"},
    {"isMoreDataAvailable": "Y"},
    {"thereAreMoreRecords": True},
    {"overLimit": True},
    {"jobComplete": False},
    {"completed": "no"},
    {"more_url": "/feed.json?page=2"},
    {"links": [{"rel": "NEXT", "href": "/feed.json?page=2"}]},
    {"_links": [{"rel": ["collection", "next"], "href": "/feed.json?page=2"}]},
    {"links": {"last": "/feed.json?page=2"}},
    {"links": {"last": {"href": "/feed.json?page[number]=2"}}},
    {"links": [{"rel": "last", "href": "/feed.json?page=2"}]},
    {"last_page_url": "/feed.json?offset=20"},
    {"page": "1/2"},
    {"page": "Page 1 of 2"},
    {"message": "Showing 1-7 of 8 rows"},
    {"pagination": "1 to 7 of 1,330"},
    {"numberMatched": 8, "numberReturned": 7},
    {"recordsFiltered": 8},
    {"row_count": 8},
    {"total_rows_count": 8},
    {"offset": 50, "limit": 100},
    {"page": 2, "per_page": 100},
    {"meta": {"currentPage": 3, "pageSize": 100}},
    {"list_info": {"has_more_rows": True, "start_index": 1}},
    {"page_context": {"has_more_page": True, "search_criteria": [{"column_name": "at"}]}},
    {"search": {"paging": {"hasNext": True}}},
    {"meta": {"query": {"is_last_page": False}}},
    {"rows_page": {"has_more": True, "returned": 7}},
    {"counts": {"returned": 7, "total": 53}},
    {"stats": {"returned": 7, "critical": 4, "total": 53}},
    {"has_more_page": True},
    {"size_limit_exceeded": True},
    {"before": None, "after": "t3_abc"},
    {"total": -7},
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
    {"recordsTotal": 330, "recordsFiltered": 7},
    {"total": 330, "numberMatched": 7},
    {"total_score": 330, "total_users": 9, "total_data": 9, "moretolove": True},
    {"continue": False, "remainingItemCount": 0, "remaining": 57},
    {"offset": "0", "limit": 100},
    {"offset": 0, "page": 1, "per_page": 100},
    {"offset": 7, "limit": 100},
    {"page": 2},
    {"links": {"first": "/feed.json?page=1", "last": "/feed.json?page=1"}},
    {"links": {"last": "/feed.json?offset=0"}},
    {"message": "Chapters 1-7 of the book", "page": "1/1"},
    {"title": "Rows 1-7 of 8"},
    {"facets": {"total": 330, "has_more": True}},
    {"_shards": {"total": 330, "successful": 330}},
    {"quota": {"limit": 1000, "total": 5000}},
    {"api": {"used": 9, "total": 5000}},
    {"timing": {"total": 330}},
    {"stats": {"total_users": 330}},
    {"comments": {"data": [], "total": 330, "has_more": True}},
    {"types": {"names": [{"key": "a", "count": 9}], "total": 330}},
    {"threads": {"t1": {"has_more": True, "total": 330}}},
    {"summary": {"matched": 7, "total": 330}},
    {"counts": {"returned": 7, "total": 7}},
    {"thread": {"has_more": True}, "has_more": False},
    {"thread": {"has_more": True}, "summary": {"total": 330}, "total": 7},
    {"thread": {"has_more": False}, "note": {"text": "a", "truncated": False}},
    {"before": None, "after": "2024-01-01T00:00:00Z"},
    {"before": "6dcb09b", "after": "7fd1a60"},
    {"before": None, "after": 1704067200},
    {"total": -999},
    {"has_more_information": True, "unlimited": True},
    {"comments": {"has_more": True, "count": 5}},
    {"notifications": {"unread": 3, "has_more": True, "total": 30}},
    {"related": {"has_next": True}},
    {"comments": {"page_info": {"has_next_page": True}}},
    {"user_info": {"has_more": True, "total": 330}},
    {"watch_list": {"is_last": False, "total": 330}},
    {"search": {"has_more": True, "count": 3}},
    {"me": {"login": "bob", "total": 330}},
    {"stats": {"total": 330}},
    {"summary": {"total": 330, "critical": 4}},
    {"results": {"open": 3, "total": 330}},
    {"import": {"total": 330, "accepted": 330}},
    {"plan": {"name": "free", "limited": True}},
    {"description": {"text": "a", "truncated": True}},
    {"version": {"current": "/v1", "next": "/v2"}},
    {"help": {"more_url": "https://docs.example.org"}},
    {"session": {"resume_token": "abc", "expires": 9}},
    {"seats": {"limit_reached": True}},
    {"row": {"total": 330, "has_more": True}},
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
    {"X-Pagination-Total": "8"},
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
    {"X-Cursor": "abc"},
    {"X-Truncated": "true"},
    {"X-Is-Last-Page": "false"},
    {"X-Items-Total": "8"},
    {"X-Total-Rows": "1,330"},
    {"Link": '</feed.json?page=2>; rel="last"'},
    {"Link": '</feed.json?page=2>; rel="next"; anchor="/feed.json"'},
    {"Link": '</feed.json?page=2>; rel="next"; anchor="#rows"'},
    {"Link": '</feed.json?page=2>; rel="next"; anchor="http://backend.invalid/v1/feed.json?a=1"'},
    {"Content-Range": "items 7-13/14"},
    {"Content-Range": "items 7-13/*"},
]
NO_HEADERS = [
    {"Link": '</feed.json?page=1>; rel="first", </feed.json>; rel="next"'},
    {"X-Total-Count": "7"},
    {"X-Next-Page": ""},
    {"Content-Range": "items 0-6/7"},
    {"Content-Range": "items 0-6/*"},
    {"X-Prev-Cursor": "abc"},
    {"X-Complete": "true", "X-Total-Time": "330", "X-More": "https://example.org/about"},
    {"Link": '</other?page=2>; rel="next"; anchor="/other"'},
    {"Link": '</feed.json?page=1>; rel="last"'},
]

UNKNOWN: list[tuple[dict[str, Any], dict[str, str]]] = [
    ({"limit": 7, "offset": 0}, {}),
    ({"meta": {"per_page": "7"}}, {}),
    ({"_scroll_id": "abc"}, {}),
    ({"pageInfo": {"endCursor": "abc"}}, {}),
    ({}, {"X-Per-Page": "7"}),
    ({}, {"Content-Range": "items 0-6/*"}),
]


@pytest.mark.parametrize("sign", SIGNS, ids=json.dumps)
async def test_document_that_says_there_is_more_is_never_green(sign: dict[str, Any]) -> None:
    """Twenty of 330 records are no collection, whatever was declared."""
    async with FeedServer(play=lambda _: answer(ROWS, **sign)) as feed:
        said = await refused(feed)
        assert "and " in said
        assert "paging.only_declared" in said
        [page, *_] = await pages_of(feed, paging={"kind": "none", "only_declared": True})

    assert (len(page.records), page.completeness) == (7, "declared")


@pytest.mark.parametrize("sign", NO_SIGNS, ids=json.dumps)
async def test_document_that_says_no_more_is_whole(
    sign: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """What is empty, leads to itself, counts what came or is about others contradicts nothing."""
    async with FeedServer(play=lambda _: answer(ROWS, **sign)) as feed:
        [page] = await pages_of(feed)

    assert page.completeness == "whole document"
    assert not caplog.text


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


@pytest.mark.parametrize(("sign", "headers"), UNKNOWN, ids=json.dumps)
async def test_document_that_may_be_a_page_is_only_declared(
    sign: dict[str, Any], headers: dict[str, str]
) -> None:
    """A limit that is just met, or a cursor that a last page has, too, proves no end."""
    async with FeedServer(play=lambda _: answer(ROWS, headers, **sign)) as feed:
        [page] = await pages_of(feed)
    async with FeedServer(play=lambda _: answer(ROWS, headers, total=7, **sign)) as feed:
        [proven] = await pages_of(feed)

    assert (page.completeness, proven.completeness) == ("declared", "whole document")


FAMILIES: list[dict[str, Any]] = [
    *({"no_more": False}, {"noMoreResults": "false"}, {"all_loaded": False}, {"isEnd": 0}),
    *({"is_end_of_list": False}, {"lastBatch": False}, {"resultsComplete": False}),
    *({"loadMore": True}, {"hasNextBatch": True}, {"nextPageExists": True}, {"existsMore": True}),
    *({"truncatedResults": True}, {"capped": True}, {"sampled": True}, {"tooManyResults": True}),
    *({"maxResultsExceeded": True}, {"rowLimitReached": True}, {"reachedLimit": True}),
    *({"nextPageStart": 25}, {"nextRecordPosition": 8}, {"NextKeyMarker": "k"}, {"moreToken": "x"}),
    *({"nextPartitionKey": "k"}, {"cursorNext": "x"}, {"continuationUri": "/x"}),
    *({"list": {"next": "/x"}}, {"pages": {"next": {"page": 2}}}, {"load_more_url": "/x"}),
    *({"paginationInfo": {"hasMore": True}}, {"nbPages": 2}, {"totalPageCount": 2}),
    *({"hitCount": 8}, {"num_results": 8}, {"fullCount": 8}, {"numberOfRecords": 8}),
    *(
        {"rows_before_limit_at_least": 8},
        {"resultSize": 8},
        {"metadata": {"resultset": {"count": 8}}},
    ),
    *({"total": "7 of 8"}, {"total": "8.0"}, {"range": "0-6/8"}, {"rowsRemaining": 1}),
    {"links": [{"rel": "http://example.org/rels/next", "href": "/x"}]},
]
FAMILIES_OF_HEADERS: list[dict[str, str]] = [
    *({"X-Pages": "2"}, {"X-Page-Total": "2"}, {"X-Paging-PageCount": "2"}),
    *({"X-Pagination-TotalPages": "2"}, {"X-Paging-TotalRecordCount": "8"}, {"X-Hits": "8"}),
    *({"Total-Results": "8"}, {"Records-Total": "8"}, {"X-Number-Of-Records": "8"}),
    *({"X-Query-Total": "8"}, {"X-Partial": "true"}, {"X-Content-Truncated": "1"}),
    *({"X-Paging-Headers": '{"totalCount": 8}'}, {"Pagination-Info": '{"next": "/x"}'}),
    *({"X-Next-Page-Url": "/x"}, {"Warning": '199 - "result truncated"'}),
    {"Link": "</feed.json?page=2>; title*=UTF-8''next%20page; rel=next"},
]
POSSIBLE: list[dict[str, Any]] = [
    *({"bookmark": "abc"}, {"nextCursorMark": "AoE"}, {"next_batch": "s72"}, {"next_id": 8}),
    *({"NextShardIterator": "x"}, {"scrollToken": "x"}),
]
NONE_OF_THEM: list[dict[str, Any]] = [
    *({"next_update": "2030-01-01"}, {"next_run": "2030-01-01T00:00:00Z"}, {"nextPoll": 3600}),
    *({"nextSyncToken": "x"}, {"@odata.deltaLink": "/x"}, {"last_id": 6}, {"truncated": False}),
    *({"hitCount": 7}, {"nbPages": 1}, {"no_more": True}, {"isEnd": 1}, {"total": "7 of 7"}),
    *({"capped": 0}, {"rowsRemaining": 0}, {"range": "0-6/7"}, {"bookmark": None}),
]


async def test_sign_of_any_family_is_heard() -> None:
    """APIs have more names than a list of words, and fewer meanings."""
    made = [Answer()]
    async with FeedServer(play=lambda _: made[0]) as feed:
        for sign in FAMILIES:
            made[0] = Answer.of({"rows": ROWS, **sign})
            assert "and " in await refused(feed), sign
        for headers in FAMILIES_OF_HEADERS:
            made[0] = Answer(json.dumps(ROWS).encode(), 200, headers)
            assert "and " in await refused(feed, records=""), headers
        for signs, completeness in ((POSSIBLE, "declared"), (NONE_OF_THEM, "whole document")):
            for sign in signs:
                made[0] = Answer.of({"rows": ROWS, **sign})
                [page] = await pages_of(feed)
                assert page.completeness == completeness, sign


async def test_next_time_that_the_last_record_has_is_a_cursor() -> None:
    """A list in the order of time goes on behind its last record; a day is that of an edition."""
    made = [Answer()]
    async with FeedServer(play=lambda _: made[0]) as feed:
        for last in ({"at": "2024-02-01T00:00:00Z"}, {"seen": [{"last": "2024-02-01T00:00:00Z"}]}):
            rows = [*ROWS, {**ROWS[-1], "id": "last", **last}]
            made[0] = Answer.of({"rows": rows, "next": "2024-02-01T00:00:00Z"})
            assert "has a next page at 'next'" in await refused(feed)
        for row, following in (
            (ROWS[0], "2024-02-01T00:00:00Z"),
            ({"day": "2024-02-01"}, "2024-02-01"),
        ):
            rows = [*ROWS, {**ROWS[-1], "id": "last", **row}]
            made[0] = Answer.of({"rows": rows, "next": following})
            [page] = await pages_of(feed)
            assert page.completeness == "whole document"


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


@pytest.mark.parametrize(
    "sign", [{"next_page": "/feed.json?page=2"}, {"total": 8}, {"has_more": True}]
)
async def test_sign_among_keyed_records_is_none_of_them(sign: dict[str, Any]) -> None:
    """A value that is no object stands next to records, which may have no place of their own."""
    document = {"a": {"at": "2024-01-01"}, "b": {"at": "2024-01-01"}, **sign}
    async with FeedServer(play=lambda _: Answer.of(document)) as feed:
        await refused(feed, records="", records_keyed_by_id=True)


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


# Signs that may be about something else.

HINTS: list[tuple[dict[str, Any], str]] = [
    ({"summary": {"total": 53}}, "states 53 at 'summary.total'"),
    ({"query": {"totalCount": 53, "took": 4, "limit": 9}}, "states 53 at 'query.totalCount'"),
    ({"row_list": {"total_rows": 53}}, "states 53 at 'row_list.total_rows'"),
    ({"search": {"has_more": True, "count": 53}}, "says at 'search.has_more'"),
    ({"metadata": {"results": {"total": 53}}}, "states 53 at 'metadata.results.total'"),
    ({"is_limited": True, "has_more": False}, "says at 'is_limited'"),
    ({"has_more_users": True}, "says at 'has_more_users'"),
    ({"search": {"truncated": True}}, "says at 'search.truncated'"),
    ({"navigation": {"next": "/feed.json?page=2"}}, "may have a next page at 'navigation.next'"),
    ({"search": {"next_token": "abc"}}, "may have a next page at 'search.next_token'"),
]


@pytest.mark.parametrize(("sign", "words"), HINTS, ids=json.dumps)
async def test_sign_that_may_be_about_something_else_takes_the_proof_away(
    sign: dict[str, Any], words: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The run is green, says that its end is declared, and names what it saw and what to set."""
    async with FeedServer(play=lambda _: answer(ROWS, **sign)) as feed:
        [page] = await pages_of(feed)
        assert (len(page.records), page.completeness) == (7, "declared")
        assert words in caplog.text
        assert "paging.only_declared" in caplog.text
        caplog.clear()
        await pages_of(feed, paging={"kind": "none", "only_declared": True})
        assert not caplog.text


async def test_total_in_an_unknown_place_is_settled_by_its_declaration(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Declared, it binds as any total does, and one that is met needs no warning."""
    total = [53]
    async with FeedServer(play=lambda _: answer(ROWS, summary={"total": total[0]})) as feed:
        paging = {"kind": "none", "total": "summary.total"}
        assert "states 53 items at 'summary.total'" in await refused(feed, paging=paging)
        total[0] = 7
        [page] = await pages_of(feed, paging=paging)

    assert page.completeness == "whole document"
    assert not caplog.text


@pytest.mark.parametrize("kind", ["none", "page", "offset"])
async def test_total_of_all_times_in_an_unknown_place_is_ignored(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A range in which nothing is has one, too, so no run warns of it, whatever page is the end."""

    def ranged(asked: Asked) -> Answer:
        is_ahead = asked.query["since"] > "2025"
        rows = [] if is_ahead else ROWS if kind == "none" else cut(asked, 3)
        return answer(rows, summary={"total": 54 if is_ahead else 53})

    async with FeedServer(play=ranged) as feed:
        source = api(feed, paging={"kind": kind}, since={"parameter": "since"})
        pages = [page async for page in source.pages(at(0), None)]

    assert pages[-1].completeness in ("last page", "whole document")
    assert not caplog.text


@pytest.mark.parametrize("is_told", [True, False])
async def test_total_of_a_range_in_an_unknown_place_is_heeded(
    is_told: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """A range in which nothing is has none, or that of nothing."""

    def ranged(asked: Asked) -> Answer:
        is_ahead = asked.query["since"] > "2025"
        told: dict[str, Any] = {"summary": {"total": 0 if is_ahead else 53}}
        if is_ahead and not is_told:
            told = {}
        return answer([] if is_ahead else cut(asked, 3), **told)

    async with FeedServer(play=ranged) as feed:
        source = api(feed, paging={"kind": "page"}, since={"parameter": "since"})
        pages = [page async for page in source.pages(at(0), None)]

    assert pages[-1].completeness == "declared"
    assert "states 53 at 'summary.total'" in caplog.text


@pytest.mark.parametrize("size", [3, 7])
async def test_flag_in_an_unknown_place_ends_pages_as_one_in_a_known_place(size: int) -> None:
    """A last page with the flag fails the run; an empty one that takes it back is an end."""
    known, cut_off = [False], [False]

    def numbered(asked: Asked) -> Answer:
        rows = cut(asked, size)
        paged = {"has_more_page": bool(rows) or cut_off[0]}
        return Answer.of({"rows": rows, "page" if known[0] else "page_context": paged})

    async with FeedServer(play=numbered) as feed:
        for known[0] in (True, False):
            cut_off[0] = False
            pages = await pages_of(feed, paging={"kind": "page"})
            assert pages[-1].completeness == "last page"
            cut_off[0] = True
            assert "has_more_page' that there are more" in await refused(
                feed, paging={"kind": "page"}
            )


@pytest.mark.parametrize(
    ("sign", "words"),
    [
        ({"more_topics_url": "/latest?page=1"}, "has a next page at 'list.more_topics_url'"),
        ({"next_topics_token": "abc"}, "has a cursor at 'list.next_topics_token'"),
        ({"has_more_topics": True}, "says at 'list.has_more_topics'"),
        ({"topics_truncated": True}, "says at 'list.topics_truncated'"),
        ({"topics_limit_reached": True, "topics_completed": False, "topics_left": 9}, ""),
    ],
)
async def test_sign_that_has_the_name_of_the_records_is_one(
    sign: dict[str, Any], words: str
) -> None:
    """As that of Discourse, next to its topics; other names may be of the records themselves."""
    async with FeedServer(play=lambda _: Answer.of({"list": {"topics": ROWS, **sign}})) as feed:
        if words:
            assert words in await refused(feed, records="list.topics")
        else:
            assert await ids_of(feed, records="list.topics") == IDS


async def test_many_objects_beside_the_records_are_looked_at_in_bounded_time() -> None:
    """Those that are no description of a list cost next to nothing."""
    many = {f"o{n}": {f"m{m}": {"list": {"a": n}} for m in range(40)} for n in range(2_000)}
    async with FeedServer(play=lambda _: Answer.of({"rows": ROWS, **many})) as feed:
        [page] = await pages_of(feed)

    assert page.completeness == "whole document"


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


@pytest.mark.parametrize(
    "hidden", [range(3), range(1, 4), range(6, 9), range(9, 12), range(9, 11)], ids=str
)
@pytest.mark.parametrize("kind", ["offset", "page"])
async def test_hole_in_a_list_is_no_end(hidden: range, kind: str) -> None:
    """A server that hides rows after paging may leave nothing of a page, also of the first one."""
    rows = [row(number) for number in range(24)]

    def paged(asked: Asked) -> Answer:
        return answer([each for each in cut(asked, 3, rows) if int(each["id"]) not in hidden])

    paging = {"kind": kind, "page_size": 3}
    async with FeedServer(play=paged) as feed:
        try:
            found = await ids_of(feed, paging=paging)
        except SourceError:
            return
    assert {*found} == {str(number) for number in range(24) if number not in hidden}


async def test_list_that_grows_before_its_end_is_checked_is_read_again() -> None:
    """A record that was appended a moment ago was passed over by no page."""
    rows = ROWS[:3]

    def paged(asked: Asked) -> Answer:
        size = int(asked.query["per_page"])
        if size == 3 and len(rows) == 3:
            rows.append(ROWS[3])
        return answer(cut(asked, size, rows))

    paging = {"kind": "page", "size_parameter": "per_page", "page_size": 4}
    async with FeedServer(play=paged) as feed:
        assert {*await ids_of(feed, paging=paging)} == {*IDS[:4]}


async def test_page_behind_an_offset_is_no_sign_in_a_list_too_long_to_be_known(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A server may answer with its last page there, of which nothing is known any more."""
    monkeypatch.setattr(reading, "KNOWN_KEYS", 10)
    rows = [row(number) for number in range(24)]

    def paged(asked: Asked) -> Answer:
        return answer(cut(asked, 5, rows) if int(asked.query["offset"]) <= 24 else rows[-5:])

    async with FeedServer(play=paged) as feed:
        found = await ids_of(feed, paging={"kind": "offset", "page_size": 5})
    assert {*found} == {str(each["id"]) for each in rows}


async def test_page_behind_an_offset_has_the_size_that_is_granted() -> None:
    """A size that was refused once would be refused again, and say nothing."""
    rows = [row(number) for number in range(1_000)]

    def paged(asked: Asked) -> Answer:
        if int(asked.query["limit"]) > 100:
            return answer([], status=413)
        return answer([each for each in cut(asked, 100, rows) if not 300 <= each["id"] < 400])

    async with FeedServer(play=paged) as feed:
        paging = {"kind": "offset", "page_size": 800, "too_large": [413]}
        assert "has records from offset 400 on" in await refused(feed, paging=paging)
