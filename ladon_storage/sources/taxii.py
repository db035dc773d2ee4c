"""A TAXII 2.1 collection: STIX objects, by the time when they were added to the collection.

- ``added_after`` refers to the time at which an object entered the collection, which the object
  does not contain. A page states it for its first and its last object, in headers. All objects of a
  page get the last object's time, since everything before it was read by then, too. So it is the
  watermark, and the time of a version grows with its page; requesting each object's own time would
  request everything twice.
- ``added_after`` is exclusive, and a server may count in milliseconds: each query begins a little
  earlier than needed, and repeated objects are stored once.
- `next` belongs to its query, and expires. If it expired, or if there is more without it, the query
  begins again at the last object, including that object's instant: ties may be wider than a page.
  If they are wider than any page that the server gives, the run fails.
- An empty page is no end if more was promised: without an object it says nothing about where the
  promise went. The query begins again at the last object, which must be repeated; if the server
  states no times, the run fails. A `next` is followed whatever `more` says, and a page with fewer
  objects than its `Content-Range` states is an error.
- A server may give the same `next` for every page. Only pages must not repeat.
- A server that does not state when objects were added, or in no readable form, is read completely
  each time. Its objects are stored by their own times, and no watermark moves.
- Objects deleted from the collection are not seen.
"""

from __future__ import annotations

import logging
import re
from base64 import b64encode
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from hashlib import blake2b
from typing import Any, Literal, NoReturn

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ladon_storage.collection.credentials import SecretName, resolve_secret
from ladon_storage.collection.records import Page, Record, Reject, paged
from ladon_storage.errors import SourceError
from ladon_storage.sources.fields import (
    KEY_TEXT,
    SETTINGS,
    SOURCE_ID_TEXT,
    Connection,
    Overlap,
    connection_field,
    overlap_field,
)
from ladon_storage.sources.http.client import OK, Credentials, HttpResponse, SourceHttp, source_http
from ladon_storage.sources.http.urls import SourceUrl, redact_url
from ladon_storage.sources.json.documents import Document, ManyItems, in_turns, is_list
from ladon_storage.sources.rest.failures import failure
from ladon_storage.sources.timestamps import any_timestamps, format_timestamp
from ladon_storage.values import SourceId

MEDIA_TYPE = "application/taxii+json;version=2.1"

_FIRST, _LAST = "X-TAXII-Date-Added-First", "X-TAXII-Date-Added-Last"
_SECOND = timedelta(seconds=1)
_MILLISECOND = timedelta(milliseconds=1)
_MICROSECOND = timedelta(microseconds=1)
_FRACTION = re.compile(r":\d\d[.,](\d+)")
_CONTENT_RANGE = re.compile(r"^\s*items\b.*/\s*(\d{1,18})\s*$", re.IGNORECASE)
_WITHOUT_OBJECTS = frozenset({"more", "next"})
"""The keys of an envelope without objects; any other answer without objects is a refusal."""

_EXPIRED = (400, 404, 410)
"""The statuses with which servers answer a `next` that expired."""

NO_TIME = datetime.min.replace(tzinfo=UTC)
"""The time of an object without one, from a server that states none either."""

logger = logging.getLogger("ladon_storage.collection")

_moment = any_timestamps()


