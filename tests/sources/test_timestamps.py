"""Instants as sources write them and want to be told them, on clocks that are set back as well."""

from __future__ import annotations

import json
import locale
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from email.utils import format_datetime
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ladon_storage.collection.json_values import parse_json
from ladon_storage.collection.protocols import utc_now
from ladon_storage.collection.records import Record
from ladon_storage.collection.run import run
from ladon_storage.sources import source_from
from ladon_storage.sources.json.items import ItemReader
from ladon_storage.sources.timestamp_patterns import reader_of, zone_of_clock
from ladon_storage.sources.timestamps import (
    any_timestamps,
    check_format,
    check_readable_format,
    earliest,
    earliest_wall,
    format_timestamp,
    iso_timestamps,
    latest_wall,
    timestamp_parser,
    unix_timestamps,
)
from ladon_storage.testing.doubles import MemorySink, ScriptedStorage
from ladon_storage.testing.feed_server import Answer, Asked, FeedServer

ZONES = [
    "UTC",
    "Europe/Berlin",
    "America/New_York",
    "America/St_Johns",
    "Australia/Lord_Howe",  # by half an hour
    "Africa/Casablanca",  # backwards in summer, forwards after Ramadan
    "Pacific/Apia",  # left out a day
    "Asia/Kolkata",
]
BERLIN = ZoneInfo("Europe/Berlin")
MOMENT = datetime(2024, 8, 27, 12, tzinfo=UTC)

INSTANTS = st.datetimes(datetime(1990, 1, 2), datetime(2099, 12, 30), timezones=st.just(UTC))  # noqa: DTZ001


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


@pytest.mark.parametrize(
    "told",
    [
        "2024-08-27T12:00:00Z",
        "2024-08-27t12:00:00z",
        "2024-08-27 12:00:00",
        "2024-08-27 12:00:00 UTC",
        "2024-08-27 12:00:00 GMT",
        "2024-08-27T12:00:00UTC",
        "2024-08-27 12:00:00 +0000 UTC",
        "2024-08-27T14:00:00+02:00",
        "2024-08-27T14:00:00+0200",
        "2024-08-27T14:00:00 +02",
        "2024-08-27T14:00:00+02:00[Europe/Berlin]",
        "2024-08-27T12:00:00,000000999Z",
        "2024-08-27T12",
        "2024-08-27T1200Z",
        "20240827T120000Z",
        "2024-W35-2T12:00",
        "2024-240T12:00Z",
        "2024/08/27 12:00",
        "2024-8-27 12:00:00 PM",
        " 2024-08-27\u00a012:00 ",
        "20240827120000Z",
        "20240827140000.0+0200",
        "202408271200Z",
        "20240827_120000",
        "2024-08-27-12.00.00.000000",
        "2024-08-27T12-00-00Z",
        "2024-08-27 14:00:00.000000999 +0200 CEST m=+0.000123",
        "2024-08-27 15:00:00 +0300 +03",
        "2024-08-27 06:30:00 GMT-5:30",
    ],
)
def test_instant_is_read_in_every_iso_form(told: str) -> None:
    """RFC 3339 whole, ISO 8601 as far as Python has it, and what programs make of them."""
    assert iso_timestamps()(told) == any_timestamps()(told) == MOMENT


@pytest.mark.parametrize(
    ("told", "seconds"),
    [
        ("2024-08-27T12.5Z", 1_800),
        ("2024-08-27T12,5", 1_800),
        ("2024-08-27 12.25+00:00", 900),
        ("20240827T12.5Z", 1_800),
        ("2024-08-27T12:00.5Z", 30),
        ("2024-08-27T12:00,50", 30),
        ("2024-08-27T1200.5", 30),
        ("2024-W35-2T12:00.5Z", 30),
        ("2024-08-27T12:00.00000001", 0),
        ("2024-08-27T120000.5Z", 0.5),
        ("2024-W35-2T12:00:00.5", 0.5),
    ],
)
def test_fraction_is_one_of_the_smallest_unit(told: str, seconds: float) -> None:
    """ISO 8601 has fractions of minutes and hours as well; Python reads each as one of a second."""
    assert any_timestamps()(told) == iso_timestamps()(told) == MOMENT + timedelta(seconds=seconds)


@pytest.mark.parametrize("told", ["2024-W35-2+02:00", "2024W352+02:00", "2024-08-27+02:00"])
def test_offset_of_a_day_is_no_time_of_it(told: str) -> None:
    """A day may have an offset, as in XML; Python reads its sign as what stands before a time."""
    assert any_timestamps()(told) == datetime(2024, 8, 26, 22, tzinfo=UTC)


