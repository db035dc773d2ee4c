"""The requests of one reading of a JSON API, and the pages made of their answers.

- An answer has the structure that was declared, or is refused, also one that says that it failed.
- An address from the API is requested only on its own host.
"""

from __future__ import annotations

import asyncio
import copy
import json
import logging
from collections import deque
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from hashlib import blake2b
from itertools import islice
from typing import Any, cast

from yarl import URL

from ladon_storage.collection.protocols import KnownContent, utc_now
from ladon_storage.errors import SourceError
from ladon_storage.sources.http.client import OK, HttpResponse, SourceHttp
from ladon_storage.sources.http.urls import is_same_host
from ladon_storage.sources.json.bounds import IN_THREAD_BYTES
from ladon_storage.sources.json.documents import (
    Document,
    beside_keyed,
    document_digest,
    is_keyed,
    is_list,
    off_loop,
)
from ladon_storage.sources.json.items import getter, value_at, values_at
from ladon_storage.sources.json.many import ManyItems, ManyKeyed
from ladon_storage.sources.json.spooled import SpooledBody
from ladon_storage.sources.rest.body import put_at
from ladon_storage.sources.rest.failures import failure, other_list, refusal
from ladon_storage.sources.rest.listing import KEY_END, Keys
from ladon_storage.sources.rest.names import count_in, names, plain
from ladon_storage.sources.rest.page import PageRequest, PageResponse
from ladon_storage.sources.rest.page_metadata import MOST_NAMES, crowded
from ladon_storage.sources.rest.pagination import (
    CursorPagination,
    Location,
    Pagination,
    SinglePage,
)
from ladon_storage.sources.rest.refusals import limit_named
from ladon_storage.sources.rest.settings import RestSettings

logger = logging.getLogger(__name__)

_MOST_KEYS = 100_000
"""Items of a page that are distinguished."""

_MOST_FAILURES = 10
"""Items without an id or a time that are examined for the failure that they may report."""

_LONGEST_REFUSAL = 200
"""Characters that are quoted of a refusal."""

_REPEATED = 2
"""Pages that are recognised when they come again: a page, and the one that follows it."""

_AHEAD = timedelta(days=1)
"""How far in the future a range is certainly empty, even if rounded to whole days."""

_LIMITS = names(
    "limit perpage pagesize size max maxresults resultsperpage rows top pagelimit count"
)


