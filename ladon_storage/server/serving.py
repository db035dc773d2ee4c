"""The service as a whole: it opens its database, binds its address, and closes both in order.

A clean shutdown first stops listening, then finishes the requests in flight, and closes the
database last. It waits for the requests before it ends aiohttp: after that aiohttp reads nothing
more, and a body in transit would never arrive.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from aiohttp import web

from ladon_storage.errors import ConfigurationError
from ladon_storage.server.app import InFlight, create_app
from ladon_storage.server.connections import BACKLOG, Connections, possible_connections
from ladon_storage.server.metrics import ServiceMetrics
from ladon_storage.server.requests import BODY_TIMEOUT_SECONDS
from ladon_storage.server.responses import Protocol
from ladon_storage.server.store import WatermarkDatabase

ANSWER_SECONDS = 5.0
"""The longest time for a response after its request has arrived, during shutdown."""
LINGERING_SECONDS = 2.0
"""The time for which the rest of a refused body is read, to let its sender see the response."""


@asynccontextmanager
async def serving(
    database: Path,
    host: str = "127.0.0.1",
    port: int = 0,
    *,
    token: str | None = None,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> AsyncIterator[str]:
    """Serve watermarks while the context lasts.

    On exit, requests in flight are finished, and all acknowledged changes are in the file.

    Args:
        database: The file; created if it does not exist.
        host: The address to listen on.
        port: The port; 0 lets the system choose one.
        token: The bearer token of requests; optional on a loopback address only.
        now: The service's clock, in UTC.

    Yields:
        The service's address, such as ``http://127.0.0.1:41233``, once it answers.

    Raises:
        ConfigurationError: The database, the address or the missing token.
    """
    if token is None and not _is_loopback(host):
        raise ConfigurationError(
            f"{host or 'Every address'} can be reached from elsewhere, and there is no token; set "
            "STORAGE_SERVICE_TOKEN or --token-file, or listen on 127.0.0.1."
        )
    store = await WatermarkDatabase.open(database, now)
    try:
        in_flight, metrics = InFlight(), ServiceMetrics()
        connections = Connections(possible_connections(), metrics.closed)
        app = create_app(store, token=token, in_flight=in_flight, metrics=metrics)
        runner = web.AppRunner(app, shutdown_timeout=ANSWER_SECONDS)
        await runner.setup()
        listener = None
        try:
            listener = await _listen(runner, host, port, connections)
            with connections.watched():
                yield _address(listener)
        finally:
            if listener is not None:
                listener.close()
                await in_flight.end(BODY_TIMEOUT_SECONDS + ANSWER_SECONDS)
            await runner.cleanup()
    finally:
        await store.close()


async def _listen(
    runner: web.AppRunner, host: str, port: int, connections: Connections
) -> asyncio.Server:
    server = runner.server
    assert server is not None  # noqa: S101 - made by setup()
    loop = asyncio.get_running_loop()
    # An access log would cost as much as the response; changes are logged, and requests counted.
    options: dict[str, Any] = {"access_log": None, "lingering_time": LINGERING_SECONDS}

    def protocol() -> Protocol:
        return Protocol(connections, server, loop=loop, **options)

    try:
        return await loop.create_server(protocol, host or None, port, backlog=BACKLOG)
    except (OSError, OverflowError, UnicodeError) as error:
        raise ConfigurationError(
            f"Cannot listen on {host!r} port {port} ({error}); choose another host or port."
        ) from error


def _address(listener: asyncio.Server) -> str:
    host, port = listener.sockets[0].getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
