"""Records that are on no page of a list: in front of it, behind it, or between two pages.

- Only records that did not come are evidence, and a list that moved meanwhile is read again.
- Nothing is requested where a total or the shape of the pages proves the end.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from ladon_storage.sources.http.client import OK
from ladon_storage.sources.rest.beside import Beside
from ladon_storage.sources.rest.completion import Completion
from ladon_storage.sources.rest.listing import ListPage, MovedError, PagedApi
from ladon_storage.sources.rest.page import PageRequest
from ladon_storage.sources.rest.pagination import (
    OffsetPagination,
    PageNumberPagination,
    leads_on,
)
from ladon_storage.sources.rest.positions import (
    PageTrail,
    behind_short,
    pages_behind,
    smaller_pages,
    without_size,
)

BEHIND_PAGES = 3
"""The limit on pages that are requested behind an empty one."""

Problem = tuple[str] | tuple[str, str]
"""The words of an error: the problem, and the next step if it is a special one."""


class Unread:
    """The search for records that no page of one reading has.

    Args:
        api: The source.
        end: The evidence about the end of the list.
        trail: The sizes of its pages, and the way from one to the next.
        beside: The requests that are no part of the list.
        get: The request for a page of the list.
    """

    def __init__(
        self,
        api: PagedApi,
        end: Completion,
        trail: PageTrail,
        beside: Beside,
        get: Callable[[PageRequest], Awaitable[ListPage]],
    ) -> None:
        self._api = api
        self._paging = api.paging
        self._end = end
        self._trail = trail
        self._beside = beside
        self._get = get

    async def beside(self, first: ListPage, last: ListPage) -> Problem | None:
        """Return the sign that a page in front of or behind numbered pages has other records.

        Raises:
            MovedError: The list moved meanwhile.
        """
        paging = self._paging
        if isinstance(paging, OffsetPagination):
            return await self._behind_offsets(paging, last)
        if not isinstance(paging, PageNumberPagination):
            return None
        behind = 0
        if self._is_doubtful(last):
            behind = self._doubtful_pages(paging)
        number = await self._beside.page_of_others(paging, last, behind=behind)
        if number is None:
            return None
        is_before = number < paging.first_number
        await self._check_unmoved(first if is_before else last)
        if is_before:
            begin = paging.first_number
            return (
                f"has records on page {number} that are on no page from the first one, {begin}, on",
            )
        return (f"has records on page {number}, and none on the page before it",)

    async def _behind_offsets(self, paging: OffsetPagination, last: ListPage) -> Problem | None:
        """Return the sign that there are records behind an end without any."""
        pages = self._doubtful_pages(paging)
        if not self._is_doubtful(last):
            return None
        # A server may answer with its last page there, of which nothing is known any more.
        if pages == 1 and not self._beside.knows_all:
            return None
        size = last.request.size or paging.page_size
        for distance in range(1, pages + 1):
            offset = last.request.number + distance * size
            if await self._beside.has_others(paging.skipping(offset, size)):
                if (await self._get(last.request)).keys:
                    raise MovedError
                return (f"has records from offset {offset} on, and none at {last.request.number}",)
        return None

    def _is_doubtful(self, last: ListPage) -> bool:
        """Return whether a list ends on nothing that says that it does."""
        is_refused = self._end.is_refused(last)
        return is_refused or (last.response.answer.status in OK and self._end.is_silent(last))

    def _doubtful_pages(self, paging: PageNumberPagination | OffsetPagination) -> int:
        """Return how many pages behind an empty one are requested.

        A short page behind full ones ends a list. If its pages have any size, or the last one is
        full, they may be what a filter left of them, and it may leave nothing of some.
        """
        trail = self._trail
        if trail.filled > 1:
            return 1 if trail.ends_as_lists_do else BEHIND_PAGES
        return 1 if trail.first < (paging.page_size or 0) else BEHIND_PAGES - 1

    async def between(self, first: ListPage, last: ListPage) -> Problem | None:
        """Return the sign that a page begins behind more items than the page before it had.

        Raises:
            MovedError: The list moved meanwhile.
        """
        passed_over = self._trail.passed_over
        if passed_over is not None and await self._beside.has_others(passed_over):
            await self._check_unmoved(first, last)
            return (
                "links from a page to one behind the next, and passes over others between them",
            )
        size = self._trail.first
        if not size:
            return None
        step = smaller_pages(self._paging, last, size, self._api.limits)
        if step is None or not await self._beside.has_others(step):
            missed = await self._without_size(first, last)
            return missed or await self._behind_short(first, last)
        await self._check_unmoved(first, last)
        return (
            f"returned {size} items on its first page, fewer than requested for a page, and passed "
            "over others to the next page",
            f"request {size} items for a page",
        )

    async def _without_size(self, first: ListPage, last: ListPage) -> Problem | None:
        """Return the sign that links lack the size of the first page, and pass over others."""
        step = without_size(self._paging, last, self._trail, self._api.limits)
        if step is None or not await self._beside.has_others(step):
            return None
        await self._check_unmoved(first, last)
        names = " and ".join(map(repr, self._api.limits))
        return (
            f"links to pages without {names}, whose size is not that of the first page, and passes "
            "over others between them",
            f"remove {names} from params, so that all pages have one size",
        )

    async def _behind_short(self, first: ListPage, last: ListPage) -> Problem | None:
        """Return the sign that a page in the middle is short, and passes over others."""
        step = behind_short(self._paging, self._trail, self._api.limits)
        if step is None or self._trail.short is None or not self._beside.knows_all:
            return None  # an item that came may be too far behind the first page to be known
        if not await self._beside.has_others(step):
            return None
        request, size = self._trail.short
        await self._check_unmoved(first, last)
        if len((await self._get(request)).keys) != size:
            raise MovedError("returned fewer items on a page than on one before it")
        return (
            f"returned {size} items on a page, fewer than on one before it, and passed over others "
            "to the next page",
            f"request {size} items for a page",
        )

    async def _check_unmoved(self, *pages: ListPage) -> None:
        for page in pages:
            if not page.request.is_once and (await self._get(page.request)).keys != page.keys:
                raise MovedError

    async def sharing_a_cursor(self) -> Problem | None:
        """Return the sign that items were passed over, which share the cursor of a last one."""
        cursors = self._end.cursors
        for step in cursors.checks:
            if await self._beside.has_others(step):
                problem = "passes over items that share the cursor of the last item of a page"
                break
        else:
            problem = cursors.problem or ""
        return (problem, "set the path of a cursor that is unique") if problem else None

    async def is_behind(self, last: ListPage) -> bool:
        """Return whether a page without a next link is followed by others, by its position."""
        if not leads_on(self._paging) or self._trail.ends_as_lists_do:
            return False
        for step in pages_behind(self._paging, last, self._trail):
            if await self._beside.has_others(step):
                return True
        return False
