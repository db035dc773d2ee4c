"""The formats in which sources write timestamps and accept them in requests.

- No timestamp that is read is rounded up, and no end of a range is rounded down. A source that
  counts in days is asked for the whole day in which a range begins or ends, and surplus records are
  stored.
- A time without offset is in the declared zone. A time that a clock shows twice, or never, is read
  as the earlier of the two possible instants, and requested and compared as the later: so no
  watermark passes unread records.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Annotated
from zoneinfo import ZoneInfo

from pydantic import AfterValidator

from ladon_storage.collection.json_values import Number
from ladon_storage.sources import timestamp_patterns as time_patterns
from ladon_storage.sources.timestamp_texts import (
    EPOCH,
    read_count,
    read_iso,
    read_text,
    since_1970,
)
from ladon_storage.values import parse_timestamp, to_utc

TimestampParser = Callable[[object], datetime]
"""A function that returns the instant of an item's value.

Raises:
    ValueError: It has none.
"""

_MICROSECOND = timedelta(microseconds=1)
_TO_SECONDS = len("2024-01-02T03:04:0")

# The finest unit of a pattern, and the unit to which a range's end is rounded up.
_PARTS = (
    (("%f",), _MICROSECOND),
    (("%S", "%T", "%s", "%c", "%X"), timedelta(seconds=1)),
    (("%M", "%R"), timedelta(minutes=1)),
    (("%H", "%I"), timedelta(hours=1)),
)
PER_SECOND = {
    "seconds": 1,
    "milliseconds": 1_000,
    "microseconds": 1_000_000,
    "nanoseconds": 1_000_000_000,
}
"""The units of counts from 1970, and their number in a second."""


def timestamp_parser(forms: str | Sequence[str], zone: tzinfo = UTC) -> TimestampParser:
    """Return the parser for times in one format, or each in one of several.

    A format is one of `PER_SECOND`, a pattern such as ``%d.%m.%Y``, or ``iso``: any unambiguous
    text, and any unambiguous count from 1970.

    Raises:
        ValueError: The format is unknown, or names a zone that only a declared one tells.

    >>> timestamp_parser(["%d.%m.%Y", "iso"])("27.08.2024").isoformat()
    '2024-08-27T00:00:00+00:00'
    """
    names = [forms] if isinstance(forms, str) else list(forms)
    moments = [_parser_of(name, zone) for name in names]
    if len(moments) == 1:
        return moments[0]

    def read(value: object) -> datetime:
        for moment in moments:
            try:
                return moment(value)
            except ValueError:
                continue
        raise ValueError(f"should be written in one of the forms {', '.join(names)}")

    return read


def _parser_of(form: str, zone: tzinfo) -> TimestampParser:
    if form in PER_SECOND:
        return unix_timestamps(PER_SECOND[form])
    if form == "iso":
        return any_timestamps(zone)
    of_pattern, zone = time_patterns.reader_of(form), time_patterns.zone_of_clock(form, zone)

    def read(value: object) -> datetime:
        if isinstance(value, bool) or not isinstance(value, str | int | Number):
            raise ValueError(f"should be written as {form}")
        return earliest(of_pattern(str(value)), zone)

    return read


def iso_timestamps(zone: tzinfo = UTC) -> TimestampParser:
    """Return a parser for ISO 8601 texts; a naive one is in ``zone``, and " UTC" is an offset.

    >>> iso_timestamps()("2026-07-08 19:05:04 UTC").isoformat()
    '2026-07-08T19:05:04+00:00'
    """
    return _text_parser(read_iso, parse_timestamp, zone)


def any_timestamps(zone: tzinfo = UTC) -> TimestampParser:
    """Return a parser for any unambiguous timestamp: texts, and counts from 1970.

    >>> [any_timestamps()(each).isoformat() for each in ("Aug 27, 2024 2:00 PM", 1724767200000)]
    ['2024-08-27T14:00:00+00:00', '2024-08-27T14:00:00+00:00']
    """

    def counted(value: object) -> datetime:
        if isinstance(value, int | float | Number) and not isinstance(value, bool):
            try:
                return read_text(str(value)) if isinstance(value, int) else read_count(str(value))
            except ValueError:
                pass
        return parse_timestamp(value)

    return _text_parser(read_text, counted, zone)


def _text_parser(
    read_slowly: Callable[[str], datetime], other: TimestampParser, zone: tzinfo
) -> TimestampParser:
    is_utc = zone is UTC

    def read_texts(texts: list[str]) -> tuple[list[datetime], list[str]] | None:
        return _read_alike(texts, is_utc=is_utc)

    def read(value: object) -> datetime:
        # Nearly all are written like this, and a faster parser recognises nothing else reliably.
        if (
            is_utc
            and type(value) is str
            and len(value) > _TO_SECONDS
            and value[4] == "-"
            and value[10] in "T "
            and value[13] == value[16] == ":"
            and value[-1] != "C"
        ):
            try:
                found = datetime.fromisoformat(value)
                return found if found.tzinfo is UTC else to_utc(found)
            except ValueError:
                pass
        if isinstance(value, datetime):
            return earliest(value, zone)
        if not isinstance(value, str):
            return earliest(other(value), zone)
        # Without a colon a fraction is one of an hour or a minute, which Python does not support.
        if (
            value[4:5] == "-"
            and value[10:11] in "T "
            and value[13:14] in ":"
            and value[16:17] in ":"
        ):
            try:
                if value.endswith(" UTC"):
                    return to_utc(datetime.fromisoformat(value[:-4]))
                return earliest(datetime.fromisoformat(value), zone)
            except ValueError:
                pass
        try:
            return earliest(read_slowly(value), zone)
        except ValueError:
            return parse_timestamp(None)  # its message states the expected value

    setattr(read, _MANY, read_texts)
    return read


_MANY = "read_many"
_ZEROS = bytes.maketrans(b"123456789", b"0" * 9)
_ALIKE = re.compile(rb"0000-00-00[T ]00:00:00(\.000(?:000)?)?(Z|\+00:00)?")


def read_many(
    parser: TimestampParser, values: Sequence[object]
) -> tuple[list[datetime], list[str]] | None:
    """Return the instants of texts of one usual form, also as texts, at less cost.

    ``None``: the parser has to read each of them.

    >>> read_many(any_timestamps(), ["2024-08-27 12:00:00"])[1]
    ['2024-08-27T12:00:00.000000+00:00']
    """
    read = getattr(parser, _MANY, None)
    if read is None or set(map(type, values)) != {str}:
        return None
    found: tuple[list[datetime], list[str]] | None = read(values)
    return found


def _read_alike(texts: list[str], *, is_utc: bool) -> tuple[list[datetime], list[str]] | None:
    """Return the instants of texts in UTC that differ in nothing but their digits."""
    together, count = "\n".join(texts), len(texts)
    if not together.isascii():
        return None
    form = texts[0].encode().translate(_ZEROS)
    found = _ALIKE.fullmatch(form)
    if found is None or together.encode().translate(_ZEROS) != b"\n".join([form] * count):
        return None
    offset = (found[2] or b"").decode()
    if not offset and not is_utc:
        return None
    if offset == "+00:00" and together.count(offset) != count:
        return None
    rest = (".000000" if found[1] is None else "0" * (7 - len(found[1]))) + "+00:00"
    # All at once: a piece of each text would be an object of its own.
    plain = f"{together}\n".replace(" ", "T").replace(f"{offset}\n", f"{rest}\n")
    instants = plain.splitlines()
    try:
        return list(map(datetime.fromisoformat, instants)), instants
    except ValueError:  # second 60, hour 24 or an invalid date
        return None


def unix_timestamps(per_second: int = 1) -> TimestampParser:
    """Return a parser for counts from 1970, as numbers or as texts of digits.

    >>> unix_timestamps(1_000)("1517966996303").isoformat()
    '2018-02-07T01:29:56.303000+00:00'
    """

    def read(value: object) -> datetime:
        # By the digits that were sent: a float is too coarse.
        if isinstance(value, str | int | float | Number) and not isinstance(value, bool):
            try:
                return since_1970(str(value).strip(), per_second)
            except ValueError:
                pass
        raise ValueError("should be a count from 1970 on, before the year 10000")

    return read


def earliest(wall: datetime, zone: tzinfo) -> datetime:
    """Return the UTC instant of a time; a naive one is the earliest that it can be in ``zone``.

    Raises:
        ValueError: It is outside of the years 1 to 9999.

    >>> earliest(datetime(2024, 10, 27, 2, 30), ZoneInfo("Europe/Berlin")).isoformat()
    '2024-10-27T00:30:00+00:00'
    """
    if wall.tzinfo is not None or zone is UTC:
        return to_utc(wall)
    first, second = (to_utc(wall.replace(tzinfo=zone, fold=fold)) for fold in (0, 1))
    return min(first, second)


def earliest_wall(start: datetime, zone: tzinfo) -> datetime:
    """Return the earliest time that a clock in ``zone`` shows at an instant or after it, naive.

    Where the clock is about to be set back, that is the time to which it is set.

    >>> earliest_wall(datetime(2024, 10, 27, 0, 50, tzinfo=UTC), ZoneInfo("Europe/Berlin"))
    datetime.datetime(2024, 10, 27, 2, 0)
    """
    local = _local(start, zone)
    shift = _set_back(local)
    if shift and not local.fold:
        return _wall(_change(start, start + shift, zone), zone)
    return local.replace(tzinfo=None, fold=0)


def latest_wall(until: datetime, zone: tzinfo) -> datetime:
    """Return the naive upper bound of the times that a clock in ``zone`` shows before an instant.

    If the clock was set back, that is the time from which it was set.

    >>> latest_wall(datetime(2024, 10, 27, 1, 10, tzinfo=UTC), ZoneInfo("Europe/Berlin"))
    datetime.datetime(2024, 10, 27, 3, 0)
    """
    local = _local(until, zone)
    shift = _set_back(local)
    if shift and local.fold:
        change = _change(until - shift, until, zone)
        return _wall(change - _MICROSECOND, zone) + _MICROSECOND
    return local.replace(tzinfo=None, fold=0)


def _local(instant: datetime, zone: tzinfo) -> datetime:
    try:
        return instant.astimezone(zone)
    except OverflowError:  # at the ends of the calendar, where there are no records
        return instant


def _set_back(local: datetime) -> timedelta | None:
    """Return how far the clock was set back between the two instants of a time, if it was."""
    before, after = (local.replace(fold=fold).utcoffset() for fold in (0, 1))
    if before is None or after is None or before <= after:
        return None
    return before - after


def _change(before: datetime, after: datetime, zone: tzinfo) -> datetime:
    """Return the first instant after ``before`` at which a zone has the offset of ``after``."""
    old = before.astimezone(zone).utcoffset()
    while after - before > _MICROSECOND:
        middle = before + (after - before) / 2
        if middle.astimezone(zone).utcoffset() == old:
            before = middle
        else:
            after = middle
    return after


def _wall(instant: datetime, zone: tzinfo) -> datetime:
    return instant.astimezone(zone).replace(tzinfo=None, fold=0)


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
        ValueError: There is no such zone.
    """
    if name == "UTC":
        return UTC
    try:
        return ZoneInfo(name)
    except (OSError, ValueError, KeyError):
        raise ValueError("should be a time zone such as UTC or Europe/Berlin") from None


