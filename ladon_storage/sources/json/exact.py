"""The quick parser of a page, for documents of which it loses nothing.

- ``orjson`` keeps no digits beyond a float's, and drops the first of two equal keys. A document
  that it writes back byte for byte has lost neither: all digits are there, and no key came twice.
- Exponents are the exception: ``orjson`` and ``json`` write them differently, and hashes are of
  the text of ``json``. A document with one is left to the exact parser, and so is any other: with
  spaces or escapes of its own, or invalid.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from typing import Any

import orjson

from ladon_storage.collection.garbage import uncollected

_LOOKED_AT = 2**13
"""The bytes by which a document with spaces or escapes is recognised before it is parsed."""

_FOREIGN = (b'": ', b"\\u", b"\\/", b"\n")
_OWN_ESCAPES = (b"\\\\", b'\\"')
"""What ``orjson`` writes, too, and must not be taken for a part of another sign."""

_SMALLEST, _GREATEST = 1e-4, 1e16
"""Between these, numbers are written without an exponent."""

# Without the digits of its number, an exponent stands alone between two of these signs.
_ALIKE = bytes.maketrans(b"[,}]E", b"::::e")
_IN_NUMBERS = b"0123456789.+-"
_EXPONENT, _TINY = b":e:", b"0.0000"
_PART, _LONGEST = 2**17, 2**6
"""The bytes of a document that are searched at a time, and more than a float has with its signs."""

_WITHOUT_EXPONENT = frozenset({str, int, bool, type(None)})


def parse_compact(body: bytes, between: bytes | None = None) -> Any:
    """Return a JSON document; ``None``: it is left to the exact parser.

    Args:
        body: The document.
        between: What is between its records, if it ends at a guess: among nested objects that is
            nearly always wrong.

    >>> parse_compact(b'{"a":[{"b":1.5}]}'), parse_compact(b'{"a":[{"b":1.50}]}')
    ({'a': [{'b': 1.5}]}, None)
    >>> parse_compact(b'{"a":1,"a":2}'), parse_compact(b"[1e22]"), parse_compact(b"[-0]")
    (None, None, None)
    """
    begin = body[:_LOOKED_AT].rstrip()
    for each in _OWN_ESCAPES:
        begin = begin.replace(each, b"-")
    if any(each in begin for each in _FOREIGN):
        return None
    is_nested = begin.count(b"{") > 2 * begin.count(between or b"},{") + 8
    if is_nested and between is not None:
        return None
    try:
        with uncollected():
            document = orjson.loads(body)
        # Its limit of nesting is lower than that of its parser.
        if orjson.dumps(document) == body.strip():
            # Among nested records the text is searched more quickly than the values.
            is_likely = not is_nested or _may_have_exponent(body)
            return None if is_likely and _has_exponent(document) else document
    except (orjson.JSONDecodeError, orjson.JSONEncodeError):
        pass
    return None


def _may_have_exponent(body: bytes) -> bool:
    """Return whether a number of a document, or one of its texts, looks like an exponent."""
    if _TINY in body or not body.lstrip().startswith((b"{", b"[")):
        return True
    # What is taken of a part at a time stays in the processor's cache.
    parts = range(0, len(body), _PART)
    return any(
        _EXPONENT in body[at : at + _PART + _LONGEST].translate(_ALIKE, _IN_NUMBERS) for at in parts
    )


def _has_exponent(document: object) -> bool:
    """Return whether a number in a document is written with an exponent."""
    values: list[Any] = [document]
    while True:
        kinds = set(map(type, values))
        if float in kinds:
            sizes = (abs(each) for each in values if type(each) is float)
            if not all(_SMALLEST <= each < _GREATEST or not each for each in sizes):
                return True
        if kinds.isdisjoint((dict, list)):
            return False
        if kinds == {dict}:
            if _WITHOUT_EXPONENT.issuperset(
                map(type, chain.from_iterable(map(dict.values, values)))
            ):
                return False  # as most records have no float
            inner: Iterable[Iterable[Any]] = map(dict.values, values)
        else:
            inner = [
                each.values() if type(each) is dict else each
                for each in values
                if type(each) is dict or type(each) is list
            ]
        values = list(chain.from_iterable(inner))
