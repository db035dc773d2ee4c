"""NVD's vulnerabilities, from the CVE API 2.0.

- The API refuses a range of more than 120 days, so a long one is read in windows, which are cut
  where a request can tell it: rounded later, they would be longer. A first run reads everything,
  without a range.
- A CVE that is modified while a window is read leaves it, and all CVEs after it move up by one.
  Pages overlap by one CVE, which reveals the shift; reading resumes from a known CVE.
- The page size is the service's maximum: since 2026 it refuses more than 1,000 with 404, at times.
- The service throttles with 403. It asks for 6 seconds between requests without a key.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from datetime import datetime, timedelta
from typing import Literal

from pydantic import ConfigDict, Field

from ladon_storage.collection.credentials import SecretName
from ladon_storage.collection.ranges import TimeRange
from ladon_storage.collection.records import Page
from ladon_storage.sources.fields import (
    KEY_TEXT,
    SETTINGS,
    SOURCE_ID_TEXT,
    Connection,
    Overlap,
    Rate,
    SourceSettings,
    connection_field,
    overlap_field,
)
from ladon_storage.sources.http.urls import SourceUrl
from ladon_storage.sources.problems import present
from ladon_storage.sources.rest.pagination import OffsetPagination
from ladon_storage.sources.rest.source import RestApi, TimeParameter
from ladon_storage.values import EPOCH, SourceId

LONGEST_WINDOW = timedelta(days=120)

RATE = Rate(requests=5, seconds=30)
RATE_WITH_KEY = Rate(requests=50, seconds=30)

_FORM = "%Y-%m-%dT%H:%M:%S.000+00:00"
_STEP = timedelta(seconds=1)
"""The unit of that format."""


class Nvd(SourceSettings):
    """The vulnerabilities of NVD.

    >>> Nvd().overlap
    datetime.timedelta(days=1)
    """

    model_config = ConfigDict(**SETTINGS, title="NVD")

    kind: Literal["nvd"] = Field("nvd", title="Kind", description="Kind of source.")
    url: SourceUrl = Field(
        "https://services.nvd.nist.gov/rest/json/cves/2.0",
        title="Address",
        description="URL of the API. A key is optional, and makes it ten times as fast.",
    )
    key: SecretName | None = Field(None, title="Key name", description=KEY_TEXT)
    source_id: SourceId = Field("nvd", title="Source id", description=SOURCE_ID_TEXT)
    overlap: Overlap = overlap_field(timedelta(hours=24))
    page_size: int = Field(
        2_000, ge=1, le=2_000, title="Page size", description="CVEs requested per page."
    )
    connection: Connection | None = connection_field()

    async def pages(self, start: datetime | None, until: datetime | None) -> AsyncIterator[Page]:
        """Yield the CVEs that were modified in ``[start, until)``, in any order.

        A window that changed may be read again, so that a CVE may come more than once.
        """
        api, total, count = self._api(), 0, 0
        async with api.http() as http:
            for first, last in _windows(start, until, present(self.source_id, start)):
                walk = api.fetcher(http, first, last)
                async with aclosing(api.fetch_pages(http, walk)) as pages:
                    async for page in pages:
                        yield page
                total, count = total + (walk.total or 0), count + 1
        if count > 1:
            yield Page(completeness="total", total=total)

    def _api(self) -> RestApi:
        return RestApi(
            source_id=self.source_id,
            connection=self.connection,
            url=self.url,
            key=self.key,
            key_header="apiKey",
            records="vulnerabilities",
            id="cve.id",
            timestamps=("cve.lastModified",),
            since=TimeParameter(parameter="lastModStartDate", format=_FORM),
            until=TimeParameter(parameter="lastModEndDate", format=_FORM),
            paging=OffsetPagination(
                parameter="startIndex",
                size_parameter="resultsPerPage",
                page_size=self.page_size,
                end="total",
                total="totalResults",
                too_large=(404,),
            ),
            rate=RATE if self.key is None else RATE_WITH_KEY,
            throttle_statuses=(403,),
        )


def _windows(
    start: datetime | None, until: datetime | None, now: datetime
) -> Iterator[tuple[datetime | None, datetime | None]]:
    """Yield the ranges that together reach from ``start`` to ``until``, or to now, in seconds."""
    if start is None:  # the API takes both ends of a range, or none
        yield None, None
        return
    end = min(until, now) if until is not None else now
    if start < end:
        told = TimeRange(start - (start - EPOCH) % _STEP, end + (EPOCH - end) % _STEP)
        for window in told.windows(LONGEST_WINDOW):
            yield window.start, window.end
