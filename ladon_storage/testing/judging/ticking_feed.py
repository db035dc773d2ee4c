"""A feed whose content at each tick is a function of the seed alone.

- It has the habits of real ones: ties, records that become visible late, updates under an unchanged
  timestamp and under a new one, records that go back to an earlier content or time, records from
  the future, records without an id, new records from years ago.
- Nothing but those comes later than the overlap: all that it shows at a tick is due.
- Between two ticks a minute passes, or a day: where records were always dense, the overlap would
  heal what a run leaves out of a page.
"""

from __future__ import annotations

import mmap
import random
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

BEGIN = datetime(2024, 1, 1, tzinfo=UTC)
OVERLAP = timedelta(minutes=5)
FUTURE = datetime(2099, 1, 1, tzinfo=UTC)
MINUTE, DAY = timedelta(minutes=1), timedelta(days=1)
CHANGES = {MINUTE: [0, 1, 3, 8, 25], DAY: [8, 25]}
"""How many changes come with a tick, by the time that has passed since the one before."""

MOST_REJECTS = 2
"""Fewer than make a run refuse its feed, also where it reads a list that moves five times."""

Version = tuple[str, str, str]
"""An id, a value, and an instant."""

KINDS = [
    *["new", "new", "tie", "late", "update", "moved", "future", "reject"],
    *["older", "revert", "return", "old"],
]


@dataclass
class State:
    """The content of a feed at a tick: times and values by id, and unusable items."""

    shown: dict[str, tuple[datetime, str]] = field(default_factory=dict)
    rejects: list[str] = field(default_factory=list)

    def versions(self, before: datetime | None = None) -> set[Version]:
        """Return the versions that are shown, or those of them from before an instant."""
        return {
            (record_id, value, at.isoformat())
            for record_id, (at, value) in self.shown.items()
            if before is None or at < before
        }


class TickingFeed:
    """The content of a feed at each tick, which is the same for the same seed.

    Args:
        seed: What it is drawn from.
        kinds: The kinds of changes; a kind that is there twice comes twice as often.
        has_old: Whether it has new records from years ago.
    """

    def __init__(self, seed: str, kinds: Sequence[str] = KINDS, *, has_old: bool = False) -> None:
        self._random = random.Random(f"{seed}/feed")
        self._states = [State()]
        self._instants = [BEGIN]
        self._values = 0
        self._kinds = kinds
        self._has_old = has_old
        self._newest = BEGIN
        self._history: dict[str, list[tuple[datetime, str]]] = {}

    def at(self, tick: int) -> State:
        """Return what is shown at a tick."""
        while len(self._states) <= tick:
            last, passed = self._states[-1], self._random.choice([MINUTE, MINUTE, DAY])
            now = self._instants[-1] + passed
            state = State(dict(last.shown), list(last.rejects))
            self._change(state, now, passed)
            self._states.append(state)
            self._instants.append(now)
        return self._states[tick]

    def clock(self, tick: int) -> datetime:
        """Return the time of the feed's clock between a tick and the next."""
        self.at(tick)
        return self._instants[tick] + timedelta(seconds=30)

    def throughout(self, first: int, last: int) -> State:
        """Return what is shown at each of these ticks, as it is shown at the last."""
        versions = [self.at(tick).versions() for tick in range(first, last + 1)]
        always = set.intersection(*versions)
        shown = self.at(last).shown
        return State({record_id: shown[record_id] for record_id, *_ in always})

    def _change(self, state: State, now: datetime, passed: timedelta) -> None:
        draw = self._random
        for _ in range(draw.choice(CHANGES[passed])):
            self._values += 1
            kind = draw.choice(self._kinds)
            if kind == "reject" and state.shown and len(state.rejects) < MOST_REJECTS:
                state.rejects.append(f"reject {self._values}")
                continue
            record_id, at, value = self._version(state, kind, now, passed)
            state.shown.pop(record_id, None)  # what changed is the last that did
            state.shown[record_id] = (at, value)
            self._history.setdefault(record_id, []).append((at, value))
            if at < FUTURE:
                self._newest = max(self._newest, at)

    def _version(
        self, state: State, kind: str, now: datetime, passed: timedelta
    ) -> tuple[str, datetime, str]:
        # From now, not from the newest one: a run that reads meanwhile may see others of this tick.
        draw, reach = self._random, now - OVERLAP
        new, value = f"r{self._values}", f"v{self._values}"
        known = [each for each, (at, _) in state.shown.items() if at >= reach]
        changed = draw.choice(known) if known else new
        at, _ = state.shown.get(changed, (now, ""))
        earlier = [each for each in self._history.get(changed, []) if each[0] >= reach]
        if kind == "tie":
            return new, max(self._newest, reach), value
        if kind == "late":
            return new, max(self._newest - OVERLAP * draw.random(), reach), value
        if kind == "future" and draw.random() < 0.2:
            return new, FUTURE, value
        if kind == "old" and self._has_old:
            return draw.choice([new, changed]), now - timedelta(days=3000 * draw.random()), value
        if kind == "update":
            return changed, at, value
        if kind == "moved":
            return changed, max(at, now), value
        if kind == "older" and at < FUTURE:
            return changed, at - (at - reach) * draw.random(), value
        if kind in ("revert", "return") and earlier:
            before, value = draw.choice(earlier)
            return changed, before if kind == "revert" else max(at, now), value
        return new, now - (passed - MINUTE) * draw.choice([0, draw.random()]), value


class Ticks:
    """The present tick, which processes that are forked from this one share."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, 16)

    @property
    def now(self) -> int:
        """The present tick."""
        return int(struct.unpack("qq", self._memory[:16])[0])

    @now.setter
    def now(self, tick: int) -> None:
        self._memory[:8] = struct.pack("q", tick)

    @property
    def coming(self) -> int:
        """How many ticks pass while a list is read."""
        return int(struct.unpack("qq", self._memory[:16])[1])

    @coming.setter
    def coming(self, ticks: int) -> None:
        self._memory[8:16] = struct.pack("q", ticks)
