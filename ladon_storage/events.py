"""Changes of a circuit as Prefect events, so that automations can act on them.

The events are ``ladon.circuit.opened``, ``ladon.circuit.half-opened`` and ``ladon.circuit.closed``;
their resource is the service. Only the process that made a change emits it.

An event that cannot be emitted is logged: what it is about has happened.
"""

from __future__ import annotations

import logging
from typing import Any

from prefect.events import emit_event
from prefect.settings import PREFECT_API_URL

from ladon_storage.circuit.breaker import CircuitChange, CircuitState
from ladon_storage.circuit.urls import service_key
from ladon_storage.errors import told

logger = logging.getLogger(__name__)

OPENED, HALF_OPENED, CLOSED = (
    f"ladon.circuit.{each}" for each in ("opened", "half-opened", "closed")
)

_EVENTS = {
    CircuitState.OPEN: OPENED,
    CircuitState.HALF_OPEN: HALF_OPENED,
    CircuitState.CLOSED: CLOSED,
}


def resource_id(address: str) -> str:
    """Return the name of a service's resource, by which automations find its events.

    >>> resource_id("https://storage.example/")
    'ladon.storage-service.https://storage.example:443'
    """
    return f"ladon.storage-service.{service_key(address)}"


def emit_change(service: str, change: CircuitChange) -> None:
    """Emit ``change`` as an event; a failure to do so is only logged."""
    _emit(
        _EVENTS[change.after],
        {
            "prefect.resource.id": resource_id(service),
            "prefect.resource.name": f"Storage Service at {service_key(service)}",
        },
        {
            "before": change.before.value,
            "after": change.after.value,
            "reason": change.reason,
        },
    )


def emit_where_prefect_is(service: str, change: CircuitChange) -> None:
    """Emit ``change`` from outside a run, if a server is known."""
    if PREFECT_API_URL.value():  # without one Prefect would start a server for it
        emit_change(service, change)


COLLECTED, SKIPPED, FAILED, GAP, MISSED, STALE = (
    "ladon.collection.completed",
    "ladon.collection.skipped",
    "ladon.collection.failed",
    "ladon.collection.gap",
    "ladon.collection.missed",
    "ladon.watermark.stale",
)


def emit_of_source(event: str, source_id: str, payload: dict[str, Any]) -> None:
    """Emit a source's outcome, whose resource is the source; a failure to do so is only logged."""
    _emit(
        event,
        {
            "prefect.resource.id": f"ladon.source.{source_id}",
            "prefect.resource.name": source_id,
        },
        payload,
    )


def _emit(event: str, resource: dict[str, str], payload: dict[str, Any]) -> None:
    try:
        emit_event(event, resource=resource, payload=payload)
    except Exception as error:  # Prefect's own: one that is too large
        logger.warning("Prefect could not emit the event %s: %s", event, told(error))
