"""The places in the body of a request that settings name by dotted paths.

- A place is never made by replacing what the body has: a filter that went missing would let an API
  answer with other records.
"""

from __future__ import annotations

from typing import Any

from ladon_storage.sources.json.items import INDEX


def put_at(body: dict[str, Any], path: str, value: object) -> None:
    """Put a value at a path of a body; a number is an index of a list, as in a record's path.

    A key that the body has may contain dots.

    >>> body = {"filters": [{"field": "kind"}, {"field": "changed"}]}
    >>> put_at(body, "filters.1.value", 7)
    >>> body
    {'filters': [{'field': 'kind'}, {'field': 'changed', 'value': 7}]}
    >>> body = {"range": {"event.created": {"lt": 9}}}
    >>> put_at(body, "range.event.created.gte", 7)
    >>> body
    {'range': {'event.created': {'lt': 9, 'gte': 7}}}

    Raises:
        ValueError: The body has something else on the way there.
    """
    there: Any = body
    above, left = list[str](), path
    while (name := _first(there, left)) != left:
        key = _key(there, name, path, above)
        if isinstance(there, dict) and there.get(key) is None:
            there[key] = {}
        there, left = there[key], left[len(name) + 1 :]
        above.append(name)
    there[_key(there, name, path, above)] = value


def _first(there: object, path: str) -> str:
    """Return the first name of a path: up to its first dot, unless a key there has dots."""
    name = path.partition(".")[0]
    if not isinstance(there, dict) or (name in there and path not in there):
        return name
    dotted = [key for key in there if "." in key and f"{path}.".startswith(f"{key}.")]
    return max(dotted, key=len, default=name)


def _key(there: object, name: str, path: str, above: list[str]) -> Any:
    if isinstance(there, dict):
        return name
    count = len(there) if isinstance(there, list) else 0
    if INDEX.fullmatch(name) and -count <= int(name) < count:
        return int(name)
    found = f"a list of {count}" if isinstance(there, list) else "a value"
    raise ValueError(f"{path} is no place in body, which has {found} at {'.'.join(above)}")
