"""The decision whether a list is complete: what was declared, and what contradicts it.

- A hint that was not declared never proves an end; it can only contradict one.
- A list with fewer records than its total is an error, never a shorter list. Each record counts
  once, since a repeated record may have taken the place of another.
- A total on an earlier page also holds for a last page without one. Of totals that differ, the
  greatest holds, until the list or its first page is read again and states the smaller one.
- "There are more" is withdrawn by a page that says the contrary. A page that says nothing does not
  withdraw it, except in a list without a next link: where there is no link, no page follows.
"""

from __future__ import annotations

from ladon_storage.collection.records import Completeness
from ladon_storage.sources.http.client import OK, HttpResponse
from ladon_storage.sources.json.items import value_at
from ladon_storage.sources.rest.links import (
    linked,
    next_in,
    number_in,
)
from ladon_storage.sources.rest.listing import ListPage, MovedError, PagedApi, SeenRecords
from ladon_storage.sources.rest.page_metadata import (
    flags,
    is_over,
    is_sign,
    misses_front,
    promise,
    promised_at,
)
from ladon_storage.sources.rest.pagination import (
    CursorPagination,
    LinkHeaderPagination,
    NextLinkPagination,
    OffsetPagination,
    PageNumberPagination,
    Pagination,
    SinglePage,
)
from ladon_storage.sources.rest.totals import (
    Total,
    declared_total,
    stated_pages,
    usual_total,
)


