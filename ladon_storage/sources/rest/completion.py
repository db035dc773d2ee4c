"""The decision whether a list is complete: what was declared, and what contradicts it.

- A hint that was not declared never proves an end; it can only contradict one.
- A list with fewer records than its total is an error, never a shorter list.
- "There are more" is withdrawn by a page that says the contrary. A page that says nothing does not
  withdraw it, except in a list without a next link: where there is no link, no page follows.
"""

from __future__ import annotations

import logging

from ladon_storage.collection.records import Completeness
from ladon_storage.sources.http.client import OK, HttpResponse
from ladon_storage.sources.json.items import value_at
from ladon_storage.sources.rest.item_cursors import ItemCursors
from ladon_storage.sources.rest.links import next_in
from ladon_storage.sources.rest.listing import ListPage, PagedApi, SeenRecords
from ladon_storage.sources.rest.names import LONGEST_SIGN
from ladon_storage.sources.rest.page_metadata import (
    flags,
    hint,
    is_over,
    is_sign,
    may_be_cut,
    misses_front,
    promise,
    promised_at,
)
from ladon_storage.sources.rest.pagination import (
    CursorPagination,
    LinkHeaderPagination,
    NextLinkPagination,
    OffsetPagination,
    PageNumberPagination,
    SinglePage,
    leads_on,
)
from ladon_storage.sources.rest.refusals import is_beyond
from ladon_storage.sources.rest.stated import StatedNumbers, by_declaration

logger = logging.getLogger(__name__)


