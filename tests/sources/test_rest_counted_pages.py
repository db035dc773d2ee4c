"""Where pages end that are asked for by number or offset: at a proof, and at nothing less."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import product
from typing import Any

import pytest

from ladon_storage.errors import SourceError
from ladon_storage.sources.rest import reading
from ladon_storage.testing.doubles import at
from ladon_storage.testing.feed_server import Answer, Asked, FeedServer
from tests.sources.rest_lists import IDS, ROWS, answer, cut, ids_of, pages_of, refused
from tests.sources.test_rest import api, row

pytestmark = pytest.mark.usefixtures("no_waiting")


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
        return answer(pages[number - 1] if 0 < number <= len(pages) else [])

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


async def test_page_that_calls_itself_a_part_alone_is_refused() -> None:
    """A list whose first page is all that was asked for has no parts later on."""

    def cut_off(asked: Asked) -> Answer:
        is_second = asked.query["page"] == "2"
        return answer(cut(asked, 3)[: 1 if is_second else 3], status=206 if is_second else 200)

    async with FeedServer(play=cut_off) as feed:
        assert "answered 206, a part, for a page" in await refused(feed, paging={"kind": "page"})


async def test_pages_that_share_records_prove_no_end() -> None:
    """Pages that are sorted each in its own way repeat some records, and leave others out."""

    def mixed(asked: Asked) -> Answer:
        is_even = int(asked.query["page"]) % 2 == 0
        return answer(cut(asked, 3, ROWS[::-1] if is_even else ROWS))

    async with FeedServer(play=mixed) as feed:
        pages = await pages_of(feed, paging={"kind": "page"})

    assert pages[-1].completeness == "declared"


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
    ("fields", "status", "body", "completeness"),
    [
        ({}, 404, b'{"detail": "Invalid page."}', "last page"),
        ({"end_status": [404, 416]}, 416, b"no", "last page"),
        ({"end_status": [404]}, 404, b'{"detail": "Invalid page."}', "last page"),
        ({"end_status": [404]}, 404, b"no", "declared"),
        ({"end_status": [403]}, 403, b"no", "declared"),
    ],
)
async def test_status_beyond_the_end_ends_a_reading(
    fields: dict[str, Any], status: int, body: bytes, completeness: str
) -> None:
    """One that says so does, and a declared one, which proves nothing."""

    def beyond(asked: Asked) -> Answer:
        rows = cut(asked, 3)
        return answer(rows) if rows else Answer(body, status)

    async with FeedServer(play=beyond) as feed:
        pages = await pages_of(feed, paging={"kind": "page", **fields})

    assert [each.record_id for page in pages for each in page.records] == IDS
    assert pages[-1].completeness == completeness


@pytest.mark.parametrize("sign", [{}, {"has_more": True}])
@pytest.mark.parametrize("paging", [{"kind": "page"}, {"kind": "offset", "page_size": 1}])
@pytest.mark.parametrize("is_once", [False, True])
async def test_declared_status_in_the_middle_is_no_end(
    paging: dict[str, Any], sign: dict[str, Any], is_once: bool
) -> None:
    """A gateway says 404 during a deployment: what is behind that page shows it."""
    asked_before: list[str] = []

    def deploying(asked: Asked) -> Answer:
        place = asked.query.get("page") or asked.query["offset"]
        asked_before.append(place)
        is_away = place == "2" and not (is_once and asked_before.count("2") > 1)
        rows = [] if is_away else cut(asked, 3)
        return answer(rows, **sign) if rows else Answer(b"404 page not found", 404)

    async with FeedServer(play=deploying) as feed:
        paging = {**paging, "end_status": [404]}
        if is_once:
            pages = await pages_of(feed, paging=paging)
            assert {each.record_id for page in pages for each in page.records} == {*IDS}
            assert pages[-1].completeness == "declared"
        else:
            assert "and none" in await refused(feed, paging=paging)


@pytest.mark.parametrize("fields", [{}, {"stable": True}, {"only_declared": True}])
async def test_declared_status_is_looked_behind_once(fields: dict[str, Any]) -> None:
    """Behind a short last page one request shows it; a declaration saves that, too."""
    async with FeedServer(
        play=lambda asked: answer(rows) if (rows := cut(asked, 3)) else Answer(b"no", 404)
    ) as feed:
        pages = await pages_of(feed, paging={"kind": "page", "end_status": [404], **fields})

    assert pages[-1].completeness == "declared"
    assert ("5" in [each.query["page"] for each in feed.asks]) == (not fields)
    assert "6" not in [each.query["page"] for each in feed.asks]


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


async def test_page_behind_an_empty_first_one_is_not_taken_for_the_first() -> None:
    """It states its own number, and that there are pages before it."""

    def late(asked: Asked) -> Answer:
        number = int(asked.query["page"])
        rows = ROWS if number == 3 else []
        return answer(
            rows, page=number, per_page=9, has_previous=number > 1, has_more=0 < number < 3
        )

    async with FeedServer(play=late) as feed:
        assert await ids_of(feed, paging={"kind": "page"}) == IDS


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


LIMITS = [
    "Result window is too large, from + size must be less than or equal to: [10000] but was [11000]"
    ". This limit can be set by changing the [index.max_result_window] index level setting.",
    "Only the first 1000 search results are available",
    "Requested response size was greater than Search Response Limits",
    "Maximum SOQL offset allowed is 2000",
    "In order to keep the API fast for everyone, pagination is limited for this resource.",
    "Offset pagination has a maximum allowed offset of 50000 for requests that return projects",
    "Paging through more than 10000 results is not supported",
    "The 'after' query param is limited to 10000",
    "Too many results requested, limit+offset must be <= 240",
    "It is not possible to paginate beyond the first 240 results. Use cursor-based pagination.",
    "Offset must be a positive integer less than or equal to 10000",
    "The skip value must not exceed 100000",
    "You have reached the limit of 500 results",
    "Please narrow your search",
    "Rate limit exceeded",
    "RESULT_LIMIT_EXCEEDED",
    "PaginationLimitExceeded",
    "超出最大限制",
]
ENDS = [
    "",
    "404 page not found",
    "<html><h1>404 Not Found</h1></html>",
    "Invalid page",
    "No more results",
    "No records beyond the last page",
    "That page contains no results",
    "PAGE_OUT_OF_RANGE",
    "Page 4 exceeds the total number of pages (3)",
    "Page 4 is out of range, maximum page is 3",
    "Page number 4 is beyond the limit of 3 pages",
    'Page "4" does not exist. The currentPage must be inferior to "3"',
    "expected :page in 1..3; got 4",
    "The page number requested must be less than or equal to the number of pages available.",
    "requested page is beyond the number of available pages",
    "offset exceeds total count of 7",
    "The offset must be between 0 and 6",
    "Offset is greater than the number of records",
    "page must be greater than 0 and limit between 1 and 100",
    "超出页数范围",
]


@pytest.mark.parametrize(
    ("sign", "fields"),
    [
        ({"total": 7}, {"kind": "page"}),
        ({"pages": 3}, {"kind": "page"}),
        ({"total": 7}, {"kind": "offset", "page_size": 3, "total": "total"}),
        ({}, {"kind": "page", "end_status": [422]}),
    ],
)
async def test_refusal_that_names_a_limit_is_no_end(
    sign: dict[str, Any], fields: dict[str, Any]
) -> None:
    """A total that is met may be that limit; any other refusal behind it is the end."""
    said = [""]

    def refusing(asked: Asked) -> Answer:
        rows = cut(asked, 3)
        errors = json.dumps({"error": {"root_cause": [{"reason": said[0]}]}}).encode()
        return answer(rows, None, **sign) if rows else Answer(errors, 422)

    async with FeedServer(play=refusing) as feed:
        for said[0] in LIMITS:
            message = await refused(feed, paging=fields)
            assert "answered 422 for a page, and names a limit" in message
            assert said[0][:20] in message
        for said[0] in ENDS:
            assert await ids_of(feed, paging=fields) == IDS, said


async def test_limit_is_the_end_where_only_what_is_declared_counts() -> None:
    """A service may call its last page a limit."""
    limit = Answer.of({"error": LIMITS[0]}).body
    async with FeedServer(
        play=lambda asked: answer(rows) if (rows := cut(asked, 3)) else Answer(limit, 422)
    ) as feed:
        paging = {"kind": "page", "only_declared": True, "end_status": [422]}
        assert await ids_of(feed, paging=paging) == IDS


@pytest.mark.parametrize("status", [404, 416])
async def test_refusal_without_a_structure_may_name_a_limit(status: int) -> None:
    """By a text, or the page of a gateway, whatever the status means elsewhere."""
    limit = b"<h1>Error</h1><p>Only the first 1,000 results can be listed.</p>"
    async with FeedServer(
        play=lambda asked: (
            answer(rows, total=7) if (rows := cut(asked, 3)) else Answer(limit, status)
        )
    ) as feed:
        message = await refused(feed, paging={"kind": "page"})

    assert "Read less at a time" in message


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


# Pages that a filter left empty, and pages that are smaller than requested.


@pytest.mark.parametrize("empty", [1, 2, 3])
@pytest.mark.parametrize("size", [2, 3])
async def test_empty_pages_in_the_middle_are_no_end(empty: int, size: int) -> None:
    """Behind a full page, or pages of any size, up to three pages may have nothing."""
    pages = [ROWS[:2], ROWS[2 : 2 + size], *[[]] * empty, ROWS[2 + size :]]

    def filtered(asked: Asked) -> Answer:
        number = int(asked.query["page"])
        return answer(pages[number - 1] if 0 < number <= len(pages) else [])

    async with FeedServer(play=filtered) as feed:
        message = await refused(feed, paging={"kind": "page"})

    assert f"has records on page {3 + empty}, and none on the page before it" in message


@pytest.mark.parametrize("hole", [range(3, 3), range(2, 4), range(2, 6)])
async def test_hole_of_an_offset_list_is_no_end(hole: range) -> None:
    """A filter left nothing of a page or two; behind a full page, a few offsets are requested."""

    def filtered(asked: Asked) -> Answer:
        offset, limit = int(asked.query["offset"]), int(asked.query["limit"])
        rows = ROWS[offset : offset + limit]
        return answer([each for each in rows if each["id"] not in hole])

    paging = {"kind": "offset", "page_size": 2}
    async with FeedServer(play=filtered) as feed:
        if hole:
            told = await refused(feed, paging=paging)
            assert "and none at 2" in told or "changed in each" in told
        else:
            assert await ids_of(feed, paging=paging) == IDS


@pytest.mark.parametrize("empty", [{1}, {1, 2}, {3}, {2, 3, 4, 5}])
@pytest.mark.parametrize("sign", ["more", "pages"])
async def test_empty_page_that_says_that_others_follow_is_passed(
    empty: set[int], sign: str
) -> None:
    """A filter left nothing of it; what is behind it is read as well."""
    filled = iter((ROWS[:3], ROWS[3:6], ROWS[6:]))
    pages = [[] if number in empty else next(filled) for number in range(1, len(empty) + 4)]

    def filtered(asked: Asked) -> Answer:
        number = int(asked.query["page"])
        rows = pages[number - 1] if 0 < number <= len(pages) else []
        more = {"has_more": number < len(pages)} if sign == "more" else {"pages": len(pages)}
        return answer(rows, **more)

    if sign == "pages" and 1 in empty:
        pages = pages[len(empty) :]  # a first page without a record that states pages is rare
    async with FeedServer(play=filtered) as feed:
        assert await ids_of(feed, paging={"kind": "page"}) == IDS


async def test_pages_that_always_say_that_others_follow_are_not_read_for_ever() -> None:
    """A flag that never goes away contradicts the end after a few pages."""
    async with FeedServer(play=lambda asked: answer(cut(asked, 3), has_more=True)) as feed:
        assert "says at 'has_more' that there are more" in await refused(
            feed, paging={"kind": "page"}
        )
        assert len(feed.requests) < 20


async def test_short_page_behind_full_ones_costs_no_more_requests() -> None:
    """It is what the end of a list looks like: one page behind the empty one is asked."""
    numbers = set[str]()

    def short(asked: Asked) -> Answer:
        numbers.add(asked.query["page"])
        return answer(cut(asked, 3))

    async with FeedServer(play=short) as feed:
        assert await ids_of(feed, paging={"kind": "page"}) == IDS

    assert numbers == {"0", "1", "2", "3", "4", "5"}


def _capped(asked: Asked, *, skips_requested: bool) -> Answer:
    number, size = int(asked.query["page"]), int(asked.query["size"])
    step = size if skips_requested else min(size, 2)
    first = (number - 1) * step
    return answer(ROWS[first : first + min(size, 2)])


@pytest.mark.parametrize(
    "settings",
    [
        {"paging": {"kind": "page", "size_parameter": "size", "page_size": 3}},
        {"paging": {"kind": "page", "size_parameter": "size", "page_size": 100}},
        {"paging": {"kind": "page"}, "params": {"size": 3}},
    ],
)
async def test_page_that_is_capped_and_skips_what_was_requested_is_refused(
    settings: dict[str, Any],
) -> None:
    """Each page lacks its last items; where the server counts by its own size, nothing is lost."""
    async with FeedServer(play=lambda asked: _capped(asked, skips_requested=True)) as feed:
        message = await refused(feed, **settings)
    async with FeedServer(play=lambda asked: _capped(asked, skips_requested=False)) as feed:
        assert await ids_of(feed, **settings) == IDS

    assert "passed over others to the next page. Request 2 items for a page" in message


@pytest.mark.parametrize(
    ("kind", "is_once"),
    [*product(["page", "params", "next", "link", "cursor"], [False, True]), ("offset", False)],
)
async def test_page_that_is_capped_in_the_middle_is_no_whole_one(kind: str, is_once: bool) -> None:
    """A server may lower the size of a page under load, and count on by the requested one.

    A page that is whole when it is requested again is a reason to read the list again.
    """
    rows, capped = [row(number) for number in range(12)], 0

    def shed(asked: Asked) -> Answer:
        nonlocal capped
        number, size = int(asked.query.get("page", 1)), int(asked.query.get("size", 4))
        begin = int(asked.query.get("skip", (number - 1) * size))
        shown = rows[begin : begin + size]
        if begin == 4 and size == 4 and (not is_once or capped < 2):
            shown, capped = shown[:2], capped + 1
        behind = begin + size < len(rows)
        where = f"skip={begin + size}" if kind == "offset" else f"page={number + 1}&size={size}"
        to = f"/feed.json?{where}" if behind else None
        more: dict[str, Any] = {"next": to} if kind in ("next", "offset") else {}
        if kind == "cursor":
            more = {"next_cursor": number + 1 if behind else None}
        link = {"Link": f'<{to}>; rel="next"'} if kind == "link" and to else {}
        return answer(shown, link, **more)

    settings: dict[str, dict[str, Any]] = {
        "page": {"paging": {"kind": "page", "size_parameter": "size", "page_size": 4}},
        "params": {"paging": {"kind": "page"}, "params": {"size": 4}},
        "offset": {"paging": {"kind": "next"}},
        "cursor": {"paging": {"kind": "cursor", "parameter": "page"}, "params": {"size": 4}},
    }
    async with FeedServer(play=shed) as feed:
        fields = settings.get(kind, {"paging": {"kind": kind}})
        if is_once:
            assert {*await ids_of(feed, **fields)} == {str(each["id"]) for each in rows}
        else:
            said = await refused(feed, **fields)
            assert "passed over others to the next page. Request 2 items for a page" in said


async def test_short_page_of_more_items_than_are_known_passes_nothing_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Beyond so many, an item behind it that came is not known as such."""
    monkeypatch.setattr(reading, "KNOWN_KEYS", 4)
    rows = [row(number) for number in range(16)]

    def filtered(asked: Asked) -> Answer:
        number, size = int(asked.query.get("page", 1)), int(asked.query["size"])
        shown = rows[(number - 1) * size : number * size]
        return answer([each for each in shown if each["id"] != 9])

    paging = {"kind": "page", "size_parameter": "size", "page_size": 4}
    async with FeedServer(play=filtered) as feed:
        assert len(await ids_of(feed, paging=paging)) == 15


async def test_capped_pages_of_more_items_than_are_known_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What the first page passed over would be among the first items, which are known."""
    monkeypatch.setattr(reading, "KNOWN_KEYS", 4)
    rows = [row(number) for number in range(16)]

    def capped(asked: Asked) -> Answer:
        number, size = int(asked.query.get("page", 1)), int(asked.query["size"])
        return answer(rows[(number - 1) * size : number * size][:2])

    paging = {"kind": "page", "size_parameter": "size", "page_size": 4}
    async with FeedServer(play=capped) as feed:
        message = await refused(feed, paging=paging)
    assert "passed over others to the next page. Request 2 items for a page" in message
