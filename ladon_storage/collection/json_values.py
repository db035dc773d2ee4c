"""JSON as a source sent it: every digit of its numbers, and the texts that are stored and hashed.

- A number whose digits Python would not write again is a `Number`: ``0.10``, ``1e400``, ``-0``, or
  a very long integer, which is never converted: the time for that is quadratic in its length. All
  other numbers are the usual ``int`` or ``float``.
- The hash is of the text of the standard library's ``json``, for ever: versions are stored. The
  quicker ``orjson`` stands in for it only where the two cannot differ. A `Number` that ``json``
  would have written with the same digits is hashed as ``json`` would have written it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator
from decimal import Decimal, InvalidOperation
from functools import lru_cache
from secrets import token_hex
from typing import Any, NoReturn

import orjson

from ladon_storage.collection.garbage import uncollected
from ladon_storage.collection.json_parts import by_parts

_SAFE_INT_CHARACTERS = 18
"""The longest text that is certainly an integer of 64 bits."""

_SAFE_FLOAT_CHARACTERS = 16
"""The longest text, point included, with at most 15 digits, which every float preserves."""

_LONGEST_FLOAT = 400
"""The longest text that a float needs, even without an exponent."""

_REMEMBERED = 2**12
"""The most different numbers of a document that are remembered."""

_SCALARS = frozenset({str, int, bool, type(None)})


class Number:
    """A number of JSON whose digits no ``int`` or ``float`` would keep; its text is its value.

    It neither compares nor reckons with others: take ``float(value)``, ``int(value)`` or
    ``Decimal(str(value))`` for that, which any number of `parse_json` allows. `Record.of`,
    `Reject.of` and `joined_id` write its digits; ``json.dumps`` refuses it.

    Args:
        text: Its digits, as JSON has them.

    >>> parse_json("[0.10, 0.5, 1e400]")
    [0.10, 0.5, 1e400]
    >>> parse_json("0.10") == Number("0.10"), str(Number("-0")), float(Number("0.10"))
    (True, '-0', 0.1)
    """

    __slots__ = ("text",)

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return self.text

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Number) and other.text == self.text

    def __hash__(self) -> int:
        return hash(self.text)

    def __float__(self) -> float:
        return float(self.text)

    def __int__(self) -> int:
        return int(self.text if self.is_whole else float(self))

    @property
    def is_whole(self) -> bool:
        """Whether it is written as an integer: digits alone, with or without a minus."""
        return self.text.removeprefix("-").isdecimal()

    @property
    def canonical(self) -> str:
        """Its text in the hashed content: the same text for the same digits."""
        if len(self.text) > _LONGEST_FLOAT or self.is_whole:
            return self.text
        told = repr(float(self.text))
        try:
            is_same = Decimal(told).as_tuple() == Decimal(self.text).as_tuple()
        except InvalidOperation:  # an exponent that not even a decimal has
            return self.text
        return told if is_same else self.text


def parse_json(text: str | bytes) -> Any:
    """Return a parsed JSON document, with every digit of its numbers.

    A number that Python would write with other digits is a `Number`; all others are the usual
    ``int`` or ``float``. It takes the place of ``json.loads``, also in aiohttp:
    ``await response.json(loads=parse_json)``.

    Raises:
        ValueError: It is no JSON; ``NaN`` and infinities are none.
        RecursionError: It is nested too deeply.

    >>> parse_json('{"id": 7, "price": 1.10}')
    {'id': 7, 'price': 1.10}
    """
    with uncollected():
        return json.loads(text, **_hooks())


def is_json(text: str) -> bool:
    """Return whether a text is a JSON document that `parse_json` reads, and valid UTF-8."""
    try:
        orjson.loads(text)
    except ValueError:  # or escaped halves of a surrogate pair, or a number of hundreds of digits
        try:
            text.encode()
            parse_json(text)
        except (ValueError, RecursionError):
            return False
    return True


def json_decoder() -> json.JSONDecoder:
    """Return a decoder that parses as `parse_json` does, for one document."""
    return json.JSONDecoder(**_hooks())


def _hooks() -> dict[str, Any]:
    # Of one document alone, so that nothing of it stays.
    return {
        "parse_float": lru_cache(_REMEMBERED)(_fractional),
        "parse_int": lru_cache(_REMEMBERED)(_whole),
        "parse_constant": _refuse_constant,
    }


def _whole(text: str) -> int | Number:
    if len(text) <= _SAFE_INT_CHARACTERS and text != "-0":
        return int(text)
    return Number(text)


def _fractional(text: str) -> float | Number:
    # Exponents can be written in several ways, even by orjson.
    if "e" in text or "E" in text or len(text) > _LONGEST_FLOAT:
        return Number(text)
    value = float(text)
    if (
        len(text) <= _SAFE_FLOAT_CHARACTERS
        and (text[-1] != "0" or text[-2] == ".")
        and "0.0000" not in text
    ) or repr(value) == text:
        return value
    return Number(text)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


# The placeholder of a number for an encoder without `Number`: no source can have sent it.
_MARK = token_hex(16)
_MARKED = re.compile(f'"{_MARK}([^"]*)"')


def _marked(value: object) -> str:
    if isinstance(value, Number):
        return _MARK + value.text
    raise TypeError(f"Object of type {type(value).__name__} is not JSON serializable")


def _marked_canonical(value: object) -> str:
    return _MARK + value.canonical if isinstance(value, Number) else _marked(value)


def _marked_anything(value: object) -> str:
    return _MARK + value.text if isinstance(value, Number) else repr(value)


def _fragment(value: object) -> orjson.Fragment:
    if isinstance(value, Number):
        return orjson.Fragment(value.text)
    raise TypeError


def _canonical_fragment(value: object) -> orjson.Fragment:
    if isinstance(value, Number):
        return orjson.Fragment(value.canonical)
    raise TypeError


def _encoder(default: Callable[[object], str], **options: Any) -> Callable[[object], str]:
    encode = json.JSONEncoder(separators=(",", ":"), default=default, **options).encode

    def encoded(content: object) -> str:
        text = encode(content)
        return _MARKED.sub(r"\1", text) if _MARK in text else text

    return encoded


_as_given = by_parts(_encoder(_marked, ensure_ascii=False, allow_nan=False))
_as_ascii = by_parts(_encoder(_marked, allow_nan=False))
_in_order = by_parts(_encoder(_marked_canonical, sort_keys=True, allow_nan=False), in_order=True)

as_sent = _encoder(_marked)
"""The encoder of the body of a request, in ASCII and with every digit of its numbers."""

as_anything = by_parts(_encoder(_marked_anything))
"""The encoder of any value, as JSON where possible."""


def payload_text(content: object) -> str:
    """Return JSON as it was given, in valid UTF-8."""
    try:
        return orjson.dumps(content, _fragment).decode()
    except TypeError:  # an integer beyond 64 bits, deep nesting, or half of a surrogate pair
        payload = _as_given(content)
    try:
        payload.encode()
    except UnicodeEncodeError:  # of the half only the escape can be stored
        return _as_ascii(content)
    return payload


def payload_texts(contents: Iterable[object]) -> list[str]:
    """Return the text of `payload_text` of each value.

    Raises:
        TypeError: One of them takes more than ``orjson``.
    """
    dumps = orjson.dumps
    return [dumps(each, _fragment).decode() for each in contents]


def canonical_texts(contents: Iterable[object], payloads: Iterable[str]) -> Iterator[bytes]:
    """Yield the text of `canonical_text` of each value that `parse_json` made.

    Args:
        contents: The values.
        payloads: Their texts by `payload_texts`.

    Raises:
        TypeError: One of them takes more than ``orjson``.
    """
    dumps, in_order = orjson.dumps, orjson.OPT_SORT_KEYS
    # Whether a text is of ASCII is known without a look at it.
    if all(map(str.isascii, payloads)) and _is_escaped_alike("".join(payloads)):
        return (dumps(each, _canonical_fragment, in_order) for each in contents)
    return (
        dumps(each, _canonical_fragment, in_order)
        if _is_escaped_alike(payload)
        else canonical_text(each, is_parsed=True)
        for each, payload in zip(contents, payloads, strict=True)
    )


def _is_escaped_alike(text: str) -> bool:
    """Return whether ``json`` and ``orjson`` escape the same characters of a text."""
    return text.isascii() and "\x7f" not in text


def canonical_text(content: object, *, is_parsed: bool = False) -> bytes:
    """Return the text of ``json`` with keys in order and all but ASCII escaped.

    Args:
        content: The value.
        is_parsed: Whether `parse_json` made it. Then each float in it has the digits that were
            sent, without an exponent, which ``orjson`` and ``json`` write alike.

    Raises:
        ValueError: The content has ``NaN`` or an infinity.
    """
    # Most items are flat, and the first question is asked of each: here it costs no call.
    if (
        is_parsed
        or (type(content) is dict and _SCALARS.issuperset(map(type, content.values())))
        or _is_plain(content)
    ):
        try:
            text = orjson.dumps(content, _canonical_fragment, orjson.OPT_SORT_KEYS)
        except TypeError:  # as above
            return _in_order(content).encode()
        if b"\x7f" not in text:  # json escapes that, too
            escaped = text if text.isascii() else _escaped(text)
            if escaped is not None:
                return escaped
    return _in_order(content).encode()


def _escaped(text: bytes) -> bytes | None:
    """Return JSON with its characters escaped as ``json`` does it; ``None``: not done here."""
    escaped = text.decode().encode("ascii", "backslashreplace")
    parts, first, place = list[bytes](), 0, escaped.find(b"\\")
    most = len(text) // _BYTES_A_PLACE
    while place >= 0:
        follows = escaped[place + 1]
        if follows == _SHORT:  # Python's escapes below 256 lack two zeros
            parts.append(escaped[first:place])
            first = place + 2
        elif follows == _LONG:
            return None
        most -= 1
        if most < 0:
            return _escaped_often(text, escaped)
        # What follows an escaped backslash is a text.
        place = escaped.find(b"\\", place + 2)
    parts.append(escaped[first:])
    return b"\\u00".join(parts)


def _escaped_often(text: bytes, escaped: bytes) -> bytes | None:
    """Return the same of JSON with so many escapes that looking at each would take longer."""
    for each in _BEYOND:  # a generator would take longer than the search
        if each in text:
            return None
    parts = escaped.split(b"\\x")
    # They look like the text of a backslash and an x.
    if b"\\" in text and any(each.endswith(b"\\") for each in parts):
        return None
    return b"\\u00".join(parts)


_SHORT, _LONG = b"xU"
_BEYOND = (b"\xf0", b"\xf1", b"\xf2", b"\xf3", b"\xf4")
"""The first bytes of characters beyond 65,535, of which Python's escapes are long ones."""

