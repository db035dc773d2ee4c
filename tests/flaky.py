"""The embedded Storage Service with faults on demand, and a note of every request."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from threading import Event

from aiohttp import web
from aiohttp.typedefs import Handler

from ladon_storage.server.app import create_service
from ladon_storage.server.store import WatermarkDatabase


@dataclass
class Flaky:
    """Be a running service; ``fault`` gives the status to fail a request with, or ``None``."""

    url: str = ""
    fault: Callable[[str, str], int | None] = lambda _method, _body: None
    lost: str | None = None
    calls: list[str] = field(default_factory=list)
    connections: set[object] = field(default_factory=set)

    def fail(self, status: int, *methods: str, times: int = 10**9, body: str = "") -> None:
        """Answer the next requests of these methods, whose body has this text, with ``status``."""
        left = times

        def fault(method: str, sent: str) -> int | None:
            nonlocal left
            if method not in methods or body not in sent or not left:
                return None
            left -= 1
            return status

        self.fault = fault

    def lose_one_answer(self, body: str) -> None:
        """Handle the next request whose body has this text, and hang up instead of answering."""
        self.lost = body

    def heal(self) -> None:
        """Answer everything again."""
        self.fault = lambda _method, _body: None

    @web.middleware
    async def middleware(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        body = (await request.read()).decode()
        name = "HEALTH" if request.path == "/health" else request.method
        self.calls.append(name)
        self.connections.add(request.transport)
        status = self.fault(name, body)
        if status is not None:
            return web.json_response({"error": "out of order", "field": None}, status=status)
        response = await handler(request)
        if self.lost and self.lost in body and request.transport:
            self.lost = None
            request.transport.abort()
        return response


@contextmanager
def flaky_service(
    database: Path,
    *,
    token: str | None = None,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> Iterator[Flaky]:
    """Run the service over ``database`` on a free port of loopback.

    It has a thread of its own: a flow that waits for submitted tasks blocks its event loop.
    """
    flaky = Flaky()
    ready, leave = Event(), Event()

    async def serve() -> None:
        store = await WatermarkDatabase.open(database, now)
        app = create_service(store, token=token).app
        app.middlewares.insert(0, flaky.middleware)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
        try:
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            flaky.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
            ready.set()
            await asyncio.to_thread(leave.wait)
        finally:
            await runner.cleanup()
            await store.close()

    with ThreadPoolExecutor(1) as threads:
        serving = threads.submit(asyncio.run, serve())
        try:
            assert ready.wait(30) or serving.result(0)
            yield flaky
        finally:
            leave.set()
        serving.result(30)
