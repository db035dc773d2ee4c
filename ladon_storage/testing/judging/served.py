"""The feed that judged collectors read: an HTTP server in a process of its own, with faults.

``GET /records?since=2024-01-01T00:00:00+00:00`` answers

.. code-block:: json

    {"now": "…", "items": [{"id": "r1", "updated_at": "…", "value": "v1"}], "next": "http://…"}

with the items of ``updated_at >= since``, by their time, ten a page. ``next`` is the address of the
next page of the same reading; on the last page it is null. ``now`` is the clock of the feed, which
the header ``Date`` has as well. An unusable item has a note, and neither an id nor a time.
"""

from __future__ import annotations

import asyncio
import json
import mmap
import os
import struct
from datetime import datetime
from email.utils import format_datetime
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from aiohttp import web

from ladon_storage.testing.judging.ticking_feed import State, TickingFeed
from ladon_storage.testing.processes import Nursery

PAGE_ITEMS = 10

FAULTS = ("none", "503", "429", "cut off", "torn JSON", "an error in JSON")
"""The faults of a feed: two that ask for patience, one of the network, two of the content."""


class Controls:
    """The tick and the fault of a feed, which its process and the judge share."""

    _FORM = "qqqqq"

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, struct.calcsize(self._FORM))

    def set(self, tick: int, fault: str = "none", nth: int = 0, times: int = 0) -> None:
        """Set the tick, and the fault that the requests from the nth on meet, so many times."""
        values = (tick, FAULTS.index(fault), nth, times, 0)
        self._memory[:] = struct.pack(self._FORM, *values)

    @property
    def tick(self) -> int:
        """The present tick."""
        return self._read()[0]

    @property
    def requests(self) -> int:
        """The number of requests since the last setting."""
        return self._read()[4]

    def met(self) -> str:
        """Count a request, and return the fault that it meets."""
        tick, fault, nth, times, requests = self._read()
        self._memory[:] = struct.pack(self._FORM, tick, fault, nth, times, requests + 1)
        return FAULTS[fault] if nth <= requests < nth + times else FAULTS[0]

    def _read(self) -> tuple[int, ...]:
        return struct.unpack(self._FORM, self._memory[:])


class ServedFeed:
    """A feed that is served until the block ends.

    Args:
        feed: Its content.
        nursery: Starts its process.
        log: The file of its errors.
    """

    def __init__(self, feed: TickingFeed, nursery: Nursery, log: Path) -> None:
        self.controls = Controls()
        self._feed = feed
        self._nursery = nursery
        self._log = log

    def __enter__(self) -> Self:
        self._child = self._nursery.fork(partial(_serve, self._feed, self.controls), self._log)
        self.url = f"http://127.0.0.1:{int(self._child.line())}/records"
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._child.kill()


def _serve(feed: TickingFeed, controls: Controls, pipe: int) -> None:
    asyncio.run(_serve_for_ever(feed, controls, pipe))


async def _serve_for_ever(feed: TickingFeed, controls: Controls, pipe: int) -> None:
    async def records(request: web.Request) -> web.StreamResponse:
        fault = controls.met()
        tick = int(request.query.get("tick", controls.tick))
        page, since = int(request.query.get("page", 0)), request.query.get("since", "")
        items = items_of(feed.at(tick), since)
        first, last = page * PAGE_ITEMS, (page + 1) * PAGE_ITEMS
        following = request.url.update_query(tick=tick, page=page + 1, since=since)
        now = feed.clock(tick)
        document = {
            "now": now.isoformat(),
            "items": items[first:last],
            "next": str(following) if len(items) > last else None,
        }
        return await _answered(request, json.dumps(document).encode(), fault, now)

    application = web.Application()
    application.router.add_get("/records", records)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    os.write(pipe, f"{runner.addresses[0][1]}\n".encode())
    await asyncio.Event().wait()


async def _answered(
    request: web.Request, body: bytes, fault: str, now: datetime
) -> web.StreamResponse:
    headers = {"Date": format_datetime(now, usegmt=True), "Content-Type": "application/json"}
    match fault:
        case "503":
            return web.Response(status=503, text="out of order")
        case "429":
            return web.Response(status=429, headers={"Retry-After": "0"}, text="too many requests")
        case "torn JSON":
            return web.Response(body=body[: len(body) * 2 // 3], headers=headers)
        case "an error in JSON":
            return web.Response(body=b'{"error": "over quota"}', headers=headers)
        case "cut off":
            response = web.StreamResponse(headers=headers)
            response.content_length = len(body)
            await response.prepare(request)
            await response.write(body[: len(body) // 2])
            if request.transport is not None:
                request.transport.close()
            return response
        case _:
            return web.Response(body=body, headers=headers)


def items_of(state: State, since: str = "") -> list[dict[str, Any]]:
    """Return the items of a feed from an instant on, by their time, the unusable ones first."""
    start = datetime.fromisoformat(since) if since else None
    shown = sorted((at, record_id, value) for record_id, (at, value) in state.shown.items())
    unusable: list[dict[str, Any]] = [{"note": each} for each in state.rejects]
    return unusable + [
        {"id": record_id, "updated_at": at.isoformat(), "value": value}
        for at, record_id, value in shown
        if start is None or at >= start
    ]
