"""Doubles of a collection: a storage, a source and sinks in memory that follow a script."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence, Set
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Any, Self

from ladon_storage.collection.protocols import Position, WriteResult
from ladon_storage.collection.records import Page, Record
from ladon_storage.models import (
    UNCONDITIONAL,
    Precondition,
    Watermark,
    WatermarkUpdate,
    apply_update,
)
from ladon_storage.sinks.removal import refuse_implausible_removal

BEGIN = datetime(2024, 1, 1, tzinfo=UTC)


def at(minutes: float) -> datetime:
    """Return the instant so many minutes after the beginning of 2024."""
    return BEGIN + timedelta(minutes=minutes)


def record(record_id: str, timestamp: datetime | float, value: str = "a") -> Record:
    """Return a record at an instant, or at the minute of that number."""
    when = timestamp if isinstance(timestamp, datetime) else at(timestamp)
    return Record.of(record_id, when, {"id": record_id, "value": value})


class ScriptedStorage:
    """A storage of watermarks in memory, by the rules of the service, that fails as it is planned.

    Args:
        etags: Whether it has the additions of the embedded service to the base contract.
        now: The clock of the service.
        tells_time: Whether each watermark comes with the time of the service.
    """

    def __init__(
        self,
        *,
        etags: bool = True,
        now: Callable[[], datetime] = lambda: at(0),
        tells_time: bool = False,
    ) -> None:
        self.stored: dict[str, Watermark] = {}
        self.calls: list[str] = []
        self.updates: list[dict[str, Any]] = []
        self.script: dict[str, deque[BaseException | Callable[[], Any] | None]] = {}
        self.healthy = True
        self._etags = etags
        self._now = now
        self._tells_time = tells_time
        self._version = 0

    def plan(self, what: str, *steps: BaseException | Callable[[], Any] | None) -> None:
        """Plan the next calls of ``health``, ``get``, or writes of a status such as ``success``.

        An error is raised, a callable is called before the call, ``None`` lets it pass.
        """
        self.script[what] = deque(steps)

    def put(self, source_id: str, **fields: Any) -> None:
        """Store a watermark without a call."""
        self.stored[source_id] = self._tagged(Watermark(source_id=source_id, **fields))

    async def health_check(self) -> bool:
        """Return whether the script says that it is healthy."""
        await self._play("health")
        return self.healthy

    async def get_watermark(self, source_id: str) -> Watermark | None:
        """Return the stored watermark."""
        await self._play("get")
        stored = self.stored.get(source_id)
        return self._answered(stored) if stored else None

    async def put_watermark(
        self, source_id: str, update: WatermarkUpdate, precondition: Precondition = UNCONDITIONAL
    ) -> Watermark:
        """Write a watermark by the rules of the service."""
        status = str(update.status)
        self.updates.append(
            {
                "status": status,
                "timestamp": update.timestamp,
                "if_match": precondition.if_match,
                "error_message": update.error_message,
                "records_collected": update.records_collected,
                "run_id": update.run_id,
            }
        )
        await self._play(status)
        if not self._etags:
            update = update.model_copy(update={"lease_seconds": None, "ledger": None})
            precondition = Precondition(precondition.if_match)
        stored = self.stored.get(source_id)
        new = apply_update(stored, source_id, update, self._now(), precondition)
        self.stored[source_id] = self._tagged(new)
        return self._answered(self.stored[source_id])

    def _answered(self, stored: Watermark) -> Watermark:
        return stored.as_answered(self._now()) if self._tells_time else stored

    async def _play(self, what: str) -> None:
        self.calls.append(what)
        steps = self.script.get(what)
        step = steps.popleft() if steps else None
        if isinstance(step, BaseException):
            raise step
        if step is not None:
            outcome = step()
            if hasattr(outcome, "__await__"):
                await outcome

    def _tagged(self, watermark: Watermark) -> Watermark:
        self._version += 1
        return watermark.with_etag(f'"{self._version}"' if self._etags else None)


Step = list[Record] | Page | BaseException | Callable[[], Any]


class ScriptedSource:
    """A source that yields the pages of a script, one list of steps for each run.

    A step is a page, or its records; an error is raised, a callable is called.

    Args:
        runs: The steps of each run.
        overlap: As a source declares it.
        source_id: Its name.
    """

    def __init__(
        self, *runs: list[Step], overlap: timedelta | None = timedelta(0), source_id: str = "feed"
    ) -> None:
        self.source_id = source_id
        self.overlap = overlap
        self.runs = deque(runs)
        self.ranges: list[tuple[datetime | None, datetime | None]] = []
        """The ranges that runs requested."""
        self.yielded = 0
        """The number of pages that were read."""
        self.closed = 0

    async def pages(self, start: datetime | None, until: datetime | None) -> AsyncIterator[Page]:
        """Yield the pages of the next run, and note its range."""
        self.ranges.append((start, until))
        try:
            for step in self.runs.popleft():
                if isinstance(step, BaseException):
                    raise step
                if callable(step):
                    outcome = step()
                    if hasattr(outcome, "__await__"):
                        await outcome
                    continue
                self.yielded += 1
                yield step if isinstance(step, Page) else Page(step)
        finally:
            self.closed += 1


class MemorySink:
    """A sink in memory that keeps every version, and fails at the writes of its script."""

    def __init__(self, *script: BaseException | Callable[[], Any] | None) -> None:
        self.rows: dict[tuple[str, str, str], Record] = {}
        self.events: list[str] = []
        self.sizes: list[int] = []
        """The size of each page that had anything."""
        self.script = deque(script)

    async def __aenter__(self) -> Self:
        self.events.append("open")
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.events.append("close")

    async def write(
        self, source_id: str, page: Page, *, run_id: str = "", position: Position | None = None
    ) -> WriteResult:
        """Keep the records of a page, unless the script says otherwise."""
        step = self.script.popleft() if self.script else None
        if isinstance(step, BaseException):
            raise step
        if step is not None:
            outcome = step()
            if hasattr(outcome, "__await__"):
                await outcome
        ids = {key[:2] for key in self.rows}
        new: dict[str, Record] = {}
        changed: list[Record] = []
        for each in page.records:
            key = (source_id, each.record_id, each.version)
            if key not in self.rows:
                self.rows[key] = each
                if key[:2] in ids or each.record_id in new:
                    changed.append(each)
                else:
                    new[each.record_id] = each
        self.events.append("write")
        self.sizes += [len(page)] * bool(len(page))
        return WriteResult(tuple(new.values()), changed)

    @property
    def ids(self) -> list[str]:
        """The ids in the sink, one for each version."""
        return sorted(record_id for _, record_id, _ in self.rows)


class RememberingSink(MemorySink):
    """A sink in memory that remembers positions, and marks records that were removed."""

    def __init__(self, *script: BaseException | Callable[[], Any] | None) -> None:
        super().__init__(*script)
        self.positions: dict[str, Position] = {}
        self.noted: list[Position | None] = []
        self.rejects: set[tuple[str, str, str]] = set()
        self.removed: set[str] = set()

    async def position(self, source_id: str) -> Position | None:
        """Return the position of the last write that had one."""
        return self.positions.get(source_id)

    async def write(
        self, source_id: str, page: Page, *, run_id: str = "", position: Position | None = None
    ) -> WriteResult:
        """Keep a page and its position."""
        written = await super().write(source_id, page)
        self.rejects |= {(source_id, each.reason, each.raw) for each in page.rejects}
        self.noted.append(position)
        if position is not None:
            self.positions[source_id] = position
        return written

    async def mark_removed(self, source_id: str, listed_ids: Set[str], max_share: float) -> int:
        """Mark the records that are not listed."""
        unmarked = {record_id for _, record_id, _ in self.rows} - self.removed
        missing = unmarked - listed_ids
        refuse_implausible_removal(source_id, len(missing), len(unmarked), max_share)
        self.removed = (self.removed - listed_ids) | missing
        return len(missing)

    async def count_records(
        self, source_id: str, after: datetime | None, before: datetime, limit: int
    ) -> int:
        """Count the records of which any version is between two times."""
        found = {
            record_id
            for (of, record_id, _), each in self.rows.items()
            if of == source_id and each.timestamp < before
            if record_id not in self.removed and (after is None or each.timestamp > after)
        }
        return min(limit, len(found))


class LatestSink(RememberingSink):
    """A sink in memory with a current version of each record, which can go back."""

    def __init__(self) -> None:
        super().__init__()
        self.current: dict[str, Record] = {}
        self.reverted: list[str] = []

    async def write(
        self, source_id: str, page: Page, *, run_id: str = "", position: Position | None = None
    ) -> WriteResult:
        """Keep the latest version of each record, and every version besides."""
        new, changed, superseded = [], [], []
        for each in page.records:
            known = self.current.get(each.record_id)
            if known is None:
                new.append(each)
            elif known.version == each.version:
                continue
            elif known.timestamp > each.timestamp:
                superseded.append(each)
                continue
            else:
                changed.append(each)
            self.current[each.record_id] = each
        moved = None if superseded else position
        await super().write(source_id, page, run_id=run_id, position=moved)
        return WriteResult(new, changed, superseded)

    async def revert(self, source_id: str, records: Sequence[Record], *, run_id: str = "") -> int:
        """Make these versions the current ones."""
        for each in records:
            self.current[each.record_id] = each
            self.reverted.append(each.record_id)
        return len(records)
