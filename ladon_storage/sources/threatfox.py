"""ThreatFox by abuse.ch: its export of recent indicators of compromise, or its API.

- The timestamp of a record is its last sighting: by ``first_seen_utc`` alone, re-sighted indicators
  would never be collected again.
- Indicators appear in the export hours after the time that they carry. In 40 recorded polls an
  overlap of 6 hours loses 16 versions, and one of 24 hours none.
- The API lists indicators *first* seen in the last 1 to 7 days. A new sighting of an older
  indicator is only in the export, or within the API's range with an overlap of 7 days.
- The API reports errors with status 200: only ``query_status`` shows them.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, Literal

from pydantic import ConfigDict, Field, model_validator

from ladon_storage.collection.credentials import SecretName, resolve_secret
from ladon_storage.collection.protocols import KnownContent, utc_now
from ladon_storage.collection.records import Page, paged
from ladon_storage.errors import SourceError
from ladon_storage.sources.abuse_ch import require_key, with_address
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
from ladon_storage.sources.http.client import Credentials, SourceHttp, source_http
from ladon_storage.sources.http.urls import SourceUrl, with_key
from ladon_storage.sources.json.documents import (
    Document,
    beside_keyed,
    in_turns,
    is_keyed,
    is_known,
    is_list,
    whole_document,
)
from ladon_storage.sources.json.items import ItemReader, value_at
from ladon_storage.sources.problems import published_error
from ladon_storage.sources.rest.failures import failure
from ladon_storage.sources.timestamps import any_timestamps
from ladon_storage.values import SourceId

MAX_DAYS = 7
"""The number of days that the API goes back."""

EXPORT_KEEPS = timedelta(hours=48)
"""The time for which an indicator stays in the recent export after its last sighting."""

_ADDRESSES = {
    "export": "https://threatfox.abuse.ch/export/json/recent/",
    "api": "https://threatfox-api.abuse.ch/api/v1/",
}
_INDICATORS = ItemReader(None, ("first_seen_utc", "last_seen_utc"), any_timestamps())
_FOUND = ItemReader("id", ("first_seen", "last_seen"), any_timestamps())


class ThreatFox(SourceSettings):
    """ThreatFox's indicators of compromise.

    >>> ThreatFox(overlap=timedelta(hours=6)).source_id
    'threatfox'
    """

    model_config = ConfigDict(**SETTINGS, title="ThreatFox")

    kind: Literal["threatfox"] = Field("threatfox", title="Kind", description="Kind of source.")
    via: Literal["export", "api"] = Field(
        "export",
        title="Read from",
        description="The export of recent indicators, or the API, which requires a key.",
    )
    url: SourceUrl = Field(
        "",
        title="Address",
        description="URL of the export or the API. If empty, the one at abuse.ch. {key} in it is "
        "replaced by the key. Older indicators are in the full export, "
        "https://threatfox.abuse.ch/export/json/full/.",
    )
    key: SecretName | None = Field(None, title="Key name", description=KEY_TEXT)
    source_id: SourceId = Field("threatfox", title="Source id", description=SOURCE_ID_TEXT)
    overlap: Overlap = overlap_field(timedelta(hours=24))
    unversioned: tuple[str, ...] = Field(
        (),
        title="Unversioned fields",
        description="Fields whose changes alone make no new version of an indicator. With "
        "last_seen_utc (of the export) and last_seen (of the API), a new sighting "
        "makes none, which saves about nine tenths of the storage. The sink keeps "
        "their values from when the version was first stored.",
    )
    connection: Connection | None = connection_field()

    @model_validator(mode="before")
    @classmethod
    def _fill_address(cls, values: Any) -> Any:
        return with_address(values, _ADDRESSES)

    @model_validator(mode="after")
    def _require_key(self) -> ThreatFox:
        require_key(self.key, self.via, self.url)
        return self

    @property
    def retention(self) -> timedelta | None:
        """The age of the oldest readable record; older ones need the full export."""
        if self.via == "api":
            return timedelta(days=MAX_DAYS)
        return EXPORT_KEEPS if self.url == _ADDRESSES["export"] else None

    @property
    def ignores_range(self) -> bool:
        """Whether the API delivers everything, whatever range is requested."""
        return self.via == "export"

    @property
    def uses_known(self) -> bool:
        """``True``: an export that the sink has is not read again."""
        return True

    async def pages(
        self, start: datetime | None, until: datetime | None, known: KnownContent | None = None
    ) -> AsyncIterator[Page]:
        """Yield all indicators of the export, or those that the API returns for the range.

        None is yielded of an export that is known.
        """
        key = await resolve_secret(self.key, self.source_id) if self.key else None
        keys = None if key is None else Credentials(self.url, {"Auth-Key": key})
        async with source_http(
            self.source_id, credentials=keys, connection=self.connection
        ) as http:
            if self.via == "api":
                found, size = await self._asked(http, start)
                items = replace(_FOUND, unversioned=self.unversioned).read(found)
                made = paged(items, completeness="whole document", asked_at=http.asked_at)
                async for page in in_turns(made, size):
                    yield page
                return
            answer = await http.get(with_key(self.url, key))
            marks = await whole_document(self, answer.body, until)
            marks["asked_at"] = http.asked_at
            if is_known(marks, known):
                yield Page(**marks, unchanged=True)
                return
            exported = self._exported(http, await http.document(answer, ""))
            items = replace(_INDICATORS, unversioned=self.unversioned).read_keyed(exported)
            async for page in in_turns(paged(items, **marks), len(answer.body)):
                yield page

    def _exported(self, http: SourceHttp, document: Document) -> Mapping[str, Any]:
        exported = document.items
        if not is_keyed(exported):
            raise self._error("is not a JSON object keyed by ids")
        if isinstance(exported, dict) and isinstance(exported.get("query_status"), str):
            raise self._error(f"has no indicators{http.said(exported)}")
        if sign := failure(beside_keyed(exported), exported, ""):
            raise self._error(f"has {http.quoted(sign[1])} at {sign[0]!r}, next to its indicators")
        return exported

    async def _asked(self, http: SourceHttp, start: datetime | None) -> tuple[Sequence[Any], int]:
        """Return the indicators for a range, and the size of the answer."""
        days = days_back(start, utc_now())
        question = {"query": "get_iocs", "days": days}
        answer = await http.post(self.url, question, idempotent=True)
        # The days are counted by the clock of the API, which its answer shows.
        if http.asked_at is not None and (back := days_back(start, http.asked_at)) > days:
            answer = await http.post(self.url, {**question, "days": back}, idempotent=True)
        document = await http.document(answer, "data")
        status = value_at(document.envelope, "query_status")
        found = document.items
        # It usually contains a sentence; indicators would contradict it.
        if status == "no_result" and not (is_list(found) and found):
            return [], 0
        if status != "ok" or not is_list(found):
            raise self._error(
                f"answered {http.quoted(status)} with data of type "
                f"{type(found).__name__}{http.said(document.envelope)}"
            )
        if not found:
            raise self._error("answered 'ok' without an indicator, where 'no_result' would say so")
        return found, len(answer.body)

    def _error(self, problem: str) -> SourceError:
        return published_error(
            self.via, self.source_id, self.url, problem, "check whether the feed has changed"
        )


def days_back(start: datetime | None, now: datetime) -> int:
    """Return the days that the API must go back to reach ``start``, as far as it goes.

    >>> now = datetime.fromisoformat("2026-07-08T12:00:00+00:00")
    >>> days_back(now - timedelta(hours=25), now), days_back(None, now)
    (2, 7)
    """
    if start is None:
        return MAX_DAYS
    return min(MAX_DAYS, max(1, math.ceil((now - start) / timedelta(days=1))))
