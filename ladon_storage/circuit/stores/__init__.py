"""Where a circuit's record is kept between processes: one small protocol, and memory.

- A store keeps a text for each key, and knows nothing of circuits. It changes one only by
  compare-and-set: whoever read an older text reads again and decides again.
- A store has a clock, and tells it with each answer. All that is kept is in its time, so that the
  clocks of those who ask may differ.
- Whatever a store's ground raises becomes `CircuitStoreError`, soon: the caller waits.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable
from typing import NamedTuple, Protocol

NO_TAG = 0
"""The tag of a key under which nothing is kept."""


class VersionedText(NamedTuple):
    """Be a store's answer: its time in seconds, and the text with the tag of its last change."""

    now: float
    tag: int
    text: str


class CircuitStore(Protocol):
    """Keep texts by key for several processes."""

    @property
    def place(self) -> str:
        """Where it is, as messages name it: without a password."""
        ...

    def read(self, key: str) -> VersionedText:
        """Return what is kept under ``key``.

        Raises:
            CircuitStoreError: It could not be read, or not soon enough.
        """
        ...

    def compare_and_set(self, key: str, tag: int, text: str) -> bool:
        """Keep ``text`` if what is kept still has ``tag``, and tell whether it had.

        Raises:
            CircuitStoreError: It could not be written; or perhaps it was, and the answer is late.
        """
        ...

    def close(self) -> None:
        """Let go of files and connections; the next call opens them again."""
        ...


def new_tag() -> int:
    """Return a tag that no other change has, also not one of a store that was lost."""
    # Not of `random`: runs that seed it alike would take each other's changes for their own.
    return secrets.randbits(62) + 1


class MemoryStore:
    """Keep the circuits of this process, for all of its clients.

    Args:
        clock: Seconds that never go back.
    """

    place = "memory"

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._kept: dict[str, tuple[int, str]] = {}

    def read(self, key: str) -> VersionedText:
        """Return what is kept under ``key``."""
        return VersionedText(self._clock(), *self._kept.get(key, (NO_TAG, "")))

    def compare_and_set(self, key: str, tag: int, text: str) -> bool:
        """Keep ``text`` if what is kept still has ``tag``, and tell whether it had."""
        with self._lock:
            if self._kept.get(key, (NO_TAG, ""))[0] != tag:
                return False
            self._kept[key] = new_tag(), text
            return True

    def close(self) -> None:
        """Do nothing: what is kept stays as long as the process."""
