"""DuckDB for the SQL sink: a file of columns, with a page's rows in one statement."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from pathlib import Path

from sqlalchemy import Connection, Engine, create_engine
from sqlalchemy.engine import URL
from sqlalchemy.exc import IntegrityError
from sqlalchemy.pool import NullPool

from ladon_storage.collection.records import Columns, Record
from ladon_storage.errors import ConfigurationError, SinkError
from ladon_storage.sinks.sql.dialect import Compared, Rule, current_only, split
from ladon_storage.sinks.sql.duckdb_file import DuckdbConnection
from ladon_storage.sinks.sql.files import check_folder, checked_path, place_of
from ladon_storage.sinks.sql.tables import Keep

_ROWS = 2_048
"""The rows of one statement, of whose texts several copies are in memory."""

_FOUND = """
SELECT c.table_name, c.column_name, coalesce(list_contains(k.names, c.column_name), false)
FROM duckdb_columns() AS c LEFT JOIN (
    SELECT table_oid, constraint_column_names AS names FROM duckdb_constraints()
    WHERE constraint_type = 'PRIMARY KEY') AS k USING (table_oid)
WHERE c.database_name = current_database() AND c.schema_name = current_schema()
UNION ALL SELECT table_name, trigger_name, false FROM duckdb_triggers()
WHERE database_name = current_database() AND schema_name = current_schema()
AND starts_with(trigger_name, 'ladon_gone_') AND table_name IN (
    SELECT table_name FROM duckdb_triggers() WHERE starts_with(trigger_name, 'ladon_forget_'))
"""

_FORMAT = """
SELECT tags['storage_version'] FROM duckdb_databases() WHERE database_name = current_database()
"""
_HAS_TRIGGERS = (2, 0, 0)

# A page is passed as a text for each column of short values, which DuckDB splits while other
# threads run, and as a list of payloads: those of several KiB it does not split as quickly. Lists
# alone cost a third more, DuckDB's appender half as much again, and placeholders for each row far
# more.
_KEYS = """
SELECT unnest(string_split(?, chr(0))) AS record_id, unnest(string_split(?, chr(0))) AS version,
       unnest(string_split(?, chr(0)))::TIMESTAMPTZ AS record_timestamp"""

_PAGE = f"({_KEYS}, unnest(?::VARCHAR[]) AS payload) AS page"

# DuckDB has no `ON CONFLICT` for a table with a trigger.
_INSERT = (
    "INSERT INTO {table} (source_id, record_id, version, record_timestamp, payload, collected_at) "
    "SELECT ?, record_id, version, record_timestamp, payload, ? FROM {page}"
)

_MISSING = """
WHERE NOT EXISTS (
SELECT 1 FROM {table} AS t WHERE t.source_id = ? AND t.record_id = page.record_id{same})
"""

_UPDATE = """
UPDATE {table} AS t SET version = page.version, record_timestamp = page.record_timestamp,
                        payload = page.payload, collected_at = ?
FROM {page}
WHERE t.source_id = ? AND t.record_id = page.record_id AND t.version <> page.version
"""

_NEWER = "AND t.record_timestamp <= page.record_timestamp"

_COMPARED = """
SELECT page.number, CASE WHEN t.version IS NULL THEN 0 WHEN {kind} THEN 1 ELSE 2 END
FROM ({keys}, unnest(range(?)) AS number) AS page
LEFT JOIN {table} AS t ON t.source_id = ? AND t.record_id = page.record_id{same}
WHERE {unlike} ORDER BY page.number
"""

_THERE = """
SELECT DISTINCT record_id FROM {table}
WHERE source_id = ? AND record_id IN (SELECT unnest(?::VARCHAR[]))
"""

_LACKING = """
SELECT page.id FROM (SELECT unnest(?::VARCHAR[]) AS id, unnest(?::TIMESTAMPTZ[]) AS seen) AS page
WHERE NOT EXISTS (SELECT 1 FROM {table} AS t WHERE t.source_id = ? AND t.record_id = page.id
                  AND t.record_timestamp >= page.seen{current})
