"""The store in which processes share the circuits and rates of sources' hosts.

- It is that of the Storage Service's circuit: a file for the processes of one host, or Redis.
- A run names it, and its sources use it. Outside of any run it is the one in
  ``STORAGE_CIRCUIT_URL``; without one, each process has circuits and rates of its own.
- Circuits and rates have a connection each: a rate may wait for an answer that a circuit may not.
"""

from __future__ import annotations

import os
import threading
from contextvars import ContextVar
from typing import NamedTuple

from ladon_storage.circuit.stores.guarded import GuardedStore
from ladon_storage.circuit.urls import CIRCUIT_URL_VARIABLE, store_at

PATIENCE_SECONDS = 1.0
"""The longest wait for a store's answer about a rate, unless the URL says another."""


class HostStore(NamedTuple):
    """The stores of the hosts' circuits and of their rates."""

    circuits: GuardedStore
    rates: GuardedStore


_url: ContextVar[str | None] = ContextVar("ladon_storage_hosts", default=None)
_stores: dict[str, HostStore] = {}
_lock = threading.Lock()


def share_hosts(url: str) -> None:
    """Share the circuits and rates of hosts with all processes that name this store, in this run.

    Raises:
        ConfigurationError: There is no such store.
    """
    _store_of(url)
    _url.set(url)


def host_store() -> HostStore | None:
    """Return the store of the present run; ``None``: there is none.

    Raises:
        ConfigurationError: The environment names a store that does not exist.
    """
    url = _url.get() or os.environ.get(CIRCUIT_URL_VARIABLE)
    return _store_of(url) if url else None


def _store_of(url: str) -> HostStore:
    with _lock:
        if url not in _stores:
            _stores[url] = HostStore(
                GuardedStore(store_at(url), "the circuits of sources' hosts"),
                GuardedStore(store_at(url, PATIENCE_SECONDS), "the rates of sources' hosts"),
            )
        return _stores[url]
