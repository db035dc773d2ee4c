"""The walk through the pages of a list, to an end that is proven.

- No page is yielded before it is known to follow the one before it. A page by offset is asked from
  one record before; of pages by number, the one before is asked again. Whatever moved in front, the
  reading goes on from a record that it has, or the whole list is read again.
- What came to the front meanwhile is read at the end: an order of the newest first puts there what
  changed.
- An end is one where nothing contradicts it: a total, a "there are more", a next link or cursor.
  A list that cannot be read so ends with an error, never with less.
- Where a page leads on by what tells nothing of its place, a record that comes twice shows that the
  list moved. It is read again, and is taken for what it is when it comes the same once more.
- What is held of a list does not grow with it: the keys of a page or two, and of so many rows.
"""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace

from ladon_storage.collection.records import Completeness
from ladon_storage.collection.sources.endings import Ending
from ladon_storage.collection.sources.listing import Api, ListPage, MovedError, Tally
from ladon_storage.collection.sources.paging import (
    Cursor,
    Got,
    LinkHeader,
    NextLink,
    Offsets,
    PageNumbers,
    Step,
)
from ladon_storage.errors import SourceError

logger = logging.getLogger(__name__)

READINGS = 5
"""How often a list is read that moves every time."""

REPAIRS = 1_000
"""How often a reading goes back a page and on from a record that it has."""

EMPTY_PAGES = 1_000
"""Pages without a record, one after another, after which a list with cursors does not end."""

FRONT_PAGES = 20
"""Pages of what came to the front while a list was read."""

KNOWN_KEYS = 100_000
"""Rows of a list by which its front is known again."""

SMALLEST_PAGE = 100


