"""The values of records by their paths, in the form of `ItemReader`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from ladon_storage.sources.json.items import value_at

_DEPTH = 4
_MOST_PATHS = 300


def paths_of(items: Sequence[dict[str, Any]]) -> list[str]:
    """Return the paths of all values in objects, none of a value in a list.

    >>> paths_of([{"id": 1, "a": {"b": 2}, "c": [3]}])
    ['id', 'a.b']
    """
    found: dict[str, None] = {}
    for item in items:
        for path, value in _leaves(item, "", _DEPTH):
            if path not in found and len(found) < _MOST_PATHS and value_at(item, path) is value:
                found[path] = None
    return list(found)


def _leaves(there: dict[str, Any], path: str, depth: int) -> Iterator[tuple[str, Any]]:
    for key, value in there.items():
        place = f"{path}.{key}" if path else key
        if isinstance(value, dict) and depth > 1:
            yield from _leaves(value, place, depth - 1)
        elif not isinstance(value, dict | list):
            yield place, value


def wrapper_of(items: Sequence[dict[str, Any]]) -> str:
    """Return the path of the object that holds the content of all records, if there is one.

    >>> wrapper_of([{"cve": {"id": "CVE-1"}}]), wrapper_of([{"id": 1, "user": {"id": 2}}])
    ('cve', '')
    """
    names = {key for item in items for key in item}
    if len(names) == 1:
        name = next(iter(names))
        return name if all(isinstance(item.get(name), dict) for item in items) else ""
    usual = ("attributes", "properties", "_source", "fields", "node")
    for name in usual:
        if all(isinstance(item.get(name), dict) for item in items):
            return name
    return ""


def distance(path: str, wrapper: str) -> int:
    """Return the depth of a path in a record, not counting the wrapper of its content."""
    if wrapper and path.startswith(f"{wrapper}."):
        path = path[len(wrapper) + 1 :]
    return path.count(".")
