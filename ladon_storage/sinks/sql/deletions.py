"""The records that the owner of a table deleted: noted by a trigger, and not stored again.

- The trigger belongs to the table, so it sees every ``DELETE`` and ``TRUNCATE`` of any client,
  unless the owner disables it. A sink itself never deletes a row. ``DROP TABLE`` notes nothing:
  records delivered after it are stored again.
- A deleted version stays deleted as long as the source delivers the same version. Another version
  is a change, and so is a deleted version that comes back after another.
- A record marked as removed is no longer listed. Deleting it notes nothing, and forgets earlier
  notes about it: when it is listed again, it is stored.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import Connection

from ladon_storage.collection.records import Record
from ladon_storage.sinks.sql.dialect import Compared, batches
from ladon_storage.sinks.sql.tables import Keep, Tables

logger = logging.getLogger(__name__)

_SQLITE = """
CREATE TRIGGER "{trigger}" AFTER DELETE ON "{table}" BEGIN
DELETE FROM ladon_deleted WHERE OLD.removed_at IS NOT NULL
AND table_name = '{table}' AND source_id = OLD.source_id AND record_id = OLD.record_id;
INSERT INTO ladon_deleted
(table_name, source_id, record_id, version, record_timestamp, deleted_at, replaced_at)
SELECT '{table}', OLD.source_id, OLD.record_id, OLD.version, OLD.record_timestamp,
       strftime('%Y-%m-%dT%H:%M:%f', 'now') || '000+00:00', {replaced}
WHERE OLD.removed_at IS NULL
ON CONFLICT (table_name, source_id, record_id, version) DO UPDATE
SET record_timestamp = excluded.record_timestamp, deleted_at = excluded.deleted_at,
    replaced_at = excluded.replaced_at;
END
"""

# A table may have several triggers in DuckDB, each of one statement.
_DUCKDB = (
    """
CREATE OR REPLACE TRIGGER "{forgetting}" AFTER DELETE ON "{table}" REFERENCING OLD TABLE AS gone
FOR EACH STATEMENT DELETE FROM ladon_deleted WHERE table_name = '{table}'
AND (source_id, record_id) IN
    (SELECT (source_id, record_id) FROM gone WHERE removed_at IS NOT NULL)
""",
    """
CREATE OR REPLACE TRIGGER "{trigger}" AFTER DELETE ON "{table}" REFERENCING OLD TABLE AS gone
FOR EACH STATEMENT INSERT INTO ladon_deleted
(table_name, source_id, record_id, version, record_timestamp, deleted_at, replaced_at)
SELECT '{table}', source_id, record_id, version, record_timestamp, now(), {replaced}
FROM gone WHERE removed_at IS NULL
ON CONFLICT (table_name, source_id, record_id, version) DO UPDATE
SET record_timestamp = excluded.record_timestamp, deleted_at = excluded.deleted_at,
    replaced_at = excluded.replaced_at
""",
)

# With the rights of its creator: a user that may delete a record needs no rights on this table.
# Truncated rows are in no transition table, and still exist before the statement. A trigger of
# rows is inherited by partitions, which a `DELETE` may name in place of their table, and the table
# may be a partition itself. It is slower. A logical subscription may apply the notes, and
# stops if the trigger has written them.
_POSTGRESQL_FUNCTION = """
CREATE OR REPLACE FUNCTION {schema}.ladon_note_deleted() RETURNS trigger LANGUAGE plpgsql
SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    gone text := CASE WHEN TG_LEVEL = 'ROW' THEN '(SELECT ($2).*)'
                 WHEN TG_OP = 'TRUNCATE' THEN format('%%I.%%I', TG_TABLE_SCHEMA, TG_TABLE_NAME)
                 ELSE 'gone' END;
    replaced text := CASE TG_ARGV[1] WHEN 'all' THEN 'replaced_at' ELSE 'NULL::timestamptz' END;
