"""How sources write instants, and how they want to be told them.

- Nothing is rounded up that is read, and nothing down that ends a range: a source that counts in
  days is asked for the whole day in which a range begins or ends, and what is too much is dropped.
- A time without offset is in the zone that is declared; of one that a clock showed twice, the first
  is meant.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Annotated
from zoneinfo import ZoneInfo

from pydantic import AfterValidator

from ladon_storage.models import parse_timestamp

Moment = Callable[[object], datetime]
"""Return the instant that a value of an item says.

Raises:
    ValueError: It says none.
"""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)

# The finest part of a pattern, and what a range's end is rounded up to.
_PARTS = (
    (("%f",), _MICROSECOND),
    (("%S", "%T", "%s", "%c", "%X"), timedelta(seconds=1)),
    (("%M", "%R"), timedelta(minutes=1)),
    (("%H", "%I"), timedelta(hours=1)),
)
_STEPS = {
    "iso": _MICROSECOND,
    "seconds": timedelta(seconds=1),
    "milliseconds": timedelta(milliseconds=1),
    "date": timedelta(days=1),
}


def iso_moment(zone: tzinfo = UTC) -> Moment:
    """Return how ISO 8601 texts are read; one without offset is in ``zone``, " UTC" is an offset.

    >>> iso_moment()("2026-07-08 19:05:04 UTC").isoformat()
    '2026-07-08T19:05:04+00:00'
    """

    def read(value: object) -> datetime:
        if isinstance(value, str):
            text = value.strip()
            if text.endswith(" UTC"):
                return parse_timestamp(text[:-4])
            if zone is not UTC:
                try:
                    naive = datetime.fromisoformat(text)
                except ValueError:
                    return parse_timestamp(value)
                if naive.tzinfo is None:
                    return parse_timestamp(naive.replace(tzinfo=zone))
            return parse_timestamp(text)
        return parse_timestamp(value)

    return read


def unix_moment(per_second: int = 1) -> Moment:
    """Return how counts from 1970 on are read, as numbers or as texts of digits.

    >>> unix_moment(1_000)("1517966996303").isoformat()
    '2018-02-07T01:29:56.303000+00:00'
    """

    def read(value: object) -> datetime:
        try:
            number = _number(value)
            # Cut, never rounded up; and whole numbers by whole numbers, as floats are too coarse.
            if isinstance(number, int):
                return _EPOCH + timedelta(microseconds=number * 1_000_000 // per_second)
            return _EPOCH + timedelta(microseconds=math.floor(number * 1e6 / per_second))
        except (OverflowError, ValueError):
            raise ValueError("should be a count from 1970 on, before the year 10000") from None

    return read


def _number(value: object) -> int | float:
    if isinstance(value, str):
        text = value.strip()
        return int(text) if text.lstrip("-").isdecimal() else float(text)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("no number")
    return value


def check_zone(value: str) -> str:
    """Return ``value`` if it names a time zone.

    Raises:
        ValueError: It does not.
    """
    zone_of(value)
    return value


def zone_of(name: str) -> tzinfo:
    """Return the zone of an IANA name.

    Raises:
        ValueError: There is none.
    """
    if name == "UTC":
        return UTC
    try:
        return ZoneInfo(name)
    except (OSError, ValueError, KeyError):
        raise ValueError("should be a time zone such as UTC or Europe/Berlin") from None


ZoneName = Annotated[str, AfterValidator(check_zone)]


def check_form(value: str) -> str:
    """Return ``value`` if it says how an instant is written.

    Raises:
        ValueError: It does not.
    """
    if value not in _STEPS and "%" not in value:
        raise ValueError(
            f"should be one of {', '.join(_STEPS)}, or a pattern such as %Y-%m-%dT%H:%M:%SZ"
        )
    return value


Form = Annotated[str, AfterValidator(check_form)]
"""How an instant is written: a name of `written`, or a pattern of strftime."""


def written(instant: datetime, form: str, zone: tzinfo = UTC, *, up: bool = False) -> str:
    """Return an instant as a source wants it, rounded down to what the form tells, or ``up``.

    >>> moment = datetime(2024, 1, 2, 3, 4, 5, 600_000, tzinfo=UTC)
    >>> [written(moment, form) for form in ("iso", "seconds", "milliseconds", "date")]
    ['2024-01-02T03:04:05.600000Z', '1704164645', '1704164645600', '2024-01-02']
    >>> written(moment, "date", up=True), written(moment, "%d.%m.%Y %H:%M", up=True)
    ('2024-01-03', '02.01.2024 03:05')
    """
    step = _STEPS.get(form) or _step_of(form)
    local = instant.astimezone(zone)
    if up:
        local = _rounded_up(local, step)
    if form == "iso":
        return local.astimezone(UTC).replace(tzinfo=None).isoformat() + "Z"
    if form in ("seconds", "milliseconds"):
        return str((local - _EPOCH) // step)
    return local.strftime("%Y-%m-%d" if form == "date" else form)


def _step_of(pattern: str) -> timedelta:
    for parts, step in _PARTS:
        if any(part in pattern for part in parts):
            return step
    return timedelta(days=1)


def _rounded_up(local: datetime, step: timedelta) -> datetime:
    beyond = (local.replace(tzinfo=UTC) - _EPOCH) % step
    try:
        return local + (step - beyond) if beyond else local
    except OverflowError:
        return local
