"""Records, rejects, and the pages in which they travel from a source to a sink.

- A record's ``payload`` keeps the order of keys and the values that the source gave; ``version`` is
  a hash of the content alone: a feed that shuffles its keys has not changed.
- A record can be stored anywhere: its texts are valid UTF-8 without NUL, its JSON has no ``NaN``.
- A source with many records at once gives them as `Columns`: an object and several calls for each
  record would cost more than all else that is done with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, MutableSequence, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from hashlib import blake2b
from itertools import chain, compress
from operator import not_
from typing import Any, Literal, Self, overload

from ladon_storage.collection.json_values import (
    Number,
    as_anything,
    canonical_text,
    canonical_texts,
    is_json,
    payload_text,
    payload_texts,
    without,
)
from ladon_storage.errors import ConfigurationError, told, without_secrets
from ladon_storage.values import instant_text, to_utc

PAGE_RECORDS = 1_000
"""The records of a page that a source cuts itself: one transaction of a few hundred KiB."""

PAGE_CHARACTERS = 2**24
"""The text of a page after which the next item begins another page: records may be very large."""

_LONGEST_REPR = 2**16

_ITEM_CHARACTERS = 100
"""The approximate size of an item's other parts: its id, its version, its timestamp."""


@dataclass(slots=True)
class Record:
    """One item of a source at one version of its content.

    Args:
        record_id: Its id at the source.
        timestamp: Its time according to the source; kept as aware UTC, a naive one read as UTC.
        payload: Its JSON text.
        version: The hash of its content; the same content has the same version for ever.

    Raises:
        ValueError: ``record_id`` cannot be stored, or ``timestamp`` is no `datetime.datetime`, or
            leaves the years 1 to 9999; or one of the others is no text.
    """

    record_id: str
    timestamp: datetime
    payload: str
    version: str

    def __post_init__(self) -> None:
        if not (type(self.record_id) is type(self.payload) is type(self.version) is str):
            self.record_id = _plain(self.record_id, "id")
            self.payload = _plain(self.payload, "payload")
            self.version = _plain(self.version, "version")
        if not self.record_id:
            raise ValueError("the id of a record should be a text that is not empty")
        if not self.record_id.isascii() or "\0" in self.record_id:
            _check_text(self.record_id)
        if type(self.timestamp) is not datetime or self.timestamp.tzinfo is not UTC:
            self.timestamp = _instant(self.timestamp)

    @classmethod
    def of(
        cls,
        record_id: str,
        timestamp: datetime,
        content: object,
        unversioned: Sequence[str] = (),
    ) -> Self:
        """Return the record of a parsed JSON value.

        Args:
            record_id: Its id.
            timestamp: Its time according to the source.
            content: The value. Of `parse_json` it has the digits of its numbers, which those of
                ``json.loads`` may have lost.
            unversioned: Dotted paths of fields that do not change the version; the payload keeps
                them.

        Raises:
            ValueError: The content has ``NaN`` or an infinity, or is nested too deeply; or as for
                the class.

        >>> moment = datetime(2024, 1, 1, tzinfo=UTC)
        >>> one = Record.of("7", moment, {"b": 1, "a": 2})
        >>> one.payload, one.version == Record.of("7", moment, {"a": 2, "b": 1}).version
        ('{"b":1,"a":2}', True)
        """
        version, payload = versioned(content, unversioned)
        return cls(record_id, timestamp, payload, version)

    @classmethod
    def of_content(
        cls, timestamp: datetime, content: object, unversioned: Sequence[str] = ()
    ) -> Self:
        """Return the record of a value without an id: its version is its id.

        Raises:
            ValueError: As for `of`.

        >>> one = Record.of_content(datetime(2024, 1, 1, tzinfo=UTC), {"b": 1, "a": 2})
        >>> one.record_id == one.version
        True
        """
        version, payload = versioned(content, unversioned)
        return cls(version, timestamp, payload, version)


def versioned(
    content: object, unversioned: Sequence[str] = (), *, is_parsed: bool = False
) -> tuple[str, str]:
    """Return the version and the payload of a content.

    Args:
        content: The value.
        unversioned: Dotted paths of fields that do not change the version.
        is_parsed: Whether `parse_json` made the value, which makes it quicker.

    Raises:
        ValueError: The content has ``NaN`` or an infinity, or is nested too deeply.
    """
    try:
        # First: it refuses what is not JSON, and orjson writes NaN as null.
        hashed = canonical_text(content, is_parsed=is_parsed)
        if unversioned:
            hashed = canonical_text(without(content, unversioned), is_parsed=is_parsed)
        return blake2b(hashed, digest_size=16).hexdigest(), payload_text(content)
    except RecursionError:
        raise ValueError("the content is nested too deeply") from None


