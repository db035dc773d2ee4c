"""Read a table page by page, from any database that SQLAlchemy speaks to; all of it blocks.

- A page goes on behind the last row of the one before, by timestamp and id (keyset): rows that come
  or go meanwhile shift nothing, and equal timestamps fill as many pages as they like.
- A page is one transaction that only reads, so that no run of hours holds back a vacuum.
- What SQL compares is wider than the range that was asked for wherever it cannot tell exactly:
  texts with offsets, days, hours that a clock showed twice. Who makes records drops the rest.
- Values come as the driver gives them: SQLAlchemy's own types refuse a page for one odd value.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from itertools import pairwise
from pathlib import Path
from typing import Any

from sqlalchemy import (
    BigInteger,
    Case,
    ColumnElement,
    Select,
    Text,
    and_,
    bindparam,
    case,
    cast,
    column,
    inspect,
    or_,
    select,
    table,
    types,
)
from sqlalchemy.engine import URL
from sqlalchemy.exc import NoSuchTableError

from ladon_storage.collection.sources.sql_database import reading_engine
from ladon_storage.collection.sources.sql_values import PER_SECOND, Times
from ladon_storage.errors import SourceError

_CLOCK_SHIFT = timedelta(hours=2)
"""More than a clock is set forward or back at once."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

Key = tuple[Any, Any]
"""The timestamp and the id of a row, as the driver gives them."""


@dataclass(frozen=True)
class Layout:
    """Say which table is read, and how.

    Args:
        source_id: The source, as errors name it.
        table: The table or view.
        schema: Where it is; ``None``: where the connection looks first.
        id_column: The column of the ids.
        time_column: The column of the timestamps.
        columns: What is read of each row; empty: everything.
        times: How the timestamps are written.
        zone: The zone of those without an offset.
        page_size: So many rows are a page.
        timeout: How long a statement may take.
    """

    source_id: str
    table: str
    schema: str | None
    id_column: str
    time_column: str
    columns: tuple[str, ...]
    times: Times
    zone: tzinfo
    page_size: int
    timeout: timedelta


@dataclass(frozen=True)
class Row:
    """Be one row: its key, and its values in the order of `TableReader.names`."""

    key: Key
    values: Sequence[Any]


