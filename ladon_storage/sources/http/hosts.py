"""What all sources of one process know of a host: its circuits, and when it may be asked again.

- A circuit outlives a run: the next one does not begin where the last one gave up.
- A host has a circuit for what nobody can use it without: to be reached. Each path on it has one of
  its own for what comes then: a status of failure, no answer in time, one that is cut off. So one
  feed that fails keeps nobody from the others, and a host that is down is noticed by all.
- Paths hold ids, and a feed of files has thousands: the circuits of paths are bounded, and the one
  that was used last stays.
- A limiter belongs to one event loop, and is shared by the sources that declare the same rate. It
  spreads requests evenly: a bucket that lets a full rate through at once lets twice the rate pass
  in the window that follows, and a service that counts in windows throttles that.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from dataclasses import dataclass
from typing import Self

from aiolimiter import AsyncLimiter
from yarl import URL

from ladon_storage.circuit.breaker import CircuitBreaker, CircuitChange, CircuitState
from ladon_storage.errors import CircuitOpenError
from ladon_storage.sources.fields import Rate

logger = logging.getLogger(__name__)

CIRCUIT_FAILURES = 5
"""So many attempts of one request: what failed all of them is down."""

CIRCUIT_SECONDS = 60.0

MAX_CIRCUITS = 1_000
"""Circuits of paths that a process keeps."""

_circuits: dict[str, CircuitBreaker] = {}
_lock = threading.Lock()
_limiters: dict[asyncio.AbstractEventLoop, dict[tuple[str, Rate], AsyncLimiter]] = {}


def host_of(url: URL) -> str:
    """Return the host and port of an address, as circuits and limiters are told apart."""
    return f"{url.host}:{url.port}"


def circuit_of(url: URL) -> CircuitBreaker:
    """Return the circuit of what an address names on its host, whatever its query."""
    return _circuit(host_of(url) + url.raw_path)


def host_circuit_of(url: URL) -> CircuitBreaker:
    """Return the one circuit of an address's host in this process."""
    return _circuit(host_of(url))


def _circuit(name: str) -> CircuitBreaker:
    # Threads share them: whoever comes first made everybody's.
    with _lock:
        circuit = _circuits.pop(name, None)
        if circuit is None:
            # A path may hold a key, so that only its host is named.
            shown, slash, _ = name.partition("/")
            circuit = CircuitBreaker(
                CIRCUIT_FAILURES,
                CIRCUIT_SECONDS,
                listeners=(_tell,),
                name=f"a path of {shown}" if slash else shown,
            )
        _circuits[name] = circuit
        if len(_circuits) > MAX_CIRCUITS:
            _forget_one(name)
        return circuit


def _forget_one(kept: str) -> None:
    """Forget the circuit that was used longest ago, one that is closed if there is any."""
    others = [name for name in _circuits if name != kept]
    closed = (name for name in others if _circuits[name].state is CircuitState.CLOSED)
    del _circuits[next(closed, others[0])]


@dataclass(frozen=True)
class Admission:
    """What both circuits of an address say of one request: its permits, to be judged once."""

    host: CircuitBreaker
    path: CircuitBreaker
    permits: tuple[int, int]

    @classmethod
    def to(cls, url: URL) -> Self:
        """Admit one request.

        Raises:
            CircuitOpenError: The circuit of the host or of the path is open.
        """
        host, path = host_circuit_of(url), circuit_of(url)
        permit = host.acquire()
        try:
            return cls(host, path, (permit, path.acquire()))
        except CircuitOpenError:
            host.release(permit)
            raise

    def unreachable(self) -> None:
        """Judge: the host could not be reached."""
        self.host.failure(self.permits[0])
        self.path.release(self.permits[1])

    def failed(self) -> None:
        """Judge: the host is there, and failed at this path."""
        self.host.success(self.permits[0])
        self.path.failure(self.permits[1])

    def unanswered(self) -> None:
        """Judge: it was reached, and no whole answer came of it."""
        self.host.release(self.permits[0])
        self.path.failure(self.permits[1])

    def succeeded(self) -> None:
        """Judge: it answered."""
        self.host.success(self.permits[0])
        self.path.success(self.permits[1])

    def released(self) -> None:
        """Give the permits back: the request says nothing of the host."""
        self.host.release(self.permits[0])
        self.path.release(self.permits[1])


async def wait_for_rate_limit(url: URL, rate: Rate | None) -> None:
    """Return when one more request to the host keeps the rate."""
    if rate is None:
        return
    limiters = _limiters_of(asyncio.get_running_loop())
    limiter = limiters.get((host_of(url), rate))
    if limiter is None:
        limiter = AsyncLimiter(1, rate.seconds / rate.requests)
        limiters[host_of(url), rate] = limiter
    await limiter.acquire()


def _limiters_of(loop: asyncio.AbstractEventLoop) -> dict[tuple[str, Rate], AsyncLimiter]:
    if loop not in _limiters:
        # A limiter keeps its loop alive, so that no weak reference would ever let go of one.
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
