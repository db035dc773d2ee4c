"""The tables of a SQL sink: what they are, and how they come to be so.

- Made and migrated in one transaction that only one process can be in, so that runs which start
  together may find no table, or an old one.
- What is right already is not touched: a role that may only read and write rows can use it.
- A position never outlives its records. Where the table was dropped, it goes when the table is made
  again: it would hide the hole.
- Version 1 was `ladon-storage` 0.1.0: the records alone, without ``removed_at``, and no
  `ladon_meta`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property, lru_cache
from typing import Any, Literal

from sqlalchemy import (
    Column,
    Connection,
    DateTime,
    Dialect,
    Index,
    Integer,
    MetaData,
    Select,
    Table,
    Text,
    TypeDecorator,
    bindparam,
    delete,
    insert,
    literal,
    select,
)
from sqlalchemy.dialects.postgresql import JSON
from sqlalchemy.schema import CreateIndex
from sqlalchemy.types import TypeEngine

from ladon_storage.errors import SinkError

Keep = Literal["latest", "all"]

VERSION = 2
KEYS: dict[Keep, tuple[str, ...]] = {
    "latest": ("source_id", "record_id"),
    "all": ("source_id", "record_id", "version"),
}
_FIRST_COLUMNS = {
    *("source_id", "record_id", "version", "record_timestamp", "payload", "collected_at")
}

Found = Mapping[str, Mapping[str, bool]]
"""The columns of the tables that there are, and whether each is in the primary key."""


def instant_text(instant: datetime) -> str:
    """Return an instant as SQLite has it: text of fixed width in UTC, which it orders right.

    >>> instant_text(datetime(1, 1, 1, tzinfo=UTC))
    '0001-01-01T00:00:00.000000+00:00'
    """
    if instant.tzinfo is not UTC:  # as a record's is
        instant = instant.astimezone(UTC)
    return instant.isoformat("T", "microseconds")


class Instant(TypeDecorator[datetime]):
    """Be an aware datetime: a ``timestamptz``, or `instant_text` where there is no such type."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """Choose the type by the database."""
        return dialect.type_descriptor(
            Text() if dialect.name == "sqlite" else DateTime(timezone=True)
        )

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> Any:
        """Return what is stored."""
        return instant_text(value) if value and dialect.name == "sqlite" else value

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:
        """Return what was stored."""
        if value is None:
            return None
        return (datetime.fromisoformat(value) if isinstance(value, str) else value).astimezone(UTC)


@dataclass(frozen=True)
class Tables:
    """Be the tables of one sink: its records, what it could not use, and what it remembers."""

    records: Table
    quarantine: Table
    positions: Table
    meta: Table
    keep: Keep

    @classmethod
    @lru_cache  # describing them takes longer than opening the database
    def of(cls, name: str, keep: Keep) -> Tables:
        """Return the tables of the sink with this name; the last two are shared by all sinks."""
        metadata = MetaData()
        quarantine = Table(
            f"{name}_quarantine",
            metadata,
            _key("source_id"),
            _key("digest"),
            *(Column(each, Text, nullable=False) for each in ("run_id", "reason", "raw")),
            Column("quarantined_at", Instant, nullable=False),
        )
        positions = Table(
            "ladon_positions",
            metadata,
            _key("table_name"),
            _key("source_id"),
            Column("timestamp", Instant, nullable=False),
            Column("watermark", Instant),
            Column("origin", Instant),
            Column("run_id", Text),
        )
        meta = Table(
            "ladon_meta", metadata, _key("table_name"), Column("version", Integer, nullable=False)
        )
        return cls(_records(metadata, name, keep), quarantine, positions, meta, keep)

    @property
    def all(self) -> tuple[Table, ...]:
        """Return every table."""
        return self.records, self.quarantine, self.positions, self.meta

    # Each of these is asked for every run or page: made once, it is compiled once.

    @cached_property
    def version(self) -> Select[Any]:
        """Of which version the table of records is."""
        return select(self.meta.c.version).where(self.meta.c.table_name == self.records.name)

    @cached_property
    def position(self) -> Select[Any]:
        """What is remembered of a ``source_id``."""
        positions = self.positions.c
        return select(
            positions.timestamp, positions.watermark, positions.origin, positions.run_id
        ).where(
            positions.table_name == self.records.name,
            positions.source_id == bindparam("source_id"),
        )

    @cached_property
    def a_mark(self) -> Select[Any]:
        """One row, if any record of a ``source_id`` is marked as removed."""
        records = self.records.c
        of_source = records.source_id == bindparam("source_id")
        return select(literal(1)).where(of_source, records.removed_at.is_not(None)).limit(1)

    @cached_property
    def marks(self) -> Select[Any]:
        """Every id of a ``source_id``, and whether it is marked as removed."""
        records = self.records.c
        ids = select(records.record_id, records.removed_at.is_not(None))
        ids = ids.where(records.source_id == bindparam("source_id"))
        return ids.distinct() if self.keep == "all" else ids


def _records(metadata: MetaData, name: str, keep: Keep) -> Table:
    records = Table(
        name,
        metadata,
        *(_key(each) for each in KEYS[keep]),
        *([] if "version" in KEYS[keep] else [Column("version", Text, nullable=False)]),
        Column("record_timestamp", Instant, nullable=False),
        # Not jsonb: it reorders keys, rewrites numbers and refuses \u0000. json keeps the text
        # as the source gave it, and can be asked by the same operators.
        Column("payload", Text().with_variant(JSON(), "postgresql"), nullable=False),
        Column("collected_at", Instant, nullable=False),
        Column("removed_at", Instant),
    )
    marked = records.c.removed_at.is_not(None)
    Index(
        f"{name}_removed",
        records.c.source_id,
        records.c.record_id,
        sqlite_where=marked,
        postgresql_where=marked,
    )
    return records


def _key(name: str) -> Column[str]:
    return Column(name, Text, primary_key=True, nullable=False)


def are_ready(connection: Connection, tables: Tables, found: Found, shown: str) -> bool:
    """Tell whether the tables are there and of this version.

    Raises:
        SinkError: A table of that name is no table of this sink's.
    """
    version = _version(connection, tables, found, shown)
    return version == VERSION and all(table.name in found for table in tables.all)


def make_tables(connection: Connection, tables: Tables, found: Found, shown: str) -> None:
    """Make what is missing and migrate what is old, in the caller's exclusive transaction.

    Raises:
        SinkError: A table of that name is no table of this sink's.
    """
    version = _version(connection, tables, found, shown)
    for table in tables.all:
        if table.name not in found:
            table.create(connection, checkfirst=False)
    name = tables.records.name
    if version is None:
        connection.execute(delete(tables.positions).where(tables.positions.c.table_name == name))
    elif version == 1:
        _add_removed(connection, tables.records)
    connection.execute(delete(tables.meta).where(tables.meta.c.table_name == name))
    connection.execute(insert(tables.meta).values(table_name=name, version=VERSION))


def _add_removed(connection: Connection, records: Table) -> None:
    """Migrate from version 1 to 2."""
    dialect = connection.dialect
    name = dialect.identifier_preparer.format_table(records)
    kind = records.c.removed_at.type.compile(dialect)
    connection.exec_driver_sql(f"ALTER TABLE {name} ADD COLUMN removed_at {kind}")
    for index in records.indexes:
        connection.execute(CreateIndex(index))


def _version(connection: Connection, tables: Tables, found: Found, shown: str) -> int | None:
    """Return the version of the table of records; ``None`` where there is none."""
    name = tables.records.name
    columns = found.get(name)
    if columns is None:
        return None
    _check_is_ours(tables, columns, shown)
    version = None
    if tables.meta.name in found:
        version = connection.scalar(tables.version)
    if version is not None and version > VERSION:
        raise SinkError(
            f"The table {name!r} of the sink {shown} is of version {version}, and this release "
            f"knows {VERSION}; update ladon-storage."
        )
    # By what is there: the table may have been renamed, or put back from an old backup.
    return VERSION if "removed_at" in columns else 1


def _check_is_ours(tables: Tables, columns: Mapping[str, bool], shown: str) -> None:
    """Refuse a table that no sink made, or one that was made to keep something else."""
    name = tables.records.name
    key = {column for column, is_key in columns.items() if is_key}
    for keep, expected in KEYS.items():
        if columns.keys() >= _FIRST_COLUMNS and key == set(expected):
            if keep == tables.keep:
                return
            raise SinkError(
                f"The table {name!r} of the sink {shown} was made with keep={keep!r}, not "
                f"{tables.keep!r}; use that, or another table."
            )
    raise SinkError(
        f"The table {name!r} of the sink {shown} holds no records: it has the columns "
        f"{', '.join(sorted(columns))}; use another table."
    )
