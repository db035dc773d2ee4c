"""Failures and partial results inside answers whose status is a success.

- A list next to an error is what the API had before it failed. A run that took it for all records
  would be green with fewer.
- Only plain signs count: a flag that says no, an error status, a reason in a place for reasons. A
  message counts by its words: next to an empty list those that refuse, else those that say that
  records are missing. What `expected_values` declares as normal is not examined.
- Content of the service, such as a list of alerts with ids and times, is no sign.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sized
from itertools import islice
from typing import Any

from ladon_storage.collection.json_values import Number
from ladon_storage.sources.json.items import value_at
from ladon_storage.sources.rest.answer_states import is_of_answer, is_refusal, is_unfinished
from ladon_storage.sources.rest.message_words import CUTS, PARTS, REFUSES, Words
from ladon_storage.sources.rest.names import LONGEST_SIGN, count_in, levels, names, plain, truth
from ladon_storage.sources.rest.own_content import is_content
from ladon_storage.sources.rest.vocabulary import Vocabulary

_GOOD = names(
    "ok success succeeded successful issuccess authenticated isauthenticated authorized "
    "isauthorized loggedin isloggedin"
)
_BAD = Vocabulary(
    "iserror haserror haserrors timedout incomplete isincomplete failed isfailed fail "
    "terminatedearly unauthorized ratelimited isratelimited throttled isthrottled degraded "
    "isdegraded accessdenied maintenance maintenancemode preview ispreview overquota isoverquota",
    r"(?:is|has)?partial(?:results?|data|response|failure)?|(?:is)?exceeded|"
    r"(?:is)?(?:quota|ratelimit|usagelimit|credits?)(?:is)?(?:exceeded|exhausted)",
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
_UNREAD = Vocabulary(
    "unreachable",
    r"unprocessed(?:keys|items|findings|records|accounts|ids|identities|resources|entries|results)",
)
"""The names of lists of what was not read."""

_WITHOUT = re.compile(r"(?:fail|unprocessed|skipped|rejected)[a-z]*")
"""The names of lists of what an answer is without, if an item states why."""

_FAILED = re.compile(
    # A state without errors is right, unless it has another word of a failure next to that.
    r"(?!no(?:error|fail))"
    r"(?!(?:no|not|none|never)(?:error|fail|fault|timeout|throttled|ratelimited|unavailable)"
    r"(?!\w*(?:error|fail|fault|denied|exce|unavail|time)))"
    r"(?!(?:errors?|failed|failures?)(?:free|none|0+)$)"
    r"(?!(?:(?!error|fail|fault|partial|incompl|denied|forbid|unauth|exce|exhaust|unavail|time|abort|"
    r"limit|thrott|cancel|loss|nok)\w)*(?:no|not|none|without|(?<!\d)0)"
    r"(?:errors?|fail(?:ed|ures?)|(?<!de)faults?|timeouts?)$)"
    r"(?:(?:error|failed|failing|failure)\w*|"
    r"\w*(?:errors?|failed|failure|(?<!de)fault|denied|forbidden|unauthori[sz]ed|unauthenticated|exceeded|"
    r"exhausted|unavailable|timeout|timedout|aborted|ratelimited|throttled)|"
    r"\w*(?:failed|errors?|failures?)[1-9]\d*|"
    r"err|fail|exception|nok|ko|partial|incomplete|gatheringresults|dataloss|cancell?ed)"
)
_NOTHING = Vocabulary(
    "null nil none no n/a ok false 成功 操作成功 请求成功 正常",
    r"(?:no|none|0|not?an)(?:err|errors?|failures?|faults?|problems?|exceptions?)?"
    r"(?:found|occurred|detected|reported)?|err(?:or)?s?(?:none|ok|0+)|0+|0x0+|"
    r"(?:(?:request|operation|query|call)(?:was|is)?)?(?:(?:completed|processed|executed)?"
    r"success(?:ful|fully)?|ok)",
)
_MESSAGES = names(
    "message messages msg reason notice warning warnings statusmessage statusmsg "
    "statusdescription responsemessage resultmessage resultmsg alert alerts"
)
_AROUND = names(
    "meta metadata header headers responseheader responsemetadata responsestatus info response "
    "result status envelope extensions outcome operationoutcome quota ratelimit"
)
"""The places next to the records that have signs of their own."""

_LEVELS = names("level loglevel severity type messagetype")
_GRAVE = names("error errors fatal critical")
_MILD = names("warning warnings warn info infos notice notices debug")
_COUNTS = names("count total size length")

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
    for place, name, value, around, level in _beside(document, records):
        if place in expected:
            continue
        if not items and _is_unfinished(name, value, around, level):
            return place, value
        is_sign = _is_sign(place, name, value, is_empty=not items)
        if is_sign and not is_content(name, value, around):
            return place, value
    return None


def refusal(
    document: object, records: str, expected: Collection[str] = ()
) -> tuple[str, Any] | None:
    """Return the place of a state by which an answer without its list refuses, and its value.

    >>> refusal({"query_status": "user_blacklisted"}, "data")
    ('query_status', 'user_blacklisted')
    >>> refusal({"query_status": "no_results"}, "data") is None
    True
    """
    for place, name, value, around, level in _beside(document, records):
        is_state = isinstance(value, str) and place not in expected
        if is_state and is_refusal(name, value, around, level):
            return place, value
    return None


def _is_unfinished(name: str, value: object, *holders: Mapping[Any, Any]) -> bool:
    is_state = isinstance(value, str) and (name in _STATES or is_of_answer(name))
    return is_state and is_unfinished(name, _squeezed(str(value)), *holders)


def _is_sign(place: str, name: str, value: object, *, is_empty: bool) -> bool:
    """Return whether a value says by its name that the answer failed, or is a part."""
    flag = truth(value)
    return (
        (name in _GOOD and flag is False)
        or (name in _BAD and bool(flag))
        or (name in _STATES and _is_failed(value))
        or (is_empty and is_of_answer(name) and _is_failed(value))
        or (name in _REASONS and _says(value))
        or (name in _UNREAD and isinstance(value, list | Mapping) and _says(value))
        or (_WITHOUT.fullmatch(name) is not None and _has_reasons(value))
        or (name == "shards" and _says(value_at(value, "failed")))
        or (place.endswith("_clusters") and _lacks_clusters(value))
        or (name == "detail" and is_empty and isinstance(value, str) and bool(value.strip()))
        or (name in _MESSAGES and _speaks(value, (CUTS, REFUSES) if is_empty else (CUTS,)))
        or (name == "issue" and _speaks(value, ()))
    )


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


def _beside(
    document: object, records: str
) -> Iterator[tuple[str, str, Any, Mapping[Any, Any], Mapping[Any, Any]]]:
    """Yield place, name and value of each member around the records, its object and the one above.

    The latter is that of a level, which may be an object of the service.
    """
    for prefix in levels(records):
        there = value_at(document, prefix)
        if isinstance(there, Mapping):
            for key, value in there.items():
                place = f"{prefix}.{key}" if prefix else str(key)
                if place == records or records.startswith(f"{place}."):
                    continue  # what is around the records has its own turn
                yield place, (name := _squeezed(str(key))), value, there, there
                if name in _AROUND and isinstance(value, Mapping):
                    for inner, each in islice(value.items(), _MOST_PLACES):
                        if f"{place}.{inner}" != records:
                            yield f"{place}.{inner}", _squeezed(str(inner)), each, value, there


def _squeezed(text: str) -> str:
    if len(text) > LONGEST_SIGN:
        return text  # it is no such word, whatever it says
    return "".join(each for each in text.lower() if each.isalnum() or each == "/")


def _is_failed(value: object) -> bool:
    if isinstance(value, str) and not value.strip().isdecimal():
        return _FAILED.fullmatch(_squeezed(value)) is not None
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
            if len(each) > _MOST_PLACES:
                return True
            counted = {plain(str(name)): count_in(there) for name, there in each.items()}
            is_none = any(counted.get(name) == 0 for name in _COUNTS)
            # Next to a count of zero, the other numbers are limits and offsets.
            left += [there for there in each.values() if not is_none or count_in(there) is None]
        elif isinstance(each, list):
            if any(isinstance(inner, Mapping) for inner in each):
                return True
            left += each
        elif _is_reason(each):
            return True
    return False


def _has_reasons(value: object) -> bool:
    """Return whether a list has items that each state why they failed."""
    return isinstance(value, list) and any(
        isinstance(each, Mapping)
        and any(
            _squeezed(str(name)) in _REASONS and _says(why)
            for name, why in islice(each.items(), _MOST_PLACES)
        )
        for each in value[:10]
    )


def _lacks_clusters(value: object) -> bool:
    """Return whether Elasticsearch left out a cluster of several."""
    return any(_says(value_at(value, name)) for name in ("failed", "partial", "skipped"))


def _speaks(value: object, words: Collection[Words]) -> bool:
    """Return whether a message, or one of the first of several, is grave or has the words."""
    if isinstance(value, Mapping) and _is_grave_by_level(value):
        return True
    for each in (value if isinstance(value, list) else [value])[:10]:
        texts = each.values() if isinstance(each, Mapping) else [each]
        if isinstance(each, Mapping) and _is_grave(each):
            return True
        if any(
            isinstance(text, str) and any(each.are_in(text[:LONGEST_SIGN]) for each in words)
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


def _is_grave_by_level(messages: Mapping[Any, Any]) -> bool:
    """Return whether messages by their levels alone have an error; counts of them are none."""
    by_level = {_squeezed(str(name)): said for name, said in islice(messages.items(), 10)}
    return all(name in _GRAVE or name in _MILD for name in by_level) and any(
        name in _GRAVE and isinstance(said, str | list) and _says(said)
        for name, said in by_level.items()
    )


def _is_reason(value: object) -> bool:
    if isinstance(value, str) and not value.strip().isdecimal():
        return bool(_squeezed(value)) and _squeezed(value) not in _NOTHING
    if isinstance(value, bool):
        return value
    return _number(value) not in (0, 200)
