"""The totals and the numbers of pages that an API states during one reading of a list.

- Each record counts once, since a repeated record may have taken the place of another.
- A total on an earlier page also holds for a last page without one. Of totals that differ, the
  greatest holds, until the first page is read again and states the smaller one.
"""

from __future__ import annotations

from ladon_storage.sources.rest.listing import ListPage, MovedError, PagedApi, SeenRecords
from ladon_storage.sources.rest.pagination import (
    OffsetPagination,
    PageNumberPagination,
    Pagination,
    SinglePage,
    leads_on,
)
from ladon_storage.sources.rest.totals import (
    Total,
    declared_total,
    last_number,
    stated_pages,
    total_aside,
    usual_total,
)


class StatedNumbers:
    """The numbers that an API states, beside those of the pages and records that came.

    Args:
        api: The source.
        tally: The records delivered in the reading.

    Attributes:
        filled: The number of pages with items.
        has_shrunk: Whether the first page, read again, states the smaller total of the last one.
    """

    def __init__(self, api: PagedApi, tally: SeenRecords) -> None:
        self._api = api
        self._paging = api.paging
        self._tally = tally
        self._most: Total | None = None
        self._latest: Total | None = None
        self._earliest: Total | None = None
        self._aside: Total | None = None
        """The greatest total in a place that is not known."""
        self._heeds_asides = True
        self._pages = self._latest_pages = 0
        self._is_numbered = True
        """Whether each page states its own number alone, which looks like that of all pages."""
        self._counts_others = False
        """Whether the total is that of another list, such as of all times."""
        self._asked = self._asked_when_filled = 0
        self._largest = self._first = 0
        self.filled = 0
        self.has_shrunk = False

    def note(self, page: ListPage) -> None:
        """Add a page that is read, also one without an item."""
        self._asked += 1
        if not page.keys:
            return
        if not self.filled:
            self._first = page.response.count
        self.filled += 1
        self._asked_when_filled = self._asked
        self._largest = max(self._largest, page.response.count)
        self._heed(page)

    def note_last(self, page: ListPage) -> None:
        """Add the numbers of the page that ends the list, if it is empty."""
        if page.keys:
            return
        latest = self._latest
        self._heed(page)
        if latest is not None and self._latest is not None and not self._latest.count:
            self._latest = latest  # after the end, many say 0

    def _heed(self, page: ListPage) -> None:
        """Remember the totals that a page states."""
        stated, pages = self._stated(page), self._stated_pages(page)
        if stated is not None:
            self._earliest = self._earliest or stated
            self._latest = stated
            self._most = max(
                self._most or stated, stated, key=lambda total: (total.count, total.is_sure)
            )
        aside = self._stated_aside(page)
        if aside is not None and (self._aside is None or aside.count > self._aside.count):
            self._aside = aside
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
                raise self._api.error(f"states no total at {paging.total!r}")
            return total
        if paging.only_declared or self._counts_others:
            return None
        return usual_total(got.answer, got.document, got.items, self._api.records)

    def _stated_aside(self, page: ListPage) -> Total | None:
        is_settled = self._paging.total or self._paging.only_declared
        if is_settled or not self._heeds_asides or not self._api.has_settings:
            return None
        return total_aside(page.response.document, page.response.items, self._api.records)

    def _stated_pages(self, page: ListPage) -> int:
        # The pages of an offset overlap, and may have another size than was requested.
        if (
            self._paging.only_declared
            or isinstance(self._paging, OffsetPagination)
            or self._counts_others
        ):
            return 0
        got, paging = page.response, self._paging
        told = (got.answer, got.document, got.items, self._api.records)
        last = last_number(*told)
        if last and isinstance(paging, PageNumberPagination):
            last -= paging.first_number - 1
        return max(stated_pages(*told), last)

    def came(self, position: int) -> int:
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
        return not (page.keys and is_full) or bool(is_certain)

    def is_proven(self, page: ListPage, position: int) -> bool:
        """Return whether a total proves that all records came."""
        total = self._most
        if total is None or total.count != self.came(position):
            return False
        asked = getattr(self._paging, "requested_size", None)
        return total.is_sure or (asked is not None and page.response.count > asked)

    @property
    def is_met(self) -> bool:
        """Whether all stated records came, so that a refusal of the next page is an end."""
        total, tally = self._most, self._tally
        if total is not None:
            return total.is_sure and tally.is_exact and total.count == tally.versions
        return 0 < self._pages == self._asked_when_filled

    def is_whole(self, position: int) -> bool:
        """Return whether exactly the stated total came, where the total counts no page's items."""
        total = self._most
        if total is None or not total.is_sure or total.count != self.came(position):
            return False
        return total.count > self._largest or self.filled == 1

    def shortage(self, position: int, *, has_moved: bool) -> str | None:
        """Return how a total contradicts the end, worded for an error.

        Raises:
            MovedError: It does, perhaps because the list moved.
        """
        total, came = self._most, self.came(position)
        if total is None:
            is_lacking = self._paging.total and self.filled
            return f"states no total at {self._paging.total!r}" if is_lacking else None
        if total.count > came:
            problem = f"states {total.count} items at {total.place!r}, and returned {came}"
            if came < position:
                problem += " different ones"
            if has_moved or came < position or (self._earliest or total).count != total.count:
                raise MovedError(problem)
            if self._latest is not None and self._latest.count != total.count:
                raise MovedError(problem)
            return problem
        if total.is_bound and total.count == came:
            return f"states more than {came} items at {total.place!r}, and returned {came}"
        return None

    def missing_pages(self, *, has_moved: bool) -> str | None:
        """Return how a number of pages contradicts the end, worded for an error.

        Raises:
            MovedError: It does, perhaps because the list moved.
        """
        came = self._came_pages
        if self._pages <= came or self._is_numbered:
            return None
        problem = f"states {self._pages} pages, and returned {came}"
        problem += by_declaration(self._paging)
        if has_moved or self._latest_pages != self._pages:
            raise MovedError(problem)
        return problem

    @property
    def has_more_pages(self) -> bool:
        """Whether more pages are stated than were requested."""
        return self._pages > self._asked and not self._is_numbered

    @property
    def _came_pages(self) -> int:
        return max(self._asked if leads_on(self._paging) else self._asked_when_filled, 1)

    def is_short(self, position: int) -> bool:
        """Return whether fewer came than an undeclared total or number of pages may state."""
        total = self._most
        is_short = total is not None and total.count > self.came(position)
        is_short = is_short or self.hint(position) is not None
        return not self._paging.total and (is_short or self._pages > self._came_pages)

    def disregard(self, nothing: ListPage) -> None:
        """Ignore numbers that an empty page of another range states as well."""
        aside = None if nothing.keys else self._stated_aside(nothing)
        if aside is not None and aside.count and self._aside is not None:
            # The end, when it is noted, would state it again.
            self._heeds_asides &= aside.place != self._aside.place
            self._aside = self._aside if self._heeds_asides else None
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
        self.has_shrunk = True
        return True

    def hint(self, position: int) -> str | None:
        """Return a total above what came that may count something else, worded for a warning."""
        aside = self._aside
        if aside is None or aside.count <= self.came(position):
            return None
        return f"states {aside.count} at {aside.place!r}, which may be a total"

    @property
    def sure_count(self) -> int | None:
        """The greatest total, if it says that it counts items of all pages."""
        return self._most.count if self._most is not None and self._most.is_sure else None

    @property
    def total(self) -> int | None:
        """The number of items that the API states, if it counts all of them."""
        count = self.sure_count
        is_of_page = count is not None and self.filled > 1 and count <= self._largest
        return None if is_of_page else count


def by_declaration(paging: Pagination) -> str:
    """Return the part of a sentence that names the declared pagination."""
    if isinstance(paging, SinglePage):
        return " with one document, as no paging is declared"
    return f" with the declared paging {paging.kind!r}"
