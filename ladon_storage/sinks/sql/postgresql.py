"""PostgreSQL for the SQL sink: through psycopg, with a page's rows in one statement."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any

import sqlalchemy.dialects.postgresql  # noqa: F401 - else a run's first write would import it
from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import URL
from sqlalchemy.pool import NullPool

from ladon_storage import databases
from ladon_storage.collection.records import Record
from ladon_storage.errors import ConfigurationError, SinkError
from ladon_storage.sinks.sql.deletions import NEEDS_ROWS
from ladon_storage.sinks.sql.dialect import (
    RULES,
    WAIT_SECONDS,
    Compared,
    Rule,
    by_id,
    split,
    statement,
)
from ladon_storage.sinks.sql.tables import Keep, aware

_MAKING_LOCK = 1_418_742_211
"""The advisory lock for creating tables; an arbitrary number that no other program uses."""

_WRITING_LOCK = 1_418_742_212
"""The advisory lock for writing a source's rows, combined with a hash of the source."""

# A page's columns are JSON lists: psycopg needs ten times as long to quote them as arrays.
_INSERT = """
INSERT INTO {table} (source_id, record_id, version, record_timestamp, payload, collected_at)
SELECT %s::text, page.id, page.version, page.at::timestamptz, page.payload::json, %s::timestamptz
FROM ROWS FROM (json_array_elements_text(%s), json_array_elements_text(%s),
                json_array_elements_text(%s), json_array_elements_text(%s))
AS page (id, version, at, payload) {on_conflict}
"""

_KNOWN = """
SELECT record_id, version, record_timestamp FROM {table}
WHERE source_id = %s AND record_id = ANY(%s)
"""

# Not a plain join: without statistics the planner would read the whole table for each page.
_UNKNOWN = """
SELECT page.number, t.version IS NOT NULL
FROM ROWS FROM (json_array_elements_text(%s), json_array_elements_text(%s))
WITH ORDINALITY AS page (id, version, number)
LEFT JOIN LATERAL (
    SELECT version, replaced_at FROM {table} AS t
    WHERE t.source_id = %s AND t.record_id = page.id AND t.version = page.version OFFSET 0
) AS t ON true
WHERE t.version IS NULL OR t.replaced_at IS NOT NULL
"""

_THERE = """
SELECT DISTINCT record_id FROM {table} WHERE source_id = %s AND record_id = ANY(%s)
"""

_LACKING = """
SELECT page.id
FROM ROWS FROM (json_array_elements_text(%s), json_array_elements_text(%s)) AS page (id, at)
WHERE (SELECT true FROM {table} AS t WHERE t.source_id = %s AND t.record_id = page.id
       AND t.record_timestamp >= page.at::timestamptz{current} LIMIT 1) IS NULL
"""

_MARK = """
UPDATE {table} SET removed_at = %s
WHERE source_id = %s AND record_id = ANY(%s) AND removed_at IS NULL
"""

_UNMARK = _MARK.replace("IS NULL", "IS NOT NULL")

# A trigger that lacks something is not found, and made again where this role may do that. One that
# is always enabled notes deletions also with `session_replication_role = replica`; a partition that
# was added later has none of truncations.
_FOUND = """
SELECT c.relname, a.attname, coalesce(a.attnum = ANY(i.indkey), false)
FROM pg_class AS c JOIN pg_attribute AS a ON a.attrelid = c.oid
LEFT JOIN pg_index AS i ON i.indrelid = c.oid AND i.indisprimary
WHERE c.relnamespace = current_schema()::regnamespace AND c.relname = ANY(%s)
AND a.attnum > 0 AND NOT a.attisdropped
UNION ALL SELECT c.relname, t.tgname, false
FROM pg_class AS c JOIN pg_trigger AS t ON t.tgrelid = c.oid AND NOT t.tgisinternal
AND t.tgname LIKE 'ladon\\_gone\\_%%' AND t.tgnargs = 2 AND (t.tgtype & 1 = 1) = {needs_rows}
WHERE c.relnamespace = current_schema()::regnamespace AND c.relname = ANY(%s)
AND NOT EXISTS (
    SELECT FROM (SELECT c.oid UNION SELECT relid FROM pg_partition_tree(c.oid)) AS p (oid)
    JOIN pg_class AS q ON q.oid = p.oid
    WHERE (q.oid = c.oid OR pg_has_role(q.relowner, 'USAGE'))
    AND 2 > (SELECT count(*) FROM pg_trigger AS o WHERE o.tgrelid = q.oid
        AND o.tgname IN (t.tgname, 'ladon_void_' || substr(t.tgname, 12))
        AND (o.tgenabled = 'A' OR o.tgenabled = 'O' AND NOT pg_has_role(q.relowner, 'USAGE'))))
""".replace("{needs_rows}", NEEDS_ROWS)

# UTC, since the first hours of the year 1 are in no year elsewhere; psycopg reads no other style of
# dates. An acknowledged commit is durable, even if the role's default is otherwise.
_PREPARE = """
SELECT set_config('timezone', 'UTC', false), set_config('datestyle', 'ISO', false),
set_config('lock_timeout', %s, false),
CASE current_setting('synchronous_commit')
WHEN 'off' THEN set_config('synchronous_commit', 'on', false) END
"""


