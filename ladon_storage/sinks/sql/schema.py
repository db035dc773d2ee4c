"""The creation and migration of a SQL sink's tables.

- One transaction creates and migrates, under a lock, so that runs which start together may find no
  table, or an old one.
- A table that is up to date is not touched: a role without DDL rights can use it.
- A position never outlives its records. If the table was dropped, its position is deleted when the
  table is created again: it would hide the missing rows.
- Version 1 was `ladon-storage` 0.1.0: the records alone, without ``removed_at``, and no
  `ladon_meta`. Version 2 had no ``replaced_at``, no `ladon_deleted` with its trigger, and less of a
  position.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import uuid4

from sqlalchemy import Column, Connection, Index, Table, delete, insert, text
from sqlalchemy.schema import CreateIndex, CreateTable

from ladon_storage.errors import SinkError
from ladon_storage.sinks.sql.deletions import (
    let_readers_read,
    note_deletions,
    trigger_of,
)
from ladon_storage.sinks.sql.dialect import execute
from ladon_storage.sinks.sql.tables import PRIMARY_KEYS, Tables

VERSION = 3
_FIRST_COLUMNS = {
    *("source_id", "record_id", "version", "record_timestamp", "payload", "collected_at")
}

_VERSION = "SELECT version FROM ladon_meta WHERE table_name = ?"

Found = Mapping[str, Mapping[str, bool]]
"""The columns of the existing tables, and whether each is in the primary key.

A table with the trigger of `deletions` contains the trigger's name here, as if it were a column.
"""


def is_current(connection: Connection, tables: Tables, found: Found, shown: str) -> bool:
    """Return whether the tables are there and of this version.

    Raises:
        SinkError: A table of that name was not made by this sink.
    """
    _check(connection, tables, found, shown)
    # By its content: the table may have been renamed, or restored from an old backup.
    is_noted = trigger_of(tables.records.name) in found.get(tables.records.name, ())
    return is_noted and all(
        table.name in found and not _missing(table, found) for table in tables.all
    )


def create_or_migrate(connection: Connection, tables: Tables, found: Found, shown: str) -> None:
    """Create missing tables and migrate old ones, in the caller's exclusive transaction.

    Raises:
        SinkError: A table of that name was not made by this sink.
    """
    _check(connection, tables, found, shown)
    records, name = tables.records, tables.records.name
    for table in tables.all:
        if table.name not in found:
            connection.execute(CreateTable(table))
            for index in table.indexes:
                _index(connection, index)
            continue
        for column in _missing(table, found):
            _add(connection, table, column)
    if name not in found:
        for table in (tables.positions, tables.deleted):
            connection.execute(delete(table).where(table.c.table_name == name))
    elif "replaced_at" in records.c and "replaced_at" not in found[name]:
        connection.execute(text(_REPLACED.replace("{table}", f'"{name}"')))
    if name in found and tables.deleted.name not in found:
        let_readers_read(connection, name, tables.deleted.name)
    # The trigger of an older release is not recognised.
    if trigger_of(name) not in found.get(name, ()):
        note_deletions(connection, name, tables.keep)
    connection.execute(delete(tables.meta).where(tables.meta.c.table_name == name))
    connection.execute(insert(tables.meta).values(table_name=name, version=VERSION))


# Records collected before this column existed: each version was replaced by the next one.
_REPLACED = """
UPDATE {table} SET replaced_at = (
    SELECT later.collected_at FROM {table} AS later
    WHERE later.source_id = {table}.source_id AND later.record_id = {table}.record_id
    AND (later.record_timestamp, later.collected_at, later.version)
      > ({table}.record_timestamp, {table}.collected_at, {table}.version)
    ORDER BY later.record_timestamp, later.collected_at, later.version LIMIT 1)
"""


def _missing(table: Table, found: Found) -> list[Column[Any]]:
    """Return the columns that a table of an older version lacks."""
    return [each for each in table.c if each.nullable and each.name not in found[table.name]]


def _add(connection: Connection, table: Table, column: Column[Any]) -> None:
    dialect = connection.dialect
    name = dialect.identifier_preparer.format_table(table)
    kind = column.type.compile(dialect)
    connection.exec_driver_sql(f"ALTER TABLE {name} ADD COLUMN {column.name} {kind}")
    for index in table.indexes:
        if index.name == f"{table.name}_{column.name.removesuffix('_at')}":
            _index(connection, index)


def _index(connection: Connection, index: Index) -> None:
    """Create an index, under another name if a renamed table still has the usual one."""
    dialect = connection.dialect
    if dialect.name not in _TAKEN:  # indexes of DuckDB have no condition, and its scans skip blocks
        return
    index.dialect_options[dialect.name]["where"] = index.info["where"]
    made = str(CreateIndex(index).compile(dialect=dialect))
    if connection.exec_driver_sql(_TAKEN[dialect.name], (index.name,)).first():
        name = dialect.identifier_preparer.format_index(index)
        made = made.replace(name, f"ladon_{uuid4().hex}", 1)
    connection.exec_driver_sql(made)


_TAKEN = {
    "sqlite": "SELECT 1 FROM sqlite_master WHERE type = 'index' AND name = ? COLLATE NOCASE",
    "postgresql": "SELECT 1 FROM pg_class WHERE relkind IN ('i', 'I') AND relname = %s "
    "AND relnamespace = current_schema()::regnamespace",
}


def _check(connection: Connection, tables: Tables, found: Found, shown: str) -> None:
    """Refuse a table that was not made by this sink, or was made by a newer release."""
    name = tables.records.name
    if name not in found:
        return
    _check_is_ours(tables, found[name], shown)
    version = None
    if tables.meta.name in found:
        version = execute(connection, _VERSION, (name,)).scalar()
    if version is not None and version > VERSION:
        raise SinkError(
            f"The table {name!r} of the sink {shown} is of version {version}, and this "
            f"release supports {VERSION}. Update ladon-storage."
        )


def _check_is_ours(tables: Tables, columns: Mapping[str, bool], shown: str) -> None:
    """Refuse a table that no sink made, or that was made with another ``keep``."""
    name = tables.records.name
    columns = {each: is_key for each, is_key in columns.items() if each != trigger_of(name)}
    key = {column for column, is_key in columns.items() if is_key}
    for keep, expected in PRIMARY_KEYS.items():
        if columns.keys() >= _FIRST_COLUMNS and key == set(expected):
            if keep == tables.keep:
                return
            raise SinkError(
                f"The table {name!r} of the sink {shown} was created with keep={keep!r}, not "
                f"{tables.keep!r}. Use that, or another table."
            )
    if columns.keys() >= _FIRST_COLUMNS:
        found = f"has the primary key ({', '.join(sorted(key))})" if key else "has no primary key"
        raise SinkError(
            f"The table {name!r} of the sink {shown} {found}; it should be "
            f"({', '.join(PRIMARY_KEYS[tables.keep])}). Give the table that key, or use "
            "another table."
        )
    raise SinkError(
        f"The table {name!r} of the sink {shown} is not a table of records: it has the "
        f"columns {', '.join(sorted(columns))}. Use another table."
    )