ZoneName = Annotated[str, AfterValidator(check_zone)]


def check_format(value: str) -> str:
    """Return ``value`` if it is a format for writing timestamps.

    Raises:
        ValueError: It is not.
    """
    if value not in ("iso", "date", *PER_SECOND) and "%" not in value:
        raise ValueError(
            f"should be one of iso, {', '.join(PER_SECOND)}, date, or a pattern such as "
            "%Y-%m-%dT%H:%M:%SZ"
        )
    time_patterns.check_hours(value)
    return value


TimestampFormat = Annotated[str, AfterValidator(check_format)]
"""A format for writing timestamps: a name of `format_timestamp`, or a pattern of strftime."""


def check_readable_format(value: str) -> str:
    """Return ``value`` if it is a format of `timestamp_parser`.

    Raises:
        ValueError: It is not.
    """
    if value != "iso" and value not in PER_SECOND:
        if "%" not in value:
            raise ValueError(
                f"should be one of iso, {', '.join(PER_SECOND)}, or a pattern such as %d/%m/%Y"
            )
        time_patterns.reader_of(value)
    return value


ReadableFormat = Annotated[str, AfterValidator(check_readable_format)]
"""A format for reading timestamps."""


def format_timestamp(instant: datetime, form: str, zone: tzinfo = UTC, *, up: bool = False) -> str:
    """Return a timestamp in a source's format, rounded down to its unit, or ``up``.

    A format without an offset gives a time on the clock of ``zone``: the earliest that the clock
    shows from the instant on, or, with ``up``, the one that it never passes before it. A pattern
    that ends in a zone, such as a literal ``Z``, is in that zone.

    >>> moment = datetime(2024, 1, 2, 3, 4, 5, 600_000, tzinfo=UTC)
    >>> [format_timestamp(moment, form) for form in ("iso", "seconds", "milliseconds", "date")]
    ['2024-01-02T03:04:05.600000Z', '1704164645', '1704164645600', '2024-01-02']
    >>> format_timestamp(moment, "date", up=True), format_timestamp(moment, "%d.%m.%Y %H:%M",
    ...     up=True)
    ('2024-01-03', '02.01.2024 03:05')
    """
    if form == "iso":
        return instant.astimezone(UTC).replace(tzinfo=None).isoformat() + "Z"
    if form in PER_SECOND:
        # Whole microseconds are a whole number of nanoseconds, and no whole one of seconds.
        count = (instant - EPOCH) // _MICROSECOND * PER_SECOND[form]
        return str(-(-count // 1_000_000) if up else count // 1_000_000)
    pattern = "%Y-%m-%d" if form == "date" else form
    zone = time_patterns.zone_of_clock(pattern, zone)
    step = _step_of(pattern)
    if time_patterns.tells_instant(pattern):
        local = instant.astimezone(zone)
    else:
        local = (latest_wall if up else earliest_wall)(instant, zone).replace(tzinfo=UTC)
    return time_patterns.write(_rounded_up(local, step) if up else local, pattern)


def _step_of(pattern: str) -> timedelta:
    for parts, step in _PARTS:
        if any(part in pattern for part in parts):
            return step
    return timedelta(days=1)


def _rounded_up(local: datetime, step: timedelta) -> datetime:
    beyond = (local.replace(tzinfo=UTC) - EPOCH) % step
    try:
        return local + (step - beyond) if beyond else local
    except OverflowError:
        return local
