"""The pages of a TAXII collection: what they state, what they promise, and their order.

- All objects of a page get the time at which its last object was added; where a page reaches beyond
  the requested end, the last time before that, as any of them may be from before it.
- They keep the server's order, which is that of adding: sinks take the last of one time for the
  current one. Any other order within a page would depend on where pages end.
- An object without a time, from a server that states none, is stored at `NO_TIME`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from hashlib import blake2b
from typing import Any

from ladon_storage.collection.records import Page, Record, Reject, paged
from ladon_storage.sources.http.client import HttpResponse
from ladon_storage.sources.json.many import ManyItems
from ladon_storage.sources.timestamps import any_timestamps

ADDED_FIRST, ADDED_LAST = "X-TAXII-Date-Added-First", "X-TAXII-Date-Added-Last"
_SECOND = timedelta(seconds=1)
MILLISECOND = timedelta(milliseconds=1)
_MICROSECOND = timedelta(microseconds=1)
_FRACTION = re.compile(r":\d\d[.,](\d+)")
_CONTENT_RANGE = re.compile(r"^\s*items\b.*/\s*(\d{1,18})\s*$", re.IGNORECASE)
NO_TIME = datetime.min.replace(tzinfo=UTC)
"""The time of an object without one, from a server that states none either."""

_moment = any_timestamps()


@dataclass(frozen=True)
class Added:
    """The times at which a page's first and last object were added, and their precision.

    The first one is ``None`` where the server does not state it.
    """

    first: datetime | None
    last: datetime
    step: timedelta


def added_in(answer: HttpResponse) -> Added | None:
    """Return the times at which an answer's objects were added; ``None``: it states none."""
    found = {}
    for name in (ADDED_LAST, ADDED_FIRST):
        text = answer.headers.get(name, "")
        with suppress(ValueError):
            found[name] = _moment(text), text
    if not found:
        return None
    last, text = next(iter(found.values()))
    fraction = _FRACTION.search(text)
    step = _SECOND if fraction is None else _MICROSECOND
    if fraction is not None and len(fraction[1]) <= 3:
        step = MILLISECOND
    return Added(found[ADDED_FIRST][0] if ADDED_FIRST in found else None, last, step)


def total_in(answer: HttpResponse) -> int | None:
    """Return the total number of objects that a server states, as in TAXII 2.0."""
    found = _CONTENT_RANGE.search(answer.headers.get("Content-Range", ""))
    return int(found[1]) if found else None


@dataclass(frozen=True)
class Envelope:
    """A page as it arrived."""

    objects: Sequence[Any]
    more: bool | None
    next: str | None
    added: Added | None
    size: int
    total: int | None = None

    @property
    def goes_on(self) -> bool:
        """Whether another page is requested: a `next` implies it, too, whatever `more` says."""
        return bool(self.more) or self.next is not None

    def may_be_cut(self, limit: int) -> bool:
        """Return whether there may be more, and nothing in the page says anything about it.

        A server may have a smaller limit of its own; without times, nothing could be requested
        beyond that. A page of more than the limit comes from a server that does not cut.
        """
        says = self.goes_on or self.more is not None or self.total is not None
        least = limit if self.added is None else 1
        return not says and least <= len(self.objects) <= limit

    def goes_beyond(self, before: Envelope) -> bool:
        """Return whether a page from another's last object on has later ones behind it.

        Otherwise the server answered another query: it may repeat all, with the time of the answer.
        """
        if self.added is None or before.added is None or self.added.last <= before.added.last:
            return False
        return before.objects[-1] in self.objects[:-1]

    def is_full_of_ties(self, before: Envelope) -> bool:
        """Return whether a page from another's last object on has just as many, of that instant.

        The other one began earlier, so it lacked some: it was cut, and so may this one be.
        """
        if self.added is None or before.added is None or before.added.first is None:
            return False
        is_one = self.added.first == self.added.last == before.added.last > before.added.first
        return is_one and len(self.objects) == len(before.objects)

    @property
    def digest(self) -> bytes:
        """The digest that identifies a page, whatever its `next`."""
        if isinstance(self.objects, ManyItems):
            return self.objects.digest()
        return blake2b(
            repr(self.objects).encode(errors="backslashreplace"), digest_size=16
        ).digest()


@dataclass
class Question:
    """The answer to one query, page by page."""

    is_renewed: bool = False
    last: Envelope | None = None
    objects: int = 0
    seen: set[bytes] = field(default_factory=set)

    @property
    def is_over(self) -> bool:
        """Whether a page said that there is no more, but had a `next`."""
        return self.last is not None and self.last.more is False

    @property
    def total(self) -> int | None:
        """The number of objects that the last page states."""
        return None if self.last is None else self.last.total

    def repeats(self, envelope: Envelope) -> bool:
        """Return whether a page came before."""
        return envelope.digest in self.seen

    def add(self, envelope: Envelope) -> None:
        """Note a page."""
        self.seen.add(envelope.digest)
        self.objects += len(envelope.objects)
        self.last = envelope

    def lacks(self, envelope: Envelope) -> bool:
        """Return whether more was promised, and a last page contains none of it.

        A server without times that says itself that a page is the last is believed: no other query
        could show more.
        """
        if envelope.objects and not self.repeats(envelope):
            return False
        if self.last is None:
            return self.is_renewed
        return envelope.more is None or self.last.added is not None


@dataclass
class Order:
    """The time order of pages, up to the requested end."""

    until: datetime | None
    highest: datetime | None = None
    is_undated: bool = False

    def is_over(self, envelope: Envelope) -> bool:
        """Return whether a page, and so all after it, lies beyond the requested end."""
        added = envelope.added
        if self.is_undated or added is None or self.until is None:
            return False
        begins = self.highest if added.first is None else added.first
        return begins is not None and begins >= self.until

    def paged(self, envelope: Envelope, asked_at: datetime | None) -> Iterator[Page]:
        """Yield the objects of a page."""
        if not envelope.objects:
            return
        added, moment = envelope.added, None
        if added is not None and not self.is_undated:
            # A page that goes back must be visible as such to code that relies on the order.
            least = added.last if added.first is None else min(added.first, added.last)
            falls = self.highest is not None and (added.first or added.last) < self.highest
            moment = least if falls else added.last
            if self.until is not None:  # the page is not over
                moment = min(moment, self.until - _MICROSECOND)
            self.highest = moment if self.highest is None else max(self.highest, moment)
        marks: dict[str, Any] = {"undated": True} if self.is_undated else {}
        yield from paged(_records(envelope.objects, moment), asked_at=asked_at, **marks)


def _records(objects: Sequence[Any], moment: datetime | None) -> Iterator[Record | Reject]:
    for each in objects:
        record_id = each.get("id") if isinstance(each, dict) else None
        try:
            if not isinstance(record_id, str):
                raise ValueError("id: missing, or not a text")  # noqa: TRY301 - as Record says it
            yield Record.of(record_id, moment or _own_time(each), each)
        except ValueError as error:
            yield Reject.of(error, each, record_id)


def _own_time(item: dict[str, Any]) -> datetime:
    for name in ("modified", "created"):
        try:
            return _moment(item.get(name))
        except ValueError:
            continue
    return NO_TIME