@pytest.mark.parametrize(
    "told",
    [
        "Tue, 27 Aug 2024 12:00:00 GMT",
        "27 Aug 2024 14:00:00 +0200",
        "Tue, 27 Aug 2024 08:00 EDT",
        "Aug 27, 2024, 12:00:00 PM",
        "Aug 27, 2024, 12:00:00\u202fPM",
        "August 27, 2024 at 12:00 p.m.",
        "27-Aug-2024 12:00:00",
        "27/Aug/2024:14:00:00 +0200",
        "27 Aug 2024 14:00:00 +0200 CEST",
        "Aug 27, 2024, 2:00:00\u202fPM GMT+2",
        "2024-Aug-27 12:00:00",
        "Tue Aug 27 2024 14:00:00 GMT+0200 (Central European Summer Time)",
        "Tue Aug 27 12:00:00 2024",
        "Tue Aug 27 12:00:00 UTC 2024",
        "20240827120000",
        "202408271200",
        "20240827120000000",
        "/Date(1724760000000)/",
        "1724760000",
        "1724760000.0000009",
        1_724_760_000,
        1_724_760_000.0,
        1_724_760_000_000,
        1_724_760_000_000_000,
        1_724_760_000_000_000_999,
        20240827120000,
        parse_json("1724760000000000999"),
        parse_json("1.7247600e9"),
    ],
)
def test_instant_is_read_where_it_can_be_one_alone(told: Any) -> None:
    """In English, as RFC 2822, as digits, and as a count whose size tells its unit."""
    assert any_timestamps()(told) == MOMENT


@pytest.mark.parametrize(
    "told",
    [
        *("04/05/2025", "04/05/2025 12:00", "16.04.2025", "27 Aug 24", "Aug 2024", "2024"),
        *("2024-08", "27 Aug 2024 12:00:00 CEST", "27 Aug 2024 12:00:00 IST", "2024-08-27T12 XYZ"),
        *("yesterday", "12:00", "2024-08-27T12:00[Europe/Berlin]", "2024-08-27T13:00 PM"),
        *("2024-02-30", "2024-08-27T25:00", "2024-08-27T24:00:01", "2024-08-27T12:61", "2024-367"),
        *("2024-08-27T12:00:61Z", "Foo 27 2024", "31 Feb 2024", "2023-366", "2024-08-27T12+99:00"),
        *("0", "1", "12", "9" * 20, "9" * 9_999, "1e999", "nan", "inf", "1_724_760_000"),
        *("2024-08-27512:00", "2024-W35-2x12:00", "2024-08-27T12.5:00"),
        *("2024-08-27 12:00:00 +0200 PM", "2024-08-27 12:00:00 +2", "2024-08-27-12.00-00"),
        *("20240827120000.5", "2024-08-27T12-00-00 CEST"),
        *("2024082712", 2024082712, "1990010100", 638603856000000000, "638612151020301234"),
        *("17247600001234567", "9999-12-31T24:00", "2024-08-27T12Z" + " " * 99 + "x", "٢٠٢٤٠٨٢٧"),
        *(0, -1, True, False, 1e300, float("nan"), parse_json("1e400"), [], {}, ["2024-08-27"]),
    ],
)  # fmt: skip
def test_what_could_be_two_instants_is_none(told: Any) -> None:
    """It is quarantined with the same reason as ever, and never guessed."""
    with pytest.raises(ValueError, match="should be an ISO 8601 timestamp"):
        any_timestamps()(told)


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ("1710123112304512", "2024-03-11T02:11:52.304512"),
        (1710123112304512345, "2024-03-11T02:11:52.304512"),
        ("1710123112", "2024-03-11T02:11:52"),
        ("662688000000000000", "1991-01-01"),
        ("2024082725", "2034-02-20T21:12:05"),
        ("2024082712.0", "2034-02-20T21:11:52"),
        ("20240827120000123", "2024-08-27T12:00:00.123"),
        ("19850827120000123", "1985-08-27T12:00:00.123"),
        ("171012311230", "1710-12-31T12:30"),
        ("29991231235959999", "2999-12-31T23:59:59.999"),
    ],
)
def test_digits_are_the_instant_that_they_can_only_be(told: Any, expected: str) -> None:
    """A count is no date of 1710, although its digits have a month, a day and an hour."""
    assert any_timestamps()(told) == utc(expected)


def test_date_with_an_hour_is_read_by_its_pattern() -> None:
    """Of several forms, the one for any text leaves it to the next."""
    assert timestamp_parser(["iso", "%Y%m%d%H"])("2024082712") == utc("2024-08-27T12:00")
    assert timestamp_parser("seconds")("2024082712") == utc("2034-02-20T21:11:52")


