"""One store for many circuits and rates of a process, which is left alone after an error."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from ladon_storage.circuit.stores import CircuitStore, VersionedText
from ladon_storage.errors import CircuitStoreError

T = TypeVar("T")

logger = logging.getLogger(__name__)

RETRY_SECONDS = 5.0
"""The time for which a store that failed is not accessed."""


class GuardedStore:
    """A store that may be shared within a process, and that logs its own outages.

    Args:
        store: The store.
        kept: What is in it, as the warning names it, such as *the rates of hosts*.
        clock: Seconds that never go back.
    """

    logs_errors = True

    def __init__(
        self, store: CircuitStore, kept: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.place = store.place
        self._store = store
        self._kept = kept
        self._clock = clock
        self._lock = threading.Lock()
        self._error: CircuitStoreError | None = None
        self._retry_at = 0.0

    def read(self, key: str) -> VersionedText:
        """Return the text stored under ``key``.

        Raises:
            CircuitStoreError: The text could not be read, now or a moment ago.
        """
        return self._guarded(lambda: self._store.read(key))

    def compare_and_set(self, key: str, tag: int, text: str) -> bool:
        """Store ``text`` if the stored one still has ``tag``; return whether it had.

        Raises:
            CircuitStoreError: The write failed, now or a moment ago.
        """
        return self._guarded(lambda: self._store.compare_and_set(key, tag, text))

    def close(self) -> None:
        """Close the store; the next call opens it again."""
        with self._lock:
            self._store.close()

    def _guarded(self, call: Callable[[], T]) -> T:
        with self._lock:
            if self._error is not None and self._clock() < self._retry_at:
                raise CircuitStoreError(str(self._error))
            try:
                result = call()
            except CircuitStoreError as error:
                if self._error is None:
                    logger.warning("%s Meanwhile %s are each process's own.", error, self._kept)
                self._error = error
                self._retry_at = self._clock() + RETRY_SECONDS
                raise
            if self._error is not None:
                self._error = None
                logger.info("The circuit store %s answers again.", self.place)
            return result
