"""One reading of a list: its pages, what came until now, and the end that must be proven.

- An end counts only if nothing contradicts it: a total, a "there are more", a next link or cursor.
- Records that arrived at the front meanwhile are read at the end: an order of the newest first puts
  changed records there.
- Memory does not grow with the list: the keys of a page or two are held, and of a fixed number of
  rows.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator
from dataclasses import dataclass

from ladon_storage.collection.records import Completeness
from ladon_storage.errors import SourceError
from ladon_storage.sources.rest.beside import Beside
from ladon_storage.sources.rest.completion import Completion
from ladon_storage.sources.rest.listing import ListPage, MovedError, PagedApi, SeenRecords
from ladon_storage.sources.rest.page import PageRequest, PageResponse
from ladon_storage.sources.rest.pagination import OffsetPagination, PageNumberPagination
from ladon_storage.sources.rest.positions import PageTrail
from ladon_storage.sources.rest.refusals import BEYOND, is_beyond, limit_named
from ladon_storage.sources.rest.unread import Unread

REPAIRS = 1_000
"""The limit on returns to the page before, to resume from a known record, in one reading."""

EMPTY_PAGES = 1_000
"""Consecutive pages without a record after which a list with cursors counts as endless."""

FRONT_PAGES = 20
"""The limit on pages of records that arrived at the front while a list was read."""

KNOWN_KEYS = 100_000
"""Rows of a list that are remembered to recognise its front again."""

SMALLEST_PAGE = 100

_PARTIAL = 206

_DENIALS = frozenset({400, 404, 410, 422})
"""The statuses with which APIs answer beyond the end, and also any wrong request."""


@dataclass
class Learned:
    """The facts about a list that hold for its next reading, too.

    Args:
        limit: The number of items that a page by offset requests.
        overlaps: Whether pages by offset overlap, to show that the list did not move.
        is_known: Whether the number of its first page is known, and not only declared.

    Attributes:
        base: The number added to an offset, where the API counts its items from 1.
        sequence: The hash of the last reading, if it reached its end.
        completeness: The proof of the end; ``None`` before it.
        total: The number of items that the API states.
    """

    limit: int
    overlaps: bool
    is_known: bool
    base: int = 0
    sequence: int | None = None
    completeness: Completeness | None = None
    total: int | None = None


class Reading(ABC):
    """A reading of a list from its first page to its end.

    Args:
        api: The source.
        learned: The facts from earlier readings.
    """

    def __init__(self, api: PagedApi, learned: Learned) -> None:
        self._api = api
        self._paging = api.paging
        self._learned = learned
        self._found: set[int] = set()
        self._rows: list[int] = []
        """The hashes of rows that are not in the set yet: most lists end without a look into it."""
        self._asked: set[str] = set()
        self._digests: set[int] = set()
        self._tally = SeenRecords(KNOWN_KEYS)
        self._end = Completion(self._api, self._tally)
        self._numbers = self._end.numbers
        self._beside = Beside(self._api, self._tally)
        self._first_status: int | None = None
        self._sequence = 0
        self._largest = 0
        self._trail = PageTrail()
        self._empty = 0
        self._repairs = 0
        self._is_pushed = False
        """Whether records were inserted in front of what was read."""
        self._is_drawn = False
        """Whether records were removed in front of what was read."""

    @abstractmethod
    def pages(self) -> AsyncGenerator[PageResponse, None]:
        """Yield the new records of each page.

        Raises:
            MovedError: The list changed so that records may have been skipped.
            SourceError: A page has another structure, leads nowhere or in a circle, or the end is
                contradicted.
        """

    async def _get(self, step: PageRequest) -> ListPage:
        paging = self._paging
        while True:
            if isinstance(paging, OffsetPagination) and step.size > max(self._learned.limit, 2):
                step = paging.skipping(step.number, self._learned.limit)
            ends = set[int]()
            if self._numbers.filled and isinstance(paging, PageNumberPagination | OffsetPagination):
                ends.update(paging.end_status, (BEYOND,), _DENIALS)
            smaller = set[int]()
            if isinstance(paging, OffsetPagination):
                smaller = {*paging.too_large} - {*paging.end_status}
                if self._learned.limit <= SMALLEST_PAGE:
                    smaller &= _DENIALS  # another one may be tried again later
            asked = step
            if isinstance(paging, OffsetPagination) and self._learned.base:
                asked = paging.skipping(step.number + self._learned.base, step.size)
            got = await self._api.page(
                asked, accept=ends | smaller, may_be_empty=self._numbers.filled > 0
            )
            status = got.answer.status
            if status in smaller and self._learned.limit > SMALLEST_PAGE:
                self._learned.limit = max(self._learned.limit // 2, SMALLEST_PAGE)
                continue
            if status in smaller - ends or (status in ends and not self._means_the_end(got)):
                raise self._api.refusal(got)
            found = await self._api.keys(got.items)
            keys, ids = tuple(found), getattr(found, "ids", None)
            if step.is_counted and len(keys) != got.count:
                raise self._api.error(
                    f"has {got.count} items on a page, too many to be compared with other pages",
                    "request smaller pages",
                )
            return ListPage(step, got, keys, ids)

    def _means_the_end(self, got: PageResponse) -> bool:
        """Return whether a refusal means that a page lies beyond the end.

        It does where that was declared, where all stated records came, or where it says so. One
        that names a limit means the contrary, unless only what is declared counts.
        """
        if not self._paging.only_declared and limit_named(got.answer) is not None:
            return False
        is_declared = got.answer.status in getattr(self._paging, "end_status", ())
        return is_declared or self._numbers.is_met or is_beyond(got.answer)

    def _taken(self, page: ListPage) -> ListPage:
        """Return a page after adding it to the pages read.

        Raises:
            SourceError: It was there before, or is one of too many without a record.
        """
        self._asked.add(page.request.place)
        self._refuse_a_part(page)
        if page.keys and len(page.keys) != page.response.count:
            self._tally.leave_out()  # it is too large to be held
        hashes = self._tally.add(page.keys, page.ids)
        self._sequence = hash((self._sequence, *page.keys))
        if not page.keys:
            self._end.note(page)
            self._empty += 1
            if self._empty >= EMPTY_PAGES:
                raise self._api.error(
                    f"leads from page to page, {self._empty} times without a record"
                )
            return page
        self._empty = 0
        digest = hash(page.keys)
        if digest in self._digests:
            if page.request.is_counted:
                raise MovedError("returned a page that was already read")
            raise self._api.error(
                "leads back to a page that was already read, so the reading would never end"
            )
        self._digests.add(digest)
        self._largest = max(self._largest, page.response.count)
        self._trail.add(page)
        self._end.note(page)
        if len(self._found) + len(self._rows) + len(hashes) <= KNOWN_KEYS:
            self._rows += hashes
        else:  # some of the others may be the same
            known = self._known
            known.update(hashes[: max(KNOWN_KEYS - len(known), 0)])
        return page

    @property
    def _known(self) -> set[int]:
        """The hashes of the rows that are remembered."""
        self._found.update(self._rows)
        self._rows.clear()
        return self._found

    def _refuse_a_part(self, page: ListPage) -> None:
        """Refuse a page that calls itself a part, in a list whose first page does not."""
        status = page.response.answer.status
        if self._first_status is None:
            self._first_status = status
        elif status == _PARTIAL != self._first_status:
            raise self._api.error(
                f"answered {status}, a part, for a page, and {self._first_status} for the first one"
            )

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
                self._known.update(came)
                step, is_pushed, came = first.request, is_pushed and not came, set()
                continue  # until nothing more arrived
            try:
                step = self._paging.next_request(step, page.response)
            except ValueError:
                break
        raise MovedError

    async def _ended(
        self,
        page: ListPage,
        position: int,
        first: ListPage,
        fresh: PageResponse | None,
        *,
        has_front: bool,
    ) -> AsyncGenerator[PageResponse, None]:
        """Yield the last records once the end after ``page`` is proven."""
        if has_front:
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

    async def _judged(self, page: ListPage, position: int, first: ListPage) -> SourceError | None:
        """Return the contradiction to an end after ``page``; otherwise note the proof of the end.

        Raises:
            MovedError: The list may have moved.
        """
        end, has_moved = self._end, self._repairs > 0
        if self._numbers.is_short(position) and (nothing := await self._beside.nothing(first)):
            self._numbers.disregard(nothing)
        try:
            problem = end.contradiction(page, position, has_moved=has_moved)
        except MovedError:
            is_checked = first.request.is_counted and page.request is not first.request
            if not is_checked or not self._numbers.has_shrunk_to(await self._get(first.request)):
                raise
            problem = end.contradiction(page, position, has_moved=has_moved)
        if problem is not None:
            return self._api.error(*problem)
        doubt, silent = end.may_have_skipped(), end.breaks_off(page, position)
        before, self._learned.sequence = self._learned.sequence, self._sequence
        if (doubt or silent) and before != self._sequence:
            raise MovedError(silent or doubt)
        if silent is not None:
            return self._api.error(silent)
        completeness = end.completeness(page, position, has_moved=has_moved)
        unread = Unread(self._api, end, self._trail, self._beside, self._get)
        if completeness != "total" and (passed := await unread.sharing_a_cursor()):
            return self._api.error(*passed)
        if completeness not in ("total", "declared") or end.is_refused(page):
            missed = None
            if not self._learned.is_known:
                missed = await unread.beside(first, page) or await unread.between(first, page)
            if missed is not None:
                return self._api.error(*missed)
            if await unread.is_behind(page):
                if before != self._sequence:
                    raise MovedError("has other records behind a page without a next link")
                return self._api.error(
                    "has no next link on a page, and has other records on the page behind it"
                )
        self._learned.total = self._numbers.total
        self._learned.completeness = end.with_hints(completeness, page, position)
        return None

    def _refuse_the_same(
        self,
        paging: PageNumberPagination | OffsetPagination,
        page: ListPage,
        position: int,
        *,
        is_last: bool = False,
    ) -> None:
        if self._numbers.is_proven(page, position):
            return
        if problem := self._end.promised(page, position):
            raise self._api.error(f"{problem}, and returned the same page again")
        if is_last or paging.end == "repeat":
            return
        raise self._api.error(
            "returned the same page again, whichever page was requested: it may have no "
            "pages, or its last page may be its first"
        )