def test_number_is_no_iso_text() -> None:
    """Who is declared to tell ISO 8601 texts, such as a column, tells no numbers."""
    with pytest.raises(ValueError, match="should be an ISO 8601 timestamp"):
        iso_timestamps()(1_724_760_000)
    with pytest.raises(ValueError, match="should be an ISO 8601 timestamp"):
        iso_timestamps()("1724760000000")


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ("2016-12-31T23:59:60Z", "2016-12-31T23:59:59.999999"),
        ("2016-12-31T23:59:60.75Z", "2016-12-31T23:59:59.999999"),
        ("2017-01-01T00:59:60+01:00", "2016-12-31T23:59:59.999999"),
        ("20161231T235960Z", "2016-12-31T23:59:59.999999"),
        ("31 Dec 2016 23:59:60 GMT", "2016-12-31T23:59:59.999999"),
        ("2016-12-31T24:00:00Z", "2017-01-01"),
        ("2016-12-31 24:00", "2017-01-01"),
        ("2024-08-27T12:00:00.9999999999Z", "2024-08-27T12:00:00.999999"),
        ("1724760000.9999999", "2024-08-27T12:00:00.999999"),
    ],
)
def test_nothing_is_read_later_than_it_was(told: str, expected: str) -> None:
    """A leap second is the end of the second before it; digits beyond microseconds are cut."""
    assert any_timestamps()(told) == utc(expected)


@settings(deadline=None)
@given(instant=INSTANTS, zone=st.sampled_from(ZONES), digits=st.integers(0, 9))
def test_written_instant_is_read_again(instant: datetime, zone: str, digits: int) -> None:
    """Each form in which an instant is told with its zone gives it back, cut, in any zone."""
    local = instant.astimezone(ZoneInfo(zone))
    whole = instant.replace(microsecond=0)
    offset = local.utcoffset()
    assert offset is not None
    if not offset % timedelta(minutes=1):
        rfc = format_datetime(local)
        assert any_timestamps(BERLIN)(rfc) == any_timestamps(BERLIN)(rfc.lower()) == whole
        assert any_timestamps(BERLIN)(local.isoformat()) == instant
    nanoseconds = (instant - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1) * 1_000
    for power in (0, 3, 6, 9):
        count = f"{nanoseconds:010}"
        count = (
            count[: len(count) - 9 + power] + "." + count[len(count) - 9 + power :] + "9" * digits
        )
        if power < 9 or instant.year > 1990:  # such nanoseconds may be ticks of .NET
            assert any_timestamps(BERLIN)(count) == instant, count
        assert unix_timestamps(10**power)(parse_json(count.removesuffix("."))) == instant
    assert any_timestamps()(f"{instant:%Y%m%d%H%M%S}") == whole


@pytest.mark.parametrize(
    ("per_second", "told", "expected"),
    [
        (1, "0.10", "1970-01-01T00:00:00.100"),
        (1, 1517966996.303, "2018-02-07T01:29:56.303"),
        (1_000, "-1", "1969-12-31T23:59:59.999"),
        (1_000_000, "1724760000123456.999", "2024-08-27T12:00:00.123456"),
        (1_000_000_000, "1724760000123456999", "2024-08-27T12:00:00.123456"),
        (1, "1e9", "2001-09-09T01:46:40"),
        (1, "-1e-400", "1969-12-31T23:59:59.999999"),
        (1, "1e-400", "1970-01-01"),
    ],
)
def test_count_is_read_by_its_digits(per_second: int, told: Any, expected: str) -> None:
    """Exactly, and cut to the earlier microsecond."""
    assert unix_timestamps(per_second)(told) == utc(expected)


@pytest.mark.parametrize(
    "told", ["1e400", "9" * 100, "x", "", "1e99999999999", True, None, [1], "NaN"]
)
def test_count_beyond_the_calendar_is_refused(told: Any) -> None:
    """At once, however large its exponent is."""
    for value in (told, parse_json(told) if str(told)[:1].isdecimal() else told):
        with pytest.raises(ValueError, match="should be a count from 1970 on"):
            unix_timestamps()(value)