class Taxii(BaseModel):
    """The objects of a TAXII 2.1 collection, in all their versions.

    >>> Taxii(url="https://taxii.example.org/api1/collections/91a7b528/").source_id
    'taxii'
    """

    model_config = ConfigDict(**SETTINGS, title="TAXII 2.1")

    kind: Literal["taxii"] = Field("taxii", title="Kind", description="The kind of source.")
    url: SourceUrl = Field(
        title="Address",
        description="The collection, such as "
        "https://taxii.example.org/api1/collections/91a7b528-80eb-42ed-a74d-c6fbd5a26116/.",
    )
    user: str = Field(
        "",
        title="User",
        description="With a user the key is the password; without one it is a bearer token.",
    )
    key: SecretName | None = Field(None, title="Key name", description=KEY_TEXT)
    source_id: SourceId = Field("taxii", title="Source id", description=SOURCE_ID_TEXT)
    overlap: Overlap = overlap_field(timedelta(hours=1))
    page_size: int = Field(
        500,
        ge=1,
        le=100_000,
        title="Page size (objects)",
        description="What a page is asked to have.",
    )
    connection: Connection | None = connection_field()

    @model_validator(mode="after")
    def _check(self) -> Taxii:
        if self.user and self.key is None:
            raise ValueError("a user needs a password; set key to the name of its secret")
        return self

    @property
    def ordered(self) -> bool:
        """``True``: a server must sort by the time when objects were added."""
        return True

    @property
    def order_guaranteed(self) -> bool:
        """``True``: the protocol guarantees it."""
        return True

    async def pages(self, start: datetime | None, until: datetime | None) -> AsyncIterator[Page]:
        """Yield the objects added from ``start`` on, up to the page that reaches ``until``.

        If the server does not state the times, all its objects are yielded, in undated pages.
        """
        place: _Place | None = _Place(_before(start, _MILLISECOND), self.page_size)
        async with source_http(
            self.source_id, credentials=await self._keys(), connection=self.connection
        ) as http:
            while place is not None:
                asked, place = place, None
                async with aclosing(self._envelopes(http, asked)) as envelopes:
                    order = _Order(until)
                    async for envelope in envelopes:
                        if envelope.objects and envelope.added is None:
                            self._warn_of_no_times(order)
                            if asked.after is not None:
                                # There is no way to know what such an answer leaves out.
                                place = _Place(None, self.page_size)
                                break
                        if order.is_over(envelope):
                            break
                        made = order.paged(envelope, http.asked_at)
                        async for page in in_turns(made, envelope.size):
                            yield page
        yield Page(completeness="last page")

    def _warn_of_no_times(self, order: _Order) -> None:
        if order.highest is not None:
            self._fail("no longer says when its objects were added, as it did on a page before")
        if not order.is_undated:
            order.is_undated = True
            logger.warning(
                "The collection of source %r at %s does not say when its objects were added, in "
                "%s and %s: all of it is read each time, and no watermark moves.",
                self.source_id,
                redact_url(self.url),
                _FIRST,
                _LAST,
                extra={"source_id": self.source_id},
            )

    async def _envelopes(self, http: SourceHttp, place: _Place) -> AsyncGenerator[_Envelope, None]:
        """Yield each page as it arrives; after an interruption some objects are repeated."""
        reached: _Envelope | None = None
        question = _Question()
        while True:
            answer = await self._ask(http, place)
            if answer.status in OK:
                envelope = self._opened(http, answer, await http.document(answer, "objects"))
                was_over, is_first = question.is_over, question.last is None
                repeats, lacks = question.repeats(envelope), question.lacks(envelope)
                if envelope.goes_on and repeats and not was_over:
                    self._fail("gives a page again that was read already, and would never end")
                question.add(envelope)
                yield envelope
                if envelope.added is not None:
                    reached = envelope
                if envelope.goes_on and envelope.next is not None and not repeats:
                    place = _Place(place.after, place.limit, envelope.next, place.most)
                    continue
                if (was_over and repeats) or not (envelope.goes_on or (lacks and not was_over)):
                    self._check_total(question)
                    return
                if lacks and (is_first or reached is None):
                    self._fail("says that there is more, and then gives nothing")
            elif question.is_over:
                return
            place = self._anew(place, reached)
            question = _Question(is_renewed=True)

    async def _ask(self, http: SourceHttp, place: _Place) -> HttpResponse:
        # All parameters again with each `next`: a server refuses one that comes with another query.
        params: dict[str, str | int] = {"limit": place.limit, "match[version]": "all"}
        if place.after is not None:
            params["added_after"] = format_timestamp(place.after, "iso")
        if place.next is not None:
            params["next"] = place.next
        return await http.get(
            f"{self.url.rstrip('/').removesuffix('/objects')}/objects/",
            params=params,
            headers={"Accept": MEDIA_TYPE},
            accept=OK if place.next is None else (*OK, *_EXPIRED),
        )

    def _opened(self, http: SourceHttp, answer: HttpResponse, found: Document) -> _Envelope:
        document, objects = found.envelope, found.items
        if isinstance(document, dict) and _WITHOUT_OBJECTS.issuperset(document):
            objects = []
        if not isinstance(document, dict) or not is_list(objects):
            self._fail(f"answers no envelope with a list of objects{http.said(document)}")
        if failure(document, objects, "objects") or ("title" in document and not objects):
            self._fail(f"answers an error beside its objects{http.said(document)}")
        following = document.get("next")
        if not isinstance(following, str | None):
            self._fail(f"answers a `next` that is a {type(following).__name__}")
        return _Envelope(
            objects,
            None if document.get("more") is None else bool(document["more"]),
            following or None,
            _added(answer) if objects else None,
            len(answer.body),
            _total(answer),
        )

    def _check_total(self, question: _Question) -> None:
        if question.total is not None and question.objects < question.total:
            self._fail(f"states {question.total} objects, and gives {question.objects}")

    def _anew(self, place: _Place, reached: _Envelope | None) -> _Place:
        """Return the query that resumes without `next`, at the last object's instant, inclusive."""
        if reached is None or reached.added is None:
            self._fail("says that there is more, and neither where nor when it was added")
        after = _before(reached.added.last, reached.added.step)
        if after is not None and (place.after is None or after > place.after):
            return _Place(after, self.page_size)
        # All objects so far were added at one instant, and there are more of them.
        if len(reached.objects) <= place.most:
            self._fail(
                f"added more than {len(reached.objects)} objects at "
                f"{reached.added.last.isoformat()}, gives no more at once, and no `next` that works"
            )
        return _Place(place.after, place.limit * 2, None, len(reached.objects))

    async def _keys(self) -> Credentials | None:
        if self.key is None:
            return None
        value = await resolve_secret(self.key, self.source_id)
        told = f"Bearer {value}"
        if self.user:
            told = f"Basic {b64encode(f'{self.user}:{value}'.encode()).decode()}"
        return Credentials(self.url, {"Authorization": told}, redact=(value,))

    def _fail(self, problem: str) -> NoReturn:
        raise SourceError(
            f"The collection of source {self.source_id!r} at {redact_url(self.url)} {problem}; "
            "nothing "
            "beyond it was stored, see what is wrong with the server.",
            self.source_id,
        )


