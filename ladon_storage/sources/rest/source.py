"""Any JSON API, by configuration alone.

- The answers decide nothing that was not declared: another structure fails the run, and a next page
  on another host is not requested. Answers may contradict a declaration, which fails the run as
  well.
- The API's own filter selects nothing here: a range in days, or an API without a range, is only
  slower.
- An API that needs both ends of a range is asked until now; later records come with the next run.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from datetime import datetime
from typing import Any

from pydantic import ConfigDict

from ladon_storage.collection.credentials import resolve_secret
from ladon_storage.collection.protocols import KnownContent
from ladon_storage.collection.records import PAGE_CHARACTERS, PAGE_RECORDS, Page, paged
from ladon_storage.sources.fields import SETTINGS
from ladon_storage.sources.http.client import Credentials, SourceHttp, source_http
from ladon_storage.sources.json.documents import in_turns
from ladon_storage.sources.json.many import ManyItems, ManyKeyed
from ladon_storage.sources.rest.fetching import PageFetcher
from ladon_storage.sources.rest.page import PageRequest, PageResponse
from ladon_storage.sources.rest.pagination import SinglePage
from ladon_storage.sources.rest.requests import ApiRequests
from ladon_storage.sources.rest.settings import RestSettings, TimeParameter
from ladon_storage.sources.rest.shared_ids import IdKinds, SharedIds

__all__ = ["RestApi", "TimeParameter"]

logger = logging.getLogger(__name__)

_LONGEST_PROBLEM = 200
"""Characters that are quoted of an API's error in a successful answer."""