"""

_MARK = """
UPDATE {table} SET removed_at = ?
WHERE source_id = ? AND record_id IN (SELECT unnest(?::VARCHAR[])) AND removed_at IS NULL
"""

_UNMARK = _MARK.replace("IS NULL", "IS NOT NULL")


class Duckdb:
    """The operations of DuckDB on one table of records in a file.

    Args:
        url: Its address.
        table: The name of the table, which is safe to quote.
        keep: The rule for versions in the table.

    Raises:
        ConfigurationError: The address is not that of a file, or DuckDB is not installed.
    """

    example = "duckdb:///records.duckdb"
    batch_characters = 2**21
    """A third of the usual, as what waits is beside DuckDB's own memory; more commits cost CPU."""

    def __init__(self, url: URL, table: str, keep: Keep) -> None:
        try:
            import duckdb  # noqa: F401 - an extra
        except ImportError as error:
            raise ConfigurationError(
                "A sink in DuckDB requires duckdb. Install ladon-storage[duckdb]."
            ) from error
        if url.query:  # settings belong to the process, which shares the file
            raise ConfigurationError(
                f"The sink's address cannot be used. Write it as {self.example}."
            )
        self._path = checked_path(url, self.example)
        if "?" in (path := str(self._path.absolute())):
            raise ConfigurationError(
                f"The path {path!r} has a '?', where DuckDB looks for options. Use one without it."
            )
        self._keep = keep

        def about(statement: str) -> str:
            same = " AND t.version = page.version" if keep == "all" else ""
            statement = statement.replace("{current}", current_only(keep))
            filled = (
                statement.replace("{same}", same).replace("{page}", _PAGE).replace("{keys}", _KEYS)
            )
            return filled.replace("{table}", f'"{table}"')

        self._insert, self._insert_missing, self._update, self._there = map(
            about, (_INSERT, _INSERT + _MISSING, _UPDATE, _THERE)
        )
        self._lacking, self._mark, self._unmark = map(about, (_LACKING, _MARK, _UNMARK))
        kind, unlike = _NEWER.removeprefix("AND "), "t.version IS DISTINCT FROM page.version"
        if keep == "all":
            kind, unlike = "false", "t.version IS NULL OR t.replaced_at IS NOT NULL"
        self._compared = about(_COMPARED.replace("{kind}", kind).replace("{unlike}", unlike))

    def engine(self) -> Engine:
        """Return an engine that opens the file; it creates the file, but not its folder."""
        check_folder(self._path)
        return _engine(self._path.resolve())

    def place(self) -> tuple[int, int] | None:
        """Return the file's inode: a removed file can still be written to while it is open."""
        return place_of(self._path)

    def begin_writing(self, connection: Connection, source_id: str) -> None:
        """Do nothing: a transaction has the file to itself from its beginning."""

    def begin_schema_change(self, connection: Connection) -> None:
        """Refuse a file in an older format; there is no lock, as for `begin_writing`."""
        found = str(connection.exec_driver_sql(_FORMAT).scalar())
        version = tuple(map(int, re.findall(r"[0-9]+", found)))
        if version < _HAS_TRIGGERS:
            raise SinkError(
                f"The file {self._path} of a sink has the format {found} of DuckDB, which has no "
                "triggers; a sink needs v2.0.0. Copy it into a new file by COPY FROM DATABASE, or "
                "use another file."
            )

    def existing_columns(
        self, connection: Connection, names: Sequence[str]
    ) -> dict[str, dict[str, bool]]:
        """Query the file's catalogue once; names are the same in any case of their letters."""
        wanted = {name.lower(): name for name in names}
        found: dict[str, dict[str, bool]] = {}
        for table, column, is_key in connection.exec_driver_sql(_FOUND):
            if table.lower() in wanted:
                found.setdefault(wanted[table.lower()], {})[column] = is_key
        return found

    def compare(
        self,
        connection: Connection,
        source_id: str,
        records: Sequence[Record],
        *,
        are_replaced: bool,
    ) -> Compared:
        """Join the page with the table once."""
        if not records:
            return Compared()
        *keys, _ = _parameters(Columns.of(records))
        kinds: tuple[list[Record], ...] = ([], [], [])
        asked = (*keys, len(records), source_id)
        for number, kind in connection.exec_driver_sql(self._compared, asked):
            kinds[kind].append(records[number])
        compared = Compared(*kinds)
        if self._keep == "all" and compared.new:
            asked_ids = [each.record_id for each in compared.new]
            there = connection.exec_driver_sql(self._there, (source_id, asked_ids))
            return split(compared, {row[0] for row in there})
        return compared

    def are_unknown(self, connection: Connection, source_id: str, ids: list[str]) -> bool:
        """Stop at the first existing row."""
        asked = f"SELECT EXISTS ({self._there.replace('DISTINCT record_id', '1')})"
        return not connection.exec_driver_sql(asked, (source_id, ids)).scalar_one()

    def lacking(
        self, connection: Connection, source_id: str, listed: Mapping[str, datetime]
    ) -> list[str]:
        """Pass ids and times as two lists."""
        asked = (list(listed), list(listed.values()), source_id)
        return [row[0] for row in connection.exec_driver_sql(self._lacking, asked)]

    def store(
        self,
        connection: Connection,
        source_id: str,
        records: Sequence[Record],
        now: datetime,
        rule: Rule = "newer",
    ) -> int:
        """Pass columns of many rows; new rows and changed rows are statements of their own."""
        columns = Columns.of(records)
        parts = [_part(columns, at) for at in range(0, len(columns), _ROWS)]
        try:
            return sum(self._store(connection, source_id, each, now, rule) for each in parts)
        except IntegrityError:
            if rule != "new":
                raise
            return 0  # a row is there; the caller rolls back

    def _store(
        self, connection: Connection, source_id: str, records: Columns, now: datetime, rule: Rule
    ) -> int:
        columns, written = _parameters(records), 0
        if rule == "new":
            return connection.exec_driver_sql(self._insert, (source_id, now, *columns)).rowcount
        if self._keep == "latest":
            update = self._update + (_NEWER if rule == "newer" else "")
            changed = (now, *columns, source_id)
            written = connection.exec_driver_sql(update, changed).rowcount
        if written < len(records):
            missing = (source_id, now, *columns, source_id)
            written += connection.exec_driver_sql(self._insert_missing, missing).rowcount
        return written

    def set_removed(
        self, connection: Connection, source_id: str, ids: list[str], removed_at: datetime | None
    ) -> int:
        """Pass the ids as a list."""
        marking = self._unmark if removed_at is None else self._mark
        return connection.exec_driver_sql(marking, (removed_at, source_id, ids)).rowcount


def _part(columns: Columns, first: int) -> Columns:
    """Return the records of one statement, from a place on."""
    some = slice(first, first + _ROWS)
    return Columns(
        columns.ids[some],
        columns.timestamps[some],
        columns.payloads[some],
        columns.versions[some],
        columns.instants[some],
    )


def _parameters(columns: Columns) -> tuple[str, str, str, list[str]]:
    """Return ids, versions, times and payloads; no text of a record has a NUL."""
    keys = (columns.ids, columns.versions, columns.instants)
    ids, versions, instants = map("\0".join, keys)
    return ids, versions, instants, columns.payloads


@lru_cache  # it holds no connection, only compiled statements
def _engine(path: Path) -> Engine:
    return create_engine(
        "duckdb+ladon://",
        poolclass=NullPool,
        hide_parameters=True,
        creator=lambda: DuckdbConnection(path),
    )
