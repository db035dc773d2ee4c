"""The requests for pages next to those of a list, by the positions of those that were read.

- A page that links to no other one may lack its link: the page behind it is found by counting.
- A server that caps its pages, and skips as many items as were requested, leaves out those between
  two pages. Smaller pages show them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from ladon_storage.sources.http.urls import with_parameters
from ladon_storage.sources.rest.listing import ListPage
from ladon_storage.sources.rest.names import count_in, names, plain
from ladon_storage.sources.rest.page import PageRequest
from ladon_storage.sources.rest.pagination import (
    CursorPagination,
    Location,
    OffsetPagination,
    PageNumberPagination,
    Pagination,
)
from ladon_storage.sources.rest.vocabulary import OFFSETS, SIZES

_PAGES = names("page p pg pagenumber pageno pageindex pagenum")


@dataclass
class PageTrail:
    """The sizes of the pages of one reading, and the parameter that leads on by ids.

    >>> trail = PageTrail(first=5, last=2, filled=3)
    >>> trail.ends_as_lists_do
    True
    """

    first: int = 0
    last: int = 0
    filled: int = 0
    is_uneven: bool = False
    """Whether a page before the last one has another size than the first one."""
    id_parameter: str | None = None
    """The parameter that has the id of the last item before each page."""
    largest: int = 0
    short: tuple[PageRequest, int] | None = None
    """The first page with fewer items than one before it, if it is not the last, and how many."""
    passed_over: PageRequest | None = None
    """The request for a page whose number is between those of two linked pages."""
    _latest: PageRequest | None = None
    _last_id: str = ""
    _number: int = 1

    def add(self, page: ListPage) -> None:
        """Add the next page that has items."""
        self._add_number(page.request)
        size = page.response.count
        self.is_uneven |= self.filled > 0 and self.last != self.first
        if self.short is None and self._latest is not None and self.last < self.largest:
            self.short = self._latest, self.last
        self.first, self.last = self.first or size, size
        self.largest, self._latest = max(self.largest, size), page.request
        if self.filled:
            by_id = {name for name, value in values_of(page.request) if value == self._last_id}
            known = self.id_parameter if self.filled > 1 else min(by_id, default=None)
            self.id_parameter = known if known in by_id else None
        self.filled += 1
        self._last_id = page.last_id

    def _add_number(self, request: PageRequest) -> None:
        numbers = [
            (name, number)
            for name, value in (values_of(request) if request.url is not None else ())
            if plain(name) in _PAGES and (number := count_in(value)) is not None
        ]
        if len(numbers) != 1 or request.url is None:
            return
        [(name, number)] = numbers
        if number > self._number + 1 and self.passed_over is None:
            url = with_parameters(request.url, {name: str(number - 1)})
            self.passed_over = replace(request, url=url)
        self._number = number

    @property
    def ends_as_lists_do(self) -> bool:
        """Whether a short page comes after full ones, as at the end of a list."""
        return self.filled > 1 and not self.is_uneven and self.last < self.first


def pages_behind(paging: Pagination, last: ListPage, trail: PageTrail) -> list[PageRequest]:
    """Return the requests that find the page behind one without a next link or cursor.

    What counts the pages so far may as well be the last id of each.
    """
    request = last.request
    if request.is_once:
        return []
    steps = []
    found = _position(paging, request, len(last.keys) or trail.first)
    if found is not None:
        name, number, step = found
        steps.append(_replaced(paging, request, name, str(number + step)))
    if trail.id_parameter is not None and last.keys:
        steps.append(_replaced(paging, request, trail.id_parameter, last.last_id))
    return steps


def values_of(request: PageRequest) -> list[tuple[str, str]]:
    """Return the parameters by which a page was found, as texts."""
    if request.url is not None:
        return list(request.url.query.items())
    return [(name, str(value)) for name, value in {**request.query, **request.body}.items()]


def _replaced(paging: Pagination, request: PageRequest, name: str, value: str) -> PageRequest:
    """Return a request with another value of a parameter."""
    if request.url is not None:
        return replace(request, url=with_parameters(request.url, {name: value}))
    is_number = isinstance({**request.query, **request.body}[name], int)
    sent = int(value) if is_number and value.isdecimal() else value
    return _with(request, getattr(paging, "location", "query"), {name: sent})


def behind_short(
    paging: Pagination, trail: PageTrail, limits: Mapping[str, int]
) -> PageRequest | None:
    """Return the request for the item behind a short page, as the largest page has them.

    Args:
        paging: The pagination.
        trail: The sizes of the pages, and the short one.
        limits: The parameters that limit the items of each page.
    """
    if trail.short is None or isinstance(paging, OffsetPagination):
        return None  # an offset is that of the items that came, whatever was requested
    request, count = trail.short
    found = _position(paging, request, 0)
    if found is None or request.is_once:
        return None
    name, number, step = found
    if not step:
        return _replaced(paging, request, name, str(number + count))
    index, sent = request.index, dict(values_of(request))
    sizes = [each for each in sent if plain(each) in SIZES] if request.url else list(limits)
    if isinstance(paging, PageNumberPagination):
        index = number - paging.first_number
        sizes = [paging.size_parameter] if paging.size_parameter else sizes
    if len(sizes) != 1:
        return None
    # Of pages of one item, the number counts items.
    request = _replaced(paging, request, name, str(number - index + index * trail.largest + count))
    if sizes[0] in sent:
        return _replaced(paging, request, sizes[0], "1")
    return _with(request, "query", {sizes[0]: 1})


def without_size(
    paging: Pagination, last: ListPage, trail: PageTrail, limits: Mapping[str, int]
) -> PageRequest | None:
    """Return the request for the first page as links have it that do not have its size.

    If the pages behind the first one are as large as it, so is the size that the API uses then.

    Args:
        paging: The pagination.
        last: The last page of the list.
        trail: The sizes of its pages.
        limits: The parameters that limit the items of the first page.
    """
    url = last.request.url
    found = _position(paging, last.request, 0)
    if url is None or found is None or not limits:
        return None
    if any(name in limits or plain(name) in SIZES for name in url.query):
        return None
    name, number, step = found
    is_known = trail.filled > 2 and trail.largest == trail.first
    if not step or is_known or number < last.request.index:
        return None
    return _replaced(paging, last.request, name, str(number - last.request.index))


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
    found = _position(paging, last.request, 0)
    if url is None or found is None:
        return None
    name, number, _ = found
    if plain(name) in OFFSETS:
        # The page behind as many items as the first one had is on the way there.
        return _replaced(paging, last.request, name, str(size)) if number > size else None
    sizes = [count_in(value) or 0 for name, value in url.query.items() if plain(name) in SIZES]
    # The first page had fewer items than the linked ones: by their size, it is another one.
    is_larger = any(each > size for each in sizes)
    return _replaced(paging, last.request, name, "1") if is_larger else None


def _with(request: PageRequest, location: Location, values: Mapping[str, int | str]) -> PageRequest:
    if location == "query":
        return replace(request, query={**request.query, **values})
    return replace(request, body={**request.body, **values})


def _position(paging: Pagination, request: PageRequest, count: int) -> tuple[str, int, int] | None:
    """Return the only parameter of a request that is a position, its value, and its next step.

    A cursor is one by its name, or because it is as great as the number of items or pages before.
    """
    found = []
    for name, value in values_of(request):
        if (number := count_in(value)) is None:
            continue
        if plain(name) in _PAGES:
            found.append((name, number, 1))
        elif plain(name) in OFFSETS:
            found.append((name, number, count))
        elif isinstance(paging, CursorPagination) and number in (request.index, request.index + 1):
            found.append((name, number, 1))
        elif isinstance(paging, CursorPagination) and request.is_counted:
            found.append((name, number, count))
    return found[0] if len(found) == 1 else None
