"""What all sources of one process know of a host: its circuit, and when it may be asked again.

- A circuit outlives a run: the next one does not begin where the last one gave up. It is one for a
  host and port, whichever source asks.
- A limiter belongs to one event loop, and is shared by the sources that declare the same rate. It
  spreads requests evenly: a bucket that lets a full rate through at once lets twice the rate pass
  in the window that follows, and a service that counts in windows throttles that.
"""

from __future__ import annotations

import asyncio
import logging

from aiolimiter import AsyncLimiter
from yarl import URL

from ladon_storage.breaker import CircuitBreaker, CircuitChange
from ladon_storage.collection.sources.fields import Rate

logger = logging.getLogger(__name__)

CIRCUIT_FAILURES = 5
"""So many attempts of one request: a host that failed all of them is down."""

CIRCUIT_SECONDS = 60.0

_circuits: dict[str, CircuitBreaker] = {}
_limiters: dict[asyncio.AbstractEventLoop, dict[tuple[str, Rate], AsyncLimiter]] = {}


def host_of(url: URL) -> str:
    """Return the host and port of an address, as circuits and limiters are told apart."""
    return f"{url.host}:{url.port}"


def circuit_of(url: URL) -> CircuitBreaker:
    """Return the one circuit of an address's host in this process."""
    host = host_of(url)
    circuit = _circuits.get(host)
    if circuit is None:
        # Two threads may both come here: the first one's circuit is everybody's.
        circuit = _circuits.setdefault(
            host,
            CircuitBreaker(CIRCUIT_FAILURES, CIRCUIT_SECONDS, listeners=(_tell,), name=host),
        )
    return circuit


async def admitted(url: URL, rate: Rate | None) -> None:
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