class Walk:
    """One walk through a list.

    Args:
        api: The source.

    Attributes:
        completeness: How the end was known; ``None`` before it.
        total: How many items the API states.
    """

    def __init__(self, api: Api) -> None:
        self._api = api
        self._paging = api.paging
        self._limit = self._paging.limit if isinstance(self._paging, Offsets) else 0
        self._overlaps = isinstance(self._paging, Offsets) and not self._paging.stable
        self.completeness: Completeness | None = None
        self.total: int | None = None
        self._sequence = 0
        self._before: int | None = None
        """What the reading before this one was, where it was one to its end."""
        self._begin()

    def _begin(self) -> None:
        self._known: set[int] = set()
        self._asked: set[str] = set()
        self._digests: set[int] = set()
        self._tally = Tally(KNOWN_KEYS)
        self._end = Ending(self._api, self._tally)
        self._sequence = 0
        self._largest = 0
        self._empty = 0
        self._repairs = 0
        self._is_pushed = False
        """Whether something came in front of what was read."""
        self._is_drawn = False
        """Whether something went from there."""

    def error(self, problem: str) -> SourceError:
        """Return the error that says what is wrong with the API."""
        return self._api.error(problem)

    async def pages(self) -> AsyncGenerator[Got, None]:
        """Yield what is new on each page; of a list that is read again, records come again.

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

    def _reading(self) -> AsyncGenerator[Got, None]:
        if isinstance(self._paging, Offsets) and self._overlaps:
            return self._by_offset(self._paging)
        return self._by_steps()

    # Pages that lead on, or have numbers.

    async def _by_steps(self) -> AsyncGenerator[Got, None]:
        page = first = self._taken(await self._get(self._paging.first()))
        before: ListPage | None = None
        fresh: Got | None = page.got
        position, is_counted, checked = page.got.count, False, None
        while True:
            page, following = await self._led_from(page, position)
            if following is None:
                break
            if fresh is not None:
                yield fresh
                fresh = None
            coming = await self._get(following)
            if following.is_counted and page.keys and not self._is_in_place(coming):
                is_counted = True
                checked = page.step
                again = await self._get(page.step)
                if again.keys != page.keys:
                    if (changed := again.without(page.keys)).count:
                        self._tally.add(again.keys)
                        yield changed
                    is_shifted = self._note_shift(page, again)
                    if is_shifted and not page.goes_on_in(coming):
                        position += again.got.count - page.got.count
                        page = again
                        continue
                    checked = None
            if self._is_repeated(page, coming, before, following, position):
                if following.is_counted and (await self._get(following)).keys != coming.keys:
                    raise MovedError
                page = coming
                break
            before, page = page, self._taken(coming)
            fresh = page.got
            position += page.got.count
        if is_counted and checked != first.step and (self._end.filled > 1 or self._repairs):
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

    async def _led_from(self, page: ListPage, position: int) -> tuple[ListPage, Step | None]:
        """Return how the next page is asked for, and the page that says so."""
        following = self._following(page, position)
        if following is None and self._end.lacks_sign(page, position):
            again = await self._get(page.step)
            if again.keys != page.keys:
                raise MovedError
            page, following = again, self._following(again, position)
        return page, following

    def _following(self, page: ListPage, position: int) -> Step | None:
        """Return how the next page is asked for; ``None`` at the end."""
        paging, problem = self._paging, ""
        if isinstance(paging, PageNumbers | Offsets):
            if not page.keys or self._end.is_reached(page, position, self._limit):
                return None
            if isinstance(paging, Offsets):
                return paging.skipping(position, self._limit)
        try:
            step = paging.after(page.step, page.got)
        except ValueError as error:
            step, problem = None, str(error)
        if problem:
            raise self._api.error(problem)
        if step is None or isinstance(paging, PageNumbers):
            return step
        self._end.led_on = True
        if self._end.is_over(page, position):
            return None
        # One cursor may lead through all pages, and a link may be there always.
        if step.place == page.step.place:
            return replace(step, is_once=True) if page.keys else None
        if step.place in self._asked:
            if page.keys and not self._end.is_proven(page, position):
                raise self._api.error("leads to a page that was read already, and would never end")
            return None
        return step

    def _is_in_place(self, coming: ListPage) -> bool:
        """Tell whether a page is known to follow, as its cursor is the id of its first item."""
        return isinstance(self._paging, Cursor) and coming.begins_where_asked

    def _note_shift(self, page: ListPage, again: ListPage) -> bool:
        """Return whether a page shifted that was asked for again, and is gone on from.

        Raises:
            MovedError: Nothing on it is where the reading could go on from.
        """
        if page.ids == again.ids and {*page.keys} & {*again.keys}:
            return False  # what changed stayed where it was
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
        following: Step,
        position: int,
    ) -> bool:
        """Tell whether a page is the last one again, and the end.

        Raises:
            SourceError: It is the one before again, and may be all that the API ever answers.
        """
        paging = self._paging
        is_numbered = isinstance(paging, PageNumbers | Offsets)
        is_within = (is_numbered or self._end.goes_by_items) and {*coming.keys} <= {*page.keys}
        if not coming.keys or not (is_within or coming.keys == page.keys):
            return False
        if not isinstance(paging, PageNumbers | Offsets):
            if self._end.is_proven(page, position):
                return True
            if isinstance(paging, NextLink | LinkHeader) and following.place == page.step.place:
                return self._end.filled > 1  # the last page may lead to itself
            # Those from the last item on, of which there are no more, or all at one instant.
            if is_within and (coming.got.count < self._largest or coming.got.count == 1):
                return True
            raise self._api.error("leads to a page that was read already, and would never end")
        if self._is_pushed:
            raise MovedError
        has_turned = before is not None and not {*before.keys} & {*page.keys}
        is_last = coming.keys == page.keys and has_turned
        self._refuse_the_same(paging, page, position, is_last=is_last)
        return True

    def _refuse_the_same(
        self,
        paging: PageNumbers | Offsets,
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

    # Pages that begin where so many items are skipped.

    async def _by_offset(self, paging: Offsets) -> AsyncGenerator[Got, None]:
        page = first = self._taken(await self._get(paging.first()))
        fresh: Got | None = page.got
        position = page.got.count
        while page.keys and not self._end.is_reached(page, position, self._limit):
            if fresh is not None:
                yield fresh
                fresh = None
            coming = page
            if page.got.count > 1:
                coming = await self._overlapping(paging, page, position)
                if await self._is_ignored(page, coming):
                    behind = await self._get(paging.skipping(position, self._limit))
                    if behind.without(page.keys).count:
                        self._overlaps = False  # it skips whole pages alone
                        raise MovedError
                    self._refuse_the_same(paging, page, position)
                    page = coming
                    break
                position = coming.step.number + coming.got.count
                new = coming.without(page.keys)
                if new.count:
                    page, fresh = self._taken(coming), new
                    continue
                if coming.got.count > 1:
                    self._repair()
                    page = coming
                    continue
            behind = await self._get(paging.skipping(position, self._limit))
            known = {*page.keys, *coming.keys}
            is_end = all(key in known or hash(key) in self._known for key in behind.keys)
            if not is_end or self._largest == 1:
                # Pages of one do not overlap: the one before is asked again.
                if (await self._get(coming.step)).keys != coming.keys:
                    raise MovedError
                if is_end and behind.keys:
                    self._refuse_the_same(paging, page, position)
            if is_end and behind.keys and self._is_pushed and behind.got.count > 1:
                self._repair()  # what is known was pushed there, and what is not may follow
                page, position = behind, position + behind.got.count
                continue
            if is_end:
                page = behind
                break
            page = self._taken(behind)
            fresh, position = page.got, position + page.got.count
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
        """Tell whether the API answers the same, whatever offset it is asked for."""
        if coming.keys != page.keys or coming.step.number == page.step.number:
            return False
        if (await self._get(page.step)).keys == page.keys:
            return True
        self._is_pushed = True
        self._repair()
        return False

    async def _overlapping(self, paging: Offsets, page: ListPage, position: int) -> ListPage:
        """Return what follows a page, from one record before, which must be on that page.

        Raises:
            MovedError: More was removed in front of it than a page has.
        """
        coming = await self._get(paging.skipping(position - 1, max(self._limit, 2)))
        if coming.keys and coming.keys[0] in page.keys:
            pushed = len(page.keys) - 1 - page.keys.index(coming.keys[0])
            # A page that lacks what was filtered out of it is longer than it looks.
            self._repairs += pushed > 0
            self._is_pushed |= pushed > max(self._limit - len(page.keys), 0)
            return coming
        self._repair()
        self._is_drawn = True
        coming = await self._get(paging.skipping(page.step.number, max(self._limit, 2)))
        if not coming.keys or coming.keys[0] not in page.keys:
            raise MovedError
        return coming

    # What both have in common.

    async def _get(self, step: Step) -> ListPage:
        paging = self._paging
        while True:
            if isinstance(paging, Offsets) and step.size > max(self._limit, 2):
                step = paging.skipping(step.number, self._limit)
            accept = set[int]()
            if self._end.filled and isinstance(paging, PageNumbers | Offsets):
                accept.update(paging.end_status)
                accept.update({404} if isinstance(paging, PageNumbers) else ())
            smaller = set[int]()
            if isinstance(paging, Offsets) and self._limit > SMALLEST_PAGE:
                smaller.update(paging.too_large)
            got = await self._api.page(
                step, accept=accept | smaller, may_be_empty=self._end.filled > 0
            )
            status = got.answer.status
            if isinstance(paging, Offsets) and status in smaller and status not in accept:
                self._limit = max(self._limit // 2, SMALLEST_PAGE)
                continue
            if status == 404 and not self._means_the_end(got):
                raise self._api.refusal(got)
            keys = tuple(await self._api.keys(got.items))
            if step.is_counted and len(keys) != got.count:
                raise self._api.error(
                    f"gives {got.count} items on a page, too many to be compared with others: ask "
                    "for smaller pages"
                )
            return ListPage(step, got, keys)

    def _means_the_end(self, got: Got) -> bool:
        """Tell whether a 404 says that a page lies beyond the end, as Django's says by itself."""
        if 404 in getattr(self._paging, "end_status", ()):
            return True
        try:
            return bool(json.loads(got.answer.body) == {"detail": "Invalid page."})
        except ValueError:
            return False

    def _taken(self, page: ListPage) -> ListPage:
        """Return a page that was added to what is read of the list.

        Raises:
            SourceError: It was there before, or is one of too many without a record.
        """
        self._asked.add(page.step.place)
        if page.keys and len(page.keys) != page.got.count:
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
        self._empty = 0
        digest = hash(page.keys)
        if digest in self._digests:
            if page.step.is_counted:
                raise MovedError
            raise self._api.error("leads to a page that was read already, and would never end")
        self._digests.add(digest)
        self._largest = max(self._largest, page.got.count)
        self._end.note(page)
        for key in page.keys[: KNOWN_KEYS - len(self._known)]:
            self._known.add(hash(key))
        return page

    def _repair(self) -> None:
        self._repairs += 1
        if self._repairs > REPAIRS:
            raise MovedError

    async def _front(self, first: ListPage) -> AsyncGenerator[Got, None]:
        """Yield what is in front of what was read now, as in an order of the newest first.

        Raises:
            MovedError: What was read is not to be found there, what came is not in front, or what
                came or went there was not to be seen in what was read.
        """
        step: Step | None = first.step
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
            if not ahead and step is first.step:
                if is_pushed:
                    break
                return
            is_drawn = True  # behind the first page, and from now on
            if known or not page.keys:
                self._known |= came
                step, is_pushed, came = first.step, is_pushed and not came, set()
                continue  # until nothing more came
            try:
                step = self._paging.after(step, page.got)
            except ValueError:
                break
        raise MovedError

    async def _judged(self, page: ListPage, position: int, first: ListPage) -> SourceError | None:
        """Return what contradicts an end behind ``page``; else note how it is known.

        Raises:
            MovedError: The list may have moved.
        """
        end, has_moved = self._end, self._repairs > 0
        try:
            problem = end.contradiction(page, position, has_moved=has_moved)
        except MovedError:
            is_checked = first.step.is_counted and page.step is not first.step
            if not is_checked or not end.has_shrunk_to(await self._get(first.step)):
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
        self.total, self.completeness = end.total, end.completeness(page, position)
        return None
