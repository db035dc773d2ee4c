"""The client's Prometheus instruments, in the default registry of the process.

- A request touches only children of instruments that were looked up before.
- The two gauges of connections are computed when they are scraped, over all pools that live.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Protocol
from weakref import WeakSet

from prometheus_client import Counter, Gauge, Histogram

from ladon_storage.breaker import CircuitChange, CircuitState

_OPENS = Counter(
    "storage_client_circuit_breaker_opens", "Times that a circuit of a storage client opened."
)
_CLOSES = Counter(
    "storage_client_circuit_breaker_closes", "Times that a circuit of a storage client closed."
)
_STATE = Gauge(
    "storage_client_circuit_breaker_state",
    "State of the storage client's circuit: 0 closed, 1 open, 2 half open.",
)
_REQUESTS = Counter(
    "storage_client_requests",
    "Requests of the storage client; error_type is empty for a success.",
    ["method", "status", "error_type"],
)
_LATENCY = Histogram(
    "storage_client_latency_seconds", "Seconds from sending a request to its last byte."
)
_ACTIVE = Gauge("storage_client_connections_active", "Requests of storage clients under way.")
_IDLE = Gauge("storage_client_connections_idle", "Connections of storage clients at rest.")

_STATES = {CircuitState.CLOSED: 0, CircuitState.OPEN: 1, CircuitState.HALF_OPEN: 2}

observe_latency = _LATENCY.observe
"""Note how many seconds a request took."""


class Pool(Protocol):
    """Count the connections of one pool."""

    @property
    def active(self) -> int:
        """Connections in use."""
        ...

    @property
    def idle(self) -> int:
        """Connections at rest."""
        ...


pools: WeakSet[Pool] = WeakSet()
"""The pools that live; a pool adds itself."""


def _living() -> Iterable[Pool]:
    return list(pools)


_ACTIVE.set_function(lambda: sum(pool.active for pool in _living()))
_IDLE.set_function(lambda: sum(pool.idle for pool in _living()))


@cache
def _requests(method: str, status: int | None, error_type: str) -> Counter:
    return _REQUESTS.labels(method, "" if status is None else str(status), error_type)


def count_request(method: str, status: int | None, error_type: str = "") -> None:
    """Count a request that ended with this status, or with none, and with this kind of error."""
    _requests(method, status, error_type).inc()


def count_change(change: CircuitChange) -> None:
    """Count a change of a circuit, and show its state."""
    _STATE.set(_STATES[change.after])
    if change.after is CircuitState.OPEN:
        _OPENS.inc()
    elif change.after is CircuitState.CLOSED:
        _CLOSES.inc()
