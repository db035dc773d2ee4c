"""The records of a page that are made together: its ids, times, payloads and versions as columns.

Each step is the one of `items` and `records` for a single item, made for all at once where their
values are of one kind. A page with any other value is read item by item.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

from ladon_storage.collection.records import Columns, payloads_and_versions, versioned
from ladon_storage.sources.timestamps import TimestampParser, read_many

_NEVER = datetime.min.replace(tzinfo=UTC)

Getter = Callable[[Sequence[Any]], list[Any]]
"""A function that returns a value of each object."""


def columns_of(
    items: Sequence[Any],
    get_ids: Getter,
    times: Sequence[Getter],
    parser: TimestampParser,
    unversioned: Sequence[str],
) -> Columns | None:
    """Return the records of objects; ``None``: an item needs a closer look, or is unusable.

    Args:
        items: The parsed items.
        get_ids: The function that returns the values of the items' ids.
        times: The functions that return the values of their times, of which the latest counts.
        parser: The parser of a time.
        unversioned: The paths of values that do not affect the version.
    """
    if set(map(type, items)) != {dict}:
        return None
    ids = _ids(get_ids(items))
    if ids is None:
        return None
    read = _latest(items, times, parser)
    if read is None:
        return None
    try:
        contents = _contents(items, unversioned)
    except (TypeError, ValueError):
        return None
    return Columns(ids, read[0], *contents, read[1])


def _ids(values: list[Any]) -> list[str] | None:
    """Return the texts of ids that are all texts, or all whole numbers."""
    kinds = set(map(type, values))
    if kinds == {int}:
        return list(map(str, values))
    if kinds != {str} or not all(values):
        return None
    together = "".join(values)
    return values if together.isascii() and "\0" not in together else None


def _latest(
    items: Sequence[Any], times: Sequence[Getter], parser: TimestampParser
) -> tuple[list[datetime], list[str]] | None:
    """Return the latest time of each item, also as texts."""
    moments, texts = [_NEVER] * len(items), [""] * len(items)
    for number, get in enumerate(times):
        values = get(items)
        if number == 0 and None not in values:  # as in nearly every page
            read = read_many(parser, values)
            if read is None:
                return None
            moments, texts = read
            continue
        places = [place for place, each in enumerate(values) if each is not None]
        if not places:
            continue
        read = read_many(parser, [values[place] for place in places])
        if read is None:
            return None
        for place, moment, text in zip(places, *read, strict=True):
            if moment > moments[place]:
                moments[place], texts[place] = moment, text
    return None if "" in texts else (moments, texts)


def _contents(items: Sequence[Any], unversioned: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the payloads and the versions of items."""
    if not unversioned:
        try:
            return payloads_and_versions(items)
        except TypeError:  # of one item, perhaps
            pass
    pairs = [versioned(each, unversioned, is_parsed=True) for each in items]
    return [payload for _, payload in pairs], [version for version, _ in pairs]
