"""Whether a JSON text has its end: a check for texts whose length nothing states."""

from __future__ import annotations

import json
import re

_LIST_OR_OBJECT = re.compile(rb"(?:\xef\xbb\xbf)?[ \t\r\n]*+[\[{]")
# A text, also one without its end, is passed over with the brackets in it. The repetitions are few,
# since other threads wait for each match.
_TEXT = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+\\?"?'
_TO_BRACKET = re.compile(
    rb'(?>(?:[^"\[\]{}]{1,4096}|' + _TEXT + rb"){0,100})([\[\]{}]?)", re.DOTALL
)
_STEPS = {b"[": 1, b"{": 1, b"]": -1, b"}": -1, b"": 0}


def lacks_end(body: bytes) -> bool:
    """Return whether a text begins as a list or object in UTF-8, and does not end as one.

    >>> lacks_end(b'[{"a": "]}"'), lacks_end(b'[{"a": "]}"}]'), lacks_end(b"<html>")
    (True, False, False)
    """
    if not json.detect_encoding(body[:4]).startswith("utf-8") or not _LIST_OR_OBJECT.match(body):
        return False
    return sum(_STEPS[found[1]] for found in _TO_BRACKET.finditer(body)) > 0