class Completion:
    """The evidence about the end of a list that one reading collects.

    Args:
        api: The source.
        tally: The records delivered in the reading.

    Attributes:
        numbers: The totals that the API states, beside what came.
        cursors: The values of items by which pages lead on.
        led_on: Whether a page led to another one.
    """

    def __init__(self, api: PagedApi, tally: SeenRecords) -> None:
        self._api = api
        self._paging = api.paging
        self._tally = tally
        self.numbers = StatedNumbers(api, tally)
        self.cursors = ItemCursors(api)
        self._last: HttpResponse | None = None
        self._around: set[str] | None = None
        self._lost: list[str] = []
        self._led: str | None = None
        self._is_first = True
        self._flagged = self._flagged_before = False
        self.led_on = False

    def note(self, page: ListPage) -> None:
        """Add a page that is read, also one without an item."""
        self._note_envelope(page)
        if page.keys and self._is_first:
            self._check_front(page)
        self._is_first = False
        self.numbers.note(page)
        self.cursors.note(page)
        if not page.keys:
            return
        self._last = page.response.answer
        self._led = self._promise(page, heeds_next=not leads_on(self._paging))
        self._flagged_before, self._flagged = self._flagged, self._says_more(page) is True

    def _check_front(self, page: ListPage) -> None:
        got = page.response
        place = None
        if not self._paging.only_declared:
            first = getattr(self._paging, "first_number", 0)
            place = misses_front(got.answer, got.document, got.items, self._api.records, first)
        if place is not None:
            raise self._api.error(
                f"says at {place!r} that the first page is not its first", self._way_out
            )

    def is_reached(self, page: ListPage, position: int, limit: int) -> bool:
        """Return whether the declared total says that no page follows."""
        is_reached = self.numbers.is_reached(page, position, limit)
        return is_reached and self.promised(page, position) is None

    def is_over(self, page: ListPage, position: int) -> bool:
        """Return whether a page without an item is the end, whatever it links to."""
        if page.keys or self._paging.only_declared:
            return False
        got = page.response
        return (self.numbers.is_whole(position) and self.numbers.filled > 0) or is_over(
            got.answer, got.document, got.items, self._api.records
        )

    def promised(self, page: ListPage, position: int) -> str | None:
        """Return the sign on a page that more pages follow."""
        if self._is_denied(page):
            return None
        is_whole = self.numbers.is_whole(position)
        # A total that is met by several pages counts none of them.
        heeds_next = self._heeds_next(page) and not (is_whole and self.numbers.filled > 1)
        return self._promise(page, heeds_next=heeds_next, position=position if is_whole else None)

    def _is_denied(self, page: ListPage) -> bool:
        """Return whether the declared flag of a page says that no more follow."""
        more, document = getattr(self._paging, "more", ""), page.response.document
        return bool(more) and promised_at(document, more) is False

    def _heeds_next(self, page: ListPage) -> bool:
        """Return whether a next link or cursor counts that is not the declared one."""
        if not leads_on(self._paging):
            return True
        path = getattr(self._paging, "path", "")
        return not (self.led_on or (path and _has(page.response.document, path)))

    def _promise(
        self, page: ListPage, *, heeds_next: bool, position: int | None = None
    ) -> str | None:
        got = page.response
        if self._paging.only_declared:
            return None
        return promise(
            got.answer,
            got.document,
            got.items,
            self._api.records,
            heeds_next=heeds_next,
            position=position,
            is_alone=isinstance(self._paging, SinglePage),
        )

    def contradiction(
        self, page: ListPage, position: int, *, has_moved: bool
    ) -> tuple[str, str] | None:
        """Return the contradiction of an end, worded for an error, with the next step.

        Raises:
            MovedError: A total contradicts it, perhaps because the list moved.
        """
        self.numbers.note_last(page)
        self.cursors.note(page)
        if problem := self.numbers.shortage(position, has_moved=has_moved):
            return problem, "" if self._paging.total else self._way_out
        if promised := self.promised(page, position):
            problem = f"{promised}, and the reading ends{by_declaration(self._paging)}"
            return problem, self._way_out
        problem = self.numbers.missing_pages(has_moved=has_moved)
        return None if problem is None else (problem, self._way_out)

    @property
    def _way_out(self) -> str:
        """The next step where a sign that was not declared contradicts a declaration."""
        if not self._api.has_settings:
            return ""
        is_single = isinstance(self._paging, SinglePage)
        step = "declare its paging" if is_single else "the settings of the source"
        return (
            f"check whether the API has changed, and {step}, or set paging.only_declared if that "
            "means something else"
        )

    def goes_on(self, page: ListPage) -> bool:
        """Return whether an empty page says that other pages follow."""
        if self._paging.only_declared:
            return False
        return self._says_more(page) is True or self.numbers.has_more_pages

    def _says_more(self, page: ListPage) -> bool | None:
        """Return whether a page says that there are more; ``None``: it does not say."""
        got, more = page.response, getattr(self._paging, "more", "")
        if more and (flag := promised_at(got.document, more)) is not None:
            return flag
        if self._promise(page, heeds_next=False) is not None:
            return True
        return False if is_over(got.answer, got.document, got.items, self._api.records) else None

    def breaks_off(self, page: ListPage, position: int) -> str | None:
        """Return the sign that an end withdraws silently, worded for an error.

        A list without a next link may be the last of linked pages, with records or without. An
        answer is not the last page if it lacks the flag of more that the page before it had, if it
        has no list, or if it lacks everything that stood around each list before it.
        """
        got, paging = page.response, self._paging
        if (
            not self.numbers.filled
            or paging.only_declared
            or self.numbers.is_proven(page, position)
        ):
            return None
        if got.document is None and got.answer.status not in OK:
            return None  # by a status that was declared
        is_led = leads_on(self._paging) and not self.goes_by_items and not page.request.is_once
        if is_led and self.led_on and got.document is None:
            return "leads to a page that has no content, not even an empty list"
        led = self._led
        is_last = page.keys and self.lacks_sign(page, position)
        if self._lost and (is_last or (not page.keys and (led or (is_led and self.led_on)))):
            return (
                f"has no {' nor '.join(map(repr, self._lost))} on its last page, unlike the "
                "pages before"
            )
        if not self.is_silent(page) or led is None:
            return None
        is_linked = self._last is not None and next_in(
            self._last.headers.getall("Link", []), self._last.url
        )
        if self._flagged or got.document is None or (is_linked and not leads_on(self._paging)):
            return f"{led}, and then ends without records and without a sign of the end"
        return None

    def _note_envelope(self, page: ListPage) -> None:
        """Remember what stands around each list, and whether all of it is gone."""
        document, paging = page.response.document, self._paging
        if not isinstance(document, dict) or not self._api.records:
            return
        path = paging.path if isinstance(paging, NextLinkPagination | CursorPagination) else ""
        known = {each.partition(".")[0] for each in (self._api.records, path)}
        others = [key for key in document if len(key) <= LONGEST_SIGN]
        around = {key for key in others if key not in known and not is_sign(key)}
        self._lost = sorted(self._around or ()) if not (self._around or set()) & around else []
        if page.keys:
            self._around = around if self._around is None else self._around & around

    def is_silent(self, page: ListPage) -> bool:
        """Return whether an empty page says nothing by what could lead on or end a list."""
        got = page.response
        return not page.keys and not flags(got.answer, got.document, got.items, self._api.records)

    def lacks_sign(self, page: ListPage, position: int) -> bool:
        """Return whether a last page has no place for the sign that every earlier page had."""
        paging = self._paging
        if not (page.keys and self.led_on) or page.request.is_once or self.goes_by_items:
            return False
        if paging.only_declared or self.numbers.is_proven(page, position):
            return False
        if isinstance(paging, NextLinkPagination | CursorPagination):
            return not _has(page.response.document, paging.path) and self._says_more(page) is None
        return (
            isinstance(paging, LinkHeaderPagination) and "Link" not in page.response.answer.headers
        )

    def may_have_skipped(self) -> str | None:
        """Return the sign that the list moved, unless it is the same when read again."""
        count, tally = self.numbers.sure_count, self._tally
        if isinstance(self._paging, SinglePage) or not tally.has_repeated:
            return None
        if count is not None and tally.is_exact:
            is_short = tally.records < count
            return "returned some records twice in place of others" if is_short else None
        is_declared = getattr(self._paging, "stable", False)
        if (
            is_declared
            or isinstance(self._paging, PageNumberPagination | OffsetPagination)
            or self.goes_by_items
        ):
            return None
        return "returned some records twice"

    @property
    def _repeats_in_place(self) -> bool:
        """Whether pages of a list that did not move share records, perhaps in place of others.

        Pages without a common order do: each is the same when it is requested again.
        """
        if isinstance(self._paging, OffsetPagination) or self.goes_by_items:
            return False
        return self._tally.has_repeated

    @property
    def goes_by_items(self) -> bool:
        """Whether a cursor is a value of the last item, so that a list that moves skips nothing."""
        paging, records = self._paging, self._api.records
        return isinstance(paging, CursorPagination) and paging.path.startswith(
            f"{records}." if records else "-1"
        )

    def completeness(self, page: ListPage, position: int, *, has_moved: bool) -> Completeness:
        """Return the proof of the end after ``page``, if nothing contradicts it."""
        paging = self._paging
        if paging.only_declared or getattr(paging, "stable", False):
            return "declared"
        if isinstance(paging, SinglePage):
            is_cut = self.numbers.total is None and self._may_be_cut(page, position)
            return "declared" if is_cut else "whole document"
        total = self.numbers.total
        if total is not None and (total == self.numbers.came(position) or self.numbers.has_shrunk):
            return "total" if self._tally.is_exact else "declared"
        if self.cursors.may_have_gaps or (not has_moved and self._repeats_in_place):
            return "declared"
        if page.keys:  # some APIs omit a flag that is false
            is_left_out = self._flagged_before and self._says_more(page) is None
            is_alone = self._is_alone(page) and self._may_be_cut(page, position)
            return "declared" if is_left_out or is_alone else "last page"
        if self.is_refused(page):
            return "declared"
        return "declared" if self.is_silent(page) and self._led is not None else "last page"

    def is_refused(self, page: ListPage) -> bool:
        """Return whether only a status that was declared makes a page the end, and is checked."""
        answer, paging = page.response.answer, self._paging
        if paging.only_declared or getattr(paging, "stable", False):
            return False
        is_declared = answer.status in getattr(paging, "end_status", ())
        return is_declared and not (self.numbers.is_met or is_beyond(answer))

    def _is_alone(self, page: ListPage) -> bool:
        """Return whether a page should say which one is next, and has no place for that at all."""
        paging, got = self._paging, page.response
        if not leads_on(paging) or self.led_on or self._says_more(page) is not None:
            return False
        if isinstance(paging, NextLinkPagination | CursorPagination):
            return not _has(got.document, paging.path) and paging.path not in got.answer.headers
        return "Link" not in got.answer.headers

    def _may_be_cut(self, page: ListPage, position: int) -> bool:
        """Return whether the only page is as large as was requested, or looks like one of many."""
        got = page.response
        told = (got.answer, got.document, got.items, self._api.records)
        return self._api.is_round(position) or may_be_cut(*told)

    def with_hints(self, completeness: Completeness, page: ListPage, position: int) -> Completeness:
        """Return the proof of the end, without what takes it away: a sign in no known place.

        The log names the sign, and how to settle what it means.
        """
        paging, got, api = self._paging, page.response, self._api
        is_settled = completeness == "total" or self.numbers.is_proven(page, position)
        if is_settled or paging.only_declared or not api.has_settings:
            return completeness
        found = None
        if not self._is_denied(page):
            told = (got.answer, got.document, got.items, api.records)
            found = hint(*told, heeds_next=self._heeds_next(page))
        step = "Declare its paging" if isinstance(paging, SinglePage) else "Check its paging"
        if found is None and (found := self.numbers.hint(position)) is not None:
            step = "Set paging.total to that place if it is one"
        if found is None:
            return completeness
        logger.warning(
            "The API of source %r %s, and the reading ends with %d records%s. %s, or set "
            "paging.only_declared if it means something else.",
            api.source_id,
            found,
            self.numbers.came(position),
            by_declaration(paging),
            step,
            extra={"source_id": api.source_id},
        )
        return "declared"


def _has(document: object, path: str) -> bool:
    """Return whether there is anything at a path, including null."""
    if isinstance(document, dict) and path in document:
        return True
    above, _, name = path.rpartition(".")
    there = value_at(document, above)
    return isinstance(there, dict) and name in there
