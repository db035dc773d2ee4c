"""A client's connections: one aiohttp session for each event loop, and how it ends.

- A session belongs to the loop on which it was made, so a client keeps one for each. It is closed
  by `SessionPools.close`, or with its loop: an async generator that owns it is closed by
  ``loop.shutdown_asyncgens()``, which ``asyncio.run`` and every other runner calls. What is left
  of loops that never ended in order is dropped silently when the process exits.
- Requests wait for a slot here, not in aiohttp's connector: such a wait is ours, says nothing about
  the service, and must be told from a service that does not accept connections.
"""

from __future__ import annotations

import asyncio
import ssl
import threading
import weakref
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from os import PathLike
from typing import Any

import aiohttp

from ladon_storage import metrics
from ladon_storage.errors import ConfigurationError, PoolTimeoutError

DNS_CACHE_SECONDS = 300

FilePath = str | PathLike[str]


class Pool:
    """Hold the session of one event loop, and count its slots."""

    def __init__(self, session: aiohttp.ClientSession, slots: int) -> None:
        self.session = session
        self.active = 0
        self._slots = slots
        self._semaphore = asyncio.Semaphore(slots)
        self.owner: AsyncGenerator[None, None] | None = None
        metrics.pools.add(self)

    @property
    def idle(self) -> int:
        """Connections at rest."""
        # aiohttp tells nobody how many connections it keeps.
        resting = getattr(self.session.connector, "_conns", {})
        return sum(len(connections) for connections in list(resting.values()))

    @asynccontextmanager
    async def slot(self, seconds: float) -> AsyncIterator[None]:
        """Hold one of the slots.

        Raises:
            PoolTimeoutError: None became free within ``seconds``.
        """
        if self._semaphore.locked():
            try:
                async with asyncio.timeout(seconds):
                    await self._semaphore.acquire()
            except TimeoutError:
                raise PoolTimeoutError(
                    f"None of the client's {self._slots} connections became free within "
                    f"{seconds:g} s; raise max_connections and max_connections_per_host, or call "
                    "it less at once."
                ) from None
        else:
            await self._semaphore.acquire()
        self.active += 1
        try:
            yield
        finally:
            self.active -= 1
            self._semaphore.release()


class SessionPools:
    """Make a `Pool` for each event loop on demand.

    Args:
        slots: Requests under way at once on one loop.
        tls: What ``TCPConnector`` takes as ``ssl``.
        session_options: The rest of what a ``ClientSession`` takes.
    """

    def __init__(
        self,
        max_connections: int,
        max_connections_per_host: int,
        tls: ssl.SSLContext | bool,
        session_options: dict[str, Any],
    ) -> None:
        self._max_connections = max_connections
        self._max_connections_per_host = max_connections_per_host
        self._tls = tls
        self._session_options = session_options
        self._pools: dict[asyncio.AbstractEventLoop, Pool] = {}
        self._lock = threading.Lock()
        weakref.finalize(self, _drop_all, self._pools)

    async def get(self) -> Pool:
        """Return the running loop's pool, a new one where there is none with an open session."""
        loop = asyncio.get_running_loop()
        pool = self._pools.get(loop)
        if pool is not None and not pool.session.closed:
            return pool
        connector = aiohttp.TCPConnector(
            limit=self._max_connections,
            limit_per_host=self._max_connections_per_host,
            ssl=self._tls,
            ttl_dns_cache=DNS_CACHE_SECONDS,
        )
        session = aiohttp.ClientSession(
            connector=connector, cookie_jar=aiohttp.DummyCookieJar(), **self._session_options
        )
        pool = Pool(session, min(self._max_connections, self._max_connections_per_host))
        pool.owner = self._own(loop, pool)
        with self._lock:
            for other in [each for each in self._pools if each.is_closed()]:
                _drop(self._pools.pop(other).session)
            self._pools[loop] = pool
        # Begins the generator, so that the loop knows it; there is no other await between the look
        # into the dictionary and the entry, so two tasks never make two pools.
        await anext(pool.owner)
        return pool

    async def close(self) -> None:
        """Close the running loop's pool, if there is one; the next request makes another."""
        pool = self._pools.get(asyncio.get_running_loop())
        if pool is not None and pool.owner is not None:
            await pool.owner.aclose()

    async def _own(self, loop: asyncio.AbstractEventLoop, pool: Pool) -> AsyncGenerator[None, None]:
        try:
            yield
        finally:
            with self._lock:
                if self._pools.get(loop) is pool:
                    del self._pools[loop]
            await pool.session.close()


def _drop_all(pools: dict[asyncio.AbstractEventLoop, Pool]) -> None:
    for pool in list(pools.values()):
        _drop(pool.session)


def _drop(session: aiohttp.ClientSession) -> None:
    """Give up a session whose loop will not run again, without a word."""
    connector = session.connector
    session.detach()
    if connector is not None:
        # Its public close() is a coroutine, and no loop runs that could await it.
        connector._close()  # noqa: SLF001


def tls_context(
    *,
    verify: bool,
    ca_file: FilePath | None,
    client_cert: FilePath | None,
    client_key: FilePath | None,
) -> ssl.SSLContext | bool:
    """Return what ``TCPConnector`` takes as ``ssl``.

    Raises:
        ConfigurationError: A file cannot be read, or holds something else; none is quoted.
    """
    if ca_file is None and client_cert is None and client_key is None:
        return verify
    if client_key is not None and client_cert is None:
        raise ConfigurationError("client_key is set without client_cert; set both.")
    try:
        context = ssl.create_default_context(cafile=ca_file)
    except OSError as error:  # an SSLError is one
        raise _unusable("ca_file", ca_file, error) from None
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if client_cert is not None:
        try:
            # An empty password: OpenSSL would otherwise ask for one at the terminal.
            context.load_cert_chain(client_cert, client_key, password="")
        except OSError as error:
            raise _unusable("client_cert or client_key", client_cert, error) from None
    return context


def _unusable(argument: str, file: FilePath | None, error: OSError) -> ConfigurationError:
    return ConfigurationError(
        f"{argument} {str(file)!r} cannot be used ({error.strerror or error}); "
        "name a readable PEM file."
    )
