"""The choice among several versions of a record in one page, the same for all sinks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ladon_storage.collection.records import Record


def latest(records: Iterable[Record]) -> list[Record]:
    """Return the newest record of each id; at equal times the later arrival."""
    return list(latest_by_id(records).values())


def latest_by_id(records: Iterable[Record]) -> dict[str, Record]:
    """Return the newest record of each id in a dictionary by id, as `latest` does."""
    records = list(records)
    found = {each.record_id: each for each in records}
    if len(found) == len(records):  # as in nearly every page
        return found
    found.clear()
    for record in records:
        known = found.get(record.record_id)
        if known is None or record.timestamp >= known.timestamp:
            found[record.record_id] = record
    return found


def latest_of_versions(records: Iterable[Record]) -> dict[tuple[str, str], Record]:
    """Return the newest record of each version by id and version; at equal times the later arrival.

    They are in the order in which those came.
    """
    records = list(records)
    found = {(each.record_id, each.version): each for each in records}
    if len(found) == len(records):  # as in nearly every page
        return found
    found.clear()
    for record in records:
        key = record.record_id, record.version
        known = found.get(key)
        if known is None or record.timestamp >= known.timestamp:
            found.pop(key, None)
            found[key] = record
    return found


def last_said(records: Sequence[Record], superseded: Sequence[Record]) -> list[Record]:
    """Return the records of ``superseded`` for which a page of ``records`` has nothing newer.

    A page that lists a record's history has not gone back.
    """
    if not superseded:
        return []
    last = {id(each) for each in latest(records)}
    return list({id(each): each for each in superseded if id(each) in last}.values())
