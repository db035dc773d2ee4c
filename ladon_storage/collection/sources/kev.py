"""CISA's catalogue of known exploited vulnerabilities.

- Each run reads the whole catalogue: an entry that CISA changes keeps its ``dateAdded``, and only a
  sink that knows the last version can tell.
- A catalogue that is cut off or empty was published before. Where the number of entries is not the
  one that the catalogue itself states, nothing of it is taken.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from ladon_storage.collection.records import Page, paged
from ladon_storage.collection.sources.addresses import HttpUrl, shown
from ladon_storage.collection.sources.fields import SETTINGS, SOURCE_ID_TEXT
from ladon_storage.collection.sources.http import source_http
from ladon_storage.collection.sources.items import ItemReader
from ladon_storage.collection.sources.times import any_moment
from ladon_storage.errors import SourceError
from ladon_storage.models import SourceId

# A day is read as its first instant.
_ENTRIES = ItemReader("cveID", ("dateAdded",), any_moment())


class Kev(BaseModel):
    """Collect CISA's catalogue of known exploited vulnerabilities.

    >>> Kev().overlap is None  # each run reads the whole catalogue
    True
    """

    model_config = ConfigDict(**SETTINGS, title="CISA KEV")

    kind: Literal["kev"] = Field("kev", title="Kind", description="The kind of source.")
    url: HttpUrl = Field(
        "https://www.cisa.gov/sites/default/files/feeds/known_exploited_vulnerabilities.json",
        title="Address",
        description="Where the catalogue is. Needs no key.",
    )
    source_id: SourceId = Field("kev", title="Source id", description=SOURCE_ID_TEXT)

    @property
    def overlap(self) -> None:
        """``None``: there is no time before which nothing changes."""
        return

    async def pages(self, start: datetime | None, until: datetime | None) -> AsyncIterator[Page]:
        """Yield all entries, in the catalogue's order."""
        async with source_http(self.source_id) as http:
            entries = self._entries(await http.get_json(self.url))
        for page in paged(_ENTRIES.read(entries), completeness="whole document"):
            yield page

    def _entries(self, document: object) -> list[Any]:
        entries = document.get("vulnerabilities") if isinstance(document, dict) else None
        if not isinstance(document, dict) or not isinstance(entries, list):
            raise self._error("is not an object with a list of vulnerabilities")
        if not entries:
            raise self._error("is empty")
        if document.get("count") != len(entries):
            raise self._error(
                f"has {len(entries)} entries and states {document.get('count')!r}: it was cut off"
            )
        return entries

    def _error(self, problem: str) -> SourceError:
        return SourceError(
            f"The catalogue of source {self.source_id!r} at {shown(self.url)} {problem}; "
            "nothing of it was stored, see what CISA publishes.",
            self.source_id,
        )
