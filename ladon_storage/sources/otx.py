"""AlienVault OTX: the pulses that a key is subscribed to.

- Pages are offsets into a list whose order is undocumented. A pulse that is modified meanwhile can
  push another one onto a page that was already read. So each page is checked again after the next
  one, the list is compared with the count that it states, and the overlap is wide.
- Deleted pulses are only in the events of OTX; they are not collected.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from datetime import datetime, timedelta
from typing import Literal

from pydantic import ConfigDict, Field

from ladon_storage.collection.credentials import SecretName
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
from ladon_storage.sources.rest.pagination import NextLinkPagination
from ladon_storage.sources.rest.source import RestApi, TimeParameter
from ladon_storage.values import SourceId


class Otx(SourceSettings):
    """The pulses of OTX.

    >>> Otx(key="OTX_KEY").source_id
    'otx'
    """

    model_config = ConfigDict(**SETTINGS, title="AlienVault OTX")

    kind: Literal["otx"] = Field("otx", title="Kind", description="Kind of source.")
    url: SourceUrl = Field(
        "https://otx.alienvault.com/api/v1/pulses/subscribed",
        title="Address",
        description="URL of the subscribed pulses.",
    )
    key: SecretName = Field(title="Key name", description=KEY_TEXT)
    source_id: SourceId = Field("otx", title="Source id", description=SOURCE_ID_TEXT)
    overlap: Overlap = overlap_field(timedelta(hours=24))
    page_size: int = Field(
        50,
        ge=1,
        le=1_000,
        title="Page size",
        description="Pulses requested per page.",
    )
    connection: Connection | None = connection_field()

    async def pages(self, start: datetime | None, until: datetime | None) -> AsyncIterator[Page]:
        """Yield the pulses that were modified from ``start`` on, in any order.

        A list that shifted may be read again, so that a pulse may come more than once.
        """
        api = RestApi(
            source_id=self.source_id,
            connection=self.connection,
            url=self.url,
            params={"limit": self.page_size},
            key=self.key,
            key_header="X-OTX-API-KEY",
            records="results",
            timestamps=("modified",),
            since=TimeParameter(parameter="modified_since", format="%Y-%m-%dT%H:%M:%SZ"),
            paging=NextLinkPagination(path="next", total="count"),
        )
        async with api.http() as http:
            walk = api.fetcher(http, start, until)
            async with aclosing(api.fetch_pages(http, walk)) as pages:
                async for page in pages:
                    yield page
