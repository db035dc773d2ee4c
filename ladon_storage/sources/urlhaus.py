"""URLhaus by abuse.ch: its dumps as CSV, or the API's recent additions.

- The timestamp of an address is the last time that it was seen online: by ``dateadded`` alone, one
  that changed later would never be collected again.
- A dump is newest first, so a truncated one ends in the middle of a line, or early. An empty dump
  is an error, and so is one whose last line is no row, but a part of one or a message. If it states
  its number of entries, the number is compared, and no id is there twice in place of one that is
  missing.
- The dump of 30 days, or a full answer of the API with its 1,000 addresses of 3 days, must reach
  back to the durable records: anything between is lost there, and the run fails. The records that
  came are stored. A full answer may be cut between addresses of one second, so it must reach back
  beyond that of the latest durable one.
- abuse.ch requires the key in the path of newer addresses of dumps: ``{key}`` in the address is its
  placeholder, and only the placeholder is ever shown.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

from pydantic import ConfigDict, Field, model_validator

from ladon_storage.collection.credentials import SecretName, resolve_secret
from ladon_storage.collection.protocols import KnownContent
from ladon_storage.collection.records import Item, Page, Reject, paged
from ladon_storage.errors import SourceError
from ladon_storage.sources.abuse_ch import require_key, with_address
from ladon_storage.sources.csv_rows import BrokenRow, read_rows
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
from ladon_storage.sources.http.client import Credentials, HttpResponse, SourceHttp, source_http
from ladon_storage.sources.http.urls import SourceUrl, with_key
from ladon_storage.sources.json.documents import (
    in_turns,
    is_known,
    is_list,
    whole_document,
)
from ladon_storage.sources.json.items import ItemReader, value_at
from ladon_storage.sources.problems import published_error
from ladon_storage.sources.rest.message_words import CUTS, REFUSES
from ladon_storage.sources.timestamps import any_timestamps
from ladon_storage.values import SourceId

API_LIMIT = 1_000
"""The maximum number of addresses in an answer of the API."""

_LIMIT = re.compile(r"/limit/(\d{1,4})/?$")
"""A smaller maximum, in the address."""

_ADDRESSES = {
    "recent": "https://urlhaus.abuse.ch/downloads/csv_recent/",
    "online": "https://urlhaus.abuse.ch/downloads/csv_online/",
    "api": "https://urlhaus-api.abuse.ch/v1/urls/recent/",
}
_KEPT = {"recent": timedelta(days=30), "api": timedelta(days=3)}
_MARGIN = timedelta(days=1)
"""The tolerance of a dump's start, 30 days before its newest address: an hour may have none."""

_STATED = re.compile(r"^# *Number of entries: *(\d+)", re.MULTILINE)
_HEADER_LINE = re.compile(r"[^\n]*\n")
_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_ROW_BEGINS = re.compile(rb'\n(?="?\d+"?,)')
_BLOCK_BYTES = 2**24
"""Bytes of a dump after which the next row begins another text."""

_LONGEST_SAID = 200
"""Characters of a comment that are read and quoted."""

_LONGEST_RAW = 2**20
"""Characters that are kept of an invalid row."""

_ROW_ID = re.compile(r'"?(\d+)"?,')
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


_URLS = _UrlReader("id", ("date_added", "dateadded", "last_online"), any_timestamps())
_ADDED = ItemReader("id", ("date_added", "dateadded"), any_timestamps())


