"""The JSON form of a database's values, and the instants of its timestamps.

- Nothing is lost: a value without a JSON type becomes a text, whatever type the driver made of it.
  A decimal number is a text too, since readers of JSON make a float of it. Bytes are hexadecimal
  digits. A time with an offset is written in UTC, so that a server whose zone changes has not
  changed its rows.
- A text must be the same each time: one that contains a memory address is refused.
- A timestamp is cut to microseconds, never rounded up.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence, Set
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from struct import pack
from typing import Any, Literal

from ladon_storage.collection.json_values import Number, parse_json
from ladon_storage.sources.timestamps import (
    PER_SECOND,
    TimestampParser,
    earliest,
    iso_timestamps,
)
from ladon_storage.values import EPOCH

SqlTimestampFormat = Literal[
    "datetime", "text", "seconds", "milliseconds", "microseconds", "nanoseconds"
]
"""The format of a time column: its own type, ISO 8601 texts, or counts from 1970."""

_CLOCK_SHIFT = timedelta(hours=2)
"""A limit above any change of a clock to or from daylight saving time."""

_ADDRESS = re.compile(r"\bat 0x[0-9a-f]+", re.IGNORECASE)

_RANGE = ("lower", "upper", "lower_inc", "upper_inc", "isempty")
_QUOTED = re.compile(r'[\s()\[\]{},"\\]|^$')


def json_value(value: object) -> Any:
    r"""Return the JSON form of a value.

    Raises:
        ValueError: It has no JSON form.

    >>> json_value([Decimal("1.10"), b"\x01\xff", float("-inf"), date(2024, 1, 2)])
    ['1.10', '01ff', '-Infinity', '2024-01-02']
    """
    if value is None or isinstance(value, str | int):  # a truth value is an int
        return value
    known = _KNOWN.get(type(value))
    if known is not None:
        return known(value)
    if all(hasattr(value, name) for name in _RANGE):
        return _of_range(value)
    for kind, form in _KINDS:
        if isinstance(value, kind):
            return form(value)
    return _text(value)


def id_text(value: object) -> str:
    """Return the record id for a row's id.

    Raises:
        ValueError: There is none.
    """
    found = json_value(value)
    if isinstance(found, bool) or not isinstance(found, str | int | float):
        raise ValueError("should be a text or a number")
    return str(found)


def row_timestamp(times: SqlTimestampFormat, zone: tzinfo) -> TimestampParser:
    """Return the parser for the values of a timestamp column.

    >>> row_timestamp("milliseconds", UTC)(Decimal("1517966996303.9999")).isoformat()
    '2018-02-07T01:29:56.303999+00:00'
    """
    if times in PER_SECOND:
        return _counted(PER_SECOND[times])
    of_text = iso_timestamps(zone)

    def read(value: object) -> datetime:
        if isinstance(value, date) and not isinstance(value, datetime):
            value = datetime.combine(value, time())
        return earliest(value, zone) if isinstance(value, datetime) else of_text(value)

    return read


def _counted(per_second: int) -> TimestampParser:
    def read(value: object) -> datetime:
        if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
            raise ValueError("should be a number")
        try:
            exact = Fraction(value) * 1_000_000 / per_second
            return EPOCH + timedelta(microseconds=math.floor(exact))
        except (ArithmeticError, ValueError):
            raise ValueError("should be a count from 1970 on, before the year 10000") from None

    return read


def clock_spread(instant: datetime, zone: tzinfo) -> timedelta:
    """Return the change of a zone's clock around an instant; usually zero.

    >>> from zoneinfo import ZoneInfo
    >>> clock_spread(datetime(2024, 10, 27, 0, 30, tzinfo=UTC), ZoneInfo("Europe/Berlin"))
    datetime.timedelta(seconds=3600)
    """
    if zone is UTC:
        return timedelta(0)
    try:
        offsets = [
            (instant + by).astimezone(zone).utcoffset() or timedelta(0)
            for by in (-_CLOCK_SHIFT, timedelta(0), _CLOCK_SHIFT)
        ]
    except OverflowError:  # at the ends of the calendar
        return timedelta(0)
    return max(offsets) - min(offsets)


def shifted(instant: datetime, by: timedelta) -> datetime:
    """Return an instant moved by a duration, within the years that exist in each zone."""
    try:
        return instant + by
    except OverflowError:
        end = date.max if by > timedelta(0) else date.min
        return datetime.combine(end, time(12), tzinfo=instant.tzinfo)


def single_precision(value: Any) -> Any:
    """Return a number of single precision with the fewest digits that identify it.

    >>> single_precision(0.10000000149011612), single_precision(1234567.0), single_precision(None)
    (0.1, 1234567.0, None)
    """
    if isinstance(value, float):
        for digits in range(6, 10):
            short = float(f"{value:.{digits}g}")
            if pack("f", short) == pack("f", value):
                return short
    return value


def json_document(text: str | bytes) -> Any:
    """Return the value of a JSON column; its text, if it is nested too deeply."""
    try:
        return parse_json(text)
    except (ValueError, RecursionError):
        return text if isinstance(text, str) else bytes(text).decode()


def _text(value: object) -> str:
    text = str(value)
    if _ADDRESS.search(text):
        raise ValueError(f"a value of the type {type(value).__name__} has no JSON form")
    return text


def _of_range(value: Any) -> str:
    """Return a range in PostgreSQL's notation.

    >>> from sqlalchemy.dialects.postgresql import Range
    >>> _of_range(Range(date(2024, 1, 1), None))
    '[2024-01-01,)'
    """
    if value.isempty:
        return "empty"
    bounds = []
    for bound in (value.lower, value.upper):
        text = "" if bound is None else str(json_value(bound))
        if bound is not None and _QUOTED.search(text):
            escaped = text.replace("\\", "\\\\").replace('"', '\\"')
            text = f'"{escaped}"'
        bounds.append(text)
    opens = "[" if value.lower_inc and value.lower is not None else "("
    closes = "]" if value.upper_inc and value.upper is not None else ")"
    return f"{opens}{','.join(bounds)}{closes}"


def _of_float(value: float) -> float | str:
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _of_datetime(value: datetime) -> str:
    return (value if value.tzinfo is None else value.astimezone(UTC)).isoformat()


def _of_list(value: Any) -> list[Any]:
    return [json_value(each) for each in value]


def _of_set(value: Any) -> list[Any]:
    return sorted(_of_list(value), key=lambda each: (type(each).__name__, str(each)))


_KINDS: tuple[tuple[type, Callable[[Any], Any]], ...] = (
    (float, _of_float),
    (Decimal, lambda value: format(value, "f")),
    (datetime, _of_datetime),
    (date, date.isoformat),
    (time, time.isoformat),
    (bytes, bytes.hex),
    (bytearray, bytearray.hex),
    (memoryview, memoryview.hex),
    (Enum, lambda value: value.name),
    (Mapping, lambda value: {str(name): json_value(each) for name, each in value.items()}),
    (Set, _of_set),
    (Sequence, _of_list),
)
"""The converters by type; the first match counts, and a value without one uses its own text."""

_KNOWN: dict[type, Callable[[Any], Any]] = {
    **{kind: form for kind, form in _KINDS if kind not in (Enum, Mapping, Set, Sequence)},
    Number: lambda value: value,
    list: _of_list,
    tuple: _of_list,
    dict: _KINDS[-3][1],
}