class Postgresql:
    """The operations of PostgreSQL on one table of records.

    Args:
        url: Its address, without a driver.
        table: The name of the table, which is safe to quote.
        keep: The rule for versions in the table.

    Raises:
        ConfigurationError: The address names no database, or psycopg is not installed.
    """

    example = "postgresql://user:password@host/database"

    def __init__(self, url: URL, table: str, keep: Keep) -> None:
        try:
            import psycopg  # noqa: F401 - an extra
        except ImportError as error:
            raise ConfigurationError(
                "A sink in PostgreSQL requires psycopg. Install ladon-storage[postgresql]."
            ) from error
        if not url.database:
            raise ConfigurationError(
                f"The sink {databases.shown_address(url)} names no database. Write "
                f"its address as {self.example}."
            )
        self._url = url.set(drivername="postgresql+psycopg")
        self._keep = keep
        self._table = table
        self._inserts = {rule: statement(_INSERT, table, keep, rule) for rule in RULES}
        self._known, self._unknown, self._there, self._lacking, self._mark, self._unmark = (
            statement(each, table, keep)
            for each in (_KNOWN, _UNKNOWN, _THERE, _LACKING, _MARK, _UNMARK)
        )

    def engine(self) -> Engine:
        """Return an engine whose connections notice when they are lost."""
        return _engine(self._url)

    def place(self) -> None:
        """Return nothing: the server knows where its tables are."""

    def begin_writing(self, connection: Connection, source_id: str) -> None:
        """Take the source's lock; by default a transaction waits only for single rows."""
        asked = "SELECT pg_advisory_xact_lock(%s, hashtext(%s))"
        connection.exec_driver_sql(asked, (_WRITING_LOCK, f"{self._table} {source_id}"))

    def begin_schema_change(self, connection: Connection) -> None:
        """Take a lock: two transactions that create one table at once do not see each other's."""
        connection.exec_driver_sql("SELECT pg_advisory_xact_lock(%s)", (_MAKING_LOCK,))

    def existing_columns(
        self, connection: Connection, names: Sequence[str]
    ) -> dict[str, dict[str, bool]]:
        """Query the catalogue once, for the schema where a table would be created."""
        found: dict[str, dict[str, bool]] = {}
        for table, column, is_key in connection.exec_driver_sql(_FOUND, (list(names), list(names))):
            found.setdefault(table, {})[column] = is_key
        return found

    def compare(
        self,
        connection: Connection,
        source_id: str,
        records: Sequence[Record],
        *,
        are_replaced: bool,
    ) -> Compared:
        """Read first: an upsert that changes nothing locks, and so writes, each row."""
        compared, ids = Compared(), [record.record_id for record in records]
        if self._keep == "all":
            page = (json.dumps(ids), json.dumps([record.version for record in records]))
            rows = connection.exec_driver_sql(self._unknown, (*page, source_id))
            for number, is_there in rows:
                kind = compared.superseded if is_there else compared.new
                kind.append(records[number - 1])
            if not compared.new:
                return compared
            ids = [record.record_id for record in compared.new]
            there = connection.exec_driver_sql(self._there, (source_id, ids))
            return split(compared, {row[0] for row in there})
        rows = connection.exec_driver_sql(self._known, (source_id, ids))
        known = {record_id: (version, timestamp) for record_id, version, timestamp in rows}
        for record in records:
            row = known.get(record.record_id)
            if row is None:
                compared.new.append(record)
            elif row[0] != record.version:
                is_newer = aware(row[1]) <= record.timestamp
                (compared.changed if is_newer else compared.superseded).append(record)
        return compared

    def are_unknown(self, connection: Connection, source_id: str, ids: list[str]) -> bool:
        """Stop at the first existing row."""
        asked = f"SELECT EXISTS ({self._there.replace('DISTINCT record_id', '1')})"
        return not connection.exec_driver_sql(asked, (source_id, ids)).scalar_one()

    def lacking(
        self, connection: Connection, source_id: str, listed: Mapping[str, datetime]
    ) -> list[str]:
        """Send ids and times in one round trip."""
        times = [at.isoformat() for at in listed.values()]
        arguments = (json.dumps(list(listed)), json.dumps(times), source_id)
        return [row[0] for row in connection.exec_driver_sql(self._lacking, arguments)]

    def store(
        self,
        connection: Connection,
        source_id: str,
        records: Sequence[Record],
        now: datetime,
        rule: Rule = "newer",
    ) -> int:
        """Send the rows in one round trip."""
        records = by_id(records)
        columns = (
            [record.record_id for record in records],
            [record.version for record in records],
            [record.timestamp.isoformat() for record in records],
            [record.payload for record in records],
        )
        return connection.exec_driver_sql(
            self._inserts[rule], (source_id, now, *map(json.dumps, columns))
        ).rowcount

    def set_removed(
        self, connection: Connection, source_id: str, ids: list[str], removed_at: datetime | None
    ) -> int:
        """Send the ids as an array."""
        marking = self._unmark if removed_at is None else self._mark
        return connection.exec_driver_sql(marking, (removed_at, source_id, ids)).rowcount


def check_encoding(connection: Any) -> None:
    """Refuse a database that does not hold every text, on a connection of psycopg.

    Raises:
        SinkError: Its encoding is not UTF8.
    """
    encoding = connection.info.parameter_status("server_encoding")
    if encoding not in (None, "UTF8"):  # not every pooler tells it
        raise SinkError(
            f"The database {connection.info.dbname!r} of a sink has the encoding {encoding}, which "
            "does not hold every text. Create one with the encoding UTF8, and use that."
        )


@lru_cache  # it holds no connection, only compiled statements
def _engine(url: URL) -> Engine:
    arguments = databases.arguments_beside(url.query, databases.POSTGRESQL)
    engine = create_engine(
        url,
        poolclass=NullPool,
        hide_parameters=True,
        connect_args=arguments,
        # A writer that has waited for another one sees what that one wrote.
        isolation_level="READ COMMITTED",
    )
    event.listen(engine, "connect", _prepare)
    return engine


def _prepare(connection: Any, _: object) -> None:
    check_encoding(connection)
    connection.execute(_PREPARE, (f"{WAIT_SECONDS}s",))
    connection.commit()
