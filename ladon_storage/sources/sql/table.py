"""The reader of a table, page by page, from any SQLAlchemy database; all of it blocks.

- A page continues after the last row of the page before, by timestamp and id (keyset pagination).
  Rows inserted or deleted meanwhile shift nothing, and equal timestamps may fill any number of
  pages.
- A page is one read-only transaction, so that a run of hours does not hold back a vacuum.
- Values come in the driver's form: SQLAlchemy's own types fail a page for one odd value.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta, tzinfo
from itertools import pairwise
from operator import eq
from pathlib import Path
from typing import Any

from sqlalchemy import (
    Case,
    ColumnElement,
    Select,
    TableClause,
    and_,
    case,
    cast,
    column,
    func,
    inspect,
    not_,
    or_,
    select,
    table,
    types,
)
from sqlalchemy.dialects import mysql
from sqlalchemy.engine import URL
from sqlalchemy.exc import NoSuchTableError, SAWarning

from ladon_storage.errors import SourceError
from ladon_storage.sources.problems import with_step
from ladon_storage.sources.sql.bounds import Bounds
from ladon_storage.sources.sql.keys import (
    KeyColumn,
    base_type,
    behind,
    compares_by_bytes,
    number_of_text,
    raw,
    with_all_digits,
)
from ladon_storage.sources.sql.sessions import DRIVERS, MYSQL, reading_engine
from ladon_storage.sources.sql.values import SqlTimestampFormat, shifted, single_precision
from ladon_storage.sources.timestamps import PER_SECOND

_NOW = {
    "postgresql": "SELECT clock_timestamp()",
    **dict.fromkeys(MYSQL, "SELECT UTC_TIMESTAMP(6)"),
}
"""The query for a server's time; SQLite has none, and no other database is tested."""

_MOST_SAME_PAGES = 4
"""Pages that may repeat the rows of an earlier one, at later times."""

_TIMES = 100_000
"""Distinct timestamps of one statement: without an index each one sorts the whole table."""

_MOST_ALIKE = 1_000
"""Pairs of ids that may look alike to SQLite, and not be one id, as numbers with an exponent."""

_ALIKE = re.compile(r"\d{4}-\d\d-\d\d(?:[ T]\d\d:\d\d(?::\d\d(?:\.\d+)?)?)?Z?", re.ASCII)
_DIGIT = re.compile(r"\d", re.ASCII)

_YEAR = re.compile(r"\d{4}")
_DATE = re.compile(r"\d{4}-\d\d-\d\d(?!\d)")
_LAST = datetime(9998, 1, 1, tzinfo=UTC)
_EARLIER = timedelta(days=3)
"""By so much a bound that is a year reaches further than one that is a date."""

Key = tuple[Any, ...]
"""The timestamp and the id of a row, as the database compares them."""