class TableReader:
    """Read one table for one run, from one thread.

    Args:
        layout: What is read, and how.
        url: The address, with its password.
    """

    names: tuple[str, ...] = ()
    """The columns that are read."""

    is_text = False
    """Whether the database orders the timestamps as texts."""

    def __init__(self, layout: Layout, url: URL) -> None:
        self._layout = layout
        self._url = url
        self._engine = reading_engine(url, layout.timeout)
        self._time: ColumnElement[Any] = column(layout.time_column)
        self._id: ColumnElement[Any] = column(layout.id_column)
        self._kind: types.TypeEngine[Any] = types.NullType()
        self._nullable: list[ColumnElement[Any]] = []

    def open(self) -> None:
        """Learn the columns.

        Raises:
            SourceError: The table does not have what is asked for.
            SQLAlchemyError: The database said no.
        """
        layout, database = self._layout, self._url.database
        if self._engine.dialect.name == "sqlite" and not Path(database or "").is_file():
            raise self._error(f"the file {database!r} is missing", "correct the address")
        try:
            found = inspect(self._engine).get_columns(layout.table, layout.schema)
        except NoSuchTableError:
            found = []
        if not found:
            raise self._error("there is no such table or view", "correct the table or its schema")
        known = {each["name"]: each for each in found}
        self.names = layout.columns or tuple(known)
        for name in (layout.id_column, layout.time_column, *self.names):
            if name not in known:
                raise self._error(
                    f"it has no column {name!r} but {', '.join(known)}", "correct the column"
                )
        self._kind = known[layout.time_column]["type"]
        self._time = self._comparable()
        may_be_null = known[layout.time_column]["nullable"] or isinstance(self._time, Case)
        self._nullable = [self._time] if may_be_null else []
        if known[layout.id_column]["nullable"]:
            self._nullable.append(self._id)

    def close(self) -> None:
        """End the connection."""
        self._engine.dispose()

    def page(
        self, start: datetime | None, until: datetime | None, after: Key | None
    ) -> tuple[list[Row], bool]:
        """Return the rows behind ``after``, and whether there are more.

        Raises:
            SourceError: Two rows have the same timestamp and id.
            SQLAlchemyError: The database said no.
        """
        limits: list[ColumnElement[bool]] = [self._time.is_not(None), self._id.is_not(None)]
        if after is not None:
            last, last_id = _raw(after[0]), _raw(after[1])
            # With the first part an index is read from there on.
            limits += [self._time >= last, or_(self._time > last, self._id > last_id)]
        elif start is not None:
            limits.append(self._time >= _raw(self._lower(start)))
        if until is not None:
            limits.append(self._time < _raw(self._upper(until)))
        size = self._layout.page_size
        rows = self._rows(
            self._selected().where(and_(*limits)).order_by(self._time, self._id).limit(size + 1)
        )
        self._refuse_ties(rows)
        taken, more = rows[:size], len(rows) > size
        if more and taken[-1].key == after:
            raise self._error(
                f"it has more than {size} rows within one microsecond, finer than its driver tells",
                "set a larger page",
            )
        return taken, more

    def unreachable(self, most: int) -> list[Row]:
        """Return up to ``most`` rows without a timestamp or an id, which no page can have."""
        if not self._nullable:
            return []
        statement = self._selected().where(or_(*(each.is_(None) for each in self._nullable)))
        return self._rows(statement.order_by(self._id.desc()).limit(most))

    def _selected(self) -> Select[Any]:
        values: list[ColumnElement[Any]] = [column(name) for name in self.names]
        keys = [self._time.label("_key_time"), self._id.label("_key_id")]
        source = table(self._layout.table, schema=self._layout.schema)
        return select(*values, *keys).select_from(source)

    def _rows(self, statement: Select[Any]) -> list[Row]:
        with self._engine.connect() as connection, connection.begin():
            return [Row((each[-2], each[-1]), each[:-2]) for each in connection.execute(statement)]

    def _refuse_ties(self, rows: list[Row]) -> None:
        for one, other in pairwise(rows):
            if one.key == other.key:
                raise self._error(
                    f"it has two rows with the {self._layout.id_column} {one.key[1]!r} at "
                    f"{one.key[0]}, so that a page could end between them",
                    "name a column whose values are unique",
                )

    def _comparable(self) -> ColumnElement[Any]:
        """Return the timestamp as the database compares it."""
        times, kind = self._layout.times, self._kind
        plain: ColumnElement[Any] = column(self._layout.time_column)
        is_sqlite = self._engine.dialect.name == "sqlite"
        if times in PER_SECOND:
            if isinstance(kind, types.Integer | types.Numeric):
                return plain
            if isinstance(kind, types.String | types.NullType):  # "9" is before "10"
                text = cast(plain, Text)
                is_number = text.regexp_match("^-?[0-9]{1,18}$")
                return case((is_number, cast(text, BigInteger)), else_=None)
        elif is_sqlite or (times == "text" and isinstance(kind, types.String)):
            self.is_text = True
            return plain
        elif times == "datetime" and isinstance(kind, types.DateTime | types.Date):
            return plain
        raise self._error(
            f"its column {self._layout.time_column!r} is of the type {kind}, not {times}",
            "set how its timestamps are written",
        )

    def _lower(self, start: datetime) -> Any:
        if self._layout.times in PER_SECOND:
            return (start - _EPOCH) // timedelta(seconds=1) * PER_SECOND[self._layout.times]
        if self.is_text:
            return _shifted(start, -timedelta(days=1)).date().isoformat()
        return self._local(start, -_CLOCK_SHIFT)

    def _upper(self, until: datetime) -> Any:
        if self._layout.times in PER_SECOND:
            return ((until - _EPOCH) // timedelta(seconds=1) + 1) * PER_SECOND[self._layout.times]
        if self.is_text:
            return _shifted(until, timedelta(days=2)).date().isoformat()
        return self._local(until, _CLOCK_SHIFT)

    def _local(self, instant: datetime, margin: timedelta) -> datetime | date:
        """Return an instant as the column would have it, moved by ``margin`` if it says no zone."""
        if isinstance(self._kind, types.Date):
            days = timedelta(days=2 if margin > timedelta(0) else -1)
            return _shifted(instant, days).date()
        if getattr(self._kind, "timezone", False):
            return instant
        if self._layout.zone is UTC:
            return instant.replace(tzinfo=None)
        return _shifted(instant, margin).astimezone(self._layout.zone).replace(tzinfo=None)

    def _error(self, problem: str, step: str) -> SourceError:
        name = self._layout.table
        return SourceError(
            f"Source {self._layout.source_id!r} cannot read the table {name!r}: {problem}; {step}.",
            self._layout.source_id,
        )


def _raw(value: Any) -> ColumnElement[Any]:
    """Return a parameter as the driver takes it: the database knows best what it compares."""
    return bindparam(None, value, type_=types.NullType(), unique=True)


def _shifted(instant: datetime, by: timedelta) -> datetime:
    try:
        return instant + by
    except OverflowError:
        return datetime.combine(date.max if by > timedelta(0) else date.min, time(12), tzinfo=UTC)
