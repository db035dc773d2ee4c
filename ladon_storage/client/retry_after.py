"""The wait that a server asks for in its header ``Retry-After``."""

from __future__ import annotations

from datetime import datetime

from ladon_storage.values import instant_of


def retry_after(value: str | None, now: datetime | None, longest: float) -> float | None:
    """Return the seconds of a ``Retry-After``, at most ``longest``; ``None`` for nothing usable.

    A date is compared with ``now``, the server's own time, and says nothing without it.

    >>> retry_after("7", None, 300.0), retry_after("Thu, 01 Jan 2026 00:00:30 GMT", None, 300.0)
    (7.0, None)
    """
    if value is None:
        return None
    if value.strip().isascii() and value.strip().isdecimal():
        return bounded(float(value), longest)
    instant = instant_of(value)
    if instant is None or now is None:
        return None
    return bounded((instant - now).total_seconds(), longest)


def bounded(seconds: float, longest: float) -> float | None:
    """Return a wait, at most ``longest``; ``None`` if it is over."""
    return min(seconds, longest) if seconds > 0 else None
