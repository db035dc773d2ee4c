"""MISP: the events of an instance (restSearch), or a feed of files that a manifest lists.

- The timestamp of an event is its ``timestamp``, not the day ``date`` that a user set.
- An event that was synced from another instance arrives with the timestamp of its origin. If its
  transfer took longer than the overlap, only a backfill finds it.
- An instance is paged by ids: an event that changes meanwhile keeps its place. By timestamps it
  would move to the end and pull another event onto a page that was already read.
- A feed's manifest lists everything: an event that it no longer lists was removed, and a listed
  event that the sink lacks is read, however old. It may list a file that is missing for ever; that
  entry goes into the quarantine, and the rest continues.
- The timestamp of a feed's event is the manifest's: a file that was changed after the manifest was
  read must not move the watermark beyond the others that changed with it.
- A file that is older than the manifest says, as a cache serves it, is not the listed one. It keeps
  its own timestamp, so that the sink still lacks the listed one, and it replaces nothing.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Set
from contextlib import aclosing
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, JsonValue, model_validator

from ladon_storage.collection.credentials import SecretName, resolve_secret
from ladon_storage.collection.protocols import KnownContent
from ladon_storage.collection.ranges import TimeRange
from ladon_storage.collection.records import Page, Record, Reject
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
from ladon_storage.sources.json.documents import AT_ONCE_BYTES
from ladon_storage.sources.json.items import value_at
from ladon_storage.sources.rest.pagination import PageNumberPagination
from ladon_storage.sources.rest.source import RestApi
from ladon_storage.sources.timestamps import format_timestamp, unix_timestamps
from ladon_storage.values import SourceId

PAGE_EVENTS = 10
"""Events of a feed in one page: a single event may have a hundred thousand attributes."""

_LONGEST_RAW = 2**20
"""Bytes that are kept of a file that is no event."""

_REFUSED = (403, 404, 410)
"""Statuses of a missing file; object stores answer 403 to clients that may not list."""

_OURS = frozenset({"returnFormat", "limit", "page", "order", "timestamp"})
_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_moment = unix_timestamps()

logger = logging.getLogger("ladon_storage.collection")


class Misp(BaseModel):
    """MISP's events, each with its attributes and objects.

    >>> Misp(via="feed", url="https://feeds.example.org/osint/").full_snapshot
    True
    """

    model_config = ConfigDict(**SETTINGS, title="MISP")

    kind: Literal["misp"] = Field("misp", title="Kind", description="The kind of source.")
    via: Literal["restsearch", "feed"] = Field(
        "restsearch",
        title="Read from",
        description="An instance, which needs a key, or a feed of files.",
    )
    url: SourceUrl = Field(
        title="Address",
        description="The instance, such as https://misp.example.org, or the folder of the feed's "
        "manifest.json.",
    )
    key: SecretName | None = Field(None, title="Key name", description=KEY_TEXT)
    source_id: SourceId = Field("misp", title="Source id", description=SOURCE_ID_TEXT)
    overlap: Overlap = overlap_field(
        timedelta(hours=24), "As long as an event may be on its way from where it was made."
    )
    page_size: int = Field(
        50,
        ge=1,
        le=10_000,
        title="Page size (events)",
        description="How many events a page of an instance is asked to have.",
        validation_alias=AliasChoices("page_size", "limit"),
    )
    filters: dict[str, JsonValue] = Field(
        {},
        title="Filters",
        description='What else an instance is asked for, as restSearch takes it: {"tags": "apt"}.',
    )
    connection: Connection | None = connection_field()

    @model_validator(mode="after")
    def _check(self) -> Misp:
        if self.via == "restsearch" and self.key is None:
            raise ValueError("an instance needs a key; set the name of the secret that holds it")
        if self.via == "feed" and self.filters:
            raise ValueError("a feed takes no filters; leave them empty")
        if ours := sorted(_OURS & self.filters.keys()):
            raise ValueError(f"the filters {', '.join(ours)} are set by the collection itself")
        return self

    @property
    def full_snapshot(self) -> bool:
        """Whether a run lists all events that exist."""
        return self.via == "feed"

    @property
    def ordered(self) -> bool:
        """Whether pages are in time order: a feed is read by its manifest's timestamps."""
        return self.via == "feed"

    @property
    def order_guaranteed(self) -> bool:
        """Whether this side makes the order: a feed's files are requested in it."""
        return self.ordered

    @property
    def uses_known(self) -> bool:
        """Whether known events are looked up, so that a feed's files need not be read again."""
        return self.via == "feed"

    async def pages(
        self, start: datetime | None, until: datetime | None, known: KnownContent | None = None
    ) -> AsyncIterator[Page]:
        """Yield the events that an instance finds from ``start`` to ``until``.

        From a feed, yield the events that are not ``known`` as listed, whatever their time; or
        those in the range, if it has an end. The other listed events are named.
        """
        if self.via == "feed":
            read = self._fed(start, until, known)
        else:
            read = self._searched(start, until)
        async with aclosing(read) as pages:
            async for page in pages:
                yield page

    async def _searched(
        self, start: datetime | None, until: datetime | None
    ) -> AsyncGenerator[Page, None]:
        body: dict[str, Any] = {**self.filters, "returnFormat": "json", "order": "Event.id asc"}
        if start is not None or until is not None:
            since = "0" if start is None else format_timestamp(start, "seconds")
            # A single value is the beginning; both ends are included.
            body["timestamp"] = (
                since if until is None else [since, format_timestamp(until, "seconds", up=True)]
            )
        api = RestApi(
            source_id=self.source_id,
            connection=self.connection,
            url=f"{self.url.rstrip('/')}/events/restSearch",
            method="POST",
            body=body,
            key=self.key,
            records="response",
            id="Event.uuid",
            timestamps=("Event.timestamp",),
            timestamp_format="seconds",
            paging=PageNumberPagination(
                location="body", size_parameter="limit", page_size=self.page_size
            ),
        )
        async with api.http() as http:
            pages = api.fetch_pages(http, api.fetcher(http, start, until), check=_refuse_errors)
            async with aclosing(pages):
                async for page in pages:
                    yield page

    async def _fed(
        self, start: datetime | None, until: datetime | None, known: KnownContent | None
    ) -> AsyncGenerator[Page, None]:
        keys = None
        if self.key is not None:
            keys = Credentials(
                self.url, {"Authorization": await resolve_secret(self.key, self.source_id)}
            )
        async with source_http(
            self.source_id, credentials=keys, connection=self.connection
        ) as http:
            answer = await http.get(self._file("manifest.json"))
            manifest = (await http.document(answer, "")).items
            page, listed = self._listed(http, manifest)
            wanted = await _wanted(listed, start, until, known)
            page.listed.extend(sorted(listed.keys() - wanted))
            yield replace(page, total=len(manifest), asked_at=http.asked_at)
            events = sorted((listed[uuid], uuid) for uuid in wanted)
            refused, stale = 0, list[Record]()
            for first in range(0, len(events), PAGE_EVENTS):
                page, old = Page(), list[Record]()
                for moment, uuid in events[first : first + PAGE_EVENTS]:
                    found, status = await self._event(http, uuid, moment, manifest[uuid])
                    refused += status in _REFUSED
                    if isinstance(found, Reject):
                        page.rejects.append(found)
                    elif found.timestamp < moment:
                        old.append(found)
                    else:
                        page.records.append(found)
                yield page
                if old:
                    yield await _undated(old, known)
                stale += old
            self._warn_of_stale_files(stale, listed)
            if refused and refused == len(events):
                await self._refuse_a_closed_feed(http, listed, wanted)
            yield Page(completeness="whole document")

    def _warn_of_stale_files(self, stale: list[Record], listed: Mapping[str, datetime]) -> None:
        if not stale:
            return
        first = stale[0]
        logger.warning(
            "The feed of source %r at %s gives %d files older than its manifest lists them, as "
            "%s of %s in place of %s; each run asks for them until they are as listed. See whether "
            "a cache stands before the feed.",
            self.source_id,
            redact_url(self.url),
            len(stale),
            first.record_id,
            first.timestamp.isoformat(),
            listed[first.record_id].isoformat(),
            extra={"source_id": self.source_id},
        )

    async def _refuse_a_closed_feed(
        self, http: SourceHttp, listed: Mapping[str, datetime], wanted: Set[str]
    ) -> None:
        """Raise if even the newest event that was not requested is refused or missing."""
        others = listed.keys() - wanted
        if others:
            newest = max(others, key=lambda uuid: (listed[uuid], uuid))
            answer = await http.get(self._file(f"{newest}.json"), accept=(*OK, *_REFUSED))
            if answer.status not in _REFUSED:
                return
        raise self._error(
            f"lists {len(listed)} events, and each file that was asked for is refused or missing",
            "check the address, and what its key may read",
        )

    def _listed(self, http: SourceHttp, manifest: object) -> tuple[Page, dict[str, datetime]]:
        """Return the unusable entries of a manifest, and the timestamp of each listed event."""
        if not isinstance(manifest, dict) or not manifest:
            raise self._error(
                "is no object of events, or is empty",
                "nothing of it was stored, see what the feed publishes",
            )
        page, listed = Page(), {}
        for uuid, entry in manifest.items():
            try:
                listed[uuid] = _listed_at(uuid, entry)
            except ValueError as error:
                page.rejects.append(Reject.of(error, {uuid: entry}, uuid))
        if not listed:
            raise self._error(
                f"lists nothing that is an event{http.said(manifest)}",
                "nothing of it was stored, see what the feed publishes",
            )
        return page, listed

    async def _event(
        self, http: SourceHttp, uuid: str, moment: datetime, entry: object
    ) -> tuple[Record | Reject, int]:
        answer = await http.get(self._file(f"{uuid}.json"), accept=(*OK, *_REFUSED))
        if answer.status in _REFUSED:
            reason = f"the manifest lists it, and its file answers {answer.status}"
            return Reject.of(reason, {uuid: entry}, uuid), answer.status
        read = partial(_read_event, http, answer, uuid, moment)
        is_large = len(answer.body) > AT_ONCE_BYTES
        return (await asyncio.to_thread(read) if is_large else read()), answer.status

    def _file(self, name: str) -> str:
        return f"{self.url.removesuffix('manifest.json').rstrip('/')}/{name}"

    def _error(self, problem: str, step: str) -> SourceError:
        return SourceError(
            f"The manifest of source {self.source_id!r} at {redact_url(self.url)} {problem}; "
            f"{step}.",
            self.source_id,
        )


