"""A reading of pages that begin after a number of skipped items.

- A page is requested from one record earlier, which must be on the page before it. If records moved
  in front, reading continues from a record that it has, or the whole list is read again.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator

from ladon_storage.sources.rest.listing import ListPage, MovedError, PagedApi
from ladon_storage.sources.rest.page import PageResponse
from ladon_storage.sources.rest.pagination import OffsetPagination
from ladon_storage.sources.rest.reading import Learned, Reading

FRUITLESS = 5
"""The limit on returns to the page before that find nothing new."""


class ReadingByOffset(Reading):
    """A reading in which each page overlaps the one before it by a record.

    Args:
        api: The source.
        learned: The facts from earlier readings.
        paging: The pagination.
    """

    def __init__(self, api: PagedApi, learned: Learned, paging: OffsetPagination) -> None:
        super().__init__(api, learned)
        self._skips = paging
        self._fruitless = 0

    def _taken(self, page: ListPage) -> ListPage:
        self._fruitless = 0 if page.keys else self._fruitless
        return super()._taken(page)

    async def pages(self) -> AsyncGenerator[PageResponse, None]:
        """Yield the new records of each page."""
        paging = self._skips
        page = first = self._taken(await self._get(paging.first_request()))
        fresh: PageResponse | None = page.response
        position = page.response.count
        while page.keys and not self._end.is_reached(page, position, self._learned.limit):
            if fresh is not None:
                yield fresh
                fresh = None
            coming = page
            if page.response.count > 1:
                coming = await self._overlapping(paging, page, position)
                if await self._is_ignored(page, coming):
                    behind = await self._get(paging.skipping(position, self._learned.limit))
                    if behind.without(page.keys).count:
                        self._learned.overlaps = False  # it skips whole pages alone
                        raise MovedError
                    self._refuse_the_same(paging, page, position)
                    page = coming
                    break
                position = coming.request.number + coming.response.count
                new = coming.without(page.keys)
                if new.count:
                    page, fresh = self._taken(coming), new
                    continue
                if coming.response.count > 1:
                    self._repair()
                    page = coming
                    continue
            behind = await self._get(paging.skipping(position, self._learned.limit))
            known = {*page.keys, *coming.keys}
            is_end = all(key in known or hash(key) in self._known for key in behind.keys)
            if not is_end or self._largest == 1:
                # Pages of one item do not overlap: the page before is requested again.
                if (await self._get(coming.request)).keys != coming.keys:
                    raise MovedError
                if is_end and behind.keys:
                    self._refuse_the_same(paging, page, position)
            if is_end and behind.keys and self._is_pushed and behind.response.count > 1:
                self._repair()  # known records were pushed there, and unknown ones may follow
                page, position = behind, position + behind.response.count
                continue
            if is_end:
                page = behind
                break
            page = self._taken(behind)
            fresh, position = page.response, position + page.response.count
        has_front = self._numbers.filled > 1 or self._repairs > 0
        async for last in self._ended(page, position, first, fresh, has_front=has_front):
            yield last

    async def _is_ignored(self, page: ListPage, coming: ListPage) -> bool:
        """Return whether the API ignores the offset and always answers the same."""
        if coming.keys != page.keys or coming.request.number == page.request.number:
            return False
        if (await self._get(page.request)).keys == page.keys:
            return True
        self._is_pushed = True
        self._repair()
        return False

    async def _overlapping(
        self, paging: OffsetPagination, page: ListPage, position: int
    ) -> ListPage:
        """Return the next page, requested from one record earlier, which must be on this page.

        Raises:
            MovedError: More records were removed in front of it than a page has.
        """
        coming = await self._get(paging.skipping(position - 1, max(self._learned.limit, 2)))
        if page.request.number == 0 and await self._is_from_one(paging, page, coming):
            self._learned.base = 1
            coming = await self._get(paging.skipping(position - 1, max(self._learned.limit, 2)))
        if coming.keys and coming.keys[0] in page.keys:
            pushed = len(page.keys) - 1 - page.keys.index(coming.keys[0])
            # A page from which records were filtered out covers more than its items show.
            self._repairs += pushed > 0
            self._is_pushed |= pushed > max(self._learned.limit - len(page.keys), 0)
            return coming
        self._repair()
        self._is_drawn = True
        coming = await self._get(paging.skipping(page.request.number, max(self._learned.limit, 2)))
        if not coming.keys or coming.keys[0] not in page.keys:
            raise MovedError
        self._fruitless += 1
        if self._fruitless > FRUITLESS:
            raise MovedError(
                f"does not return the same records again from offset {position - 1} on"
            )
        return coming

    async def _is_from_one(
        self, paging: OffsetPagination, page: ListPage, coming: ListPage
    ) -> bool:
        """Return whether the first item is at 1, as in SCIM: 0 and 1 give the same items."""
        if self._learned.base or len(page.keys) < 3 or coming.keys[:1] != page.keys[-2:-1]:
            return False
        there = [await self._get(paging.skipping(offset, page.request.size)) for offset in (0, 1)]
        return all(each.keys == page.keys for each in there)
