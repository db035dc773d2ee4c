"""Lists that move while they are read: all that was there throughout is read, or the run fails."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from hashlib import sha256
from itertools import product
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from ladon_storage.errors import SourceError
from ladon_storage.sources.http.client import HttpResponse
from ladon_storage.sources.rest import fetching, reading
from ladon_storage.sources.rest.fetching import PageFetcher
from ladon_storage.sources.rest.listing import KEY_END, SeenRecords
from ladon_storage.sources.rest.page import PageRequest, PageResponse
from ladon_storage.sources.rest.pagination import (
    CursorPagination,
    NextLinkPagination,
    OffsetPagination,
    PageNumberPagination,
    Pagination,
)
from ladon_storage.sources.rest.reading import Learned
from ladon_storage.sources.rest.reading_by_offset import ReadingByOffset

Change = tuple[str, int]


class Listing:
    """A list of rows by pages, which changes between two requests as the script says.

    Args:
        paging: How it is asked for.
        rows: How many rows there are at first.
        size: How many a page has at most.
        script: What changes before the second request, the third, and so on.
        total: Whether it states how many there are.
    """

    source_id = "feed"
    records = "rows"
    has_settings = True

    def __init__(
        self,
        paging: Pagination,
        rows: int,
        size: int,
        script: Iterable[Collection[Change]] = (),
        *,
        total: bool = False,
    ) -> None:
        self.paging = paging
        self.rows = [(number, 0) for number in range(rows)]
        self.script = list(script)
        self.always: Collection[Change] = ()
        self.throughout = set(range(rows))
        self.asked: list[int] = []
        self._size = size
        self._total = total
        self._next = 1_000

    limits: ClassVar[dict[str, int]] = {}
    timestamps: ClassVar[tuple[str, ...]] = ()

    async def page(
        self, step: PageRequest, *, accept: Collection[int], may_be_empty: bool
    ) -> PageResponse:
        """Answer as it is at this moment."""
        if self.asked:
            for change in self.script.pop(0) if self.script else self.always:
                self.change(*change)
        query = {**(step.url or URL("http://a")).query, **step.query}
        if isinstance(self.paging, OffsetPagination):
            first, size = int(query["offset"]), min(int(query["limit"]), self._size)
        else:
            first, size = (int(query.get("page", 1)) - 1) * self._size, self._size
        self.asked.append(first)
        items = [{"id": number, "v": version} for number, version in self.rows[first:][:size]]
        document: dict[str, Any] = {"rows": items}
        if self._total:
            document["total"] = len(self.rows)
        if isinstance(self.paging, NextLinkPagination):
            more = first + size < len(self.rows)
            document["next"] = f"?page={first // self._size + 2}" if more else None
        if isinstance(self.paging, CursorPagination):
            more = first + size < len(self.rows)
            document["next_page"] = first // self._size + 2 if more else None
        url = step.url or URL("http://a/")
        return PageResponse(
            HttpResponse(url, 200, CIMultiDictProxy(CIMultiDict()), b"."), document, items
        )

    def change(self, kind: str, at: int) -> None:
        """Change the list: a row that is moved was updated, and so has another version."""
        rows = self.rows
        if kind in ("insert", "append", "put"):
            self._next += 1
            where = {"insert": 0, "append": len(rows), "put": at % (len(rows) + 1)}[kind]
            rows.insert(where, (self._next, 0))
        elif rows:
            at = 0 if kind in ("rotate", "shift") else at % len(rows)
            number, version = rows.pop(at)
            if kind in ("rotate", "to the end"):
                rows.append((number, version + 1))
            elif kind == "to the front":
                rows.insert(0, (number, version + 1))
            elif kind == "update":
                rows.insert(at, (number, version + 1))
        self.throughout &= {number for number, _ in rows}

    async def nothing(self, step: PageRequest) -> None:
        """No range is asked."""

    async def keys(self, items: Any) -> list[str]:
        """Tell rows by id and version."""
        return [f"{item['id']}{KEY_END}{item['v']}" for item in items]

    def is_round(self, count: int) -> bool:
        return False

    def refusal(self, got: PageResponse) -> SourceError:
        return SourceError("refused")

    def error(self, problem: str, step: str = "", *, transient: bool = False) -> SourceError:
        return SourceError(problem, transient=transient)


async def read(listing: Listing) -> list[int]:
    """Return the ids that were read, as often as they were."""
    walk = PageFetcher(listing)
    return [item["id"] async for got in walk.pages() for item in got.items]


def paging_of(kind: str, limit: int) -> Pagination:
    pagings: dict[str, Pagination] = {
        "cursor": CursorPagination(path="next_page", parameter="page"),
        "offset": OffsetPagination(page_size=limit),
        "page": PageNumberPagination(),
        "next": NextLinkPagination(),
    }
    return pagings[kind]


KINDS = ["offset", "page", "next", "cursor"]
CHANGES = ["rotate", "shift", "delete", "to the end", "to the front", "insert", "append", "put"]
CHANGES += ["update"]


@pytest.mark.parametrize("total", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("kind", KINDS)
async def test_change_between_any_two_requests_loses_nothing(
    kind: str, change: str, total: bool
) -> None:
    """One change at each moment of the reading, at each place: it is read on, and ends well."""
    for before in range(9):
        for place in range(9):
            script: list[list[Change]] = [[]] * before + [[(change, place)]]
            listing = Listing(paging_of(kind, 3), 9, 3, script, total=total)
            found = await read(listing)
            assert listing.throughout <= set(found), (before, place)


@pytest.mark.parametrize("kind", KINDS)
async def test_row_that_leaves_and_one_that_enters_hide_nothing(kind: str) -> None:
    """The total stays as it was, and the row that moved up is read."""
    for before in range(8):
        script: list[list[Change]] = [[]] * before + [[("shift", 0), ("append", 0)]]
        listing = Listing(paging_of(kind, 3), 9, 3, script, total=True)
        found = await read(listing)
        assert listing.throughout <= set(found), before


@pytest.mark.parametrize("kind", KINDS)
async def test_row_that_leaves_and_one_that_is_put_back_hide_nothing(kind: str) -> None:
    """Between any two or three requests, where what was asked again looks as it did."""
    for before, gap, place in product(range(10), range(3), range(0, 9, 2)):
        script: list[list[Change]] = [[] for _ in range(before + gap + 1)]
        script[before].append(("delete", place))
        script[before + gap].append(("put", place))
        listing = Listing(paging_of(kind, 3), 11, 3, script)
        assert listing.throughout <= set(await read(listing)), (before, gap, place)


script_of_one = st.sampled_from(CHANGES).flatmap(
    lambda kind: st.lists(
        st.lists(st.tuples(st.just(kind), st.integers(0, 20)), max_size=1), max_size=30
    )
)
script_of_any = st.lists(
    st.lists(st.tuples(st.sampled_from(CHANGES), st.integers(0, 20)), max_size=2), max_size=30
)
thorough = settings(
    max_examples=400, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)


@pytest.mark.slow
@given(
    st.sampled_from(KINDS),
    st.integers(0, 16),
    st.integers(1, 4),
    st.integers(1, 5),
    script_of_one,
    st.booleans(),
)
@thorough
async def test_list_that_moves_one_way_is_read_whole_or_not_at_all(
    kind: str, rows: int, size: int, limit: int, script: list[list[Change]], total: bool
) -> None:
    """Green with everything that was there throughout, or red; whatever the size of the pages."""
    listing = Listing(paging_of(kind, limit), rows, size, script, total=total)
    try:
        found = await read(listing)
    except SourceError:
        return
    assert listing.throughout <= set(found)


@pytest.mark.slow
@given(st.integers(0, 16), st.integers(2, 4), script_of_any, st.booleans())
@thorough
async def test_offsets_overlap_so_that_no_change_is_overlooked(
    rows: int, size: int, script: list[list[Change]], total: bool
) -> None:
    """What moved is seen in the page itself: changes of all kinds, several at once."""
    changes = [
        # A row that nobody has read, moved to where all was read, is to be seen in front alone.
        [(kind, 0 if kind == "put" else at) for kind, at in each]
        for each in script
    ]
    listing = Listing(OffsetPagination(page_size=size), rows, size, changes, total=total)
    try:
        found = await read(listing)
    except SourceError:
        return
    assert listing.throughout <= set(found)


@pytest.mark.parametrize("kind", KINDS)
async def test_list_that_stays_is_read_once(kind: str) -> None:
    """No row comes twice, in the order of the list; what the check costs is known."""
    listing = Listing(paging_of(kind, 10), 95, 10)

    assert await read(listing) == list(range(95))
    pages = 11 if kind == "offset" else 10
    assert len(listing.asked) <= (pages + 4 if kind == "offset" else 2 * pages + 4)


@pytest.mark.parametrize("kind", KINDS)
async def test_list_that_is_declared_stable_is_not_checked(kind: str) -> None:
    """One request for a page, and the run says that this was only declared."""
    paging = paging_of(kind, 10).model_copy(update={"stable": True})
    listing = Listing(paging, 95, 10)
    walk = PageFetcher(listing)

    found = [item["id"] async for got in walk.pages() for item in got.items]

    assert found == list(range(95))
    assert len(listing.asked) <= 11
    assert walk.completeness == "declared"


@pytest.mark.parametrize("kind", KINDS)
async def test_list_whose_front_goes_to_its_end_all_the_time_is_read(kind: str) -> None:
    """As one that is ordered by its updates: each request finds another list, and none is lost."""
    listing = Listing(paging_of(kind, 10), 95, 10, [[("rotate", 0)], []] * 30)

    assert set(await read(listing)) == set(range(95))


@pytest.mark.parametrize("kind", KINDS)
async def test_newest_first_list_that_grows_all_the_time_is_read(kind: str) -> None:
    """What comes in front pushes the others back; it is read at the end."""
    listing = Listing(paging_of(kind, 10), 95, 10, [[("insert", 0)], [], []] * 20)

    assert set(range(95)) <= set(await read(listing))


@pytest.mark.parametrize("kind", KINDS)
async def test_list_that_changes_faster_than_it_is_read_fails(kind: str) -> None:
    """A bounded number of readings, and then an error that may pass."""
    listing = Listing(paging_of(kind, 3), 30, 3)
    listing.always = [("shift", 0), ("append", 0)] * 5

    with pytest.raises(SourceError, match="changed in each of 5 readings") as caught:
        await read(listing)

    assert caught.value.transient
    assert len(listing.asked) < 10 * fetching.READINGS


async def test_offsets_that_are_rounded_to_pages_are_read_whole() -> None:
    """Where one from before answers the page before, each page is asked for again instead."""

    class Rounded(Listing):
        async def page(
            self, step: PageRequest, *, accept: Collection[int], may_be_empty: bool
        ) -> PageResponse:
            offset = int(step.query["offset"]) // 10 * 10
            rounded = PageRequest(query={**step.query, "offset": offset})
            return await super().page(rounded, accept=accept, may_be_empty=may_be_empty)

    for before in range(20):
        script: list[list[Change]] = [[]] * before + [[("shift", 0)]]
        listing = Rounded(OffsetPagination(page_size=10), 45, 10, script)
        assert listing.throughout <= set(await read(listing)), before


@pytest.mark.parametrize(
    "link",
    [
        "/page/{0}",
        "/page{0}.json",
        "/rows;start={1}?limit=3",
        "/{1}?limit=3",
        "?range={1}-99",
        "?token=3_{1}_7",
    ],
)
@pytest.mark.parametrize("before", [1, 2, 3])
async def test_position_in_a_path_or_a_range_shifts_as_one_in_a_parameter(
    link: str, before: int
) -> None:
    """A row that is removed in front of the next page takes no other one with it."""

    class Linked(Listing):
        async def page(
            self, step: PageRequest, *, accept: Collection[int], may_be_empty: bool
        ) -> PageResponse:
            number = self.numbers[str(step.url)] if step.url else 1
            got = await super().page(
                replace(step, url=URL(f"http://a/?page={number}")),
                accept=accept,
                may_be_empty=may_be_empty,
            )
            if got.document["next"]:
                target = URL("http://a/").join(URL(link.format(number + 1, number * 3)))
                self.numbers[str(target)] = number + 1
                got.document["next"] = str(target)
            url = step.url or URL("http://a/")
            return PageResponse(replace(got.answer, url=url), got.document, got.items)

        numbers: ClassVar[dict[str, int]] = {}

    listing = Linked(NextLinkPagination(), 14, 3, [[]] * (before - 1) + [[("shift", 0)]])
    assert listing.throughout <= set(await read(listing))


@pytest.mark.parametrize("apart", [1, 3])
async def test_list_with_cursors_is_not_asked_twice(apart: int) -> None:
    """A cursor that is an id stays where it is when rows move, also where ids count the rows."""

    class Keyset(Listing):
        async def page(
            self, step: PageRequest, *, accept: Collection[int], may_be_empty: bool
        ) -> PageResponse:
            first = int(step.query.get("cursor", 0))
            self.asked.append(first)
            last = min(first + 10 * apart, 95 * apart)
            items = [{"id": each, "v": 0} for each in range(first, last, apart)]
            following = first + 10 * apart if first < 90 * apart else None
            document = {"rows": items, "next_cursor": following}
            url = URL("http://a/")
            return PageResponse(
                HttpResponse(url, 200, CIMultiDictProxy(CIMultiDict()), b"."), document, items
            )

    listing = Keyset(CursorPagination(), 95, 10)

    assert await read(listing) == list(range(0, 95 * apart, apart))
    assert listing.asked == list(range(0, 95 * apart, 10 * apart))


@pytest.mark.parametrize("sized", ["first=10", "start=0&rows=10", "limit=10&page=1"])
async def test_link_with_a_number_that_stays_is_not_asked_twice(sized: str) -> None:
    """The size of a page in each link is no position, though it is as many as came."""

    class Keyset(Listing):
        async def page(
            self, step: PageRequest, *, accept: Collection[int], may_be_empty: bool
        ) -> PageResponse:
            url = step.url or URL(f"http://a/?{sized}")
            first = int(url.query.get("after", "k0").removeprefix("k")) // 7
            self.asked.append(first)
            items = [{"id": each, "v": 0} for each in range(first, min(first + 10, 45))]
            link = f"?{sized}&after=k{(first + 10) * 7}" if first < 40 else None
            document = {"rows": items, "next": link}
            answer = HttpResponse(url, 200, CIMultiDictProxy(CIMultiDict()), b".")
            return PageResponse(answer, document, items)

    listing = Keyset(NextLinkPagination(), 45, 10)

    assert await read(listing) == list(range(45))
    assert listing.asked == [0, 10, 20, 30, 40]


@pytest.mark.parametrize("what", ["has_repeated", "is_exact", "records", "versions"])
@pytest.mark.parametrize("most", [3, 100])
def test_ids_that_are_looked_up_late_are_those_looked_up_at_each_page(what: str, most: int) -> None:
    """An id that came twice is known whenever it is asked for, and so is one beyond the limit."""
    pages = [["a", "b"], ["c"], ["b", "d"], ["a"]]
    late, at_once = SeenRecords(most), SeenRecords(most)
    for number, ids in enumerate(pages):
        keys = [f"{each}{KEY_END}{number // 3}" for each in ids]
        late.add(keys, ids)
        at_once.add(keys)
        assert at_once.has("a\0")

    expected = {"has_repeated": True, "is_exact": most > 3, "records": min(4, most)}
    assert getattr(late, what) == getattr(at_once, what)
    assert getattr(late, what) == expected.get(what, min(4, most) + 1)


async def test_walk_holds_no_more_for_a_longer_list(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is known again at its front is bounded."""
    monkeypatch.setattr(reading, "KNOWN_KEYS", 50)
    paging = OffsetPagination(page_size=10)
    listing = Listing(paging, 500, 10)
    walk = ReadingByOffset(listing, Learned(10, overlaps=True, is_known=False), paging)

    assert len([got async for got in walk.pages()]) > 50
    assert len(walk._known) == 50
    assert json.dumps(listing.asked[-1]) == "0"


