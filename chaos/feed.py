"""The feed that is collected: what it shows at each tick is a function of the seed alone.

It has the habits of real ones: ties, records that become visible late, updates under an unchanged
timestamp and under a new one, records from the future, records without an id, answers that are cut
off. Nothing comes later than the overlap, so that all that it ever shows at a tick is due.
"""

from __future__ import annotations

import asyncio
import json
import mmap
import os
import random
import struct
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from aiohttp import web

BEGIN = datetime(2024, 1, 1, tzinfo=UTC)
OVERLAP = timedelta(minutes=5)
FUTURE = datetime(2099, 1, 1, tzinfo=UTC)
PAGE = 10
MOST_REJECTS = 8
"""Fewer than what makes a run refuse its feed."""

Version = tuple[str, str]
"""An id and a value; each value is shown once."""


@dataclass
class State:
    """Be what the feed shows at a tick: instants and values by id, and what is unusable."""

    shown: dict[str, tuple[datetime, str]] = field(default_factory=dict)
    rejects: list[str] = field(default_factory=list)

    def versions(self, before: datetime | None = None) -> set[Version]:
        """Return the versions that are shown, or those of them from before an instant."""
        return {
            (record_id, value)
            for record_id, (at, value) in self.shown.items()
            if before is None or at < before
        }


class Feed:
    """Tell what is shown at each tick.

    Args:
        seed: Whatever comes of it is always the same.
    """

    def __init__(self, seed: str) -> None:
        self._random = random.Random(f"{seed}/feed")
        self._states = [State()]
        self._values = 0

    def at(self, tick: int) -> State:
        """Return what is shown at a tick; a minute passes with each."""
        while len(self._states) <= tick:
            last = self._states[-1]
            state = State(dict(last.shown), list(last.rejects))
            self._change(state, BEGIN + timedelta(minutes=len(self._states)))
            self._states.append(state)
        return self._states[tick]

    def _change(self, state: State, now: datetime) -> None:
        draw = self._random
        newest = max((at for at, _ in state.shown.values() if at < FUTURE), default=now)
        for _ in range(draw.choice([0, 1, 3, 8, 25])):
            self._values += 1
            record_id, at = f"r{self._values}", now
            kind = draw.choice(["new", "new", "tie", "late", "update", "moved", "future", "reject"])
            known = [each for each, (at, _) in state.shown.items() if at >= newest - OVERLAP]
            if kind == "tie":
                at = newest
            elif kind == "late":
                at = newest - OVERLAP * draw.random()
            elif kind == "future" and draw.random() < 0.2:
                at = FUTURE
            elif kind == "reject" and len(state.rejects) < MOST_REJECTS:
                state.rejects.append(f"reject {self._values}")
                continue
            elif kind in ("update", "moved") and known:
                record_id = draw.choice(known)
                at = state.shown[record_id][0] if kind == "update" else now
                at = max(at, state.shown[record_id][0])
            state.shown[record_id] = (at, f"v{self._values}")


class Ticks:
    """Share the present tick between processes that are forked from this one."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, 8)

    @property
    def now(self) -> int:
        """The present tick."""
        return int(struct.unpack("q", self._memory[:8])[0])

    @now.setter
    def now(self, tick: int) -> None:
        self._memory[:8] = struct.pack("q", tick)


async def serve_feed(feed: Feed, ticks: Ticks, ordered: bool, announce: int) -> None:
    """Serve the feed on a free port of loopback, for ever.

    The first page says which tick it is from, and the pages after it are from the same.

    Args:
        feed: What is shown.
        ticks: The present tick.
        ordered: Whether pages come by time, or in any order.
        announce: The file descriptor that the port is written to.
    """
    draw = random.Random("answers")

    async def records(request: web.Request) -> web.StreamResponse:
        start = request.query.get("start", "")
        tick = int(request.query.get("tick", ticks.now))
        page = int(request.query["page"])
        state = feed.at(tick)
        items = [
            {"id": record_id, "at": at.isoformat(), "value": value}
            for record_id, (at, value) in state.shown.items()
            if not start or at >= datetime.fromisoformat(start)
        ]
        if ordered:
            items.sort(key=lambda item: (item["at"], item["id"]))
        else:
            random.Random(tick).shuffle(items)
        items += [{"note": each} for each in state.rejects]
        some = items[page * PAGE : (page + 1) * PAGE]
        body = json.dumps({"tick": tick, "items": some, "more": len(items) > (page + 1) * PAGE})
        await asyncio.sleep(draw.random() * 0.004)
        if draw.random() < 0.02 and request.transport is not None:
            request.transport.close()
        return web.Response(text=body, content_type="application/json")

    application = web.Application()
    application.router.add_get("/records", records)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    os.write(announce, f"{runner.addresses[0][1]}\n".encode())
    await asyncio.Event().wait()
