"""CISA's catalogue of known exploited vulnerabilities.

- Each run reads the whole catalogue. An entry that CISA changes keeps its ``dateAdded``, so only a
  sink that knows the last version can detect the change.
- CISA has published truncated and empty catalogues before. If the number of entries is not the one
  that the catalogue itself states, none of it is stored; an entry that is there twice is counted in
  place of one that is missing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Sequence
from datetime import datetime
from typing import Any, Literal

from pydantic import ConfigDict, Field

from ladon_storage.collection.protocols import KnownContent
from ladon_storage.collection.records import Page, paged
from ladon_storage.errors import SourceError
from ladon_storage.sources.fields import (
    SETTINGS,
    SOURCE_ID_TEXT,
    Connection,
    SourceSettings,
    connection_field,
)
from ladon_storage.sources.http.client import SourceHttp, source_http
from ladon_storage.sources.http.urls import SourceUrl
from ladon_storage.sources.json.documents import (
    Document,
    in_turns,
    is_known,
    is_list,
    off_loop,
    whole_document,
)
from ladon_storage.sources.json.items import ItemReader
from ladon_storage.sources.problems import published_error
from ladon_storage.sources.timestamps import any_timestamps
from ladon_storage.values import SourceId

# A day is read as its first instant.
_ENTRIES = ItemReader("cveID", ("dateAdded",), any_timestamps())


class Kev(SourceSettings):
    """CISA's catalogue of known exploited vulnerabilities.

    >>> Kev().overlap is None  # each run reads the whole catalogue
    True
    """

    model_config = ConfigDict(**SETTINGS, title="CISA KEV")

    kind: Literal["kev"] = Field("kev", title="Kind", description="Kind of source.")
    url: SourceUrl = Field(
        "https://www.cisa.gov/sites/default/files/feeds/known_exploited_vulnerabilities.json",
        title="Address",
        description="URL of the catalogue. No key is needed.",
    )
    source_id: SourceId = Field("kev", title="Source id", description=SOURCE_ID_TEXT)
    connection: Connection | None = connection_field()

    @property
    def overlap(self) -> None:
        """``None``: there is no time before which nothing changes."""
        return

    @property
    def uses_known(self) -> bool:
        """``True``: a catalogue that the sink has is not read again."""
        return True

    async def pages(
        self, start: datetime | None, until: datetime | None, known: KnownContent | None = None
    ) -> AsyncIterator[Page]:
        """Yield all entries in the catalogue's order; none of a catalogue that is known."""
        async with source_http(self.source_id, connection=self.connection) as http:
            answer = await http.get(self.url)
            marks = await whole_document(self, answer.body, until)
            marks["asked_at"] = http.asked_at
            if is_known(marks, known):
                yield Page(**marks, unchanged=True)
                return
            document = await http.document(answer, "vulnerabilities")
            entries = await off_loop(len(answer.body), self._entries, http, document)
            async for page in in_turns(paged(_ENTRIES.read(entries), **marks), len(answer.body)):
                yield page

    def _entries(self, http: SourceHttp, document: Document) -> Sequence[Any]:
        catalogue, entries = document.envelope, document.items
        if not isinstance(catalogue, dict) or not is_list(entries):
            raise self._error(
                f"is not an object with a list of vulnerabilities{http.said(catalogue)}"
            )
        if not entries:
            raise self._error("is empty")
        if catalogue.get("count") != len(entries):
            stated = http.quoted(catalogue.get("count"))
            raise self._error(f"was cut off: it has {len(entries)} entries and states {stated}")
        ids = [record_id for each in entries if (record_id := _ENTRIES.record_id(each))]
        if len(set(ids)) < len(ids):
            raise self._error(
                f"has {len(entries)} entries, and an id in more than one of them: "
                f"{http.quoted(Counter(ids).most_common(1)[0][0])}, so another is missing"
            )
        return entries

    def _error(self, problem: str) -> SourceError:
        return published_error(
            "catalogue",
            self.source_id,
            self.url,
            problem,
            "nothing of it was stored; check what CISA publishes",
        )
