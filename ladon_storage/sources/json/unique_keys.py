"""The check for duplicate keys in JSON objects around records, and in objects of records.

- A parser keeps the last of two equal keys, so that a list of records, or a record, would be lost
  silently. There is no way to know which of the two is meant.
- Records themselves are not checked: that would take as long again as parsing them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from ladon_storage.collection.garbage import uncollected
from ladon_storage.collection.json_values import json_decoder, parse_json
from ladon_storage.sources.json.exact import parse_compact

MOST_KEYS = 2**20
"""Keys of one object that are remembered; a duplicate beyond them is not found."""

_LONGEST_SHOWN = 10_000
"""Characters of a key in a message; the text is masked before it is cut."""

_blank = re.compile(r"[ \t\n\r]*").match
_opening = re.compile(r"\{[ \t\n\r]*").match
_colon = re.compile(r"[ \t\n\r]*:[ \t\n\r]*").match
_next_or_end = re.compile(r'[ \t\n\r]*(?:,[ \t\n\r]*(?=")|\})').match


class DuplicateKeyError(ValueError):
    """Raised when a document has a key twice where its records are."""


class KeySet:
    """The keys of one object."""

    def __init__(self) -> None:
        self._hashes: set[int] = set()

    def add(self, key: str) -> None:
        """Note a key.

        Raises:
            DuplicateKeyError: It was there before.
        """
        found = hash(key)
        if found in self._hashes:
            raise DuplicateKeyError(f"the key {key[:_LONGEST_SHOWN]!r} occurs twice")
        if len(self._hashes) < MOST_KEYS:
            self._hashes.add(found)


class _NotFollowedError(Exception):
    """Raised when the text is no JSON; the parser describes the problem better."""


def parse_around(sent: str | bytes, path: str) -> Any:
    """Return a JSON document, whose objects down to a dotted path have no duplicate key.

    >>> parse_around('{"a": {"b": [{"c": 1}]}, "d": 2}', "a.b")
    {'a': {'b': [{'c': 1}]}, 'd': 2}

    Raises:
        DuplicateKeyError: One of them has a key twice.
        ValueError: It is no JSON.
        RecursionError: It is nested too deeply.
    """
    if isinstance(sent, bytes) and (compact := parse_compact(sent)) is not None:
        return compact
    text = (
        sent if isinstance(sent, str) else sent.decode(json.detect_encoding(sent), "surrogatepass")
    )
    start = _behind(_blank, text, 0)
    if not text.startswith("{", start):
        return parse_json(text)
    decoder: Any = json_decoder()
    try:
        with uncollected():
            document, end = _object(text, start, path, decoder.scan_once)
        if _behind(_blank, text, end) == len(text):
            return document
    except DuplicateKeyError:
        raise
    except (_NotFollowedError, StopIteration, IndexError, ValueError):
        pass
    return parse_json(text)


def _object(text: str, start: int, path: str, scan: Any) -> tuple[dict[str, Any], int]:
    """Return the object that begins at a position, and its end."""
    content: dict[str, Any] = {}
    first, _, rest = path.partition(".")
    at = _behind(_opening, text, start)
    if text[at] == "}":
        return content, at + 1
    while text[at] == '"':
        key, at = scan(text, at)
        at = _behind(_colon, text, at)
        if key in content:
            raise DuplicateKeyError(f"the key {key[:_LONGEST_SHOWN]!r} occurs twice")
        if path and text[at] == "{" and key in (path, first):
            content[key], at = _object(text, at, "" if key == path else rest, scan)
        else:
            content[key], at = scan(text, at)
        at = _behind(_next_or_end, text, at)
        if text[at - 1] == "}":
            return content, at
    raise _NotFollowedError


def _behind(match: Callable[[str, int], re.Match[str] | None], text: str, at: int) -> int:
    """Return the position after the next value."""
    found = match(text, at)
    if found is None:
        raise _NotFollowedError
    return found.end()