@dataclass(frozen=True)
class _Place:
    """The query and position of a page.

    Args:
        after: The exclusive lower bound of the query; ``None``: it has none.
        limit: The number of objects that are requested.
        next: The position in the query's answer; ``None``: its beginning.
        most: The number of objects that came with a smaller limit, and were not enough.
    """

    after: datetime | None
    limit: int
    next: str | None = None
    most: int = 0


@dataclass(frozen=True)
class _Added:
    """The times at which a page's first and last object were added, and their precision."""

    first: datetime
    last: datetime
    step: timedelta


def _added(answer: HttpResponse) -> _Added | None:
    """Return the times at which an answer's objects were added; ``None``: it states none."""
    found = []
    for name in (_FIRST, _LAST):
        text = answer.headers.get(name, "")
        try:
            found.append((_moment(text), text))
        except ValueError:
            continue
    if not found:
        return None
    last, text = found[-1]
    fraction = _FRACTION.search(text)
    step = _SECOND if fraction is None else _MICROSECOND
    if fraction is not None and len(fraction[1]) <= 3:
        step = _MILLISECOND
    return _Added(found[0][0], last, step)


def _total(answer: HttpResponse) -> int | None:
    """Return the total number of objects that a server states, as in TAXII 2.0."""
    found = _CONTENT_RANGE.search(answer.headers.get("Content-Range", ""))
    return int(found[1]) if found else None


@dataclass(frozen=True)
class _Envelope:
    """A page as it arrived."""

    objects: Sequence[Any]
    more: bool | None
    next: str | None
    added: _Added | None
    size: int
    total: int | None = None

    @property
    def goes_on(self) -> bool:
        """Whether another page is requested: a `next` implies it, too, whatever `more` says."""
        return bool(self.more) or self.next is not None

    @property
    def digest(self) -> bytes:
        """The digest that identifies a page, whatever its `next`."""
        if isinstance(self.objects, ManyItems):
            return self.objects.digest()
        return blake2b(
            repr(self.objects).encode(errors="backslashreplace"), digest_size=16
        ).digest()


@dataclass
class _Question:
    """The answer to one query, page by page."""

    is_renewed: bool = False
    last: _Envelope | None = None
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

    def repeats(self, envelope: _Envelope) -> bool:
        """Return whether a page came before."""
        return envelope.digest in self.seen

    def add(self, envelope: _Envelope) -> None:
        """Note a page."""
        self.seen.add(envelope.digest)
        self.objects += len(envelope.objects)
        self.last = envelope

    def lacks(self, envelope: _Envelope) -> bool:
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
class _Order:
    """The time order of pages, up to the requested end."""

    until: datetime | None
    highest: datetime | None = None
    is_undated: bool = False

    def is_over(self, envelope: _Envelope) -> bool:
        """Return whether a page, and so all after it, lies beyond the requested end."""
        added = envelope.added
        if self.is_undated or added is None or self.until is None:
            return False
        return added.first >= self.until

    def paged(self, envelope: _Envelope, asked_at: datetime | None) -> Iterator[Page]:
        """Yield the objects of a page."""
        if not envelope.objects:
            return
        added, moment = envelope.added, None
        if added is not None and not self.is_undated:
            # A page that goes back must be visible as such to code that relies on the order.
            falls = self.highest is not None and added.first < self.highest
            moment = min(added.first, added.last) if falls else added.last
            self.highest = moment if self.highest is None else max(self.highest, moment)
        marks: dict[str, Any] = {"undated": True} if self.is_undated else {}
        yield from paged(_records(envelope.objects, moment), asked_at=asked_at, **marks)


def _records(objects: Sequence[Any], moment: datetime | None) -> Iterator[Record | Reject]:
    for each in objects:
        record_id = each.get("id") if isinstance(each, dict) else None
        try:
            if not isinstance(record_id, str):
                raise ValueError("id: missing, or no text")  # noqa: TRY301 - as Record says it
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


def _before(instant: datetime | None, step: timedelta) -> datetime | None:
    """Return the exclusive bound that includes ``instant``; ``None``: there is none."""
    try:
        return None if instant is None else instant - step
    except OverflowError:
        return None
