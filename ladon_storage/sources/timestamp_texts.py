"""Unambiguous texts of timestamps, as feeds write them: ISO 8601, RFC 2822, in English.

- An ambiguous text is refused: 04/05/2025, a two-digit year, a zone name that is not one of RFC
  2822. An offset or a zone in the text is used; a time without one is returned naive.
- A leap second is read as the last microsecond before it, never as a later time. Digits beyond
  microseconds are cut off.
- Digits alone are a date, or a count from 1970 whose unit follows from its size: between 1990 and
  2100, seconds, milli-, micro- and nanoseconds cannot be confused. Nanoseconds begin in 1991: those
  of 1990 may be the ticks of .NET from the year 1, of 1990 to 2100. Ten digits that are a date of
  those years with an hour are refused. As seconds they are in 2033 to 2036.
- Fifteen digits or more that are a date of other years are a count where they can be one.
"""

from __future__ import annotations

import re
from calendar import isleap
from datetime import MAXYEAR, UTC, datetime, timedelta, timezone, tzinfo
from decimal import ROUND_FLOOR, Context, Decimal, DecimalException

MONTHS = (
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
)
WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

# The names in RFC 2822; any other abbreviation means several zones.
ZONE_HOURS = {"EST": -5, "EDT": -4, "CST": -6, "CDT": -5, "MST": -7, "MDT": -6, "PST": -8} | {
    "PDT": -7,
    **dict.fromkeys(("UTC", "GMT", "UT", "Z"), 0),
}
_YEARS = range(1990, 2100)
_YEARS_OF_TICKS = range(6276, 6624)  # the first four digits of those years' ticks
_COUNTS_SINCE, _COUNTS_UNTIL = Decimal(631_152_000), Decimal(4_102_444_800)  # 1990 and 2100
_NANOSECONDS_SINCE = Decimal(662_688_000)  # 1991
_SHORTEST_MICROSECONDS = 15
_EXACT = Context(prec=128)
_LONGEST_COUNT = 64
_LONGEST_TEXT = 100

