"""The wait that a source asks for in its headers.

- A date is compared with the answer's own `Date`, never with the local clock. The server's clock
  may be minutes off, and the wait would be none, or an hour. Without a `Date`, a date says nothing.
- No header makes a run wait for longer than a bound.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime

from ladon_storage.client.retry_after import bounded, retry_after
from ladon_storage.values import instant_of

MAX_RETRY_AFTER_SECONDS = 120.0
"""The longest wait that a source is granted."""

_RESETS = ("X-RateLimit-Reset", "RateLimit-Reset", "X-Rate-Limit-Reset")
_REMAINING = ("X-RateLimit-Remaining", "RateLimit-Remaining", "X-Rate-Limit-Remaining")

_NUMBER = re.compile(r"[0-9]{1,20}(\.[0-9]{1,20})?")
_EPOCH_SECONDS, _EPOCH_MILLISECONDS = 1e9, 1e12
"""The numbers from which on a value is a timestamp after 2001, not seconds from now."""


def date_of(headers: Mapping[str, str]) -> datetime | None:
    """Return the time at which a server says that it answered; ``None``: it states none."""
    return instant_of(headers.get("Date"))


def has_no_requests_left(headers: Mapping[str, str]) -> bool:
    """Return whether an answer says that its caller has no requests left."""
    return any(headers.get(name, "").strip() == "0" for name in _REMAINING)


def wait_of(headers: Mapping[str, str], *, throttled: bool) -> float | None:
    """Return for how many seconds an answer asks to wait; ``None``: it says nothing usable.

    The reset time of a limit counts only in a ``throttled`` answer: many answers state it.
    """
    now = date_of(headers)
    wait = retry_after(headers.get("Retry-After"), now, MAX_RETRY_AFTER_SECONDS)
    if wait is not None or not throttled:
        return wait
    for name in _RESETS:
        if (wait := _reset(headers.get(name), now)) is not None:
            return wait
    return None


def _reset(value: str | None, now: datetime | None) -> float | None:
    """Return the seconds until a limit is reset, given in seconds from now or from 1970."""
    if value is None:
        return None
    if not _NUMBER.fullmatch(value.strip()):
        return retry_after(value, now, MAX_RETRY_AFTER_SECONDS)
    number = float(value)
    if number < _EPOCH_SECONDS:
        return bounded(number, MAX_RETRY_AFTER_SECONDS)
    if now is None:
        return None
    seconds = number / 1_000 if number >= _EPOCH_MILLISECONDS else number
    return bounded(seconds - now.timestamp(), MAX_RETRY_AFTER_SECONDS)
