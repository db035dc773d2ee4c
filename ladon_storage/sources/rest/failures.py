"""Failures and partial results inside answers whose status is a success.

- A list next to an error is what the API had before it failed. A run that took it for all records
  would be green with fewer.
- Only plain signs count: a flag that says no, an error status, a reason in a place for reasons. A
  message counts by its words: next to an empty list those that refuse, else those that say that
  records are missing. A value that `expected_values` declares as normal is not examined.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sized
from itertools import islice
from typing import Any

from ladon_storage.collection.json_values import Number
from ladon_storage.sources.json.items import value_at
from ladon_storage.sources.rest.names import LONGEST_SIGN, names, truth
from ladon_storage.sources.rest.vocabulary import Vocabulary

_GOOD = names("ok success succeeded successful issuccess")
_BAD = Vocabulary(
    "iserror haserror haserrors timedout incomplete isincomplete",
    r"(?:is|has)?partial(?:results?|data|response|failure)?",
)
_STATES = names("status result state outcome statuscode code httpstatus httpcode")
_REASONS = names(
    "error errors fault faults exception errormessage errormsg errorcode errno errordescription"
)
_FAILED = names(
    "error err errors fail failed failure failing exception fault unauthorized forbidden denied "
    "timeout timedout nok ko aborted partial incomplete throttled ratelimited"
)
_UNFINISHED = names("processing inprogress")
_NOTHING = names("null none no n/a ok success successful false noerror")
_MESSAGES = names("message messages msg reason notice warning warnings")
_REFUSES = re.compile(
    r"(?<!no )(?<!0 )\b(?:error|fail(?:ed|ure)|denied|unauthori[sz]ed|forbidden|expired|"
    r"exceed(?:ed|s)?|quota|rate.?limit|throttl\w+|too many|time[d -]{0,2}out|unavailable|"
    r"maintenance|overload\w*|"
    r"(?:invalid|missing|bad|wrong) (?:api.?)?(?:key|token|credential)s?)\b",
    re.IGNORECASE,
)
"""The words of a message that refuses, where no list would contradict it."""

_LIST = r"(?:results?|records?|items?|rows?|entries|hits|events|data|list|output|response|answer)"
_CUTS = re.compile(
    rf"\b(?:{_LIST} (?:sets? )?(?:was|were|is|are|has been|have been) "
    r"(?:truncated|cut|incomplete|partial|limited)|truncated (?:to|at|after|because)|"
    r"partial (?:results?|response|failure|content)|timed out|only (?:the )?first \d|"
    rf"limited to (?:the first )?\d[\d,]* {_LIST}|more {_LIST} (?:are |is )?available|"
    rf"too many {_LIST})",
    re.IGNORECASE,
)
"""The words of a message next to records by which others are missing."""

_MOST_PLACES = 1_000
_LONGEST_NUMBER = 100
"""Digits of a number that are read: no longer one is a state or zero."""


def failure(
    document: object, items: Sized | None, records: str, expected: Collection[str] = ()
) -> tuple[str, Any] | None:
    """Return the place of the sign that an answer failed, and its value; ``None``: no sign.

    Args:
        document: The JSON, whose records may be left out.
        items: The records; ``None``: there is no list of them.
        records: Their path.
        expected: Paths whose values were declared as right.

    >>> failure({"ok": False, "items": []}, [], "items")
    ('ok', False)
    >>> failure({"errors": [], "status": "ok", "items": []}, [], "items") is None
    True
    """
    for place, name, value in _beside(document, records):
        if place in expected:
            continue
        flag = truth(value)
        if (
            (name in _GOOD and flag is False)
            or (name in _BAD and flag)
            or (name in _STATES and _is_failed(value, is_empty=not items))
            or (name in _REASONS and _says(value))
            or (name == "shards" and _says(value_at(value, "failed")))
            or (name == "detail" and not items and isinstance(value, str) and value.strip())
            or (name in _MESSAGES and _speaks(value, _CUTS if items else _REFUSES))
        ):
            return place, value
    return None


def other_list(document: object, wanted: str) -> str | None:
    """Return the path of another list of objects in a document, with an id at ``wanted``.

    >>> other_list({"data": {"rows": [{"id": 1}]}}, "id")
    'data.rows'
    """
    left = [("", document)]
    for _ in range(_MOST_PLACES):
        if not left:
            break
        place, there = left.pop(0)
        if isinstance(there, list) and there and value_at(there[0], wanted) is not None:
            return place
        if isinstance(there, dict):
            left += [(f"{place}.{key}" if place else str(key), each) for key, each in there.items()]
    return None


def _beside(document: object, records: str) -> Iterator[tuple[str, str, Any]]:
    above = records.rpartition(".")[0]
    for prefix in ("", above) if above else ("",):
        there = value_at(document, prefix)
        if isinstance(there, Mapping):
            for key, value in there.items():
                place = f"{prefix}.{key}" if prefix else str(key)
                if place != records:
                    yield place, _squeezed(str(key)), value


def _squeezed(text: str) -> str:
    if len(text) > LONGEST_SIGN:
        return text  # it is no such word, whatever it says
    return "".join(each for each in text.lower() if each.isalnum() or each == "/")


def _is_failed(value: object, *, is_empty: bool) -> bool:
    if isinstance(value, str) and not value.strip().isdecimal():
        state = _squeezed(value)
        return state in _FAILED or (is_empty and state in _UNFINISHED)
    return 400 <= _number(value) < 600


def _number(value: object) -> int:
    if isinstance(value, Number):
        value = value.text
    if isinstance(value, str):
        value = value.strip()
        value = int(value[:_LONGEST_NUMBER]) if value.isascii() and value.isdecimal() else 0
    return value if isinstance(value, int) and not isinstance(value, bool) else 0


def _says(value: object) -> bool:
    """Return whether a reason counts: zero, 200, an empty text and ``none`` do not."""
    left = [value]
    while left:  # a loop, since it may be nested deeply
        if len(left) > _MOST_PLACES:
            return True  # so many reasons say something
        each = left.pop()
        if isinstance(each, Mapping):
            left += each.values()
        elif isinstance(each, list):
            if any(isinstance(inner, Mapping) for inner in each):
                return True
            left += each
        elif _is_reason(each):
            return True
    return False


def _speaks(value: object, words: re.Pattern[str]) -> bool:
    """Return whether a message, or one of the first of several, has some of the words."""
    for each in (value if isinstance(value, list) else [value])[:10]:
        texts = each.values() if isinstance(each, Mapping) else [each]
        if any(
            isinstance(text, str) and words.search(text[:LONGEST_SIGN])
            for text in islice(texts, 10)
        ):
            return True
    return False


def _is_reason(value: object) -> bool:
    if isinstance(value, str) and not value.strip().isdecimal():
        return bool(value.strip()) and _squeezed(value) not in _NOTHING
    if isinstance(value, bool):
        return value
    return _number(value) not in (0, 200)