@dataclass(frozen=True)
class Layout:
    """The table to read, and the way to read it.

    Args:
        source_id: The source, as errors name it.
        table: The table or view.
        schema: The schema of the table; ``None``: the connection's search path.
        id_columns: The columns that make up the id.
        timestamp_column: The column of the timestamps.
        columns: The columns to read; empty: all of them.
        timestamp_format: The format of the timestamps.
        zone: The zone of those without an offset.
        page_size: The number of rows in a page.
        timeout: The time limit of a statement.
        is_id_declared: Whether the user chose the columns of the id.
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
    is_id_declared: bool = True


@dataclass(frozen=True)
class Row:
    """One row of a table.

    Args:
        key: The key by which it is ordered.
        time: Its timestamp, in the driver's form.
        ids: The values of its id.
        values: All values, in the order of `TableReader.names`.
    """

    key: Key
    time: Any
    ids: Sequence[Any]
    values: Sequence[Any]


class TableReader:
    """The reader of one table in one run, used from one thread.

    Args:
        layout: The table to read, and the way to read it.
        url: The address, with its password.
    """

    names: tuple[str, ...] = ()
    """The columns that are read."""

    is_text = False
    """Whether the database orders the timestamps as texts."""

    is_untyped = False
    """Whether the id may have values of several types."""

    primary_key: tuple[str, ...] = ()
    """The columns of the primary key, where the user did not set the id."""

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
        """The positions of single-precision numbers in a row."""
        self._key_kinds: list[Any] = []
        """The driver's types of the timestamp and the id."""
        self._page_ids: list[Sequence[Any]] = []
        self._same_pages = 0
        """The number of pages with the same rows as the remembered one."""
        self._pages = 0
        self._has_dates = True

    def open(self) -> None:
        """Read the table's columns.

        Raises:
            SourceError: The table lacks a requested column.
            SQLAlchemyError: The database refused.
        """
        layout, database = self._layout, self._url.database
        if self._dialect == "sqlite" and not Path(database or "").is_file():
            raise self._error(f"the file {database!r} is missing", "correct the address")
        inspector = inspect(self._engine)
        try:
            with warnings.catch_warnings():
                # A type unknown to SQLAlchemy is read all the same.
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
                    f"it has no column {name!r}; its columns are {', '.join(known)}",
                    "correct the column",
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
        kinds = [base_type(known[name]["type"]) for name in layout.id_columns]
        self.is_untyped = self._dialect == "sqlite" or isinstance(kinds[0], types.JSON)
        if not layout.is_id_declared and self._dialect in DRIVERS:
            found_key = inspector.get_pk_constraint(layout.table, layout.schema)
            self.primary_key = tuple(found_key["constrained_columns"])
        if self._dialect in MYSQL:
            named = [*self.names, layout.timestamp_column, *layout.id_columns]
            single = [isinstance(known[name]["type"], mysql.FLOAT) for name in named]
            self._single = [place for place, is_single in enumerate(single) if is_single]
        self._nullable = [
            each.compared
            for name, each in zip(keys, self._keys, strict=True)
            if known[name]["nullable"] or isinstance(each.compared, Case)
        ]

    def now(self) -> datetime | None:
        """Return the database's own time; ``None`` if it has none, or no known query for it."""
        if self._dialect not in _NOW:
            return None
        with self._engine.connect() as connection, connection.begin():
            now = connection.exec_driver_sql(_NOW[self._dialect]).scalar()
        if not isinstance(now, datetime):
            return None
        return now.replace(tzinfo=UTC) if now.tzinfo is None else now.astimezone(UTC)

    def close(self) -> None:
        """End the connection."""
        self._engine.dispose()

    def look_at_texts(self, until: datetime | None) -> None:
        """Find the form of the timestamps, where the database orders them as texts.

        Of all forms that begin with the same year, the one with dashes is the least: the greatest
        text of a year tells whether there are others. What begins with a letter is behind all.
        """
        if not self.is_text:
            return
        time = self._keys[0].compared
        # No year behind the date that would be the bound: its texts may have another form.
        end = _LAST if until is None else shifted(until, -_EARLIER)
        years = replace(self._bounds(), has_dates=False).within(None, end)[:1]
        found = select(self._keys[0].selected).select_from(self._table()).where(*years)
        with self._engine.connect() as connection, connection.begin():
            greatest = connection.execute(found.order_by(time.desc()).limit(1)).scalar()
        text = greatest if isinstance(greatest, str) else ""
        self._has_dates = not _YEAR.match(text) or _DATE.match(text) is not None

    def page(
        self, start: datetime | None, until: datetime | None, after: Key | None
    ) -> tuple[list[Row], bool]:
        """Return the rows after ``after``, and whether there are more.

        Raises:
            SourceError: Two rows have the same timestamp and id.
            SQLAlchemyError: The database refused.
        """
        limits = [self._range(start if after is None else None, until)]
        above = None if start is None else self._bounds().above()
        if above is not None:
            limits.append(not_(above))
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
                f"it has more than {size} rows within one microsecond, the finest unit of its "
                "driver",
                "set a larger page",
            )
        return taken, more

    def are_alike(self, text: object, start: datetime | None, until: datetime | None) -> bool:
        """Return whether a range has texts alone that differ from one of ISO 8601 in digits only.

        Such texts sort as their times do. Only SQLite is asked, which looks through them quickly.
        """
        is_form = isinstance(text, str) and _ALIKE.fullmatch(text) is not None
        if not is_form or self._engine.dialect.name != "sqlite":
            return False
        time = self._keys[0].compared
        others = or_(
            func.typeof(time) != "text", not_(time.op("GLOB")(_DIGIT.sub("[0-9]", str(text))))
        )
        found = select(1).select_from(self._table()).where(self._range(start, until), others)
        with self._engine.connect() as connection, connection.begin():
            return connection.execute(found.limit(1)).first() is None

    def alike_ids(
        self, start: datetime | None, until: datetime | None
    ) -> list[tuple[Sequence[Any], Sequence[Any]]]:
        """Return pairs of ids of a range that are alike as texts, and differ in their types.

        Only SQLite is asked, which sorts the ids in a file: they may be too many for the memory.
        """
        if self._engine.dialect.name != "sqlite":
            return []
        ids: list[ColumnElement[Any]] = [column(name) for name in self._layout.id_columns]
        kinds = [func.typeof(each) for each in ids]
        groups: list[ColumnElement[Any]] = [
            case((kind == "blob", func.lower(func.hex(each))), else_=cast(each, types.Text))
            for each, kind in zip(ids, kinds, strict=True)
        ]
        if len(ids) > 1:  # in such an id numbers and texts differ
            groups += [kind.in_(["integer", "real"]) for kind in kinds]
        found = (
            select(*map(func.min, ids), *map(func.max, ids))
            .select_from(self._table())
            .where(self._range(start, until))
            .group_by(*groups)
            .having(or_(*(func.count(kind.distinct()) > 1 for kind in kinds)))
        )
        with self._engine.connect() as connection, connection.begin():
            rows = connection.execute(found.limit(_MOST_ALIKE)).all()
        return [(row[: len(ids)], row[len(ids) :]) for row in rows]

    def times(self, start: datetime | None, until: datetime | None, after: Any) -> list[Any]:
        """Return the next distinct timestamps behind ``after``, in the database's order."""
        time = self._keys[0].compared
        limits = [self._range(start, until), *((time > raw(after),) if after is not None else ())]
        found = select(time).select_from(self._table()).where(*limits).distinct()
        with self._engine.connect() as connection, connection.begin():
            return list(connection.execute(found.order_by(time).limit(_TIMES)).scalars())

    def unreachable(self, most: int, *, is_first: bool) -> tuple[list[Row], int]:
        """Return up to ``most`` rows that can be on no page, and the number of all such rows.

        They have no timestamp or no id, or an invalid timestamp below or above any valid one, which
        only a first run reads.
        """
        lost: list[tuple[ColumnElement[bool], ColumnElement[Any]]] = []
        if self._nullable:
            missing = or_(*(each.is_(None) for each in self._nullable))
            lost.append((missing, self._keys[1].compared.desc()))
        if not is_first:
            time, bounds = self._keys[0].compared, self._bounds()
            for invalid, order in ((bounds.below(), time), (bounds.above(), time.desc())):
                if invalid is not None:
                    lost.append((invalid, order))
        rows: list[Row] = []
        count = 0
        for condition, order in lost:
            found = self._rows(self._selected().where(condition).order_by(order).limit(most + 1))
            rows += found[:most]
            count += len(found) if len(found) <= most else self._count(condition)
        return rows, count

    def _range(self, start: datetime | None, until: datetime | None) -> ColumnElement[bool]:
        """Return the condition for the rows of a range that have a timestamp and an id.

        The compared form decides: in PostgreSQL a row such as (1,) is neither NULL nor NOT NULL.
        """
        complete = [each.compared.is_not(None) for each in self._keys]
        return and_(*complete, *self._bounds().within(start, until))

    def _bounds(self) -> Bounds:
        times = self._layout.timestamp_format
        how = (self._kind, times, self.zone, self._dialect, self.is_text, self._has_dates)
        return Bounds(self._keys[0], *how)

    def _table(self) -> TableClause:
        return table(self._layout.table, schema=self._layout.schema)

    def _count(self, condition: ColumnElement[bool]) -> int:
        with self._engine.connect() as connection, connection.begin():
            counted = select(func.count()).select_from(self._table()).where(condition)
            return connection.execute(counted).scalar_one()

    def _selected(self) -> Select[Any]:
        values: list[ColumnElement[Any]] = [column(name) for name in self.names]
        for place in self._single:
            if place < len(values):
                values[place] = with_all_digits(values[place]).label(self.names[place])
        selected = [each.selected for each in self._keys]
        keys = [each.compared for each in self._keys if each.compared is not each.selected]
        labelled = [each.label(f"_key_{place}") for place, each in enumerate([*selected, *keys])]
        return select(*values, *labelled).select_from(self._table())

    def _rows(self, statement: Select[Any]) -> list[Row]:
        with self._engine.connect() as connection, connection.begin():
            result = connection.execute(statement)
            self._refuse_altered(result.cursor)
            return [self._row(each) for each in result]

    def _refuse_altered(self, cursor: Any) -> None:
        """Refuse a table in which a time or an id changed its type since the first statement.

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
                f"its column {changed!r} changed its type while it was read", "run again"
            )
        self._key_kinds = kinds

    def _row(self, found: Sequence[Any]) -> Row:
        wide, deep = len(self.names), len(self._keys)
        if self._single:
            found = list(found)
            for place in self._single:
                found[place] = single_precision(found[place])
        selected = found[wide : wide + deep]
        if len(found) == wide + deep:
            return Row(tuple(selected), selected[0], selected[1:], found[:wide])
        other = iter(found[wide + deep :])
        key = tuple(
            value if each.compared is each.selected else next(other)
            for each, value in zip(self._keys, selected, strict=True)
        )
        return Row(key, selected[0], selected[1:], found[:wide])

    def _refuse_ties(self, rows: list[Row]) -> None:
        for one, other in pairwise(rows):
            if one.key == other.key:
                names = ", ".join(self._layout.id_columns)
                ids = ", ".join(map(repr, one.ids))
                unique = "one with unique values"
                if not set(self.primary_key) <= set(self._layout.id_columns):
                    unique = f"{json.dumps(self.primary_key)}, its primary key"
                raise self._error(
                    f"it has two rows with the {names} {ids} at {one.time}, and a page could end "
                    "between them",
                    f"set id_column to {unique}; if earlier runs collected it, delete its "
                    "watermark too, since the ids of all its rows change",
                    refutes=True,
                )

    def _refuse_moving(self, rows: list[Row], *, more: bool) -> None:
        """Refuse a view whose timestamp is the present time: all its rows follow each page.

        Rows that are written meanwhile repeat as well, but hardly exactly those of a full page. One
        page is remembered at a time, each for as long as all before it.
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
                f"its timestamps changed while it was read: the rows with the ids {first} to "
                f"{last} came {_MOST_SAME_PAGES + 1} times, the last time at {rows[-1].time}",
                "set timestamp_column to one that changes only with the row",
                refutes=True,
            )

    def _comparable(self, plain: KeyColumn) -> KeyColumn:
        """Return the timestamp in the form that the database compares."""
        times, kind = self._layout.timestamp_format, self._kind
        if times in PER_SECOND:
            is_text = isinstance(kind, types.String | types.NullType)
            is_declared = isinstance(kind, types.Integer | types.Numeric | types.Float)
            if is_declared or (self._dialect == "sqlite" and not is_text):  # which has no other
                return plain
            if is_text:
                number = number_of_text(column(self._layout.timestamp_column), self._dialect)
                return KeyColumn(number, number)
        elif self._dialect == "sqlite" or (times == "text" and isinstance(kind, types.String)):
            self.is_text = True
            return plain
        elif times == "datetime" and isinstance(kind, types.DateTime | types.Date):
            return plain
        raise self._error(
            f"its column {self._layout.timestamp_column!r} is of the type {kind}, not {times}",
            "set timestamp_format to the format of its timestamps",
        )

    def _error(self, problem: str, step: str, *, refutes: bool = False) -> SourceError:
        name = self._layout.table
        return SourceError(
            with_step(
                f"Source {self._layout.source_id!r} cannot read the table {name!r}: {problem}", step
            ),
            self._layout.source_id,
            refutes=refutes,
        )