@pytest.mark.parametrize(
    ("forms", "told", "expected"),
    [
        ("%d/%m/%Y", "04/05/2025", "2025-05-04"),
        ("%m/%d/%Y %I:%M %p", "04/05/2025 12:30 AM", "2025-04-05T00:30"),
        ("%d %B %Y %H:%M:%S.%f", "5 may 2025 07:00:16.1234567", "2025-05-05T07:00:16.123456"),
        ("%a, %d-%b-%y %T %Z", "Mon, 05-May-25 07:00:16 GMT", "2025-05-05T07:00:16"),
        ("%d/%b/%Y:%H:%M:%S %z", "05/May/2025:09:00:16 +0200", "2025-05-05T07:00:16"),
        ("%Y%m%d %H%M", "20250505 0700", "2025-05-05T07:00"),
        ("%Y-%j", "2025-125", "2025-05-05"),
        ("%s", "1746428416", "2025-05-05T07:00:16"),
        ("%Y-%m-%dT%H:%M:%SZ", "2025-05-05T07:00:16Z", "2025-05-05T07:00:16"),
        ("%F %R +02:00", "2025-05-05 09:00 +02:00", "2025-05-05T07:00"),
        ("%d.%m.%Y 100%%", "05.05.2025 100%", "2025-05-05"),
        ("%Y%m%d", 20250505, "2025-05-05"),
        (["seconds", "%d.%m.%Y", "iso"], "05.05.2025", "2025-05-05"),
        (["seconds", "%d.%m.%Y", "iso"], 1746428416, "2025-05-05T07:00:16"),
        (["%d.%m.%Y", "iso"], "2025-05-05", "2025-05-05"),
    ],
)
def test_declared_form_is_read(forms: Any, told: Any, expected: str) -> None:
    """A pattern says what the digits mean; of several forms the first that fits does."""
    assert timestamp_parser(forms)(told) == utc(expected)


@pytest.mark.parametrize(
    "told", ["05.05.2025 12:00", "5/5/2025", "", None, True, [1], "31.02.2025"]
)
def test_text_of_another_pattern_is_refused(told: Any) -> None:
    """Whole texts alone are of a pattern, and days that there are."""
    with pytest.raises(ValueError, match=r"."):
        timestamp_parser("%d.%m.%Y")(told)
    with pytest.raises(ValueError, match=r"one of the forms %d\.%m\.%Y, seconds"):
        timestamp_parser(["%d.%m.%Y", "seconds"])(told)


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ("date", "should be one of iso, seconds"),
        ("hours", "should be one of iso, seconds"),
        ("%H:%M", "a year, a month and a day"),
        ("%Y-%m", "a year, a month and a day"),
        ("%Y-%m-%d %Q %", "without %, %Q"),
        ("%Y-%m-%d %d", "each directive once"),
        ("%Y-%m-%d %I:%M:%S", "with %p next to %I, or with %H"),
        ("%Y-%m-%d %H:%M PM", "with %p in place of PM"),
    ],
)
def test_form_that_says_no_instant_is_refused(form: str, message: str) -> None:
    """It is told when the source is made."""
    with pytest.raises(ValueError, match=message):
        check_readable_format(form)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("08/27/2024 03:04:05 PM", "2024-08-27T15:04:05"),
        ("08/27/2024 03:04:05 AM", "2024-08-27T03:04:05"),
        ("08/27/2024 12:30:00 AM", "2024-08-27T00:30:00"),
        ("08/27/2024 12:30:00 PM", "2024-08-27T12:30:00"),
        ("08/27/2024 15:04:05 PM", "2024-08-27T15:04:05"),
        ("08/27/2024 00:30:00 AM", "2024-08-27T00:30:00"),
        ("08/27/2024 00:30:00 PM", "2024-08-27T12:30:00"),
    ],
)
def test_half_of_a_day_next_to_24_hours_counts(text: str, expected: str) -> None:
    """A clock of 24 hours repeats it; one of 12 hours, for which %H was written, means it."""
    assert timestamp_parser("%m/%d/%Y %H:%M:%S %p")(text) == utc(expected)


@pytest.mark.parametrize("form", ["%Y-%m-%d %I:%M", "%d/%m/%Y %H:%M AM"])
def test_bound_without_the_half_of_its_day_is_refused(form: str) -> None:
    """An API would take the afternoon for the morning, and leave records out."""
    with pytest.raises(ValueError, match="%p"):
        check_format(form)


