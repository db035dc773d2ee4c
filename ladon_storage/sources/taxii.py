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
- A query whose only page says nothing about more may be cut, at the limit of the request or at a
  smaller one of the server: some never state `more`. One more query, from the last object on, shows
  it, and so on until one has nothing later.
- A server may give the same `next` for every page. Only pages must not repeat.
- A server that does not state when objects were added, or in no readable form, is read completely
  each time. Its objects are stored by their own times, and no watermark moves.
- Objects deleted from the collection are not seen.
"""

from __future__ import annotations

import logging
from base64 import b64encode
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Literal, NoReturn

from pydantic import ConfigDict, Field, model_validator

from ladon_storage.collection.credentials import SecretName, resolve_secret
from ladon_storage.collection.records import Page
from ladon_storage.sources.fields import (
    KEY_TEXT,
    SETTINGS,
    SOURCE_ID_TEXT,
    Connection,
    Overlap,
    SourceSettings,
    connection_field,
    overlap_field,
)
from ladon_storage.sources.http.client import OK, Credentials, HttpResponse, SourceHttp, source_http
from ladon_storage.sources.http.urls import SourceUrl, redact_url
from ladon_storage.sources.json.documents import (
    Document,
    in_turns,
    is_list,
)
from ladon_storage.sources.problems import published_error
from ladon_storage.sources.rest.failures import failure
from ladon_storage.sources.rest.names import truth
from ladon_storage.sources.taxii_envelopes import (
    ADDED_FIRST,
    ADDED_LAST,
    MILLISECOND,
    Envelope,
    Order,
    Question,
    added_in,
    total_in,
)
from ladon_storage.sources.timestamps import format_timestamp
from ladon_storage.values import SourceId

MEDIA_TYPE = "application/taxii+json;version=2.1"

_WITHOUT_OBJECTS = frozenset({"more", "next"})
"""The keys of an envelope without objects; any other answer without objects is a refusal."""

_EXPIRED = (400, 404, 410)
"""The statuses with which servers answer a `next` that expired."""
_REFUSED = (*_EXPIRED, 403, 406, 413, 416, 422, 500, 501)
"""The statuses of a server that refuses a larger limit."""

logger = logging.getLogger("ladon_storage.collection")


class Taxii(SourceSettings):
    """The objects of a TAXII 2.1 collection, in all their versions.

    >>> Taxii(url="https://taxii.example.org/api1/collections/91a7b528/").source_id
    'taxii'
    """

    model_config = ConfigDict(**SETTINGS, title="TAXII 2.1")

    kind: Literal["taxii"] = Field("taxii", title="Kind", description="Kind of source.")
    url: SourceUrl = Field(
        title="Address",
        description="URL of the collection, such as "
        "https://taxii.example.org/api1/collections/91a7b528-80eb-42ed-a74d-c6fbd5a26116/.",
    )
    user: str = Field(
        "",
        title="User",
        description="User name. The key is then the user's password; without a user it is a bearer "
        "token.",
    )
    key: SecretName | None = Field(None, title="Key name", description=KEY_TEXT)
    source_id: SourceId = Field("taxii", title="Source id", description=SOURCE_ID_TEXT)
    overlap: Overlap = overlap_field(timedelta(hours=1))
    page_size: int = Field(
        500,
        ge=1,
        le=100_000,
        title="Page size (objects)",
        description="Objects requested per page.",
    )
    connection: Connection | None = connection_field()

    @model_validator(mode="after")
    def _check(self) -> Taxii:
        if self.user and self.key is None:
            raise ValueError("a user requires a password; set key to the name of its secret")
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
        place: _Place | None = _Place(_before(start, MILLISECOND), self.page_size)
        async with source_http(
            self.source_id, credentials=await self._keys(), connection=self.connection
        ) as http:
            while place is not None:
                asked, place = place, None
                async with aclosing(self._envelopes(http, asked)) as envelopes:
                    order = Order(until)
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

    def _warn_of_no_times(self, order: Order) -> None:
        if order.highest is not None:
            self._fail("no longer states when its objects were added, as it did on an earlier page")
        if not order.is_undated:
            order.is_undated = True
            logger.warning(
                "The collection of source %r at %s does not state in %s and %s when its "
                "objects were added. Each run reads all of it, and no watermark moves.",
                self.source_id,
                redact_url(self.url),
                ADDED_FIRST,
                ADDED_LAST,
                extra={"source_id": self.source_id},
            )

    async def _envelopes(self, http: SourceHttp, place: _Place) -> AsyncGenerator[Envelope, None]:
        """Yield each page as it arrives; after an interruption some objects are repeated."""
        reached: Envelope | None = None
        question = Question()
        while True:
            answer = await self._ask(http, place)
            if answer.status in OK:
                envelope = self._opened(http, answer, await http.document(answer, "objects"))
                was_over, is_first = question.is_over, question.last is None
                repeats, lacks = question.repeats(envelope), question.lacks(envelope)
                if envelope.goes_on and repeats and not was_over:
                    self._fail(
                        "returned a page again that was already read, so the reading would never "
                        "end"
                    )
                question.add(envelope)
                yield envelope
                if envelope.added is not None:
                    reached = envelope
                if envelope.goes_on and envelope.next is not None and not repeats:
                    place = _Place(place.after, place.limit, envelope.next, place.most)
                    continue
                if (was_over and repeats) or not (envelope.goes_on or (lacks and not was_over)):
                    self._check_total(question)
                    if not (is_first and self._needs_check(place, question, envelope)):
                        return
                    place, question = self._checking(place, envelope), Question()
                    continue
                if lacks and (is_first or reached is None):
                    self._fail("says that there is more, and then returned nothing")
            elif question.is_over or place.checked is not None:
                return
            place = self._anew(place, reached)
            question = Question(is_renewed=True)

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
            accept=(*OK, *place.refusals),
        )

    def _opened(self, http: SourceHttp, answer: HttpResponse, found: Document) -> Envelope:
        document, objects = found.envelope, found.items
        if isinstance(document, dict) and _WITHOUT_OBJECTS.issuperset(document):
            objects = []
        if not isinstance(document, dict) or not is_list(objects):
            self._fail(
                f"did not answer with an envelope that has a list of objects{http.said(document)}"
            )
        if failure(document, objects, "objects") or ("title" in document and not objects):
            self._fail(f"answered with an error next to its objects{http.said(document)}")
        following = document.get("next")
        if not isinstance(following, str | None):
            self._fail(f"answered with a `next` that is a {type(following).__name__}")
        more = document.get("more")
        flag = truth(more)  # some servers write it as a text
        return Envelope(
            objects,
            None if more is None else bool(more) if flag is None else flag,
            following or None,
            added_in(answer) if objects else None,
            len(answer.body),
            total_in(answer),
        )

    def _check_total(self, question: Question) -> None:
        if question.total is not None and question.objects < question.total:
            self._fail(f"states {question.total} objects, and returned {question.objects}")

    def _anew(self, place: _Place, reached: Envelope | None) -> _Place:
        """Return the query that resumes without `next`, at the last object's instant, inclusive."""
        if reached is None or reached.added is None:
            self._fail(
                "says that there is more, without `next` and without the time when it was added"
            )
        after = _before(reached.added.last, reached.added.step)
        if after is not None and (place.after is None or after > place.after):
            return _Place(after, self.page_size)
        # All objects so far were added at one instant, and there are more of them.
        if len(reached.objects) <= place.most:
            self._fail_of_ties(reached, reached.added.last)
        return _Place(place.after, place.limit * 2, None, len(reached.objects))

    def _needs_check(self, place: _Place, question: Question, envelope: Envelope) -> bool:
        """Return whether a query's only page may have been cut."""
        added, before = envelope.added, place.checked
        if not envelope.may_be_cut(place.limit):
            return False
        if added is None or len(envelope.objects) == place.limit:
            return True
        if before is None:
            # A query is renewed where a server states `more`; a page of one instant would only come
            # again.
            return not question.is_renewed and added.first != added.last
        if envelope.is_full_of_ties(before):
            self._fail_of_ties(envelope, added.last)
        return envelope.goes_beyond(before)

    def _checking(self, place: _Place, envelope: Envelope) -> _Place:
        """Return the query that shows whether a page was cut."""
        if envelope.added is None:
            return _Place(place.after, place.limit * 2, None, place.limit, checked=envelope)
        return replace(self._anew(place, envelope), checked=envelope)

    def _fail_of_ties(self, envelope: Envelope, added: datetime) -> NoReturn:
        self._fail(
            f"added more than {len(envelope.objects)} objects at {added.isoformat()}, but returns "
            "no more at once, and no `next` that works"
        )

    async def _keys(self) -> Credentials | None:
        if self.key is None:
            return None
        value = await resolve_secret(self.key, self.source_id)
        authorization = f"Bearer {value}"
        if self.user:
            authorization = f"Basic {b64encode(f'{self.user}:{value}'.encode()).decode()}"
        return Credentials(self.url, {"Authorization": authorization}, redact=(value,))

    def _fail(self, problem: str) -> NoReturn:
        raise published_error(
            "collection",
            self.source_id,
            self.url,
            problem,
            "nothing beyond it was stored; check the server",
        )


@dataclass(frozen=True)
class _Place:
    """The query and position of a page.

    Args:
        after: The exclusive lower bound of the query; ``None``: it has none.
        limit: The number of objects that are requested.
        next: The position in the query's answer; ``None``: its beginning.
        most: The number of objects that came with a smaller limit, and were not enough.
        checked: The page that this query checks, where nothing promised more; a server may refuse
            the larger limit.
    """

    after: datetime | None
    limit: int
    next: str | None = None
    most: int = 0
    checked: Envelope | None = None

    @property
    def refusals(self) -> tuple[int, ...]:
        """The statuses that are an answer to the query, and no failure."""
        if self.checked is not None and self.most:
            return _REFUSED
        return _EXPIRED if self.checked is not None or self.next is not None else ()


def _before(instant: datetime | None, step: timedelta) -> datetime | None:
    """Return the exclusive bound that includes ``instant``; ``None``: there is none."""
    try:
        return None if instant is None else instant - step
    except OverflowError:
        return None
