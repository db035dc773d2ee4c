"""Where links and cursors end: at the last page, and nowhere before it."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from typing import Any

import pytest
from aiohttp import web
from yarl import URL

from ladon_storage.sources.rest import reading
from ladon_storage.sources.rest.counting import counts
from ladon_storage.sources.rest.links import hides_next, next_in
from ladon_storage.testing.doubles import at
from ladon_storage.testing.feed_server import Answer, Asked, FeedServer
from tests.sources.rest_lists import IDS, ROWS, answer, ids_of, pages_of, refused
from tests.sources.test_rest import row

pytestmark = pytest.mark.usefixtures("no_waiting")


@pytest.mark.parametrize("end", ["0", 0, None, "", "null", "None", "-1", -1])
async def test_cursor_that_leads_to_the_beginning_or_nowhere_is_the_end(end: Any) -> None:
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


@pytest.mark.parametrize("step", [1, 3])
@pytest.mark.parametrize("end", [0, "0", None, -1])
@pytest.mark.parametrize("pages", [3, 4])
async def test_cursor_that_counts_down_leads_to_number_zero(
    step: int, end: Any, pages: int
) -> None:
    """From the newest shard or offset to the first one; whatever follows that is the end."""
    rows = [row(number) for number in range(3 * pages)]

    def shards(asked: Asked) -> Answer:
        number = int(asked.query.get("cursor", (pages - 1) * step))
        first = number // step * 3
        return answer(rows[first : first + 3], next_cursor=number - step if number else end)

    async with FeedServer(play=shards) as feed:
        ids = await ids_of(feed, paging={"kind": "cursor"})

    assert sorted(ids, key=int) == [str(each["id"]) for each in rows]


async def test_zero_that_begins_a_new_scan_is_the_end() -> None:
    """It has records of its own, and leads to a page that was read."""
    pages = {None: (ROWS[:4], 1), "1": (ROWS[4:], 0), "0": ([row(100), row(101)], 1)}

    def scan(asked: Asked) -> Answer:
        rows, following = pages[asked.query.get("cursor")]
        return answer(rows, next_cursor=following)

    async with FeedServer(play=scan) as feed:
        assert await ids_of(feed, paging={"kind": "cursor"}) == IDS


@pytest.mark.parametrize("more", [{}, {"more": False}])
@pytest.mark.parametrize("beyond", ["beginning", "last page", "nothing", "refusal"])
async def test_zero_behind_a_one_that_leads_nowhere_is_the_end(
    beyond: str, more: dict[str, Any]
) -> None:
    """Most APIs say by it that no page follows: it costs a request, and none where they say so."""

    def paged(asked: Asked) -> Answer:
        cursor = asked.query.get("cursor")
        if cursor == "0" and beyond == "refusal":
            return answer([], status=400)
        if cursor == "0" and beyond == "nothing":
            return answer([], next_cursor=0)
        if cursor == "1" or (cursor == "0" and beyond == "last page"):
            return answer(ROWS[4:], next_cursor=0, **more)
        return answer(ROWS[:4], next_cursor=1)

    path = {"more": "more"} if more else {}
    async with FeedServer(play=paged) as feed:
        pages = await pages_of(feed, paging={"kind": "cursor", **path})

    assert [each.record_id for page in pages for each in page.records] == IDS
    assert pages[-1].completeness == "last page"
    assert [each.query.get("cursor") for each in feed.asks].count("0") == (not more)


async def test_cursor_of_an_item_may_be_zero() -> None:
    """An item may well have a 0 where a cursor is."""
    scored = [{**each, "score": number - 3} for number, each in enumerate(ROWS)]

    def search(asked: Asked) -> Answer:
        after = int(asked.query.get("after", -9))
        return answer([each for each in scored if each["score"] > after][:2])

    async with FeedServer(play=search) as feed:
        paging = {"kind": "cursor", "path": "rows.-1.score", "parameter": "after"}
        assert await ids_of(feed, paging=paging) == IDS


LINKS = [
    "</feed.json?p=2>; title*=UTF-8'de'n%C3%A4chste%20Seite; rel=next",
    '</feed.json?p=2>; title="a \\"b\\"; c, d"; rel="next"',
    '</feed.json?p=2>; crossorigin; rel="prefetch next"',
    '</feed.json?p=2>; rel="next-page"',
    '</feed.json?p=2>; rel="http://example.org/rels/next"',
]


@pytest.mark.parametrize("link", LINKS)
async def test_link_with_other_parameters_is_followed(link: str) -> None:
    """A parameter in front of the relation has any form that the standards have."""

    def titled(asked: Asked) -> Answer:
        is_first = "p" not in asked.query
        last = {"Link": '</feed.json>; rel="first"'}
        return answer(ROWS[:4] if is_first else ROWS[4:], {"Link": link} if is_first else last)

    async with FeedServer(play=titled) as feed:
        assert await ids_of(feed, paging={"kind": "link"}) == IDS


@pytest.mark.parametrize(
    "link", ['/feed.json?p=2; rel="next"', "<a>; rel=x, http://a/?p=2; rel=next"]
)
async def test_link_that_cannot_be_read_is_no_end(link: str) -> None:
    """A header that names a next page, in a form that is no link, does not end a list."""
    async with FeedServer(play=lambda _: answer(ROWS[:4], {"Link": link})) as feed:
        assert "has a next page in its header Link" in await refused(feed, paging={"kind": "link"})


@pytest.mark.parametrize(
    "look",
    [
        lambda: next_in(["<" * 60_000]),
        lambda: next_in(['<a>;a="' * 8_000]),
        lambda: hides_next(["rel=a " * 10_000]),
        lambda: counts("cursor", "a" * 60_000, 20, 1),
        lambda: counts("cursor", "a-" * 30_000, 20, 1),
    ],
)
def test_long_header_or_cursor_does_not_hold_the_event_loop(look: Callable[[], object]) -> None:
    """A feed may be hostile: what it sends as a link or a cursor is read once, and not squared."""
    began = time.process_time()
    assert not look()
    assert time.process_time() - began < 1


async def test_link_past_a_page_is_not_followed_in_silence() -> None:
    """The page between two linked ones has a number of its own."""

    def skipping(asked: Asked) -> Answer:
        number = int(asked.query.get("page", 1))
        following = f"/feed.json?page={number + 2}" if number < 4 else None
        return answer(ROWS[2 * number - 2 : 2 * number], next=following)

    async with FeedServer(play=skipping) as feed:
        assert "passes over others between them" in await refused(feed, paging={"kind": "next"})


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
    assert len(feed.requests) <= 7  # a link that counts is checked


async def test_link_to_itself_on_the_last_page_is_the_end() -> None:
    """As long as another page came before."""

    def paged(asked: Asked) -> Answer:
        number = int(asked.query.get("page", 1))
        rows = ROWS[number * 3 - 3 : number * 3]
        return answer(rows, next=f"/feed.json?page={min(number + 1, 3)}")

    async with FeedServer(play=paged) as feed:
        assert await ids_of(feed, paging={"kind": "next"}) == IDS


async def test_next_link_without_an_address_is_none() -> None:
    """An object whose href is null leads nowhere, and so does a text in place of null."""
    made: list[Any] = [None]
    async with FeedServer(play=lambda _: answer(ROWS, next=made[0])) as feed:
        for made[0] in ({"href": None}, "null", "None", "undefined"):
            for kind in ("next", "none"):
                assert await ids_of(feed, paging={"kind": kind}) == IDS


@pytest.mark.parametrize("end", ["null", "None", "undefined", "N/A", "false", {"href": "null"}])
@pytest.mark.parametrize("kind", ["next", "cursor", "page", "none"])
async def test_text_that_stands_for_no_value_leads_nowhere(kind: str, end: Any) -> None:
    """Programs without a null write one as a text, which is neither an address nor a cursor."""
    name = "next_cursor" if kind == "cursor" else "next"

    def paged(asked: Asked) -> Answer:
        number = int(asked.query.get("page", asked.query.get("cursor", 1)))
        following: Any = {"next": "/feed.json?page=2", "next_cursor": "2"}[name]
        rows = ROWS if kind == "none" else ROWS[number * 4 - 4 : number * 4]
        stated: dict[str, Any] = {name: following if number == 1 and kind != "none" else end}
        return answer(rows, **stated)

    async with FeedServer(play=paged) as feed:
        assert await ids_of(feed, paging={"kind": kind}) == IDS


async def test_next_link_in_a_header_may_say_that_it_has_no_results() -> None:
    """As Sentry's does on the last page; another sort of quotes is understood as well."""

    def paged(asked: Asked) -> Answer:
        after = int(asked.query.get("after", 0))
        more = str(after + 3 < len(ROWS)).lower()
        link = f"</feed.json?after={after + 3}>; rel='next'; results=\"{more}\""
        return answer(ROWS[after : after + 3], {"Link": link})

    async with FeedServer(play=paged) as feed:
        assert await ids_of(feed, paging={"kind": "link"}) == IDS
    assert len(feed.requests) == 7  # a link that counts is checked


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


