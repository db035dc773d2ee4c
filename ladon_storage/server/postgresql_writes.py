"""A write in PostgreSQL, stored by one statement after the store's rule has judged it.

The statement stores the watermark and its line of history if the version is still the one that was
judged. It is a transaction of its own, with the row's lock. No service holds a lock while it judges
a write, so none can leave one behind.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import psycopg

from ladon_storage import databases
from ladon_storage.errors import DatabaseError
from ladon_storage.models import Watermark
from ladon_storage.server.backend import Row
from ladon_storage.server.changes import Line, Written
from ladon_storage.server.dialect import statement
from ladon_storage.server.postgresql_schema import storable
from ladon_storage.server.postgresql_servers import ServiceConnection
from ladon_storage.server.rows import (
    COLUMNS,
    HISTORY_COLUMNS,
    LINE,
    folded,
    from_line,
    from_watermark,
    version_of,
)

_NEXT_VERSION = "nextval('history_version')"
_LOCK = 1_418_742_214
"""The seed of the advisory lock under which a source is made or deleted."""

SELECT = f"SELECT {COLUMNS} FROM watermarks WHERE source_id = ANY(%s)"  # noqa: S608 - a constant
SELECT_LINE = statement(LINE)

_FIELDS = COLUMNS.split(", ")[2:]
_SET = ", ".join(f"{name} = %s" for name in _FIELDS)
_LINE_TYPES = [
    "text" if name in ("source_id", "action", "actor", "run_id", "status", "error_message",
                       "reason", "ledger") else "bigint"
    for name in HISTORY_COLUMNS.split(", ")[1:]
]  # fmt: skip
_VALUES = ", ".join(f"%s::{each}" for each in _LINE_TYPES)
_FIELD_VALUES = ", ".join(
    f"%s::{'text' if name in ('status', 'error_message', 'run_id', 'ledger') else 'bigint'}"
    for name in _FIELDS
)
_RECORD = (
    f"INSERT INTO history ({HISTORY_COLUMNS}) "  # noqa: S608 - constants
    f"SELECT written.version, {_VALUES} "
    "FROM written RETURNING version"
)
# A source that is not there has no row to lock. Its version must be drawn after that of the
# deletion before it, which is why both take this lock before they draw.
_HELD = f"held AS MATERIALIZED (SELECT pg_advisory_xact_lock(hashtextextended(%s, {_LOCK})))"
REPLACE = (
    f"WITH written AS (UPDATE watermarks SET version = {_NEXT_VERSION}, {_SET} "  # noqa: S608
    f"WHERE source_id = %s AND version = %s RETURNING version) {_RECORD}"
)
_CREATE = (
    f"WITH {_HELD}, written AS ("  # noqa: S608 - constants
    f"INSERT INTO watermarks (source_id, folded, version, {', '.join(_FIELDS)}) "
    f"SELECT %s::text, %s::text, {_NEXT_VERSION}, {_FIELD_VALUES} FROM held "
    f"ON CONFLICT (source_id) DO NOTHING RETURNING version) {_RECORD}"
)
_DELETE = (
    f"WITH {_HELD}, gone AS (DELETE FROM watermarks USING held "  # noqa: S608
    "WHERE source_id = %s AND version = %s RETURNING source_id), "
    f"written AS (SELECT {_NEXT_VERSION} AS version FROM gone) {_RECORD}"
)


async def fetched(connection: ServiceConnection, query: str, values: Sequence[Any]) -> list[Row]:
    """Return the rows of a statement, which is prepared at its first use."""
    cursor = await connection.execute(query.encode(), values, prepare=True)
    return await cursor.fetchall()


async def stored(
    connection: ServiceConnection, source_id: str, before: Watermark | None, line: Line
) -> Written | None:
    """Store a change that was admitted; ``None``: another write was faster.

    Raises:
        DatabaseError: It is not stored, or its error says that this is not known.
    """
    line = _kept(line)
    query, values = _change(source_id, before, line)
    connection.warning = ""
    try:
        rows = await fetched(connection, query, values)
    except psycopg.errors.ReadOnlySqlTransaction as error:
        await connection.close()  # the next one may lead to the server that writes
        raise unstored(error) from error
    except psycopg.Error as error:
        if connection.closed:
            raise _unanswered(error) from error
        raise unstored(error) from error
    if connection.warning:
        # The wait for a standby was cancelled: the change is stored here, and perhaps nowhere else.
        await connection.close()
        raise _unanswered(psycopg.OperationalError(connection.warning))
    if not rows:
        return None
    after = line.after
    return Written(before, None if after is None else after.with_etag(f'"{rows[0][0]}"'))


def _change(source_id: str, before: Watermark | None, line: Line) -> tuple[str, tuple[Any, ...]]:
    recorded = from_line(source_id, before, line)
    if line.after is None:
        assert before is not None  # noqa: S101 - nothing is deleted that is not there
        return _DELETE, (source_id, source_id, version_of(before), *recorded)
    fields = from_watermark(line.after)
    if before is None:
        return _CREATE, (source_id, source_id, folded(source_id), *fields, *recorded)
    return REPLACE, (*fields, source_id, version_of(before), *recorded)


def _kept(line: Line) -> Line:
    """Return a line as PostgreSQL can keep it."""
    texts = {name: storable(getattr(line, name)) for name in ("actor", "run_id", "reason")}
    after = line.after
    if after is not None:
        fields = {name: getattr(after, name) for name in ("error_message", "run_id")}
        kept = {name: storable(value) for name, value in fields.items()}
        after = after if kept == fields else after.model_copy(update=kept)
    return line._replace(after=after, **texts)


def unread(error: Exception) -> DatabaseError:
    """Return the error for a read that failed."""
    return DatabaseError(f"The database could not be read ({_first(error)}); try again later.")


def unstored(error: Exception) -> DatabaseError:
    """Return the error for a write of which the database says that it is not stored."""
    return DatabaseError(
        f"The database did not store the change ({_first(error)}); try again later."
    )


def _unanswered(error: Exception) -> DatabaseError:
    return DatabaseError(
        f"The database's answer to the change was lost ({_first(error)}), so the change may be "
        "stored; send it again."
    )


def _first(error: Exception) -> str:
    return databases.driver_error(error)[1]