class Completion:
    """The evidence about the end of a list that one reading collects.

    Args:
        api: The source.
        tally: The records delivered in the reading.

    Attributes:
        filled: The number of pages with items.
        led_on: Whether a page led to another one.
    """

    def __init__(self, api: PagedApi, tally: SeenRecords) -> None:
        self._api = api
        self._paging = api.paging
        self._tally = tally
        self._most: Total | None = None
        self._latest: Total | None = None
        self._earliest: Total | None = None
        self._pages = self._latest_pages = 0
        self._is_numbered = True
        """Whether each page states its own number alone, which looks like that of all pages."""
        self._last: HttpResponse | None = None
        self._around: set[str] | None = None
        self._lost: list[str] = []
        self._counts_others = False
        """Whether the total is that of another list, such as of all times."""
        self._asked = 0
        self._largest = self._first = 0
        self._led: str | None = None
        self._flagged = self._flagged_before = self._has_shrunk = False
        self.filled = 0
        self.led_on = False

    def note(self, page: ListPage) -> None:
        """Add a page that is read, also one without an item."""
        self._asked += 1
        self._note_envelope(page)
        if not page.keys:
            return
        if not self.filled:
            self._check_front(page)
            self._first = page.response.count
        self.filled += 1
        self._largest = max(self._largest, page.response.count)
        self._last = page.response.answer
        self._heed(page)
        is_led = not isinstance(
            self._paging, NextLinkPagination | CursorPagination | LinkHeaderPagination
        )
        self._led = self._promise(page, heeds_next=is_led)
        self._flagged_before, self._flagged = self._flagged, self._says_more(page) is True

    def _check_front(self, page: ListPage) -> None:
        got = page.response
        place = None
        if not self._paging.only_declared:
            place = misses_front(got.answer, got.document, got.items, self._api.records)
        if place is not None:
            raise self._api.error(f"says at {place!r} that the first page is not its first")

    def _heed(self, page: ListPage) -> None:
        """Remember the totals that a page states."""
        stated, pages = self._stated(page), self._stated_pages(page)
        if stated is not None:
            self._earliest = self._earliest or stated
            self._latest = stated
            self._most = max(
                self._most or stated, stated, key=lambda total: (total.count, total.is_sure)
            )
        self._is_numbered &= pages in (0, self._asked)
        if pages:
            self._latest_pages = pages
            self._pages = max(self._pages, pages)

    def _stated(self, page: ListPage) -> Total | None:
        got, paging = page.response, self._paging
        if paging.total:
            total = declared_total(got.answer, got.document, paging.total)
            is_end = getattr(paging, "end", "") == "total"
            if total is None and is_end and (page.keys or self._most is None):
                raise self._api.error(f"says no total at {paging.total!r}")
            return total
        if paging.only_declared or self._counts_others:
            return None
        return usual_total(got.answer, got.document, got.items, self._api.records)

    def _stated_pages(self, page: ListPage) -> int:
        # The pages of an offset overlap, and may have another size than was requested.
        if (
            self._paging.only_declared
            or isinstance(self._paging, OffsetPagination)
            or self._counts_others
        ):
            return 0
        got, paging, last = page.response, self._paging, 0
        if isinstance(paging, PageNumberPagination):
            link = linked(got.answer.headers.getall("Link", []), "last")
            number = number_in(link, paging.parameter) if link is not None else None
            last = 0 if number is None else number - paging.first_number + 1
        return max(stated_pages(got.answer, got.document, got.items, self._api.records), last)

    def _came(self, position: int) -> int:
        """Return how many records came; each counts once where records can be distinguished."""
        if isinstance(self._paging, SinglePage) or not self._tally.is_exact:
            return position
        return self._tally.versions

    def is_reached(self, page: ListPage, position: int, limit: int) -> bool:
        """Return whether the declared total says that no page follows."""
        paging = self._paging
        if not isinstance(paging, PageNumberPagination | OffsetPagination) or paging.end != "total":
            return False
        total = self._most
        if total is None or not total.is_sure or total.count != position:
            return False
        # A number that counts the items of its page alone, or those until now, looks like a total
        # on a full page.
        is_full = paging.requested_size is None or page.response.count >= (
            limit or paging.requested_size
        )
        earliest = self._earliest
        is_certain = (
            isinstance(paging, OffsetPagination) and earliest and earliest.count > self._first
        )
        if page.keys and is_full and not is_certain:
            return False
        return self.promised(page, position) is None

    def is_proven(self, page: ListPage, position: int) -> bool:
        """Return whether a total proves that all records came."""
        total = self._most
        if total is None or total.count != self._came(position):
            return False
        asked = getattr(self._paging, "requested_size", None)
        return total.is_sure or (asked is not None and page.response.count > asked)

    @property
    def is_met(self) -> bool:
        """Whether all stated records came, so that a refusal of the next page is an end."""
        total, tally = self._most, self._tally
        if total is not None:
            return total.is_sure and tally.is_exact and total.count == tally.versions
        return 0 < self._pages == self.filled

    def is_over(self, page: ListPage, position: int) -> bool:
        """Return whether a page without an item is the end, whatever it links to."""
        if page.keys or self._paging.only_declared:
            return False
        got = page.response
        return (self._is_whole(position) and self.filled > 0) or is_over(
            got.answer, got.document, got.items, self._api.records
        )

    def _is_whole(self, position: int) -> bool:
        """Return whether exactly the stated total came, where the total counts no page's items."""
        total = self._most
        if total is None or not total.is_sure or total.count != self._came(position):
            return False
        return total.count > self._largest or self.filled == 1

    def promised(self, page: ListPage, position: int) -> str | None:
        """Return the sign on a page that more pages follow."""
        paging, got = self._paging, page.response
        heeds_next = True
        if isinstance(paging, NextLinkPagination | CursorPagination):
            if paging.more and promised_at(got.document, paging.more) is False:
                return None
            heeds_next = not (self.led_on or _has(got.document, paging.path))
        elif isinstance(paging, LinkHeaderPagination):
            heeds_next = not self.led_on
        is_whole = self._is_whole(position)
        # A total that is met by several pages counts none of them.
        heeds_next = heeds_next and not (is_whole and self.filled > 1)
        return self._promise(page, heeds_next=heeds_next, position=position if is_whole else None)

    def _promise(
        self, page: ListPage, *, heeds_next: bool, position: int | None = None
    ) -> str | None:
        got = page.response
        if self._paging.only_declared:
            return None
        return promise(
            got.answer,
            got.document,
            got.items,
            self._api.records,
            heeds_next=heeds_next,
            position=position,
            is_alone=isinstance(self._paging, SinglePage),
        )

    def contradiction(self, page: ListPage, position: int, *, has_moved: bool) -> str | None:
        """Return the contradiction of an end after ``page``, worded for an error.

        Raises:
            MovedError: A total contradicts it, perhaps because the list moved.
        """
        paging, came = self._paging, self._came(position)
        if not page.keys:
            latest = self._latest
            self._heed(page)
            if latest is not None and self._latest is not None and not self._latest.count:
                self._latest = latest  # after the end, many say 0
        total = self._most
        if total is not None and total.count > came:
            problem = (
                f"says at {total.place!r} that there are {total.count} items, and gives {came}"
            )
            if came < position:
                problem += " that differ"
            if has_moved or came < position or (self._earliest or total).count != total.count:
                raise MovedError(problem)
            if self._latest is not None and self._latest.count != total.count:
                raise MovedError(problem)
            return problem
        if total is not None and total.is_bound and total.count == came:
            return (
                f"says at {total.place!r} that there are more than {came} items, and gives {came}"
            )
        if paging.total and total is None and self.filled:
            return f"says no total at {paging.total!r}"
        if promised := self.promised(page, position):
            return f"{promised}, and the reading ends{_step(paging)}"
        came_pages = max(self._asked if self._has_cursor else self.filled, 1)
        if self._pages > came_pages and not self._is_numbered:
            problem = (
                f"says that there are {self._pages} pages, and gives {came_pages}{_step(paging)}"
            )
            if has_moved or self._latest_pages != self._pages:
                raise MovedError(problem)
            return problem
        return None

    def _says_more(self, page: ListPage) -> bool | None:
        """Return whether a page says that there are more; ``None``: it does not say."""
        got, more = page.response, getattr(self._paging, "more", "")
        if more and (told := promised_at(got.document, more)) is not None:
            return told
        if self._promise(page, heeds_next=False) is not None:
            return True
        return False if is_over(got.answer, got.document, got.items, self._api.records) else None

    def breaks_off(self, page: ListPage, position: int) -> str | None:
        """Return the sign that an end withdraws silently, worded for an error.

        A list without a next link may be the last of linked pages, with records or without. An
        answer is not the last page if it lacks the flag of more that the page before it had, if it
        has no list, or if it lacks everything that stood around each list before it.
        """
        got, paging = page.response, self._paging
        if not self.filled or paging.only_declared or self.is_proven(page, position):
            return None
        if got.document is None and got.answer.status not in OK:
            return None  # by a status that was declared
        is_led = self._has_cursor and not self.goes_by_items and not page.request.is_once
        if is_led and self.led_on and got.document is None:
            return "leads to a page that has no content, not even an empty list"
        led = self._led
        is_last = page.keys and self.lacks_sign(page, position)
        if self._lost and (is_last or (not page.keys and (led or (is_led and self.led_on)))):
            return f"has no {' nor '.join(map(repr, self._lost))} on its last page, as before"
        if not self.is_silent(page) or led is None:
            return None
        is_linked = self._last is not None and next_in(self._last.headers.getall("Link", []))
        if self._flagged or got.document is None or (is_linked and not self._has_cursor):
            return f"{led}, and then has no records, and nothing that says that it ends"
        return None

    def _note_envelope(self, page: ListPage) -> None:
        """Remember what stands around each list, and whether all of it is gone."""
        document, paging = page.response.document, self._paging
        if not isinstance(document, dict) or not self._api.records:
            return
        path = paging.path if isinstance(paging, NextLinkPagination | CursorPagination) else ""
        known = {each.partition(".")[0] for each in (self._api.records, path)}
        around = {key for key in document if key not in known and not is_sign(key)}
        self._lost = sorted(self._around or ()) if not (self._around or set()) & around else []
        if page.keys:
            self._around = around if self._around is None else self._around & around

    def is_silent(self, page: ListPage) -> bool:
        """Return whether an empty page says nothing by what could lead on or end a list."""
        got = page.response
        return not page.keys and not flags(got.answer, got.document, got.items, self._api.records)

    def lacks_sign(self, page: ListPage, position: int) -> bool:
        """Return whether a last page has no place for the sign that every earlier page had."""
        paging = self._paging
        if not (page.keys and self.led_on) or page.request.is_once or self.goes_by_items:
            return False
        if paging.only_declared or self.is_proven(page, position):
            return False
        if isinstance(paging, NextLinkPagination | CursorPagination):
            return not _has(page.response.document, paging.path) and self._says_more(page) is None
        return (
            isinstance(paging, LinkHeaderPagination) and "Link" not in page.response.answer.headers
        )

    @property
    def _has_cursor(self) -> bool:
        return isinstance(
            self._paging, NextLinkPagination | CursorPagination | LinkHeaderPagination
        )

    def is_short(self, position: int) -> bool:
        """Return whether fewer came than an undeclared total or number of pages states."""
        total, pages = self._most, max(self._asked if self._has_cursor else self.filled, 1)
        is_short = total is not None and total.count > self._came(position)
        return not self._paging.total and (is_short or self._pages > pages)

    def disregard(self, nothing: ListPage) -> None:
        """Ignore numbers that an empty page of another range states as well."""
        total, most = self._stated(nothing), self._most
        count = most.count if most is not None else None
        stated = total.count if total is not None else None
        if nothing.keys or (stated, self._stated_pages(nothing)) != (count, self._pages):
            return
        self._most = self._latest = self._earliest = None
        self._pages = self._latest_pages = 0
        self._counts_others = True

    def has_shrunk_to(self, first: ListPage) -> bool:
        """Return whether the first page, requested again, states the same as the last one."""
        has_shrunk = self._latest != self._most or self._latest_pages != self._pages
        is_same = self._stated(first) == self._latest
        if not (has_shrunk and is_same and self._stated_pages(first) == self._latest_pages):
            return False
        self._most = self._earliest = self._latest
        self._pages = self._latest_pages
        self._has_shrunk = True
        return True

    def may_have_skipped(self) -> str | None:
        """Return the sign that the list moved, unless it is the same when read again."""
        total, tally = self._most, self._tally
        if isinstance(self._paging, SinglePage) or not tally.has_repeated:
            return None
        if total is not None and total.is_sure and tally.is_exact:
            is_short = tally.records < total.count
            return "gives some records twice instead of others" if is_short else None
        is_declared = getattr(self._paging, "stable", False)
        if (
            is_declared
            or isinstance(self._paging, PageNumberPagination | OffsetPagination)
            or self.goes_by_items
        ):
            return None
        return "gives some records twice"

    @property
    def goes_by_items(self) -> bool:
        """Whether a cursor is a value of the last item, so that a list that moves skips nothing."""
        paging, records = self._paging, self._api.records
        return isinstance(paging, CursorPagination) and paging.path.startswith(
            f"{records}." if records else "-1"
        )

    @property
    def total(self) -> int | None:
        """The number of items that the API states, if it counts all of them."""
        total = self._most
        if total is None or not total.is_sure:
            return None
        is_of_page = self.filled > 1 and total.count <= self._largest
        return None if is_of_page else total.count

    def completeness(self, page: ListPage, position: int) -> Completeness:
        """Return the proof of the end after ``page``, if nothing contradicts it."""
        paging = self._paging
        if paging.only_declared or getattr(paging, "stable", False):
            return "declared"
        if isinstance(paging, SinglePage):
            if self.total is None and self._api.is_round(position):
                return "declared"
            return "whole document"
        is_met = self.total == self._came(position) or self._has_shrunk
        if self.total is not None and is_met:
            return "total" if self._tally.is_exact else "declared"
        if page.keys:  # some APIs omit a flag that is false
            is_left_out = self._flagged_before and self._says_more(page) is None
            return "declared" if is_left_out else "last page"
        return "declared" if self.is_silent(page) and self._led is not None else "last page"


def _step(paging: Pagination) -> str:
    if isinstance(paging, SinglePage):
        return " with one document, as no paging is declared"
    return f" by what is declared as {paging.kind!r}"


def _has(document: object, path: str) -> bool:
    """Return whether there is anything at a path, including null."""
    if isinstance(document, dict) and path in document:
        return True
    above, _, name = path.rpartition(".")
    there = value_at(document, above)
    return isinstance(there, dict) and name in there
