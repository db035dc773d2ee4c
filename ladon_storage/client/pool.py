"""A client's connections: one aiohttp session for each event loop, closed with its loop.

- A session belongs to the loop on which it was made, so a client keeps one for each. It is closed
  by `SessionPools.close`, or with its loop: an async generator that owns it is closed by
  ``loop.shutdown_asyncgens()``, which ``asyncio.run`` and every other runner calls. Sessions of
  loops that never ended in order are dropped silently when the process exits.
- Requests wait for a slot here, not in aiohttp's connector. Such a wait is the client's own, says
  nothing about the service, and must differ from a service that does not accept connections.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import ssl
import weakref
from collections import deque
from collections.abc import AsyncGenerator
from os import PathLike
from typing import Any

import aiohttp

from ladon_storage.client import metrics
from ladon_storage.errors import ConfigurationError, PoolTimeoutError

DNS_CACHE_SECONDS = 300

MAX_HEADER_BYTES = 2**16
"""Bytes of one header: a policy, a cookie or a cursor in it is longer than aiohttp's default."""

FilePath = str | PathLike[str]

# Pools whose sessions are open; the code that closes one takes it out.
_open: set[Pool] = set()


class Pool:
    """The session of one event loop, with slots that are handed out in the order of waiting."""

    def __init__(self, session: aiohttp.ClientSession, slots: int) -> None:
        self.session = session
        self.owner: AsyncGenerator[None, None] | None = None
        self._slots = slots
        self._free = slots
        self._waiting: deque[tuple[float, asyncio.Future[bool]]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        _open.add(self)
        metrics.watch_pool(self)

    @property
    def active(self) -> int:
        """Slots in use."""
        return self._slots - self._free

    @property
    def idle(self) -> int:
        """Idle connections."""
        # aiohttp does not publish how many connections it keeps.
        resting = getattr(self.session.connector, "_conns", {})
        return sum(len(connections) for connections in list(resting.values()))

    def take_free(self) -> bool:
        """Take a slot, to be given back with `give`, if one is free; return whether it was."""
        if not self._free:
            return False
        self._free -= 1
        return True

    async def take(self, seconds: float) -> None:
        """Take a slot, to be given back with `give`.

        Raises:
            PoolTimeoutError: None became free within ``seconds``.
        """
        if self.take_free():
            return
        waiter = self._wait(seconds)
        try:
            in_time = await waiter
        except BaseException:
            if waiter.done() and not waiter.cancelled() and waiter.result():
                self.give()  # the slot came at the same time
            waiter.cancel()
            raise
        if not in_time:
            raise PoolTimeoutError(
                f"None of the client's {self._slots} connections became free within "
                f"{seconds:g} s; raise max_connections and max_connections_per_host, or call "
                "it less at once."
            )

    def _wait(self, seconds: float) -> asyncio.Future[bool]:
        """Join the queue; the future's result is whether a slot came in time."""
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[bool] = loop.create_future()
        deadline = loop.time() + seconds
        self._waiting.append((deadline, waiter))
        # One timer for all: with more calls at once than slots, nearly every call waits a little,
        # and a timer for each would cost as much as taking the slot.
        if self._timer is None or deadline < self._timer.when():
            self._expire_at(deadline, loop)
        return waiter

    def _expire_at(self, deadline: float, loop: asyncio.AbstractEventLoop) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = loop.call_at(deadline, self._expire, loop)

    def _expire(self, loop: asyncio.AbstractEventLoop) -> None:
        """End the waits whose time is up, and set the timer for the next one."""
        assert self._timer is not None  # noqa: S101 - it called
        now, self._timer = self._timer.when(), None
        for deadline, waiter in self._waiting:
            if deadline <= now and not waiter.done():
                waiter.set_result(False)
        self._waiting = deque(each for each in self._waiting if not each[1].done())
        if self._waiting:
            self._expire_at(min(deadline for deadline, _ in self._waiting), loop)

    def give(self) -> None:
        """Give a slot back, to the longest waiting call if there is one."""
        while self._waiting:
            _, waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(True)
                return
        self._free += 1

    def has_answered(self) -> None:
        """Let aiohttp repeat requests whose idle connection was closed."""
        self.session._retry_connection = True  # noqa: SLF001

    def forget_addresses(self) -> None:
        """Let the next connection look the host's name up again: it may be at another address."""
        if isinstance(self.session.connector, aiohttp.TCPConnector):
            self.session.connector.clear_dns_cache()

    def drop(self) -> None:
        """Drop the session silently when its loop will not run again."""
        _open.discard(self)
        connector = self.session.connector
        self.session.detach()
        if connector is not None:
            _cut(connector)
        if self.owner is not None:
            # With the session gone it has nothing to wait for.
            with contextlib.suppress(StopIteration, RuntimeError):
                self.owner.aclose().send(None)


def _cut(connector: aiohttp.BaseConnector) -> None:
    """Close the connections of a connector at once; an orderly close needs its loop."""
    protocols = [each for at_rest in connector._conns.values() for each, _ in at_rest]  # noqa: SLF001
    protocols += connector._acquired  # noqa: SLF001
    connector._conns.clear()  # noqa: SLF001
    connector._acquired.clear()  # noqa: SLF001
    for protocol in protocols:
        transport: Any = protocol.transport
        # That of TLS has the one of its socket inside.
        transport = getattr(getattr(transport, "_ssl_protocol", None), "_transport", transport)
        sock = getattr(transport, "_sock", None)
        if sock is not None:
            transport._sock = None  # noqa: SLF001
            sock.close()


@atexit.register
def _drop_what_is_left() -> None:
    for pool in list(_open):
        pool.drop()


class SessionPools:
    """A `Pool` for each event loop, made on demand.

    Args:
        max_connections: The most requests in flight at once on one loop.
        max_connections_per_host: The same for one host.
        tls: The argument ``ssl`` of ``TCPConnector``.
        session_options: The other arguments of ``ClientSession``.
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
        weakref.finalize(self, _abandon, self._pools).atexit = False

    def take_free(self) -> Pool | None:
        """Take a slot of the running loop's pool if that has a free one."""
        pool = self._pools.get(asyncio.get_running_loop())
        if pool is None or pool.session.closed or not pool.take_free():
            return None
        return pool

    async def take(self, seconds: float) -> Pool:
        """Take a slot of the running loop's pool, which is made if none is open.

        Raises:
            PoolTimeoutError: None became free within ``seconds``.
        """
        loop = asyncio.get_running_loop()
        while True:
            pool = self._pools.get(loop)
            if pool is None or pool.session.closed:
                pool = await self._make(loop)
            await pool.take(seconds)
            if not pool.session.closed:
                return pool
            pool.give()  # closed while this one waited

    async def _make(self, loop: asyncio.AbstractEventLoop) -> Pool:
        for other in list(self._pools):
            # The thread that takes it out drops it: other threads do the same.
            if other.is_closed() and (left := self._pools.pop(other, None)):
                left.drop()
        connector = aiohttp.TCPConnector(
            limit=self._max_connections,
            limit_per_host=self._max_connections_per_host,
            ssl=self._tls,
            ttl_dns_cache=DNS_CACHE_SECONDS,
        )
        session = aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            max_line_size=MAX_HEADER_BYTES,
            max_field_size=MAX_HEADER_BYTES,
            **self._session_options,
        )
        # aiohttp repeats a request whose connection was closed, also on a new one. Before anything
        # has answered, that would double the connections to a service that is down.
        session._retry_connection = False  # noqa: SLF001
        pool = Pool(session, min(self._max_connections, self._max_connections_per_host))
        pool.owner = _own(self._pools, loop, pool)
        self._pools[loop] = pool
        # Begins the generator, so that the loop knows it. It does not let other tasks run, so two
        # of them never make two pools.
        await anext(pool.owner)
        return pool

    async def close(self) -> None:
        """Close the running loop's pool, if there is one; the next request makes another."""
        pool = self._pools.get(asyncio.get_running_loop())
        if pool is not None and pool.owner is not None:
            await pool.owner.aclose()


async def _own(
    pools: dict[asyncio.AbstractEventLoop, Pool], loop: asyncio.AbstractEventLoop, pool: Pool
) -> AsyncGenerator[None, None]:
    # Not a method: it must not keep the client alive.
    try:
        yield
    finally:
        _open.discard(pool)
        if pools.get(loop) is pool:
            del pools[loop]
        await pool.session.close()


def _abandon(pools: dict[asyncio.AbstractEventLoop, Pool]) -> None:
    """Close the pools of a client without references, in the thread that collects it."""
    for loop, pool in list(pools.items()):
        if loop.is_closed():
            pool.drop()
        elif loop.is_running() and pool.owner is not None:
            with contextlib.suppress(RuntimeError):  # it was closed just now
                loop.call_soon_threadsafe(loop.create_task, pool.owner.aclose())
        # One that rests may run again: then its end closes the pool, or else the process's.


def tls_context(
    *,
    verify: bool,
    ca_file: FilePath | None,
    client_cert: FilePath | None,
    client_key: FilePath | None,
) -> ssl.SSLContext | bool:
    """Return the argument ``ssl`` of ``TCPConnector``.

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
