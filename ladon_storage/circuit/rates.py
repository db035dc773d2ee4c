"""The rate of requests to one host, which all processes of a store keep together.

- The store keeps the time of the next request. A process takes it by compare-and-set when it has
  come: so requests are apart by an even interval, whichever process makes them, and a process that
  dies takes nothing with it.
- The interval is a little longer than the rate asks for, because a request arrives later than it
  was taken: otherwise one late arrival would have one request too many in the window after it.
- Times are the store's. One that is further ahead than an interval belongs to a clock that has
  restarted since: it is past.
- A store is accessed in a thread, with more patience than a circuit has: the next request of a rate
  waits in any case.
"""

from __future__ import annotations

import asyncio
import json
import math
import random

from ladon_storage.circuit.stores import CircuitStore, VersionedText
from ladon_storage.errors import CircuitStoreError

MARGIN = 1.05
"""The interval between two requests, as a multiple of the one that the rate asks for."""

_LOST_SECONDS = 0.005
"""The longest wait after another process was faster."""

_random = random.SystemRandom()  # a run may have seeded the other one, as others did


class SharedRate:
    """One rate for all processes that name the same ``key`` in the same store.

    Args:
        store: The store of the time of the next request.
        key: The host and its rate.
        seconds: The seconds between two requests.

    >>> from ladon_storage.circuit.stores import MemoryStore
    >>> rate = SharedRate(MemoryStore(), "feed.example:443 2/60", 30)
    >>> rate.attempt(), 31 < rate.attempt() < 32
    (0.0, True)
    """

    def __init__(self, store: CircuitStore, key: str, seconds: float) -> None:
        self.key = f"rate of {key}"
        self.store = store
        self._interval = seconds * MARGIN

    async def wait(self) -> None:
        """Wait until one more request keeps the rate, and take it.

        Raises:
            CircuitStoreError: The store failed; nothing was taken.
        """
        pause = await asyncio.to_thread(self.attempt)
        while pause:
            await asyncio.sleep(pause)
            pause = await asyncio.to_thread(self.attempt)

    def attempt(self) -> float:
        """Take the next request and return 0, or return the seconds after which to try again.

        Raises:
            CircuitStoreError: The store failed; nothing was taken.
        """
        stored = self.store.read(self.key)
        if left := self._left(stored):
            return left + _random.uniform(0, _LOST_SECONDS)
        text = json.dumps({"next": stored.now + self._interval})
        if self.store.compare_and_set(self.key, stored.tag, text):
            return 0.0
        return _random.uniform(0, _LOST_SECONDS) or _LOST_SECONDS

    def _left(self, stored: VersionedText) -> float:
        """Return the seconds until the next request may be made."""
        if not stored.text:
            return 0.0
        try:
            left = float(json.loads(stored.text)["next"]) - stored.now
        except (ValueError, TypeError, KeyError, OverflowError):
            raise CircuitStoreError(
                f"The circuit store {self.store.place} holds something that is no rate; see what "
                "writes there."
            ) from None
        # Of a clock that has restarted since, as a machine's does.
        is_sane = math.isfinite(left) and left <= self._interval + 1
        return max(left, 0.0) if is_sane else 0.0