async def _wanted(
    listed: Mapping[str, datetime],
    start: datetime | None,
    until: datetime | None,
    known: KnownContent | None,
) -> Set[str]:
    """Return the events to read: those in a range with an end, else those that are not known."""
    if until is None and known is not None:
        return await known.lacking(listed)
    asked = TimeRange(start, until)
    return {uuid for uuid, moment in listed.items() if moment in asked}


def _refuse_errors(document: object) -> str | None:
    """Return the error that an instance reports in its own answer, if any."""
    errors = document.get("errors") if isinstance(document, dict) else None
    return f"says that it has errors: {errors!r}" if errors else None


def _read_event(
    http: SourceHttp, answer: HttpResponse, uuid: str, moment: datetime
) -> Record | Reject:
    try:
        event = http.parsed(answer)
        if value_at(event, "Event.uuid") == uuid:
            return Record.of(uuid, min(moment, _own_time(event, moment)), event)
        problem = "Event.uuid: is not the one that the manifest lists"
    except (SourceError, ValueError) as error:
        problem = str(error)
    return Reject(problem, answer.body[:_LONGEST_RAW].decode(errors="replace"), uuid)


def _own_time(event: object, listed: datetime) -> datetime:
    try:
        return _moment(value_at(event, "Event.timestamp"))
    except ValueError:
        return listed


async def _undated(old: list[Record], known: KnownContent | None) -> Page:
    """Return the page of events older than listed; they are only named where the sink has newer.

    The page is in no order, and the source has not gone back to them.
    """
    ids = {each.record_id: each.timestamp for each in old}
    lacking = ids.keys() if known is None else await known.lacking(ids)
    return Page(
        [each for each in old if each.record_id in lacking],
        listed=sorted(ids.keys() - lacking),
        undated=True,
    )


def _listed_at(uuid: str, entry: object) -> datetime:
    """Return the timestamp of a listed event.

    Raises:
        ValueError: The manifest does not say, or lists what cannot be the name of a file.
    """
    if not _UUID.fullmatch(uuid):
        raise ValueError("the manifest lists it under a name that is no UUID")
    try:
        return _moment(value_at(entry, "timestamp"))
    except ValueError as error:
        raise ValueError(f"timestamp: {error}") from None