@pytest.mark.parametrize(
    ("form", "text", "expected"),
    [
        ("%Y-%m-%d %H:%M UTC+2", "2024-08-27 12:00 UTC+2", "2024-08-27T10:00"),
        ("%Y-%m-%d %H:%M GMT +1", "2024-08-27 12:00 GMT +1", "2024-08-27T11:00"),
        ("%Y-%m-%d %H:%M:%S-05", "2024-08-27 12:00:00-05", "2024-08-27T17:00"),
        ("%Y-%m-%d %H:%M (UTC)", "2024-08-27 12:00 (UTC)", "2024-08-27T12:00"),
        ("%Y-%m-%d %H:%M:%Sz", "2024-08-27 12:00:00Z", "2024-08-27T12:00"),
        ("%a %b %d %H:%M:%S UTC %Y", "Tue Aug 27 12:00:00 UTC 2024", "2024-08-27T12:00"),
        ("%b %d %Y %H:%M:%S %Z%z", "Aug 27 2024 12:00:00 GMT+0200", "2024-08-27T10:00"),
        # The declared zone tells what a name, or no zone at all, leaves open.
        ("%Y-%m-%d %H:%M CET", "2024-08-27 12:00 CET", "2024-08-27T10:00"),
        ("%Y-%m-%d %H:%M MESZ", "2024-08-27 12:00 MESZ", "2024-08-27T10:00"),
        ("%Y-%m-%d %H:%M EST", "2024-08-27 12:00 EST", "2024-08-27T10:00"),
        ("%H:%M Uhr am %d.%m.%Y", "12:00 Uhr am 27.08.2024", "2024-08-27T10:00"),
        ("%d.%m.%Y %Hh%M", "27.08.2024 12h00", "2024-08-27T10:00"),
        ("%H:%M z %d.%m.%Y", "12:00 z 27.08.2024", "2024-08-27T10:00"),
        ("%Y-%m-%d %H:%M LT", "2024-08-27 12:00 LT", "2024-08-27T10:00"),
    ],
)
def test_zone_behind_the_clock_of_a_pattern_counts(form: str, text: str, expected: str) -> None:
    """A zone that is matched as letters alone would be thrown away."""
    assert timestamp_parser(form, BERLIN)(text) == utc(expected)
    check_format(form)


def test_zone_name_without_a_fixed_offset_needs_a_declared_zone() -> None:
    """Names of RFC 2822 have one, as in texts without a pattern; any other would be read as UTC."""
    for name in ("CET", "MESZ", "JST", "IST", "AEDT", "ET", "Europe/Paris"):
        with pytest.raises(ValueError, match=f"names the zone '{name}'.* set zone"):
            timestamp_parser(f"%Y-%m-%d %H:%M {name}")
        with pytest.raises(ValueError, match=f"names the zone '{name}'"):
            format_timestamp(MOMENT, f"%Y-%m-%d %H:%M {name}")
    for word in ("Uhr", "h", "hrs", "local time", "LOCAL", "o'clock", "est"):
        read = timestamp_parser(f"%Y-%m-%d %H:%M {word}")
        assert read(f"2024-08-27 12:00 {word}") == utc("2024-08-27 12:00"), word

    assert timestamp_parser("%Y-%m-%d %H:%M EST")("2024-08-27 12:00 EST") == utc("2024-08-27 17:00")
    assert format_timestamp(MOMENT, "%Y-%m-%d %H:%M EST") == "2024-08-27 07:00 EST"
    assert format_timestamp(MOMENT, "%Y-%m-%d %H:%M CET", BERLIN) == "2024-08-27 14:00 CET"


@pytest.mark.parametrize(
    "query",
    [
        'updated >= "%Y-%m-%d %H:%M" AND created >= "2024-01-01" ORDER BY updated',
        'updated >= "%Y-%m-%d %H:%M" AND status NOT IN (Done)',
        'updated >= "%Y-%m-%d %H:%M" AND created >= -10d AND project = PT',
        "sys_updated_on>=%Y-%m-%d %H:%M:%S^number=CHG-07",
        "%Y-%m-01",
    ],
)
def test_query_around_a_time_states_no_zone(query: str) -> None:
    """One parameter of Jira or ServiceNow has the time and the rest of the question."""
    for zone in (UTC, BERLIN):
        assert zone_of_clock(query, zone) is zone
    check_format(query)


@pytest.mark.parametrize(
    "pattern",
    ["%Y-%m-%dT%H:%M:%S.000Z", "%Y-%m-%dT%H:00:00Z", "%Y-%m-%dT00:00:00Z", "date('%Y-%m-%dZ'"],
)
def test_zone_behind_a_written_part_of_the_clock_counts(pattern: str) -> None:
    """Whoever asks for whole seconds or hours writes the rest out."""
    assert zone_of_clock(pattern, BERLIN) is UTC


@pytest.fixture
def _german() -> Iterator[None]:
    before = locale.setlocale(locale.LC_TIME)
    for name in ("de_DE.UTF-8", "de_DE", "fr_FR.UTF-8", "es_ES.UTF-8"):
        try:
            locale.setlocale(locale.LC_TIME, name)
            break
        except locale.Error:
            continue
    yield
    locale.setlocale(locale.LC_TIME, before)


@pytest.mark.usefixtures("_german")
def test_months_are_english_in_every_locale() -> None:
    """A feed does not change its language with the machine that collects it."""
    pattern = "%a %A %d %b %B %Y %I %p"
    text = "Tue Tuesday 27 Aug August 2024 12 PM"

    assert format_timestamp(MOMENT, pattern) == text
    assert reader_of("%A %d %B %Y %I %p")("Tuesday 27 August 2024 12 PM").hour == 12
    assert any_timestamps()("27 May 2024") == utc("2024-05-27")


