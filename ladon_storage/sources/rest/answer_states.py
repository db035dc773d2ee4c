"""The states of answers without records: one that is not ready, and one that refuses in a word.

- An empty list of a query that still runs is no end of it; nor is an answer without its list, whose
  state has a word of refusal. Any other is none: APIs have too many for an answer that is right.
- An object, such as an incident, has a state of its own. It may be pending for years.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import islice
from typing import Any

from ladon_storage.collection.json_values import Number
from ladon_storage.sources.rest.message_words import REFUSES, Words
from ladon_storage.sources.rest.names import LONGEST_SIGN, names, plain
from ladon_storage.sources.rest.vocabulary import (
    CURSORS,
    FILTERED_TOTALS,
    HAS_MORE,
    LAST,
    LINKS,
    MORE,
    OFFSETS,
    PAGE_NUMBERS,
    REMAINING,
    SIZES,
    TOTALS,
    UNSURE_TOTALS,
    WEAK,
)

_MOST_MEMBERS = 100

_OF_ANSWER = re.compile(
    r"(?:api|call|dispatch|execution|export|job|operation|query|report|request|response|search|task)"
    r"(?:status|state)"
)
_OF_ANYTHING = names("status state")

_OWN = names("id uuid guid sysid eventid dn name title")
_OF_WORK = names(
    "progress percent percentage percentcomplete percentcompleted progresspercent jobid queryid "
    "searchid"
)
"""The members of an object that is the work itself, whatever id it has."""

_OF_PAGES = (
    *(CURSORS, HAS_MORE, LAST, LINKS, MORE, OFFSETS, PAGE_NUMBERS, REMAINING, SIZES, WEAK),
    *(TOTALS, FILTERED_TOTALS, UNSURE_TOTALS),
)
_OF_ANY_ANSWER = re.compile(
    r"(?:dispatch|execution|export|job|operation|query|request|response|search|statement)+(?:id|time)|"
    r"(?:trace|correlation|scroll)id|sid|"
    r"(?:status|state|stat|code|result|outcome|success|ok|http)(?:code|text|message|msg)?|"
    r"(?:status|state)(?:reason|detail|details|description)|"
    r"messages?|msg|reason|notice|warnings?|details?|errors?(?:code|message|msg)?|"
    r"took(?:ms)?|(?:elapsed|duration)(?:ms|time|seconds)?|(?:server|response)?(?:time|timestamp)|"
    r"now|query|retryafter|pollinterval|"
    r"\w*(?:count|total|progress|percent(?:age)?|pages?|offset|limit|size)"
)
"""The names of members that any answer may have next to its state, and that describe no object."""

_WORKING = names("processing inprogress")
"""The states that no object is in for long."""

_UNFINISHED = re.compile(
    r"(?:\w*(?:events|is|job|process|query|request|search|state|status|still|task))?"
    r"(?:processing|inprogress|running|pending|(?:en)?queued|inqueue|wait(?:ing)?|execut(?:e|ing)|"
    r"sorting|parsing|finali[sz]ing|start(?:ed|ing)|scheduled|submitted|preparing|"
    r"initiali[sz]ing|loading|building|indexing|collecting|gathering|computing|calculating|"
    r"generating|searching|ongoing|working|busy|warmingup|unfinished|"
    r"(?:not|in)(?:yet)?(?:ready|started|complete|completed|finished|done|available))"
)

_WHAT = (
    r"(?:(?:valid|sufficient|api|auth|access|user) ?)*"
    r"(?:key|token|auth\w*|access|account|user(?:name)?|credentials?|password|secret|"
    r"licen[sc]e|subscription|quota|credits?|permissions?|rights?)"
)
_INPUT = (
    r"(?:https?|get|post|method|header|param\w*|argument|request|body|json|hash|url|query|selector|"
    r"signature|term|field|input)"
)
_GIVEN = r"(?:provided|given|specified|supplied|sent)"

_NO_RIGHT = Words(
    r"black ?listed|not (?:entitled|subscribed)|"
    rf"(?:unknown|invalid|missing|bad|wrong|incorrect|illegal|inactive|insufficient) {_WHAT}|"
    rf"(?:missing|wrong) {_INPUT}|"
    rf"{_WHAT} (?:is )?(?:unknown|invalid|inactive|wrong|incorrect|insufficient|exhausted)|"
    rf"(?:{_WHAT}|{_INPUT}) (?:is )?(?:expected|required|missing|needed|not {_GIVEN})|"
    r"(?:api|auth|access) ?(?:key|token) (?:was )?not found",
    r"(?!)",
)
_LACKS = re.compile(
    rf"\b(?:no|without) (?:{_WHAT}(?= *$| (?:to|left|remaining|{_GIVEN})\b)|{_INPUT} {_GIVEN}\b)",
    re.IGNORECASE,
)
"""What a request lacks, by which it is refused; ``no user activity`` found nothing."""

_WRONG = Words(
    r"invalid|illegal|malformed|rejected|refused|banned|revoked|unsuccessful|unsupported|"
    r"not (?:ok|successful|supported|implemented)|limit (?:was )?reached|"
    r"(?:endpoint|method|route|table|database|tenant) (?:was )?not found",
    r"(?!)",
)
_WELL = re.compile(
    r"^(?:ok(?:ay)?|success\w*|succeeded)\b|(?<!not )\b(?:ok(?:ay)?|success\w*|succeeded)$",
    re.IGNORECASE,
)
"""The states that say success themselves, such as ``login successful``."""


def is_unfinished(name: str, state: str, *holders: Mapping[Any, Any]) -> bool:
    """Return whether a state of an answer without records is that of work in progress.

    Args:
        name: Its name, without case and separators.
        state: Its word, likewise.
        *holders: The object that has it, with the members next to it, and those around it.

    >>> is_unfinished("status", "queued", {"status": "queued", "items": []})
    True
    >>> is_unfinished("status", "pending", {"ticket": 7, "status": "pending", "comments": []})
    False
    """
    if _UNFINISHED.fullmatch(state) is None:
        return False
    return is_of_answer(name) or state in _WORKING or not _is_object(holders)


def is_refusal(name: str, value: str, *holders: Mapping[Any, Any]) -> bool:
    """Return whether a state of an answer without its list has a word of refusal or error.

    >>> is_refusal("querystatus", "user_blacklisted")
    True
    >>> is_refusal("querystatus", "not_listed")
    False
    """
    is_own = is_of_answer(name)
    if not is_own and (name not in _OF_ANYTHING or _has_a_name(holders)):
        return False
    text = _spaced(value[:LONGEST_SIGN])
    if _WELL.search(text):
        return False
    if _NO_RIGHT.are_in(text) or _LACKS.search(text):
        return True
    # An object may be blocked, or have expired, for good.
    return (REFUSES.are_in(text) or _WRONG.are_in(text)) and (is_own or not _is_object(holders))


def is_of_answer(name: str) -> bool:
    """Return whether a state is by its name that of a request, and of nothing else."""
    return _OF_ANSWER.fullmatch(name) is not None


def _spaced(value: str) -> str:
    """Return the words of a state, as those of a message, with ``error-free`` as one."""
    text = re.sub(r"[_\s]+|(?<=[a-z0-9])(?=[A-Z])|(?<!\bnon)-", " ", value)
    return re.sub(r" free\b", "-free", text).strip()


def _has_a_name(holders: tuple[Mapping[Any, Any], ...]) -> bool:
    """Return whether an object has an id or a name, and is no work in progress."""
    members = {plain(str(key)) for each in holders for key in islice(each, _MOST_MEMBERS)}
    return not members.isdisjoint(_OWN) and members.isdisjoint(_OF_WORK)


def _is_object(holders: tuple[Mapping[Any, Any], ...]) -> bool:
    """Return whether any member describes an object, and none the progress of work."""
    members = {
        plain(str(key)): value
        for each in holders
        for key, value in islice(each.items(), _MOST_MEMBERS)
    }
    return _OF_WORK.isdisjoint(members) and any(
        name in _OWN or (_is_scalar(value) and not _is_of_any_answer(name))
        for name, value in members.items()
    )


def _is_scalar(value: object) -> bool:
    return (
        isinstance(value, str | int | float | Number)
        and not isinstance(value, bool)
        and value != ""
    )


def _is_of_any_answer(name: str) -> bool:
    return _OF_ANY_ANSWER.fullmatch(name) is not None or any(name in each for each in _OF_PAGES)
