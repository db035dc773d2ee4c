"""The states of answers without records: one that is not ready, and one that refuses in a word.

- An empty list of a query that still runs is no end of it; nor is an answer without its list, whose
  state is neither a success nor that nothing was found.
- An object with an id or a name of its own, such as an incident, has a state of its own. It may be
  pending for years.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import islice
from typing import Any

from ladon_storage.sources.rest.message_words import REFUSES
from ladon_storage.sources.rest.names import names, plain

_MOST_MEMBERS = 100
_MOST_WORDS = 3
"""Words of the longest state; a text of more is a message."""

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

_THING = (
    r"(?:results?|records?|data|items?|rows?|hits?|match(?:es)?|entr(?:y|ies)|events?|alerts?|"
    r"content|updates?|changes?|iocs?|indicators?|samples?|files?|urls?|hash(?:es)?|objects?|"
    r"documents?|news)"
)
_LACKED = (
    r"(?:access|(?:account|database|endpoint|method|page|route|service|table|tenant|user)(?!s)|auth|"
    r"credential|credit|key|licen[sc]|permission|quota|right|token|valid)"
)
"""What an answer lacks that refuses; without anything else, it found nothing."""

_WELL = re.compile(
    r"(?:(?:query|request|search|call|job|operation|status|state)(?:was|is)?)?"
    r"(?:ok(?:ay)?|success\w*|succeeded|completed?\w*|done|finished|ready|processed|executed|"
    r"terminated|loaded|fetched|returned|delivered|erfolgreich|exito\w*|sucesso|succes)|"
    r"true|yes|valid|passed|pass|fine|good|normal|healthy|green|up|online|alive|live|available|"
    r"operational|active|enabled|open|closed|idle|stable|current|latest|published|final|"
    r"(?:http)?2\d\d\w*|"
    rf"(?:no|zero|0|without)(?:(?!{_LACKED})\w)*(?:{_THING}|s|found)(?:available|returned|exist)?|"
    rf"(?:(?!{_LACKED})\w)*not(?:found|exist\w*)|"
    rf"(?:\w*is)?empty(?:{_THING}|list|set|resultset|response)?|none(?:found|available)?|"
    r"nothing\w*|null|nil|uptodate|unchanged|notmodified|"
    r"keine\w*|sin(?:resultados|datos)"
)


def is_unfinished(name: str, state: str, holder: Mapping[Any, Any]) -> bool:
    """Return whether a state of an answer without records is that of work in progress.

    Args:
        name: Its name, without case and separators.
        state: Its word, likewise.
        holder: The object that has it, with the members next to it.

    >>> is_unfinished("status", "queued", {"status": "queued", "items": []})
    True
    >>> is_unfinished("status", "pending", {"id": 7, "status": "pending", "comments": []})
    False
    """
    if _UNFINISHED.fullmatch(state) is None:
        return False
    return is_of_answer(name) or state in _WORKING or not _is_object(holder)


def is_refusal(name: str, value: object, state: str, holder: Mapping[Any, Any]) -> bool:
    """Return whether a state of an answer without its list is no word of success, or of no results.

    >>> is_refusal("querystatus", "user_blacklisted", "userblacklisted", {})
    True
    >>> is_refusal("querystatus", "no_results", "noresults", {})
    False
    """
    if not isinstance(value, str) or not state or state.isdecimal() or _WELL.fullmatch(state):
        return False
    if not is_of_answer(name) and (name not in _OF_ANYTHING or _is_object(holder)):
        return False
    # A sentence, or a word of another language, is judged as a message is.
    is_word = value.isascii() and len(value.split()) <= _MOST_WORDS
    return is_word or REFUSES.are_in(value)


def is_of_answer(name: str) -> bool:
    """Return whether a state is by its name that of a request, and of nothing else."""
    return _OF_ANSWER.fullmatch(name) is not None


def _is_object(holder: Mapping[Any, Any]) -> bool:
    members = {plain(str(key)) for key in islice(holder, _MOST_MEMBERS)}
    return not members.isdisjoint(_OWN) and members.isdisjoint(_OF_WORK)
