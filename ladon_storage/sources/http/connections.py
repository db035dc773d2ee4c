"""The connections of a source: its session, its proxy and certificates, and what runs share."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from contextvars import ContextVar

import aiohttp
from yarl import URL

from ladon_storage.client.pool import MAX_HEADER_BYTES, tls_context
from ladon_storage.collection.credentials import resolve_secret
from ladon_storage.collection.json_values import as_sent
from ladon_storage.sources.fields import Connection
from ladon_storage.sources.http.decompression import ACCEPTED
from ladon_storage.sources.http.proxies import proxies_kept
from ladon_storage.sources.http.transport import Route

# The total ends an answer that trickles in for ever, which no timeout of a single read does.
_TIMEOUT = aiohttp.ClientTimeout(total=300, sock_connect=30, sock_read=60)

_shared: ContextVar[aiohttp.BaseConnector | None] = ContextVar("_shared", default=None)


@asynccontextmanager
async def shared_connections() -> AsyncIterator[None]:
    """Let the runs in this context share connections to the same hosts, but nothing else.

    Opening a connection for each of a thousand runs takes as long as their requests.
    """
    async with aiohttp.TCPConnector() as connector:
        token = _shared.set(connector)
        try:
            with proxies_kept():
                yield
        finally:
            _shared.reset(token)


def open_session(connection: Connection) -> aiohttp.ClientSession:
    """Return the session of one run, which leaves shared connections open when it is closed."""
    shared = _shared.get()
    return aiohttp.ClientSession(
        timeout=_timeout(connection),
        headers={
            "User-Agent": "ladon-storage",
            "Accept": "application/json",
            "Accept-Encoding": ACCEPTED,
        },
        json_serialize=as_sent,
        auto_decompress=False,
        max_line_size=MAX_HEADER_BYTES,
        max_field_size=MAX_HEADER_BYTES,
        connector=shared,
        connector_owner=shared is None,
    )


async def route_of(source_id: str, connection: Connection) -> Route:
    """Return the proxy, the certificates and the permitted redirects of a connection.

    Raises:
        ConfigurationError: It names a file or a secret that cannot be used.
    """
    tls = tls_context(
        verify=True,
        ca_file=connection.ca_file,
        client_cert=connection.client_cert,
        client_key=connection.client_key,
    )
    proxy = None
    if connection.proxy is not None:
        proxy = URL(connection.proxy)
        if connection.proxy_user:
            proxy = proxy.with_user(connection.proxy_user)
        if connection.proxy_password is not None:
            proxy = proxy.with_password(await resolve_secret(connection.proxy_password, source_id))
    return Route(proxy, tls, connection.redirects_to)


def _timeout(connection: Connection) -> aiohttp.ClientTimeout:
    seconds = connection.timeout
    if seconds is None:
        return _TIMEOUT
    return aiohttp.ClientTimeout(total=seconds, sock_connect=min(30.0, seconds), sock_read=seconds)