@pytest.mark.parametrize("digits", ["1724760000.1234569", "0.10", "1e400", "12345678901234567890"])
async def test_number_is_sent_in_the_body_with_its_own_digits(
    digits: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A float would go on before some items, or behind others."""
    texts: list[str] = []

    async def note(request: web.Request) -> Any:
        texts.append(await request.text())
        return json.loads(texts[-1])

    monkeypatch.setattr(web.Request, "json", note)
    first = f'{{"rows": {json.dumps(ROWS[:3])}, "next_cursor": [{digits}, "ä"]}}'
    paging = {"kind": "cursor", "location": "body"}
    async with FeedServer(Answer(first.encode()), answer(ROWS[3:], next_cursor=None)) as feed:
        assert await ids_of(feed, method="POST", body={"size": 3}, paging=paging) == IDS

    assert texts[1] == f'{{"size":3,"cursor":[{digits},"\\u00e4"]}}'


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


# Links that are not there.


def _chain(pages: list[list[Any]], ends: set[int], sign: str) -> Callable[[Asked], Answer]:
    """Return a feed whose pages lead on, but for those with the numbers of ``ends``."""

    def play(asked: Asked) -> Answer:
        number = int(asked.query.get("page", asked.query.get("cursor", 1)))
        if number > len(pages):
            return answer([]) if sign != "link" else Answer(b"{}", 404)
        is_end = number in ends
        more: dict[str, Any] = {"next": None if is_end else f"/feed.json?page={number + 1}"}
        headers = {} if is_end else {"Link": f'</feed.json?page={number + 1}>; rel="next"'}
        if sign == "cursor":
            more = {"cursor": None if is_end else number + 1}
        return answer(pages[number - 1], headers if sign == "link" else {}, **more)

    return play


CHAINS: dict[str, dict[str, Any]] = {
    "next": {"kind": "next"},
    "link": {"kind": "link"},
    "cursor": {"kind": "cursor", "path": "cursor", "parameter": "page"},
}


@pytest.mark.parametrize("sign", CHAINS)
async def test_number_of_a_page_that_is_also_an_id_is_a_number(sign: str) -> None:
    """The second page begins behind the id 2: what is behind it is sought by both."""
    rows = [row(number) for number in range(1, 8)]
    pages = [rows[0:2], rows[2:4], rows[4:6], rows[6:7]]
    async with FeedServer(play=_chain(pages, {2, 4}, sign)) as feed:
        assert "on the page behind it" in await refused(feed, paging=CHAINS[sign])


@pytest.mark.parametrize("sign", CHAINS)
async def test_page_that_never_links_to_the_next_one_is_no_end(sign: str) -> None:
    """A full page without a link is followed by the page behind it, which must have nothing."""
    pages = [ROWS[0:2], ROWS[2:4], ROWS[4:6], ROWS[6:7]]
    async with FeedServer(play=_chain(pages, {2, 4}, sign)) as feed:
        told = await refused(feed, paging=CHAINS[sign])

    assert "has no next link on a page, and has other records on the page behind it" in told


@pytest.mark.parametrize(
    "paging",
    [
        {"kind": "next", "path": "next.url"},
        {"kind": "cursor", "path": "next.cursor", "parameter": "after"},
    ],
)
@pytest.mark.parametrize("gap", [False, True])
async def test_page_that_never_leads_on_from_its_last_id_is_no_end(
    paging: dict[str, Any], gap: bool
) -> None:
    """Where each page was found by the last id before it, so is the page behind the last one."""

    def by_id(asked: Asked) -> Answer:
        after = asked.query.get("after")
        rows = [each for each in ROWS if after is None or each["id"] > int(after)][:2]
        last = rows[-1]["id"] if rows and not (gap and rows[-1]["id"] == 3) else None
        following = None if last is None else {"url": f"/feed.json?after={last}", "cursor": last}
        return answer(rows, next=following)

    async with FeedServer(play=by_id) as feed:
        if gap:
            assert "has other records on the page behind it" in await refused(feed, paging=paging)
        else:
            assert await ids_of(feed, paging=paging) == IDS


@pytest.mark.parametrize("place", ["page", "offset"])
async def test_empty_page_that_never_links_to_the_next_one_is_no_end(place: str) -> None:
    """A filter left nothing of it, and the page behind it has other records."""

    def holed(asked: Asked) -> Answer:
        number = int(asked.query.get(place, 0))
        first = number * (2 if place == "page" else 1)
        rows = [] if first == 4 else ROWS[first : first + 2]
        following = number + (1 if place == "page" else 2)
        return answer(rows, next=f"/feed.json?{place}={following}" if first != 4 else None)

    async with FeedServer(play=holed) as feed:
        assert "has other records on the page behind it" in await refused(
            feed, paging={"kind": "next"}
        )


@pytest.mark.parametrize("sign", CHAINS)
async def test_last_page_that_is_full_is_an_end_where_nothing_is_behind_it(sign: str) -> None:
    """Where the last page is short, the page behind it is not even asked for."""
    for pages, extra in (([ROWS[0:2], ROWS[2:4]], 1), ([ROWS[0:2], ROWS[2:3]], 0)):
        async with FeedServer(play=_chain(pages, {2}, sign)) as feed:
            [*_, last] = await pages_of(feed, paging=CHAINS[sign])
            asked = [each for each in feed.requests if "page=3" in str(each)]

        assert last.completeness == "last page"
        assert len(asked) == extra


async def test_list_that_grows_behind_its_last_page_is_read_again() -> None:
    """A record that arrived meanwhile is no contradiction."""
    asked_for: list[str] = []

    def growing(asked: Asked) -> Answer:
        number = int(asked.query.get("page", 1))
        asked_for.append(str(number))
        rows = ROWS if "3" in asked_for else ROWS[:4]
        here = rows[number * 2 - 2 : number * 2]
        link = f"/feed.json?page={number + 1}" if number * 2 < len(rows) else None
        return answer(here, next=link)

    async with FeedServer(play=growing) as feed:
        found = await ids_of(feed, paging={"kind": "next"})

    assert {*found} == {*IDS}


async def test_link_with_another_page_size_passes_nothing_over() -> None:
    """The second page by a larger size begins behind more than the first page had."""

    def paged(asked: Asked) -> Answer:
        number, size = int(asked.query.get("page", 1)), int(asked.query.get("size", default))
        rows = ROWS[(number - 1) * size : number * size]
        link = f"/feed.json?page={number + 1}&size=3" if number * size < len(ROWS) else None
        return answer(rows, next=link)

    default = 2
    async with FeedServer(play=paged) as feed:
        assert "passed over others to the next page" in await refused(feed, paging={"kind": "next"})
    default = 3
    async with FeedServer(play=paged) as feed:
        assert await ids_of(feed, paging={"kind": "next"}) == IDS


@pytest.mark.parametrize("kind", ["next", "link"])
@pytest.mark.parametrize(("count", "default"), [(7, 3), (4, 3), (7, 2), (4, 2), (7, 1)])
async def test_link_without_the_size_of_the_first_page_passes_nothing_over(
    kind: str, count: int, default: int
) -> None:
    """A second page of a larger size begins behind records that no page has."""

    def paged(asked: Asked) -> Answer:
        number, size = int(asked.query.get("page", 1)), int(asked.query.get("limit", default))
        to = f"/feed.json?page={number + 1}" if number * size < count else None
        link = {"Link": f'<{to}>; rel="next"'} if kind == "link" and to else {}
        rows = ROWS[:count][(number - 1) * size : number * size]
        more: dict[str, Any] = {"next": to} if kind == "next" else {}
        return answer(rows, link, **more)

    async with FeedServer(play=paged) as feed:
        fields = {"params": {"limit": 2}, "paging": {"kind": kind}}
        if default > 2:
            assert "Remove 'limit' from params" in await refused(feed, **fields)
        else:
            assert [*dict.fromkeys(await ids_of(feed, **fields))] == IDS[:count]


@pytest.mark.parametrize("cap", [2, 3])
async def test_link_to_a_later_offset_than_came_passes_nothing_over(cap: int) -> None:
    """A server that caps its pages may link as if it had delivered all that were requested."""

    def capped(asked: Asked) -> Answer:
        offset = int(asked.query.get("offset", 0))
        link = f"/feed.json?offset={offset + 3}" if offset + 3 < len(ROWS) else None
        return answer(ROWS[offset : offset + cap], next=link)

    async with FeedServer(play=capped) as feed:
        if cap < 3:
            told = await refused(feed, paging={"kind": "next"})
            assert "returned 2 items on its first page" in told
        else:
            assert await ids_of(feed, paging={"kind": "next"}) == IDS


async def test_links_of_a_list_of_which_a_filter_leaves_little_are_read() -> None:
    """Its first page is short of its size as well, and passes nothing over."""

    def filtered(asked: Asked) -> Answer:
        number, size = int(asked.query.get("page", 1)), int(asked.query.get("size", 3))
        rows = [each for each in ROWS[(number - 1) * size : number * size] if each["id"] % 2]
        link = f"/feed.json?page={number + 1}&size={size}" if number * size < len(ROWS) else None
        return answer(rows, next=link)

    async with FeedServer(play=filtered) as feed:
        assert await ids_of(feed, paging={"kind": "next"}) == ["1", "3", "5"]


@pytest.mark.parametrize("last", ["/feed.json?page=4", "/feed.json?page=4&a=b"])
async def test_link_to_the_last_page_binds(last: str) -> None:
    """A list that ends before the page that it calls its last one is no whole list."""
    pages = [ROWS[0:2], ROWS[2:3], ROWS[3:5], ROWS[5:7]]

    def linked(asked: Asked) -> Answer:
        number = int(asked.query.get("page", 1))
        links = {"last": last}
        if number != ends:
            links["next"] = f"/feed.json?page={number + 1}"
        return answer(pages[number - 1], links=links)

    paging = {"kind": "next", "path": "links.next"}
    ends = 2
    async with FeedServer(play=linked) as feed:
        assert "states 4 pages, and returned 2" in await refused(feed, paging=paging)
    ends = 4
    async with FeedServer(play=linked) as feed:
        assert await ids_of(feed, paging=paging) == IDS


# Cursors that are values of items, which several items share.


def _behind(rows: list[Any], size: int, *, inclusive: bool = False) -> Callable[[Asked], Answer]:
    """Return a feed in which pages go on behind the value of the last item, whatever its case."""

    def play(asked: Asked) -> Answer:
        after = asked.query.get("after", "").casefold()
        values = [str(each["rank"]).casefold() for each in rows]
        pairs = zip(values, rows, strict=True)
        return answer(
            [row for at, row in pairs if at > after or (inclusive and at == after)][:size]
        )

    return play


def _ranked(ranks: str) -> list[Any]:
    return [{**row(number), "rank": rank} for number, rank in enumerate(ranks)]


BY_RANK = {"kind": "cursor", "path": "rows.-1.rank", "parameter": "after"}


@pytest.mark.parametrize(
    ("ranks", "problem"),
    [
        ("abbbc", "passes over items that share the cursor of the last item of a page"),
        ("abBbc", "passes over items that share the cursor of the last item of a page"),
        ("aaaabc", "goes on behind a page whose 3 items all have one value at 'rank'"),
    ],
)
async def test_items_that_share_the_cursor_of_a_last_one_are_not_passed_over(
    ranks: str, problem: str
) -> None:
    """What is behind a page's last value is requested from the value before it on."""
    async with FeedServer(play=_behind(_ranked(ranks), 3)) as feed:
        assert problem in await refused(feed, paging=BY_RANK)
    async with FeedServer(play=_behind(_ranked(ranks), 5, inclusive=True)) as feed:
        assert len({*await ids_of(feed, paging=BY_RANK)}) == len(ranks)


@pytest.mark.parametrize(
    ("ranks", "path", "completeness"),
    [
        ("abcdefg", "rows.-1.rank", "last page"),
        ("abbcdef", "rows.-1.rank", "declared"),
        ("abcdefg", "rows.-1.at", "declared"),
    ],
)
async def test_cursor_that_is_not_unique_is_only_declared(
    ranks: str, path: str, completeness: str
) -> None:
    """Items that share it, and all times, may hide others between two pages."""

    def play(asked: Asked) -> Answer:
        after = asked.query.get("after", "")
        name = path.rpartition(".")[2]
        return answer([each for each in _ranked(ranks) if each[name] > after][:4])

    async with FeedServer(play=play) as feed:
        pages = await pages_of(feed, paging={**BY_RANK, "path": path})

    assert [each.record_id for page in pages for each in page.records] == IDS
    assert pages[-1].completeness == completeness


@pytest.mark.parametrize("has_end", [True, False])
@pytest.mark.parametrize("path", ["rows.-1.seen", "meta.next", "link"])
@pytest.mark.parametrize(
    ("form", "completeness"),
    [
        ("2024-01-01 00:00:0{}", "declared"),
        ("Mon, 01 Jan 2024 00:00:0{} GMT", "declared"),
        ("170406720{}", "declared"),
        ("id-170406720{}", "last page"),
    ],
)
async def test_time_of_any_field_of_an_item_is_no_unique_cursor(
    form: str, completeness: str, path: str, has_end: bool
) -> None:
    """Wherever it is stated: the second of two items at one time may be passed over.

    A last page that is requested again, as it does not say that it is, repeats no item.
    """
    rows = [{**each, "seen": form.format(number)} for number, each in enumerate(ROWS)]

    def play(asked: Asked) -> Answer:
        page = [each for each in rows if each["seen"] > asked.query.get("after", "")][:3]
        after = page[-1]["seen"] if len(page) == 3 else None
        link = None if after is None else str(URL("/feed.json").with_query(after=after))
        sign = {"link": link} if path == "link" else {"meta": {"next": after}}
        return answer(page, took=1, **(sign if after or has_end else {}))

    paging = {"kind": "cursor", "parameter": "after"} if path != "link" else {"kind": "next"}
    async with FeedServer(play=play) as feed:
        pages = await pages_of(feed, paging={**paging, "path": path})

    assert [each.record_id for page in pages for each in page.records] == IDS
    assert pages[-1].completeness == completeness


@pytest.mark.parametrize(
    ("form", "cursor", "completeness"),
    [
        ("2024-01-01T00:00:0{}Z", "170406720{}", "declared"),
        ("2024-01-01T00:00:0{}Z", "170406720{}000", "declared"),
        ("2024-01-01T00:00:0{}Z", "2024-01-01T01:00:0{}+01:00", "declared"),
        ("2024-01-01T00:00:0{}.250Z", "170406720{}", "declared"),
        ("170406720{}", "2024-01-01T00:00:0{}Z", "declared"),
        ("2024-01-01T00:00:0{}Z", "180406720{}", "last page"),
        ("2024-01-01T00:00:0{}Z", "170406720{}.5", "last page"),
    ],
)
@pytest.mark.parametrize("kind", ["cursor", "next"])
async def test_time_in_another_spelling_is_no_unique_cursor(
    form: str, cursor: str, completeness: str, kind: str
) -> None:
    """Unix time behind a date passes over the second of two items as the date itself does."""
    rows = [{**each, "at": form.format(number)} for number, each in enumerate(ROWS)]

    def play(asked: Asked) -> Answer:
        cursors = [cursor.format(number) for number in range(len(rows))]
        first = cursors.index(asked.query["after"]) + 1 if "after" in asked.query else 0
        last = first + 2
        after = cursors[last] if last < len(rows) - 1 else None
        link = None if after is None else str(URL("/feed.json").with_query(after=after))
        return answer(rows[first : last + 1], next=link if kind == "next" else after)

    paging = {"kind": kind, **({"path": "next", "parameter": "after"} if kind == "cursor" else {})}
    async with FeedServer(play=play) as feed:
        pages = await pages_of(feed, paging=paging)

    assert [each.record_id for page in pages for each in page.records] == IDS
    assert pages[-1].completeness == completeness


@pytest.mark.parametrize(
    ("limit", "sign", "headers", "completeness"),
    [
        (7, {}, {}, "declared"),
        (8, {}, {}, "last page"),
        (7, {"has_more": False}, {}, "last page"),
        (7, {"total": 7}, {}, "total"),
        (7, {"next": None, "next_cursor": None}, {"Link": '<?page=1>; rel="first"'}, "last page"),
    ],
)
@pytest.mark.parametrize("kind", ["next", "cursor", "link"])
async def test_only_page_of_just_the_size_asked_for_is_no_proof(
    kind: str,
    limit: int,
    sign: dict[str, Any],
    headers: dict[str, str],
    completeness: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A limit such as that of OData may cut the list and not its pages, unless the page says."""
    async with FeedServer(play=lambda _: answer(ROWS, headers, **sign)) as feed:
        with caplog.at_level(logging.WARNING):
            [page] = await pages_of(feed, params={"$top": limit}, paging={"kind": kind})

    assert page.completeness == completeness
    assert ("nothing that leads to a second page" in caplog.text) == (completeness == "declared")


@pytest.mark.parametrize("kind", ["next", "cursor", "link"])
async def test_last_page_that_is_full_is_an_end(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Behind a page with a link, one without it may well be of the size that was asked for."""

    def play(asked: Asked) -> Answer:
        if "cursor" in asked.query:
            return answer(ROWS[3:6], limit=3)
        link = "/feed.json?cursor=x"
        headers = {"Link": f"<{link}>; rel=next"} if kind == "link" else {}
        signs: dict[str, Any] = {"next": {"next": link}, "cursor": {"next_cursor": "x"}}
        return answer(ROWS[:3], headers, limit=3, **signs.get(kind, {}))

    async with FeedServer(play=play) as feed:
        with caplog.at_level(logging.WARNING):
            pages = await pages_of(feed, params={"limit": 3}, paging={"kind": kind})

    assert [each.record_id for page in pages for each in page.records] == IDS[:6]
    assert (pages[-1].completeness, caplog.text) == ("last page", "")


@pytest.mark.parametrize("path", ["rows.-1.id", "meta.next"])
async def test_id_that_could_be_a_time_is_unique(path: str) -> None:
    """As those of many services are, which count nanoseconds or days."""
    rows = [{**each, "id": 1704067200000000000 + number} for number, each in enumerate(ROWS)]

    def play(asked: Asked) -> Answer:
        page = [each for each in rows if each["id"] > int(asked.query.get("after", 0))][:3]
        return answer(page, meta={"next": page[-1]["id"] if len(page) == 3 else None})

    async with FeedServer(play=play) as feed:
        pages = await pages_of(feed, paging={"kind": "cursor", "path": path, "parameter": "after"})

    assert pages[-1].completeness == "last page"


async def test_cursor_that_begins_with_its_own_item_has_no_gap() -> None:
    """Each page repeats the last item before it, so items with one value follow."""
    async with FeedServer(play=_behind(_ranked("abbcdef"), 4, inclusive=True)) as feed:
        [*_, last] = await pages_of(feed, paging=BY_RANK)

    assert last.completeness == "last page"


async def test_last_item_without_a_cursor_is_no_end() -> None:
    """An API that puts those without a value first goes on behind none of them."""
    rows = [{**row(number), "rank": None if number < 4 else str(number)} for number in range(7)]

    async with FeedServer(play=lambda asked: answer(rows[:3])) as feed:
        told = await refused(feed, paging=BY_RANK)

    assert "has a last item without a value at 'rows.-1.rank'" in told


@pytest.mark.parametrize("parameter", ["cursor", "offset", "after", "starting_after", "before"])
@pytest.mark.parametrize("begin", [0, 10])  # from 1 on, the last id is the number of items, too
async def test_offset_is_one_whatever_it_is_called(parameter: str, begin: int) -> None:
    """A row that is deleted from a page before the next one is requested hides none behind it."""
    rows = [row(number) for number in range(begin, begin + 10)]
    gone: list[Any] = []

    def paged(asked: Asked) -> Answer:
        offset = int(asked.query.get(parameter, 0))
        if offset and not gone:
            gone.append(rows.pop(1))
        some = rows[offset : offset + 3]
        follows = str(offset + 3) if offset + 3 < len(rows) else None
        return answer(some, next=follows)

    paging = {"kind": "cursor", "path": "next", "parameter": parameter}
    async with FeedServer(play=paged) as feed:
        assert {*await ids_of(feed, paging=paging)} >= {str(each["id"]) for each in rows}


@pytest.mark.parametrize("size", [3, 50])
async def test_offset_that_is_an_id_is_checked(size: int) -> None:
    """The newest first: after a deletion the page behind begins with the id that is the offset."""
    rows = [row(number) for number in range(2 * size + 1, 0, -1)]
    gone: list[Any] = []

    def paged(asked: Asked) -> Answer:
        offset = int(asked.query.get("cursor", 0))
        if offset and not gone:
            gone.append(rows.pop(1))
        follows = str(offset + size) if offset + size < len(rows) else None
        return answer(rows[offset : offset + size], next=follows)

    paging = {"kind": "cursor", "path": "next", "parameter": "cursor"}
    async with FeedServer(play=paged) as feed:
        assert {*await ids_of(feed, paging=paging)} >= {str(each["id"]) for each in rows}


@pytest.mark.parametrize(
    ("parameter", "begin", "is_last", "has_end"),
    [("cursor", 0, False, True), ("after", 1, True, True), ("after", 1, True, False)],
)
async def test_cursor_that_is_an_id_among_all_ids_costs_nothing(
    parameter: str, begin: int, is_last: bool, has_end: bool
) -> None:
    """It is the number of items that came, too; between two such pages is no other id."""
    rows = [row(number) for number in range(begin, begin + 9)]

    def paged(asked: Asked) -> Answer:
        place = asked.query.get(parameter)
        some = [
            each for each in rows if place is None or int(each["id"]) > int(place) - (not is_last)
        ][:3]
        following = int(some[-1]["id"]) + (not is_last) if some else 0
        for each in some:  # which changes all the time
            each["at"] = at(len(feed.requests)).isoformat()
        is_end = has_end and following >= begin + 8
        return answer(some, next=None if is_end or not some else str(following))

    paging = {"kind": "cursor", "path": "next", "parameter": parameter}
    async with FeedServer(play=paged) as feed:
        assert await ids_of(feed, paging=paging) == [str(each["id"]) for each in rows]
        assert len({*feed.requests}) >= len(feed.requests) - 1


@pytest.mark.parametrize(
    "paging", [{"kind": "next"}, {"kind": "cursor", "path": "rows.-1.id", "parameter": "after"}]
)
async def test_id_that_is_the_number_of_items_is_no_offset(paging: dict[str, Any]) -> None:
    """Ids from 1 on, of rows that change all the time: no page is requested again."""
    rows = [row(number) for number in range(1, 15)]

    def paged(asked: Asked) -> Answer:
        after = int(asked.query.get("after", 0))
        some = [each for each in rows if int(each["id"]) > after][:5]
        for each in some:
            each["at"] = at(len(feed.requests)).isoformat()
        link = f"/feed.json?after={some[-1]['id']}" if len(some) == 5 else None
        return answer(some, next=link)

    async with FeedServer(play=paged) as feed:
        assert await ids_of(feed, paging=paging) == [str(each["id"]) for each in rows]
        assert len(feed.requests) <= 5


async def test_number_of_an_item_in_its_list_is_an_offset() -> None:
    """It is a value of the last item, and no id."""
    rows = [row(number) for number in range(10, 20)]
    gone: list[Any] = []

    def paged(asked: Asked) -> Answer:
        offset = int(asked.query.get("offset", 0))
        if offset and not gone:
            gone.append(rows.pop(1))
        some = [
            each | {"number": place}
            for place, each in enumerate(rows[offset : offset + 3], offset + 1)
        ]
        return answer(some)

    paging = {"kind": "cursor", "path": "rows.-1.number", "parameter": "offset"}
    async with FeedServer(play=paged) as feed:
        assert {*await ids_of(feed, paging=paging)} >= {str(each["id"]) for each in rows}


@pytest.mark.parametrize(
    ("header", "paging"),
    [
        ("NextPageUri", {"kind": "next", "path": "NextPageUri"}),
        ("nextpageuri", {"kind": "next", "path": "NextPageUri"}),
        ("x-ms-continuationtoken", {"kind": "cursor", "path": "x-ms-continuationtoken"}),
    ],
)
async def test_next_page_in_a_declared_header_is_followed(
    header: str, paging: dict[str, Any]
) -> None:
    """As that of Office 365 and of Azure DevOps; the last page has no such header."""

    def play(asked: Asked) -> Answer:
        first = int(asked.query.get("cursor", 0))
        following = f"/feed.json?cursor={first + 3}" if paging["kind"] == "next" else str(first + 3)
        headers = {header: following} if first + 3 < len(ROWS) else {}
        return Answer(json.dumps(ROWS[first : first + 3]).encode(), 200, headers)

    async with FeedServer(play=play) as feed:
        pages = await pages_of(feed, records="", paging=paging)

    assert [each.record_id for page in pages for each in page.records] == IDS
    assert pages[-1].completeness == "last page"


async def test_path_that_the_document_has_is_no_header() -> None:
    """A null at the path ends the list, whatever else has its name."""
    async with FeedServer(play=lambda _: answer(ROWS, {"next": "/other"}, next=None)) as feed:
        assert await ids_of(feed, paging={"kind": "next"}) == IDS