_CLOCK = (
    r"(?P<hour>\d{1,2}):(?P<minute>\d\d)(?::(?P<second>\d\d)(?:[.,](?P<fraction>\d+))?)?"
    r"(?:\s?(?P<half>[AP])\.?M\.?)?"
)
# Browsers write one digit for an hour, after a name alone: 7:00 AM GMT+2.
_OFFSET = r"(?P<offset>[+-](?:\d\d|(?<=GMT[+-]|UTC[+-])\d)(?::?\d\d)?)"
_ZONE = rf"(?P<zone>(?:(?:GMT|UTC)?{_OFFSET}(?:\s?UTC|\s?GMT)?)|[A-Z]{{1,3}})"
_YEAR_FIRST = re.compile(
    r"(?P<year>\d{4})(?P<mark>[-/.])(?P<month>\d{1,2})(?P=mark)(?P<day>\d{1,2})"
    rf"(?:[T_\s]\s?{_CLOCK})?(?:\s?{_ZONE}(?:\[[A-Z0-9_/+-]+\])?)?"
)
# A zone distinguishes a time without a separator, as in LDAP, from a count.
_BASIC = re.compile(
    r"(?P<year>\d{4})(?P<month>\d\d)(?P<day>\d\d)(?:[T_\s]|(?=\d{4,6}(?:[.,]\d+)?[Z+-]))"
    r"(?P<hour>\d\d):?(?P<minute>\d\d)"
    rf"(?::?(?P<second>\d\d)(?:[.,](?P<fraction>\d+))?)?(?:\s?{_ZONE})?"
)
# DB2, and the names of files, which have no colon.
_WITHOUT_COLON = re.compile(
    r"(?P<year>\d{4})-(?P<month>\d\d)-(?P<day>\d\d)[T_\s-](?P<hour>\d\d)(?P<mark>[.-])"
    rf"(?P<minute>\d\d)(?P=mark)(?P<second>\d\d)(?:[.,](?P<fraction>\d+))?(?:\s?{_ZONE})?"
)
_ORDINAL = re.compile(rf"(?P<year>\d{{4}})-(?P<ordinal>\d{{3}})(?:[T\s]{_CLOCK})?(?:\s?{_ZONE})?")
_OTHER_ISO = re.compile(
    r"(?P<day>\d{4}-?W\d\d(?:-?\d)?|\d{4}-\d\d-\d\d|\d{8})"
    r"(?:[T\s](?P<hour>\d\d)(?::?(?P<minute>\d\d)(?::?(?P<second>\d\d))?)?"
    r"(?:[.,](?P<fraction>\d+))?)?(?:\s?(?P<zone>Z|[+-]\d\d[\d:.]*))?"
)
_DIGITS = re.compile(r"(\d{8})(?:(\d\d)(\d\d)(?:(\d\d)(\d{1,9})?)?)?")
_DOT_NET = re.compile(r"/Date\((-?\d{1,17})(?:[+-]\d{4})?\)/")
_MONTH = "|".join(f"{name[:3]}(?:{name[3:]})?" for name in MONTHS).upper().replace("SEP(", "SEPT?(")
_DAY = r"(?P<day>\d{1,2})(?:ST|ND|RD|TH)?"
_NAMED = tuple(
    re.compile(rf"(?:(?:{'|'.join(f'{d[:3]}(?:{d[3:]})?' for d in WEEKDAYS).upper()}),? )?{form}")
    for form in (
        rf"{_DAY}[ -/]\.?(?P<month>{_MONTH})\.?,?[ -/](?P<year>\d{{4}})"
        rf"(?:(?:,? (?:AT )?|:){_CLOCK})?(?: ?{_ZONE})?",
        rf"(?P<month>{_MONTH})\.? {_DAY},? (?P<year>\d{{4}})"
        rf"(?:,? (?:AT )?{_CLOCK})?(?: ?{_ZONE})?",
        rf"(?P<month>{_MONTH}) {_DAY} {_CLOCK}(?: {_ZONE})? (?P<year>\d{{4}})",
        rf"(?P<year>\d{{4}})[ /-](?P<month>{_MONTH})\.?[ /-]{_DAY}(?:[ :]{_CLOCK})?(?: ?{_ZONE})?",
    )
)
_COMMENT = re.compile(r" ?\([^()]*\)$")
# Go writes the zone's name after its offset, or the offset again, and the clock of the process.
_AFTER_OFFSET = re.compile(
    r"(?<= [+-]\d{4}) (?![AP]M)(?:[A-Z]{1,5}|[+-]\d\d(?:\d\d)?)(?: M=[+-][\d.]+)?$", re.IGNORECASE
)


def read_iso(text: str) -> datetime:
    """Return the instant of an ISO 8601 text, RFC 3339 whole; naive where it has no offset.

    Raises:
        ValueError: It is invalid.

    >>> read_iso("2016-12-31t23:59:60z").isoformat(), read_iso("2024-08-27 24:00 +0200").isoformat()
    ('2016-12-31T23:59:59.999999+00:00', '2024-08-28T00:00:00+02:00')
    """
    plain = _spaced(text).upper()
    for form in (_YEAR_FIRST, _BASIC, _WITHOUT_COLON, _ORDINAL):
        if found := form.fullmatch(plain):
            return _read(found)
    if digits := _DIGITS.fullmatch(plain):
        return _of_digits(digits)
    if found := _OTHER_ISO.fullmatch(plain):
        return _of_other_iso(found)
    raise ValueError("no ISO 8601")