class UrlHaus(SourceSettings):
    """The malware addresses of URLhaus.

    >>> UrlHaus().url, UrlHaus(via="api", key="ABUSE_CH_KEY").retention
    ('https://urlhaus.abuse.ch/downloads/csv_recent/', datetime.timedelta(days=3))
    """

    model_config = ConfigDict(**SETTINGS, title="URLhaus")

    kind: Literal["urlhaus"] = Field("urlhaus", title="Kind", description="Kind of source.")
    via: Literal["recent", "online", "api"] = Field(
        "recent",
        title="Read from",
        description="The dump of the last 30 days, the dump of the URLs that are online, or the "
        "API's recent additions, which require a key.",
    )
    url: SourceUrl = Field(
        "",
        title="Address",
        description="URL of the dump or the API. If empty, the one at abuse.ch. {key} in it is "
        "replaced by the key.",
    )
    key: SecretName | None = Field(None, title="Key name", description=KEY_TEXT)
    source_id: SourceId = Field("urlhaus", title="Source id", description=SOURCE_ID_TEXT)
    overlap: Overlap = overlap_field(timedelta(days=3))
    connection: Connection | None = connection_field()

    @model_validator(mode="before")
    @classmethod
    def _fill_address(cls, values: Any) -> Any:
        return with_address(values, _ADDRESSES)

    @model_validator(mode="after")
    def _require_key(self) -> UrlHaus:
        require_key(self.key, self.via, self.url)
        return self

    @property
    def retention(self) -> timedelta | None:
        """The age of the oldest readable record; ``None`` for addresses online, however old."""
        return _KEPT.get(self.via)

    @property
    def uses_known(self) -> bool:
        """``True``: the durable records determine how far back a document must reach."""
        return True

    async def pages(
        self, start: datetime | None, until: datetime | None, known: KnownContent | None = None
    ) -> AsyncIterator[Page]:
        """Yield all addresses of the dump or the answer, in the feed's order.

        Raises:
            SourceError: It did not arrive, is invalid, or does not reach back to the durable
                records. Only in the last case were its addresses yielded before.
        """
        key = await resolve_secret(self.key, self.source_id) if self.key else None
        keys = None if key is None else Credentials(self.url, {"Auth-Key": key})
        url = with_key(self.url, key)
        span = _Span()
        async with source_http(
            self.source_id, credentials=keys, connection=self.connection
        ) as http:
            marks: dict[str, Any] = {"completeness": "whole document"}
            if self.via == "api":
                answer = await http.get(url)
                items = await self._asked(http, answer)
                found: Iterable[Item] = _URLS.read(map(span.seen, items))
            else:
                answer = await http.get(url, headers={"Accept": "text/csv, */*;q=0.5"})
                marks = await whole_document(self, answer.body, until)
                if is_known(marks, known):
                    yield Page(**marks, unchanged=True, asked_at=http.asked_at)
                    return
                found = self._rows(answer.body, span)
            made = paged(found, **marks, asked_at=http.asked_at)
            async for page in in_turns(made, len(answer.body)):
                yield page
            must_reach = known.must_reach if known else start and start + self.overlap
            if must_reach is not None:
                self._refuse_gap(span, must_reach)

    async def _asked(self, http: SourceHttp, answer: HttpResponse) -> Sequence[Any]:
        document = await http.document(answer, "urls")
        status = value_at(document.envelope, "query_status")
        items = document.items
        if status == "no_results" and not items:
            return []
        if status != "ok" or not is_list(items):
            raise self._error(
                f"answered {http.quoted(status)} with urls of type "
                f"{type(items).__name__}{http.said(document.envelope)}"
            )
        if not items:
            raise self._error("answered 'ok' without an address, where 'no_results' would say so")
        return items

    def _refuse_gap(self, span: _Span, durable: datetime) -> None:
        oldest, newest = span.oldest, span.newest
        if oldest is None or newest is None or oldest < durable:
            return
        gap = f"start at {oldest.isoformat()}, and the sink has them up to {durable.isoformat()}"
        limit = _LIMIT.search(self.url)
        most = min(API_LIMIT, int(limit[1])) if limit else API_LIMIT
        if self.via == "api" and span.items >= most:
            rest = "" if oldest > durable else "; others of that time may be missing"
            raise self._error(
                f"has only its last {span.items} addresses, which {gap}{rest}",
                "collect once with via 'recent', which reaches further back",
            )
        if self.via == "recent" and oldest > max(durable, newest - _KEPT["recent"] + _MARGIN):
            raise self._error(
                f"has addresses that {gap}: it was cut off, or those in between are gone",
                "collect it again when it is complete, or reset the watermark to "
                f"{oldest.isoformat()} to go without them",
            )

    def _rows(self, body: bytes, span: _Span) -> Iterator[Item]:
        if body.startswith(_UTF_16) or b"\0" in body[:2]:
            raise self._error(f"is not UTF-8, but UTF-16: it begins with {body[:4]!r}")
        if not body.endswith(b"\n"):
            raise self._error(
                f"was cut off: after {len(body)} bytes it ends in the middle of a line"
            )
        blocks = self._blocks(body)
        head = next(blocks)
        columns, place = self._header(head)
        stated = _STATED.search(head)
        count, rows, ids = 0, 0, set[str]()
        row: list[str] | BrokenRow = []
        for row in self._cells(head, blocks, place, len(columns)):
            count += 1
            if isinstance(row, BrokenRow):
                yield _rejected(row.reason, row.text)
                continue
            if stated:
                rows += 1
                ids.add(row[0])  # by the header
            if not all(map(_is_text, row)):
                yield _rejected("is not UTF-8", ",".join(row))
            else:
                yield from _URLS.read([span.seen(dict(zip(columns, row, strict=True)))])
        if stated and int(stated[1]) != count:
            raise self._error(f"was cut off: it has {count} entries and states {stated[1]}")
        if not count:
            raise self._error("is empty")
        self._refuse_tail(_last_line(body), row)
        if stated and len(ids) < rows:
            raise self._error(
                f"states {count} entries, and has {len(ids)} ids in {rows} of them: others are "
                "missing"
            )

    def _refuse_tail(self, last: bytes, row: list[str] | BrokenRow) -> None:
        """Refuse a dump whose last line is a part of a row, or the message of a failure."""
        if not last.startswith(b"#"):
            if isinstance(row, BrokenRow):
                raise self._error(f"was cut off: its last line {row.reason}")
            return
        if isinstance(row, BrokenRow) or not any(
            "\n" in cell for cell in row
        ):  # which may begin with that, too
            said = last[:_LONGEST_SAID].decode(errors="replace")
            if REFUSES.are_in(said) or CUTS.are_in(said):
                raise self._error(f"was cut off: it ends with {said!r}")

    def _cells(
        self, head: str, blocks: Iterator[str], place: int, width: int
    ) -> Iterator[list[str] | BrokenRow]:
        yield from read_rows(head, place, width)
        for block in blocks:
            yield from read_rows(block, 0, width)

    def _blocks(self, body: bytes) -> Iterator[str]:
        """Yield the text of a dump in parts that end at the end of a row.

        A text with a single wide character is four times as long as its bytes.
        """
        place = 0
        while place < len(body):
            found = _ROW_BEGINS.search(body, place + _BLOCK_BYTES)
            end = found.end() if found else len(body)
            if end - place > 4 * _BLOCK_BYTES:
                raise self._error(f"has {end - place} bytes in which no row begins")
            # A byte that is not UTF-8 costs only its row.
            text = body[place:end].decode(errors="surrogateescape")
            yield text if place else text.removeprefix("\ufeff")
            place = end

    def _header(self, text: str) -> tuple[list[str], int]:
        """Return the columns, from the last comment before the rows, and where the rows begin."""
        for line in _HEADER_LINE.finditer(text):
            cells = [cell.strip(' "') for cell in line[0].lstrip("# ").split(",")]
            if cells[0] == "id" and "dateadded" in cells:
                columns = [cell.strip() for cell in cells]
                if len(set(columns)) < len(columns):  # of two the last would count, even for ids
                    raise self._error("has a column twice")
                return columns, line.end()
            if not line[0].startswith("#") and line[0].strip():
                break
        raise self._error("has no header line with the columns id and dateadded")

    def _error(self, problem: str, step: str = "check whether the feed has changed") -> SourceError:
        return published_error(f"{self.via} feed", self.source_id, self.url, problem, step)


@dataclass
class _Span:
    """The first and last times at which a document's addresses were added, and their number."""

    items: int = 0
    oldest: datetime | None = None
    newest: datetime | None = None

    def seen(self, item: Any) -> Any:
        """Note when an item was added, and return it."""
        self.items += 1
        try:
            added = _ADDED.timestamp(item)
        except ValueError:  # it is rejected when it is read
            return item
        self.oldest = added if self.oldest is None else min(self.oldest, added)
        self.newest = added if self.newest is None else max(self.newest, added)
        return item


def _last_line(body: bytes) -> bytes:
    return body[-_LONGEST_RAW:].rstrip().rpartition(b"\n")[2]


def _is_text(cell: str) -> bool:
    try:
        cell.encode()
    except UnicodeEncodeError:
        return False
    return True


def _rejected(reason: str, text: str) -> Reject:
    number = _ROW_ID.match(text)
    return Reject.of(reason, text[:_LONGEST_RAW], number[1] if number else None)
