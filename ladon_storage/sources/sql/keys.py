"""The keys that order rows: columns in a form that a database compares without losing a row.

A page continues after the last key of the page before. Two rows that a database considers equal, or
a value that compares differently than it is printed, would be lost there:

- A collation may consider "a" and "A", or "a" and "a ", equal: texts are compared by their bytes,
  except in MySQL if a unique index excludes two such rows.
- MySQL orders an ENUM by its number and compares it by its text.
- A number of single precision is printed with fewer digits than it is compared with.
- The text "1" in JSON is handed back as the number 1, and a month as 30 days.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Inspector,
    LargeBinary,
    Text,
    and_,
    bindparam,
    case,
    cast,
    func,
    literal_column,
    or_,
    types,
)
from sqlalchemy.dialects import mysql
from sqlalchemy.dialects.postgresql import CITEXT, DOMAIN, INTERVAL

from ladon_storage.sources.sql.sessions import MYSQL

_UNLIKE = (types.JSON, types.ARRAY, types.Interval, INTERVAL, types.NullType)
"""Types of PostgreSQL whose values are other ones when a driver hands them back."""


@dataclass(frozen=True)
class KeyColumn:
    """A column of the key: its form for comparisons, and its form for values."""

    compared: ColumnElement[Any]
    selected: ColumnElement[Any]

    @classmethod
    def of(
        cls, plain: ColumnElement[Any], kind: types.TypeEngine[Any], dialect: str, *, by_bytes: bool
    ) -> KeyColumn:
        """Return a column of a type, whose texts are compared ``by_bytes`` or as the database does.

        SQLite ignores the type, and MySQL needs the bytes of some in any case.
        """
        compared = plain
        if dialect == "sqlite":
            compared = plain.collate("BINARY") if by_bytes else plain
        elif dialect == "postgresql":
            has_collation = getattr(kind, "collation", None)
            kind = base_type(kind)
            if isinstance(kind, CITEXT) or has_collation or getattr(kind, "collation", None):
                compared = cast(plain, Text).collate("C")
            elif isinstance(kind, types.REAL):
                compared = cast(plain, types.DOUBLE_PRECISION)
            elif isinstance(kind, _UNLIKE):
                compared = cast(plain, Text).collate("C")
        elif dialect in MYSQL:
            if isinstance(kind, types.Enum | mysql.SET | mysql.TIME) or (
                by_bytes and isinstance(kind, types.String)
            ):
                compared = cast(plain, LargeBinary)
            elif isinstance(kind, mysql.BIT):
                return cls(plain + literal_column("0"), plain + literal_column("0"))
            elif isinstance(kind, mysql.FLOAT):
                return cls(with_all_digits(plain), with_all_digits(plain))
        return cls(compared, plain)


def base_type(kind: types.TypeEngine[Any]) -> types.TypeEngine[Any]:
    """Return the underlying type of a domain, or of a domain over one."""
    while isinstance(kind, DOMAIN):
        kind = kind.data_type
    return kind


def with_all_digits(single: ColumnElement[Any]) -> ColumnElement[Any]:
    """Return a FLOAT of MySQL as a double: a FLOAT is printed with six digits."""
    return single + literal_column("0e0")


def number_of_text(plain: ColumnElement[Any], dialect: str) -> ColumnElement[Any]:
    """Return the integer of a text of digits, or nothing: "9" is before "10".

    A column of SQLite may have numbers beside texts, which are taken as they are.
    """
    text = cast(plain, Text)
    is_number = text.regexp_match("^-?([0-9]{1,18}|[1-8][0-9]{18})$")
    of_text = (is_number, cast(text, BigInteger))
    if dialect == "sqlite":
        return case((func.typeof(plain) == "real", plain), of_text, else_=None)
    return case(of_text, else_=None)


def behind(columns: list[KeyColumn], key: tuple[Any, ...]) -> ColumnElement[bool]:
    """Return the condition for the rows whose keys are greater than ``key``."""
    first, value = columns[0].compared, raw(key[0])
    if len(columns) == 1:
        return first > value
    # The first part lets the database read an index from there on.
    return and_(first >= value, or_(first > value, behind(columns[1:], key[1:])))


def raw(value: Any) -> ColumnElement[Any]:
    """Return a parameter in the driver's own form: the database compares its own types best."""
    if isinstance(value, str):
        stored = value.encode(errors="surrogateescape")
        if stored != value.encode(errors="replace"):  # of SQLite, and no UTF-8
            return cast(raw(stored), Text)
    return bindparam(None, value, type_=types.NullType(), unique=True)


def compares_by_bytes(
    inspector: Inspector, dialect: str, table: str, schema: str | None, names: set[str]
) -> bool:
    """Return whether texts of a key must be compared by bytes, which an index may not do.

    Args:
        inspector: The database's inspector.
        dialect: The database's dialect.
        table: The table or view.
        schema: The schema of the table.
        names: The columns of the key.
    """
    if dialect == "sqlite":
        with inspector.engine.connect() as connection:
            found = connection.exec_driver_sql(
                "SELECT 1 FROM sqlite_master WHERE sql LIKE '%collate%' LIMIT 1"
            )
            return found.first() is not None
    if dialect not in MYSQL:
        return False
    unique: list[Sequence[str | None]] = [
        inspector.get_pk_constraint(table, schema)["constrained_columns"]
    ]
    unique += [
        each["column_names"] for each in inspector.get_indexes(table, schema) if each["unique"]
    ]
    return not any(each and set(each) <= names for each in unique)
