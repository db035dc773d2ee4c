"""The hook through which a trial sees the requests of sources, and ends them.

- An observer belongs to a context, so that runs outside of a trial are not seen.
- An observed source makes each attempt once: a trial reports a failure at once, without retries.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol

from ladon_storage.sources.http.transport import HttpResponse


class Observer(Protocol):
    """An observer of requests, which it sees without secrets."""

    def asking(self, method: str, url: str, body: str | None) -> None:
        """Note a request that is about to be made; an exception raised here ends the reading."""
        ...

    def answered(self, answer: HttpResponse) -> None:
        """Note the answer to the last request, whatever its status."""
        ...


_observer: ContextVar[Observer | None] = ContextVar("_observer", default=None)


@contextmanager
def observed_by(observer: Observer) -> Iterator[None]:
    """Let ``observer`` see the requests that are made in this context."""
    token = _observer.set(observer)
    try:
        yield
    finally:
        _observer.reset(token)


def observer() -> Observer | None:
    """Return the observer of this context."""
    return _observer.get()
