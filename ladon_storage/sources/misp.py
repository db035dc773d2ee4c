"""MISP: the events of an instance (restSearch), or a feed of files that a manifest lists.

- The timestamp of an event is its ``timestamp``, not the day ``date`` that a user set.
- An event that was synced from another instance arrives with the timestamp of its origin. If its
  transfer took longer than the overlap, only a backfill finds it.
- An instance is paged by ids: an event that changes meanwhile keeps its place. By timestamps it
  would move to the end and pull another event onto a page that was already read.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from datetime import datetime, timedelta
from typing import Any, Literal

from pydantic import AliasChoices, ConfigDict, Field, JsonValue, model_validator

from ladon_storage.collection.credentials import SecretName
from ladon_storage.collection.protocols import KnownContent
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
from ladon_storage.sources.http.urls import SourceUrl
from ladon_storage.sources.misp_feed import MispFeed
from ladon_storage.sources.rest.pagination import PageNumberPagination
from ladon_storage.sources.rest.source import RestApi
from ladon_storage.sources.timestamps import format_timestamp
from ladon_storage.values import SourceId

_OURS = frozenset({"returnFormat", "limit", "page", "order", "timestamp"})


class Misp(SourceSettings):
    """MISP's events, each with its attributes and objects.

    >>> Misp(via="feed", url="https://feeds.example.org/osint/").full_snapshot
    True
    """

    model_config = ConfigDict(**SETTINGS, title="MISP")

    kind: Literal["misp"] = Field("misp", title="Kind", description="Kind of source.")
    via: Literal["restsearch", "feed"] = Field(
        "restsearch",
        title="Read from",
        description="A MISP instance, which requires a key, or a feed of files.",
    )
    url: SourceUrl = Field(
        title="Address",
        description="URL of the instance, such as https://misp.example.org, or of the folder that "
        "holds the feed's manifest.json.",
    )
    key: SecretName | None = Field(None, title="Key name", description=KEY_TEXT)
    source_id: SourceId = Field("misp", title="Source id", description=SOURCE_ID_TEXT)
    overlap: Overlap = overlap_field(
        timedelta(hours=24),
        "Set it to the time that an event may take to arrive from another instance.",
    )
    page_size: int = Field(
        50,
        ge=1,
        le=10_000,
        title="Page size (events)",
        description="Events requested per page of an instance.",
        validation_alias=AliasChoices("page_size", "limit"),
    )
    filters: dict[str, JsonValue] = Field(
        {},
        title="Filters",
        description='Further filters for restSearch, such as {"tags": "apt"}.',
    )
    connection: Connection | None = connection_field()

    @model_validator(mode="after")
    def _check(self) -> Misp:
        if self.via == "restsearch" and self.key is None:
            raise ValueError("an instance requires a key; set key to the name of its secret")
        if self.via == "feed" and self.filters:
            raise ValueError("a feed takes no filters; leave them empty")
        if ours := sorted(_OURS & self.filters.keys()):
            raise ValueError(
                f"filters must not contain {', '.join(ours)}, which the collection sets itself"
            )
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
            feed = MispFeed(self.source_id, self.url, self.key, self.connection)
            read = feed.pages(start, until, known)
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


def _refuse_errors(document: object) -> str | None:
    """Return the error that an instance reports in its own answer, if any."""
    errors = document.get("errors") if isinstance(document, dict) else None
    return f"reports errors: {errors!r}" if errors else None