class Opaque(Listing):
    """A list whose cursor is an offset; by the hash of it, unless its tokens are others."""

    tokens: Sequence[str] = [sha256(str(offset).encode()).hexdigest() for offset in range(50)]

    async def page(
        self, step: PageRequest, *, accept: Collection[int], may_be_empty: bool
    ) -> PageResponse:
        """Answer as it is at this moment."""
        if self.asked:
            for change in self.script.pop(0) if self.script else self.always:
                self.change(*change)
        first = self.tokens.index(str(step.query.get("cursor", self.tokens[0])))
        self.asked.append(first)
        rows = self.rows[first : first + self._size]
        last = first + self._size
        following = self.tokens[last] if last < len(self.rows) else None
        items = [{"id": number, "v": version} for number, version in rows]
        document: dict[str, Any] = {"rows": items, "next_cursor": following}
        if self._total:
            document["total"] = len(self.rows)
        answer = HttpResponse(URL("http://a/"), 200, CIMultiDictProxy(CIMultiDict()), b".")
        return PageResponse(answer, document, items)


@pytest.mark.parametrize(
    ("change", "total"),
    [
        ("rotate", True),
        ("rotate", False),
        ("shift", True),
        ("to the front", True),
        ("to the front", False),
        ("insert", True),
    ],
)
@pytest.mark.parametrize("before", [1, 2, 3])
async def test_cursor_that_hides_its_offset_is_found_out_by_what_it_yields(
    change: str, total: bool, before: int
) -> None:
    """A record that comes twice, or a total that changes, shows that the list moved."""
    script: list[list[Change]] = [[] for _ in range(before - 1)] + [[(change, -1)]]
    listing = Opaque(CursorPagination(), 23, 5, script, total=total)

    assert listing.throughout <= set(await read(listing))
    assert len(listing.asked) == 10