# Clocks of a place.


@settings(deadline=None)
@given(instant=INSTANTS, zone=st.sampled_from(ZONES))
def test_local_time_is_never_read_later_than_it_was(instant: datetime, zone: str) -> None:
    """The time that a clock showed at an instant is read as that one, or an earlier one."""
    place = ZoneInfo(zone)
    wall = instant.astimezone(place).replace(tzinfo=None, fold=0)

    read = any_timestamps(place)(wall.isoformat())

    assert read <= instant
    assert read.astimezone(place).replace(tzinfo=None) == wall
    assert earliest(wall, place) == read


@pytest.mark.parametrize(
    ("wall", "expected"),
    [
        ("2024-10-27T02:30:00", "2024-10-27T00:30:00"),  # shown twice
        ("2024-03-31T02:30:00", "2024-03-31T00:30:00"),  # never shown
        ("2024-08-27", "2024-08-26T22:00:00"),
        ("Aug 27, 2024 2:00 PM", "2024-08-27T12:00:00"),
        ("2024-08-27 14:00:00 UTC", "2024-08-27T14:00:00"),
        (datetime(2024, 10, 27, 2, 30), "2024-10-27T00:30:00"),  # noqa: DTZ001 - the point
    ],
)
def test_ambiguous_local_time_is_the_earlier_instant(wall: Any, expected: str) -> None:
    """So no watermark passes what the clock may show again."""
    assert any_timestamps(BERLIN)(wall) == utc(expected)


CHANGES = [
    utc("2024-10-27 01:00"),  # Berlin
    utc("2024-11-03 06:00"),  # New York
    utc("2024-11-03 04:30"),  # St John's
    utc("2024-04-06 15:00"),  # Lord Howe
    utc("2024-03-10 02:00"),  # Casablanca
    utc("2011-12-30 10:00"),  # Apia
    utc("2024-03-31 01:00"),  # Berlin, forwards
]
NEAR = st.sampled_from(CHANGES).flatmap(
    lambda change: st.integers(-4 * 3_600 * 10**6, 4 * 3_600 * 10**6).map(
        lambda away: change + timedelta(microseconds=away)
    )
)
PATTERNS = ["%Y-%m-%d %H:%M:%S.%f", "%Y-%m-%d %H:%M:%S", "%Y-%m-%d %H:%M", "%Y-%m-%d %H", "date"]


@settings(deadline=None, max_examples=1_000)
@given(
    bound=NEAR | INSTANTS,
    away=st.integers(0, 5 * 3_600 * 10**6),
    zone=st.sampled_from(ZONES),
    form=st.sampled_from(PATTERNS),
)
def test_clock_that_is_set_back_leaves_nothing_out(
    bound: datetime, away: int, zone: str, form: str
) -> None:
    """What was at a start or later sorts behind its text; what was before an end, not behind it."""
    place = ZoneInfo(zone)
    after, before = (bound + timedelta(microseconds=n) for n in (away, -away - 1))
    fine = "%Y-%m-%d %H:%M:%S.%f"

    def shown(instant: datetime) -> str:
        return instant.astimezone(place).strftime(fine)

    assert format_timestamp(bound, form, place) <= shown(after)
    assert shown(before) < format_timestamp(bound, form, place, up=True) + " "


def test_start_in_an_hour_that_comes_twice_is_its_beginning() -> None:
    """And an end there is the end of it; a clock that goes on is asked for what it shows."""
    first, second = utc("2024-10-27 00:50"), utc("2024-10-27 01:10")

    assert [each.hour for each in (earliest_wall(first, BERLIN), latest_wall(first, BERLIN))] == [
        2,
        2,
    ]
    assert earliest_wall(first, BERLIN).minute == 0
    assert latest_wall(first, BERLIN).minute == 50
    assert earliest_wall(second, BERLIN).minute == 10
    assert latest_wall(second, BERLIN) == datetime(2024, 10, 27, 3)  # noqa: DTZ001 - a clock's
    assert format_timestamp(second, "%H:%M %z", BERLIN, up=True) == "02:10 +0100"


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ("%Y-%m-%dT%H:%M:%SZ", "2024-08-27T12:00:00Z"),
        ("%Y-%m-%d %H:%M:%S UTC", "2024-08-27 12:00:00 UTC"),
        ("%Y-%m-%dT%H:%M:%S+00:00", "2024-08-27T12:00:00+00:00"),
        ("%Y-%m-%dT%H:%M:%S+09:00", "2024-08-27T21:00:00+09:00"),
        ("%Y-%m-%dT%H:%M:%S%z", "2024-08-27T14:00:00+0200"),
        ("%Y-%m-%d %H:%M %Z", "2024-08-27 14:00 CEST"),
        ("%Y-%m-%d %H:%M UTC+1", "2024-08-27 13:00 UTC+1"),
        ("%Y-%m-%dT%H:%M:%S", "2024-08-27T14:00:00"),
        ("%s", "1724760000"),
        ("date", "2024-08-27"),
        ("seconds", "1724760000"),
        ("microseconds", "1724760000000000"),
        ("nanoseconds", "1724760000000000000"),
        ("iso", "2024-08-27T12:00:00Z"),
    ],
)
def test_bound_is_told_in_the_zone_that_it_names(form: str, expected: str) -> None:
    """A literal Z is UTC, whatever the clock of the API is; what tells no zone is that clock's."""
    assert format_timestamp(MOMENT, check_format(form), BERLIN) == expected
    assert zone_of_clock("%H:%M") is UTC