def payloads_and_versions(contents: Sequence[object]) -> tuple[list[str], list[str]]:
    """Return those of values that `parse_json` made, as `versioned` does, at less cost.

    Raises:
        TypeError: One of them needs a closer look.
    """
    payloads, versions = payload_texts(contents), list[str]()
    # A copy takes half as long as another hash with the same settings.
    new_hash = blake2b(digest_size=16).copy
    for text in canonical_texts(contents, payloads):
        hashed = new_hash()
        hashed.update(text)
        versions.append(hashed.hexdigest())
    return payloads, versions


def joined_id(parts: Iterable[object]) -> str:
    """Return the id that several values form together; only the same values give the same id.

    Raises:
        ValueError: One of them is missing, or is none of a text, a number and a truth value.

    >>> joined_id(["192.0.2.1", 443])
    '["192.0.2.1",443]'
    """
    values = list(parts)
    if not all(isinstance(each, str | int | float | Number) for each in values):
        raise ValueError("each part of an id should be a text, a number or a truth value")
    return payload_text(values)


def _plain(value: object, what: str) -> str:
    """Return the text of a derived class, such as a parser's or an enumeration's, as a ``str``.

    Not each library that a sink calls takes another class for a text.
    """
    if not isinstance(value, str):
        raise ValueError(
            f"the {what} of a record should be a text, and is of {type(value).__name__}"
        )
    return str.__str__(value)


def _instant(value: object) -> datetime:
    # The missing time of pandas is a datetime, and not equal to itself.
    if not isinstance(value, datetime) or value != value:
        kind = type(value).__name__
        raise ValueError(f"the time of a record should be a datetime, and is of {kind}")
    return to_utc(value)


def _check_text(value: str) -> None:
    if "\0" in value:
        raise ValueError("the id of a record should have no NUL")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError("the id of a record should have no lone surrogates") from None


