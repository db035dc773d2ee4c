"""The feed that is collected: what it shows at each tick is a function of the seed alone.

- It has the habits of real ones: ties, records that become visible late, updates under an unchanged
  timestamp and under a new one, records that go back to an earlier content or time, records from
  the future, records without an id, answers that are cut off. One that delivers everything has new
  records from years ago as well.
- Nothing else comes later than the overlap, so that all that it ever shows at a tick is due.
- It is read at one tick from the first page to the last, or as most lists are: by pages that are
  counted, while the ticks go on and what changes goes to the end, or to the front.
"""

from __future__ import annotations

import asyncio
import mmap
import os
import random
import struct
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any, Literal

from aiohttp import web

BEGIN = datetime(2024, 1, 1, tzinfo=UTC)
OVERLAP = timedelta(minutes=5)
FUTURE = datetime(2099, 1, 1, tzinfo=UTC)
PAGE = 10
MOST_REJECTS = 2
"""Fewer than what makes a run refuse its feed, also where it reads a list that moves five times."""

Version = tuple[str, str, str]
"""An id, a value, and an instant."""

KINDS = [
    *["new", "new", "tie", "late", "update", "moved", "future", "reject"],
    *["older", "revert", "return", "old"],
]


Paging = Literal["pinned", "page", "offset", "next"]
Order = Literal["time", "change", "newest"]


@dataclass(frozen=True)
class Manner:
    """Say how a feed is read, and what is declared about it.

    Args:
        paging: ``pinned`` to one tick; or by ``page``, ``offset`` or ``next`` link, of a list that
            moves.
        order: Of a list: by ``time``, or by the last ``change``, or so and the ``newest`` first.
        cap: How many items the server gives at once, whatever it is asked for.
        has_total: Whether each page of a list states the total.
        delivers_all: Whether everything is delivered, whatever is asked for.
        ordered: Whether it is declared that pages come by time. It is wrong where the newest come
            first.
    """

    paging: Paging
    order: Order
    cap: int
    has_total: bool
    delivers_all: bool
    ordered: bool

    def can_show(self, fault: str | None) -> bool:
        """Tell whether a fault that is made on purpose can do harm."""
        if fault == "believe-order":
            return self.ordered and self.paging != "pinned" and self.order == "newest"
        return self.delivers_all if fault == "drop-old" else True

    @classmethod
    def drawn(cls, draw: random.Random) -> Manner:
        """Draw one."""
        pagings: list[Paging] = ["pinned", "pinned", "page", "offset", "next"]
        orders: list[Order] = ["time", "change", "newest", "newest"]
        paging, order = draw.choice(pagings), draw.choice(orders)
        return cls(
            paging,
            order,
            draw.choice([PAGE, PAGE, PAGE - 3]),
            draw.random() < 0.5,
            draw.random() < 0.4,
            draw.random() < 0.6 and (paging == "pinned" or order != "change"),
        )


@dataclass
class State:
    """Be what the feed shows at a tick: instants and values by id, and what is unusable."""

    shown: dict[str, tuple[datetime, str]] = field(default_factory=dict)
    rejects: list[str] = field(default_factory=list)

    def versions(self, before: datetime | None = None) -> set[Version]:
        """Return the versions that are shown, or those of them from before an instant."""
        return {
            (record_id, value, at.isoformat())
            for record_id, (at, value) in self.shown.items()
            if before is None or at < before
        }


