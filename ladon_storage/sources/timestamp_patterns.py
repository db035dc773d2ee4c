"""Patterns of times, such as ``%d/%b/%Y:%H:%M:%S %z``, the same in every locale.

- Names of months and days are English, whatever the locale of the process is.
- A pattern with a literal ``Z`` or offset behind its clock is in that zone, whatever was declared.
  Likewise one with ``%z`` or ``%s`` defines an instant.
- A name such as ``CET`` is no fixed offset: the declared zone tells it, and without one it is
  refused, unless it is a name of RFC 2822. Other letters, such as ``Uhr``, are letters.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone, tzinfo

from ladon_storage.sources.timestamp_texts import (
    EPOCH,
    MONTHS,
    WEEKDAYS,
    ZONE_HOURS,
    clocked,
    day_of_year,
    hour_of_half,
    month_number,
    offset_zone,
)

_SHORT = {"%T": "%H:%M:%S", "%R": "%H:%M", "%F": "%Y-%m-%d", "%D": "%m/%d/%y"}
_READ = {
    "%Y": r"(?P<Y>\d{4})",
    "%y": r"(?P<y>\d\d)",
    "%m": r"(?P<m>\d{1,2})",
    "%b": rf"(?P<b>{'|'.join(f'{name[:3]}(?:{name[3:]})?' for name in MONTHS)})\.?",
    "%d": r" ?(?P<d>\d{1,2})",
    "%j": r"(?P<j>\d{3})",
    "%H": r" ?(?P<H>\d{1,2})",
    "%I": r" ?(?P<I>\d{1,2})",
    "%M": r"(?P<M>\d\d)",
    "%S": r"(?P<S>\d\d)",
    "%f": r"(?P<f>\d+)",
    "%p": r"(?P<p>[AP])\.?M\.?",
    "%a": rf"(?:{'|'.join(f'{name[:3]}(?:{name[3:]})?' for name in WEEKDAYS)})\.?",
    "%z": r"(?P<z>Z|[+-]\d\d:?\d\d)",
    "%Z": r"(?P<Z>UTC|GMT|UT|Z)",
    "%s": r"(?P<s>-?\d{1,12})",
    "%%": "%",
}
_READ |= {"%B": _READ["%b"], "%h": _READ["%b"], "%A": _READ["%a"], "%e": _READ["%d"]}
_DIRECTIVE = re.compile(r"%.?", re.DOTALL)
_CLOCK = {"%H", "%I", "%M", "%S", "%f", "%p", "%k", "%l", "%P", "%r", "%c", "%X"}
_HALVES = {"%p", "%P", "%r", "%c", "%X"}
_HOURS = {"%H", "%k", "%s", *_HALVES}

# What the letters directly behind a clock may state. A pattern of a request may be a whole query,
# whose other letters are of anything.
_ZONE = re.compile(
    r"(?::\d\d)*(?:[.,]\d+)?[\s(\[]*(?:"
    r"(?P<offset>(?:(?:UTC|GMT) ?[+-](?:0\d|1[0-4]|\d)|[+-](?:0\d|1[0-4]))(?::?[0-5]\d)?(?!\d))|"
    r"(?P<utc>(?:Z|UT|(?i:UTC|GMT|Zulu))(?![A-Za-z])|z$)|"
    r"(?P<name>(?:[A-Z][A-Z]T|[ECMP]T|(?:A[CEKW]|NZ|HA|SA|Ch)[SD]T|[CEW]EST|MS[KD]|[MOW]ES?Z|"
    r"(?:[A-Za-z]+ )*(?:Standard|Daylight|Summer) Time|[A-Z][a-z]+/[A-Z][A-Za-z_]+)"
    r"(?![A-Za-z])))"
)
_ZONE_OF_DAY = re.compile(r"(?:Z|UTC|GMT|(?P<offset>[+-]\d\d:?\d\d))'?$")
_HALF = re.compile(r"[AP]\.?M\.?", re.IGNORECASE)


def zone_of_clock(pattern: str, declared: tzinfo = UTC) -> tzinfo:
    """Return the zone of a pattern's times: the one that its letters state, or the declared one.

    Raises:
        ValueError: They name a zone without a fixed offset, and none but UTC was declared.

    >>> zone_of_clock("%Y-%m-%dT%H:%M:%SZ"), zone_of_clock("%H:%M UTC+2")
    (datetime.timezone.utc, datetime.timezone(datetime.timedelta(seconds=7200)))
    """
    if tells_instant(pattern):
        return declared
    parts = ["", *_DIRECTIVE.findall(_long(pattern))]
    letters = _DIRECTIVE.split(_long(pattern))
    if not _CLOCK.intersection(parts):
        found = _ZONE_OF_DAY.search(letters[-1])
        return declared if found is None else offset_zone(found["offset"] or "Z")
    found = _ZONE.match(letters[max(n for n, part in enumerate(parts) if part in _CLOCK)])
    if found is None:
        return declared
    if found["offset"]:
        return offset_zone(found["offset"].lstrip("UTCGM "))
    if found["utc"]:
        return UTC
    if declared is not UTC:
        return declared
    if (name := found["name"]) in ZONE_HOURS:
        return timezone(timedelta(hours=ZONE_HOURS[name]))
    raise ValueError(
        f"{pattern} names the zone {name!r}, which has no fixed offset; set zone to the one "
        "that is meant, such as Europe/Berlin, or Etc/UTC"
    )


def _behind_clock(pattern: str) -> tuple[str, bool]:
    """Return the letters behind a pattern's clock, or all without one, and if they are its end."""
    parts = ["", *_DIRECTIVE.findall(_long(pattern))]
    last = max((n for n, part in enumerate(parts) if part in _CLOCK), default=0)
    return " ".join(_DIRECTIVE.split(_long(pattern))[last:]).strip(), last == len(parts) - 1 > 0