_BYTES_A_PLACE = 64


def _is_plain(content: object) -> bool:
    """Return whether a value holds no float, which can be written in several ways.

    It must also hold no other class, such as a date, which only orjson takes for JSON.
    """
    values: Collection[object]
    if isinstance(content, dict):
        values = content.values()
    else:
        values = content if isinstance(content, list) else [content]
    kinds = set(map(type, values))
    if kinds <= _SCALARS:
        return True
    inner = (each for each in values if isinstance(each, dict | list))
    return kinds <= _PLAIN and all(map(_is_plain, inner))


_PLAIN = {*_SCALARS, Number, dict, list}


def without(content: Any, paths: Iterable[str]) -> Any:
    """Return a copy of the content without the values at some dotted paths.

    A path leads into each item of a list, or into the one that a number names.

    >>> without({"a": [{"b": 1, "c": 2}, {"b": 3}], "d.e": 4, "f": 5}, ["a.b", "d.e", "x.y"])
    {'a': [{'c': 2}, {}], 'f': 5}
    """
    for path in paths:
        content = _without(content, path)
    return content


def _without(content: Any, path: str) -> Any:
    if isinstance(content, list):
        return _list_without(content, path)
    if not isinstance(content, dict):
        return content
    if path in content:
        return {name: value for name, value in content.items() if name != path}
    first, _, rest = path.partition(".")
    if not rest or first not in content:
        return content
    return {**content, first: _without(content[first], rest)}


def _list_without(content: list[Any], path: str) -> list[Any]:
    first, _, rest = path.partition(".")
    if not first.isdecimal():
        return [_without(each, path) for each in content]
    if int(first) >= len(content):
        return content
    index = int(first)
    return [
        *content[:index],
        *([_without(content[index], rest)] if rest else []),
        *content[index + 1 :],
    ]