def read_text(text: str) -> datetime:
    """Return the instant of an unambiguous text; naive where it has no offset.

    Raises:
        ValueError: It is no time, or an ambiguous one.

    >>> read_text("Tue, 27 Aug 2024 12:00:00 GMT") == read_text("1724760000000")
    True
    >>> read_text("Apr 16, 2025, 7:00:16 PM").isoformat()
    '2025-04-16T19:00:16'
    """
    plain = _COMMENT.sub("", _spaced(text))
    try:
        moment = read_iso(plain)
    except ValueError:
        pass
    else:
        return _date_or_count(plain, moment)
    for form in _NAMED:
        if found := form.fullmatch(plain.upper()):
            return _read(found)
    if found := _DOT_NET.fullmatch(plain):
        return since_1970(found[1], 1_000)
    return read_count(plain)


def _date_or_count(plain: str, date: datetime) -> datetime:
    """Return the date that a text is; or the count, where its digits are one, and no usual date."""
    if len(plain) < _SHORTEST_MICROSECONDS or not plain.isdecimal():
        return date
    if date.year in _YEARS or date.year == MAXYEAR:  # of no end, as 99991231…
        return date
    try:
        return read_count(plain)
    except ValueError:
        if date.year in _YEARS_OF_TICKS:
            raise
        return date


def _spaced(text: str) -> str:
    """Return a text of ASCII with single spaces, without what repeats its offset."""
    spaced = " ".join(text.split())
    if len(spaced) > _LONGEST_TEXT or not spaced.isascii():
        raise ValueError("no time")
    return _AFTER_OFFSET.sub("", spaced)


def read_count(text: str) -> datetime:
    """Return the instant of a count from 1970, whose unit follows from its size.

    Raises:
        ValueError: It is not between 1990 and 2100 in any unit, or may be a date with an hour.
    """
    count = _decimal(text)
    if _is_date_with_hour(text):
        raise ValueError("a count, or a date with an hour")
    for per_second in (1, 1_000, 1_000_000, 1_000_000_000):
        since = _NANOSECONDS_SINCE if per_second == 1_000_000_000 else _COUNTS_SINCE
        if since * per_second <= count < _COUNTS_UNTIL * per_second:
            return since_1970(text, per_second)
    raise ValueError("no count")


def _is_date_with_hour(text: str) -> bool:
    if len(text) != len("2024082712") or not text.isdecimal() or int(text[:4]) not in _YEARS:
        return False
    try:
        datetime.strptime(text, "%Y%m%d%H")  # noqa: DTZ007 - it is not used
    except ValueError:
        return False
    return True


def since_1970(text: str, per_second: int) -> datetime:
    """Return the instant of a decimal count from 1970, cut to microseconds.

    Raises:
        ValueError: It is no number, or after the year 9999.
    """
    count = _decimal(text)
    if count and not -40 < count.adjusted() < 24:
        if count.adjusted() > 0:
            raise ValueError("beyond the year 9999")
        count = Decimal("-1e-30") if count < 0 else Decimal(0)
    microseconds = _EXACT.divide(_EXACT.multiply(count, Decimal(1_000_000)), Decimal(per_second))
    try:
        return EPOCH + timedelta(microseconds=int(microseconds.to_integral_value(ROUND_FLOOR)))
    except OverflowError:
        raise ValueError("beyond the year 9999") from None


def _decimal(text: str) -> Decimal:
    if len(text) > _LONGEST_COUNT or not text.isascii() or "_" in text:
        raise ValueError("no count")
    try:
        count = Decimal(text)
    except DecimalException:
        raise ValueError("no count") from None
    if not count.is_finite():
        raise ValueError("no count")
    return count


def _of_digits(found: re.Match[str]) -> datetime:
    date, hour, minute, second, fraction = found.groups()
    day = datetime.strptime(date, "%Y%m%d")  # noqa: DTZ007 - naive until a zone is applied
    return clocked(day, int(hour or 0), int(minute or 0), int(second or 0), fraction)


