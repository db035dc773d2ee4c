"""Reversions of a source to an older timestamp, or to an earlier content.

A sink does not replace a version by an older one, since a page may be replayed. Only the end of a
run shows whether the source went back: then the last version of an id is one that the sink passed
over. A listing that has an id twice has not gone back, whatever the order of the two; a source
whose order is guaranteed delivers the last one last.

A reading beside the regular runs only counts them: it may have read a part of a record's versions,
and does not hold the source.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from datetime import datetime
from itertools import islice

from ladon_storage.collection.protocols import Sink, SupportsReversion, supports
from ladon_storage.collection.records import Columns, Record

MAX_IDS = 2**18
"""The most ids of one run that are remembered; a later id never counts as a reversion."""

MAX_REVERSIONS = 10_000
"""The most records of one run that wait for its end; the following runs handle the others."""

NAMED = 100
"""The number of ids in a report, of each kind of records."""


class Reversions:
    """The records of one run to which its source may have gone back.

    Args:
        sink: The sink that makes them current again; ``None`` if it cannot do that, or must not:
            they are only counted.
    """

    def __init__(self, sink: SupportsReversion | None) -> None:
        self._sink = sink
        self._hashes = array("q")
        self._delivered: set[int] | None = None
        """The same ids as a set, made when the sink first passes a record over: until then no id is
        looked up, and a set is the most expensive part of this class."""
        self._waiting: dict[str, Record] = {}
        self._left: set[int] = set()
        self._oldest: datetime | None = None
        self._unknown = 0

    @classmethod
    def of(cls, sink: Sink, *, may_revert: bool) -> Reversions:
        """Return the reversions of a run into a sink; only counted if the sink lacks support."""
        return cls(sink if may_revert and supports(sink, SupportsReversion) else None)

    @property
    def records(self) -> list[Record]:
        """The records that wait for the end of the run."""
        return list(self._waiting.values())

    @property
    def are_pending(self) -> bool:
        """Whether a record must still become current."""
        return self._sink is not None and bool(self._waiting or self._left)

    @property
    def left(self) -> int:
        """The number of reversions beyond those that may wait."""
        return len(self._left) if self._sink is not None else 0

    @property
    def unknown(self) -> int:
        """The number of possible reversions that came after the remembered ids."""
        return self._unknown if self._sink is not None else 0

    @property
    def superseded(self) -> int:
        """The number of records of which the sink keeps a later version than the source's last."""
        return len(self._waiting) + len(self._left) + self._unknown

    @property
    def superseded_ids(self) -> tuple[str, ...]:
        """The first ids of those records."""
        return tuple(islice(self._waiting, NAMED))

    @property
    def superseded_since(self) -> datetime | None:
        """A timestamp that is not after any of those records; ``None``: there are none."""
        return self._oldest if self.superseded else None

    def note(
        self, delivered: Sequence[Record], superseded: Sequence[Record], *, in_order: bool = False
    ) -> None:
        """Note the records that were delivered together, and those that the sink passed over.

        Args:
            delivered: All of them.
            superseded: Those that the sink passed over.
            in_order: Whether what is delivered later is the later one.
        """
        if superseded or self._waiting or self._left:
            self._note_passed(delivered, superseded, in_order=in_order)
        self._remember(delivered)

    def _note_passed(
        self, delivered: Sequence[Record], superseded: Sequence[Record], *, in_order: bool
    ) -> None:
        before = self._distinct()
        is_full = len(before) >= MAX_IDS
        passed = {id(each) for each in superseded}
        last: dict[str, Record] = {}
        for each in delivered:
            known = last.get(each.record_id) or self._waiting.get(each.record_id)
            if known is None or each.timestamp >= known.timestamp:
                last[each.record_id] = each
        for record_id, record in last.items():
            number = hash(record_id)
            if id(record) not in passed:
                self._waiting.pop(record_id, None)
                self._left.discard(number)
            elif record_id in self._waiting:
                self._waiting[record_id] = record
                self._see_time(record)
            elif in_order or number not in before:
                self._wait(record, is_full=is_full)

    def _remember(self, delivered: Sequence[Record]) -> None:
        hashes = map(hash, Columns.of(delivered).ids)
        if self._delivered is None:
            self._hashes.extend(hashes)
            if len(self._hashes) >= MAX_IDS:  # of which some may be the same
                self._distinct()
        elif len(self._delivered) < MAX_IDS:
            self._delivered.update(hashes)

    def _distinct(self) -> set[int]:
        """Return the hashes of the ids that were delivered."""
        if self._delivered is None:
            self._delivered, self._hashes = set(self._hashes), array("q")
        return self._delivered

    def _see_time(self, record: Record) -> None:
        self._oldest = min(self._oldest or record.timestamp, record.timestamp)

    def _wait(self, record: Record, *, is_full: bool) -> None:
        self._see_time(record)
        if is_full:
            self._unknown += 1
        elif len(self._waiting) < MAX_REVERSIONS:
            self._waiting[record.record_id] = record
        else:
            self._left.add(hash(record.record_id))

    async def revert(self, source_id: str, run_id: str) -> int:
        """Make them the current ones, and return how many more changed by that.

        A sink does not count versions that it stored in this run already, behind the current one.
        """
        assert self._sink is not None  # noqa: S101 - nothing waits without one
        changed = await self._sink.revert(source_id, self.records, run_id=run_id)
        self._waiting.clear()
        return changed
