"""Stores of circuit records between processes: one small protocol, and memory.

- A store keeps a text for each key, and knows nothing of circuits. It changes a text only by
  compare-and-set: a caller that read an older text reads again and decides again.
- A store has a clock, and returns its time with each response. All stored times are the store's, so
  the callers' clocks may differ.
- Every error of the underlying storage becomes `CircuitStoreError`, and soon: the caller waits.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable
from typing import NamedTuple, Protocol

NO_TAG = 0
"""The tag of a key without a stored text."""


class VersionedText(NamedTuple):
    """A store's response: its time in seconds, and the text with the tag of its last change."""

    now: float
    tag: int
    text: str


class CircuitStore(Protocol):
    """A store of texts by key, for several processes."""

    @property
    def place(self) -> str:
        """The store's location as messages name it, without a password."""
        ...

    def read(self, key: str) -> VersionedText:
        """Return the text stored under ``key``.

        Raises:
            CircuitStoreError: The text could not be read, or not soon enough.
        """
        ...

    def compare_and_set(self, key: str, tag: int, text: str) -> bool:
        """Store ``text`` if the stored one still has ``tag``; return whether it had.

        Raises:
            CircuitStoreError: The write failed; or it may have succeeded with a late response.
        """
        ...

    def close(self) -> None:
        """Close files and connections; the next call opens them again."""
        ...


def new_tag() -> int:
    """Return a tag that no other change has, not even one of a store that was lost."""
    # Not of `random`: runs that seed it alike would take each other's changes for their own.
    return secrets.randbits(62) + 1


class MemoryStore:
    """A store in the memory of this process, for all of its clients.

    Args:
        clock: Seconds that never go back.
    """

    place = "memory"

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._kept: dict[str, tuple[int, str]] = {}

    def read(self, key: str) -> VersionedText:
        """Return the text stored under ``key``."""
        return VersionedText(self._clock(), *self._kept.get(key, (NO_TAG, "")))

    def compare_and_set(self, key: str, tag: int, text: str) -> bool:
        """Store ``text`` if the stored one still has ``tag``; return whether it had."""
        with self._lock:
            if self._kept.get(key, (NO_TAG, ""))[0] != tag:
                return False
            self._kept[key] = new_tag(), text
            return True

    def close(self) -> None:
        """Do nothing: the circuits stay as long as the process."""
