"""Writes in PostgreSQL, stored by one statement after the store's rule has judged them.

- The statement stores a watermark and its line of history if what is stored is still what was
  judged. It is a transaction of its own, with the row's lock. No service holds a lock while it
  judges a write, so none can leave one behind.
- Writes of several sources that are made at the same time share one, as they share a disk's flush:
  each is stored or refused by itself. Rows are locked in the order of their names, so services do
  not wait for each other in a circle.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import psycopg
from pydantic_core import to_json

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
    to_microseconds,
    version_of,
)

_NEXT_VERSION = "nextval('history_version')"
_LOCK = 1_418_742_214
"""The seed of the advisory lock under which a source is made or deleted."""

SELECT = f"SELECT {COLUMNS} FROM watermarks WHERE source_id = ANY(%s)"  # noqa: S608 - a constant
SELECT_LINE = statement(LINE)

_FIELDS = COLUMNS.split(", ")[2:]
_LINE_FIELDS = HISTORY_COLUMNS.split(", ")[1:]
_TEXTS = {"source_id", "action", "actor", "run_id", "status", "error_message", "reason", "ledger"}


def _type_of(name: str) -> str:
    return "text" if name in _TEXTS else "bigint"


_SET = ", ".join(f"{name} = %s" for name in _FIELDS)
_VALUES = ", ".join(f"%s::{_type_of(name)}" for name in _LINE_FIELDS)
_FIELD_VALUES = ", ".join(f"%s::{_type_of(name)}" for name in _FIELDS)
_RECORD = (
    f"INSERT INTO history ({HISTORY_COLUMNS}) "  # noqa: S608 - constants
    f"SELECT written.version, {_VALUES} "
    "FROM written RETURNING version"
)
# A source that is not there has no row to lock. Its version must be drawn after that of the
# deletion before it, which is why both take this lock before they draw.
_HELD = f"held AS MATERIALIZED (SELECT pg_advisory_xact_lock(hashtextextended(%s, {_LOCK})))"
# A version that was lost in a failover may have been given to another change. The timestamps are
# compared, too, so that no watermark goes back by what was judged before.
REPLACE = (
    f"WITH written AS (UPDATE watermarks SET version = {_NEXT_VERSION}, {_SET} "  # noqa: S608
    "WHERE source_id = %s AND version = %s AND last_run_timestamp = %s "
    "AND last_successful_timestamp IS NOT DISTINCT FROM %s::bigint "
    f"RETURNING version) {_RECORD}"
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

_MOST_BYTES = 1 << 20
"""The length of the changes that share a statement, unless one alone is longer."""
_GIVEN = ", ".join(
    [
        "source_id text, before bigint, before_run bigint",
        *(f"w_{name} {_type_of(name)}" for name in _FIELDS),
        *(f"h_{name} {_type_of(name)}" for name in _LINE_FIELDS),
    ]
)
_REPLACE_ALL = (
    f"WITH given AS (SELECT * FROM json_to_recordset(%s::json) AS given({_GIVEN})), "  # noqa: S608
    "held AS MATERIALIZED (SELECT given.* FROM given JOIN watermarks USING (source_id) "
    "WHERE watermarks.version = given.before "
    "AND watermarks.last_run_timestamp = given.before_run "
    "AND watermarks.last_successful_timestamp IS NOT DISTINCT FROM given.h_from_timestamp "
    "ORDER BY source_id FOR UPDATE OF watermarks), "
    f"written AS (UPDATE watermarks SET version = {_NEXT_VERSION}, "
    f"{', '.join(f'{name} = held.w_{name}' for name in _FIELDS)} FROM held "
    "WHERE watermarks.source_id = held.source_id AND watermarks.version = held.before "
    "RETURNING watermarks.source_id, watermarks.version) "
    f"INSERT INTO history ({HISTORY_COLUMNS}) SELECT written.version, "
    f"{', '.join(f'h_{name}' for name in _LINE_FIELDS)} "
    "FROM written JOIN held USING (source_id) RETURNING source_id, version"
)
_KEYS = [
    *("source_id", "before", "before_run"),
    *(f"w_{name}" for name in _FIELDS),
    *(f"h_{name}" for name in _LINE_FIELDS),
]


class Change(NamedTuple):
    """A change that was admitted.

    Args:
        source_id: The source.
        before: The watermark that was judged.
        line: The change.
    """

    source_id: str
    before: Watermark | None
    line: Line

    @property
    def replaces(self) -> bool:
        """Whether there is a watermark before and after it."""
        return self.before is not None and self.line.after is not None


async def fetched(connection: ServiceConnection, query: str, values: Sequence[Any]) -> list[Row]:
    """Return the rows of a statement, which is prepared at its first use."""
    cursor = await connection.execute(query.encode(), values, prepare=True)
    return await cursor.fetchall()


async def stored(connection: ServiceConnection, change: Change) -> Written | None:
    """Store a change; ``None``: another write was faster.

    Raises:
        DatabaseError: It is not stored, or its error says that this is not known.
    """
    change = _kept(change)
    try:
        rows = await _answered(connection, *_single(change))
    except (psycopg.Error, ValueError) as error:  # or a text that is none
        raise unstored(error) from error
    if not rows:
        return None
    if change.line.after is None:
        return Written(change.before, None)
    return _written(change, rows[0][0])


async def stored_together(
    connection: ServiceConnection, changes: Sequence[Change]
) -> list[Written | DatabaseError | None]:
    """Store changes of different sources, each of which replaces a watermark.

    Returns:
        What `stored` returns or raises, of each of them.
    """
    outcomes: list[Written | DatabaseError | None] = []
    if len(changes) > 1:
        try:
            changes = [_kept(each) for each in changes]
            texts = [to_json(_fields(each)) for each in changes]
        except ValueError:
            pass  # one of them is no text: it is found out below
        else:
            for size in _sizes(texts):
                first = len(outcomes)
                outcomes += await _replaced(
                    connection, changes[first : first + size], texts[first : first + size]
                )
    return outcomes or [await _outcome(connection, each) for each in changes]


def _sizes(texts: list[bytes]) -> Iterator[int]:
    """Yield how many of the texts go together, none of which is left out."""
    size = length = 0
    for text in texts:
        if size and length + len(text) > _MOST_BYTES:
            yield size
            size = length = 0
        size, length = size + 1, length + len(text)
    yield size


async def _replaced(
    connection: ServiceConnection, changes: Sequence[Change], texts: list[bytes]
) -> list[Written | DatabaseError | None]:
    document = b"[%b]" % b",".join(texts)
    try:
        rows = await _answered(connection, _REPLACE_ALL, (document.decode(),))
    except psycopg.Error:
        return [await _outcome(connection, each) for each in changes]  # one of them is refused
    except DatabaseError as error:
        return [error] * len(changes)
    versions: dict[str, int] = dict(rows)
    return [_written(each, versions.get(each.source_id)) for each in changes]


async def _outcome(connection: ServiceConnection, change: Change) -> Written | DatabaseError | None:
    try:
        return await stored(connection, change)
    except DatabaseError as error:
        return error


def _written(change: Change, version: int | None) -> Written | None:
    after = change.line.after
    assert after is not None  # noqa: S101 - it leaves a watermark
    if version is None:
        return None
    after.tag(f'"{version}"')
    return Written(change.before, after)


async def _answered(connection: ServiceConnection, query: str, values: Sequence[Any]) -> list[Row]:
    """Return the rows of a statement that changes something.

    Raises:
        psycopg.Error: It has changed nothing.
        DatabaseError: It cannot change anything here, or this is not known.
    """
    connection.warning = ""
    try:
        rows = await fetched(connection, query, values)
    except psycopg.errors.ReadOnlySqlTransaction as error:
        await connection.close()  # the next one may lead to the server that writes
        raise unstored(error) from error
    except psycopg.Error as error:
        if connection.closed:
            raise _unanswered(error) from error
        raise
    if connection.warning:
        # The wait for a standby was cancelled: the change is stored here, and perhaps nowhere else.
        await connection.close()
        raise _unanswered(psycopg.OperationalError(connection.warning))
    return rows


def _fields(change: Change) -> dict[str, Any]:
    source_id, before, line = change
    assert before is not None and line.after is not None  # noqa: S101, PT018
    values = (
        *(source_id, version_of(before), to_microseconds(before.last_run_timestamp)),
        *from_watermark(line.after),
        *from_line(source_id, before, line),
    )
    return dict(zip(_KEYS, values, strict=True))


def _single(change: Change) -> tuple[str, tuple[Any, ...]]:
    source_id, before, line = change
    recorded = from_line(source_id, before, line)
    if line.after is None:
        assert before is not None  # noqa: S101 - nothing is deleted that is not there
        return _DELETE, (source_id, source_id, version_of(before), *recorded)
    fields = from_watermark(line.after)
    if before is None:
        return _CREATE, (source_id, source_id, folded(source_id), *fields, *recorded)
    moments = (before.last_run_timestamp, before.last_successful_timestamp)
    judged = (version_of(before), *map(to_microseconds, moments))
    return REPLACE, (*fields, source_id, *judged, *recorded)


def _kept(change: Change) -> Change:
    """Return a change as PostgreSQL can keep it."""
    line, after = change.line, change.line.after
    texts = [line.actor, line.run_id, line.reason]
    if after is not None:
        texts += [after.error_message, after.run_id]
    if not any(text and "\0" in text for text in texts):
        return change
    fields = {name: storable(getattr(line, name)) for name in ("actor", "run_id", "reason")}
    if after is not None:
        kept = {name: storable(getattr(after, name)) for name in ("error_message", "run_id")}
        after = after.model_copy(update=kept)
    return change._replace(line=line._replace(after=after, **fields))


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
