"""Requests outside the list's own pages, which show what those pages leave out.

- Only an answer with records is evidence. A refusal or an error is none, and is requested once.
"""

from __future__ import annotations

from collections.abc import Sequence

from ladon_storage.errors import SourceError
from ladon_storage.sources.rest.listing import ListPage, PagedApi, SeenRecords
from ladon_storage.sources.rest.page import PageRequest, PageResponse
from ladon_storage.sources.rest.pagination import PageNumberPagination

_ERRORS = range(400, 600)


class Beside:
    """The extra requests that one reading of a list makes.

    Args:
        api: The source.
        tally: The records delivered in the reading.
    """

    def __init__(self, api: PagedApi, tally: SeenRecords) -> None:
        self._api = api
        self._tally = tally

    @property
    def knows_all(self) -> bool:
        """Whether each record that came is known as such."""
        return self._tally.is_exact

    async def has_others(self, step: PageRequest) -> bool:
        """Return whether a page that should not exist has records, one of which did not come."""
        return not all(map(self._tally.has, await self._keys(step)))

    async def only_others(self, step: PageRequest) -> PageResponse | None:
        """Return a page that should not exist, if it has records, none of which came."""
        got, keys = await self._page(step)
        return got if keys and not any(map(self._tally.has, keys)) else None

    async def page_of_others(
        self, paging: PageNumberPagination, last: ListPage, *, behind: int
    ) -> int | None:
        """Return the number of an unread page that has other records, if there is one.

        The page before the first one is checked, and so many behind the last one. A page with any
        record that came already is a page that was read, under another number.
        """
        beside = [paging.first_number - 1] if paging.first_number else []
        beside += [last.request.number + distance for distance in range(1, behind + 1)]
        for number in beside:
            there = await self._keys(paging.numbered(number))
            if not there or any(map(self._tally.has, there)):
                continue
            if number >= paging.first_number or await self._begins(paging, number, there):
                return number
        return None

    async def _begins(
        self, paging: PageNumberPagination, number: int, there: Sequence[str]
    ) -> bool:
        """Return whether a list may begin with a page, as one that counts from 0 does.

        Where the page before has records of its own, too, any number is a page, and none is the
        first.
        """
        before = await self._keys(paging.numbered(number - 1))
        return not before or bool({*before} & {*there}) or any(map(self._tally.has, before))

    async def nothing(self, first: ListPage) -> ListPage | None:
        """Return the first page of a range without records, where a range was asked."""
        try:
            got = await self._api.nothing(first.request)
            keys = () if got is None else await self._api.keys(got.items)
        except SourceError:
            return None
        return None if got is None else ListPage(first.request, got, keys)

    async def _keys(self, step: PageRequest) -> Sequence[str]:
        return (await self._page(step))[1]

    async def _page(self, step: PageRequest) -> tuple[PageResponse | None, Sequence[str]]:
        try:
            got = await self._api.page(step, accept=_ERRORS, may_be_empty=True)
            return got, await self._api.keys(got.items)
        except SourceError:
            return None, ()
