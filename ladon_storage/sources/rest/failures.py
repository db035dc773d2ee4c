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
from ladon_storage.sources.rest.message_words import CUTS, PARTS, REFUSES
from ladon_storage.sources.rest.names import LONGEST_SIGN, names, truth
from ladon_storage.sources.rest.vocabulary import Vocabulary

_GOOD = names(
    "ok success succeeded successful issuccess authenticated isauthenticated authorized "
    "isauthorized loggedin isloggedin"
)
_BAD = Vocabulary(
    "iserror haserror haserrors timedout incomplete isincomplete failed isfailed fail "
    "terminatedearly unauthorized ratelimited isratelimited throttled isthrottled degraded "
    "isdegraded accessdenied maintenance maintenancemode",
    r"(?:is|has)?partial(?:results?|data|response|failure)?",
)
_STATES = names(
    "status result state outcome stat statuscode statustext code httpstatus httpcode "
    "httpstatuscode resultcode returncode responsecode responsestatus resultstatus"
)
_REASONS = Vocabulary(
    "err errs errno errmsg errcode retcode rc fault faults faultstring faultcode "
    "exception exceptions exceptionmessage exceptiontype problem problems failures stacktrace "
    "traceback partialfailureerror fehler fehlermeldung fehlercode erreur erreurs errore errori",
    r"(?:odata)?errors?(?:message|msg|code|description|details?|info|list|text|reason|type)?|"
    rf"(?:failed|missing|unavailable|unreachable){PARTS}",
)
_FAILED = re.compile(
    # A state without errors is right, unless it has another word of a failure before that.
    r"(?!no(?:error|fail))"
    r"(?!(?:(?!error|fail|fault|partial|incompl|denied|forbid|unauth|exce|exhaust|unavail|time|abort|"
    r"limit|thrott|cancel|loss|nok)\w)*(?:no|without|(?<!\d)0)errors?$)"
    r"(?:(?:error|failed|failing|failure)\w*|"
    r"\w*(?:errors?|failed|failure|fault|denied|forbidden|unauthori[sz]ed|unauthenticated|exceeded|"
    r"exhausted|unavailable|timeout|timedout|aborted|ratelimited|throttled)|"
    r"err|fail|exception|nok|ko|partial|incomplete|dataloss|cancell?ed)"
)
_UNFINISHED = names("processing inprogress")
_NOTHING = Vocabulary(
    "null none no n/a ok false noerror noerrors 成功 操作成功 请求成功 正常",
    r"(?:(?:request|operation|query|call)(?:was|is)?)?(?:(?:completed|processed|executed)?"
    r"success(?:ful|fully)?|ok)",
)
_MESSAGES = names(
    "message messages msg reason notice warning warnings statusmessage statusmsg "
    "statusdescription responsemessage resultmessage resultmsg alert alerts"
)
_AROUND = names(
    "meta metadata header headers responseheader responsemetadata responsestatus info response "
    "result status envelope extensions"
)
"""The places next to the records that have signs of their own."""

_LEVELS = names("level severity")
_GRAVE = names("error fatal critical")

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
            or (name in _MESSAGES and _speaks(value, (CUTS,) if items else (CUTS, REFUSES)))
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
                if place == records:
                    continue
                yield place, (name := _squeezed(str(key))), value
                if name in _AROUND and isinstance(value, Mapping):
                    for inner, each in islice(value.items(), _MOST_PLACES):
                        if f"{place}.{inner}" != records:
                            yield f"{place}.{inner}", _squeezed(str(inner)), each


def _squeezed(text: str) -> str:
    if len(text) > LONGEST_SIGN:
        return text  # it is no such word, whatever it says
    return "".join(each for each in text.lower() if each.isalnum() or each == "/")


def _is_failed(value: object, *, is_empty: bool) -> bool:
    if isinstance(value, str) and not value.strip().isdecimal():
        state = _squeezed(value)
        return bool(_FAILED.fullmatch(state)) or (is_empty and state in _UNFINISHED)
    return 400 <= _number(value) < 600 or (type(value) is int and value < 0)


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


def _speaks(value: object, words: Collection[re.Pattern[str]]) -> bool:
    """Return whether a message, or one of the first of several, has some of the words."""
    for each in (value if isinstance(value, list) else [value])[:10]:
        texts = each.values() if isinstance(each, Mapping) else [each]
        if isinstance(each, Mapping) and _is_grave(each):
            return True
        if any(
            isinstance(text, str) and any(each.search(text[:LONGEST_SIGN]) for each in words)
            for text in islice(texts, 10)
        ):
            return True
    return False


def _is_grave(message: Mapping[Any, Any]) -> bool:
    """Return whether a message states the level of an error."""
    return any(
        isinstance(level, str) and _squeezed(level) in _GRAVE
        for name, level in islice(message.items(), 10)
        if _squeezed(str(name)) in _LEVELS
    )


def _is_reason(value: object) -> bool:
    if isinstance(value, str) and not value.strip().isdecimal():
        return bool(value.strip()) and _squeezed(value) not in _NOTHING
    if isinstance(value, bool):
        return value
    return _number(value) not in (0, 200)