def test_bound_at_the_ends_of_the_calendar_is_told() -> None:
    """No zone leads beyond it."""
    for instant in (datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)):
        for zone in ("America/New_York", "Asia/Tokyo"):
            assert format_timestamp(instant, "date", ZoneInfo(zone), up=True)[:3] in ("000", "999")


async def test_row_of_the_second_hour_is_collected() -> None:
    """A run has seen 01:50 of the first hour; what then is shown at 01:10 of the second comes."""
    rows = {"1": "2024-11-03T01:50:00"}

    def play(asked: Asked) -> Answer:
        since = asked.query.get("since", "")
        found = [{"id": number, "at": at} for number, at in rows.items() if at >= since]
        return Answer(json.dumps(found).encode())

    storage, sink = ScriptedStorage(now=utc_now), MemorySink()
    async with FeedServer(play=play) as feed:
        since = {"parameter": "since", "format": "%Y-%m-%dT%H:%M:%S", "zone": "America/New_York"}
        settings = {"kind": "rest", "source_id": "feed", "url": feed.url, "timestamps": ["at"]}
        source = source_from(
            {**settings, "zone": "America/New_York", "since": since, "overlap": "PT0S"}
        )
        clock = utc("2024-11-03T05:55:00")
        await run(source, sink, storage, run_id="1", clock=lambda: clock)
        rows["2"] = "2024-11-03T01:10:00"
        await run(source, sink, storage, run_id="2", clock=lambda: clock + timedelta(hours=1))

    assert sink.ids == ["1", "2"]
    assert feed.asks[1].query["since"] == "2024-11-03T01:00:00"


# Items.


def reader(**fields: Any) -> ItemReader:
    return ItemReader(
        **{"id": "id", "times": ("first", "last"), "parser": any_timestamps(), **fields}
    )


@pytest.mark.parametrize(
    "none",
    [
        *(None, "", " ", "-", "None", "null", "NULL", "N/A", "never", "Never", False, [], {}),
        *("0000-00-00", "0000-00-00 00:00:00", "0000-00-00T00:00:00Z", "undefined"),
        *(0, "0", 0.0, "0.0", parse_json("0.0"), "00000000000000", "0000/00/00", "00.00.0000"),
        *("00:00:00", "\u2014", "?", "--------", "NaT", "NaN", "(null)", "\\N", "#N/A", "Unknown"),
        *("Invalid date", "infinity", "-0001-11-30T00:00:00+00:00", "0000-01-01T00:00:00Z"),
        *("1/1/0001 12:00:00 AM", "01.01.0001 00:00:00"),
    ],
)
def test_value_that_says_no_time_is_none(none: Any) -> None:
    """The item has another time; where it has none at all, it is rejected."""
    assert reader().timestamp({"first": "2024-08-27T12:00:00Z", "last": none}) == MOMENT
    with pytest.raises(ValueError, match="first and last: missing"):
        reader().timestamp({"first": none, "last": none})


@pytest.mark.parametrize("none", [0, "0", "1970-01-01T00:00:00Z", "31.12.9999", parse_json("-0")])
def test_declared_value_that_says_no_time_is_none(none: Any) -> None:
    """What is a time elsewhere, or unreadable, may be declared to be none."""
    declared = (0, "-0", "1970-01-01T00:00:00Z", "31.12.9999")

    found = reader(no_time=declared).timestamp({"first": 1_724_760_000, "last": none})

    assert found == MOMENT


@pytest.mark.parametrize("last", ["soon", "yesterday", "1", 7, "00:07", "04/05/2025", "01/02/0001"])
def test_value_that_is_no_time_rejects_its_item(last: Any) -> None:
    """Nobody knows how new it is."""
    item = {"id": 1, "first": "2024-08-27", "last": last}

    [found] = reader().read([item])

    assert "last: should be an ISO 8601" in getattr(found, "reason", "")


