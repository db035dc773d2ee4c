"""Cursors that are a value of the last item, and items that share such a value.

- An API that goes on behind the value passes over the items that share it with the last one of a
  page. One that begins with the value does not, as its next page repeats the last item.
- A value that is unique, such as an id, has no such gap. Values that are equal but for their case
  may be equal to the API. A time is never known to be unique, wherever the API states it.
"""

from __future__ import annotations

from datetime import datetime

from ladon_storage.sources.json.items import value_at
from ladon_storage.sources.rest.listing import ListPage, PagedApi
from ladon_storage.sources.rest.page import PageRequest
from ladon_storage.sources.rest.pagination import CursorPagination, leads_on
from ladon_storage.sources.rest.positions import values_of
from ladon_storage.sources.timestamps import any_timestamps

MAX_CHECKS = 5
"""The limit on pages that end between items with one value whose other items are requested."""

_LONGEST_TIME = 100
"""Characters of the longest text that is read as a time."""

_read_time = any_timestamps()


class ItemCursors:
    """The values of items by which the pages of one reading lead on.

    Args:
        api: The source.
    """

    def __init__(self, api: PagedApi) -> None:
        self._paging = api.paging
        self._path = _path_in_item(api)
        self._times = api.timestamps
        self._last: ListPage | None = None
        self._is_one_value = False
        self._is_inclusive = False
        self._has_gaps = False
        self._checks: list[PageRequest] = []
        self.problem: str | None = None
        """The sign that items were passed over, worded for an error."""

    def note(self, page: ListPage) -> None:
        """Add the next page with items, also one that only ends the list."""
        if page is self._last or not isinstance(page.response.items, list):
            return
        before = self._last
        if before is not None and before.request.place == page.request.place:
            before = None  # the same page, requested again
        self._has_gaps |= before is not None and self._goes_by_time(page, before)
        if not page.keys:
            return
        self._last = page
        self._is_inclusive |= before is not None and before.keys[-1] in page.keys
        if self._path is None:
            return
        values = [_comparable(value_at(each, self._path)) for each in page.response.items]
        if before is not None and self._is_one_value and not self._is_inclusive:
            self.problem = (
                f"goes on behind a page whose {len(before.keys)} items all have one value "
                f"at {self._path!r}, so others with it may be passed over"
            )
        distinct = {*values}
        self._is_one_value = len(distinct) < 2 <= len(values)
        self._has_gaps |= self._path in self._times or len(distinct) < len(values)
        self._has_gaps |= None in distinct
        self._has_gaps |= _is_time(value_at(page.response.items[-1], self._path), page)
        if not self._is_one_value and len(values) > 1 and values[-1] == values[-2]:
            self._check_later(page, values)

    def _goes_by_time(self, page: ListPage, before: ListPage) -> bool:
        """Return whether a page was requested by a time of the last item before it."""
        if not leads_on(self._paging) or self._paging.only_declared:
            return False
        last = before.response.items[-1]
        moved = {*values_of(page.request)} - {*values_of(before.request)}
        return any(_is_time(value, before) and _holds(last, value) for _, value in moved)

    def _check_later(self, page: ListPage, values: list[str | None]) -> None:
        """Remember the request for all items that share the value of a page's last one."""
        before = max(place for place, each in enumerate(values) if each != values[-1])
        value = value_at(page.response.items[before], self._path or "")
        if isinstance(self._paging, CursorPagination) and len(self._checks) < MAX_CHECKS:
            self._checks.append(self._paging.requesting(value))

    @property
    def checks(self) -> list[PageRequest]:
        """The requests that show items which were passed over, once all pages are read."""
        return [] if self._is_inclusive else self._checks

    @property
    def may_have_gaps(self) -> bool:
        """Whether items may have been passed over, by all that is known."""
        return self._has_gaps and not self._is_inclusive


def _path_in_item(api: PagedApi) -> str | None:
    """Return the path of the cursor in an item; ``None``: it is elsewhere, or not checked."""
    paging, begin = api.paging, f"{api.records}.-1." if api.records else "-1."
    if not isinstance(paging, CursorPagination) or paging.only_declared:
        return None
    return paging.path.removeprefix(begin) if paging.path.startswith(begin) else None


def _comparable(value: object) -> str | None:
    """Return a value as APIs compare it at the most tolerant; ``None``: there is none."""
    return None if value is None else str(value).casefold().rstrip()


def _is_time(value: object, page: ListPage) -> bool:
    """Return whether a value is a time, and not a number that is the id of a page's last item."""
    return _instant(value) is not None and str(value) != page.last_id


def _instant(value: object) -> datetime | None:
    """Return the instant of a time; ``None``: it is none."""
    if isinstance(value, str) and len(value) > _LONGEST_TIME:
        return None
    try:
        return _read_time(value)
    except ValueError:
        return None


def _holds(item: object, text: str) -> bool:
    """Return whether any value of an item is a time, however it and the item's are written.

    A time in whole seconds is that of an item within its second.
    """
    wanted, left = _instant(text), [item]
    while left:  # a loop, since it may be nested deeply
        each = left.pop()
        if isinstance(each, dict | list):
            left += each.values() if isinstance(each, dict) else each
            continue
        there = _instant(each)
        if there is not None and wanted in (there, there.replace(microsecond=0)):
            return True
    return False
