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

Getter = Callable[[Any], Any]


def columns_of(
    items: Sequence[Any],
    get_id: Getter,
    times: Sequence[Getter],
    parser: TimestampParser,
    unversioned: Sequence[str],
) -> Columns | None:
    """Return the records of objects; ``None``: an item needs a closer look, or is unusable.

    Args:
        items: The parsed items.
        get_id: The function that returns the value of an item's id.
        times: The functions that return the values of its times, of which the latest counts.
        parser: The parser of a time.
        unversioned: The paths of values that do not affect the version.
    """
    if set(map(type, items)) != {dict}:
        return None
    ids = _ids(list(map(get_id, items)))
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
    found: tuple[list[datetime], list[str]] | None = None
    for get in times:
        read = _times(list(map(get, items)), parser)
        if read is None:
            return None
        if found is None:
            found = read
        else:
            moments, texts = (
                zip(found[0], read[0], strict=True),
                zip(found[1], read[1], strict=True),
            )
            found = (
                [one if one >= other else other for one, other in moments],
                [one if one >= other else other for one, other in texts],
            )
    return None if found is None or "" in found[1] else found


def _times(values: list[Any], parser: TimestampParser) -> tuple[list[datetime], list[str]] | None:
    """Return the times of texts; a missing one is before all others, and an empty text."""
    if None not in values:
        return read_many(parser, values)
    read = read_many(parser, [each for each in values if each is not None])
    if read is None:
        return None
    moments, instants = iter(read[0]), iter(read[1])
    return (
        [_NEVER if each is None else next(moments) for each in values],
        ["" if each is None else next(instants) for each in values],
    )


def _contents(items: Sequence[Any], unversioned: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the payloads and the versions of items."""
    if not unversioned:
        try:
            return payloads_and_versions(items)
        except TypeError:  # of one item, perhaps
            pass
    pairs = [versioned(each, unversioned, is_parsed=True) for each in items]
    return [payload for _, payload in pairs], [version for version, _ in pairs]