def packed(text: str) -> str:
    return base64.urlsafe_b64encode(text.encode()).decode()


TOKENS: dict[str, Callable[[int], str]] = {
    "number": str,
    "text": lambda offset: f"t{offset}",
    "packed": lambda offset: packed(str(offset)),
    "unpadded": lambda offset: packed(f"offset={offset}").rstrip("="),
    "json": lambda offset: packed(json.dumps({"v": 2, "offset": offset})),
    "relay": lambda offset: packed(f"arrayconnection:{offset - 1}"),
    "page": lambda offset: packed(f"page:{offset // 5 + 1}:of"),
}


BESIDE: dict[str, Callable[[int], str]] = {
    "fields": lambda offset: packed(json.dumps({"o": offset, "t": 1724760000})),
    "list": lambda offset: packed(json.dumps([offset, 5])),
    "size": lambda offset: f"o:{offset}|l:5",
    "token": lambda offset: f"{offset}_{sha256(str(offset).encode()).hexdigest()}_5",
    "time": lambda offset: f"2024-01-05T10:{offset}:00Z,{offset},7",
    "page": lambda offset: packed(json.dumps({"p": offset // 5 + 1, "s": "7-5"})),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("token", BESIDE)
async def test_cursor_that_counts_beside_other_numbers_is_checked(token: str, change: str) -> None:
    """It counts if two of them do at one place, so the first page is checked last."""
    for before in range(12):
        script: list[list[Change]] = [[]] * before + [[(change, 0)]]
        listing = Opaque(CursorPagination(), 23, 5, script)
        listing.tokens = ["", *map(BESIDE[token], range(1, 50))]
        assert listing.throughout <= set(await read(listing)), before


@pytest.mark.parametrize(
    "token",
    [
        lambda offset: packed(json.dumps({"id": 4711 + offset * 3, "t": 1724760000 + offset})),
        lambda offset: f"2024-01-{offset:02d}T10:{offset:02d}:00Z_k",
        lambda offset: f"Fri, 05 Jan 2024 10:00:{offset} GMT",
        lambda offset: f"{sha256(str(offset).encode()).hexdigest()}_5_20",
        lambda offset: packed(json.dumps({"limit": 5, "after": f"k{offset}", "t": 17})),
        lambda offset: packed(sha256(str(offset).encode()).hexdigest()),
        lambda offset: f"dXNlcjpV{offset}TkZ{offset}UVDI{offset}",
    ],
)
async def test_cursor_of_ids_or_times_or_sizes_is_not_asked_twice(
    token: Callable[[int], str],
) -> None:
    """Numbers that are as great by chance, or next to letters, are no positions."""
    listing = Opaque(CursorPagination(), 23, 5)
    listing.tokens = ["", *map(token, range(1, 50))]
    listing.rows = [(number + 1, 0) for number, _ in listing.rows]

    assert await read(listing) == list(range(1, 24))
    assert listing.asked == [0, 5, 10, 15, 20]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("token", TOKENS)
async def test_opaque_cursor_that_counts_is_checked_as_an_offset(token: str, change: str) -> None:
    """One that is or holds the number of items or pages before it shifts when the list does."""
    for before in range(12):
        script: list[list[Change]] = [[]] * before + [[(change, 0)]]
        listing = Opaque(CursorPagination(), 23, 5, script)
        listing.tokens = ["", *map(TOKENS[token], range(1, 50))]
        assert listing.throughout <= set(await read(listing)), before


async def test_total_is_met_by_records_that_differ() -> None:
    """One that comes twice stands for another that never came."""

    class Doubled(Opaque):
        async def page(
            self, step: PageRequest, *, accept: Collection[int], may_be_empty: bool
        ) -> PageResponse:
            got = await super().page(step, accept=accept, may_be_empty=may_be_empty)
            items = [{"id": min(each["id"], 8), "v": 0} for each in got.items]
            return PageResponse(got.answer, {**got.document, "rows": items}, items)

    with pytest.raises(SourceError, match=r"states 10 items at .*, and returned 9 different ones"):
        await read(Doubled(CursorPagination(), 10, 3, total=True))


async def test_record_that_always_comes_twice_is_no_movement() -> None:
    """A list that is read the same once more is taken for what it is."""

    class Overlapping(Opaque):
        async def page(
            self, step: PageRequest, *, accept: Collection[int], may_be_empty: bool
        ) -> PageResponse:
            got = await super().page(step, accept=accept, may_be_empty=may_be_empty)
            items = [{"id": 0, "v": 0}, *got.items[1:]]
            return PageResponse(got.answer, {**got.document, "rows": items}, items)

    listing = Overlapping(CursorPagination(), 10, 5)

    assert set(await read(listing)) == {0, 1, 2, 3, 4, 6, 7, 8, 9}
    assert listing.asked == [0, 5, 0, 5]


async def test_total_of_more_records_than_are_told_apart_is_only_declared(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is held of the ids is bounded, and what is not known is not claimed."""
    monkeypatch.setattr(reading, "KNOWN_KEYS", 50)
    few, many = (
        PageFetcher(Listing(OffsetPagination(page_size=10), rows, 10, total=True))
        for rows in (50, 60)
    )
    for walk in (few, many):
        assert [got async for got in walk.pages()]

    assert (few.completeness, many.completeness) == ("total", "declared")
    assert many.total == 60
