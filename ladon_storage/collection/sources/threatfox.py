"""ThreatFox of abuse.ch, by its export of recent indicators of compromise.

- A record is as new as its last sighting: by ``first_seen_utc`` alone, re-sighted indicators would
  never be collected again.
- Indicators appear in the export hours after the time that they carry. In 40 recorded polls an
  overlap of 6 hours loses 16 versions, and one of 24 hours none.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from datetime import datetime, timedelta
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from ladon_storage.collection.records import Page, Record, paged
from ladon_storage.collection.sources.addresses import HttpUrl, shown
from ladon_storage.collection.sources.http import source_http
from ladon_storage.errors import SourceError
from ladon_storage.models import SourceId, parse_timestamp


class ThreatFox(BaseModel):
    """Collect the export of ThreatFox: a JSON object of ids, each with a list of one indicator.

    >>> ThreatFox(overlap=timedelta(hours=6)).source_id
    'threatfox'
    """

    model_config = ConfigDict(frozen=True, extra="forbid", title="ThreatFox")

    kind: Literal["threatfox"] = Field("threatfox", title="Kind", description="The kind of source.")
    url: HttpUrl = Field(
        "https://threatfox.abuse.ch/export/json/recent/",
        title="Address",
        description="Where the export is. Needs no key.",
    )
    source_id: SourceId = Field(
        "threatfox",
        title="Source id",
        description="The name of the watermark, and of the source in the sink.",
    )
    overlap: Annotated[timedelta, Field(ge=timedelta(0), le=timedelta(days=365))] = Field(
        timedelta(hours=24),
        title="Overlap",
        description="How far before the watermark each run reads again, for late records.",
    )

    async def pages(self, start: datetime | None, until: datetime | None) -> AsyncIterator[Page]:
        """Yield the indicators that were last seen in ``[start, until)``, in the export's order."""
        async with source_http(self.source_id) as http:
            document = await http.get_json(self.url)
        if not isinstance(document, dict):
            raise self._error("is not a JSON object of ids")
        for page in paged(self._records(document, start, until)):
            yield page

    def _records(
        self, document: dict[str, Any], start: datetime | None, until: datetime | None
    ) -> Iterator[Record]:
        for record_id, entry in document.items():
            if not (isinstance(entry, list) and len(entry) == 1 and isinstance(entry[0], dict)):
                raise self._error(f"has at {record_id!r} something else than a list of one object")
            try:
                timestamp = last_seen(entry[0])
                if (start is None or timestamp >= start) and (until is None or timestamp < until):
                    yield Record.of(record_id, timestamp, entry[0])
            except ValueError as error:
                raise self._error(f"has an unusable record {record_id!r}: {error}") from error

    def _error(self, problem: str) -> SourceError:
        return SourceError(
            f"The export of source {self.source_id!r} at {shown(self.url)} {problem}; "
            "see whether the feed has changed.",
            self.source_id,
        )


def last_seen(indicator: dict[str, Any]) -> datetime:
    """Return the later of an indicator's two times; the export's are naive UTC, the API's say UTC.

    Raises:
        ValueError: It has none, or one that is no timestamp.

    >>> last_seen({"first_seen_utc": "2026-07-08 19:05:04", "last_seen_utc": None}).isoformat()
    '2026-07-08T19:05:04+00:00'
    """
    times = [
        parse_timestamp(value.removesuffix(" UTC") if isinstance(value, str) else value)
        for name in ("first_seen_utc", "last_seen_utc")
        if (value := indicator.get(name)) is not None
    ]
    if not times:
        raise ValueError("first_seen_utc and last_seen_utc are both missing")
    return max(times)
