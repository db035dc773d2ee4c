"""URLhaus of abuse.ch: its dumps as CSV, or the API's recent additions.

- An address is as new as the last time that it was seen online: by ``dateadded`` alone, one that
  changed later would never be collected again.
- A dump has no number of entries to compare. It is newest first, so that one which was cut off ends
  in the middle of a line, or early; an empty one was never right.
- The API gives at most 1,000 addresses of the last 3 days. Where a full answer does not reach back
  to what is durable, what is between is lost there: the run fails, and a dump has it.
- abuse.ch wants the key in the path of newer addresses of dumps: ``{key}`` in the address stands
  for it, and is all that is shown of it.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import AsyncIterator, Iterable, Iterator
from datetime import datetime, timedelta
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ladon_storage.collection.records import Item, Page, Reject, paged
from ladon_storage.collection.secrets import SecretName, secret
from ladon_storage.collection.sources.addresses import HttpUrl, shown, with_key
from ladon_storage.collection.sources.fields import (
    KEY_TEXT,
    SETTINGS,
    SOURCE_ID_TEXT,
    Overlap,
    overlap_field,
)
from ladon_storage.collection.sources.http import Keys, SourceHttp, source_http
from ladon_storage.collection.sources.items import ItemReader, value_at
from ladon_storage.collection.sources.times import iso_moment
from ladon_storage.errors import SourceError
from ladon_storage.models import SourceId

API_LIMIT = 1_000
"""How many addresses the API gives at most."""

_ADDRESSES = {
    "recent": "https://urlhaus.abuse.ch/downloads/csv_recent/",
    "online": "https://urlhaus.abuse.ch/downloads/csv_online/",
    "api": "https://urlhaus-api.abuse.ch/v1/urls/recent/",
}
_KEPT = {"recent": timedelta(days=30), "api": timedelta(days=3)}
_NUMBER = re.compile(r"/url/(\d+)/?$")


class _UrlReader(ItemReader):
    def record_id(self, item: object) -> str | None:
        """Return the id of an address; the JSON export has it only in its link."""
        if found := super().record_id(item):
            return found
        for name in ("urlhaus_reference", "urlhaus_link"):
            link = value_at(item, name)
            if isinstance(link, str) and (number := _NUMBER.search(link)):
                return number[1]
        return None


_URLS = _UrlReader("id", ("date_added", "dateadded", "last_online"), iso_moment())


class UrlHaus(BaseModel):
    """Collect the malware addresses of URLhaus.

    >>> UrlHaus().url, UrlHaus(via="api", key="ABUSE_CH_KEY").retention
    ('https://urlhaus.abuse.ch/downloads/csv_recent/', datetime.timedelta(days=3))
    """

    model_config = ConfigDict(**SETTINGS, title="URLhaus")

    kind: Literal["urlhaus"] = Field("urlhaus", title="Kind", description="The kind of source.")
    via: Literal["recent", "online", "api"] = Field(
        "recent",
        title="Read from",
        description="The dump of the last 30 days, the dump of what is online, or the API's recent "
        "additions, which need a key.",
    )
    url: HttpUrl = Field(
        "",
        title="Address",
        description="Where the dump or the API is; empty: at abuse.ch. {key} in it stands for the "
        "key.",
    )
    key: SecretName | None = Field(None, title="Name of the key", description=KEY_TEXT)
    source_id: SourceId = Field("urlhaus", title="Source id", description=SOURCE_ID_TEXT)
    overlap: Overlap = overlap_field(timedelta(days=3))

    @model_validator(mode="before")
    @classmethod
    def _fill_address(cls, values: Any) -> Any:
        if isinstance(values, dict) and not values.get("url"):
            return values | {"url": _ADDRESSES.get(values.get("via", "recent"), "")}
        return values

    @model_validator(mode="after")
    def _require_key(self) -> UrlHaus:
        if self.key is None and (self.via == "api" or "{key}" in self.url):
            raise ValueError("it needs a key; set the name of the secret that holds it")
        return self

    @property
    def retention(self) -> timedelta | None:
        """How far back it can be read; ``None`` for what is online, however old."""
        return _KEPT.get(self.via)

    async def pages(self, start: datetime | None, until: datetime | None) -> AsyncIterator[Page]:
        """Yield all addresses of the dump or the answer, in the feed's order."""
        key = await secret(self.key, self.source_id) if self.key else None
        keys = None if key is None else Keys(self.url, {"Auth-Key": key})
        url = with_key(self.url, key)
        async with source_http(self.source_id, keys=keys) as http:
            if self.via == "api":
                items = await self._asked(http, url, start)
                found: Iterable[Item] = _URLS.read(items)
            else:
                answer = await http.get(url, headers={"Accept": "text/csv, */*;q=0.5"})
                found = self._rows(self._text(answer.body))
        for page in paged(found, completeness="whole document"):
            yield page

    async def _asked(self, http: SourceHttp, url: str, start: datetime | None) -> list[Any]:
        document = await http.get_json(url)
        status = value_at(document, "query_status")
        if status == "no_results":
            return []
        items = value_at(document, "urls")
        if status != "ok" or not isinstance(items, list):
            raise self._error(f"answers {status!r:.80} with urls of type {type(items).__name__}")
        self._refuse_gap(items, start)
        return items

    def _refuse_gap(self, items: list[Any], start: datetime | None) -> None:
        if start is None or len(items) < API_LIMIT:
            return
        added = ItemReader("id", ("date_added", "dateadded"), iso_moment())
        times = []
        for item in items:
            try:
                times.append(added.timestamp(item))
            except ValueError:  # is rejected where it is read
                continue
        # Overlaps may be cut short: what counts is that nothing lies between them and us.
        durable = start + self.overlap
        if times and min(times) > durable:
            raise self._error(
                f"gives its last {len(items)} addresses, from {min(times).isoformat()} on, and is "
                f"durable up to {durable.isoformat()}: what is between is not there any more; "
                "collect it once with via 'recent'"
            )

    def _text(self, body: bytes) -> str:
        try:
            text = body.decode()
        except UnicodeDecodeError as error:
            problem = f"is not UTF-8 at byte {error.start}"
        else:
            if text.endswith("\n"):
                return text
            problem = f"was cut off: after {len(body)} bytes it ends in the middle of a line"
        raise self._error(problem)

    def _rows(self, text: str) -> Iterator[Item]:
        columns, lines = self._header(text)
        empty = True
        for row in _cells(lines):
            if isinstance(row, Reject):
                yield row
            elif row and not row[0].startswith("#"):
                empty = False
                if len(row) == len(columns):
                    item = dict(zip(columns, row, strict=True))
                    yield from _URLS.read([item])
                else:
                    reason = f"has {len(row)} columns instead of {len(columns)}"
                    yield Reject.of(reason, row, row[0])
        if empty:
            raise self._error("is empty")

    def _header(self, text: str) -> tuple[list[str], io.StringIO]:
        """Return the columns, which are the last comment before the rows, and the rows."""
        lines = io.StringIO(text, newline="")
        for line in lines:
            cells = [cell.strip() for cell in line.lstrip("# ").split(",")]
            if cells[0] == "id" and "dateadded" in cells:
                return cells, lines
            if not line.startswith("#") and line.strip():
                break
        raise self._error("has no line that names the columns id and dateadded")

    def _error(self, problem: str) -> SourceError:
        return SourceError(
            f"The {self.via} feed of source {self.source_id!r} at {shown(self.url)} {problem}; "
            "see whether the feed has changed.",
            self.source_id,
        )


def _cells(lines: io.StringIO) -> Iterator[list[str] | Reject]:
    """Yield the cells of each row; what is no CSV is rejected, and the next row read."""
    rows = csv.reader(lines, strict=True)
    while True:
        try:
            yield next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            yield Reject.of(f"line {rows.line_num} of the rows is no CSV: {error}", None)
