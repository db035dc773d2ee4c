"""The plan for a page: which records are new, replace a row, or are skipped.

- A record deleted deliberately counts as known, so that only a change brings it back.
- ``keep="latest"``: an older version never replaces a newer one; at equal times the later arrival
  wins.
- ``keep="all"``: a version is stored once. The last version of a record in a page becomes the
  current one, even if it exists already, unless it is older than the current one. Its values are
  set so that the documented order has it first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableSequence, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ladon_storage.collection.records import Columns, Record
from ladon_storage.sinks.delta.index import ORDER
from ladon_storage.sinks.delta.rewrite import set_column
from ladon_storage.sinks.delta.rows import (
    INSTANT,
    NEVER,
    day_of,
    microseconds,
    now_in_microseconds,
)
from ladon_storage.sinks.versions import last_said, latest_by_id, latest_of_versions

Place = tuple[int, int, int]
"""The rank of a version among those of its record, by `ORDER`."""


@dataclass(slots=True)
class Plan:
    """The changes that a page makes to a table, and their counts.

    Args:
        fresh: The records that become rows.
        arrived: When they arrived, in microseconds.
        returned: When they became current despite a later version.
        new: Those of ids that did not exist, one for each id.
        superseded: Records that change nothing, or are added as older versions.
        replaced: The times of the rows that they replace, in microseconds, by their ids.
        back: The existing rows that become current again, as they will be.
        again: The known records that become current, and were not.
    """

    fresh: MutableSequence[Record] = field(default_factory=list)
    arrived: list[int] = field(default_factory=list)
    returned: list[int | None] = field(default_factory=list)
    new: MutableSequence[Record] = field(default_factory=list)
    superseded: list[Record] = field(default_factory=list)
    replaced: dict[str, int] = field(default_factory=dict)
    back: pa.Table | None = None
    again: list[Record] = field(default_factory=list)

    @property
    def changes_rows(self) -> bool:
        """Whether rows are added, or become current again."""
        return len(self.fresh) > 0 or self.back is not None

    @property
    def changed(self) -> list[Record]:
        """The records with an existing id that are stored, or become current again."""
        if len(self.new) == len(self.fresh):
            return list(self.again)
        new = {id(each) for each in self.new}
        changed = {id(each): each for each in (*self.fresh, *self.again) if id(each) not in new}
        return list(changed.values())

    @property
    def days(self) -> set[str]:
        """The days of the rows that are replaced or come back."""
        back = [] if self.back is None else _numbers(self.back["record_timestamp"])
        return {day_of(moment) for moment in (*self.replaced.values(), *back)}

    @property
    def returning(self) -> dict[tuple[str, str], int]:
        """The times at which versions come back, in microseconds."""
        if self.back is None:
            return {}
        ids, versions = (self.back[name].to_pylist() for name in ("record_id", "version"))
        pairs = zip(ids, versions, strict=True)
        return dict(zip(pairs, _numbers(self.back["returned_at"]), strict=True))


def plan_of_new(columns: Columns, stored: pa.Table, deleted: pa.Table | None) -> Plan | None:
    """Return the plan for records of distinct ids, each new, or known in the same version.

    Such a page is the usual one, and none of its records becomes an object. ``None``: it is
    another.
    """
    known: dict[str, str] = {}
    count = 0
    for rows in (stored, deleted):
        if rows is not None and rows.num_rows:
            ids, versions = rows["record_id"].to_pylist(), rows["version"].to_pylist()
            known.update(zip(ids, versions, strict=True))
            count += rows.num_rows
    if not known:
        return _plan_of_distinct(columns)
    if len(known) < count:
        return None
    places = []
    for place, record_id in enumerate(columns.ids):
        version = known.get(record_id)
        if version is None:
            places.append(place)
        elif version != columns.versions[place]:
            return None
    return _plan_of_distinct(columns.at(places))


def plan_latest(records: Sequence[Record], stored: pa.Table, deleted: pa.Table | None) -> Plan:
    """Return the plan for a page if one row is kept for each record."""
    plan = Plan()
    latest = latest_by_id(records)
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
    plan.new = [each for each in plan.fresh if each.record_id not in known] if known else plan.fresh
    plan.arrived = [now_in_microseconds()] * len(plan.fresh)
    plan.returned = [None] * len(plan.fresh)
    return plan


def plan_return_latest(
    last: Mapping[str, Record], stored: pa.Table, deleted: pa.Table | None
) -> Plan:
    """Return the plan to make versions current if one row is kept for each record."""
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
    """Return version and time of each row; for a replaced row, those of its replacement."""
    columns = rows["record_id"], rows["version"], rows["record_timestamp"].cast(pa.int64())
    return {
        record_id: (version, moment)
        for record_id, version, moment in zip(*(c.to_pylist() for c in columns), strict=True)
    }


def plan_of_versions(
    records: Sequence[Record], stored: pa.Table, deleted: pa.Table | None
) -> Plan | None:
    """Return the plan for a page if a row is kept for each version.

    ``None``: the plan depends on which version of a record is current.
    """
    fresh, ids = _fresh(records, stored, deleted)
    known = set(ids)
    if len(known) < len(ids) or any(each.record_id in known for each in fresh):
        return None
    # Each known record has one version, and none is added: all are current.
    return _plan_of_unknown(fresh)


def plan_all(records: Sequence[Record], stored: pa.Table, deleted: pa.Table | None) -> Plan:
    """Return the plan for a page by the ranks of the existing versions.

    The page's last version of a record becomes current unless it is older than the current one.
    """
    fresh, _ = _fresh(records, stored, deleted)
    current = current_of(stored, deleted)
    now = _now_behind(current)
    plan = Plan(sorted(fresh, key=lambda each: each.timestamp))
    plan.arrived = _one_after_another(plan.fresh, now)
    newest = {each.record_id: each for each in plan.fresh}
    are_fresh = {id(each) for each in plan.fresh}
    there = current_of(stored)
    returned: set[int] = set()
    back: list[Record] = []
    for record_id, record in latest_by_id(records).items():
        if record_id not in current:
            plan.new.append(record)
            continue
        version, (returned_at, moment, _) = current[record_id]
        if record.version == version:
            other = newest.get(record_id)
            is_hidden = other is not None and microseconds(other.timestamp) >= moment
            # A deleted version stays deleted.
            is_there = there.get(record_id, ("",))[0] == version
            if is_hidden and returned_at == NEVER and is_there:
                back.append(record)
        elif microseconds(record.timestamp) < moment:
            plan.superseded.append(record)
        elif id(record) not in are_fresh:
            back.append(record)
            plan.again.append(record)
        elif returned_at != NEVER:
            returned.add(id(record))
    plan.returned = [
        arrived if id(each) in returned else None
        for each, arrived in zip(plan.fresh, plan.arrived, strict=True)
    ]
    _bring_back(plan, back, stored, now)
    return plan


def _fresh(
    records: Sequence[Record], stored: pa.Table, deleted: pa.Table | None
) -> tuple[list[Record], list[str]]:
    """Return the unknown versions, and the ids of the known ones."""
    fresh = latest_of_versions(records)
    known: list[str] = []
    for rows in (stored, deleted):
        if rows is not None:
            ids = rows["record_id"].to_pylist()
            for pair in zip(ids, rows["version"].to_pylist(), strict=True):
                fresh.pop(pair, None)
            known += ids
    return list(fresh.values()), known


def _plan_of_distinct(fresh: MutableSequence[Record]) -> Plan:
    now = now_in_microseconds()
    return Plan(fresh, [now] * len(fresh), [None] * len(fresh), fresh)


def _plan_of_unknown(fresh: MutableSequence[Record]) -> Plan:
    plan = _plan_of_distinct(fresh)
    if len({each.record_id for each in fresh}) < len(fresh):
        plan.new = list(latest_by_id(fresh).values())
        plan.fresh = sorted(fresh, key=lambda each: each.timestamp)
        plan.arrived = _one_after_another(plan.fresh, now_in_microseconds())
    return plan


def plan_return_all(last: Mapping[str, Record], stored: pa.Table, deleted: pa.Table | None) -> Plan:
    """Return the plan to make versions current if a row is kept for each version."""
    current = current_of(stored, deleted)
    plan = Plan()
    back = [
        record
        for record_id, record in last.items()
        if record_id not in current or current[record_id][0] != record.version
    ]
    plan.again = back
    _bring_back(plan, back, stored, _now_behind(current))
    return plan


def _bring_back(plan: Plan, records: Sequence[Record], stored: pa.Table, now: int) -> None:
    """Make existing versions current, and deleted ones, which are stored again."""
    if not records:
        return
    pairs = zip(stored["record_id"].to_pylist(), stored["version"].to_pylist(), strict=True)
    rows = {pair: number for number, pair in enumerate(pairs)}  # the later ones are last
    numbers = []
    for record in records:
        if (number := rows.get((record.record_id, record.version))) is not None:
            numbers.append(number)
        else:
            plan.fresh.append(record)
            plan.arrived.append(now)
            plan.returned.append(now)
    if numbers:
        instants = pa.array([now] * len(numbers), pa.int64()).cast(INSTANT)
        plan.back = set_column(stored.take(numbers), "returned_at", instants)


def _now_behind(current: Mapping[str, tuple[str, Place]]) -> int:
    """Return an instant after those at which versions became current, by any clock."""
    instants = (place for _, found in current.values() for place in (found[0], found[2]))
    return max(now_in_microseconds(), max(instants, default=NEVER) + 1)


def _one_after_another(records: Sequence[Record], now: int) -> list[int]:
    """Return distinct instants for the versions of one record, in their order."""
    counts: dict[str, int] = {}
    arrived = []
    for record in records:
        count = counts.get(record.record_id, 0)
        counts[record.record_id] = count + 1
        arrived.append(now + count)
    return arrived


def current_of(stored: pa.Table, deleted: pa.Table | None = None) -> dict[str, tuple[str, Place]]:
    """Return the current version of each record, and its rank."""
    current: dict[str, tuple[str, Place]] = {}
    for rows in (deleted, stored):
        if rows is None:
            continue
        versions = rows["version"].to_pylist()
        for (record_id, place), version in zip(places_of(rows, ORDER), versions, strict=True):
            known = current.get(record_id)
            if known is None or place >= known[1]:
                current[record_id] = version, place
    return current


def places_of(rows: Any, order: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """Yield the id of each row, and its rank among those of its record, by some columns."""
    places = zip(*(_numbers(rows[name]) for name in order), strict=True)
    return zip(rows["record_id"].to_pylist(), places, strict=True)


def _numbers(column: pa.ChunkedArray) -> list[int]:
    numbers: list[int] = pc.fill_null(column.cast(pa.int64()), NEVER).to_pylist()
    return numbers
