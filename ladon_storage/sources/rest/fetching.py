"""The pagination loop: from page to page, to an end that is proven.

- A page is yielded only when it is known to follow the page before it. A page by offset is
  requested from one record earlier; with numbered pages, the page before is requested again. If
  records moved in front, reading continues from a record that it has, or the whole list is read
  again.
- Records that arrived at the front meanwhile are read at the end: an order of the newest first puts
  changed records there.
- An end counts only if nothing contradicts it: a total, a "there are more", a next link or cursor.
  A list that cannot be read to such an end ends with an error, never with fewer records.
- Where the link to the next page does not reveal its position, a repeated record shows that the
  list moved. The list is read again, and accepted if the same record repeats again.
- Memory does not grow with the list: the keys of a page or two are held, and of a fixed number of
  rows.
"""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace

from ladon_storage.collection.records import Completeness
from ladon_storage.errors import SourceError
from ladon_storage.sources.http.client import OK
from ladon_storage.sources.rest.beside import Beside
from ladon_storage.sources.rest.completion import Completion
from ladon_storage.sources.rest.listing import ListPage, MovedError, PagedApi, SeenRecords
from ladon_storage.sources.rest.page import PageRequest, PageResponse
from ladon_storage.sources.rest.pagination import (
    CursorPagination,
    LinkHeaderPagination,
    NextLinkPagination,
    OffsetPagination,
    PageNumberPagination,
)

logger = logging.getLogger(__name__)

READINGS = 5
"""The limit on readings of a list that moves every time."""

REPAIRS = 1_000
"""The limit on returns to the page before, to resume from a known record, in one reading."""

FRUITLESS = 5
"""The limit on such returns that find nothing new."""

EMPTY_PAGES = 1_000
"""Consecutive pages without a record after which a list with cursors counts as endless."""

FRONT_PAGES = 20
"""The limit on pages of records that arrived at the front while a list was read."""

KNOWN_KEYS = 100_000
"""Rows of a list that are remembered to recognise its front again."""

SMALLEST_PAGE = 100

_BEYOND = 416
"""HTTP's own status for a range beyond the end."""

_DENIALS = frozenset({400, 404, 410, 422})
"""The statuses with which APIs answer beyond the end, and also any wrong request."""


