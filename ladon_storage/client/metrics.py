"""The client's Prometheus instruments, in the default registry of the process.

- A request touches only children of instruments that were looked up before.
- The gauges are computed when they are scraped, over the existing pools and circuits. They cost a
  request nothing, and a client that is gone no longer appears.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from functools import cache
from typing import Any, Protocol, TypeVar
from weakref import WeakSet

from prometheus_client import REGISTRY, Counter, Gauge, Histogram

from ladon_storage.circuit.breaker import CircuitBreaker, CircuitChange, CircuitState
from ladon_storage.circuit.shared import store_error_listeners

T = TypeVar("T")

_LONGEST_LABEL = 100


def _instrument(kind: type[T], name: str, text: str, *labels: str) -> T:
    """Return the instrument of this name, the one that is registered already if there is one."""
    # Registering it again, as importing this module again does, is an error of prometheus-client.
    found: Any = getattr(REGISTRY, "_names_to_collectors", {}).get(name)
    make: Any = kind
    instrument: T = found if found is not None else make(name, text, labels)
    return instrument


_OPENS = _instrument(
    Counter,
    "storage_client_circuit_breaker_opens",
    "Times that a circuit of a storage client opened.",
)
_CLOSES = _instrument(
    Counter,
    "storage_client_circuit_breaker_closes",
    "Times that a circuit of a storage client closed.",
)
_STORE_ERRORS = _instrument(
    Counter,
    "storage_client_circuit_store_errors",
    "Times that a circuit was not read or kept where processes share it.",
)
_STATE = _instrument(
    Gauge,
    "storage_client_circuit_breaker_state",
    "State of the storage clients' circuits: 1 if any is open, or 2 if any is half open, or 0.",
)
_REQUESTS = _instrument(
    Counter,
    "storage_client_requests",
    "Requests of the storage client; error_type is empty for a success.",
    "method",
    "status",
    "error_type",
)
_LATENCY = _instrument(
    Histogram, "storage_client_latency_seconds", "Seconds from sending a request to its last byte."
)
_ACTIVE = _instrument(
    Gauge, "storage_client_connections_active", "Requests of storage clients in flight."
)
_IDLE = _instrument(
    Gauge, "storage_client_connections_idle", "Connections of storage clients at rest."
)

_RECORDS = _instrument(
    Counter,
    "ladon_collection_records",
    "Records that completed runs of this process were delivered, by what became of them.",
    "source_id",
    "outcome",
)
_MISSED = _instrument(
    Gauge,
    "ladon_reconciliation_missed",
    "Records that regular runs missed, as the last reconciliation of this process found.",
    "source_id",
)
_QUARANTINED = _instrument(
    Counter,
    "ladon_collection_quarantined",
    "Records that completed runs of this process put into the quarantine, by the reason.",
    "source_id",
    "reason",
)

store_error_listeners.append(_STORE_ERRORS.inc)

observe_latency = _LATENCY.observe
"""The function that records the seconds of a request."""


class HasConnections(Protocol):
    """A pool whose connections can be counted."""

    @property
    def active(self) -> int:
        """Connections in use."""
        ...

    @property
    def idle(self) -> int:
        """Idle connections."""
        ...


# A set that another thread adds to cannot be walked.
_lock = threading.Lock()
_pools: WeakSet[HasConnections] = WeakSet()
_circuits: WeakSet[CircuitBreaker] = WeakSet()


def watch_pool(pool: HasConnections) -> None:
    """Count the connections of ``pool`` while it lives."""
    with _lock:
        _pools.add(pool)


def watch_circuit(circuit: CircuitBreaker) -> bool:
    """Publish the state of ``circuit`` while it exists; return whether this is the first time."""
    with _lock:
        is_new = circuit not in _circuits
        _circuits.add(circuit)
    return is_new


def _living(watched: WeakSet[T]) -> list[T]:
    with _lock:
        return list(watched)


def _worst_state() -> int:
    states = {circuit.state for circuit in _living(_circuits)}
    if CircuitState.OPEN in states:
        return 1
    return 2 if CircuitState.HALF_OPEN in states else 0


_STATE.set_function(_worst_state)
_ACTIVE.set_function(lambda: sum(pool.active for pool in _living(_pools)))
_IDLE.set_function(lambda: sum(pool.idle for pool in _living(_pools)))


@cache
def _requests(method: str, status: int | None, error_type: str) -> Counter:
    return _REQUESTS.labels(method, "" if status is None else str(status), error_type)


def count_request(method: str, status: int | None, error_type: str = "") -> None:
    """Count a request that ended with this status, or with none, and with this kind of error."""
    _requests(method, status, error_type).inc()


def count_collected(source_id: str, counts: Mapping[str, int], reasons: Mapping[str, int]) -> None:
    """Count the records of a completed run, and the reasons of its quarantined ones.

    Args:
        source_id: The source.
        counts: The numbers of the ledger, by their names.
        reasons: The most frequent reasons, with the count of each.
    """
    for outcome in ("new", "changed", "known", "quarantined", "skipped"):
        _RECORDS.labels(source_id, outcome).inc(counts.get(f"records_{outcome}", 0))
    for reason, count in reasons.items():
        _QUARANTINED.labels(source_id, reason[:_LONGEST_LABEL]).inc(count)


def count_missed(source_id: str, missed: int) -> None:
    """Keep how many records of a source the last reconciliation found missed."""
    _MISSED.labels(source_id).set(missed)


def count_change(change: CircuitChange) -> None:
    """Count a circuit that opened or closed."""
    if change.after is CircuitState.OPEN:
        _OPENS.inc()
    elif change.after is CircuitState.CLOSED:
        _CLOSES.inc()
