"""What tests of the collection engine share: a storage, a source and a sink that play a script."""

from __future__ import annotations

import sqlite3
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence, Set
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ladon_storage.collection.protocols import Position, WriteResult
from ladon_storage.collection.records import Page, Record
from ladon_storage.errors import SourceError
from ladon_storage.models import (
    UNCONDITIONAL,
    Precondition,
    Watermark,
    WatermarkUpdate,
    apply_update,
)

BEGIN = datetime(2024, 1, 1, tzinfo=UTC)


def at(minutes: float) -> datetime:
    """Return the instant that scenarios call by a number."""
    return BEGIN + timedelta(minutes=minutes)


def record(record_id: str, timestamp: datetime | float, value: str = "a") -> Record:
    """Return a record at an instant, or at the minute of that number."""
    when = timestamp if isinstance(timestamp, datetime) else at(timestamp)
    return Record.of(record_id, when, {"id": record_id, "value": value})


class ScriptedStorage:
    """Keep watermarks by the rules of the service, note each call, and fail as the script says.

    ``script`` maps what is asked (``health``, ``get``, or the status of a write) to what happens at
    the next such calls: an error is raised, a callable is called before the write, ``None`` passes.
    It tells its time with each answer where ``tells_time`` says so.
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
        """Say what happens at the next calls of ``what``."""
        self.script[what] = deque(steps)

    def put(self, source_id: str, **fields: Any) -> None:
        """Store a watermark without a call."""
        self.stored[source_id] = self._tagged(Watermark(source_id=source_id, **fields))

    async def health_check(self) -> bool:
        await self._play("health")
        return self.healthy

    async def get_watermark(self, source_id: str) -> Watermark | None:
        await self._play("get")
        stored = self.stored.get(source_id)
        return self._answered(stored) if stored else None

    async def put_watermark(
        self, source_id: str, update: WatermarkUpdate, precondition: Precondition = UNCONDITIONAL
    ) -> Watermark:
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
    """Yield the pages of the next run of the script; an error is raised, a callable is called.

    ``starts`` are the starts that runs asked for, ``yielded`` counts pages that were asked for.
    """

    def __init__(
        self, *runs: list[Step], overlap: timedelta | None = timedelta(0), source_id: str = "feed"
    ) -> None:
        self.source_id = source_id
        self.overlap = overlap
        self.runs = deque(runs)
        self.ranges: list[tuple[datetime | None, datetime | None]] = []
        self.yielded = 0
        self.closed = 0

    async def pages(self, start: datetime | None, until: datetime | None) -> AsyncIterator[Page]:
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
    """Keep versions in a dictionary, note what happens, and fail at the writes of the script."""

    def __init__(self, *script: BaseException | Callable[[], Any] | None) -> None:
        self.rows: dict[tuple[str, str, str], Record] = {}
        self.events: list[str] = []
        self.sizes: list[int] = []
        """How much was written at once, each time that something was."""
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
    """Remember the position that came with a page that was written, and mark what was removed."""

    def __init__(self, *script: BaseException | Callable[[], Any] | None) -> None:
        super().__init__(*script)
        self.positions: dict[str, Position] = {}
        self.noted: list[Position | None] = []
        self.rejects: set[tuple[str, str, str]] = set()
        self.removed: set[str] = set()

    async def position(self, source_id: str) -> Position | None:
        return self.positions.get(source_id)

    async def write(
        self, source_id: str, page: Page, *, run_id: str = "", position: Position | None = None
    ) -> WriteResult:
        written = await super().write(source_id, page)
        self.rejects |= {(source_id, each.reason, each.raw) for each in page.rejects}
        self.noted.append(position)
        if position is not None:
            self.positions[source_id] = position
        return written

    async def mark_removed(self, source_id: str, listed_ids: Set[str], max_share: float) -> int:
        unmarked = {record_id for _, record_id, _ in self.rows} - self.removed
        missing = unmarked - listed_ids
        if len(missing) > max_share * len(unmarked):
            raise SourceError(f"{len(missing)} of {len(unmarked)} records disappeared", source_id)
        self.removed = (self.removed - listed_ids) | missing
        return len(missing)


class LatestSink(RememberingSink):
    """A sink that keeps the latest of each record, and can go back."""

    def __init__(self) -> None:
        super().__init__()
        self.current: dict[str, Record] = {}
        self.reverted: list[str] = []

    async def write(
        self, source_id: str, page: Page, *, run_id: str = "", position: Position | None = None
    ) -> WriteResult:
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
        for each in records:
            self.current[each.record_id] = each
            self.reverted.append(each.record_id)
        return len(records)


def table(path: Path, columns: str = "record_id", name: str = "records") -> list[tuple[Any, ...]]:
    """Return what a sink's table has, as another program would see it."""
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(
            f"SELECT {columns} FROM {name} ORDER BY source_id, record_id, collected_at, version"
        ).fetchall()
