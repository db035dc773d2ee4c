"""Small objects beside the records that may describe the list, in places that are not known.

- A flag of more under a plain name contradicts an end there, too. What else is there may be about
  anything, and can only take the proof away from an end.
- Facets, quotas and other lists have counts and flags of their own, and are left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from ladon_storage.sources.json.items import value_at
from ladon_storage.sources.rest.names import count_in, names, plain
from ladon_storage.sources.rest.own_content import is_content
from ladon_storage.sources.rest.vocabulary import (
    CURSORS,
    HAS_MORE,
    INNER,
    IS_LAST,
    LINKS,
    MAY_BE_MORE,
    MORE,
    TOTALS,
)

_DEPTH = 3
_MOST_MEMBERS = 50
_MOST_ASIDES = 200

_SHORTEST = 4
"""Letters of the shortest name of records that is looked for in other names."""

_OTHERS = re.compile(
    r"facet.*|.*(?:agg|aggregation|bucket|facet|quota|limit|throttling|usage|credit|licen[sc]e|shard|"
    r"cluster|time|timing|duration|took|elapsed|latency|performance|memory|disk|storage|progress|cost|"
    r"price|score|account|profile|user|owner|viewer|filter)s?"
)
"""The names of objects that count something else."""

_LISTS = names(
    "items results records elements hits rows entries docs documents objects matches data values "
    "buckets edges nodes children list terms options"
)
_SHARES = names(
    "used remaining reset free available successful succeeded failed failures passed skipped"
)
"""The names next to a total of which each counts a part of something else."""

_RETURNED = re.compile(r"(?:number|num|count|total|size|items|records|results)?(?:of)?returned\w*")
_MATCHED = re.compile(r"\w*(?:match|filter)\w*")
_ADDRESS = re.compile(r"(?:https?://|[/?]|\./)\S+")


def asides(
    document: object, items: object, records: str
) -> Iterator[tuple[str, Mapping[Any, Any]]]:
    """Yield the places and the members of such objects.

    >>> list(asides({"rows": [], "counts": {"total": 53}, "facets": {"total": 9}}, [], "rows"))
    [('counts', {'total': 53})]
    """
    above, count = records.rpartition(".")[0], 0
    for prefix in dict.fromkeys(("", above)):
        there = value_at(document, prefix)
        if not isinstance(there, dict) or there is items:
            continue
        for each in _within(prefix, there, records, _DEPTH, is_known=True):
            count += 1
            if count > _MOST_ASIDES:
                return
            yield each


def _within(
    prefix: str, there: Mapping[Any, Any], records: str, depth: int, *, is_known: bool
) -> Iterator[tuple[str, Mapping[Any, Any]]]:
    """Yield those within an object; of the names on the way to one, a single one is not known."""
    for key, value in there.items() if depth else ():
        place, name = f"{prefix}.{key}" if prefix else str(key), plain(str(key))
        if not isinstance(value, dict) or len(value) > _MOST_MEMBERS:
            continue
        if place == records or records.startswith(f"{place}."):
            continue
        if name in INNER and is_known:
            yield from _within(place, value, records, depth - 1, is_known=True)
        elif (name in INNER or is_known) and not _is_of_others(name, value):
            yield place, value
            yield from _within(place, value, records, depth - 1, is_known=False)


def _is_of_others(name: str, members: Mapping[Any, Any]) -> bool:
    """Return whether an object counts something else, or is another list."""
    return _OTHERS.fullmatch(name) is not None or any(
        isinstance(value, list)
        and ((inner := plain(str(key))) in _LISTS or inner == name or is_content("", value, {}))
        for key, value in members.items()
    )


def flags_aside(document: object, items: object, records: str) -> Iterator[tuple[str, str, bool]]:
    """Yield the place, the plain name and the value of each flag that plainly says it of a list."""
    for place, members in asides(document, items, records):
        for key, value in members.items():
            name = own_plain(str(key), records)
            if isinstance(value, bool) and (name in HAS_MORE or name in IS_LAST):
                yield f"{place}.{key}", name, value


def own_plain(name: str, records: str) -> str:
    """Return a name as `plain` makes it, with the records' own name as that of any items.

    Only in names that are then of a list: ``jobs_limit_reached`` next to jobs may be of a plan.

    >>> own_plain("more_topics_url", "list.topics"), own_plain("has_more", "topics")
    ('moreitemsurl', 'hasmore')
    """
    squeezed, many = plain(name), plain(records.rpartition(".")[2])
    if len(many) < _SHORTEST or many not in squeezed or squeezed in INNER:
        return squeezed
    usual = squeezed.replace(many, "items")
    is_of_list = any(usual in each for each in (HAS_MORE, LINKS, CURSORS))
    is_of_list |= usual in MORE and (usual.startswith("more") or "truncated" in usual)
    return usual if is_of_list else squeezed


def hint_aside(document: object, items: object, records: str, *, heeds_next: bool) -> str | None:
    """Return a sign in such an object that there may be more, worded for a warning."""
    for place, members in asides(document, items, records):
        for key, value in members.items():
            name = own_plain(str(key), records)
            if value is True and (name in MORE or name in MAY_BE_MORE):
                return f"says at '{place}.{key}' that there may be more"
            if not heeds_next or not isinstance(value, str):
                continue
            if (name in LINKS and _ADDRESS.fullmatch(value)) or (name in CURSORS and value.strip()):
                return f"may have a next page at '{place}.{key}'"
    return None


def totals_aside(
    document: object, items: object, records: str, count: int
) -> Iterator[tuple[str, int, bool]]:
    """Yield the place and the value of each total, and whether it counts the list of these records.

    It does if the number next to it that was returned is that of the records: ``count``.
    """
    many = plain(records.rpartition(".")[2])
    own = (f"total{many}", f"{many}total") if many else ()
    for place, members in asides(document, items, records):
        counted = {
            plain(str(key)): number
            for key, value in members.items()
            if (number := count_in(value)) is not None
        }
        if any(name in _SHARES for name in counted):
            continue
        if any(number == count and _MATCHED.fullmatch(name) for name, number in counted.items()):
            continue  # another total next to it is of all there are
        is_list = any(
            number == count and _RETURNED.fullmatch(name) for name, number in counted.items()
        )
        for key, value in members.items():
            name, number = plain(str(key)), count_in(value)
            is_total = (name in TOTALS and name != "totalsize") or name in own
            if number is not None and is_total:
                yield f"{place}.{key}", number, is_list
