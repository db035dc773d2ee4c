"""The sample feed: an export in ThreatFox's format, served on loopback, with a real feed's habits.

Its indicators are addresses reserved for documentation; its times are relative to today, so that
nothing in it ages.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from aiohttp import web

NOW = datetime.now(UTC).replace(microsecond=0)


def instant(hours: float) -> str:
    """Return the instant ``hours`` ago as the feed writes it: without a zone."""
    return f"{NOW - timedelta(hours=hours):%Y-%m-%d %H:%M:%S}"


def indicator(number: int, first_seen: str, last_seen: str | None = None) -> dict[str, Any]:
    """Return one record of the feed."""
    return {
        "ioc_value": f"192.0.2.{number % 256}:{8000 + number}",
        "ioc_type": "ip:port",
        "threat_type": "botnet_cc",
        "malware_printable": "Example",
        "first_seen_utc": first_seen,
        "last_seen_utc": last_seen,
        "confidence_level": 75,
        "reporter": "example",
    }


def export(records: dict[int, dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Return ``records`` as the export arranges them: newest first, each in a list of its own."""
    return {str(number): [records[number]] for number in sorted(records, reverse=True)}


def states() -> list[dict[str, list[dict[str, Any]]]]:
    """Return what the feed shows, one after another."""
    # Ten share one instant; 30 carries its zone, the others none; 31 comes from the year 2099.
    records = {number: indicator(number, instant(10 - number / 10)) for number in range(20)}
    records |= {number: indicator(number, instant(7)) for number in range(20, 30)}
    records[30] = indicator(30, instant(7.5) + " UTC")
    records[31] = indicator(31, "2099-01-01 00:00:00")
    first = export(records)
    # 32 ties with the watermark, 33 comes four hours late, 5 and 25 were sighted again.
    records[32] = indicator(32, instant(7))
    records[33] = indicator(33, instant(11))
    records[5] = indicator(5, instant(9.5), last_seen=instant(6))
    records[25] = indicator(25, instant(7), last_seen=instant(6))
    records |= {number: indicator(number, instant(5)) for number in range(34, 40)}
    news = export(records)
    records |= {number: indicator(number, instant(3)) for number in range(40, 45)}
    more = export(records)
    records |= {number: indicator(number, instant(1)) for number in range(45, 48)}
    return [first, news, more, export(records)]


@dataclass
class Feed:
    """Serve what is shown at present, after the faults that are due."""

    shown: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    requests: int = 0
    faults: list[Callable[[web.Request], Awaitable[web.StreamResponse]]] = field(
        default_factory=list
    )
    before_answer: Callable[[], Awaitable[None]] | None = None

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """Answer with the present state, unless a fault comes first."""
        self.requests += 1
        if self.faults:
            return await self.faults.pop(0)(request)
        if self.before_answer:
            await self.before_answer()
        return web.json_response(self.shown)

    async def unavailable(self, _request: web.Request) -> web.StreamResponse:
        """Answer that the feed is overloaded, and when to come again."""
        return web.Response(status=503, headers={"Retry-After": "1"})

    async def cut_off(self, request: web.Request) -> web.StreamResponse:
        """Answer with half a document, and hang up."""
        body = json.dumps(self.shown).encode()
        response = web.StreamResponse(headers={"Content-Length": str(len(body))})
        await response.prepare(request)
        await response.write(body[: len(body) // 2])
        if request.transport:
            request.transport.close()
        return response

    @contextlib.asynccontextmanager
    async def served(self) -> AsyncIterator[str]:
        """Serve the feed on a free port of loopback, and give its address."""
        application = web.Application()
        application.router.add_get("/export/json/recent/", self.answer)
        runner = web.AppRunner(application)
        await runner.setup()
        try:
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            yield f"http://127.0.0.1:{runner.addresses[0][1]}/export/json/recent/"
        finally:
            await runner.cleanup()
