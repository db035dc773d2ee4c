"""Half-open ranges of time: their bounds, their windows, and the one error of an empty one."""

from __future__ import annotations

from datetime import timedelta, timezone

import pytest

from ladon_storage.collection.ranges import ALL_TIME, TimeRange
from ladon_storage.errors import ConfigurationError
from ladon_storage.testing.doubles import at


@pytest.mark.parametrize(
    ("asked", "inside"),
    [
        (TimeRange(at(1), at(3)), [1, 2]),
        (TimeRange(at(1)), [1, 2, 3]),
        (TimeRange(end=at(2)), [0, 1]),
        (ALL_TIME, [0, 1, 2, 3]),
    ],
)
def test_start_is_inside_and_end_is_not(asked: TimeRange, inside: list[int]) -> None:
    """A record at a border is in exactly one of two ranges that meet there."""
    assert [minute for minute in range(4) if at(minute) in asked] == inside
    assert asked.is_bounded is (asked != ALL_TIME)


def test_windows_meet_and_are_the_range_together() -> None:
    """No time is between two windows, and the last one ends where the range does."""
    windows = list(TimeRange(at(0), at(25)).windows(timedelta(minutes=10)))
    assert windows == [
        TimeRange(at(0), at(10)), TimeRange(at(10), at(20)), TimeRange(at(20), at(25)),
    ]  # fmt: skip
    whole = TimeRange(at(0), at(20))
    assert len(list(whole.windows(timedelta(minutes=10)))) == 2
    assert list(whole.windows(timedelta.max)) == [whole]


@pytest.mark.parametrize(
    ("asked", "length"),
    [(TimeRange(at(0)), 1), (TimeRange(end=at(0)), 1), (TimeRange(at(0), at(1)), 0)],
)
def test_open_range_has_no_windows(asked: TimeRange, length: int) -> None:
    """Windows without an end are refused instead of being yielded forever."""
    with pytest.raises(ValueError, match="windows need"):
        list(asked.windows(timedelta(minutes=length)))


@pytest.mark.parametrize("end", [0, -1])
def test_empty_range_is_refused(end: int) -> None:
    """A range that no time is in is a mistake, and its error names both ends."""
    with pytest.raises(ConfigurationError, match=r"2024-01-01T00:00:00\+00:00 .* is empty"):
        TimeRange(at(0), at(end))


def test_bounds_are_utc() -> None:
    """A naive bound is UTC, and one of another zone is the same instant."""
    there = at(0).astimezone(timezone(timedelta(hours=5)))
    assert TimeRange(there, at(24 * 60).replace(tzinfo=None)) == TimeRange(at(0), at(24 * 60))
    assert str(TimeRange(there).start) == str(at(0))
