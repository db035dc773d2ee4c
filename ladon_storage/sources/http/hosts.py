"""The state of hosts that all sources share: circuits and rate limiters.

- A circuit outlives a run: the next run does not begin where the last one gave up.
- A host has a circuit for being reachable at all. Each of its paths has a circuit for everything
  after that: a failure status, no answer in time, an answer that is cut off. So one failing feed
  does not block the others, and every source notices a host that is down.
- The circuits and the rates of hosts are shared by all processes of a store, where a run has one.
  A store that fails is replaced by the process's own. Circuits of paths are always its own.
- Paths hold ids, and a feed of files has thousands: the circuits of paths are bounded, and the
  least recently used is forgotten.
- A limiter belongs to one event loop, and is shared by the sources that declare the same rate. It
  spreads requests evenly: a bucket that lets a full rate through at once allows twice the rate in
  the following window, and a service that counts in windows throttles that.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from dataclasses import dataclass
from itertools import chain
from typing import Self

from aiolimiter import AsyncLimiter
from yarl import URL

from ladon_storage.circuit.breaker import CircuitBreaker, CircuitChange, CircuitState
from ladon_storage.circuit.rates import SharedRate
from ladon_storage.circuit.shared import SharedCircuit
from ladon_storage.circuit.stores import CircuitStore
from ladon_storage.errors import CircuitOpenError, CircuitStoreError
from ladon_storage.sources.fields import Rate
from ladon_storage.sources.http.sharing import host_store

logger = logging.getLogger(__name__)

CIRCUIT_FAILURES = 5
"""The number of attempts of one request: a host that failed all of them is down."""

CIRCUIT_SECONDS = 60.0

MAX_CIRCUITS = 1_000
"""Circuits of paths that a process keeps."""

_circuits: dict[str, CircuitBreaker] = {}
_lock = threading.Lock()
_limiters: dict[asyncio.AbstractEventLoop, dict[tuple[str, Rate], _Limiter]] = {}


def host_of(url: URL) -> str:
    """Return the host and port of an address, the key of its circuits and limiters."""
    return f"{url.host}:{url.port}"


def circuit_of(url: URL) -> CircuitBreaker:
    """Return the circuit of an address's path on its host, whatever its query."""
    return _circuit(host_of(url) + url.raw_path)


def host_circuit_of(url: URL) -> CircuitBreaker:
    """Return the one circuit of an address's host, which processes may share."""
    store = host_store()
    return _circuit(host_of(url), None if store is None else store.circuits)


def _circuit(name: str, store: CircuitStore | None = None) -> CircuitBreaker:
    key = name if store is None else f"{store.place} {name}"
    # Threads share them: the first one created is used by all.
    with _lock:
        circuit = _circuits.pop(key, None)
        if circuit is None:
            circuit = _new_circuit(name, store)
        _circuits[key] = circuit
        if len(_circuits) > MAX_CIRCUITS:
            _forget_one(key)
        return circuit


def _new_circuit(name: str, store: CircuitStore | None) -> CircuitBreaker:
    if store is not None:
        return SharedCircuit(
            store,
            f"host {name}",
            CIRCUIT_FAILURES,
            CIRCUIT_SECONDS,
            listeners=(_tell,),
            name=name,
            # An answer may take minutes, and many may be awaited.
            limits_unproven=False,
        )
    # A path may hold a key, so that only its host is named.
    shown, slash, _ = name.partition("/")
    return CircuitBreaker(
        CIRCUIT_FAILURES,
        CIRCUIT_SECONDS,
        listeners=(_tell,),
        name=f"a path of {shown}" if slash else shown,
    )


def _forget_one(kept: str) -> None:
    """Forget the least recently used circuit, a closed one if there is any."""
    # The first is the least recently used one, and nearly always closed: no need to look at all.
    others = (name for name in _circuits if name != kept)
    first = next(others)
    closed = (
        name for name in chain((first,), others) if _circuits[name].state is CircuitState.CLOSED
    )
    del _circuits[next(closed, first)]


@dataclass(frozen=True)
class Admission:
    """The admission of one request by both circuits of an address; its permits are settled once."""

    host: CircuitBreaker
    path: CircuitBreaker
    permits: tuple[int, int]

    @classmethod
    async def to(cls, url: URL) -> Self:
        """Admit one request.

        Raises:
            CircuitOpenError: The circuit of the host or of the path is open.
        """
        host, path = host_circuit_of(url), circuit_of(url)
        permit = await host.admit()
        try:
            return cls(host, path, (permit, path.acquire()))
        except CircuitOpenError:
            host.release(permit)
            raise

    def unreachable(self) -> None:
        """Record that the host could not be reached."""
        self.host.failure(self.permits[0])
        self.path.release(self.permits[1])

    def failed(self) -> None:
        """Record that the host was reached, and failed at this path."""
        self.host.success(self.permits[0])
        self.path.failure(self.permits[1])

    def unanswered(self) -> None:
        """Record that the host was reached, without a complete answer."""
        self.host.release(self.permits[0])
        self.path.failure(self.permits[1])

    def succeeded(self) -> None:
        """Record that the host answered."""
        self.host.success(self.permits[0])
        self.path.success(self.permits[1])

    def released(self) -> None:
        """Return the permits: the request says nothing about the host."""
        self.host.release(self.permits[0])
        self.path.release(self.permits[1])


class _Limiter:
    """The rate of one host in one event loop: shared with other processes, or its own.

    One request of a loop waits at a time for the store, and the others behind it.
    """

    def __init__(self, host: str, rate: Rate) -> None:
        self._own = AsyncLimiter(1, rate.seconds / rate.requests)
        self._key = f"{host} {rate.requests}/{rate.seconds:g}"
        self._interval = rate.seconds / rate.requests
        self._waiting = asyncio.Lock()

    async def acquire(self) -> None:
        store = host_store()
        if store is not None:
            async with self._waiting:
                try:
                    await SharedRate(store.rates, self._key, self._interval).wait()
                except CircuitStoreError:  # logged by the store
                    pass
                else:
                    return
        await self._own.acquire()


async def wait_for_rate_limit(url: URL, rate: Rate | None) -> None:
    """Wait until one more request to the host keeps the rate."""
    if rate is None:
        return
    limiters = _limiters_of(asyncio.get_running_loop())
    limiter = limiters.get((host_of(url), rate))
    if limiter is None:
        limiter = limiters[host_of(url), rate] = _Limiter(host_of(url), rate)
    await limiter.acquire()


def _limiters_of(loop: asyncio.AbstractEventLoop) -> dict[tuple[str, Rate], _Limiter]:
    if loop not in _limiters:
        # A limiter keeps its loop alive, so a weak reference would never be cleared.
        for closed in [each for each in list(_limiters) if each.is_closed()]:
            _limiters.pop(closed, None)
    return _limiters.setdefault(loop, {})


def _tell(change: CircuitChange) -> None:
    logger.warning(
        "The circuit of %s went from %s to %s: %s.",
        change.name,
        change.before,
        change.after,
        change.reason,
    )
