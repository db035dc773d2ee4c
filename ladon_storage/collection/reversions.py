"""Reversions of a source to an older timestamp, or to an earlier content.

A sink does not replace a version by an older one, since a page may be replayed. Only the end of a
run shows whether the source went back: then the last version of an id is one that the sink passed
over. A listing that has an id twice has not gone back, whatever the order of the two; a source
whose order is guaranteed delivers the last one last.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

from ladon_storage.collection.protocols import Sink, SupportsReversion, supports
from ladon_storage.collection.records import Columns, Record

MAX_IDS = 2**18
"""The most ids of one run that are remembered; a later id never counts as a reversion."""

MAX_REVERSIONS = 10_000
"""The most records of one run that wait for its end; the following runs handle the others."""


class Reversions:
    """The records of one run to which its source may have gone back.

    Args:
        sink: The sink that makes them current again; ``None`` if it cannot do that, or need not.
    """

    def __init__(self, sink: SupportsReversion | None) -> None:
        self._sink = sink
        self._hashes = array("q")
        self._delivered: set[int] | None = None
        """The same ids as a set, made when the sink first passes a record over: until then no id is
        looked up, and a set is the most expensive part of this class."""
        self._waiting: dict[str, Record] = {}
        self._left: set[int] = set()
        self.unknown = 0
        """The number of possible reversions that came after the remembered ids."""

    @classmethod
    def of(cls, sink: Sink, *, is_needed: bool) -> Reversions:
        """Return the reversions of a run into a sink; inactive if the sink lacks support."""
        return cls(sink if is_needed and supports(sink, SupportsReversion) else None)

    @property
    def records(self) -> list[Record]:
        """The records that wait for the end of the run."""
        return list(self._waiting.values())

    @property
    def are_pending(self) -> bool:
        """Whether a record must still become current."""
        return bool(self._waiting or self._left)

    @property
    def left(self) -> int:
        """The number of reversions beyond those that may wait."""
        return len(self._left)

    def note(
        self, delivered: Sequence[Record], superseded: Sequence[Record], *, in_order: bool = False
    ) -> None:
        """Note the records that were delivered together, and those that the sink passed over.

        Args:
            delivered: All of them.
            superseded: Those that the sink passed over.
            in_order: Whether what is delivered later is the later one.
        """
        if self._sink is None:
            return
        if superseded or self.are_pending:
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

    def _wait(self, record: Record, *, is_full: bool) -> None:
        if is_full:
            self.unknown += 1
        elif len(self._waiting) < MAX_REVERSIONS:
            self._waiting[record.record_id] = record
        else:
            self._left.add(hash(record.record_id))

    async def revert(self, source_id: str, run_id: str) -> int:
        """Make them the current ones, and return how many more changed by that.

        A sink does not count versions that it stored in this run already, behind the current one.
        """
        assert self._sink is not None  # noqa: S101 - nothing waits without one
        return await self._sink.revert(source_id, self.records, run_id=run_id)
