"""The requests for pages next to those of a list, by the positions of those that were read.

- A page that links to no other one may lack its link: the page behind it is found by counting.
- A server that caps its pages, and skips as many items as were requested, leaves out those between
  two pages. Smaller pages show them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from yarl import URL

from ladon_storage.sources.rest.listing import ListPage
from ladon_storage.sources.rest.names import count_in, names, plain
from ladon_storage.sources.rest.page import PageRequest
from ladon_storage.sources.rest.pagination import (
    CursorPagination,
    Location,
    PageNumberPagination,
    Pagination,
)
from ladon_storage.sources.rest.vocabulary import OFFSETS, SIZES

_PAGES = names("page p pg pagenumber pageno pageindex pagenum")


@dataclass
class PageSizes:
    """The sizes of the pages of one reading.

    >>> sizes = PageSizes()
    >>> for size in (5, 5, 2): sizes.add(size)
    >>> sizes.end_as_lists_do
    True
    """

    first: int = 0
    last: int = 0
    filled: int = 0
    is_uneven: bool = False
    """Whether a page before the last one has another size than the first one."""

    def add(self, size: int) -> None:
        """Add the number of items of the next page that has any."""
        self.is_uneven |= self.filled > 0 and self.last != self.first
        self.first, self.last = self.first or size, size
        self.filled += 1

    @property
    def end_as_lists_do(self) -> bool:
        """Whether a short page comes after full ones, as at the end of a list."""
        return self.filled > 1 and not self.is_uneven and self.last < self.first


def page_behind(paging: Pagination, last: ListPage) -> PageRequest | None:
    """Return the request for the page behind one that was found by a counting link or cursor."""
    request, count = last.request, len(last.keys)
    if isinstance(paging, CursorPagination):
        values = request.query or request.body
        number = count_in(values.get(paging.parameter))
        step = _step(paging.parameter, count)
        if number is None or not step or request.is_once:
            return None
        return _with(request, paging.location, {paging.parameter: number + step})
    if request.url is None:
        return None
    found = _position(request.url)
    if found is None:
        return None
    name, number = found
    url = request.url.update_query({name: str(number + _step(name, count))})
    return replace(request, url=url)


def smaller_pages(
    paging: Pagination, last: ListPage, size: int, limits: Mapping[str, int]
) -> PageRequest | None:
    """Return the request for a page that smaller pages show, and larger ones may leave out.

    Args:
        paging: The pagination.
        last: The last page of the list.
        size: The number of items of its first page.
        limits: The parameters that request more items for each page.
    """
    if isinstance(paging, PageNumberPagination):
        if paging.size_parameter:
            limits = {paging.size_parameter: paging.page_size or 0}
        asked = {name: size for name, limit in limits.items() if limit > size}
        if not asked:
            return None
        location = paging.location if paging.size_parameter else "query"
        return _with(paging.numbered(paging.first_number + 1), location, asked)
    url = last.request.url
    found = _position(url) if url is not None else None
    if url is None or found is None or plain(found[0]) not in _PAGES:
        return None
    sizes = [count_in(value) or 0 for name, value in url.query.items() if plain(name) in SIZES]
    # The first page had fewer items than the linked ones: by their size, it is another one.
    is_larger = any(each > size for each in sizes)
    return replace(last.request, url=url.update_query({found[0]: "1"})) if is_larger else None


def _with(request: PageRequest, location: Location, values: Mapping[str, int]) -> PageRequest:
    if location == "query":
        return replace(request, query={**request.query, **values})
    return replace(request, body={**request.body, **values})


def _step(name: str, count: int) -> int:
    """Return how far a parameter moves from a page to the next one; 0: it is no position."""
    name = plain(name)
    return 1 if name in _PAGES else count if name in OFFSETS else 0


def _position(url: URL) -> tuple[str, int] | None:
    """Return the only parameter of an address that is a position."""
    found = [
        (name, number)
        for name, value in url.query.items()
        if _step(name, 1) and (number := count_in(value)) is not None
    ]
    return found[0] if len(found) == 1 else None