@pytest.mark.parametrize(
    ("path", "item", "expected"),
    [
        ("id", '{"id": 12345678901234567890123}', "12345678901234567890123"),
        ("id", '{"id": -7}', "-7"),
        ("id", '{"id": 1.0}', None),
        ("id", '{"id": 0.10}', None),
        (("ip", "port"), '{"ip": "192.0.2.1", "port": 443}', '["192.0.2.1",443]'),
        (("ip", "port"), '{"ip": "192.0.2.1", "port": 0}', '["192.0.2.1",0]'),
        (("ip", "port"), '{"ip": "192.0.2.1"}', None),
        (("ip", "port"), '{"ip": "192.0.2.1", "port": ""}', None),
        (("ip", "port"), '{"ip": "192.0.2.1", "port": [1]}', None),
        (("a.b", "c.0"), '{"a": {"b": "x"}, "c": [1e400]}', '["x",1e400]'),
        (("a", "b"), '{"a": 12345678901234567891, "b": true}', "[12345678901234567891,true]"),
        (("id",), '{"id": 7}', "7"),
    ],
)  # fmt: skip
def test_id_is_what_was_sent(path: Any, item: str, expected: str | None) -> None:
    """Of several fields it needs each; a whole number is its digits, however many."""
    [found] = reader(id=path).read([{**parse_json(item), "first": "2024-08-27"}])

    assert found.record_id == expected if expected else not isinstance(found, Record)


def test_id_is_the_hash_of_the_content_where_no_field_is_one() -> None:
    """The same content is one record, and what no version depends on makes no other."""
    items = [{"first": "2024-08-27", "a": a, "at": at} for a, at in [(1, 1), (1, 2), (2, 1)]]

    found = list(reader(id=(), unversioned=("at",)).read(items))

    assert all(isinstance(each, Record) and each.record_id == each.version for each in found)
    assert [each.record_id == found[0].record_id for each in found] == [True, True, False]


async def test_source_of_two_fields_and_several_forms_is_collected() -> None:
    """By configuration alone, through a real server."""
    rows = [
        {"ip": "192.0.2.1", "port": 443, "at": "27.08.2024 14:00", "polled": 1},
        {"ip": "192.0.2.1", "port": 80, "at": 1_724_760_000, "polled": 1},
        {"ip": "192.0.2.2", "port": 80, "at": "0", "seen": "2024-08-27T12:00:00Z", "polled": 1},
    ]
    storage, sink = ScriptedStorage(now=utc_now), MemorySink()
    async with FeedServer(
        Answer.of(rows), Answer.of([{**row, "polled": 2} for row in rows])
    ) as feed:
        source = source_from(
            {
                "kind": "rest",
                "source_id": "feed",
                "url": feed.url,
                "id": ["ip", "port"],
                "timestamps": ["at", "seen"],
                "timestamp_format": ["%d.%m.%Y %H:%M", "iso"],
                "zone": "Europe/Berlin",
                "no_time": [0],
                "unversioned": ["polled"],
            }
        )
        for number in range(2):
            await run(source, sink, storage, run_id=str(number), clock=lambda: MOMENT)

    assert sink.ids == ['["192.0.2.1",443]', '["192.0.2.1",80]', '["192.0.2.2",80]']
    assert {each.timestamp for each in sink.rows.values()} == {MOMENT}


@pytest.mark.parametrize("where", ["query", "body"])
async def test_cursor_of_many_digits_is_handed_back(where: str) -> None:
    """Ids and instants in nanoseconds are such cursors: none of their digits is lost."""
    cursor = 1724760000123456789
    pages = [{"rows": [{"id": 1, "at": "2024-08-27"}], "next_cursor": cursor}, {"rows": []}]
    async with FeedServer(*map(Answer.of, pages)) as feed:
        source = source_from(
            {
                "kind": "rest",
                "source_id": "feed",
                "url": feed.url,
                "method": "POST" if where == "body" else "GET",
                "records": "rows",
                "timestamps": ["at"],
                "paging": {"kind": "cursor", "location": where},
            }
        )
        found = [each async for page in source.pages(None, None) for each in page.records]

    assert [each.record_id for each in found] == ["1"]
    if where == "body":
        assert feed.asks[1].body == {"cursor": cursor}
    else:
        assert feed.asks[1].query["cursor"] == str(cursor)


def test_offset_of_no_hour_is_read() -> None:
    """Some zones are not a whole number of hours away."""
    east = timezone(timedelta(hours=5, minutes=45))
    assert any_timestamps()(MOMENT.astimezone(east).isoformat()) == MOMENT
