"""A position in a JSON document, from which values are read one by one.

- A text with a single character beyond 65,535 takes four bytes for each of its characters, so only
  a window of the document is ever decoded.
- Items are read in runs: a part of the document, from the beginning of an item to a guessed end of
  another, is parsed at once. If it is JSON as a list of its own, the guess was right. Otherwise the
  items are read one by one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, NoReturn

from ladon_storage.collection.garbage import uncollected
from ladon_storage.collection.json_values import json_decoder
from ladon_storage.sources.json import bounds
from ladon_storage.sources.json.exact import parse_compact
from ladon_storage.sources.json.spooled import SpooledBody

_WINDOW_BYTES = 2**18
_NEAR = 16
"""The distance from its end within which a window may cut a number, a word or an escape."""

_FEWEST, _MOST = 16, 4_096
"""The items that are read one by one before the next guess, which may be as wrong as the last."""

_BLANK = re.compile(r"[ \t\n\r]*")


Run = tuple[list[str], list[Any]]
"""Keys and items; items of a list have no keys."""


class Reader:
    """A position in a document, and the values that can be read there."""

    def __init__(self, body: bytes | SpooledBody, start: int) -> None:
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
                    if 4 * (end - self._at) > bounds.MAX_ITEM_BYTES:
                        bounds.check_length(self._text[self._at : end])
                    self._at = end
                    if end > bounds.AT_ONCE_BYTES:  # not held while the value is used
                        self._text, self._at = self._text[end:], 0
                    return found
                problem, place = "", end
            found = None
            if place < len(self._text) - _NEAR or not self._grow():
                self.fail(problem)

    def run(self, *, are_keyed: bool) -> Run | None:
        """Consume and return the items to the last end of one in the window, and its comma.

        ``None``: the end is not found this way, or the items are left to the exact parser.
        """
        first = self.offset
        sent = self._body[first : first + _WINDOW_BYTES]
        between = b'},"' if are_keyed else b"},{"
        end = sent.rfind(between) + 1
        if end <= 0:
            return None
        found = parse_compact((b"{%b}" if are_keyed else b"[%b]") % sent[:end], between)
        if not found:
            return None
        self._text, self._at = "", 0
        self._next = first + end + 1
        return (list(found), list(found.values())) if are_keyed else ([], found)

    def _grow(self) -> bool:
        """Make the window twice as long, because a value does not end in it."""
        held = len(self._text) - self._at
        if held > bounds.MAX_ITEM_BYTES + _NEAR:
            bounds.check_length(self._text[self._at :])
        # No further than the longest value reaches: each character may take four bytes.
        most = bounds.MAX_ITEM_BYTES + _WINDOW_BYTES - held
        if not self._more(max(min(held, most), _WINDOW_BYTES)):
            return False
        if len(self._text) > bounds.AT_ONCE_BYTES:
            bounds.check_size(self._text)
        return True

    def _more(self, wanted: int) -> bool:
        if self._next >= len(self._body):
            return False
        end = min(self._next + wanted, len(self._body))
        for _ in range(3):  # not within a character
            if end < len(self._body) and self._body[end] & 0xC0 == 0x80:
                end -= 1
        added = self._body[self._next : end].decode("utf-8", "surrogatepass")
        self._text, self._at = self._text[self._at :] + added, 0
        self._next = end
        return True

    def fail(self, problem: str) -> NoReturn:
        """Raise the error that describes the problem here."""
        raise ValueError(f"{problem or 'it breaks off'}, at byte {self.offset}")


def runs_of(reader: Reader) -> Iterator[Run]:
    """Yield the items of the next list or object, some at a time; a long item comes alone."""
    opened = reader.take("[{")
    closing, are_keyed = "]" if opened == "[" else "}", opened == "{"
    if reader.peek() == closing:
        reader.take(closing)
        return
    following, slowly = ",", _FEWEST
    while following == ",":
        reader.peek()
        run = reader.run(are_keyed=are_keyed)
        if run is not None:
            slowly = _FEWEST
        else:
            run, following = _exact_run(reader, closing, slowly)
            slowly = min(2 * slowly, _MOST)
        yield run
        del run  # it is not held while the next one is made


def _exact_run(reader: Reader, closing: str, most: int) -> tuple[Run, str]:
    """Consume and return the next items, read one by one, and the character after the last."""
    are_keyed = closing == "}"
    run: Run = ([], [])
    begin, following = reader.place, ","
    with uncollected():
        while following == "," and len(run[1]) < most and reader.place - begin <= _WINDOW_BYTES:
            if are_keyed:
                run[0].append(reader.key())
            run[1].append(reader.value())
            following = reader.take("," + closing)
    return run, following


def items_of(reader: Reader) -> Iterator[tuple[str, Any]]:
    """Yield the keys and items of the next list or object; items of a list have no key."""
    for keys, items in runs_of(reader):
        keys.reverse()
        items.reverse()
        while items:  # which are not held while they are used
            yield keys.pop() if keys else "", items.pop()
