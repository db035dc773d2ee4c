"""The oracle: what is due, and what a run may promise, write and leave out."""

from __future__ import annotations

from collections.abc import Mapping, Set
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from ladon_storage.collection.ledger import Ledger
from ladon_storage.collection.protocols import Position
from ladon_storage.collection.records import Page, Record, Reject
from ladon_storage.collection.run import Report
from ladon_storage.errors import (
    SourceBusyError,
    WatermarkConflictError,
)
from ladon_storage.models import (
    EMPTY_WATERMARK,
    ChangeAction,
    Watermark,
    WatermarkStatus,
)
from ladon_storage.testing.doubles import (
    BEGIN,
)
from tests.collection.schedules.backends import Backend, Scripted
from tests.collection.schedules.steps import (
    LEASE,
    Feed,
    Item,
)

if TYPE_CHECKING:
    from tests.collection.schedules.lives import Life


def assert_adds_up(ledger: Ledger) -> None:
    """Each delivered item is in exactly one of the ledger's numbers."""
    parts = (
        ledger.records_new,
        ledger.records_changed,
        ledger.records_known,
        ledger.records_quarantined,
        ledger.records_skipped,
    )
    assert min(parts) >= 0
    assert ledger.records_delivered == sum(parts)


class Oracle:
    """The state of a world, and what must hold in it."""

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
        self.last_promise: datetime | None = None
        """The last success that was not in the future when it was written."""
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

    @property
    def has_history(self) -> bool:
        """Whether the service keeps one."""
        return not isinstance(self.backend, Scripted)

    def _newest(self) -> datetime | None:
        """Return the latest time that any run may have promoted by now."""
        present = max(self.now, self.horizon)
        times = [i.at for each in self.history.values() for i in each if i.at <= present]
        # A watermark in the future promises nothing: the one before it does.
        success = self.last_promise
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

    async def _look_at_end(
        self, life: Life, report: Report | None, error: BaseException | None, *, alone: bool
    ) -> None:
        if report is not None:
            assert not life.had_to_fail, self.told(f"{life.run_id} swallowed {life.fired}")
            assert_adds_up(report)
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

    def marked(self, life: Life, before: Set[str]) -> None:
        """Look at what a run has marked as removed."""
        assert not self.shown_rejects, self.told("nobody knows what the nameless ones are")
        there = {record_id for record_id, _ in self.backend.rows()}
        removed = self.backend.removed()
        assert removed == there - life.delivered.keys(), self.told("the marks are wrong")
        unmarked = there - before
        assert len(removed - before) <= len(unmarked) / 2, self.told("too much was marked")

    def _is_lacking(self, record: Record) -> bool:
        return int(record.record_id) < self.lacks

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
            if success is None or success <= max(self.now, self.horizon):
                self.last_promise = success

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
