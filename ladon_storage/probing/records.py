"""The search for the records of an answer: lists of objects, and objects of objects, by merit.

- A record has a time, or no source can be made of it: a time weighs more than any name.
- Other parts of an answer are often lists of objects, too: columns, facets, errors, links.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import log2
from typing import Any

from ladon_storage.probing.times import find_times
from ladon_storage.sources.json.items import value_at
from ladon_storage.sources.rest.names import names, plain

_USUAL = names(
    "data items results records value values entries entry features hits vulnerabilities objects "
    "response events messages rows list elements content members incidents alerts issues posts "
    "resources docs documents indicators urls"
)
_BESIDE = names(
    "errors error warnings warning links link fields columns facets included schema metadata meta "
    "aggregations messagesqueue filters sort sorts parameters notices profiles shards"
)
_DEPTH = 4
_LEAST_OBJECTS = 0.8
"""The minimum share of a list's items that are objects."""

_LEAST_ALIKE = 0.5
"""The minimum share of keys that a list's objects have in common."""

_MOST_LOOKED_AT = 200


@dataclass(frozen=True)
class Candidate:
    """A place where the records may be.

    Args:
        path: Its dotted path; empty: the whole answer.
        items: The records themselves.
        is_keyed: Whether it is an object whose keys are the ids.
        keys: Those keys.
        has_time: Whether its records have a time.
        merit: Its likelihood, compared with other candidates of the same answer.
    """

    path: str
    items: Sequence[dict[str, Any]]
    is_keyed: bool
    keys: Sequence[str]
    has_time: bool
    merit: float

    @property
    def count(self) -> int:
        """The number of its records."""
        return len(self.items)


def sampled(items: Sequence[dict[str, Any]]) -> Sequence[dict[str, Any]]:
    """Return a sample of the items, from the whole length of the list."""
    return items[:: max(1, len(items) // _MOST_LOOKED_AT)]


def find_records(document: object) -> list[Candidate]:
    """Return the paths that may have the records, the most likely first.

    >>> found = find_records({"errors": [], "data": {"rows": [{"id": 1, "at": "2024-01-01"}]}})
    >>> [(each.path, each.count) for each in found]
    [('data.rows', 1)]
    """
    found = [
        each
        for each in _candidates(document, "", _DEPTH)
        if each is not None and _is_at(document, each)
    ]
    return sorted(found, key=lambda each: -each.merit)


def _is_at(document: object, candidate: Candidate) -> bool:
    """Return whether a source would find the records at the path: keys may contain dots."""
    there = value_at(document, candidate.path)
    return isinstance(there, dict if candidate.is_keyed else list)


def spread(found: Sequence[Candidate]) -> list[str]:
    """Return the paths of lists over which the records are spread: by day, by page, by kind.

    >>> days = {f"2024-01-0{day}": [{"id": day, "at": "2024-01-01"}] for day in (1, 2)}
    >>> sorted(spread(find_records({"days": days})))
    ['days.2024-01-01', 'days.2024-01-02']
    """
    best = found[0]
    above, _, name = best.path.rpartition(".")
    if not name or best.is_keyed:
        return []
    alike = [
        each.path
        for each in found
        if each.has_time
        and not each.is_keyed
        and each.path.rpartition(".")[0] == above
        and {*each.items[0]} & {*best.items[0]} >= {*best.items[0]} - {*_optional(best)}
    ]
    is_named = any(character.isdigit() for character in name)
    return alike if len(alike) > 1 and (is_named or len(alike) > 2) else []


def _optional(candidate: Candidate) -> set[str]:
    """Return the fields that some records of a candidate lack."""
    fields: list[set[str]] = [set(item) for item in candidate.items]
    return set[str]().union(*fields) - fields[0].intersection(*fields)


def empty_lists(document: object, path: str = "", depth: int = _DEPTH) -> list[str]:
    """Return the paths of empty lists, which may have records later."""
    if document == [] and plain(path) not in _BESIDE:
        return [path]
    if not isinstance(document, dict) or depth == 0:
        return []
    return [
        found
        for key, each in document.items()
        for found in empty_lists(each, _at(path, key), depth - 1)
    ]


def _candidates(there: object, path: str, depth: int) -> Iterator[Candidate | None]:
    if isinstance(there, list):
        yield _of_list(there, path)
        # A list that contains its metadata and the list of records: [{"page": 1}, [...]].
        if depth and len(there) <= 3:
            for index, each in enumerate(there):
                if isinstance(each, list):
                    yield from _candidates(each, _at(path, str(index)), 0)
    elif isinstance(there, dict) and depth:
        yield _of_keyed(there, path)
        for key, each in there.items():
            yield from _candidates(each, _at(path, key), depth - 1)


def _of_list(there: list[Any], path: str) -> Candidate | None:
    items = [each for each in there if isinstance(each, dict)]
    if not items or len(items) < _LEAST_OBJECTS * len(there):
        return None
    return _judged(path, items, ())


def _of_keyed(there: Mapping[str, Any], path: str) -> Candidate | None:
    """Return an object of records, but none of objects that merely share a parent."""
    items = [_alone(each) for each in there.values()]
    objects = [each for each in items if isinstance(each, dict)]
    if not objects or len(objects) < len(items) or not _look_like_ids(there):
        return None
    common = set.intersection(*(set(each) for each in objects))
    widest = max(len(each) for each in objects)
    found = _judged(path, objects, tuple(there))
    return found if found.has_time and len(common) >= _LEAST_ALIKE * widest else None


def _alone(value: object) -> object:
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def _look_like_ids(there: Mapping[str, Any]) -> bool:
    """Return whether keys may be ids: several, or one that no programmer would choose."""
    return len(there) > 1 or any(each.isdecimal() or len(each) > 30 for each in there)


def _judged(path: str, items: list[dict[str, Any]], keys: Sequence[str]) -> Candidate:
    has_time = bool(find_times(sampled(items)).paths)
    name, depth = plain(path), path.count(".")
    merit = 50.0 * has_time + min(log2(len(items) + 1), 10) - 5 * depth
    merit += 15 * (name in _USUAL or not path) - 40 * (name in _BESIDE) - 10 * bool(keys)
    return Candidate(path, items, bool(keys), keys, has_time, merit)


def _at(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key