def check_hours(pattern: str) -> None:
    """Raise `ValueError` if a pattern's hours are those of either half of a day."""
    parts = {*_DIRECTIVE.findall(_long(pattern))}
    letters, is_end = _behind_clock(pattern)
    if is_end and (half := _HALF.fullmatch(letters)) and not parts & _HALVES:
        raise ValueError(f"should be a pattern with %I, and with %p in place of {half[0]}")
    if parts & {"%I", "%l"} and not parts & _HOURS:
        raise ValueError("should be a pattern with %p next to %I, or with %H for 24 hours")


def tells_instant(pattern: str) -> bool:
    """Return whether a text of the pattern is the same instant in any zone."""
    return bool({"%z", "%Z", "%s"}.intersection(_DIRECTIVE.findall(_long(pattern))))


def reader_of(pattern: str) -> Callable[[str], datetime]:
    """Return the parser for texts of a pattern; a time without a zone is naive.

    Raises:
        ValueError: The pattern has an unknown directive, has one twice, or does not determine the
            day, or the half of it.

    >>> reader_of("%d/%b/%Y:%H:%M:%S %z")("27/Aug/2024:12:00:00 +0200").isoformat()
    '2024-08-27T12:00:00+02:00'
    """
    pattern = _long(pattern)
    parts = _DIRECTIVE.findall(pattern)
    if unknown := sorted({*parts} - _READ.keys()):
        raise ValueError(f"should be a pattern without {', '.join(unknown)}")
    named = {*parts}
    by_date = named & {"%Y", "%y"} and (
        "%j" in named or (named & {"%d", "%e"} and named & {"%m", "%b", "%B", "%h"})
    )
    if not by_date and "%s" not in named:
        raise ValueError("should be a pattern with a year, a month and a day")
    check_hours(pattern)
    literals = _DIRECTIVE.split(pattern)
    expression = "".join(
        _literal(text) + (_READ[part] if part else "")
        for text, part in zip(literals, [*parts, ""], strict=True)
    )
    try:
        form = re.compile(expression, re.IGNORECASE | re.ASCII)
    except re.error:
        raise ValueError("should be a pattern that has each directive once") from None

    def read(text: str) -> datetime:
        found = form.fullmatch(" ".join(text.split()))
        if found is None:
            raise ValueError(f"should be written as {pattern}")
        return _moment(found.groupdict())

    return read


def write(moment: datetime, pattern: str) -> str:
    """Return an aware time in a pattern's form, on the clock of its own zone.

    >>> write(datetime(2024, 8, 7, 15, 4, 5, tzinfo=UTC), "%a, %d %b %Y %I:%M %p %s")
    'Wed, 07 Aug 2024 03:04 PM 1723043045'
    """

    def formatted(found: re.Match[str]) -> str:
        part = found[0]
        known = _WRITTEN.get(part)
        return known(moment) if known else moment.strftime(part)

    return _DIRECTIVE.sub(formatted, _long(pattern))


# The directives that strftime writes in the locale's language, or differently on each platform.
_WRITTEN: dict[str, Callable[[datetime], str]] = {
    "%Y": lambda moment: f"{moment.year:04}",
    "%b": lambda moment: MONTHS[moment.month - 1][:3],
    "%h": lambda moment: MONTHS[moment.month - 1][:3],
    "%B": lambda moment: MONTHS[moment.month - 1],
    "%a": lambda moment: WEEKDAYS[moment.weekday()][:3],
    "%A": lambda moment: WEEKDAYS[moment.weekday()],
    "%p": lambda moment: "AM" if moment.hour < 12 else "PM",
    "%s": lambda moment: str((moment - EPOCH) // timedelta(seconds=1)),
}


def _long(pattern: str) -> str:
    return _DIRECTIVE.sub(lambda found: _SHORT.get(found[0], found[0]), pattern)


def _literal(text: str) -> str:
    return r"\s*".join(map(re.escape, re.split(r"\s+", text)))


def _moment(part: dict[str, str | None]) -> datetime:
    if (count := part.get("s")) is not None:
        return EPOCH + timedelta(seconds=int(count))
    year = part.get("Y") or _century(part["y"] or "")
    if part.get("j"):
        day = day_of_year(int(year), int(part["j"] or 0))
    else:
        month = month_number(part.get("m") or part.get("b") or "")
        day = datetime(int(year), month, int(part.get("d") or 0))  # noqa: DTZ001 - no zone yet
    hour = int(part.get("H") or part.get("I") or 0)
    # From 13 on the half repeats what the hour says; up to 12 it is a part of it.
    if (half := part.get("p")) and (part.get("I") or hour <= 12):
        hour = hour_of_half(hour if part.get("I") else hour or 12, half)
    moment = clocked(day, hour, int(part.get("M") or 0), int(part.get("S") or 0), part.get("f"))
    if offset := part.get("z"):  # which may follow a name, as in GMT+0200
        return moment.replace(tzinfo=offset_zone(offset))
    return moment.replace(tzinfo=UTC) if part.get("Z") else moment


def _century(digits: str) -> str:
    # As in POSIX.
    return ("20" if int(digits) < 69 else "19") + digits
