"""The service's open connections: how many there may be, and how long each may do nothing.

- A connection that waits for a request gives way to a new one when all places are taken: of the
  address that holds the most places, the one that has waited longest. A connection whose request is
  being answered is never closed. So clients that connect and send nothing keep no other out.
- An address that holds its share leaves the last tenth of the places to others. So a reverse proxy,
  which has the connections of all users, may have nearly all places while no other asks for them.
- The number of places is below the number of files that the process may open, so accepting a
  connection does not fail. Where it fails all the same, it is counted, and logged once a minute.
"""

from __future__ import annotations

import asyncio
import logging
import resource
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, Protocol

logger = logging.getLogger(__name__)

MAX_CONNECTIONS = 2000
ADDRESS_SHARE = 0.5
"""The share of the places that one address may hold, whatever is free."""
OTHERS_SHARE = 0.1
"""The share of the places that an address beyond its own leaves free."""
HEADERS_SECONDS = 10.0
"""The longest time from a connection, or from the first byte of a later request, to its headers."""
IDLE_SECONDS = 75.0
"""The longest time between two requests of a connection."""
UNREAD_SECONDS = 30.0
"""The longest time for which a client may leave a response unread."""
SWEEP_SECONDS = 1.0
BACKLOG = 128
"""The most connections that one pass of the event loop accepts."""
RESERVED_FILES = BACKLOG + 64
"""The files that are left for the database, the log, and connections about to be refused."""
LOG_SECONDS = 60.0

Wait = Literal["headers", "idle", "unread"]
"""What a connection waits for: the rest of a request, the first byte of another one, or its client
to read a response."""
Reason = Literal["limit", "headers", "idle", "unread", "accept"]

_SECONDS: dict[Wait, float] = {
    "headers": HEADERS_SECONDS,
    "idle": IDLE_SECONDS,
    "unread": UNREAD_SECONDS,
}


class Connection(Protocol):
    """One connection, as `Connections` sees it."""

    address: str
    waits_for: Wait | None
    since: float

    def end(self) -> None:
        """Close the connection at once, and drop what was not sent yet."""
        ...


class Connections:
    """The open connections of one service.

    Args:
        limit: The most connections at once.
        closed: Called with the reason of each connection that the service closed or refused.
        clock: The time in seconds, which never goes back.
    """

    def __init__(
        self,
        limit: int = MAX_CONNECTIONS,
        closed: Callable[[Reason], object] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.limit = limit
        self.clock = clock
        self._closed = closed
        self._open: set[Connection] = set()
        self._held: Counter[str] = Counter()
        self._logged: dict[Reason, float] = {}

    def __len__(self) -> int:
        return len(self._open)

    def admit(self, connection: Connection) -> bool:
        """Take a place for a connection; return whether there was one."""
        left = max(1, int(self.limit * OTHERS_SHARE))
        share = max(1, int(self.limit * ADDRESS_SHARE))
        own = self._held[connection.address] >= share and self.limit - len(self._open) <= left
        if own or len(self._open) >= self.limit:
            crowded = connection.address if own else self._held.most_common(1)[0][0]
            longest = self._longest_waiting(crowded)
            self._note("limit")
            if longest is None:
                return False
            self._end(longest)
        self._open.add(connection)
        self._held[connection.address] += 1
        self.wait(connection, "headers")
        return True

    def wait(self, connection: Connection, what: Wait) -> None:
        """Note what a connection waits for from now on."""
        connection.waits_for, connection.since = what, self.clock()

    def remove(self, connection: Connection) -> None:
        """Give the place of a connection back; one that has none is ignored."""
        if connection in self._open:
            self._open.discard(connection)
            self._held[connection.address] -= 1
            if not self._held[connection.address]:
                del self._held[connection.address]

    def sweep(self) -> None:
        """Close the connections that have waited too long."""
        now = self.clock()
        for connection in list(self._open):
            waits_for = connection.waits_for
            if waits_for is not None and now - connection.since >= _SECONDS[waits_for]:
                self._note(waits_for)
                self._end(connection)

    @contextmanager
    def failed_accepts_counted(self) -> Iterator[None]:
        """Count failed accepts while the context lasts, where asyncio logs a traceback for each."""
        loop = asyncio.get_running_loop()
        before = loop.get_exception_handler()

        def handle(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
            if isinstance(context.get("exception"), OSError) and "accept" in context["message"]:
                self._note("accept", str(context["exception"]))
            elif before is not None:
                before(loop, context)
            else:
                loop.default_exception_handler(context)

        loop.set_exception_handler(handle)
        try:
            yield
        finally:
            loop.set_exception_handler(before)

    def _longest_waiting(self, address: str) -> Connection | None:
        waiting = (
            each
            for each in self._open
            if each.address == address and each.waits_for in ("headers", "idle")
        )
        return min(waiting, key=lambda each: each.since, default=None)

    def _end(self, connection: Connection) -> None:
        self.remove(connection)
        connection.end()

    def _note(self, reason: Reason, detail: str = "") -> None:
        self._closed(reason)
        now = self.clock()
        if now - self._logged.get(reason, -LOG_SECONDS) >= LOG_SECONDS:
            self._logged[reason] = now
            logger.warning("%s", _SENTENCES[reason].format(limit=self.limit, detail=detail))


_SENTENCES: dict[Reason, str] = {
    "limit": "All {limit} connections, or the share of one address, are taken; the longest idle "
    "ones are closed for new ones.",
    "headers": "Connections that sent no whole request were closed.",
    "idle": "Idle connections were closed.",
    "unread": "Connections were closed whose client did not read its response.",
    "accept": "Connections could not be accepted ({detail}).",
}


def possible_connections(limit: int = MAX_CONNECTIONS) -> int:
    """Return how many connections this process can hold: ``limit``, or what its files allow."""
    files, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = limit + RESERVED_FILES
    if files != resource.RLIM_INFINITY and files < needed:
        files = needed if most == resource.RLIM_INFINITY else min(needed, most)
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, most))
    elif files == resource.RLIM_INFINITY:
        return limit
    return max(1, min(limit, files - RESERVED_FILES))
