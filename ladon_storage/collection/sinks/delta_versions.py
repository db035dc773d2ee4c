"""Which records of a page are new, which replace what there is, and which are passed over.

- What somebody deleted on purpose counts as known, so that only a change brings a record back.
- ``keep="latest"``: an older content never replaces a newer one; of one time, the later arrival
  wins.
- ``keep="all"``: a version is stored once. It becomes the current one unless it is older than that;
  what it says of itself is made so that the documented order has it first.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from ladon_storage.collection.records import Record
from ladon_storage.collection.sinks.delta_known import ORDER
from ladon_storage.collection.sinks.delta_rows import NEVER, microseconds, now_in_microseconds
from ladon_storage.collection.sinks.versions import last_said

Place = tuple[int, int, int]
"""Where a version stands among those of its record, by `ORDER`."""


@dataclass(slots=True)
class Plan:
    """What a page adds to a table, and what is said about it.

    Args:
        fresh: The records that become rows.
        arrived: When they arrived, in microseconds.
        returned: When they became current although another is later by its time.
        new: Those of whose ids there was nothing, one for each id.
        superseded: What is left as it is, or added behind what is current.
        replaced: When the rows are from that they replace, in microseconds, by their ids.
    """

    fresh: list[Record] = field(default_factory=list)
    arrived: list[int] = field(default_factory=list)
    returned: list[int | None] = field(default_factory=list)
    new: list[Record] = field(default_factory=list)
    superseded: list[Record] = field(default_factory=list)
    replaced: dict[str, int] = field(default_factory=dict)


def latest_of(records: Iterable[Record]) -> dict[str, Record]:
    """Return the latest record of each id; at equal times what stands later."""
    latest: dict[str, Record] = {}
    for record in records:
        known = latest.get(record.record_id)
        if known is None or record.timestamp >= known.timestamp:
            latest[record.record_id] = record
    return latest


def plan_latest(records: Sequence[Record], stored: pa.Table, deleted: pa.Table | None) -> Plan:
    """Return what to do with a page where one row is kept for each record."""
    plan = Plan()
    latest = latest_of(records)
    rows = _by_id(stored)
    gone = _by_id(deleted) if deleted is not None else {}
    known = gone | rows
    passed: dict[str, tuple[str, int]] = {}
    for record_id, (version, moment) in known.items():
        record = latest[record_id]
        if record.version == version:
            del latest[record_id]
        elif microseconds(record.timestamp) < moment:
            del latest[record_id]
            passed[record_id] = version, moment
        elif record_id in rows:
            plan.replaced[record_id] = moment
    if passed:
        older = [
            record
            for record in records
            if (row := passed.get(record.record_id)) is not None
            and record.version != row[0]
            and microseconds(record.timestamp) < row[1]
        ]
        plan.superseded = last_said(records, older)
    plan.fresh = list(latest.values())
    plan.new = [each for each in plan.fresh if each.record_id not in known]
    plan.arrived = [now_in_microseconds()] * len(plan.fresh)
    plan.returned = [None] * len(plan.fresh)
    return plan


def plan_return_latest(
    last: Mapping[str, Record], stored: pa.Table, deleted: pa.Table | None
) -> Plan:
    """Return what makes versions the current ones where one row is kept for each record."""
    rows = _by_id(stored)
    known = (_by_id(deleted) if deleted is not None else {}) | rows
    plan = Plan()
    for record_id, record in last.items():
        if known.get(record_id, ("", 0))[0] != record.version:
            plan.fresh.append(record)
            if record_id in rows:
                plan.replaced[record_id] = rows[record_id][1]
    plan.arrived = [now_in_microseconds()] * len(plan.fresh)
    plan.returned = [None] * len(plan.fresh)
    return plan


def _by_id(rows: pa.Table) -> dict[str, tuple[str, int]]:
    """Return version and time of each row; of one that was replaced, those of what replaced it."""
    columns = rows["record_id"], rows["version"], rows["record_timestamp"].cast(pa.int64())
    return {
        record_id: (version, moment)
        for record_id, version, moment in zip(*(c.to_pylist() for c in columns), strict=True)
    }


def plan_of_versions(
    records: Sequence[Record], stored: pa.Table, deleted: pa.Table | None
) -> Plan | None:
    """Return what to do with a page where a row is kept for each version.

    ``None``: it depends on which version of a record is the current one.
    """
    fresh, ids = _fresh(records, stored, deleted)
    known = set(ids)
    if len(known) < len(ids) or any(each.record_id in known for each in fresh):
        return None
    # Of each record that is known there is one version, and none comes: all are current.
    return _plan_of_unknown(fresh)


def plan_all(records: Sequence[Record], stored: pa.Table, deleted: pa.Table | None) -> Plan:
    """Return what to do with a page by the places of the versions that there are."""
    fresh, _ = _fresh(records, stored, deleted)
    return _plan_of_versions(records, fresh, current_of(stored, deleted))


def _fresh(
    records: Sequence[Record], stored: pa.Table, deleted: pa.Table | None
) -> tuple[list[Record], list[str]]:
    """Return the versions that are unknown, and the ids of those that are known."""
    fresh = {(each.record_id, each.version): each for each in reversed(records)}
    known: list[str] = []
    for rows in (stored, deleted):
        if rows is not None:
            ids = rows["record_id"].to_pylist()
            for pair in zip(ids, rows["version"].to_pylist(), strict=True):
                fresh.pop(pair, None)
            known += ids
    return list(reversed(fresh.values())), known


def _plan_of_unknown(fresh: list[Record]) -> Plan:
    now = now_in_microseconds()
    plan = Plan(fresh, [now] * len(fresh), [None] * len(fresh))
    plan.new = fresh
    if len({each.record_id for each in fresh}) < len(fresh):
        plan.new = list(latest_of(fresh).values())
        plan.fresh = sorted(fresh, key=lambda each: each.timestamp)
        plan.arrived = _one_after_another(plan.fresh, now)
    return plan


def _plan_of_versions(
    records: Sequence[Record], fresh: list[Record], current: dict[str, tuple[str, Place]]
) -> Plan:
    before, places = dict(current), dict(current)
    behind: set[int] = set()
    plan = Plan(sorted(fresh, key=lambda each: each.timestamp))
    plan.arrived = _one_after_another(plan.fresh, _now_behind(current))
    new: dict[str, Record] = {}
    for record, arrived in zip(plan.fresh, plan.arrived, strict=True):
        record_id, moment = record.record_id, microseconds(record.timestamp)
        returned = None
        if record_id not in before:
            new[record_id] = record
        if (known := places.get(record_id)) is not None:
            if moment < known[1][1]:
                behind.add(id(record))
            elif known[1][0] != NEVER:
                returned = arrived
        if id(record) not in behind:
            place = NEVER if returned is None else returned, moment, arrived
            places[record_id] = record.version, place
        plan.returned.append(returned)
    plan.new = list(new.values())
    passed = {(each.record_id, each.version) for each in plan.fresh if id(each) in behind}
    older: list[Record] = []
    written = {(each.record_id, each.version) for each in plan.fresh}
    for record in records:
        key = record.record_id, record.version
        if record.record_id in before and key not in written:
            if before[record.record_id][0] != record.version:
                older.append(record)
        elif key in passed:
            older.append(record)
    plan.superseded = last_said(records, older)
    return plan


def plan_return_all(
    last: Mapping[str, Record], stored: pa.Table, deleted: pa.Table | None
) -> tuple[Plan, dict[tuple[str, str], int]]:
    """Return what makes versions the current ones where a row is kept for each of them.

    That is what to add, and when those return that are there.
    """
    current = current_of(stored, deleted)
    now = _now_behind(current)
    there = set(zip(stored["record_id"].to_pylist(), stored["version"].to_pylist(), strict=True))
    plan, back = Plan(), {}
    for record_id, record in last.items():
        if record_id in current and current[record_id][0] == record.version:
            continue
        if (record_id, record.version) in there:
            back[record_id, record.version] = now
        else:
            plan.fresh.append(record)
    plan.arrived = [now] * len(plan.fresh)
    plan.returned = [now] * len(plan.fresh)
    return plan, back


def _now_behind(current: Mapping[str, tuple[str, Place]]) -> int:
    """Return an instant after those at which versions became current, by whatever clock."""
    instants = (place for _, found in current.values() for place in (found[0], found[2]))
    return max(now_in_microseconds(), max(instants, default=NEVER) + 1)


def _one_after_another(records: Sequence[Record], now: int) -> list[int]:
    """Return instants that tell versions of one record apart, in their order."""
    counts: dict[str, int] = {}
    arrived = []
    for record in records:
        count = counts.get(record.record_id, 0)
        counts[record.record_id] = count + 1
        arrived.append(now + count)
    return arrived


def current_of(stored: pa.Table, deleted: pa.Table | None = None) -> dict[str, tuple[str, Place]]:
    """Return the current version of each record, and where it stands."""
    current: dict[str, tuple[str, Place]] = {}
    for rows in (deleted, stored):
        if rows is None:
            continue
        places = zip(*(_numbers(rows[name]) for name in ORDER), strict=True)
        ids, versions = rows["record_id"].to_pylist(), rows["version"].to_pylist()
        for record_id, version, place in zip(ids, versions, places, strict=True):
            known = current.get(record_id)
            if known is None or place >= known[1]:
                current[record_id] = version, place
    return current


def _numbers(column: pa.ChunkedArray) -> list[int]:
    numbers: list[int] = pc.fill_null(column.cast(pa.int64()), NEVER).to_pylist()
    return numbers