class Feed:
    """Tell what is shown at each tick.

    Args:
        seed: Whatever comes of it is always the same.
        has_old: Whether it has new records from years ago.
    """

    def __init__(self, seed: str, *, has_old: bool = False) -> None:
        self._random = random.Random(f"{seed}/feed")
        self._states = [State()]
        self._values = 0
        self._has_old = has_old
        self._newest = BEGIN
        self._history: dict[str, list[tuple[datetime, str]]] = {}

    def at(self, tick: int) -> State:
        """Return what is shown at a tick; a minute passes with each."""
        while len(self._states) <= tick:
            last = self._states[-1]
            state = State(dict(last.shown), list(last.rejects))
            self._change(state, BEGIN + timedelta(minutes=len(self._states)))
            self._states.append(state)
        return self._states[tick]

    def throughout(self, first: int, last: int) -> State:
        """Return what is shown at each of these ticks, as it is shown at the last."""
        versions = [self.at(tick).versions() for tick in range(first, last + 1)]
        always = set.intersection(*versions)
        shown = self.at(last).shown
        return State({record_id: shown[record_id] for record_id, *_ in always})

    def _change(self, state: State, now: datetime) -> None:
        draw = self._random
        for _ in range(draw.choice([0, 1, 3, 8, 25])):
            self._values += 1
            kind = draw.choice(KINDS)
            if kind == "reject" and state.shown and len(state.rejects) < MOST_REJECTS:
                state.rejects.append(f"reject {self._values}")
                continue
            record_id, at, value = self._version(state, kind, now)
            state.shown.pop(record_id, None)  # what changed is the last that did
            state.shown[record_id] = (at, value)
            self._history.setdefault(record_id, []).append((at, value))
            if at < FUTURE:
                self._newest = max(self._newest, at)

    def _version(self, state: State, kind: str, now: datetime) -> tuple[str, datetime, str]:
        draw, reach = self._random, self._newest - OVERLAP
        new, value = f"r{self._values}", f"v{self._values}"
        known = [each for each, (at, _) in state.shown.items() if at >= reach]
        changed = draw.choice(known) if known else new
        at, _ = state.shown.get(changed, (now, ""))
        earlier = [each for each in self._history.get(changed, []) if each[0] >= reach]
        if kind == "tie":
            return new, self._newest, value
        if kind == "late":
            return new, self._newest - OVERLAP * draw.random(), value
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
        return new, now, value


class Ticks:
    """Share the present tick between processes that are forked from this one."""

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


async def serve_feed(feed: Feed, ticks: Ticks, manner: Manner, announce: int) -> None:
    """Serve the feed on a free port of loopback, for ever.

    Where it is pinned the first page says which tick it is from, and the pages after it are from
    the same. Its clock is that of the ticks.

    Args:
        feed: What is shown.
        ticks: The present tick.
        manner: How it is read.
        announce: The file descriptor that the port is written to.
    """
    draw = random.Random("answers")

    async def records(request: web.Request) -> web.StreamResponse:
        tick = int(request.query.get("tick", ticks.now))
        date = BEGIN + timedelta(minutes=tick, seconds=30)
        page, size = int(request.query["page"]), PAGE
        items = _items(feed.at(tick), request.query.get("start", ""))
        if manner.ordered:
            items.sort(key=lambda item: (item.get("at", "z"), item.get("id", "")))
        else:
            random.Random(tick).shuffle(items)
        some = items[page * size : (page + 1) * size]
        body = {"tick": tick, "items": some, "more": len(items) > (page + 1) * size}
        return await answered(request, body, date)

    async def listed(request: web.Request) -> web.StreamResponse:
        if ticks.coming and draw.random() < 0.15:
            ticks.coming -= 1
            ticks.now += 1
        query, tick = request.query, ticks.now
        items = _items(feed.at(tick), query.get("start", ""))
        if manner.order == "time":
            items.sort(key=lambda item: (item.get("at", ""), item.get("id", "")))
        elif manner.order == "newest":
            items.reverse()
        size = min(int(query.get("limit", PAGE)), manner.cap)
        page = int(query.get("page", 0))
        first = int(query.get("offset", page * size))
        body: dict[str, Any] = {"items": items[first : first + size]}
        if manner.has_total:
            body["total"] = len(items)
        if manner.paging == "next" and len(items) > first + size:
            body["next"] = str(request.rel_url.update_query(page=page + 1))
        return await answered(request, body, BEGIN + timedelta(minutes=tick, seconds=30))

    async def answered(request: web.Request, body: Any, date: datetime) -> web.StreamResponse:
        await asyncio.sleep(draw.random() * 0.004)
        if draw.random() < 0.02 and request.transport is not None:
            request.transport.close()
        headers = {"Date": format_datetime(date, usegmt=True)}
        return web.json_response(body, headers=headers)

    application = web.Application()
    application.router.add_get("/records", records)
    application.router.add_get("/list", listed)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    os.write(announce, f"{runner.addresses[0][1]}\n".encode())
    await asyncio.Event().wait()


def _items(state: State, start: str) -> list[dict[str, str]]:
    """Return what a state shows from an instant on, by its last change."""
    items = [{"note": each} for each in state.rejects]
    return items + [
        {"id": record_id, "at": at.isoformat(), "value": value}
        for record_id, (at, value) in state.shown.items()
        if not start or at >= datetime.fromisoformat(start)
    ]
