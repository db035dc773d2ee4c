"""A world in which a schedule of what can go wrong is played, and an oracle that watches it.

- A run sees the feed as it was when it began to read; what is published meanwhile is for the next.
- *Due* is a version that became visible no further back than the overlap: the sink must have it
  once a run that began after it was visible promises to be durable up to its time, and at the end.
  What an operator went back for is due again. What nobody can know is not due: a version that no
  feed shows any more when a sink was lost, or what a source hid behind an order that it declared,
  broke, and was not caught breaking before the run was killed.
- *Current* is the version that the feed shows of a record: the sink must show it once a run that
  nobody disturbed was shown it, and at the end, whatever came before and at what time.
- A worker's clock may be wrong by days. The storage's never is, nor is the feed's: who holds the
  source, and for how long, is only a matter of the storage's. A feed that tells no time is read up
  to the worker's now. So records from the future may be taken for past ones, and what comes too far
  behind them is not due.
- A killed run says nothing more, to nobody: neither the storage nor the sink hears of it again.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import sqlite3
from collections import Counter
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence, Set
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from ladon_storage import StorageServiceClient
from ladon_storage.collection.protocols import Limits, Position, Sink, WatermarkStore, WriteResult
from ladon_storage.collection.records import Page, Record, Reject
from ladon_storage.collection.run import Report, run
from ladon_storage.errors import (
    LadonStorageError,
    SinkError,
    SourceBusyError,
    SourceError,
    StorageConnectionError,
    WatermarkConflictError,
)
from ladon_storage.models import (
    EMPTY_WATERMARK,
    UNCONDITIONAL,
    ChangeAction,
    HistoryPage,
    Precondition,
    Watermark,
    WatermarkChange,
    WatermarkStatus,
    WatermarkUpdate,
)
from ladon_storage.sinks import SqlSink
from tests.collecting import BEGIN, LatestSink, RememberingSink, ScriptedStorage, record
from tests.service import Caller, calling, embedded_service, success
from tests.service import path as path_of

SOURCE = "feed"
LEASE = timedelta(minutes=1)
SKEW = timedelta(minutes=5)
STORM = 15
"""So many unusable records at once that the feed must have changed."""


class Killed(Exception):  # noqa: N818 - what happened, and no error of anybody's
    """End a run as SIGKILL does: it can tell nobody."""


@dataclass(eq=False)
class Item:
    """Be one version that the feed showed, and whether the sink must have it."""

    record: Record
    due: bool = True

    @property
    def key(self) -> tuple[str, str]:
        return self.record.record_id, self.record.version

    @property
    def at(self) -> datetime:
        return self.record.timestamp


@dataclass(frozen=True)
class Feed:
    """Say what kind of source it is.

    Args:
        overlap: In minutes; ``None``: it is read whole.
        ordered: Whether it declares an order.
        honest: Whether it keeps it, and its requests ask for it.
        page: Records of a page.
        lookback: How far back a first collection reads, in minutes.
        delivers_all: Whether it delivers everything, whatever it is asked for.
        tells_time: Whether its answers tell its own time.
        twice: Whether it is read a second time in the same run, as a list is that moved.
        seed: The order in which it delivers.
    """

    overlap: int | None = 3
    ordered: bool = False
    honest: bool = True
    page: int = 2
    lookback: int | None = None
    delivers_all: bool = False
    tells_time: bool = True
    twice: bool = False
    seed: int = 0


# The steps of a schedule


@dataclass(frozen=True)
class Publish:
    """Show a record: ``new``, ``tie``, ``late``, ``update``, ``moved``, ``future``, ``reject``.

    ``ancient``: from years ago. ``older``: with another content, and a time before the one that it
    has. ``revert``: as it was before, its time included; ``return``: as it was, with a new time.
    """

    kind: str
    record_id: int = 0
    minutes: int = 0


@dataclass(frozen=True)
class Tick:
    """Let minutes pass."""

    minutes: int


@dataclass(frozen=True)
class Fault:
    """Do something at the ``nth`` call of ``point``, before it or after it."""

    point: str
    nth: int
    when: str
    what: str


@dataclass(frozen=True)
class Run:
    """Collect; ``again`` under the id of the run before, unless an operator came between.

    The worker's clock is ``ahead`` of the true time by minutes, or behind it.
    """

    faults: tuple[Fault, ...] = ()
    again: bool = False
    ahead: int = 0


@dataclass(frozen=True)
class Both:
    """Collect twice at once; ``turns`` are how long each waits at each of its calls."""

    one: Run
    other: Run
    turns: tuple[int, ...]


@dataclass(frozen=True)
class Reset:
    """Move the watermark back by minutes, to where the last run went from, or delete it.

    ``ahead``: another program moves it into the future by most of a day.
    """

    how: str
    minutes: int = 0


@dataclass(frozen=True)
class Lose:
    """Put the sink back to what it was so many steps ago; 0: drop it."""

    steps: int


@dataclass(frozen=True)
class Storm:
    """Let the feed change its shape, or be repaired."""


@dataclass(frozen=True)
class Cut:
    """Let a whole listing lack the records of so many ids, which is its fault; 0: repair it."""

    ids: int


Step = Publish | Tick | Run | Both | Reset | Lose | Storm | Cut


class Backend(Protocol):
    """Hold a storage and a sink, and show what is in them."""

    remembers: bool
    keeps_all: bool

    @property
    def storage(self) -> WatermarkStore: ...
    def sink(self) -> Sink: ...
    def rows(self) -> list[tuple[str, str]]: ...
    def current(self) -> list[tuple[str, str]]: ...
    def removed(self) -> set[str]: ...
    def rejects(self) -> list[str]: ...
    def position(self) -> Position | None: ...
    async def watermark(self) -> Watermark | None: ...
    async def reset(self, timestamp: datetime) -> str | None: ...
    async def delete(self) -> None: ...
    async def changes(self) -> list[WatermarkChange]: ...
    def backup(self) -> object: ...
    def restore(self, backup: object) -> None: ...


class Scripted:
    """Keep everything in memory, by the rules of the service."""

    keeps_all = True

    def __init__(self, world: World, *, remembers: bool = True) -> None:
        self.remembers = remembers
        self.storage = ScriptedStorage(now=lambda: world.now, tells_time=True)
        self._kept = LatestSink()

    def sink(self) -> Sink:
        return self._kept if self.remembers else Forgetful(self._kept)

    def rows(self) -> list[tuple[str, str]]:
        return [(record_id, version) for _, record_id, version in self._kept.rows]

    def current(self) -> list[tuple[str, str]]:
        return [(each.record_id, each.version) for each in self._kept.current.values()]

    def removed(self) -> set[str]:
        return self._kept.removed

    def rejects(self) -> list[str]:
        return [raw for _, _, raw in self._kept.rejects]

    def position(self) -> Position | None:
        return self._kept.positions.get(SOURCE) if self.remembers else None

    async def watermark(self) -> Watermark | None:
        return self.storage.stored.get(SOURCE)

    async def reset(self, timestamp: datetime) -> str | None:
        stored = self.storage.stored[SOURCE].model_dump()
        stored |= {"last_successful_timestamp": timestamp, "run_id": None}
        self.storage.put(stored.pop("source_id"), **stored)
        return self.storage.stored[SOURCE].etag

    async def delete(self) -> None:
        del self.storage.stored[SOURCE]

    async def changes(self) -> list[WatermarkChange]:
        return []  # it is looked at after each write, and nothing comes between

    def backup(self) -> object:
        kept = self._kept
        kinds = (kept.rows, kept.positions, kept.rejects, kept.current, kept.removed)
        return [each.copy() for each in kinds]

    def restore(self, backup: Any) -> None:
        self._kept = kept = LatestSink()
        if backup is not None:
            kinds = (each.copy() for each in backup)
            kept.rows, kept.positions, kept.rejects, kept.current, kept.removed = kinds


class Real:
    """Keep watermarks in the embedded service, and records in a table of SQLite."""

    remembers = True

    def __init__(self, caller: Caller, client: StorageServiceClient, path: Path, keep: Any) -> None:
        self.keeps_all = keep == "all"
        self.storage = client
        self._caller = caller
        self._path = path
        self._keep = keep

    def sink(self) -> Sink:
        return SqlSink(f"sqlite:///{self._path}", keep=self._keep)

    def rows(self) -> list[tuple[str, str]]:
        return [(row[0], row[1]) for row in self._table("SELECT record_id, version FROM records")]

    def current(self) -> list[tuple[str, str]]:
        current = " WHERE replaced_at IS NULL" if self.keeps_all else ""
        rows = self._table(f"SELECT record_id, version FROM records{current}")
        return [(row[0], row[1]) for row in rows]

    def removed(self) -> set[str]:
        rows = self._table("SELECT record_id FROM records WHERE removed_at IS NOT NULL")
        return {row[0] for row in rows}

    def rejects(self) -> list[str]:
        return [row[0] for row in self._table("SELECT raw FROM records_quarantine")]

    def position(self) -> Position | None:
        names = ("timestamp", "watermark", "origin", "run_id", "order_shown")
        rows = self._table(f"SELECT {', '.join(names)} FROM ladon_positions")
        return Position.model_validate(dict(zip(names, rows[0], strict=True))) if rows else None

    def _table(self, statement: str) -> list[tuple[str, ...]]:
        if not self._path.exists():
            return []
        with closing(sqlite3.connect(self._path)) as connection:
            return connection.execute(statement).fetchall()

    async def watermark(self) -> Watermark | None:
        return await self.storage.get_watermark(SOURCE)

    async def reset(self, timestamp: datetime) -> str | None:
        body = {"timestamp": timestamp.isoformat(), "reason": "read it again"}
        answer = await self._caller("POST", path_of(SOURCE, "/reset"), body)
        if answer.status != 200:  # it takes none that moves it ahead
            answer = await self._caller("PUT", path_of(SOURCE), success(timestamp.isoformat()))
            assert answer.status == 200, answer.text
        return answer.etag

    async def delete(self) -> None:
        assert (await self._caller("DELETE", path_of(SOURCE))).status == 204

    async def changes(self) -> list[WatermarkChange]:
        changes: list[WatermarkChange] = []
        before: int | None = None
        while True:
            page = await self.storage.watermark_history(SOURCE, before=before)
            changes += page.changes if page else ()
            before = page.next if page else None
            if before is None:
                return changes

    def backup(self) -> object:
        return self._path.read_bytes() if self._path.exists() else None

    def restore(self, backup: Any) -> None:
        self._path.unlink(missing_ok=True)
        if backup is not None:
            self._path.write_bytes(backup)


@contextlib.asynccontextmanager
async def real_parts(world: World, folder: Path, keep: str) -> AsyncIterator[None]:
    """Let the world have a real service and a real sink."""
    async with (
        embedded_service(folder / "service.db", now=lambda: world.now) as address,
        calling(address) as caller,
        StorageServiceClient(address) as client,
    ):
        world.backend = Real(caller, client, folder / "records.db", keep)
        yield


class Forgetful:
    """Be a sink that remembers no position."""

    def __init__(self, inner: RememberingSink) -> None:
        self._inner = inner

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        return None

    async def write(
        self, source_id: str, page: Page, *, run_id: str = "", position: Position | None = None
    ) -> WriteResult | int:
        assert position is None
        return await self._inner.write(source_id, page)


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


class World:
    """Play a schedule, and look at what is promised and what is there after each step."""

    def __init__(self, feed: Feed) -> None:
        self.feed = feed
        self.now = BEGIN
        self.backend: Backend = Scripted(self)
        self.shown: dict[str, Item] = {}
        self.history: dict[str, list[Item]] = {}
        """What was ever shown of each id."""
        self.lacks = 0
        """How many ids a whole listing lacks by its fault."""
        self.unsettled: set[str] = set()
        """Ids that several runs at once were shown, or that a restored sink has as they were."""
        self.horizon = BEGIN
        """The latest time that a run may have taken for the present."""
        self.rejects: list[Reject] = []
        self.shown_rejects: list[Reject] = []
        self.stormy = False
        self.last_success: datetime | None = None
        self.version = 0
        """The version of the watermark that has it."""
        self.went_from: datetime | None = None
        self.failed: list[Life] = []
        self.meanwhile: list[Item] = []
        self.asked_again: list[Item] = []
        self.lives: list[Life] = []
        self.may_repeat = False
        self.changes = 0
        self.backups: list[tuple[object, Position | None]] = []
        self.values = 0
        self.runs = 0
        self.log: list[str] = []

    async def play(self, steps: list[Step]) -> None:
        """Play the schedule, then run once more without faults, and once for nothing."""
        for step in steps:
            self.log.append(f"{self.now:%d %H:%M} {step}")
            await self._do(step)
            self._settle()
            self.backups.append((self.backend.backup(), self.backend.position()))
        self.stormy, self.lacks = False, 0
        self.pass_minutes(2)
        report = await self._collect(Run())
        assert report is not None, self.told("the run after everything did not succeed")
        self._require([item for item in self.shown.values() if item.due], "is not in the sink")
        if self.backend.remembers:
            due = {i for i, item in self.shown.items() if item.due} - self.unsettled
            self._require_current({i: self.shown[i].record.version for i in due}, "at the end")
        assert set(self.backend.rejects()) >= {each.raw for each in self.shown_rejects}
        for kept in (self.backend.rows(), self.backend.rejects()):
            assert len(kept) == len(set(kept)), self.told("the sink has something twice")
        await self._look_at_changes()
        before = self.last_success
        again = await self._collect(Run())
        assert again is not None
        # The overlap of a watermark that is near the first start reaches back before that start.
        quiet = again.records_written == 0 or self.feed.lookback is not None
        assert quiet, self.told("a run without news wrote something")
        assert self.last_success == before

    async def _do(self, step: Step) -> None:
        match step:
            case Publish():
                self.publish(step)
            case Tick(minutes):
                self.pass_minutes(minutes)
            case Run():
                await self._collect(step)
            case Both(one, other, turns):
                await asyncio.gather(
                    asyncio.create_task(self._collect(one, turns, alone=False)),
                    asyncio.create_task(self._collect(other, turns[::-1], alone=False)),
                )
            case Reset():
                await self.reset(step)
            case Lose(steps):
                self._lose(steps)
            case Storm():
                self.stormy = not self.stormy
            case Cut(ids):
                self.lacks = ids if self.feed.overlap is None else 0

    @property
    def has_history(self) -> bool:
        """Whether the service keeps one."""
        return not isinstance(self.backend, Scripted)

    # What happens to the feed and to what is kept of it

    def pass_minutes(self, minutes: int) -> None:
        """Let time pass."""
        self.now += timedelta(minutes=minutes)

    def publish(self, what: Publish) -> None:
        """Show a new version."""
        if what.kind == "reject":
            if len(self.rejects) < 8:
                self.rejects.append(Reject.of("no id", {"number": len(self.rejects)}))
            return
        record_id = str(what.record_id)
        item = self._item(record_id, what)
        item.due = self._is_in_reach(item, self._newest())
        self.shown[record_id] = item
        self.history.setdefault(record_id, []).append(item)
        if self.lives:
            self.meanwhile.append(item)

    def _item(self, record_id: str, what: Publish) -> Item:
        known = self.shown.get(record_id)
        if known is not None and what.kind in ("revert", "return"):
            before = self.history[record_id]
            old = before[what.minutes % len(before)].record
            if what.kind == "revert":
                return Item(old)
            return Item(replace(old, timestamp=max(self.now, known.at)))
        newest = self._newest() or self.now
        when = {
            "tie": newest,
            "late": newest - timedelta(minutes=what.minutes),
            "future": self.now + timedelta(minutes=what.minutes * 4),
            "update": known.at if known else self.now,
        }.get(what.kind, self.now)
        if known is not None:
            when = max(when, known.at)
        if what.kind == "older":
            when -= timedelta(minutes=what.minutes)
        elif what.kind == "ancient":
            when = self.now - timedelta(days=400 * (1 + what.minutes))
        self.values += 1
        return Item(record(record_id, when, f"v{self.values}"))

    def _newest(self) -> datetime | None:
        """Return the latest time that any run may have promoted by now."""
        present = max(self.now, self.horizon)
        times = [i.at for each in self.history.values() for i in each if i.at <= present]
        success = self.last_success
        if success is not None and EMPTY_WATERMARK < success <= present:
            times.append(success)
        return max(times, default=None)

    def _is_in_reach(self, item: Item, newest: datetime | None) -> bool:
        if self.feed.overlap is None or self.feed.delivers_all or newest is None:
            return True
        return item.at >= self._before(newest)

    def _before(self, promise: datetime) -> datetime:
        """Return from where on a run reads again that is durable up to ``promise``."""
        if promise == EMPTY_WATERMARK:
            return promise
        return promise - timedelta(minutes=self.feed.overlap or 0)

    async def reset(self, step: Reset) -> None:
        """Be the operator who wants something read again."""
        if await self.backend.watermark() is None:
            return
        if step.how == "ahead":
            to = self.now + timedelta(hours=23)
            self._hear(await self.backend.reset(to), to)
            # The other program writes over what an operator wanted, before a run has heard of it:
            # only a history still knows.
            for item in self._missing():
                known = self.has_history or item not in self.asked_again
                item.due = item.due and known
            self.asked_again = []
            self.changes += 1
            self.may_repeat = False
            return
        if step.how == "delete":
            await self.backend.delete()
            self.changes += 1
            self.last_success = None
            back_to = None
        else:
            current = self.last_success
            if current is None or current == EMPTY_WATERMARK:
                return  # there is nothing to go back from, and going on is not asked for
            to = current - timedelta(minutes=step.minutes)
            if step.how == "again" and self.went_from is not None:
                to = min(self.went_from, current)
            self._hear(await self.backend.reset(to), to)
            self.changes += 1
            back_to = to if to == EMPTY_WATERMARK else self._before(to)
        if step.how == "delete" and self.feed.lookback is not None:
            back_to = self._looked_back()
        self.may_repeat = False
        asked = [i for i in self.shown.values() if not i.due and (not back_to or i.at >= back_to)]
        for item in asked:
            item.due = True
        self.asked_again += asked
        for life in self.lives:
            life.excused += asked

    def _lose(self, steps: int) -> None:
        if not self.backend.remembers:
            return
        backup, position = self.backups[-steps] if 0 < steps <= len(self.backups) else (None, None)
        self.backend.restore(backup)
        self.unsettled |= self.shown.keys()
        if position is not None and self.feed.overlap is not None and not self.feed.delivers_all:
            reach = self._before(position.timestamp)
            for item in self._missing():
                item.due = item.due and item.at >= reach

    # What a run does, and what is looked at then

    async def _collect(
        self, step: Run, turns: tuple[int, ...] = (), *, alone: bool = True
    ) -> Report | None:
        self.runs += not (step.again and self.may_repeat)
        self.may_repeat = True
        life = Life(self, step, f"run-{self.runs}", turns)
        before, position = self.last_success, self.backend.position()
        self.lives.append(life)
        lookback = self.feed.lookback
        limits = Limits(
            lease=LEASE,
            future_skew=SKEW,
            initial_lookback=None if lookback is None else timedelta(minutes=lookback),
        )
        sink = HitRememberingSink(life) if self.backend.remembers else HitSink(life)
        storage = HitStorageWithHistory(life) if self.has_history else HitStorage(life)
        report: Report | None = None
        error: BaseException | None = None
        try:
            report = await run(
                HitSource(life),
                sink,
                storage,
                run_id=life.run_id,
                limits=limits,
                clock=life.clock,
            )
        except (LadonStorageError, Killed, asyncio.CancelledError) as raised:
            error = raised
        self.lives.remove(life)
        if not alone:
            self.unsettled |= life.delivered.keys()
        elif report is not None and self.backend.remembers:
            said = {i: v for i, v in life.delivered.items() if i not in life.changing}
            self._require_current(said, f"which {life.run_id} was shown")
            self.unsettled -= said.keys()
        self.log.append(f"    {life.run_id}: {'success' if report else repr(error)}")
        await self._look_at_end(life, report, error, alone=alone)
        if isinstance(error, SourceError) and "has changed" in str(error):
            self._look_at_changed_feed(before, position, alone=alone)
        if report is None:
            self.failed.append(life)
        elif alone:
            self.went_from = report.watermark_before or self.went_from
        return report

    async def _look_at_end(
        self, life: Life, report: Report | None, error: BaseException | None, *, alone: bool
    ) -> None:
        if report is not None:
            assert not life.had_to_fail, self.told(f"{life.run_id} swallowed {life.fired}")
            assert life.all_durable
            assert not self.stormy, self.told("a changed feed was collected")
            return
        heard = life.calls["get"] and not any(e.point in ("get", "health") for e in life.fired)
        if heard:
            assert isinstance(error, SourceBusyError) == life.held, self.told("lease")
        quiet = (SourceBusyError, WatermarkConflictError)
        if alone and heard and not life.dead and not isinstance(error, quiet):
            told = any(each.point == "failed" or each.what == "reset" for each in life.fired)
            stored = await self.backend.watermark()
            assert told or stored, self.told("nothing says that the run failed")
            if not told and stored:
                assert (stored.status, stored.run_id) == ("failed", life.run_id), self.told("mute")

    def _look_at_changed_feed(
        self, before: datetime | None, position: Position | None, *, alone: bool
    ) -> None:
        now = self.backend.position()
        if alone and now is not None:
            kept = [each for each in (before, position and position.timestamp) if each]
            if self.feed.lookback is not None:
                kept.append(self._looked_back())
            assert now.timestamp <= max(kept, default=EMPTY_WATERMARK), self.told(
                "a run that refused its feed moved the position"
            )

    def is_held(self, stored: Watermark | None, run_id: str) -> bool:
        """Tell whether a run must leave the source to another."""
        if stored is None or stored.status != WatermarkStatus.RUNNING:
            return False
        assert stored.last_run_timestamp is not None
        now = stored.answered_at  # by then: since, time may have passed
        assert now is not None
        return stored.run_id != run_id and now < stored.last_run_timestamp + LEASE

    def seen(self, life: Life, start: datetime | None) -> tuple[list[Record], list[Reject]]:
        """Return what a run that begins to read sees, in the order in which it sees it."""
        self.log.append(f"    {life.run_id} reads from {start and f'{start:%d %H:%M}'}")
        # By the feed's clock if it tells the time, else by the worker's.
        life.horizon = self.now if self.feed.tells_time else max(self.now, life.clock())
        self.horizon = max(self.horizon, life.horizon)
        self._bound_by_lookback()
        position = self.backend.position()
        if position is not None and start is not None:
            life.origin = position.origin
        if start is not None:
            life.durable = start + timedelta(minutes=self.feed.overlap or 0)
            if life.origin is not None and life.durable < life.origin:
                life.origin = start
        if life.origin is not None:
            for item in self._missing():
                item.due = item.due and item.at >= life.origin
        life.due = [i for i in self.shown.values() if i.due and i not in life.excused]
        life.due = [item for item in life.due if not self._is_lacking(item.record)]
        records = self.shows(life, start)
        # Alone they would fail the run, as a feed of which nothing can be used does.
        rejects = self.shown_rejects = list(self.rejects) if records else []
        if self.stormy:
            storm = [Reject.of("no time", {"storm": number}) for number in range(STORM)]
            rejects = [*rejects, *storm]
        return records, rejects

    def shows(self, life: Life, start: datetime | None) -> list[Record]:
        """Return what the feed delivers at once, in its order, and note that for a run."""
        records = [each.record for each in self.shown.values() if not start or each.at >= start]
        records = [each for each in records if not self._is_lacking(each)]
        random.Random(self.feed.seed).shuffle(records)
        if self.feed.ordered and self.feed.honest:
            records.sort(key=lambda each: each.timestamp)
        for each in records:
            if life.origin is not None and each.timestamp < life.origin:
                continue
            if life.delivered.setdefault(each.record_id, each.version) != each.version:
                life.changing.add(each.record_id)
        return records

    def _is_lacking(self, record: Record) -> bool:
        return int(record.record_id) < self.lacks

    def marked(self, life: Life, before: Set[str]) -> None:
        """Look at what a run has marked as removed."""
        assert not self.shown_rejects, self.told("nobody knows what the nameless ones are")
        there = {record_id for record_id, _ in self.backend.rows()}
        removed = self.backend.removed()
        assert removed == there - life.delivered.keys(), self.told("the marks are wrong")
        unmarked = there - before
        assert len(removed - before) <= len(unmarked) / 2, self.told("too much was marked")

    def _looked_back(self) -> datetime:
        """Return from when on a first collection reads: a little later, since it takes its time."""
        return self.now - timedelta(minutes=self.feed.lookback or 0) + timedelta(seconds=1)

    def _bound_by_lookback(self) -> None:
        """Let go what a first collection, or a dropped sink, does not reach back to."""
        if self.feed.lookback is None or self.feed.overlap is None:
            return
        reach = self._looked_back()
        # Where one in the future is all that anybody knows, it is a first collection again.
        is_known = self.backend.remembers or (self.last_success or self.now) <= self.now
        if self.last_success is not None and is_known:
            if not self.backend.remembers or self.backend.position() is not None:
                return
            reach = min(reach, self._before(self.last_success))
        for item in self._missing():
            item.due = item.due and item.at >= reach

    def wrote(self, life: Life, page: Page, position: Position | None) -> None:
        """Look at a page and a position that are durable now."""
        life.to_write -= len(page)
        times = [each.timestamp for each in page.records if each.timestamp <= self.now]
        if times:
            life.caught |= life.highest is not None and min(times) < life.highest
            life.highest = max([*times, *([life.highest] if life.highest else [])])
        if position is not None:
            self._look_at_promise(life, position.timestamp, "position")

    def stored(self, life: Life, stored: Watermark) -> None:
        """Look at a watermark that was written."""
        before = self.last_success
        after = EMPTY_WATERMARK if stored.found_nothing else stored.last_successful_timestamp
        if isinstance(self.backend, Scripted):  # a request takes its time, and so does its answer
            assert life.knows == self.changes, self.told(
                f"{life.run_id} overwrote what it never saw"
            )
            if after != before and before is not None:
                # One in the future is put right by whoever knows better.
                is_right = after is not None and (after > before or before > self.now)
                assert is_right, self.told("the watermark went back")
        self.changes += 1
        life.knows = self.changes
        if stored.status == WatermarkStatus.SUCCESS:
            assert after is not None
            present = max(self.now, life.horizon or self.now)
            is_past = after == before or after <= present
            assert is_past, self.told("the watermark is in the future")
            self._look_at_promise(life, after, "watermark")
        self._hear(stored.etag, after)

    def _hear(self, etag: str | None, success: datetime | None) -> None:
        """Note the success that an answer tells of, unless a later change is known already.

        Of two requests that are stored together, a run's and an operator's, either may be answered
        first.
        """
        assert etag is not None
        version = int(etag.strip('"'))
        if version >= self.version:
            self.version, self.last_success = version, success

    async def _look_at_changes(self) -> None:
        """Look in the service's history for a run's write that moved the watermark back.

        There is what each write found: an answer tells only what it left, and what was there before
        may be an operator's, whose answer is still on its way.
        """
        for change in await self.backend.changes():
            before, after = change.from_timestamp, change.to_timestamp
            # One in the future, by the service's time then, is put right by whoever knows better.
            if change.action is ChangeAction.PUT and before is not None and before <= change.at:
                is_right = after is not None and after >= before
                assert is_right, self.told(f"the watermark went back: {change}")

    def _look_at_promise(self, life: Life, until: datetime, what: str) -> None:
        # Each run reads anew what is read whole, and an order that is broken promises nothing yet.
        trusted = self.feed.overlap is not None and not self._may_be_deceived()
        # What came late since a range was read is read again, being within the overlap, but is not
        # promised by who only says again what was durable.
        is_news = life.durable is None or until > life.durable
        is_whole = life.all_durable
        if (trusted and is_news) or is_whole:
            # A tie may go on over the next page, and is read again from its instant on.
            promised = [i for i in life.due if i.at < until or (is_whole and i.at == until)]
            current = set(map(id, self.shown.values()))
            shown = [i for i in promised if id(i) in current or self.backend.keeps_all]
            self._require(shown, f"is not durable, and the {what} passed it at {until:%d %H:%M}")

    def _may_be_deceived(self) -> bool:
        """Return whether an order is believed, since a whole pass has shown it, and is not kept."""
        position = self.backend.position()
        is_believed = position is not None and position.order_shown
        return self.feed.ordered and not self.feed.honest and is_believed

    def _require(self, items: list[Item], what: str) -> None:
        there = set(self.backend.rows())
        for item in items:
            assert item.key in there, self.told(f"{item.record} {what}")

    def _require_current(self, versions: Mapping[str, str], what: str) -> None:
        current = self.backend.current()
        assert len(current) == len(dict(current)), self.told("a record is current twice")
        there = dict(current)
        wrong = [i for i in versions if there.get(i) != versions[i]]
        assert not wrong, self.told(f"the sink does not show the versions of {wrong} {what}")

    def _missing(self) -> list[Item]:
        there = set(self.backend.rows())
        return [item for item in self.shown.values() if item.key not in there]

    def _settle(self) -> None:
        """Say what is not due any more after a step."""
        newest = self._newest()
        for item in self.meanwhile:
            item.due = item.due and self._is_in_reach(item, newest)
        for life in self.failed:
            self._forgive(life)
        self.meanwhile, self.failed = [], []

    def _forgive(self, life: Life) -> None:
        """Let go what a declared order hid, which was not seen to be broken before the run ended.

        What a sink does not remember cannot be taken back either.
        """
        if self.feed.overlap is None or not self._may_be_deceived():
            return
        if life.caught and self.backend.remembers:
            return
        position = self.backend.position()
        promise = position.timestamp if position else self.last_success
        if promise is not None:
            reach = self._before(promise)
            for item in self._missing():
                item.due = item.due and item.at >= reach

    def told(self, what: str) -> str:
        """Return what is wrong, with the whole story."""
        return "\n".join([what, f"  {self.feed}", *(f"  {line}" for line in self.log)])


async def played(world: World, steps: list[Step]) -> None:
    """Play a schedule for at most a minute, so that a run that hangs is told with its story."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(60):
            await world.play(steps)
            return
    raise AssertionError(world.told("the schedule hangs"))
