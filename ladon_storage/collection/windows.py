"""The progress of a backfill: which parts of its range are durable, and where it is remembered.

- It is remembered in a watermark of its own, whose name has the range. Its success is the end of
  the parts that are contiguous from the start of the range. Parts behind a gap are in its ledger.
- A service that keeps no ledger forgets the parts behind a gap, and they are read again. So are
  those of a watermark that an operator has moved: the ledger names the success that it belongs to.
- One write is one change of progress, and carries the version tag of the write before it. So of two
  backfills of one range, one wins.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Any

from pydantic import AwareDatetime, TypeAdapter, ValidationError

from ladon_storage.collection.protocols import WatermarkStore
from ladon_storage.collection.ranges import TimeRange
from ladon_storage.collection.resume import latest
from ladon_storage.models import (
    EMPTY_WATERMARK,
    Precondition,
    Watermark,
    WatermarkStatus,
    WatermarkUpdate,
    meant,
)

MAX_PARTS = 200
"""The number of parts behind gaps that a ledger has room for; those after them are read again."""

_PARTS = TypeAdapter(list[tuple[AwareDatetime, AwareDatetime]])
_INSTANT = TypeAdapter(AwareDatetime)


class Progress:
    """The finished parts of a backfill's range.

    Args:
        asked: The range, with both ends.

    >>> from datetime import timedelta
    >>> january = TimeRange(datetime(2026, 1, 1), datetime(2026, 2, 1))
    >>> progress = Progress(january)
    >>> first, second, *_ = january.windows(timedelta(days=1))
    >>> progress.finish(second)
    >>> progress.reached == first.start, list(progress.left_of(second))
    (True, [])
    >>> progress.finish(first)
    >>> progress.reached == second.end
    True
    """

    def __init__(self, asked: TimeRange) -> None:
        self.asked = asked
        self.parts: list[tuple[datetime, datetime]] = []
        """The finished parts in their order; none touches another."""

    @property
    def start(self) -> datetime:
        """The start of the range."""
        assert self.asked.start is not None  # noqa: S101 - a backfill has both ends
        return self.asked.start

    @property
    def reached(self) -> datetime:
        """The end of the finished parts that are contiguous from the start of the range."""
        if self.parts and self.parts[0][0] <= self.start:
            return self.parts[0][1]
        return self.start

    def finish(self, part: TimeRange) -> None:
        """Note that a part of the range is durable."""
        assert part.start is not None  # noqa: S101
        assert part.end is not None  # noqa: S101
        self._add([(part.start, part.end)])

    def left_of(self, window: TimeRange) -> Iterator[TimeRange]:
        """Yield the parts of a window that are not finished."""
        begin, end = window.start, window.end
        assert begin is not None  # noqa: S101
        assert end is not None  # noqa: S101
        for start, stop in self.parts:
            if stop <= begin or start >= end:
                continue
            if start > begin:
                yield TimeRange(begin, start)
            begin = stop
        if begin < end:
            yield TimeRange(begin, end)

    def _add(self, parts: Iterable[tuple[datetime, datetime]]) -> None:
        merged: list[tuple[datetime, datetime]] = []
        for start, end in sorted([*self.parts, *parts]):
            if merged and start <= merged[-1][1]:
                merged[-1] = merged[-1][0], max(merged[-1][1], end)
            else:
                merged.append((start, end))
        self.parts = merged


class StoredProgress(Progress):
    """A backfill's progress in a storage.

    Args:
        storage: The storage.
        source_id: The source.
        asked: The range, with both ends.
        run_id: The run, as the service records it.
    """

    def __init__(
        self, storage: WatermarkStore, source_id: str, asked: TimeRange, run_id: str
    ) -> None:
        super().__init__(asked)
        self.name = (
            f"{source_id}/backfill/{asked.start:%Y%m%dT%H%M%S.%fZ}/{asked.end:%Y%m%dT%H%M%S.%fZ}"
        )
        self.candidate: datetime | None = None
        """The greatest timestamp of the records of all finished parts, as far as it is known."""
        self._storage = storage
        self._run_id = run_id
        self._stored: Watermark | None = None
        self._writing = asyncio.Lock()

    async def read(self) -> None:
        """Read what earlier runs of the same backfill have finished.

        Raises:
            StorageError: It could not be read.
        """
        self._stored = stored = await self._storage.get_watermark(self.name)
        reached = meant(stored.last_successful_timestamp) if stored else None
        if stored is None or reached is None or reached <= self.start:
            reached = self.start
        else:
            self._add([(self.start, reached)])
        ledger = stored.ledger if stored and isinstance(stored.ledger, dict) else {}
        try:
            if _INSTANT.validate_python(ledger.get("reached")) != reached:
                return
            parts = _PARTS.validate_python(ledger.get("finished"))
            candidate = ledger.get("candidate")
            self.candidate = None if candidate is None else _INSTANT.validate_python(candidate)
        except ValidationError:  # of another program, or another release
            return
        self._add((start, end) for start, end in parts if start < end and start in self.asked)

    async def finished(self, part: TimeRange, candidate: datetime | None, records: int) -> None:
        """Remember that a part is durable.

        Args:
            part: The part.
            candidate: The greatest timestamp of its records.
            records: The number of new or changed records of the run until now.

        Raises:
            WatermarkConflictError: Another backfill of the same range was faster.
            StorageError: It could not be written.
        """
        async with self._writing:
            before = self.parts
            self.finish(part)
            highest = latest(self.candidate, candidate)
            self.candidate = None if highest == EMPTY_WATERMARK else highest
            update = WatermarkUpdate.of(
                self.reached,
                WatermarkStatus.SUCCESS,
                records_collected=records,
                run_id=self._run_id,
                ledger=self._ledger(),
            )
            try:
                self._stored = await self._storage.put_watermark(
                    self.name, update, Precondition.unchanged(self._stored)
                )
            except BaseException:
                self.parts = before  # it is read again, since nobody would know
                raise

    def _ledger(self) -> dict[str, Any]:
        reached = self.reached
        behind = [each for each in self.parts if each[0] > reached][:MAX_PARTS]
        told: dict[str, Any] = {
            "reached": reached.isoformat(),
            "finished": [[start.isoformat(), end.isoformat()] for start, end in behind],
        }
        if self.candidate is not None:
            told["candidate"] = self.candidate.isoformat()
        return told
