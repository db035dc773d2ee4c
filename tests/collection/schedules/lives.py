"""A run of a schedule, and the storage, source and sink around it that are hit by its faults."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Coroutine, Sequence, Set
from datetime import datetime, timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from ladon_storage.collection.protocols import Position, WriteResult
from ladon_storage.collection.records import Page, Record, Reject
from ladon_storage.errors import (
    LadonStorageError,
    SinkError,
    SourceError,
    StorageConnectionError,
)
from ladon_storage.models import (
    UNCONDITIONAL,
    HistoryPage,
    Precondition,
    Watermark,
    WatermarkUpdate,
)
from tests.collection.schedules.steps import (
    SOURCE,
    Fault,
    Item,
    Publish,
    Reset,
    Run,
)

if TYPE_CHECKING:
    from tests.collection.schedules.world import World


class Killed(Exception):  # noqa: N818 - what happened, and no error of anybody's
    """End a run as SIGKILL does: it can tell nobody."""


class Life:
    """Be one run: where it is hit, and what it promised."""

    def __init__(self, world: World, step: Run, run_id: str, turns: tuple[int, ...] = ()) -> None:
        self.world = world
        self.run_id = run_id
        self.ahead = step.ahead
        self.horizon: datetime | None = None
        """What is later than that it takes for the future."""
        self.task = asyncio.current_task()
        self.origin: datetime | None = None
        """What is older is left out."""
        self.faults = {(each.point, each.nth, each.when): each.what for each in step.faults}
        self.fired: list[Fault] = []
        self.dead = False
        self.calls: Counter[str] = Counter()
        self.last_call = ""
        self.due: list[Item] = []
        """What was visible and due when it began to read."""
        self.delivered: dict[str, str] = {}
        """The versions that it was shown, by their ids; of one that changed meanwhile the last."""
        self.changing: set[str] = set()
        """The ids of which it was shown several versions."""
        self.excused: list[Item] = []
        """What an operator asked for again since it began: it will be refused."""
        self.read_all = False
        self.to_write = 0
        """How much of what was read is not durable yet."""
        self.durable: datetime | None = None
        """Up to where it found everything durable."""
        self.highest: datetime | None = None
        self.caught = False
        """A page that breaks the declared order is durable."""
        self.held = False
        self.knows = 0
        """The last change of the watermark that it read or made."""
        self._turns = turns
        self._turn = 0

    @property
    def all_durable(self) -> bool:
        """Whether the source has ended, and all that it showed is durable."""
        return self.read_all and not self.to_write

    async def hit(self, point: str, when: str) -> None:
        """Give way to others, then do what the schedule says."""
        if self._turns:
            for _ in range(self._turns[self._turn % len(self._turns)]):
                await asyncio.sleep(0)
            self._turn += 1
        if self.dead:
            raise Killed
        if when == "before":
            self.calls[point] += 1
            self.last_call = point
        nth = self.calls[point] - 1
        what = self.faults.get((point, nth, when))
        if what is None:
            return
        self.fired.append(Fault(point, nth, when, what))
        if what == "kill":
            self.dead = True
            raise Killed
        if what == "error":
            raise _ERRORS.get(point, StorageConnectionError)(f"{point} {nth} {when}")
        if what == "cancel":
            assert self.task is not None
            self.task.cancel()
            await asyncio.sleep(0)
        elif what == "pause":
            self.world.pass_minutes(2)
        elif what == "ahead":
            self.ahead += 3 * 24 * 60
        elif what == "behind":
            self.ahead -= 3 * 24 * 60
        elif what == "publish":
            for each in (Publish("new", nth), Publish("late", nth + 1, 3), Publish("update", nth)):
                self.world.publish(each)
        elif what == "reset":
            await _uncut(self.world.reset(Reset("back", 2)))

    def clock(self) -> datetime:
        """Return what the worker takes for the time."""
        return self.world.now + timedelta(minutes=self.ahead)

    @property
    def had_to_fail(self) -> bool:
        return any(
            each.what in ("error", "kill", "cancel") and each.point != "failed"
            for each in self.fired
        )


async def _uncut(request: Coroutine[Any, Any, None]) -> None:
    """Await an operator's request to its end, also where the run that it hits is cut off.

    The service may have stored it by then, and the world would never hear of it.
    """
    asking = asyncio.ensure_future(request)
    try:
        await asyncio.shield(asking)
    except asyncio.CancelledError:
        await asyncio.wait({asking}, timeout=30)
        asking.result()
        raise


_ERRORS: dict[str, type[LadonStorageError]] = {
    "read": SourceError,
    "write": SinkError,
    "position": SinkError,
    "open": SinkError,
}


class HitStorage:
    """Be a storage that one run speaks to."""

    def __init__(self, life: Life) -> None:
        self._life = life
        self._inner = life.world.backend.storage

    async def health_check(self) -> bool:
        await self._life.hit("health", "before")
        return await self._inner.health_check()

    async def get_watermark(self, source_id: str) -> Watermark | None:
        await self._life.hit("get", "before")
        stored = await self._inner.get_watermark(source_id)
        self._life.knows = self._life.world.changes
        await self._life.hit("get", "after")
        if self._life.calls["get"] == 1:
            self._life.held = self._life.world.is_held(stored, self._life.run_id)
        return stored

    async def put_watermark(
        self, source_id: str, update: WatermarkUpdate, precondition: Precondition = UNCONDITIONAL
    ) -> Watermark:
        await self._life.hit(str(update.status), "before")
        stored = await self._inner.put_watermark(source_id, update, precondition)
        self._life.world.stored(self._life, stored)
        await self._life.hit(str(update.status), "after")
        return stored


class HitStorageWithHistory(HitStorage):
    """Be one whose history a run may read."""

    async def watermark_history(self, source_id: str, **options: Any) -> HistoryPage | None:
        inner: Any = self._inner
        page: HistoryPage | None = await inner.watermark_history(source_id, **options)
        return page


class HitSink:
    """Be a sink that one run writes into."""

    def __init__(self, life: Life) -> None:
        self._life = life
        self._inner = life.world.backend.sink()

    async def __aenter__(self) -> Self:
        await self._life.hit("open", "before")
        await self._inner.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._inner.__aexit__(kind, error, traceback)

    async def write(
        self, source_id: str, page: Page, *, run_id: str = "", position: Position | None = None
    ) -> WriteResult | int:
        await self._life.hit("write", "before")
        written = await self._inner.write(source_id, page, run_id=run_id, position=position)
        if not isinstance(written, int) and written.superseded:
            position = None  # the sink does not remember it then
        self._life.world.wrote(self._life, page, position)
        await self._life.hit("write", "after")
        return written


class HitRememberingSink(HitSink):
    """Be a sink that remembers."""

    async def position(self, source_id: str) -> Position | None:
        await self._life.hit("position", "before")
        found: Position | None = await self._inner.position(source_id)  # type: ignore[attr-defined]
        return found

    async def mark_removed(self, source_id: str, listed_ids: Set[str], max_share: float) -> int:
        await self._life.hit("mark", "before")
        inner: Any = self._inner
        before = self._life.world.backend.removed()
        marked: int = await inner.mark_removed(source_id, listed_ids, max_share)
        self._life.world.marked(self._life, before)
        return marked

    async def revert(self, source_id: str, records: Sequence[Record], *, run_id: str = "") -> int:
        has_renewed = self._life.last_call == "running"
        assert has_renewed, self._life.world.told("a run went back that may have lost its hold")
        await self._life.hit("revert", "before")
        inner: Any = self._inner
        count: int = await inner.revert(source_id, records, run_id=run_id)
        await self._life.hit("revert", "after")
        return count


class HitSource:
    """Show one run the feed."""

    source_id = SOURCE

    def __init__(self, life: Life) -> None:
        feed = life.world.feed
        self.overlap = None if feed.overlap is None else timedelta(minutes=feed.overlap)
        self.ordered = feed.ordered
        self.order_guaranteed = feed.ordered and feed.honest
        self.full_snapshot = feed.overlap is None
        self._life = life
        self._page = feed.page
        self._asked_at: datetime | None = None

    async def pages(self, start: datetime | None, until: datetime | None) -> AsyncIterator[Page]:
        await self._life.hit("read", "before")
        # One that is read whole knows no range.
        start = None if self.overlap is None or self._life.world.feed.delivers_all else start
        if self._life.world.feed.tells_time:
            self._asked_at = self._life.world.now
        records, rejects = self._life.world.seen(self._life, start)
        # How many pages a write takes is a matter of time: what came in order before the first sign
        # of a storm may be passed, and so the storm comes first.
        if self.ordered and self._life.world.stormy:
            yield self._page_of([], rejects)
            rejects = []
        for reading in range(1 + self._life.world.feed.twice):
            if reading:
                records = self._life.world.shows(self._life, start)
            for begin in range(0, len(records), self._page):
                yield self._page_of(records[begin : begin + self._page], [])
                await self._life.hit("read", "after")
                await self._life.hit("read", "before")
        if rejects:
            yield self._page_of([], rejects)
        self._life.read_all = True

    def _page_of(self, records: list[Record], rejects: list[Reject]) -> Page:
        origin = self._life.origin
        stored = [each for each in records if origin is None or each.timestamp >= origin]
        self._life.to_write += len(stored) + len(rejects)
        return Page(records, rejects, asked_at=self._asked_at)