def _of_other_iso(found: re.Match[str]) -> datetime:
    # Python checks days and offsets. It accepts any fraction of a time as one of a second, and any
    # character before the time, including the sign of an offset.
    hour, minute, second, fraction = found.group("hour", "minute", "second", "fraction")
    day = datetime.fromisoformat(found["day"])
    of_second = fraction if second else None
    moment = clocked(day, int(hour or 0), int(minute or 0), int(second or 0), of_second)
    if fraction and not second:
        unit = timedelta(minutes=1) if minute else timedelta(hours=1)
        moment += unit * int(fraction) // 10 ** len(fraction)
    if found["zone"] is None:
        return moment
    return moment.replace(tzinfo=datetime.fromisoformat(f"2000-01-01T00:00{found['zone']}").tzinfo)


def _read(found: re.Match[str]) -> datetime:
    part = found.groupdict()
    year = int(part["year"])
    if part.get("ordinal"):
        day = day_of_year(year, int(part["ordinal"]))
    else:
        day = datetime(year, month_number(part["month"]), int(part["day"]))  # noqa: DTZ001
    hour = int(part["hour"] or 0)
    if half := part.get("half"):
        hour = hour_of_half(hour, half)
    moment = clocked(
        day, hour, int(part["minute"] or 0), int(part["second"] or 0), part["fraction"]
    )
    if part["zone"] is None:
        return moment
    return moment.replace(tzinfo=_zone(part["zone"], part["offset"]))


def day_of_year(year: int, number: int) -> datetime:
    """Return the day of a year by its number, from 1.

    Raises:
        ValueError: The year has no such day.
    """
    first = datetime(year, 1, 1)  # noqa: DTZ001 - as above
    days = 366 if isleap(year) else 365
    if not 1 <= number <= days:
        raise ValueError("no day of that year")
    return first + timedelta(days=number - 1)


def month_number(text: str) -> int:
    """Return the number of a month from its number or its English name."""
    if text.isdecimal():
        return int(text)
    return next(n for n, name in enumerate(MONTHS, 1) if name[:3].upper() == text[:3].upper())


def hour_of_half(hour: int, half: str) -> int:
    """Return the hour of the day from one before (``A``) or after (``P``) noon.

    Raises:
        ValueError: It is not from 1 to 12.
    """
    if not 1 <= hour <= 12:
        raise ValueError("no hour of half a day")
    return hour % 12 + (12 if half.upper().startswith("P") else 0)


def clocked(day: datetime, hour: int, minute: int, second: int, fraction: str | None) -> datetime:
    """Return a time of day; second 60 is the last microsecond before it, 24:00 the next day's 0.

    Raises:
        ValueError: There is no such time.
    """
    microsecond = int((fraction or "0")[:6].ljust(6, "0"))
    if second == 60:
        second, microsecond = 59, 999_999
    if (hour, minute, second, microsecond) == (24, 0, 0, 0):
        hour, day = 0, _next_day(day)
    return day.replace(hour=hour, minute=minute, second=second, microsecond=microsecond)


def _next_day(day: datetime) -> datetime:
    try:
        return day + timedelta(days=1)
    except OverflowError:
        raise ValueError("beyond the year 9999") from None


def offset_zone(offset: str) -> tzinfo:
    """Return the zone of an offset such as ``+02:00``, ``-0530``, ``+01``, ``+1`` or ``Z``.

    Raises:
        ValueError: It is no offset.
    """
    if offset.upper() == "Z":
        return UTC
    digits = offset[1:].replace(":", "")
    digits = digits.zfill(len(digits) + len(digits) % 2).ljust(4, "0")
    if int(digits[2:]) > 59:
        raise ValueError("no offset")
    shift = timedelta(hours=int(digits[:2]), minutes=int(digits[2:]))
    return timezone(-shift if offset[0] == "-" else shift)


def _zone(name: str, offset: str | None) -> tzinfo:
    if offset:
        return offset_zone(offset)
    if name not in ZONE_HOURS:
        raise ValueError("no zone that is one alone")
    return timezone(timedelta(hours=ZONE_HOURS[name]))
