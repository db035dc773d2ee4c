"""NVD's vulnerabilities, by the CVE API 2.0.

- A range of more than 120 days is refused there, so that a long one is read in windows; what was
  never collected is read as a whole, without any.
- A CVE that is modified while a window is read leaves it, and all behind it move up by one: the
  next offset would skip one. A total that falls tells; the window is read again.
- The service throttles by 403. It asks for 6 seconds between requests without a key.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from datetime import datetime, timedelta
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from ladon_storage.collection.interfaces import utc_now
from ladon_storage.collection.records import Page, paged
from ladon_storage.collection.secrets import SecretName
from ladon_storage.collection.sources.addresses import HttpUrl, shown
from ladon_storage.collection.sources.fields import (
    KEY_TEXT,
    SETTINGS,
    SOURCE_ID_TEXT,
    Overlap,
    Rate,
    overlap_field,
)
from ladon_storage.collection.sources.http import SourceHttp
from ladon_storage.collection.sources.items import value_at
from ladon_storage.collection.sources.paging import Offsets
from ladon_storage.collection.sources.rest import Bound, Rest
from ladon_storage.errors import SourceError
from ladon_storage.models import SourceId

logger = logging.getLogger(__name__)

LONGEST_WINDOW = timedelta(days=120)

READINGS = 5
"""How often a window is read that loses a CVE every time."""

RATE = Rate(requests=5, seconds=30)
RATE_WITH_KEY = Rate(requests=50, seconds=30)

_FORM = "%Y-%m-%dT%H:%M:%S.000+00:00"


class Nvd(BaseModel):
    """Collect the vulnerabilities of NVD.

    >>> Nvd().overlap
    datetime.timedelta(days=1)
    """

    model_config = ConfigDict(**SETTINGS, title="NVD")

    kind: Literal["nvd"] = Field("nvd", title="Kind", description="The kind of source.")
    url: HttpUrl = Field(
        "https://services.nvd.nist.gov/rest/json/cves/2.0",
        title="Address",
        description="Where the API is. Needs no key, and is ten times as fast with one.",
    )
    key: SecretName | None = Field(None, title="Name of the key", description=KEY_TEXT)
    source_id: SourceId = Field("nvd", title="Source id", description=SOURCE_ID_TEXT)
    overlap: Overlap = overlap_field(timedelta(hours=24))
    page_size: int = Field(
        2_000, ge=1, le=2_000, title="Page size", description="How many CVEs a page has."
    )

    async def pages(self, start: datetime | None, until: datetime | None) -> AsyncIterator[Page]:
        """Yield the CVEs that were modified in ``[start, until)``, in whatever order they come.

        A window that changed is read again, so that a CVE may come more than once.
        """
        api = self._api()
        async with api.http() as http:
            for first, last in _windows(start, until, utc_now()):
                async for items in self._complete(api, http, first, last):
                    for page in paged(api.read(items)):
                        yield page

    def _api(self) -> Rest:
        return Rest(
            source_id=self.source_id,
            url=self.url,
            key=self.key,
            key_header="apiKey",
            records="vulnerabilities",
            id="cve.id",
            timestamps=("cve.lastModified",),
            since=Bound(parameter="lastModStartDate", form=_FORM),
            until=Bound(parameter="lastModEndDate", form=_FORM),
            paging=Offsets(
                parameter="startIndex",
                limit_parameter="resultsPerPage",
                limit=self.page_size,
                end="total",
                total="totalResults",
            ),
            rate=RATE if self.key is None else RATE_WITH_KEY,
            throttled=(403,),
        )

    async def _complete(
        self, api: Rest, http: SourceHttp, first: datetime | None, last: datetime | None
    ) -> AsyncIterator[list[object]]:
        """Yield the pages of one window, again from its beginning where it lost a CVE meanwhile."""
        for reading in range(1, READINGS + 1):
            most, total = 0, 0
            async with aclosing(api.walk(http, first, last)) as walk:
                async for got in walk:
                    yield got.items
                    total = value_at(got.document, "totalResults")
                    if total < most:
                        break
                    most = total
            if total >= most:
                return
            logger.info(
                "Source %r: a window fell from %d to %d CVEs while it was read; it is read again "
                "(%d of %d).",
                self.source_id,
                most,
                total,
                reading,
                READINGS,
                extra={"source_id": self.source_id},
            )
        raise SourceError(
            f"Source {self.source_id!r} at {shown(self.url)} changed in each of {READINGS} "
            "readings, so that CVEs may have been skipped; collect it again later.",
            self.source_id,
            transient=True,
        )


def _windows(
    start: datetime | None, until: datetime | None, now: datetime
) -> Iterator[tuple[datetime | None, datetime | None]]:
    """Yield the ranges that together reach from ``start`` to ``until``, or to now."""
    if start is None:  # the API takes both ends of a range, or none
        yield None, None
        return
    end = min(until, now) if until is not None else now
    while start < end:
        last = min(start + LONGEST_WINDOW, end)
        yield start, last
        start = last