class RestApi(RestSettings):
    """A JSON API.

    >>> RestApi(source_id="quakes", url="https://example.org/quakes", records="features",
    ...      id="id", timestamps=("properties.updated",), timestamp_format="milliseconds").overlap
    datetime.timedelta(days=1)
    """

    model_config = ConfigDict(**SETTINGS, title="JSON API")

    @property
    def ignores_range(self) -> bool:
        """Whether the API delivers everything, whatever range is requested."""
        return self.since is None

    @property
    def uses_known(self) -> bool:
        """``True``: a single document that the sink has is not read again."""
        return True

    async def pages(
        self, start: datetime | None, until: datetime | None, known: KnownContent | None = None
    ) -> AsyncIterator[Page]:
        """Yield the records of a range, page by page as the API delivers them.

        The last page says how the end was known. A list that moved is read again, and may repeat
        records.
        """
        async with self.http() as http:
            is_whole = isinstance(self.paging, SinglePage) and self.ignores_range and until is None
            requests = ApiRequests(self, http, self.bounds_of(start, until), is_whole, known)
            async with aclosing(self.fetch_pages(http, PageFetcher(requests))) as pages:
                async for page in pages:
                    if is_whole:
                        page = replace(
                            page, document=requests.document, unchanged=requests.is_known
                        )
                    yield page

    async def fetch_pages(
        self,
        http: SourceHttp,
        fetcher: PageFetcher,
        check: Callable[[object], str | None] = lambda _: None,
    ) -> AsyncGenerator[Page, None]:
        """Yield the pages of a list, the last one with the proof of the end.

        ``check`` returns the problem of a document that looks like a page.
        """
        is_said = False
        shared = SharedIds(self.id if isinstance(self.id, str) else " and ".join(self.id))
        path = self.id if isinstance(self.id, str) else self.id[0] if len(self.id) == 1 else ""
        kinds = IdKinds(path) if path and not self.records_keyed_by_id else None
        async with aclosing(fetcher.pages()) as steps:
            async for got in steps:
                if problem := check(got.document):
                    raise fetcher.error(http.masked(problem)[:_LONGEST_PROBLEM])
                is_said = fetcher.completeness is not None
                marks = _marks(http, fetcher)
                if isinstance(got.items, list) and len(got.answer.body) < PAGE_CHARACTERS:
                    made = self._made_together(got.items, kinds, shared, marks)
                elif isinstance(got.items, ManyItems | ManyKeyed):
                    made = self._made_in_runs(got.items, kinds, shared, marks)
                else:
                    items = got.items if kinds is None else map(kinds.note, got.items)
                    made = paged(shared.seen(self.read(items)), **marks)
                async for page in in_turns(made, len(got.answer.body)):
                    yield page
                if shared.problem:
                    raise fetcher.error(shared.problem, "set id to the path of their own ids")
                if kinds is not None and kinds.problem:
                    raise fetcher.error(
                        f"{kinds.problem}, which are one id",
                        "set id to several paths, whose values keep their kinds",
                    )
        doubts = [kinds.doubt if kinds is not None else None]
        if shared.doubt:
            doubts.append(
                f"{shared.doubt} that differ. Check whether that is the path of their ids"
            )
        for doubt in filter(None, doubts):
            logger.warning(
                "Source %r %s.", self.source_id, doubt, extra={"source_id": self.source_id}
            )
        if not is_said:
            yield Page(**_marks(http, fetcher))

    def _made_together(
        self, items: list[Any], kinds: IdKinds | None, shared: SharedIds, marks: dict[str, Any]
    ) -> Iterator[Page]:
        """Yield the pages of a list, which make their records together."""
        reader = self.reader()
        for first in range(0, max(len(items), 1), PAGE_RECORDS):
            some = items if len(items) <= PAGE_RECORDS else items[first : first + PAGE_RECORDS]
            if kinds is not None:
                kinds.note_all(some)
            page = Page(*reader.read_all(some), **marks)
            shared.note_all(page.records)
            yield page

    def _made_in_runs(
        self,
        items: ManyItems | ManyKeyed,
        kinds: IdKinds | None,
        shared: SharedIds,
        marks: dict[str, Any],
    ) -> Iterator[Page]:
        """Yield the pages of a large document, which is read a part at a time."""
        reader, parts, room, characters = self.reader(), list[Page](), PAGE_RECORDS, 0
        for keys, run in items.runs():
            first = 0
            while first < len(run):
                some, names = run[first : first + room], keys[first : first + room]
                if kinds is not None:
                    kinds.note_all(some)
                made = reader.read_all_keyed(names, some) if keys else reader.read_all(some)
                parts.append(Page(*made))
                first, room = first + len(some), room - len(some)
                characters += parts[-1].characters
                if not room or characters >= PAGE_CHARACTERS:
                    yield _joined(parts, shared, marks)
                    parts, room, characters = [], PAGE_RECORDS, 0
            del keys, run, some  # they are not held while the next ones are read
        if parts:
            yield _joined(parts, shared, marks)

    @asynccontextmanager
    async def http(self) -> AsyncIterator[SourceHttp]:
        """Open the HTTP client of one run, with the key in it."""
        keys = None
        if self.key is not None:
            value = await resolve_secret(self.key, self.source_id)
            if self.key_param:
                keys = Credentials(self.url, params={self.key_param: value})
            else:
                keys = Credentials(
                    self.url, {self.key_header: self.auth_prefix + value}, redact=(value,)
                )
        async with source_http(
            self.source_id,
            credentials=keys,
            rate=self.rate,
            throttle_statuses=self.throttle_statuses,
            connection=self.connection,
        ) as http:
            yield http

    def fetcher(
        self, http: SourceHttp, start: datetime | None, until: datetime | None
    ) -> PageFetcher:
        """Return a page fetcher for a range of an API whose pagination is known, not declared."""
        bounds = self.bounds_of(start, until)
        return PageFetcher(ApiRequests(self, http, bounds, has_settings=False), is_known=True)

    async def fetch(self, http: SourceHttp, step: PageRequest) -> PageResponse:
        """Return one page of the API, without judging it as a part of a list.

        Raises:
            SourceError: It did not arrive, or has another structure.
        """
        requests = ApiRequests(self, http, self.bounds_of(None, None))
        return await requests.page(step, accept=(), may_be_empty=True)


def _marks(http: SourceHttp, fetcher: PageFetcher) -> dict[str, Any]:
    return {
        "asked_at": http.asked_at,
        "completeness": fetcher.completeness,
        "total": fetcher.total,
    }


def _joined(parts: Sequence[Page], shared: SharedIds, marks: dict[str, Any]) -> Page:
    """Return the page of several parts, with its marks."""
    page = Page.of(parts)
    shared.note_all(page.records)
    return replace(page, **marks)
