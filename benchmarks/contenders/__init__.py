"""What collects a feed, each in a module of its own that imports only what it measures.

A module has ``CONTENDERS``, a class for each name that it knows. It is made with the folder of its
records before the clock starts; ``collect`` reads the feed until all is durable, and ``count``
returns the records that are then found there.
"""

from __future__ import annotations

from typing import Protocol

from benchmarks.feeds import Feed


class Contender(Protocol):
    """One way to collect a feed."""

    def collect(self, url: str, feed: Feed) -> float | None:
        """Make all records of the feed durable; return the MiB of processes of its own, if any."""
        ...

    def count(self) -> int:
        """Return the number of different records that are durable."""
        ...
