"""What the owner of a table deleted on purpose: noted by a trigger, and not stored again.

- The trigger is the table's own, so that it sees every ``DELETE``, whoever runs it. Nothing that a
  sink does deletes a row. ``TRUNCATE`` and ``DROP TABLE`` note nothing: what is delivered after
  them is stored again.
- It is a version that was deleted. Another one is a change at the source, and is stored.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from sqlalchemy import Connection

from ladon_storage.collection.records import Record
from ladon_storage.collection.sinks.sql_database import Compared, batches
from ladon_storage.collection.sinks.sql_tables import Tables

_SQLITE = """
CREATE TRIGGER "{trigger}" AFTER DELETE ON "{table}" BEGIN
INSERT INTO ladon_deleted
(table_name, source_id, record_id, version, record_timestamp, deleted_at)
VALUES ('{table}', OLD.source_id, OLD.record_id, OLD.version, OLD.record_timestamp,
        strftime('%Y-%m-%dT%H:%M:%f', 'now') || '000+00:00')
ON CONFLICT (table_name, source_id, record_id, version) DO UPDATE
SET record_timestamp = excluded.record_timestamp, deleted_at = excluded.deleted_at;
END
"""

# With the rights of who made it: whoever may delete a record need not know of this table.
_POSTGRESQL_FUNCTION = """
CREATE FUNCTION {schema}.ladon_note_deleted() RETURNS trigger LANGUAGE plpgsql
SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
INSERT INTO {schema}.ladon_deleted
(table_name, source_id, record_id, version, record_timestamp, deleted_at)
SELECT TG_ARGV[0], source_id, record_id, version, record_timestamp, clock_timestamp() FROM gone
ON CONFLICT (table_name, source_id, record_id, version) DO UPDATE
SET record_timestamp = excluded.record_timestamp, deleted_at = excluded.deleted_at;
RETURN NULL;
END $$
"""

_POSTGRESQL = """
CREATE TRIGGER "{trigger}" AFTER DELETE ON "{table}" REFERENCING OLD TABLE AS gone
FOR EACH STATEMENT EXECUTE FUNCTION {schema}.ladon_note_deleted('{table}')
"""

_POSTGRESQL_OTHERS = """
SELECT t.tgrelid::regclass::text FROM pg_trigger AS t JOIN pg_class AS c ON c.oid = t.tgrelid
WHERE t.tgname = %s AND c.relnamespace = current_schema()::regnamespace
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
    return f"ladon_gone_{table}"  # with the longest name of a table the 63 bytes of PostgreSQL


def note_deletions(connection: Connection, table: str) -> None:
    """Make the trigger of a table, and take it from a table that had this name before."""
    names = {"table": table, "trigger": trigger_of(table)}
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql('DROP TRIGGER IF EXISTS "{trigger}"'.format(**names))
        connection.exec_driver_sql(_SQLITE.format(**names))
        return
    names["schema"] = connection.exec_driver_sql(
        "SELECT quote_ident(current_schema())"
    ).scalar_one()
    there = "SELECT to_regprocedure(%s) IS NOT NULL"
    function = f"{names['schema']}.ladon_note_deleted()"
    if not connection.exec_driver_sql(there, (function,)).scalar_one():
        connection.exec_driver_sql(_POSTGRESQL_FUNCTION.format(**names))
    for (other,) in connection.exec_driver_sql(_POSTGRESQL_OTHERS, (names["trigger"],)).all():
        connection.exec_driver_sql(f'DROP TRIGGER "{names["trigger"]}" ON {other}')
    connection.exec_driver_sql(_POSTGRESQL.format(**names))


def let_readers_read(connection: Connection, table: str, name: str) -> None:
    """Let who may read a table read a new one beside it: a role that may do no more goes on."""
    if connection.dialect.name == "sqlite":
        return
    for (role,) in connection.exec_driver_sql(_POSTGRESQL_READERS, (f'"{table}"',)).all():
        connection.exec_driver_sql(f'GRANT SELECT ON "{name}" TO {role}')


class Deletions:
    """What was deleted of one sink's table.

    Args:
        tables: The sink's tables.
        connection: The connection of one run.
    """

    def __init__(self, tables: Tables, connection: Connection) -> None:
        self._tables = tables
        self._connection = connection
        self._keeps_all = tables.keep == "all"

    def without(self, source_id: str, compared: Compared) -> Compared:
        """Take what was deleted from what is not there."""
        gone = self.of(source_id, [*compared.new, *compared.changed])
        superseded = list(compared.superseded)

        def is_wanted(record: Record) -> bool:
            versions = gone.get(record.record_id, [])
            if self._keeps_all:
                return record.version not in {version for version, _ in versions}
            if not versions:
                return True
            version, at = versions[-1]
            if version != record.version and at > record.timestamp:
                superseded.append(record)
                return False
            return version != record.version

        new = list(filter(is_wanted, compared.new))
        changed = compared.changed
        if self._keeps_all:
            changed = list(filter(is_wanted, changed))
        return Compared(new, changed, superseded)

    def of(
        self, source_id: str, records: Iterable[Record]
    ) -> dict[str, list[tuple[str, datetime]]]:
        """Return the versions that were deleted of each record's id, as `of_ids` does."""
        gone: dict[str, list[tuple[str, datetime]]] = {}
        for some in batches({each.record_id for each in records}):
            gone |= self.of_ids(source_id, some)
        return gone

    def of_ids(self, source_id: str, ids: Iterable[str]) -> dict[str, list[tuple[str, datetime]]]:
        """Return the versions that were deleted of each id, the last deleted at the end."""
        gone: dict[str, list[tuple[str, datetime]]] = {}
        asked = {"source_id": source_id, "ids": list(ids)}
        for record_id, version, at in self._connection.execute(self._tables.gone, asked):
            gone.setdefault(record_id, []).append((version, at))
        return gone