class Columns(MutableSequence[Record]):
    """The records of a page as columns, which become `Record` objects only when they are read.

    It is a sequence of records like any other. A sink that knows it takes the columns, which are
    lists of the same length, and must not change them.

    Args:
        ids: The ids, checked as those of a `Record`.
        timestamps: The timestamps, in UTC.
        payloads: The JSON texts.
        versions: The hashes of the contents.
        instants: The timestamps as `instant_text` writes them, where they are at hand.

    Raises:
        ConfigurationError: The lists are not of the same length.

    >>> moment = datetime(2024, 1, 1, tzinfo=UTC)
    >>> one = Columns.of([Record("7", moment, "{}", "a"), Record("8", moment, "{}", "b")])
    >>> one.ids, one[1].version, one.instants[0]
    (['7', '8'], 'b', '2024-01-01T00:00:00.000000+00:00')
    """

    __slots__ = ("_instants", "_records", "ids", "payloads", "timestamps", "versions")

    def __init__(
        self,
        ids: list[str],
        timestamps: list[datetime],
        payloads: list[str],
        versions: list[str],
        instants: list[str] | None = None,
    ) -> None:
        lengths = {len(ids), len(timestamps), len(payloads), len(versions)}
        if len(lengths) > 1 or (instants is not None and len(instants) not in lengths):
            raise ConfigurationError(
                f"Columns have {len(ids)} ids, {len(timestamps)} timestamps, {len(payloads)} "
                f"payloads and {len(versions)} versions. Give each record one of each."
            )
        self.ids = ids
        self.timestamps = timestamps
        self.payloads = payloads
        self.versions = versions
        self._instants = instants
        self._records: list[Record] | None = None

    @classmethod
    def of(cls, records: Iterable[Record]) -> Columns:
        """Return the columns of records, which are themselves where they are columns already.

        Raises:
            ConfigurationError: One of them is no record.
        """
        if isinstance(records, Columns):
            return records
        records = list(records)  # an iterator gives them but once
        for each in records:
            if not isinstance(each, Record):
                raise ConfigurationError(
                    f"A page has a {type(each).__name__} among its records. Make each by Record.of."
                )
        found = cls(
            [each.record_id for each in records],
            [each.timestamp for each in records],
            [each.payload for each in records],
            [each.version for each in records],
        )
        found._records = records
        return found

    @classmethod
    def joined(cls, several: Sequence[Columns]) -> Columns:
        """Return the records of several columns in their order."""
        made = cls(
            list(chain.from_iterable(each.ids for each in several)),
            list(chain.from_iterable(each.timestamps for each in several)),
            list(chain.from_iterable(each.payloads for each in several)),
            list(chain.from_iterable(each.versions for each in several)),
        )
        if all(each._instants is not None for each in several):  # noqa: SLF001 - its own
            made._instants = list(chain.from_iterable(each.instants for each in several))
        # Objects that were made are distinguished by their identity.
        if any(each._records is not None for each in several):  # noqa: SLF001 - its own
            made._records = list(chain.from_iterable(several))
        return made

    def copy(self) -> Columns:
        """Return a copy that no later change reaches, of the columns or of a `Record`."""
        made = Columns(
            list(self.ids), list(self.timestamps), list(self.payloads), list(self.versions)
        )
        if self._instants is not None:
            made._instants = list(self._instants)
        # Of a derived class, records may have more than the columns.
        if self._records is not None and not {Record}.issuperset(map(type, self._records)):
            made._records = list(map(copy, self._records))
        return made

    def at(self, places: Sequence[int]) -> Columns:
        """Return the records at some places."""
        made = Columns(
            [self.ids[place] for place in places],
            [self.timestamps[place] for place in places],
            [self.payloads[place] for place in places],
            [self.versions[place] for place in places],
        )
        if self._instants is not None:
            made._instants = [self._instants[place] for place in places]
        if self._records is not None:
            made._records = [self._records[place] for place in places]
        return made

    @property
    def instants(self) -> list[str]:
        """The timestamps as `instant_text` writes them."""
        if self._instants is None:
            self._instants = list(map(instant_text, self.timestamps))
        return self._instants

    @property
    def are_distinct(self) -> bool:
        """Whether no id occurs twice."""
        return len(set(self.ids)) == len(self.ids)

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> MutableSequence[Record]: ...
    def __getitem__(self, index: int | slice) -> Record | MutableSequence[Record]:
        return self._made()[index]

    def __iter__(self) -> Iterator[Record]:
        return iter(self._made())

    def __len__(self) -> int:
        return len(self.ids)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or len(other) != len(self):
            return NotImplemented if not isinstance(other, Sequence) else False
        return all(map(Record.__eq__, self, other))

    def __repr__(self) -> str:
        return repr(self._made())

    def __setitem__(self, index: Any, value: Any) -> None:
        records = self._made()
        records[index] = value
        self._become(records)

    def __delitem__(self, index: int | slice) -> None:
        records = self._made()
        del records[index]
        self._become(records)

    def insert(self, index: int, value: Record) -> None:
        """Insert a record before an index."""
        records = self._made()
        records.insert(index, value)
        self._become(records)

    def _made(self) -> list[Record]:
        """Return the records, each of which is one object for as long as the columns exist."""
        if self._records is None:
            self._records = list(
                map(Record, self.ids, self.timestamps, self.payloads, self.versions)
            )
        return self._records

    def _become(self, records: list[Record]) -> None:
        other = Columns.of(records)
        self.ids, self.timestamps = other.ids, other.timestamps
        self.payloads, self.versions = other.payloads, other.versions
        self._records, self._instants = records, None


@dataclass(frozen=True, slots=True)
class Reject:
    """One item that cannot be used, on its way to the quarantine.

    A reason often quotes an error, and goes to logs, ledgers and metrics: like an error, a reject
    shows no secret that this process has looked up.

    Args:
        reason: The fault, as a sentence for a reader.
        raw: The item as the source gave it, but for such secrets.
        record_id: Its id, where it has one.
    """

    reason: str
    raw: str
    record_id: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "reason", without_secrets(self.reason))  # frozen
        object.__setattr__(self, "raw", without_secrets(self.raw))

    @classmethod
    def of(cls, reason: object, item: object, record_id: object = None) -> Self:
        """Return the reject of a parsed JSON value, whatever it is.

        >>> Reject.of("no id", {"a": float("nan")}).raw
        '{"a":NaN}'
        """
        try:
            raw = as_anything(item)
        except Exception:  # of a value's own class, too
            raw = _shown(item)
        return cls(told(reason), raw, record_id if isinstance(record_id, str) else None)


