"""The content that a service has next to the records under the name of a failure or a message.

- An API of alerts, problems or jobs has lists of them beside its records. They have ids and times,
  as records have, and state nothing about the answer.
- The terms of a facet have their numbers.
- In doubt it is no content: a failure that passed for content would leave a run green.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import islice
from typing import Any

from ladon_storage.sources.rest.message_words import LIST_CUTS
from ladon_storage.sources.rest.names import LONGEST_SIGN, count_in, names, plain

_MOST_ITEMS = 1_000
_MOST_MEMBERS = 100

_IDS = names("id uuid guid eventid sysid dn")
_ERRORS = re.compile(r"(?:odata)?err\w*|exceptions?|fehler|erreurs?|errore|errori|issue")
"""The names of lists whose items are errors, even with an id and a time of their own."""

_ACCOUNTS = names("message msg text detail details reason error errors errorcode errormessage code")
_TITLES = names("title status type description")
"""The members by which an item says what happened; an alert has some of the second, too."""

_DAY = re.compile(r"\d{4}-\d\d-\d\d(?:[T ].*)?", re.DOTALL)
_TIMES = re.compile(r".*(?:time|timestamp|date|clock|seen|created|updated)|at|.*[a-z]{3}edat")
_EARLIEST = 10**8
"""The least number that is read as a time: a day of 1973 in seconds."""

_ERROR_TEXTS = names("error errors failed failure")
_OTHER_TEXTS = names("success empty loading noresults nodata")

_TERMS = names("key value term")
_BUCKETS = names("doccount count")

_COUNTS = names("failed fail failures errors problems faults exceptions incomplete")
_OTHER_COUNTS = names("passed open closed resolved")


def is_content(name: str, value: object, around: Mapping[Any, Any]) -> bool:
    """Return whether what has the name of a failure or a message is content of the service.

    Args:
        name: The name, without case and separators.
        value: The value.
        around: The members next to it.

    >>> is_content("alerts", [{"id": 7, "severity": "critical", "title": "Malware"}], {})
    True
    >>> is_content("alerts", [{"severity": "critical", "message": "Index 3 is down"}], {})
    False
    """
    if isinstance(value, list):
        some = value[:_MOST_ITEMS]
        return bool(some) and all(_is_item(name, each) or _is_bucket(each) for each in some)
    if isinstance(value, Mapping):
        buckets = value.get("buckets")
        is_facet = isinstance(buckets, list) and all(map(_is_bucket, buckets[:_MOST_ITEMS]))
        return is_facet or (name == "messages" and _is_catalogue(value))
    return name in _COUNTS and _is_count(value) and _has_other_counts(around)


def _is_catalogue(messages: Mapping[Any, Any]) -> bool:
    """Return whether texts are those of a page for each outcome, of which none occurred."""
    some = islice(messages.items(), _MOST_MEMBERS)
    texts = [plain(str(name)) for name, text in some if isinstance(text, str) and text]
    return any(name in _ERROR_TEXTS for name in texts) and any(
        name in _OTHER_TEXTS for name in texts
    )


def _is_item(name: str, item: object) -> bool:
    """Return whether an item has an id of its own, and a time or no words of a failure.

    One that says that the list is cut is no content, whatever else it has.
    """
    if not isinstance(item, Mapping):
        return False
    members = {plain(str(key)): each for key, each in islice(item.items(), _MOST_MEMBERS)}
    own = (*_IDS, f"{name.removesuffix('s')}id")
    if not any(isinstance(members.get(each), int | str) and members[each] != "" for each in own):
        return False
    if any(_is_cut(members.get(each)) for each in (*_ACCOUNTS, *_TITLES)):
        return False
    if _ERRORS.fullmatch(name):
        return not any(each in _ACCOUNTS or each in _TITLES for each in members)
    has_time = any(_is_time(member, each) for member, each in members.items())
    return has_time or not any(each in _ACCOUNTS for each in members)


def _is_cut(text: object) -> bool:
    return isinstance(text, str) and LIST_CUTS.are_in(text[:LONGEST_SIGN])


def _is_bucket(item: object) -> bool:
    """Return whether an item is a term of a facet, with the number of its records."""
    if not isinstance(item, Mapping):
        return False
    members = {plain(str(key)): each for key, each in islice(item.items(), _MOST_MEMBERS)}
    is_term = any(name in _TERMS for name in members) and not any(
        name in _ACCOUNTS for name in members
    )
    return is_term and any(name in _BUCKETS and _is_count(each) for name, each in members.items())


def _is_time(name: str, value: object) -> bool:
    if isinstance(value, str) and _DAY.fullmatch(value):
        return True
    return _TIMES.fullmatch(name) is not None and (count_in(value) or 0) >= _EARLIEST


def _is_count(value: object) -> bool:
    return not isinstance(value, bool | str) and count_in(value) is not None


def _has_other_counts(around: Mapping[Any, Any]) -> bool:
    """Return whether counts of the same things are next to a count, as in results of tests."""
    return any(
        plain(str(name)) in _OTHER_COUNTS and _is_count(value)
        for name, value in islice(around.items(), _MOST_MEMBERS)
    )
