"""The service as a whole: its database opened, its address bound, and both let go in order.

It ends as it should when it stops listening first, then finishes the requests in flight, and
closes the database last. The requests are waited for before aiohttp is told to end: from then on
it reads nothing more, and a body that is still on its way would never arrive.
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
from ladon_storage.server.requests import BODY_TIMEOUT_SECONDS
from ladon_storage.server.responses import Protocol
from ladon_storage.server.store import WatermarkDatabase

ANSWER_SECONDS = 5.0
"""How long an answer may take once its request has arrived, when the service ends."""
LINGERING_SECONDS = 2.0
"""How long the rest of a body that nobody wants is read, so that its sender sees the answer."""


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

    On leaving, requests in flight are finished, and everything that was answered is in the file.

    Args:
        database: The file; created if it does not exist.
        host: The address to listen on.
        port: The port; 0 lets the system choose one.
        token: What requests must carry; may be left out on a loopback address only.
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
        in_flight = InFlight()
        runner = web.AppRunner(
            create_app(store, token=token, in_flight=in_flight), shutdown_timeout=ANSWER_SECONDS
        )
        await runner.setup()
        listener = None
        try:
            listener = await _listen(runner, host, port)
            yield _address(listener)
        finally:
            if listener is not None:
                listener.close()
                await in_flight.end(BODY_TIMEOUT_SECONDS + ANSWER_SECONDS)
            await runner.cleanup()
    finally:
        await store.close()


async def _listen(runner: web.AppRunner, host: str, port: int) -> asyncio.Server:
    server = runner.server
    assert server is not None  # noqa: S101 - made by setup()
    loop = asyncio.get_running_loop()
    # An access log would cost as much as the answer; changes are logged, and requests counted.
    options: dict[str, Any] = {"access_log": None, "lingering_time": LINGERING_SECONDS}

    def protocol() -> Protocol:
        return Protocol(server, loop=loop, **options)

    try:
        return await loop.create_server(protocol, host or None, port, backlog=1024)
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
