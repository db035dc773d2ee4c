"""Small objects beside the records that may describe the list, in places that are not known.

- Where the name is made of words of lists, as ``page_context``, a flag of more under a plain name
  contradicts an end, and what else is there can only take the proof away from an end.
- An object of any other name, such as ``comments``, may be about anything, and says nothing.
- A total counts the list in an object of any name, if the number that was returned is next to it.
- Facets, quotas and other lists have counts and flags of their own, and are left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sized
from dataclasses import dataclass
from functools import lru_cache
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
    OFFSETS,
    PAGE_NUMBERS,
    PAGE_TOTALS,
    SIZES,
    TOTALS,
    UNSURE_TOTALS,
)

_DEPTH = 3
_MOST_MEMBERS = 50
_MOST_ASIDES = 200

_SHORTEST = 4
"""Letters of the shortest name of records that is looked for in other names."""

_LONGEST = 60
"""Letters of the longest name that is taken apart into words."""

_OTHERS = re.compile(
    r"facet.*|.*(?:agg|aggregation|bucket|facet|quota|limit|throttling|usage|credit|licen[sc]e|shard|"
    r"cluster|time|timing|duration|took|elapsed|latency|performance|memory|disk|storage|progress|cost|"
    r"price|score|account|profile|user|owner|viewer|filter)s?"
)
"""The names of objects that count something else."""

_LIST_WORDS = (
    r"page|pag(?:ing|er|inat(?:ion|or))|list(?:ing)?|cursors?|results?|meta|info(?:rmation)?|context|"
    r"nav(?:igation)?|links?|scroll|batch|window|search|query|response|records?"
)
_WORDS_BETWEEN = r"api|data|set|state|status|details?|of|the"
_SUMMARY = "summary"
"""The name of an object that may have the total of the list, and else is about all there is."""

_LISTS = names(
    "items results records elements hits rows entries docs documents objects matches data values "
    "buckets edges nodes children list terms options"
)
_SHARES = names(
    "used remaining reset free available successful succeeded failed failures passed skipped"
)
"""The names next to a total of which each counts a part of something else."""

_RETURNED = re.compile(r"(?:number|num|count|total|size|items|records|results)?(?:of)?returned\w*")
_COUNT = re.compile(r"(?:row|item|record|result)?count")
_MATCHED = re.compile(r"\w*(?:match|filter)\w*")
_NUMBERS = (TOTALS, UNSURE_TOTALS, PAGE_TOTALS, PAGE_NUMBERS, OFFSETS, SIZES)
"""What the numbers of a page are, beside which a total may be that of the list."""

_ADDRESS = re.compile(r"(?:https?://|[/?]|\./)\S+")


@dataclass(frozen=True)
class Aside:
    """Such an object.

    Args:
        place: Its path.
        members: Its members.
        is_of_list: Whether it is about a list, by its name and those of what it is in.
    """

    place: str
    members: Mapping[Any, Any]
    is_of_list: bool


def asides(document: object, items: object, records: str) -> Iterator[Aside]:
    """Yield such objects.

    >>> answer = {"rows": [], "page_context": {"page": 1}, "thread": {"id": 7}, "facets": {"a": 9}}
    >>> [(each.place, each.is_of_list) for each in asides(answer, [], "rows")]
    [('page_context', True), ('thread', False)]
    """
    above, count = records.rpartition(".")[0], 0
    for prefix in dict.fromkeys(("", above)):
        there = value_at(document, prefix)
        if not isinstance(there, dict) or there is items:
            continue
        for each in _within(prefix, there, records, _DEPTH):
            count += 1
            if count > _MOST_ASIDES:
                return
            yield each


def _within(
    prefix: str, there: Mapping[Any, Any], records: str, depth: int, around: Aside | None = None
) -> Iterator[Aside]:
    """Yield those within an object; of the names on the way to one, a single one is not known."""
    for key, value in there.items() if depth else ():
        if not isinstance(value, dict) or len(value) > _MOST_MEMBERS:
            continue
        place, name = f"{prefix}.{key}" if prefix else str(key), plain(str(key))
        if place == records or records.startswith(f"{place}."):
            continue
        if name in INNER and around is None:
            yield from _within(place, value, records, depth - 1)
        elif (name in INNER or around is None) and not _is_of_others(name, value):
            is_of_list = around.is_of_list if around is not None else _names_list(name, records)
            aside = Aside(place, value, is_of_list)
            yield aside
            yield from _within(place, value, records, depth - 1, aside)


@lru_cache(maxsize=4096)
def _names_list(name: str, records: str) -> bool:
    """Return whether a name has words of lists and of the records alone.

    >>> [_names_list(name, "topics") for name in ("listinfo", "topicpage", "topic", "watchlist")]
    [True, True, False, False]
    """
    if len(name) > _LONGEST:
        return False
    many = plain(records.rpartition(".")[2])
    words, between = _LIST_WORDS, _WORDS_BETWEEN
    if len(many) >= _SHORTEST:
        words, between = f"{words}|{re.escape(many)}", f"{between}|{re.escape(_one(many))}"
    return re.fullmatch(f"(?=.*(?:{words}))(?:{words}|{between})+", name) is not None


def _one(many: str) -> str:
    return f"{many[:-3]}y" if many.endswith("ies") else many.removesuffix("s")


def _is_of_others(name: str, members: Mapping[Any, Any]) -> bool:
    """Return whether an object counts something else, or is another list."""
    return _counts_else(name) or any(
        isinstance(value, list)
        and ((inner := plain(str(key))) in _LISTS or inner == name or is_content("", value, {}))
        for key, value in members.items()
    )


@lru_cache(maxsize=4096)
def _counts_else(name: str) -> bool:
    return _OTHERS.fullmatch(name) is not None


def flags_aside(document: object, items: object, records: str) -> Iterator[tuple[str, str, bool]]:
    """Yield the place, the plain name and the value of each flag that plainly says it of a list.

    Of more, not where the number of items next to it is another one than that of the records.
    """
    for aside in asides(document, items, records):
        if not aside.is_of_list:
            continue
        is_own = all(count == _size(items) for count in _own_counts(aside))
        for key, value in aside.members.items():
            name = own_plain(str(key), records)
            if not isinstance(value, bool) or (name not in HAS_MORE and name not in IS_LAST):
                continue
            if is_own or value is (name in IS_LAST):
                yield f"{aside.place}.{key}", name, value


def _own_counts(aside: Aside) -> list[int]:
    """Return how many items an object says that its list has."""
    found = [
        count_in(value)
        for key, value in aside.members.items()
        if _COUNT.fullmatch(name := plain(str(key))) or _RETURNED.fullmatch(name)
    ]
    return [each for each in found if each is not None]


def _size(items: object) -> int:
    return len(items) if isinstance(items, Sized) else 0


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
    """Return a sign in such an object that there may be more, worded for a warning.

    There is none where a list has fewer items than there are records, which is another one.
    """
    for aside in asides(document, items, records):
        if not aside.is_of_list or any(count < _size(items) for count in _own_counts(aside)):
            continue
        for key, value in aside.members.items():
            place, name = aside.place, own_plain(str(key), records)
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
    for aside in asides(document, items, records):
        named = [(str(key), plain(str(key)), value) for key, value in aside.members.items()]
        totals = [
            (key, value)
            for key, name, value in named
            if (name in TOTALS and name != "totalsize") or name in own
        ]
        if not totals:  # as in nearly every object
            continue
        counted = {
            name: number for _, name, value in named if (number := count_in(value)) is not None
        }
        if any(name in _SHARES for name in counted):
            continue
        if any(number == count and _MATCHED.fullmatch(name) for name, number in counted.items()):
            continue  # another total next to it is of all there are
        is_list = any(
            number == count and _RETURNED.fullmatch(name) for name, number in counted.items()
        )
        if not is_list and not _may_total(aside, [name for name in counted if name not in own]):
            continue
        for key, value in totals:
            if (number := count_in(value)) is not None:
                yield f"{aside.place}.{key}", number, is_list


def _may_total(aside: Aside, counted: list[str]) -> bool:
    """Return whether a total in an object may be that of the list, and of no kinds counted there.

    A summary of what there is has the number of each kind or state next to a total.
    """
    is_named = aside.is_of_list or plain(aside.place.rpartition(".")[2]) == _SUMMARY
    return is_named and all(
        _counts_else(name) or any(name in each for each in _NUMBERS) for name in counted
    )