@dataclass
class ApiRequests:
    """The requests of one reading of an API, and the pages made of their answers.

    Args:
        is_single: Whether the single answer is all that the API has.
        known: The content that the sink has of it.
        has_settings: Whether the source has the settings of a JSON API, which an error may name.

    Attributes:
        document: The digest of that answer.
        is_known: Whether the sink has all its records, so that none was read.
    """

    api: RestSettings
    http: SourceHttp
    bounds: Mapping[Location, dict[str, Any]]
    is_single: bool = False
    known: KnownContent | None = None
    has_settings: bool = True
    document: str | None = None
    is_known: bool = False
    _size: int = 0
    _read: deque[PageResponse] = field(init=False, default_factory=lambda: deque(maxlen=_REPEATED))
    """The last pages: one that was requested again is rarely another one."""
    _keyed: deque[tuple[Any, list[str]]] = field(
        init=False, default_factory=lambda: deque(maxlen=_REPEATED)
    )

    @property
    def source_id(self) -> str:
        """The stable name."""
        return self.api.source_id

    @property
    def paging(self) -> Pagination:
        """The pagination."""
        return self.api.paging

    @property
    def records(self) -> str:
        """The path of the items."""
        return self.api.records

    @property
    def timestamps(self) -> tuple[str, ...]:
        """The paths of an item's times."""
        return self.api.timestamps

    @property
    def limits(self) -> dict[str, int]:
        """The parameters of each request that limit the items of a page, with their values."""
        params = self.api.params.items()
        limits = {name: count_in(value) for name, value in params if plain(name) in _LIMITS}
        return {name: limit for name, limit in limits.items() if limit is not None}

    async def page(
        self, step: PageRequest, *, accept: Collection[int], may_be_empty: bool
    ) -> PageResponse:
        """Return a page; one with a status of ``accept``, or an empty body, has no items."""
        # A page may call itself a part; a single document that does so lacks the rest.
        usual = OK if isinstance(self.api.paging, SinglePage) else (*OK, 206)
        answer = await self._ask(step, (*usual, *accept))
        nothing: Any = {} if self.api.records_keyed_by_id else []
        if answer.status in accept:
            return PageResponse(answer, None, nothing)
        if answer.is_empty:
            if self.api.records_optional or (answer.status == 204 and may_be_empty):
                return PageResponse(answer, None, nothing)
            raise self.error(
                f"answered {answer.status} without a body",
                self._setting("set records_optional if that means that there are no records"),
            )
        if self.is_single:
            self.document = await off_loop(len(answer.body), document_digest, self.api, answer.body)
            if self.known is not None and self.known.document == self.document:
                self.is_known = True
                return PageResponse(answer, None, nothing)
        for each in self._read:
            if each.answer.body == answer.body and each.answer.status == answer.status:
                self._size = len(answer.body)
                return replace(each, answer=answer)
        if isinstance(self.api.paging, SinglePage) and len(answer.body) > IN_THREAD_BYTES:
            # It stands in for bytes: all that follows reads it a part at a time.
            body = await asyncio.to_thread(SpooledBody.of, answer.body)
            answer = replace(answer, body=cast(bytes, body))
            del body
        document = await self.http.document(answer, self.api.records)
        items = self._items(document)
        # The envelope of a large document is without its records.
        around = value_at(document.envelope, self.api.records)
        if isinstance(self.api.paging, CursorPagination) and around == [] and len(items):
            around.append(await off_loop(len(answer.body), items.__getitem__, -1))
        self._size = len(answer.body)
        got = PageResponse(answer, document.envelope, items)
        if not self.is_single:
            self._read.append(got)
        return got

    async def nothing(self, step: PageRequest) -> PageResponse | None:
        """Return a page of a range that has nothing yet; ``None`` where no range was asked."""
        api = self.api
        since = api.since
        if since is None or since.parameter not in self.bounds[since.location]:
            return None
        ahead = utc_now() + _AHEAD
        beside = replace(self, bounds=api.bounds_of(ahead, ahead), is_single=False)
        return await beside.page(step, accept=(), may_be_empty=True)

    async def keys(self, items: Any) -> list[str]:
        """Return the raw id and times of each item, or the whole item where it has no id.

        A single document needs no keys; an item that is too large to be held is identified as a
        whole.
        """
        if isinstance(self.api.paging, SinglePage):
            return ["document"] if len(items) else []
        for keyed, keys in self._keyed:
            if keyed is items:
                return keys
        keys = await off_loop(self._size, self._keys, items)
        self._keyed.append((items, keys))
        return keys

    def _keys(self, items: Any) -> list[str]:
        api = self.api
        if isinstance(items, ManyItems | ManyKeyed) and len(items) > _MOST_KEYS:
            return [items.digest().hex()]
        if api.records_keyed_by_id:
            return [f"{key}{KEY_END}{_values(item, api.timestamps)}" for key, item in items.items()]
        # The id itself, too, which may be a number or a text.
        told = (*([api.id] if isinstance(api.id, str) else api.id), *api.timestamps)
        if isinstance(api.id, str) and items and set(map(type, items)) == {dict}:
            ids = values_at(items, api.id)
            if set(map(type, ids)) == {str} and all(ids):
                columns = [_texts(values_at(items, path)) for path in api.timestamps]
                keys = map(KEY_END.join, zip(ids, *columns, strict=True))
                return Keys(keys, None if KEY_END in "".join(ids) else ids)
        getters = [getter(path) for path in told]
        reader, found = api.reader(), list[str]()
        for item in items:
            if type(item) is dict and isinstance(api.id, str):
                record_id = getters[0](item)
                if type(record_id) is str and record_id:
                    times = _texts([get(item) for get in getters[1:]])
                    found.append(KEY_END.join((record_id, *times)))
                    continue
            record_id = reader.record_id(item)
            if record_id is None:
                text = json.dumps(item, sort_keys=True, default=repr)
                found.append(blake2b(text.encode(errors="replace"), digest_size=16).hexdigest())
            else:
                found.append(f"{record_id}{KEY_END}{_values(item, told)}")
        return found

    def is_round(self, count: int) -> bool:
        """Return whether a page has exactly as many items as a parameter requests at most."""
        is_round = count > 0 and count in self.limits.values()
        if is_round:
            is_single = isinstance(self.paging, SinglePage)
            logger.warning(
                "Source %r returned exactly the %d records that its parameters request at most, "
                "and %s, so there may be more. %s",
                self.source_id,
                count,
                "declares no paging" if is_single else "nothing that leads to a second page",
                "Declare its paging."
                if is_single
                else "Check its paging, and whether that is the size of a page.",
                extra={"source_id": self.source_id},
            )
        return is_round

    def refusal(self, got: PageResponse) -> SourceError:
        """Return the error for an answer whose status does not allow reading to continue."""
        asked = {**self.bounds["query"], **self.bounds["body"]}
        sent = " and ".join(f"{name}={value}" for name, value in asked.items())
        sent = f" with {sent}" if sent else ""
        if (limit := limit_named(got.answer)) is not None:
            return self.error(
                f"answered {got.answer.status} for a page{sent}, and names a limit on what can be "
                f"read: {self.http.quoted(limit, _LONGEST_REFUSAL)}",
                "read less at a time, such as by a range or a filter"
                + self._setting(
                    ", or set paging.only_declared and paging.end_status if no record is behind it"
                ),
            )
        if got.answer.status in getattr(self.paging, "too_large", ()):
            # Smaller pages did not help, so it is the range, or else; NVD says why in a header.
            said = got.answer.headers.get("message")
            return self.error(
                f"answered {got.answer.status} to pages of any size{sent}"
                + (f", and says {self.http.quoted(said, _LONGEST_REFUSAL)}" if said else ""),
                "check the address, the key, and whether the API accepts the requested range",
            )
        return SourceError(
            f"Source {self.source_id!r} answered {got.answer.status} from "
            f"{self.http.redact_url(got.answer.url)} after earlier pages. Check what it requires"
            + self._setting(", or add the status to end_status if it means that no pages follow")
            + ".",
            self.source_id,
        )

    def _setting(self, step: str) -> str:
        """Return a step that names a setting, if the source has it."""
        return step if self.has_settings else ""

    def error(self, problem: str, step: str = "", *, transient: bool = False) -> SourceError:
        """Return the error for a problem of the API, with the next step if it is a special one."""
        usual = (
            "collect it again later"
            if transient
            else "check whether the API has changed, and the settings of the source"
        )
        subject = f"The API of source {self.source_id!r} at {self.http.redact_url(self.api.url)}"
        return self.http.error(f"{subject} {problem}", step or usual, transient=transient)

    async def _ask(self, step: PageRequest, accept: Collection[int]) -> HttpResponse:
        api = self.api
        if step.url is not None and not is_same_host(api.url, step.url):
            raise self.error(
                f"leads to a next page on another host, {self.http.redact_url(step.url)}, which "
                "was not requested",
                self._setting("set keep_host if that is the same service behind a gateway"),
            )
        # An address from the API itself has all the parameters.
        query = {**api.params, **self.bounds["query"], **step.query} if step.url is None else {}
        url = step.url or api.url
        if api.method == "GET":
            return await self.http.get(
                url,
                params=query,
                headers=api.headers,
                accept=accept,
                idempotent=not step.is_once,
            )
        body = copy.deepcopy(api.body or {})
        for path, value in {**self.bounds["body"], **step.body}.items():
            put_at(body, path, value)
        return await self.http.post(
            url,
            body,
            idempotent=not step.is_once,
            params=query,
            headers=api.headers,
            accept=accept,
        )

    def _items(self, document: Document) -> Any:
        """Return the list of a page, or the object whose keys are the ids."""
        api, envelope, items = self.api, document.envelope, document.items
        self._refuse_a_crowd(envelope, items)
        for path, values in api.expected_values.items():
            found = value_at(envelope, path)
            is_right = any(type(each) is type(found) and each == found for each in values)
            if values and not is_right:
                raise self.error(
                    f"has {self.http.quoted(found)} at {path!r} instead of {values!r}"
                    f"{self.http.said(envelope)}"
                )
        if items is None and api.records_optional and isinstance(envelope, dict):
            self._refuse_failure(envelope, None)
            self._refuse_sign(refusal(envelope, api.records, self._expected(envelope)), envelope)
            self._refuse_other_list(envelope)
            return {} if api.records_keyed_by_id else []
        if not (is_keyed if api.records_keyed_by_id else is_list)(items):
            wanted = "an object keyed by ids" if api.records_keyed_by_id else "a list"
            place = f"at {api.records!r}" if api.records else "at its top level"
            raise self.error(f"does not have {wanted} {place}{self.http.said(envelope)}")
        self._refuse_failure(envelope, items)
        return items

    def _refuse_a_crowd(self, envelope: object, items: object) -> None:
        """Refuse an answer with so many names around its records that a sign may be missed."""
        place = crowded(envelope, items, self.api.records)
        if place is not None:
            where = f"next to its records, at {self.http.quoted(place)}" if place else "around them"
            raise self.error(f"has more than {MOST_NAMES} names that are no records, {where}")

    def _refuse_failure(self, envelope: object, items: Any) -> None:
        """Refuse an answer that says that it failed, or is a part: next to records, or in place."""
        api = self.api
        if api.records or not api.records_keyed_by_id:
            sign = failure(envelope, items, api.records, self._expected(envelope))
            self._refuse_sign(sign, envelope)
        if api.records_keyed_by_id:
            among = beside_keyed(items) | self._timeless(items)
            above = f"{api.records}." if api.records else ""
            expected = [each.removeprefix(above) for each in api.expected_values]
            if sign := failure(among, items, "", expected):
                self._refuse_sign((above + sign[0], sign[1]), among)
        if not isinstance(items, list | dict) or self._has_records(items):
            return  # a large document is no message
        for each in [items] if api.records_keyed_by_id else islice(items, _MOST_FAILURES):
            self._refuse_sign(failure(each, None, "", api.expected_values), each)

    def _expected(self, envelope: object) -> set[str]:
        """Return the places that are right: those declared, and those that repeat the request."""
        api = self.api
        asked = {**URL(api.url).query, **api.params, **(api.body or {})}
        repeated = {name for name, value in asked.items() if value_at(envelope, name) == value}
        return {*api.expected_values, *repeated}

    def _timeless(self, items: Any) -> dict[str, Any]:
        """Return the objects without a time whose keys may be words, such as ``error``."""
        paths = self.api.timestamps
        if not isinstance(items, dict) or not paths:
            return {}
        return {
            key: item
            for key, item in items.items()
            if key.isidentifier()
            and isinstance(item, dict)
            and all(value_at(item, path) is None for path in paths)
        }

    def _refuse_sign(self, sign: tuple[str, Any] | None, said: object) -> None:
        if sign is None:
            return
        place, value = sign
        raise self.error(
            f"has {self.http.quoted(value)} at {place!r}, which looks like a "
            f"failure{self.http.said(said)}",
            self._setting("declare it in expected_values if it is right, with [] for any value"),
        )

    def _has_records(self, items: Any) -> bool:
        """Return whether any item has a time, or an id of its own."""
        api, paths = self.api, [*self.api.timestamps]
        if api.records_keyed_by_id:
            items = (
                each[0] if isinstance(each, list) and len(each) == 1 else each
                for each in items.values()
            )
        else:
            paths += [api.id] if isinstance(api.id, str) else api.id
        return any(value_at(item, path) is not None for item in items for path in paths)

    def _refuse_other_list(self, envelope: object) -> None:
        """Refuse an answer that lacks the list, and has a list of such records elsewhere."""
        wanted = self.api.id if isinstance(self.api.id, str) else next(iter(self.api.id), "")
        place = None if self.api.records_keyed_by_id or not wanted else other_list(envelope, wanted)
        if place is not None:
            raise self.error(
                f"does not have a list at {self.api.records!r}, and has one at "
                f"{self.http.quoted(place, 200)}"
            )


def _texts(values: list[Any]) -> list[str]:
    """Return values as texts, a text as it is and any other value with a mark of its own."""
    if set(map(type, values)) == {str}:
        return values
    return [each if type(each) is str else f"{KEY_END}{each!r}" for each in values]


def _values(item: object, paths: tuple[str, ...]) -> str:
    return repr([value_at(item, path) for path in paths])
