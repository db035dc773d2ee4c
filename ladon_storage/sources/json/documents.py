"""Large JSON documents, record by record, with bounded objects, memory and blocking time.

- A few bytes of JSON become a hundred of Python's, so a limit on bytes bounds nothing. Each parsed
  part is bounded in values as well: a record, or everything around the records.
- A small document is parsed as a whole. The records of a larger one are parsed one by one, first to
  check that it is JSON to its end, and again whenever they are read. If there are few enough, they
  are kept from the first time.
- A text with a single character beyond 65,535 takes four bytes for each of its characters, so only
  a window of the document is ever decoded.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from hashlib import blake2b
from importlib.metadata import version
from itertools import islice
from typing import Any, NoReturn, TypeGuard, TypeVar, overload

from pydantic import BaseModel

from ladon_storage.collection.json_values import json_decoder
from ladon_storage.collection.protocols import KnownContent
from ladon_storage.sources.json.items import value_at
from ladon_storage.sources.json.unique_keys import KeySet, parse_around

T = TypeVar("T")

AT_ONCE_BYTES = 2**20
"""The size of a document parsed in one step; a larger one would block the event loop too long."""

MAX_ITEM_BYTES = 32 * 2**20
"""Bytes of one record, and of everything around the records."""

MAX_VALUES = 1_000_000
"""Values in memory at once, of a record or of a document: a tenth of a GiB, or two."""

MAX_ITEMS = 10_000_000
"""Records of one document; only a document made to take hours has more."""

_VERSION = version("ladon-storage")

_WINDOW_BYTES = 2**18
_NEAR = 16
"""The distance from its end within which a window may cut a number, a word or an escape."""

_BLANK = re.compile(r"[ \t\n\r]*")
# A complete text, an incomplete one at the end, or one that another value follows.
_TEXT_OR_MORE = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"?|[,\[{]', re.DOTALL)
_TEXT_OR_MORE_BYTES = re.compile(_TEXT_OR_MORE.pattern.encode(), re.DOTALL)
_UTF_8 = ("utf-8", "utf-8-sig")


_TOO_LONG = "a record, or the document around them, has over {} bytes"


class TooMuchError(ValueError):
    """Raised when too much of a document would have to be in memory at once."""


@dataclass(frozen=True)
class Document:
    """A document, separate from its records.

    Args:
        envelope: All of it; if it is large, with an empty value in place of the records.
        items: The value at the path of the records: a list or an object whose keys are the ids, or
            a lazy equivalent if they are many; ``None``: nothing is there.
    """

    envelope: Any
    items: Any


def parse(text: bytes | str, path: str = "") -> Any:
    """Return a JSON document, parsed at once, whose records are at a dotted path.

    Raises:
        ValueError: It is invalid; a `TooMuchError` if it has more values than are held at once, a
            `DuplicateKeyError` if it has a key twice around its records or in place of them.
        RecursionError: It is nested too deeply.
    """
    if len(text) > AT_ONCE_BYTES:
        _check_length(text)
        _check_size(text)
    return parse_around(text, path)


async def read_document(body: bytes, path: str) -> Document:
    """Return a document whose records are at a dotted path, without blocking the event loop.

    Raises:
        ValueError: It is invalid; a `TooMuchError` if a record or the envelope is too large.
        RecursionError: It is nested too deeply.
    """
    if len(body) <= AT_ONCE_BYTES:
        document = parse(body, path)
        return Document(document, value_at(document, path))
    encoding = json.detect_encoding(body[:4])
    if encoding not in _UTF_8:
        if len(body) > MAX_ITEM_BYTES:
            raise TooMuchError(f"it is larger than {MAX_ITEM_BYTES} bytes, and no UTF-8")
        body = body.decode(encoding).encode("utf-8", "surrogatepass")
    scan = _Scan(body, len("\ufeff".encode()) if encoding == "utf-8-sig" else 0)
    try:
        return await asyncio.to_thread(scan.read, path)
    finally:
        scan.is_wanted = False


def document_digest(source: BaseModel, body: bytes) -> str:
    """Return the digest of a document that was read with these settings, by this version.

    The way to reach it makes no difference; the names of secrets are no secrets.
    """
    settings = source.model_dump_json(exclude={"connection"})
    digest = blake2b(f"{_VERSION}\0{settings}\0".encode(), digest_size=15)
    digest.update(body)
    return digest.hexdigest()


def whole_document(source: BaseModel, body: bytes, until: datetime | None) -> dict[str, Any]:
    """Return the marks of the pages of a document that was delivered as a whole.

    A backfill takes a part of it, and says nothing about the rest in the sink.
    """
    digest = None if until is not None else document_digest(source, body)
    return {"completeness": "whole document", "document": digest}


def is_known(marks: Mapping[str, Any], known: KnownContent | None) -> bool:
    """Return whether the sink has all records of the document that has these marks."""
    document = marks["document"]
    return document is not None and known is not None and known.document == document


async def in_turns(pages: Iterator[T], size: int) -> AsyncIterator[T]:
    """Yield items made of ``size`` bytes; many are made in a thread, off the event loop."""
    if size <= AT_ONCE_BYTES:
        for page in pages:
            yield page
        return
    while (made := await asyncio.to_thread(next, pages, None)) is not None:
        yield made


def is_list(items: object) -> TypeGuard[Sequence[Any]]:
    """Return whether the value at the path of the records is a list."""
    return isinstance(items, list | ManyItems)


def is_keyed(items: object) -> TypeGuard[Mapping[str, Any]]:
    """Return whether the value at the path of the records is an object."""
    return isinstance(items, dict | ManyKeyed)


class _Reader:
    """A position in a document, and the values that can be read there."""

    def __init__(self, body: bytes, start: int) -> None:
        self._body = body
        self._next = start
        self._text = ""
        self._at = 0
        decoder: Any = json_decoder()
        self._scan = decoder.scan_once

    @property
    def offset(self) -> int:
        """The current byte offset."""
        return self._next - len(self._text[self._at :].encode("utf-8", "surrogatepass"))

    @property
    def place(self) -> int:
        """The approximate current byte offset, found without counting."""
        return self._next - len(self._text) + self._at

    def peek(self) -> str:
        """Return the next character that is not blank; an empty text at the end."""
        while True:
            blank = _BLANK.match(self._text, self._at)
            self._at = self._at if blank is None else blank.end()
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more(_WINDOW_BYTES):
                return ""

    def take(self, wanted: str) -> str:
        """Consume and return the next character, which is one of ``wanted``."""
        found = self.peek()
        if not found or found not in wanted:
            self.fail(f"expecting {' or '.join(map(repr, wanted))}")
        self._at += 1
        return found

    def key(self) -> str:
        """Return the next key, and consume its colon."""
        if self.peek() != '"':
            self.fail("expecting a key")
        found = str(self.value())
        self.take(":")
        return found

    def value(self) -> Any:
        """Consume and return the next value."""
        self.peek()
        while True:
            try:
                found, end = self._scan(self._text, self._at)
            except StopIteration as stop:
                problem, place = "expecting a value", stop.value
            except json.JSONDecodeError as error:
                problem, place = error.msg, error.pos
                if problem.startswith("Unterminated string"):
                    place = len(self._text)
            else:
                # A number continues at the end of its window, and a text does not.
                if end < len(self._text) - _NEAR or self._next >= len(self._body):
                    if 4 * (end - self._at) > MAX_ITEM_BYTES:
                        _check_length(self._text[self._at : end])
                    self._at = end
                    return found
                problem, place = "", end
            found = None
            if place < len(self._text) - _NEAR or not self._grow():
                self.fail(problem)

    def _grow(self) -> bool:
        """Make the window twice as long, because a value does not end in it."""
        held = len(self._text) - self._at
        if not self._more(max(held, _WINDOW_BYTES)):
            return False
        if len(self._text) > AT_ONCE_BYTES:
            _check_size(self._text)
        return True

    def _more(self, wanted: int) -> bool:
        if self._next >= len(self._body):
            return False
        end = min(self._next + wanted, len(self._body))
        for _ in range(3):  # not within a character
            if end < len(self._body) and self._body[end] & 0xC0 == 0x80:
                end -= 1
        added = self._body[self._next : end].decode("utf-8", "surrogatepass")
        self._text = self._text[self._at :] + added
        self._at, self._next = 0, end
        return True

    def fail(self, problem: str) -> NoReturn:
        """Raise the error that describes the problem here."""
        raise ValueError(f"{problem or 'it breaks off'}, at byte {self.offset}")


def _items(reader: _Reader) -> Iterator[tuple[str, Any]]:
    """Yield the keys and items of the next list or object; items of a list have no key."""
    opened = reader.take("[{")
    closing = "]" if opened == "[" else "}"
    if reader.peek() == closing:
        reader.take(closing)
        return
    while True:
        key = "" if opened == "[" else reader.key()
        yield key, reader.value()
        if reader.take("," + closing) == closing:
            return


class _Many:
    """Records that are parsed at each reading; two are equal if their bytes are."""

    def __init__(self, body: bytes, start: int, end: int, count: int) -> None:
        self._body = body
        self._start = start
        self._end = end
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Many) and self._sent() == other._sent()

    def __hash__(self) -> int:
        return hash((self._count, self._end - self._start))

    def digest(self) -> bytes:
        """Return the digest of these records, as they were sent."""
        return blake2b(self._sent(), digest_size=16).digest()

    def _sent(self) -> memoryview:
        return memoryview(self._body)[self._start : self._end]

    def _pairs(self) -> Iterator[tuple[str, Any]]:
        return _items(_Reader(self._body, self._start))


class ManyItems(_Many, Sequence[Any]):
    """A list of many records."""

    def __iter__(self) -> Iterator[Any]:
        return (item for _, item in self._pairs())

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> list[Any]: ...
    def __getitem__(self, index: int | slice) -> Any:
        """Return the item at an index, or the items in a range, by reading everything before it."""
        wanted = range(self._count)[index]
        if isinstance(wanted, int):
            return next(islice(self, wanted, None))
        return [item for number, item in enumerate(self) if number in wanted]


class ManyKeyed(_Many, Mapping[str, Any]):
    """An object of many records, keyed by their ids."""

    def __iter__(self) -> Iterator[str]:
        return (key for key, _ in self._pairs())

    def __getitem__(self, key: str) -> Any:
        """Return the value of a key, by reading all: of duplicates the last one counts."""
        found = [item for each, item in self._pairs() if each == key]
        if not found:
            raise KeyError(key)
        return found[-1]

    def items(self) -> Any:
        """Return the keys and records, each read once."""
        return self._pairs()


class _Scan:
    """One pass over a large document in a thread, which ends when nothing waits for it."""

    def __init__(self, body: bytes, start: int) -> None:
        self._body = body
        self._reader = _Reader(body, start)
        self._found: Any = None
        self._keeps = False
        self._around = 0
        self._values_around = 0
        self.is_wanted = True

    def read(self, path: str) -> Document:
        self._keeps = len(self._body) <= 2 * MAX_ITEM_BYTES and self._has_few_values()
        envelope = self._descend(path)
        if self._reader.peek():
            self._reader.fail("extra data")
        return Document(envelope, self._found)

    def _has_few_values(self) -> bool:
        count = 0
        for first in range(0, len(self._body), AT_ONCE_BYTES):
            count += _more_values(self._body[first : first + AT_ONCE_BYTES])
            self._go_on()
        return count <= MAX_VALUES

    def _descend(self, path: str) -> Any:
        """Return the next value, without the records, which are at the path from here on."""
        if not path:
            return self._records()
        opened = self._reader.peek()
        if opened == "{":
            return self._object(path)
        if opened == "[":
            return self._list(path)
        return self._value()

    def _object(self, path: str) -> dict[str, Any]:
        reader, envelope, keys = self._reader, dict[str, Any](), KeySet()
        first, _, rest = path.partition(".")
        is_named = False
        reader.take("{")
        if reader.peek() == "}":
            reader.take("}")
            return envelope
        while True:
            key = reader.key()
            keys.add(key)
            if key == path:  # which may contain dots, and precedes the one that leads deeper
                is_named, self._found = True, None
                envelope[key] = self._descend("")
            elif key == first and not is_named:
                self._found = None
                envelope[key] = self._descend(rest)
            else:
                envelope[key] = self._value()
            if reader.take(",}") == "}":
                return envelope

    def _list(self, path: str) -> list[Any]:
        reader, envelope = self._reader, list[Any]()
        first, _, rest = path.partition(".")
        reader.take("[")
        if reader.peek() == "]":
            reader.take("]")
            return envelope
        while True:
            is_here = first.isdecimal() and int(first) == len(envelope)
            envelope.append(self._descend(rest) if is_here else self._value())
            if reader.take(",]") == "]":
                return envelope

    def _value(self) -> Any:
        """Return a value around the records; all of them are bounded together."""
        before = self._reader.place
        value = self._reader.value()
        sent = self._body[before : self._reader.place]
        self._around += len(sent)
        self._values_around += 1 + _more_values(sent)
        if self._around > MAX_ITEM_BYTES or self._values_around > MAX_VALUES:
            raise TooMuchError(
                f"around its records it has more than {MAX_ITEM_BYTES} bytes or {MAX_VALUES} values"
            )
        self._go_on()
        return value

    def _records(self) -> Any:
        """Skip the records, and return the value in their place."""
        opened = self._reader.peek()
        if opened not in ("[", "{"):
            self._found = self._value()
            return self._found
        start, count, kept = self._reader.offset, 0, list[tuple[str, Any]]()
        keys = KeySet()
        for pair in _items(self._reader):
            count += 1
            if count > MAX_ITEMS:
                raise TooMuchError(f"it has over {MAX_ITEMS} records")
            if opened == "{":
                keys.add(pair[0])
            if self._keeps:
                kept.append(pair)
            self._go_on()
        if self._keeps:
            self._found = [item for _, item in kept] if opened == "[" else dict(kept)
        else:
            many = ManyItems if opened == "[" else ManyKeyed
            self._found = many(self._body, start, self._reader.offset, count)
        return [] if opened == "[" else {}

    def _go_on(self) -> None:
        if not self.is_wanted:
            raise asyncio.CancelledError


def _more_values(sent: bytes | str) -> int:
    """Return a lower bound of the number of values, not counting the outermost one."""
    if isinstance(sent, str):
        return sent.count(",") + sent.count("[") + sent.count("{")
    return sent.count(b",") + sent.count(b"[") + sent.count(b"{")


def _check_length(sent: bytes | str) -> None:
    """Raise a `TooMuchError` if this is longer than is parsed at once."""
    size = len(sent.encode("utf-8", "surrogatepass")) if isinstance(sent, str) else len(sent)
    if size > MAX_ITEM_BYTES:
        raise TooMuchError(_TOO_LONG.format(MAX_ITEM_BYTES))


def _check_size(sent: bytes | str) -> None:
    """Raise a `TooMuchError` if this is too much to be parsed at once."""
    if len(sent) > 2 * MAX_ITEM_BYTES:  # with the next values in a window
        raise TooMuchError(_TOO_LONG.format(MAX_ITEM_BYTES))
    if _more_values(sent) <= MAX_VALUES:
        return
    # Its texts may contain commas.
    found: Iterator[re.Match[Any]] = (
        _TEXT_OR_MORE.finditer(sent)
        if isinstance(sent, str)
        else _TEXT_OR_MORE_BYTES.finditer(sent)
    )
    texts = values = 0
    for each in found:
        if each[0][0] in ('"', ord('"')):
            texts += 1
        else:
            values += 1
        if values > MAX_VALUES or texts > 2 * MAX_VALUES:
            raise TooMuchError(
                f"a record, or the document around them, has over {MAX_VALUES} values"
            )