BEGIN
IF EXISTS (SELECT FROM pg_stat_subscription WHERE pid = pg_backend_pid()) THEN RETURN NULL; END IF;
EXECUTE format('DELETE FROM {schema}.ladon_deleted AS noted USING %%s AS gone
    WHERE gone.removed_at IS NOT NULL AND noted.table_name = $1
    AND noted.source_id = gone.source_id AND noted.record_id = gone.record_id', gone)
USING TG_ARGV[0], OLD;
EXECUTE format('INSERT INTO {schema}.ladon_deleted
    (table_name, source_id, record_id, version, record_timestamp, deleted_at, replaced_at)
    SELECT $1, source_id, record_id, version, record_timestamp, clock_timestamp(), %%s
    FROM %%s AS gone WHERE removed_at IS NULL
    ON CONFLICT (table_name, source_id, record_id, version) DO UPDATE
    SET record_timestamp = excluded.record_timestamp, deleted_at = excluded.deleted_at,
        replaced_at = excluded.replaced_at', replaced, gone)
USING TG_ARGV[0], OLD;
RETURN NULL;
END $$
"""

_POSTGRESQL = """
CREATE TRIGGER "{trigger}" AFTER DELETE ON "{table}" REFERENCING OLD TABLE AS gone
FOR EACH STATEMENT EXECUTE FUNCTION {schema}.ladon_note_deleted('{table}', '{keep}')
"""

_POSTGRESQL_OF_ROWS = """
CREATE TRIGGER "{trigger}" AFTER DELETE ON "{table}"
FOR EACH ROW EXECUTE FUNCTION {schema}.ladon_note_deleted('{table}', '{keep}')
"""

_POSTGRESQL_TRUNCATED = """
CREATE TRIGGER "{truncated}" BEFORE TRUNCATE ON {truncatable}
FOR EACH STATEMENT EXECUTE FUNCTION {schema}.ladon_note_deleted('{table}', '{keep}')
"""

# Also in a session with `session_replication_role = replica`, where other triggers are silent.
_POSTGRESQL_ALWAYS = """
ALTER TABLE {each} ENABLE ALWAYS TRIGGER "{trigger}", ENABLE ALWAYS TRIGGER "{truncated}"
"""

# Before PostgreSQL 15 the trigger of a partition is not enabled with that of its table.
_POSTGRESQL_OWNED = """
SELECT c.oid::regclass::text FROM pg_class AS c WHERE pg_has_role(c.relowner, 'USAGE')
AND (c.oid = %s::regclass OR c.oid IN (SELECT relid FROM pg_partition_tree(%s)))
"""

# `DISABLE TRIGGER` leaves its mark: `ENABLE TRIGGER` is not `ENABLE ALWAYS TRIGGER`.
_POSTGRESQL_WAS_DISABLED = """
SELECT EXISTS (SELECT FROM pg_trigger AS t WHERE t.tgname IN (%s, %s) AND t.tgenabled <> 'A'
AND (t.tgrelid = %s::regclass OR t.tgrelid IN (SELECT relid FROM pg_partition_tree(%s))))
"""

_POSTGRESQL_IS_MADE = """
SELECT EXISTS (SELECT FROM pg_proc WHERE proname = 'ladon_note_deleted' AND pronargs = 0
AND pronamespace = current_schema()::regnamespace AND prosrc LIKE %s)
"""

_POSTGRESQL_OTHERS = """
SELECT t.tgrelid::regclass::text FROM pg_trigger AS t JOIN pg_class AS c ON c.oid = t.tgrelid
WHERE t.tgname = %s AND t.tgparentid = 0
AND (c.relnamespace = current_schema()::regnamespace
     OR c.oid IN (SELECT relid FROM pg_partition_tree(%s)))
"""

NEEDS_ROWS = """
(c.relkind = 'p' OR EXISTS (SELECT FROM pg_inherits AS i WHERE i.inhrelid = c.oid))
"""
"""The condition of PostgreSQL on a table ``c`` whose rows may be deleted by another name."""

_POSTGRESQL_NEEDS_ROWS = """
SELECT {needs_rows} FROM pg_class AS c WHERE c.oid = %s::regclass
""".replace("{needs_rows}", NEEDS_ROWS)

_POSTGRESQL_PARTITIONS = """
SELECT relid::regclass::text FROM pg_partition_tree(%s) WHERE level > 0
"""

_POSTGRESQL_READERS = """
SELECT DISTINCT CASE acl.grantee WHEN 0 THEN 'PUBLIC' ELSE acl.grantee::regrole::text END
FROM pg_class AS c, aclexplode(c.relacl) AS acl
WHERE c.oid = %s::regclass AND acl.privilege_type = 'SELECT' AND acl.grantee <> c.relowner
"""


def trigger_of(table: str) -> str:
    """Return the name of the trigger of a table.

    >>> trigger_of("records")
    'ladon_gone_records'
    """
    return f"ladon_gone_{table}"  # with the longest table name exactly the 63 bytes of PostgreSQL


def _truncated_of(table: str) -> str:
    return f"ladon_void_{table}"


def note_deletions(connection: Connection, table: str, keep: Keep) -> None:
    """Create the trigger of a table, and drop the trigger of an earlier name of the table."""
    names = {"table": table, "trigger": trigger_of(table), "keep": keep, "replaced": "NULL"}
    names["truncated"] = _truncated_of(table)
    if connection.dialect.name == "duckdb":
        names["forgetting"] = f"ladon_forget_{table}"
        if keep == "all":
            names["replaced"] = "replaced_at"
        for each in _DUCKDB:
            connection.exec_driver_sql(each.format(**names))
        return
    if connection.dialect.name == "sqlite":
        if keep == "all":
            names["replaced"] = "OLD.replaced_at"
        connection.exec_driver_sql('DROP TRIGGER IF EXISTS "{trigger}"'.format(**names))
        connection.exec_driver_sql(_SQLITE.format(**names))
        return
    names["schema"] = connection.exec_driver_sql(
        "SELECT quote_ident(current_schema())"
    ).scalar_one()
    quoted = f'"{table}"'
    # The function of an older release notes less, and its triggers were not always enabled.
    if not connection.exec_driver_sql(
        _POSTGRESQL_IS_MADE, ("%pg_stat_subscription%",)
    ).scalar_one():
        connection.exec_driver_sql(_POSTGRESQL_FUNCTION.format(**names))
    elif connection.exec_driver_sql(
        _POSTGRESQL_WAS_DISABLED, (names["trigger"], names["truncated"], quoted, quoted)
    ).scalar_one():
        logger.warning(
            "The triggers of the table %r that note deletions were disabled, and are enabled "
            "again. Records that were deleted in the meantime are stored again if their source "
            "delivers them.",
            table,
        )
    for kind in ("trigger", "truncated"):
        for (other,) in connection.exec_driver_sql(_POSTGRESQL_OTHERS, (names[kind], quoted)).all():
            connection.exec_driver_sql(f'DROP TRIGGER "{names[kind]}" ON {other}')
    needs_rows = connection.exec_driver_sql(_POSTGRESQL_NEEDS_ROWS, (quoted,)).scalar_one()
    made = _POSTGRESQL_OF_ROWS if needs_rows else _POSTGRESQL
    connection.exec_driver_sql(made.format(**names))
    partitions = connection.exec_driver_sql(_POSTGRESQL_PARTITIONS, (quoted,)).all()
    for (each,) in [(quoted,), *partitions]:
        connection.exec_driver_sql(_POSTGRESQL_TRUNCATED.format(**names, truncatable=each))
    for (each,) in connection.exec_driver_sql(_POSTGRESQL_OWNED, (quoted, quoted)).all():
        connection.exec_driver_sql(_POSTGRESQL_ALWAYS.format(**names, each=each))


def let_readers_read(connection: Connection, table: str, name: str) -> None:
    """Grant a table's readers access to a new table: roles without other rights keep working."""
    if connection.dialect.name != "postgresql":
        return
    for (role,) in connection.exec_driver_sql(_POSTGRESQL_READERS, (f'"{table}"',)).all():
        connection.exec_driver_sql(f'GRANT SELECT ON "{name}" TO {role}')


Current = Mapping[str, Sequence[tuple[datetime, str]]]
"""Time and version of the current rows of each id."""


class Deleted(NamedTuple):
    """A deleted version, its time, and whether it was the current one."""

    version: str
    at: datetime
    was_current: bool


Gone = Mapping[str, Sequence[Deleted]]
"""The deleted versions of each id, the latest deletion last."""


def last_deleted(versions: Iterable[Deleted]) -> Deleted | None:
    """Return the version of an id that its source delivered last, if there is no current row."""
    return next((each for each in reversed([*versions]) if each.was_current), None)


class Deletions:
    """The notes about deletions from one sink's table.

    Args:
        tables: The sink's tables.
        connection: The connection of one run.
    """

    def __init__(self, tables: Tables, connection: Connection) -> None:
        self._tables = tables
        self._connection = connection

    def without(
        self, compared: Compared, gone: Gone, current: Current, said: Mapping[str, Record]
    ) -> Compared:
        """Remove deleted records, unless the source delivers a change, from the unknown ones.

        Args:
            compared: The records that are not in the table.
            gone: The deleted versions of their ids.
            current: The current rows of their ids, where all versions are kept.
            said: The last record of each id in the page.
        """
        superseded = list(compared.superseded)

        def is_wanted(record: Record) -> bool:
            versions = gone.get(record.record_id, ())
            is_known = any(each.version == record.version for each in versions)
            if self._tables.keep == "all" and (
                not is_known or said[record.record_id].version != record.version
            ):
                return not is_known
            there = max(current.get(record.record_id, ()), default=None)
            if there is None:
                last = last_deleted(versions)
                there = (last.at, last.version) if last else None
            if there is None or there[1] == record.version:
                return there is None
            if record.timestamp < there[0]:
                superseded.append(record)
            return record.timestamp >= there[0]

        new = list(filter(is_wanted, compared.new))
        changed = compared.changed
        if self._tables.keep == "all":
            changed = list(filter(is_wanted, changed))
        return Compared(new, changed, superseded)

    def of(self, source_id: str, records: Iterable[Record]) -> dict[str, list[Deleted]]:
        """Return the deleted versions of each record's id, as `of_ids` does."""
        gone: dict[str, list[Deleted]] = {}
        for some in batches({each.record_id for each in records}):
            gone |= self.of_ids(source_id, some)
        return gone

    def of_ids(self, source_id: str, ids: Iterable[str]) -> dict[str, list[Deleted]]:
        """Return the deleted versions of each id, the latest deletion last."""
        gone: dict[str, list[Deleted]] = {}
        asked = {"source_id": source_id, "ids": list(ids)}
        for record_id, version, at, replaced_at in self._connection.execute(
            self._tables.gone, asked
        ):
            gone.setdefault(record_id, []).append(Deleted(version, at, replaced_at is None))
        return gone
