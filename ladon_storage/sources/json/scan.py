"""The check of a large document to its end, which finds the records in it."""

from __future__ import annotations

import asyncio
from itertools import repeat
from typing import Any

from ladon_storage.sources.json import bounds
from ladon_storage.sources.json.items import value_at
from ladon_storage.sources.json.many import ManyItems, ManyKeyed
from ladon_storage.sources.json.reader import Reader, runs_of
from ladon_storage.sources.json.spooled import SpooledBody
from ladon_storage.sources.json.unique_keys import DuplicateKeyError, KeySet, parse_around


class Scan:
    """One pass over a large document in a thread, which ends when nothing waits for it.

    Args:
        body: The document.
        start: Where it begins in it.

    Attributes:
        is_wanted: Whether anything waits for it.
    """

    def __init__(self, body: bytes | SpooledBody, start: int) -> None:
        self._body = body
        self._reader = Reader(body, start)
        self._found: Any = None
        self._keeps = False
        self._around = 0
        self._values_around = 0
        self.is_wanted = True

    def read(self, path: str) -> tuple[Any, Any]:
        """Return the document, without its records if they are many, and those at a path."""
        size = len(self._body)
        self._keeps = size <= 2 * bounds.MAX_ITEM_BYTES and self._has_few_values()
        if self._keeps and size <= min(bounds.IN_THREAD_BYTES, bounds.MAX_ITEM_BYTES):
            try:
                document = parse_around(bytes(self._body), path)
            except DuplicateKeyError:
                raise
            except (ValueError, RecursionError):  # which is found again, with its place
                pass
            else:
                return _parted(document, path)
        envelope = self._descend(path)
        if self._reader.peek():
            self._reader.fail("extra data")
        return envelope, self._found

    def _has_few_values(self) -> bool:
        count = 0
        for first in range(0, len(self._body), bounds.AT_ONCE_BYTES):
            count += bounds.more_values(self._body[first : first + bounds.AT_ONCE_BYTES])
            self._go_on()
        return count <= bounds.MAX_VALUES

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
        self._values_around += 1 + bounds.more_values(sent)
        if self._around > bounds.MAX_ITEM_BYTES or self._values_around > bounds.MAX_VALUES:
            raise bounds.TooMuchError(
                f"around its records it has more than {bounds.MAX_ITEM_BYTES} bytes or "
                f"{bounds.MAX_VALUES} values"
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
        for names, items in runs_of(self._reader):
            count += len(items)
            if count > bounds.MAX_ITEMS:
                raise bounds.TooMuchError(f"it has over {bounds.MAX_ITEMS} records")
            for name in names:
                keys.add(name)
            if self._keeps:
                kept += zip(names or repeat(""), items, strict=False)
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


def _parted(document: Any, path: str) -> tuple[Any, Any]:
    """Return a document with an empty value in place of its records, and the records."""
    found = value_at(document, path)
    if not isinstance(found, list | dict):
        return document, found
    nothing, place = type(found)(), document
    while path:
        is_key = isinstance(place, dict) and path in place
        name, _, path = (path, "", "") if is_key else path.partition(".")
        at: Any = name if isinstance(place, dict) else int(name)
        if not path:
            place[at] = nothing
            return document, found
        place = place[at]
    return nothing, found