def _shown(item: object) -> str:
    try:
        return repr(item)[:_LONGEST_REPR]
    except Exception as error:  # an integer of thousands of digits, or a class of one's own
        return f"a {type(item).__name__} that cannot be shown ({type(error).__name__})"


Completeness = Literal["total", "last page", "whole document", "declared"]
"""The evidence that a run read all items.

It is the total that the API states, a last page that nothing contradicts, a single document that
holds all items, or only the declaration of the source.
"""


@dataclass(frozen=True, slots=True)
class Page:
    """The result of one request to a source; to a sink, the records of one durable write.

    Args:
        records: The usable items, whatever their time.
        rejects: The items that cannot be used.
        listed: Ids that a source with full snapshots still lists, without their content.
        asked_at: The source's own time of the run's first request, where its responses give it; a
            naive one is read as UTC.
        completeness: The evidence that the reading is complete, at the latest on its last page.
        total: The number of items that the source states.
        document: The digest of the page's document, where it was delivered completely.
        unchanged: Whether the sink already has that document's records; then this page has none.
        undated: Whether nothing says when the records became visible. Their own timestamps then
            move no watermark, and are in no order.
    """

    records: MutableSequence[Record] = field(default_factory=list)
    rejects: list[Reject] = field(default_factory=list)
    listed: list[str] = field(default_factory=list)
    asked_at: datetime | None = None
    completeness: Completeness | None = None
    total: int | None = None
    document: str | None = None
    unchanged: bool = False
    undated: bool = False

    def __len__(self) -> int:
        return len(self.records) + len(self.rejects)

    @property
    def characters(self) -> int:
        """The approximate size of its text, which bounds its memory."""
        records = self.records
        payloads = (
            records.payloads if isinstance(records, Columns) else [each.payload for each in records]
        )
        texts = sum(map(len, payloads))
        texts += sum(map(len, [each.raw for each in self.rejects]))
        return texts + _ITEM_CHARACTERS * (len(self) + len(self.listed))

    def copy(self) -> Page:
        """Return the page as it is now, whatever its source does with it afterwards.

        A payload that is no JSON could be stored in some places and read again in none: its record
        becomes a reject. Those of `Columns` are made by the engine's own functions.
        """
        records, rejects = Columns.of(self.records).copy(), list(self.rejects)
        if not isinstance(self.records, Columns):
            usable = list(map(is_json, records.payloads))
            if not all(usable):
                rejects += [
                    Reject("the payload is no JSON", each.payload, each.record_id)
                    for each in compress(records, map(not_, usable))
                ]
                records = records.at([place for place, each in enumerate(usable) if each])
        return replace(self, records=records, rejects=rejects, listed=list(self.listed))

    @classmethod
    def of(cls, pages: Sequence[Page]) -> Page:
        """Return several pages as the one page that a sink stores, in their order."""
        if len(pages) == 1:
            return pages[0]
        filled = [page.records for page in pages if len(page.records)]
        columns = [each for each in filled if isinstance(each, Columns)]
        return cls(
            Columns.joined(columns)
            if columns and len(columns) == len(filled)
            else list(chain.from_iterable(filled)),
            [reject for page in pages for reject in page.rejects],
            [listed for page in pages for listed in page.listed],
        )


Item = Record | Reject
"""The form in which a source yields an item."""


def paged(items: Iterable[Item], size: int = PAGE_RECORDS, **marks: Any) -> Iterator[Page]:
    """Cut ``items`` into pages of at most ``size`` records and rejects, without reading ahead.

    A page ends earlier when it is full of text: large records must not fill the memory. Each page
    has the ``marks``, which are fields of `Page`. With marks, a reading without items is one empty
    page.
    """
    page, count, characters, is_empty = Page(**marks), 0, 0, True
    for item in items:
        if isinstance(item, Record):
            page.records.append(item)
            characters += len(item.payload)
        else:
            page.rejects.append(item)
            characters += len(item.raw)
        count += 1
        if count == size or characters >= PAGE_CHARACTERS:
            yield page
            page, count, characters, is_empty = Page(**marks), 0, 0, False
    if len(page) or (marks and is_empty):
        yield page
