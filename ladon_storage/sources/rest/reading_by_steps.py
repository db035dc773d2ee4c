"""A reading of pages that link to the next one, or have numbers.

- A page is yielded only when it is known to follow the page before it: with numbered pages, the
  page before is requested again. If records moved in front, reading continues from a record that it
  has, or the whole list is read again.
- Where the link to the next page does not reveal its position, a repeated record shows that the
  list moved. The list is read again, and accepted if the same record repeats again.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import replace

from ladon_storage.sources.json.items import value_at
from ladon_storage.sources.rest.counting import is_by_item
from ladon_storage.sources.rest.listing import ListPage, MovedError
from ladon_storage.sources.rest.names import count_in
from ladon_storage.sources.rest.page import PageRequest, PageResponse
from ladon_storage.sources.rest.pagination import (
    CursorPagination,
    LinkHeaderPagination,
    NextLinkPagination,
    OffsetPagination,
    PageNumberPagination,
)
from ladon_storage.sources.rest.positions import values_of
from ladon_storage.sources.rest.reading import Reading

EMPTY_NUMBERS = 5
"""Consecutive numbered pages without a record, each of which says that there are more, that are
read."""


class ReadingBySteps(Reading):
    """A reading in which each page says which one is next, or its number does."""

    async def pages(self) -> AsyncGenerator[PageResponse, None]:
        """Yield the new records of each page."""
        page = first = self._taken(await self._get(self._paging.first_request()))
        before: ListPage | None = None
        fresh: PageResponse | None = page.response
        position, is_counted, checked = page.response.count, False, None
        while True:
            following = self._following(page, position)
            if following is None and self._is_doubtful(page, position, is_counted=is_counted):
                again, changed = await self._again(page)
                if changed is not None:
                    yield changed
                if again.keys != page.keys:
                    self._note_shift(page, again)
                    position += again.response.count - page.response.count
                page, is_counted = again, is_counted or again.request.is_counted
                following = self._following(page, position)
            following = following or await self._denied(page, position)
            following = following or await self._counted_down(page, position)
            if following is None:
                break
            if fresh is not None:
                yield fresh
                fresh = None
            coming = await self._get(following)
            if following.is_counted and page.keys and not self._is_in_place(page, coming):
                is_counted = True
                checked = page.request
                again, changed = await self._again(page)
                if changed is not None:
                    yield changed
                if again.keys != page.keys:
                    is_shifted = self._note_shift(page, again)
                    if is_shifted and not page.goes_on_in(coming):
                        position += again.response.count - page.response.count
                        page = again
                        continue
                    checked = None
            if self._counts_from_one(page, coming, first):
                page = coming
                continue
            if self._is_repeated(page, coming, before, following, position):
                await self._check_repeated(page, coming, position)
                page = coming
                break
            before, page = page, self._taken(coming)
            fresh = page.response
            position += page.response.count
        has_front = (
            is_counted
            and checked != first.request
            and (self._numbers.filled > 1 or self._repairs > 0)
        )
        async for last in self._ended(page, position, first, fresh, has_front=has_front):
            yield last

    async def _again(self, page: ListPage) -> tuple[ListPage, PageResponse | None]:
        """Return a page as it is now, and its new records."""
        again = await self._get(page.request)
        if again.keys == page.keys:
            return again, None
        changed = again.without(page.keys)
        if not changed.count:
            return again, None
        self._tally.add(again.keys)
        return again, changed

    def _is_doubtful(self, page: ListPage, position: int, *, is_counted: bool) -> bool:
        """Return whether the last page of a chain is requested again before it is believed."""
        if not page.keys or self._numbers.is_proven(page, position):
            return False
        return is_counted or self._end.lacks_sign(page, position)

    async def _denied(self, page: ListPage, position: int) -> PageRequest | None:
        """Return the link of a page whose declared flag says that there are no more.

        Such a link may be for the next run. The link of a full page is tried.
        """
        paging = self._paging
        if (
            not isinstance(paging, NextLinkPagination | CursorPagination)
            or not paging.more
            or page.request.is_once
        ):
            return None
        is_full = page.keys and page.response.count >= self._largest
        if paging.only_declared or not is_full or self._numbers.is_proven(page, position):
            return None
        try:
            step = paging.model_copy(update={"more": ""}).next_request(page.request, page.response)
        except ValueError:
            return None
        if step is None or step.place in self._asked:
            return None
        return step if await self._beside.has_others(step) else None

    async def _counted_down(self, page: ListPage, position: int) -> PageRequest | None:
        """Return the request with the cursor 0 of a page, if the cursors count down to it.

        Most APIs mean by a 0 that no page follows. Where it is the next number of a countdown, of
        pages or of items, it is tried, and followed if it leads to records of which none came.
        """
        paging = self._paging
        if not isinstance(paging, CursorPagination) or self._numbers.is_proven(page, position):
            return None
        if not page.keys or page.request.is_once or not paging.is_zero(page.response):
            return None
        zero = value_at(page.response.document, paging.path)
        sent = count_in(dict(values_of(page.request)).get(paging.parameter))
        if sent not in (1, page.response.count):
            return None
        step = replace(
            paging.requesting(zero),
            number=page.request.number + page.response.count,
            index=page.request.index + 1,
        )
        got = None if step.place in self._asked else await self._beside.only_others(step)
        onward = got and paging.next_request(step, got)
        if got is None or (onward and onward.place in self._asked):  # a new scan begins at 0
            return None
        return step

    def _following(self, page: ListPage, position: int) -> PageRequest | None:
        """Return the request for the next page; ``None`` at the end."""
        paging, problem = self._paging, ""
        if isinstance(paging, PageNumberPagination) and not page.keys and self._end.goes_on(page):
            is_tried = self._empty < EMPTY_NUMBERS
            return paging.numbered(page.request.number + 1) if is_tried else None
        if isinstance(paging, PageNumberPagination | OffsetPagination):
            if not page.keys or self._end.is_reached(page, position, self._learned.limit):
                return None
            if isinstance(paging, OffsetPagination):
                return paging.skipping(position, self._learned.limit)
        try:
            step = paging.next_request(page.request, page.response)
        except ValueError as error:
            step, problem = None, str(error)
        if problem:
            raise self._api.error(problem)
        if step is None or isinstance(paging, PageNumberPagination):
            return step
        self._end.led_on = True
        if self._end.is_over(page, position):
            return None
        if step.is_counted and self._goes_by_id(page, step):
            step = replace(step, is_counted=False)
        # One cursor may lead through all pages, and a link may be there always.
        if step.place == page.request.place:
            return replace(step, is_once=True) if page.keys else None
        if step.place in self._asked:
            if page.keys and not self._numbers.is_proven(page, position):
                raise self._api.error(
                    "leads back to a page that was already read, so the reading would never end"
                )
            return None
        return step

    def _goes_by_id(self, page: ListPage, step: PageRequest) -> bool:
        """Return whether a request has the id of the last item, which may be its number as well."""
        return bool(page.keys) and any(
            is_by_item(name) and (self._end.goes_by_items or value == page.last_id)
            for name, value in values_of(step)
        )

    def _is_in_place(self, page: ListPage, coming: ListPage) -> bool:
        """Return whether a page is known to follow, since its cursor is an id."""
        return isinstance(self._paging, CursorPagination) and coming.follows(page)

    def _note_shift(self, page: ListPage, again: ListPage) -> bool:
        """Return whether a page that was requested again had shifted and reading resumes from it.

        Raises:
            MovedError: It has no record from which reading could resume.
        """
        if page.ids == again.ids and {*page.keys} & {*again.keys}:
            return False  # changed records stayed in place
        self._repair()
        if again.keys[: len(page.keys)] == page.keys:
            return True  # it was the last one, and has grown
        if page.keys[0] in again.keys[1:]:
            self._is_pushed = True
        elif again.keys and again.keys[0] in page.keys:
            self._is_drawn = True
        else:
            raise MovedError
        return True

    def _is_repeated(
        self,
        page: ListPage,
        coming: ListPage,
        before: ListPage | None,
        following: PageRequest,
        position: int,
    ) -> bool:
        """Return whether a page repeats the last one, and is the end.

        Raises:
            SourceError: It repeats the page before, which may be all that the API ever answers.
        """
        paging = self._paging
        is_numbered = isinstance(paging, PageNumberPagination | OffsetPagination)
        is_within = (is_numbered or self._end.goes_by_items) and {*coming.keys} <= {*page.keys}
        if not coming.keys or not (is_within or coming.keys == page.keys):
            return False
        if not isinstance(paging, PageNumberPagination | OffsetPagination):
            if self._numbers.is_proven(page, position):
                return True
            if (
                isinstance(paging, NextLinkPagination | LinkHeaderPagination)
                and following.place == page.request.place
            ):
                return self._numbers.filled > 1  # the last page may lead to itself
            # Those from the last item on, of which there are no more, or all at one instant.
            if is_within and (coming.response.count < self._largest or coming.response.count == 1):
                return True
            raise self._api.error(
                "leads back to a page that was already read, so the reading would never end"
            )
        if self._is_pushed:
            raise MovedError
        has_turned = before is not None and not {*before.keys} & {*page.keys}
        is_last = sorted(coming.keys) == sorted(page.keys) and has_turned
        self._refuse_the_same(paging, page, position, is_last=is_last)
        return True

    def _counts_from_one(self, page: ListPage, coming: ListPage, first: ListPage) -> bool:
        """Return whether page 0 may be page 1 by another number; the next page shows which."""
        paging = self._paging
        is_first = (
            isinstance(paging, PageNumberPagination) and page is first and not paging.first_number
        )
        return is_first and bool(page.keys) and coming.keys == page.keys

    async def _check_repeated(self, page: ListPage, coming: ListPage, position: int) -> None:
        """Request the page after one that came twice.

        Raises:
            MovedError: It is another page when requested again, or another page follows it.
        """
        if not coming.request.is_counted or not coming.keys:
            return
        if {*(await self._get(coming.request)).keys} != {*coming.keys}:
            raise MovedError
        step = self._paging.next_request(coming.request, coming.response)
        if not isinstance(self._paging, PageNumberPagination) or self._numbers.is_proven(
            page, position
        ):
            return
        if step is not None and {*(await self._get(step)).keys} - {*page.keys}:
            raise MovedError("returned one page twice, and a different one after it")
