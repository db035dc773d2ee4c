"""Read a table page by page, from any database that SQLAlchemy speaks to; all of it blocks.

- A page goes on behind the last row of the one before, by timestamp and id (keyset): rows that come
  or go meanwhile shift nothing, and equal timestamps fill as many pages as they like.
- A page is one transaction that only reads, so that no run of hours holds back a vacuum.
- Values come as the driver gives them: SQLAlchemy's own types refuse a page for one odd value.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from itertools import pairwise
from operator import eq
from pathlib import Path
from typing import Any

from sqlalchemy import (
    Case,
    ColumnElement,
    Select,
    and_,
    column,
    func,
    inspect,
    or_,
    select,
    table,
    types,
)
from sqlalchemy.dialects import mysql
from sqlalchemy.engine import URL
from sqlalchemy.exc import NoSuchTableError, SAWarning

from ladon_storage.errors import SourceError
from ladon_storage.sources.sql.bounds import Bounds
from ladon_storage.sources.sql.keys import (
    KeyColumn,
    base_type,
    behind,
    compares_by_bytes,
    number_of_text,
    with_all_digits,
)
from ladon_storage.sources.sql.sessions import MYSQL, reading_engine
from ladon_storage.sources.sql.values import (
    PER_SECOND,
    SqlTimestampFormat,
    single_precision,
)

_NOW = {
    "postgresql": "SELECT clock_timestamp()",
    **dict.fromkeys(MYSQL, "SELECT UTC_TIMESTAMP(6)"),
}
"""How a server tells its time; SQLite has none, and no other is tested."""

_MOST_SAME_PAGES = 4
"""Pages that may have the rows of an earlier one, at later times."""

Key = tuple[Any, ...]
"""The timestamp and the id of a row, as the database compares them."""


@dataclass(frozen=True)
class Layout:
    """Say which table is read, and how.

    Args:
        source_id: The source, as errors name it.
        table: The table or view.
        schema: Where it is; ``None``: where the connection looks first.
        id_columns: The columns whose values are together an id.
        timestamp_column: The column of the timestamps.
        columns: What is read of each row; empty: everything.
        times: How the timestamps are written.
        zone: The zone of those without an offset.
        page_size: So many rows are a page.
        timeout: How long a statement may take.
    """

    source_id: str
    table: str
    schema: str | None
    id_columns: tuple[str, ...]
    timestamp_column: str
    columns: tuple[str, ...]
    timestamp_format: SqlTimestampFormat
    zone: tzinfo
    page_size: int
    timeout: timedelta


@dataclass(frozen=True)
class Row:
    """One row of a table.

    Args:
        key: By what it is ordered.
        time: Its timestamp, as the driver tells it.
        ids: The values that are its id.
        values: All of them, in the order of `TableReader.names`.
    """

    key: Key
    time: Any
    ids: Sequence[Any]
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

    zone: tzinfo = UTC
    """The zone of timestamps that come without an offset."""

    def __init__(self, layout: Layout, url: URL) -> None:
        self._layout = layout
        self._url = url
        self._engine = reading_engine(url, layout.timeout)
        self._dialect = self._engine.dialect.name
        self._kind: types.TypeEngine[Any] = types.NullType()
        self._keys: list[KeyColumn] = []
        self._nullable: list[ColumnElement[Any]] = []
        self._single: list[int] = []
        """Where in a row numbers of single precision are."""
        self._key_kinds: list[Any] = []
        """What the driver says of the types of the timestamp and the id."""
        self._page_ids: list[Sequence[Any]] = []
        self._same_pages = 0
        """How many pages had the same rows as the one that is remembered."""
        self._pages = 0

    def open(self) -> None:
        """Learn the columns.

        Raises:
            SourceError: The table does not have what is asked for.
            SQLAlchemyError: The database said no.
        """
        layout, database = self._layout, self._url.database
        if self._dialect == "sqlite" and not Path(database or "").is_file():
            raise self._error(f"the file {database!r} is missing", "correct the address")
        inspector = inspect(self._engine)
        try:
            with warnings.catch_warnings():
                # A type that SQLAlchemy does not know is told all the same.
                warnings.filterwarnings("ignore", "Did not recognize type", SAWarning)
                found = inspector.get_columns(layout.table, layout.schema)
        except NoSuchTableError:
            found = []
        if not found:
            raise self._error("there is no such table or view", "correct the table or its schema")
        known = {each["name"]: each for each in found}
        self.names = layout.columns or tuple(known)
        keys = (layout.timestamp_column, *layout.id_columns)
        for name in (*layout.id_columns, layout.timestamp_column, *self.names):
            if name not in known:
                raise self._error(
                    f"it has no column {name!r} but {', '.join(known)}", "correct the column"
                )
        self._kind = base_type(known[layout.timestamp_column]["type"])
        is_instant = self._dialect in MYSQL and isinstance(self._kind, types.TIMESTAMP)
        self.zone = UTC if is_instant else layout.zone
        by_bytes = compares_by_bytes(
            inspector, self._dialect, layout.table, layout.schema, set(keys)
        )
        self._keys = [
            KeyColumn.of(column(name), known[name]["type"], self._dialect, by_bytes=by_bytes)
            for name in keys
        ]
        self._keys[0] = self._comparable(self._keys[0])
        if self._dialect in MYSQL:
            named = [*self.names, layout.timestamp_column, *layout.id_columns]
            single = [isinstance(known[name]["type"], mysql.FLOAT) for name in named]
            self._single = [place for place, is_single in enumerate(single) if is_single]
        self._nullable = [
            each.told
            for name, each in zip(keys, self._keys, strict=True)
            if known[name]["nullable"] or isinstance(each.told, Case)
        ]

    def now(self) -> datetime | None:
        """Return the database's own time; ``None`` where it has none, or none that is known."""
        if self._dialect not in _NOW:
            return None
        with self._engine.connect() as connection, connection.begin():
            told = connection.exec_driver_sql(_NOW[self._dialect]).scalar()
        if not isinstance(told, datetime):
            return None
        return told.replace(tzinfo=UTC) if told.tzinfo is None else told.astimezone(UTC)

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
        limits: list[ColumnElement[bool]] = [each.told.is_not(None) for each in self._keys]
        limits += self._bounds().within(start if after is None else None, until)
        if after is not None:
            limits.append(behind(self._keys, after))
        size = self._layout.page_size
        order = [each.compared for each in self._keys]
        rows = self._rows(self._selected().where(and_(*limits)).order_by(*order).limit(size + 1))
        self._refuse_ties(rows)
        taken, more = rows[:size], len(rows) > size
        self._refuse_moving(taken, more=more)
        if more and taken[-1].key == after:
            raise self._error(
                f"it has more than {size} rows within one microsecond, finer than its driver tells",
                "set a larger page",
            )
        return taken, more

    def unreachable(self, most: int, *, is_first: bool) -> tuple[list[Row], int]:
        """Return up to ``most`` rows that no page can have, and how many such rows there are.

        They have no timestamp or no id; or a timestamp that is none and smaller than any, so that
        only a first run comes by it.
        """
        lost: list[tuple[ColumnElement[bool], ColumnElement[Any]]] = []
        if self._nullable:
            missing = or_(*(each.is_(None) for each in self._nullable))
            lost.append((missing, self._keys[1].compared.desc()))
        below = None if is_first else self._bounds().below()
        if below is not None:
            lost.append((below, self._keys[0].compared))
        rows: list[Row] = []
        count = 0
        for condition, order in lost:
            found = self._rows(self._selected().where(condition).order_by(order).limit(most + 1))
            rows += found[:most]
            count += len(found) if len(found) <= most else self._count(condition)
        return rows, count

    def _bounds(self) -> Bounds:
        times = self._layout.timestamp_format
        return Bounds(self._keys[0], self._kind, times, self.zone, self._dialect, self.is_text)

    def _count(self, condition: ColumnElement[bool]) -> int:
        source = table(self._layout.table, schema=self._layout.schema)
        with self._engine.connect() as connection, connection.begin():
            counted = select(func.count()).select_from(source).where(condition)
            return connection.execute(counted).scalar_one()

    def _selected(self) -> Select[Any]:
        values: list[ColumnElement[Any]] = [column(name) for name in self.names]
        for place in self._single:
            if place < len(values):
                values[place] = with_all_digits(values[place]).label(self.names[place])
        told = [each.told for each in self._keys]
        keys = [each.compared for each in self._keys if each.compared is not each.told]
        labelled = [each.label(f"_key_{place}") for place, each in enumerate([*told, *keys])]
        source = table(self._layout.table, schema=self._layout.schema)
        return select(*values, *labelled).select_from(source)

    def _rows(self, statement: Select[Any]) -> list[Row]:
        with self._engine.connect() as connection, connection.begin():
            result = connection.execute(statement)
            self._refuse_altered(result.cursor)
            return [self._row(each) for each in result]

    def _refuse_altered(self, cursor: Any) -> None:
        """Refuse a table of which a time or an id became another type since the first statement.

        Rows may have moved behind the last key by that: a day is before each time of it.
        """
        wide, deep = len(self.names), len(self._keys)
        kinds = [each[1] for each in cursor.description[wide : wide + deep]]
        if self._key_kinds and kinds != self._key_kinds:
            names = (self._layout.timestamp_column, *self._layout.id_columns)
            changed = next(
                name
                for name, one, other in zip(names, kinds, self._key_kinds, strict=True)
                if one != other
            )
            raise self._error(
                f"its column {changed!r} became another type while it was read", "run again"
            )
        self._key_kinds = kinds

    def _row(self, found: Sequence[Any]) -> Row:
        wide, deep = len(self.names), len(self._keys)
        if self._single:
            found = list(found)
            for place in self._single:
                found[place] = single_precision(found[place])
        told = found[wide : wide + deep]
        if len(found) == wide + deep:
            return Row(tuple(told), told[0], told[1:], found[:wide])
        other = iter(found[wide + deep :])
        key = tuple(
            value if each.compared is each.told else next(other)
            for each, value in zip(self._keys, told, strict=True)
        )
        return Row(key, told[0], told[1:], found[:wide])

    def _refuse_ties(self, rows: list[Row]) -> None:
        for one, other in pairwise(rows):
            if one.key == other.key:
                names = ", ".join(self._layout.id_columns)
                ids = ", ".join(map(repr, one.ids))
                raise self._error(
                    f"it has two rows with the {names} {ids} at {one.time}, so that a page could "
                    "end between them",
                    "name a column whose values are unique",
                )

    def _refuse_moving(self, rows: list[Row], *, more: bool) -> None:
        """Refuse a view that tells the present as a timestamp: behind each page are all its rows.

        Rows that are written meanwhile come again as well, but hardly just those of a full page.
        One page is remembered at a time, each for as long as all before it.
        """
        self._pages += 1
        known = self._page_ids
        if more and all(map(eq, (row.ids for row in rows), known)) and len(rows) == len(known):
            self._same_pages += 1
        elif self._pages.bit_count() == 1:
            self._page_ids, self._same_pages = [row.ids for row in rows], 0
        if self._same_pages == _MOST_SAME_PAGES:
            first, last = (", ".join(map(repr, row.ids)) for row in (rows[0], rows[-1]))
            raise self._error(
                f"its timestamps change while it is read: the rows with the ids {first} to "
                f"{last} came {_MOST_SAME_PAGES + 1} times, the last time at {rows[-1].time}",
                "name a column that changes with the row alone",
            )

    def _comparable(self, plain: KeyColumn) -> KeyColumn:
        """Return the timestamp as the database compares it."""
        times, kind = self._layout.timestamp_format, self._kind
        if times in PER_SECOND:
            if isinstance(kind, types.Integer | types.Numeric | types.Float):
                return plain
            if isinstance(kind, types.String | types.NullType):
                number = number_of_text(column(self._layout.timestamp_column))
                return KeyColumn(number, number)
        elif self._dialect == "sqlite" or (times == "text" and isinstance(kind, types.String)):
            self.is_text = True
            return plain
        elif times == "datetime" and isinstance(kind, types.DateTime | types.Date):
            return plain
        raise self._error(
            f"its column {self._layout.timestamp_column!r} is of the type {kind}, not {times}",
            "set how its timestamps are written",
        )

    def _error(self, problem: str, step: str) -> SourceError:
        name = self._layout.table
        return SourceError(
            f"Source {self._layout.source_id!r} cannot read the table {name!r}: {problem}; {step}.",
            self._layout.source_id,
        )