class PageFetcher:
    """One reading of a list, page by page.

    Args:
        api: The source.
        is_known: Whether the number of its first page is known, and not only declared.

    Attributes:
        completeness: The proof of the end; ``None`` before it.
        total: The number of items that the API states.
    """

    def __init__(self, api: PagedApi, *, is_known: bool = False) -> None:
        self._api = api
        self._is_known = is_known
        self._paging = api.paging
        self._limit = self._paging.page_size if isinstance(self._paging, OffsetPagination) else 0
        self._overlaps = isinstance(self._paging, OffsetPagination) and not self._paging.stable
        self.completeness: Completeness | None = None
        self.total: int | None = None
        self._sequence = 0
        self._base = 0
        """The number added to an offset, where the API counts its items from 1."""
        self._before: int | None = None
        """The hash of the previous reading, if it reached its end."""
        self._begin()

    def _begin(self) -> None:
        self._known: set[int] = set()
        self._asked: set[str] = set()
        self._digests: set[int] = set()
        self._tally = SeenRecords(KNOWN_KEYS)
        self._end = Completion(self._api, self._tally)
        self._beside = Beside(self._api, self._tally)
        self._sequence = 0
        self._largest = 0
        self._empty = 0
        self._repairs = self._fruitless = 0
        self._is_pushed = False
        """Whether records were inserted in front of what was read."""
        self._is_drawn = False
        """Whether records were removed in front of what was read."""

    def error(self, problem: str) -> SourceError:
        """Return the error for a problem of the API."""
        return self._api.error(problem)

    async def pages(self) -> AsyncGenerator[PageResponse, None]:
        """Yield the new records of each page; a list that is read again repeats records.

        Raises:
            SourceError: A page has another structure, leads nowhere or in a circle, or the end is
                contradicted.
        """
        reason = ""
        for reading in range(1, READINGS + 1):
            self._begin()
            try:
                async with aclosing(self._reading()) as pages:
                    async for got in pages:
                        yield got
            except MovedError as error:
                reason = f": it {error}" if str(error) else ""
                logger.info(
                    "Source %r: its list moved while it was read (%d of %d).",
                    self._api.source_id,
                    reading,
                    READINGS,
                    extra={"source_id": self._api.source_id},
                )
            else:
                return
        raise self._api.error(
            f"changed in each of {READINGS} readings, so that records may have been skipped"
            f"{reason}",
            transient=True,
        )

    def _reading(self) -> AsyncGenerator[PageResponse, None]:
        if isinstance(self._paging, OffsetPagination) and self._overlaps:
            return self._by_offset(self._paging)
        return self._by_steps()

    # Pages that link to the next one, or have numbers.

    async def _by_steps(self) -> AsyncGenerator[PageResponse, None]:
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
            if following is None:
                break
            if fresh is not None:
                yield fresh
                fresh = None
            coming = await self._get(following)
            if following.is_counted and page.keys and not self._is_in_place(coming):
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
        if is_counted and checked != first.request and (self._end.filled > 1 or self._repairs):
            if fresh is not None:
                yield fresh
                fresh = None
            async for front in self._front(first):
                yield front
        problem = await self._judged(page, position, first)
        if fresh is not None:
            yield fresh
        if problem is not None:
            raise problem

    async def _again(self, page: ListPage) -> tuple[ListPage, PageResponse | None]:
        """Return a page as it is now, and its new records."""
        again = await self._get(page.request)
        changed = again.without(page.keys)
        if again.keys == page.keys or not changed.count:
            return again, None
        self._tally.add(again.keys)
        return again, changed

    def _is_doubtful(self, page: ListPage, position: int, *, is_counted: bool) -> bool:
        """Return whether the last page of a chain is requested again before it is believed."""
        if not page.keys or self._end.is_proven(page, position):
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
        if paging.only_declared or not is_full or self._end.is_proven(page, position):
            return None
        try:
            step = paging.model_copy(update={"more": ""}).next_request(page.request, page.response)
        except ValueError:
            return None
        if step is None or step.place in self._asked:
            return None
        return step if await self._beside.has_others(step) else None

    def _following(self, page: ListPage, position: int) -> PageRequest | None:
        """Return the request for the next page; ``None`` at the end."""
        paging, problem = self._paging, ""
        if isinstance(paging, PageNumberPagination | OffsetPagination):
            if not page.keys or self._end.is_reached(page, position, self._limit):
                return None
            if isinstance(paging, OffsetPagination):
                return paging.skipping(position, self._limit)
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
        # One cursor may lead through all pages, and a link may be there always.
        if step.place == page.request.place:
            return replace(step, is_once=True) if page.keys else None
        if step.place in self._asked:
            if page.keys and not self._end.is_proven(page, position):
                raise self._api.error("leads to a page that was read already, and would never end")
            return None
        return step

    def _is_in_place(self, coming: ListPage) -> bool:
        """Return whether a page is known to follow: its cursor is the id of its first item."""
        return isinstance(self._paging, CursorPagination) and coming.begins_where_asked

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
            if self._end.is_proven(page, position):
                return True
            if (
                isinstance(paging, NextLinkPagination | LinkHeaderPagination)
                and following.place == page.request.place
            ):
                return self._end.filled > 1  # the last page may lead to itself
            # Those from the last item on, of which there are no more, or all at one instant.
            if is_within and (coming.response.count < self._largest or coming.response.count == 1):
                return True
            raise self._api.error("leads to a page that was read already, and would never end")
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
        if not isinstance(self._paging, PageNumberPagination) or self._end.is_proven(
            page, position
        ):
            return
        if step is not None and {*(await self._get(step)).keys} - {*page.keys}:
            raise MovedError("answers one page twice, and another one behind it")

    def _refuse_the_same(
        self,
        paging: PageNumberPagination | OffsetPagination,
        page: ListPage,
        position: int,
        *,
        is_last: bool = False,
    ) -> None:
        if self._end.is_proven(page, position):
            return
        if problem := self._end.promised(page, position):
            raise self._api.error(f"{problem}, and answers the same page again")
        if is_last or paging.end == "repeat":
            return
        raise self._api.error(
            "answers the same page again, whatever page it is asked for: it may have no pages, or "
            "its last page may be its first"
        )

    # Pages that begin after a number of skipped items.

    async def _by_offset(self, paging: OffsetPagination) -> AsyncGenerator[PageResponse, None]:
        page = first = self._taken(await self._get(paging.first_request()))
        fresh: PageResponse | None = page.response
        position = page.response.count
        while page.keys and not self._end.is_reached(page, position, self._limit):
            if fresh is not None:
                yield fresh
                fresh = None
            coming = page
            if page.response.count > 1:
                coming = await self._overlapping(paging, page, position)
                if await self._is_ignored(page, coming):
                    behind = await self._get(paging.skipping(position, self._limit))
                    if behind.without(page.keys).count:
                        self._overlaps = False  # it skips whole pages alone
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
            behind = await self._get(paging.skipping(position, self._limit))
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
        if self._end.filled > 1 or self._repairs:
            if fresh is not None:
                yield fresh
                fresh = None
            async for front in self._front(first):
                yield front
        problem = await self._judged(page, position, first)
        if fresh is not None:
            yield fresh
        if problem is not None:
            raise problem

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
        coming = await self._get(paging.skipping(position - 1, max(self._limit, 2)))
        if page.request.number == 0 and await self._is_from_one(paging, page, coming):
            self._base = 1
            coming = await self._get(paging.skipping(position - 1, max(self._limit, 2)))
        if coming.keys and coming.keys[0] in page.keys:
            pushed = len(page.keys) - 1 - page.keys.index(coming.keys[0])
            # A page from which records were filtered out covers more than its items show.
            self._repairs += pushed > 0
            self._is_pushed |= pushed > max(self._limit - len(page.keys), 0)
            return coming
        self._repair()
        self._is_drawn = True
        coming = await self._get(paging.skipping(page.request.number, max(self._limit, 2)))
        if not coming.keys or coming.keys[0] not in page.keys:
            raise MovedError
        self._fruitless += 1
        if self._fruitless > FRUITLESS:
            raise MovedError(f"does not give again what it gave, from {position - 1} on")
        return coming

    async def _is_from_one(
        self, paging: OffsetPagination, page: ListPage, coming: ListPage
    ) -> bool:
        """Return whether the first item is at 1, as in SCIM: 0 and 1 give the same items."""
        if self._base or len(page.keys) < 3 or coming.keys[:1] != page.keys[-2:-1]:
            return False
        there = [await self._get(paging.skipping(offset, page.request.size)) for offset in (0, 1)]
        return all(each.keys == page.keys for each in there)

    # What both have in common.

    async def _get(self, step: PageRequest) -> ListPage:
        paging = self._paging
        while True:
            if isinstance(paging, OffsetPagination) and step.size > max(self._limit, 2):
                step = paging.skipping(step.number, self._limit)
            ends = set[int]()
            if self._end.filled and isinstance(paging, PageNumberPagination | OffsetPagination):
                ends.update(paging.end_status, (_BEYOND,), _DENIALS)
            smaller = set[int]()
            if isinstance(paging, OffsetPagination) and self._limit > SMALLEST_PAGE:
                smaller = {*paging.too_large} - {*paging.end_status}
            asked = step
            if isinstance(paging, OffsetPagination) and self._base:
                asked = paging.skipping(step.number + self._base, step.size)
            got = await self._api.page(
                asked, accept=ends | smaller, may_be_empty=self._end.filled > 0
            )
            status = got.answer.status
            if status in smaller:
                self._limit = max(self._limit // 2, SMALLEST_PAGE)
                continue
            if status in _DENIALS and not self._means_the_end(got):
                raise self._api.refusal(got)
            keys = tuple(await self._api.keys(got.items))
            if step.is_counted and len(keys) != got.count:
                raise self._api.error(
                    f"gives {got.count} items on a page, too many to be compared with others: ask "
                    "for smaller pages"
                )
            return ListPage(step, got, keys)

    def _means_the_end(self, got: PageResponse) -> bool:
        """Return whether a refusal means that a page lies beyond the end.

        It does where that was declared, where all stated records came, and where it has the form
        that Django REST framework or WordPress use for it.
        """
        status = got.answer.status
        if status in getattr(self._paging, "end_status", ()) or self._end.is_met:
            return True
        try:
            document = json.loads(got.answer.body)
        except ValueError:
            return False
        if status == 400:
            code = document.get("code") if isinstance(document, dict) else None
            return code == "rest_post_invalid_page_number"
        return status == 404 and bool(document == {"detail": "Invalid page."})

    def _taken(self, page: ListPage) -> ListPage:
        """Return a page after adding it to the pages read.

        Raises:
            SourceError: It was there before, or is one of too many without a record.
        """
        self._asked.add(page.request.place)
        if page.keys and len(page.keys) != page.response.count:
            self._tally.is_exact = False  # it is too large to be held
        self._tally.add(page.keys)
        self._sequence = hash((self._sequence, *page.keys))
        if not page.keys:
            self._end.note(page)
            self._empty += 1
            if self._empty >= EMPTY_PAGES:
                raise self._api.error(
                    f"leads on from page to page, {self._empty} times without a record"
                )
            return page
        self._empty = self._fruitless = 0
        digest = hash(page.keys)
        if digest in self._digests:
            if page.request.is_counted:
                raise MovedError("gives a page that was read already")
            raise self._api.error("leads to a page that was read already, and would never end")
        self._digests.add(digest)
        self._largest = max(self._largest, page.response.count)
        self._end.note(page)
        for key in page.keys[: KNOWN_KEYS - len(self._known)]:
            self._known.add(hash(key))
        return page

    def _repair(self) -> None:
        self._repairs += 1
        if self._repairs > REPAIRS:
            raise MovedError

    async def _front(self, first: ListPage) -> AsyncGenerator[PageResponse, None]:
        """Yield the records in front of those read so far, as in an order of the newest first.

        Raises:
            MovedError: Records that were read are missing there, new ones are not in front, or the
                records read so far do not show what was added or removed.
        """
        step: PageRequest | None = first.request
        is_pushed, is_drawn, came = self._is_pushed, self._is_drawn, set[int]()
        for _ in range(FRONT_PAGES):
            if step is None:
                break
            page = await self._get(step)
            if page.ids == first.ids and {*page.keys} & {*first.keys} and not is_pushed:
                if (changed := page.without(first.keys)).count:
                    self._tally.add(page.keys)
                    yield changed
                return
            hashes = [hash(key) for key in page.keys]
            known = [index for index, each in enumerate(hashes) if each in self._known]
            ahead = range(known[0] if known else len(hashes))
            if (ahead and not self._is_pushed) or not (is_drawn or page.holds(first, len(ahead))):
                break
            fresh = [index for index in ahead if hashes[index] not in came]
            if fresh:
                came.update(hashes[index] for index in fresh)
                self._tally.add(page.keys[index] for index in fresh)
                yield page.only(fresh)
            if not ahead and step is first.request:
                if is_pushed:
                    break
                return
            is_drawn = True  # after the first page, and from now on
            if known or not page.keys:
                self._known |= came
                step, is_pushed, came = first.request, is_pushed and not came, set()
                continue  # until nothing more arrived
            try:
                step = self._paging.next_request(step, page.response)
            except ValueError:
                break
        raise MovedError

    async def _judged(self, page: ListPage, position: int, first: ListPage) -> SourceError | None:
        """Return the contradiction to an end after ``page``; otherwise note the proof of the end.

        Raises:
            MovedError: The list may have moved.
        """
        end, has_moved = self._end, self._repairs > 0
        if end.is_short(position) and (nothing := await self._beside.nothing(first)):
            end.disregard(nothing)
        try:
            problem = end.contradiction(page, position, has_moved=has_moved)
        except MovedError:
            is_checked = first.request.is_counted and page.request is not first.request
            if not is_checked or not end.has_shrunk_to(await self._get(first.request)):
                raise
            problem = end.contradiction(page, position, has_moved=has_moved)
        if problem is not None:
            return self._api.error(problem)
        doubt, silent = end.may_have_skipped(), end.breaks_off(page, position)
        before, self._before = self._before, self._sequence
        if (doubt or silent) and before != self._sequence:
            raise MovedError(silent or doubt)
        if silent is not None:
            return self._api.error(silent)
        completeness = end.completeness(page, position)
        missed = None if completeness in ("total", "declared") else await self._missed(first, page)
        if missed is not None:
            return self._api.error(missed)
        self.total, self.completeness = end.total, completeness
        return None

    async def _missed(self, first: ListPage, last: ListPage) -> str | None:
        """Return the sign that an unread page has other records."""
        paging = self._paging
        if not isinstance(paging, PageNumberPagination) or self._is_known:
            return None
        is_silent = last.response.answer.status in OK and self._end.is_silent(last)
        number = await self._beside.page_of_others(paging, last, is_silent=is_silent)
        if number is None:
            return None
        is_before = number < paging.first_number
        asked = first if is_before else last
        if (await self._get(asked.request)).keys != asked.keys:
            raise MovedError
        if is_before:
            begin = paging.first_number
            return (
                f"has records on page {number} that are on no page from {begin} on, the first one"
            )
        return f"has records on page {number}, and none on the one before"
