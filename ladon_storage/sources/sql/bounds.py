"""The SQL conditions for a range of timestamps, which select at least all rows in it.

- A condition is wider than the range if SQL cannot compare exactly: texts with offsets, days, hours
  that a clock showed twice. Rows outside of the range are kept.
- Values below any time would be in no range but a first run's, and are requested separately; so
  are those above any time, which would be in the range of each run.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta, tzinfo
from typing import Any

from sqlalchemy import ColumnElement, Integer, and_, cast, func, not_, types

from ladon_storage.sources.sql.keys import KeyColumn, raw
from ladon_storage.sources.sql.sessions import MYSQL
from ladon_storage.sources.sql.values import SqlTimestampFormat, clock_spread, shifted
from ladon_storage.sources.timestamps import PER_SECOND, earliest_wall, latest_wall
from ladon_storage.values import EPOCH

_YEAR_1 = datetime(1, 1, 1, tzinfo=UTC)
"""The lower limit of times: minus infinity, BC, and counts outside of any calendar are below."""

_BEFORE_ANY_TEXT = "1900-"
"""The least text of a time: an empty text, a day before its year, a number in SQLite are less."""

_AFTER_ANY_TEXT = ":"
"""In the order of bytes what is behind a digit; where signs may come first, a letter is."""

_YEAR_10000 = "10000-01-01"
"""The upper limit of times in PostgreSQL: later years and infinity are above."""

_IN_ANOTHER_YEAR = timedelta(days=5)
"""More than the days that 2020-W53-7 is in another year, and any offset."""

_FIRST_TIME = EPOCH.replace(second=1, tzinfo=None)
"""The least TIMESTAMP of MySQL: only 0000-00-00 is below, to which MySQL 8 compares nothing."""


@dataclass(frozen=True)
class Bounds:
    """The comparison of a timestamp column with instants.

    Args:
        time: The column.
        kind: Its type.
        timestamp_format: The format of the timestamps.
        zone: The zone of those without an offset.
        dialect: The database.
        is_text: Whether it orders the timestamps as texts.
        has_dates: Whether these texts begin like 2024-01-02, so that a date is a bound. All forms
            begin with the year: that of 20240102, 2024/01/02, 2024-W01-2 and 2024-002, too.
    """

    time: KeyColumn
    kind: types.TypeEngine[Any]
    timestamp_format: SqlTimestampFormat
    zone: tzinfo
    dialect: str
    is_text: bool
    has_dates: bool = True

    def below(self) -> ColumnElement[bool] | None:
        """Return the condition for invalid timestamps below any valid one, if there can be any."""
        if self.is_text:
            return self.time.compared < self._bound(_BEFORE_ANY_TEXT)
        if (per_second := PER_SECOND.get(self.timestamp_format)) is not None:
            return self.time.compared < raw(_count(_seconds(_YEAR_1), per_second))
        if self.dialect in MYSQL:
            if isinstance(self.kind, types.TIMESTAMP):
                return self.time.compared < raw(_FIRST_TIME)
            return self.time.compared < raw(self._year_1())
        if self.dialect == "postgresql":
            return self.time.compared < raw(self._year_1())
        return None

    def above(self) -> ColumnElement[bool] | None:
        """Return the condition for invalid timestamps above any valid one, if there can be any.

        A text with a digit and a count that is too large may be a feed that has changed its format,
        which no run may pass over.
        """
        time = self.time.compared
        if self.is_text:
            text = self.time.selected
            if self.dialect == "sqlite":  # whose regular expressions take no bytes
                return and_(time >= _AFTER_ANY_TEXT, not_(text.op("GLOB")("*[0-9]*")))
            return and_(time >= self._bound("A"), not_(text.regexp_match("[0-9]")))
        if self.dialect != "postgresql":
            return None
        if self.timestamp_format in PER_SECOND:
            is_float = isinstance(self.kind, types.Float)
            return time >= cast(raw("Infinity"), types.DOUBLE_PRECISION) if is_float else None
        return time >= cast(raw(_YEAR_10000), self.kind)

    def within(self, start: datetime | None, until: datetime | None) -> list[ColumnElement[bool]]:
        """Return conditions that select at least all rows with ``start <= timestamp < until``."""
        time, per_second = self.time.compared, PER_SECOND.get(self.timestamp_format)
        limits: list[ColumnElement[bool]] = []
        if start is not None:
            lower: Any = self._local(start, -1)
            if per_second is not None:
                lower = _count(_seconds(start), per_second)
            limits.append(time >= self._bound(lower))
        if until is not None:
            upper: Any = self._local(until, 1)
            if per_second is not None:
                upper = _count(_seconds(until) + 1, per_second)
            limits.append(time < self._bound(upper))
        if self.dialect == "sqlite" and per_second is None:
            limits += self._seconds_within(start, until)
        return limits

    def _seconds_within(
        self, start: datetime | None, until: datetime | None
    ) -> list[ColumnElement[bool]]:
        """Return conditions that SQLite can check: a text's second; an odd text matches always.

        SQLite takes a text without offset for UTC, so the bounds are those of both readings.
        """
        second = cast(func.strftime("%s", self.time.selected), Integer)
        limits = []
        if start is not None:
            lower = raw(_seconds(min(start, self._wall(start, -1).replace(tzinfo=UTC))))
            limits.append(func.coalesce(second, lower) >= lower)
        if until is not None:
            upper = max(until, self._wall(until, 1).replace(tzinfo=UTC))
            last = raw(_seconds(upper) + 1)  # it rounds to milliseconds
            limits.append(func.coalesce(second, last) <= last)
        return limits

    def _bound(self, value: Any) -> ColumnElement[Any]:
        """Return a bound, as bytes where the column is compared by them."""
        is_binary = isinstance(self.time.compared.type, types.LargeBinary)
        return raw(value.encode() if is_binary and isinstance(value, str) else value)

    def _year_1(self) -> datetime | date:
        if isinstance(self.kind, types.Date):
            return _YEAR_1.date()
        return _YEAR_1 if getattr(self.kind, "timezone", False) else _YEAR_1.replace(tzinfo=None)

    def _local(self, instant: datetime, direction: int) -> datetime | date | str:
        """Return the bound of a range in the form of the column."""
        if self.is_text and not self.has_dates:
            year = shifted(instant, direction * _IN_ANOTHER_YEAR).year
            text = f"{year + 1 if direction > 0 else year:04}"
            # Less than any text of that year in its order by bytes; SQLite takes digits alone for a
            # number. In another order ! may come after -, and the digits do.
            return f"{text}!" if self.dialect == "sqlite" else text
        if self.is_text:  # with any offset
            days = timedelta(days=2 if direction > 0 else -1)
            return shifted(instant, days).date().isoformat()
        if isinstance(self.kind, types.Date):
            wall = self._wall(instant, direction)
            return shifted(wall, timedelta(days=1 if direction > 0 else 0)).date()
        if getattr(self.kind, "timezone", False):
            return instant
        return self._wall(instant, direction)

    def _wall(self, instant: datetime, direction: int) -> datetime:
        """Return the first time that a clock shows from an instant on, or the last one before it.

        A time that a clock never showed, when it was set forward, is before the end of a range.
        """
        if direction < 0:
            return earliest_wall(instant, self.zone)
        return shifted(latest_wall(instant, self.zone), clock_spread(instant, self.zone))


def _seconds(instant: datetime) -> int:
    return (instant - EPOCH) // timedelta(seconds=1)


def _count(seconds: int, per_second: int) -> int:
    """Return a count from 1970, at most that of a column of 64 bits: nanoseconds reach to 2262."""
    return max(-(2**63), min(seconds * per_second, 2**63 - 1))
