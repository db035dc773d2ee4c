"""What a database's values are in JSON, and which instants its timestamps say.

- Nothing is lost: what JSON has no kind for is a text. A decimal number is a text too, since
  readers of JSON make a float of it; bytes are hexadecimal digits; a time with an offset is told in
  UTC, so that a server whose zone changes has not changed its rows.
- An instant is cut to microseconds, never rounded up.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from decimal import Decimal
from fractions import Fraction
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
)
from typing import Any, Literal
from uuid import UUID

from ladon_storage.collection.sources.times import Moment, iso_moment

Times = Literal["datetime", "text", "seconds", "milliseconds"]
"""How a column tells the time: its own type, ISO 8601 texts, or counts from 1970 on."""

PER_SECOND = {"seconds": 1, "milliseconds": 1_000}

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_AS_TEXT = (
    UUID,
    timedelta,
    IPv4Address,
    IPv6Address,
    IPv4Interface,
    IPv6Interface,
    IPv4Network,
    IPv6Network,
)


def json_value(value: object) -> Any:
    r"""Return what a value is in JSON.

    Raises:
        ValueError: It is nothing that can be told there.

    >>> json_value([Decimal("1.10"), b"\x01\xff", float("-inf"), date(2024, 1, 2)])
    ['1.10', '01ff', '-Infinity', '2024-01-02']
    """
    if value is None or isinstance(value, str | int):  # a truth value is an int
        return value
    known = _KNOWN.get(type(value))
    if known is not None:
        return known(value)
    if isinstance(value, _AS_TEXT):
        return str(value)
    raise ValueError(f"a value of the type {type(value).__name__} cannot be told in JSON")


def id_text(value: object) -> str:
    """Return the text by which a row's id is a record's.

    Raises:
        ValueError: There is none.
    """
    told = json_value(value)
    if isinstance(told, bool) or not isinstance(told, str | int | float):
        raise ValueError("should be a text or a number")
    return str(told)


def row_moment(times: Times, zone: tzinfo) -> Moment:
    """Return how the values of a timestamp column are read.

    >>> row_moment("milliseconds", UTC)(Decimal("1517966996303.9999")).isoformat()
    '2018-02-07T01:29:56.303999+00:00'
    """
    if times in PER_SECOND:
        return _counted(PER_SECOND[times])
    of_text = iso_moment(zone)

    def read(value: object) -> datetime:
        if isinstance(value, date) and not isinstance(value, datetime):
            value = datetime.combine(value, time())
        if isinstance(value, datetime) and value.tzinfo is None:
            value = value.replace(tzinfo=zone)
        return of_text(value)

    return read


def _counted(per_second: int) -> Moment:
    def read(value: object) -> datetime:
        if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
            raise ValueError("should be a number")
        try:
            exact = Fraction(value) * 1_000_000 / per_second
            return _EPOCH + timedelta(microseconds=math.floor(exact))
        except (ArithmeticError, ValueError):
            raise ValueError("should be a count from 1970 on, before the year 10000") from None

    return read


def _of_float(value: float) -> float | str:
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _of_datetime(value: datetime) -> str:
    return (value if value.tzinfo is None else value.astimezone(UTC)).isoformat()


_KNOWN: dict[type, Callable[[Any], Any]] = {
    float: _of_float,
    Decimal: lambda value: format(value, "f"),
    datetime: _of_datetime,
    date: date.isoformat,
    time: time.isoformat,
    bytes: bytes.hex,
    bytearray: bytearray.hex,
    memoryview: memoryview.hex,
    list: lambda value: [json_value(each) for each in value],
    tuple: lambda value: [json_value(each) for each in value],
    dict: lambda value: {str(name): json_value(each) for name, each in value.items()},
}
