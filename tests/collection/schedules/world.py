"""The world in which a schedule is played."""

from __future__ import annotations

import asyncio
import contextlib
import random
from dataclasses import replace
from datetime import datetime, timedelta

from ladon_storage.collection.protocols import Limits
from ladon_storage.collection.records import Record, Reject
from ladon_storage.collection.run import Report, run
from ladon_storage.errors import (
    LadonStorageError,
    SourceError,
)
from ladon_storage.models import (
    EMPTY_WATERMARK,
)
from ladon_storage.testing.doubles import (
    record,
)
from tests.collection.schedules.lives import (
    HitRememberingSink,
    HitSink,
    HitSource,
    HitStorage,
    HitStorageWithHistory,
    Killed,
    Life,
)
from tests.collection.schedules.oracle import Oracle
from tests.collection.schedules.steps import (
    LEASE,
    SKEW,
    STORM,
    Both,
    Cut,
    Item,
    Lose,
    Publish,
    Reset,
    Run,
    Step,
    Storm,
    Tick,
)


class World(Oracle):
    """A world that plays a schedule, and looks after each step at what is promised and there."""

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
            self.last_success = self.last_promise = None
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


async def played(world: World, steps: list[Step]) -> None:
    """Play a schedule for at most a minute, so that a run that hangs is told with its story."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(60):
            await world.play(steps)
            return
    raise AssertionError(world.told("the schedule hangs"))
