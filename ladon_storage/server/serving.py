"""The service as a whole: it opens its database, binds its address, and closes both in order.

A clean shutdown first stops listening, then finishes the requests in flight, and closes the
database last. It waits for the requests before it ends aiohttp: after that aiohttp reads nothing
more, and a body in transit would never arrive.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from aiohttp import web

from ladon_storage.errors import ConfigurationError
from ladon_storage.server.access import is_loopback
from ladon_storage.server.app import InFlight, create_service
from ladon_storage.server.connections import (
    BACKLOG,
    SWEEP_SECONDS,
    Connections,
    possible_connections,
)
from ladon_storage.server.metrics import ServiceMetrics
from ladon_storage.server.requests import BODY_TIMEOUT_SECONDS
from ladon_storage.server.responses import Protocol
from ladon_storage.server.retention import Retention
from ladon_storage.server.store import WatermarkDatabase
from ladon_storage.server.tls import LOOK_SECONDS, Certificate, Secured

logger = logging.getLogger(__name__)

ANSWER_SECONDS = 5.0
"""The longest time for a response after its request has arrived, during shutdown."""
PRUNE_SECONDS = 3600.0
"""The time between two looks at the history."""
LINGERING_SECONDS = 2.0
"""The time for which the rest of a refused body is read, to let its sender see the response."""


@asynccontextmanager
async def serving(
    database: Path | str,
    host: str = "127.0.0.1",
    port: int = 0,
    *,
    token: str | None = None,
    allowed_hosts: Sequence[str] = (),
    certificate: Certificate | None = None,
    retention: Retention = Retention(),  # noqa: B008 - immutable
    limits: Mapping[str, timedelta] | None = None,
    renewed_limits: Callable[[], Mapping[str, timedelta] | None] | None = None,
    prefect_url: str | None = None,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> AsyncIterator[str]:
    """Serve watermarks while the context lasts.

    On exit, requests in flight are finished, and all acknowledged changes are in the file.

    Args:
        database: The file, created if it does not exist, or the address of one in PostgreSQL.
        host: The address to listen on.
        port: The port; 0 lets the system choose one.
        token: The operator's bearer token; optional on a loopback address, and where the database
            has tokens.
        allowed_hosts: The names that the service has besides those of loopback, without a token.
        certificate: The certificate, for HTTPS.
        retention: How much history is kept.
        limits: The greatest age of each source that is no fault, by its name.
        renewed_limits: Called in a thread now and then; what it returns takes their place.
        prefect_url: The address of Prefect's UI, for links from the status page to runs.
        now: The service's clock, in UTC.

    Yields:
        The service's address, such as ``http://127.0.0.1:41233``, once it answers.

    Raises:
        ConfigurationError: The database, the address or the missing token.
    """
    is_local = is_loopback(host)
    needs_token = token is None and not is_local
    is_file = isinstance(database, Path)
    if needs_token and is_file and not await asyncio.to_thread(Path(database).exists):
        raise _no_token(host)
    store = await WatermarkDatabase.open(database, now)
    store.limits = limits or {}
    try:
        if needs_token and not store.has_tokens():
            raise _no_token(host)
        in_flight, metrics = InFlight(), ServiceMetrics()
        connections = Connections(possible_connections(), metrics.closed)
        service = create_service(
            store,
            token=token,
            allowed_hosts=allowed_hosts,
            is_local=is_local,
            prefect_url=prefect_url,
            in_flight=in_flight,
            metrics=metrics,
        )
        runner = web.AppRunner(service.app, shutdown_timeout=ANSWER_SECONDS)
        await runner.setup()
        assert runner.server is not None  # noqa: S101 - made by setup()
        runner.server.request_handler = service.straight(runner.server.request_handler)
        listener = None
        try:
            listener = await _listen(runner, host, port, connections, certificate)
            async with AsyncExitStack() as chores:
                chores.enter_context(connections.failed_accepts_counted())
                await chores.enter_async_context(_every(SWEEP_SECONDS, connections.sweep))
                await chores.enter_async_context(_every(PRUNE_SECONDS, store.prune, retention))
                if renewed_limits is not None:
                    renew = _renew(store, renewed_limits)
                    await chores.enter_async_context(_every(LOOK_SECONDS, renew))
                if certificate is not None:
                    await chores.enter_async_context(_every(LOOK_SECONDS, certificate.renew))
                yield _address(listener, secure=certificate is not None)
        finally:
            if listener is not None:
                listener.close()
                await in_flight.end(BODY_TIMEOUT_SECONDS + ANSWER_SECONDS)
            await runner.cleanup()
    finally:
        await store.close()


async def _listen(
    runner: web.AppRunner,
    host: str,
    port: int,
    connections: Connections,
    certificate: Certificate | None,
) -> asyncio.Server:
    server = runner.server
    assert server is not None  # noqa: S101 - made by setup()
    loop = asyncio.get_running_loop()
    # An access log would cost as much as the response; changes are logged, and requests counted.
    options: dict[str, Any] = {"access_log": None, "lingering_time": LINGERING_SECONDS}

    def protocol() -> asyncio.BaseProtocol:
        made = Protocol(connections, server, loop=loop, **options)
        return made if certificate is None else Secured(made, certificate.context)

    try:
        return await loop.create_server(protocol, host or None, port, backlog=BACKLOG)
    except (OSError, OverflowError, UnicodeError) as error:
        raise ConfigurationError(
            f"Cannot listen on {host!r} port {port} ({error}); choose another host or port."
        ) from error


def _renew(
    store: WatermarkDatabase, renewed: Callable[[], Mapping[str, timedelta] | None]
) -> Callable[[], Awaitable[None]]:
    """Return a chore that gives the store its limits when they changed."""

    async def renew() -> None:
        limits = await asyncio.to_thread(renewed)
        if limits is not None:
            store.limits = limits

    return renew


@asynccontextmanager
async def _every(
    seconds: float, chore: Callable[..., object], *arguments: object
) -> AsyncIterator[None]:
    """Do a chore now and then while the context lasts; one that fails is logged."""
    is_over = False

    async def repeat() -> None:
        # Before Python 3.12 a wait within a chore that has just ended swallows a cancellation.
        while not is_over:
            try:
                outcome = chore(*arguments)
                if isinstance(outcome, Awaitable):
                    await outcome
            except Exception:
                logger.exception("A chore of the service failed; it is tried again")
            if not is_over:
                await asyncio.sleep(seconds)

    repeating = asyncio.create_task(repeat())
    try:
        yield
    finally:
        is_over = True
        repeating.cancel()
        with suppress(asyncio.CancelledError):
            await repeating


def _address(listener: asyncio.Server, *, secure: bool) -> str:
    host, port = listener.sockets[0].getsockname()[:2]
    scheme = "https" if secure else "http"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def _no_token(host: str) -> ConfigurationError:
    return ConfigurationError(
        f"{host or 'Every address'} can be reached from elsewhere, and there is no token; set "
        "STORAGE_SERVICE_TOKEN or --token-file, add a token, or listen on 127.0.0.1."
    )
