"""How the feed is served: at one tick from the first page to the last, or as most lists are.

By pages that are counted, while the ticks go on and what changes goes to the end, or to the front;
and sometimes an answer is cut off.
"""

from __future__ import annotations

import asyncio
import os
import random
from dataclasses import dataclass
from datetime import datetime
from email.utils import format_datetime
from typing import Any, Literal

from aiohttp import web

from ladon_storage.testing.judging.ticking_feed import State, TickingFeed, Ticks

PAGE = 10

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


async def serve_feed(feed: TickingFeed, ticks: Ticks, manner: Manner, announce: int) -> None:
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
        page, size = int(request.query["page"]), PAGE
        items = _items(feed.at(tick), request.query.get("start", ""))
        if manner.ordered:
            items.sort(key=lambda item: (item.get("at", "z"), item.get("id", "")))
        else:
            random.Random(tick).shuffle(items)
        some = items[page * size : (page + 1) * size]
        body = {"tick": tick, "items": some, "more": len(items) > (page + 1) * size}
        return await answered(request, body, feed.clock(tick))

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
        return await answered(request, body, feed.clock(tick))

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
