"""Whether the end of a list is one: what was declared, and what the answers say against it.

- What was not declared never makes an end; it can only contradict one.
- A total that a list falls short of is an error, and never a shorter list.
"""

from __future__ import annotations

from ladon_storage.collection.records import Completeness
from ladon_storage.collection.sources.evidence import (
    Total,
    declared_total,
    promise,
    stated_pages,
    truth,
    usual_total,
)
from ladon_storage.collection.sources.items import value_at
from ladon_storage.collection.sources.listing import Api, ListPage, MovedError
from ladon_storage.collection.sources.paging import (
    Cursor,
    LinkHeader,
    NextLink,
    NoPaging,
    Offsets,
    PageNumbers,
    Paging,
)


class Ending:
    """What one reading of a list learns about its end.

    Attributes:
        filled: How many pages had items.
        led_on: Whether a page led to another one.
    """

    def __init__(self, api: Api) -> None:
        self._api = api
        self._paging = api.paging
        self._latest: Total | None = None
        self.filled = 0
        self.led_on = False

    def note(self, page: ListPage) -> None:
        """Add a page that has items."""
        self.filled += 1
        self._latest = self._stated(page) or self._latest

    def _stated(self, page: ListPage) -> Total | None:
        got, paging = page.got, self._paging
        if paging.total:
            total = declared_total(got.answer, got.document, paging.total)
            if total is None and page.keys and getattr(paging, "end", "") == "total":
                raise self._api.error(f"says no total at {paging.total!r}")
            return total
        if paging.only_declared:
            return None
        return usual_total(got.answer, got.document, got.items, self._api.records)

    def is_reached(self, page: ListPage, position: int, limit: int) -> bool:
        """Tell whether the declared total says that no page follows."""
        paging = self._paging
        if not isinstance(paging, PageNumbers | Offsets) or paging.end != "total":
            return False
        total = self._stated(page)
        if total is None or not total.is_sure or total.count != position:
            return False
        # What counts the items of its page alone looks like a total on a first page that is full.
        is_full = paging.asked is None or page.got.count >= (limit or paging.asked)
        if page.keys and self.filled == 1 and is_full:
            return False
        return self._promised(page) is None

    def is_proven(self, page: ListPage, position: int) -> bool:
        """Tell whether a total says that all has come."""
        total = self._latest
        if total is None or total.count > position:
            return False
        asked = getattr(self._paging, "asked", None)
        return total.is_sure or (asked is not None and page.got.count > asked)

    def _promised(self, page: ListPage) -> str | None:
        """Return what says that more follows."""
        paging, got = self._paging, page.got
        if paging.only_declared:
            return None
        heeds_next = True
        if isinstance(paging, NextLink | Cursor):
            if paging.more and truth(value_at(got.document, paging.more)) is False:
                return None
            heeds_next = not (self.led_on or _has(got.document, paging.path))
        elif isinstance(paging, LinkHeader):
            heeds_next = not self.led_on
        return promise(
            got.answer, got.document, got.items, self._api.records, heeds_next=heeds_next
        )

    def contradiction(self, page: ListPage, position: int, *, has_moved: bool) -> str | None:
        """Return what contradicts an end behind ``page``, as an error puts it.

        Raises:
            MovedError: A total may do so because the list moved, or fell just before the end.
        """
        paging, got, last = self._paging, page.got, self._stated(page)
        total = self._latest = self._latest or last
        if total is not None and total.count > position:
            if has_moved or (self.filled and last and 0 < last.count <= position):
                raise MovedError
            return (
                f"says at {total.place!r} that there are {total.count} items, and gives {position}"
            )
        if problem := self._promised(page):
            return f"{problem}, and the reading ends{_step(paging)}"
        if not paging.only_declared and isinstance(paging, NoPaging | PageNumbers):
            pages = stated_pages(got.answer, got.document, got.items, self._api.records)
            if pages > max(self.filled, 1):
                return f"says that there are {pages} pages, and gives {self.filled}{_step(paging)}"
        return None

    @property
    def total(self) -> int | None:
        """How many items the API states, where it counts all of them."""
        return self._latest.count if self._latest is not None and self._latest.is_sure else None

    def completeness(self, position: int) -> Completeness:
        """Return how an end is known that nothing contradicts."""
        paging = self._paging
        if paging.only_declared or getattr(paging, "stable", False):
            return "declared"
        if isinstance(paging, NoPaging):
            if self.total is None and self._api.is_round(position):
                return "declared"
            return "whole document"
        return "total" if self.total is not None and self.total <= position else "last page"


def _step(paging: Paging) -> str:
    if isinstance(paging, NoPaging):
        return " with one document, as no paging is declared"
    return f" by what is declared as {paging.kind!r}"


def _has(document: object, path: str) -> bool:
    """Tell whether there is anything at a path, be it null."""
    if isinstance(document, dict) and path in document:
        return True
    above, _, name = path.rpartition(".")
    there = value_at(document, above)
    return isinstance(there, dict) and name in there
