"""The sink for a table of a database, SQLite or PostgreSQL, through SQLAlchemy.

- A page, its rejects, and the position after it are one transaction, which is durable when
  `SqlSink.write` returns. A page without new records is only a read, unless the page before was all
  new: then the page is written without a look-up.
- ``keep="latest"``: an older version never replaces a newer one, so that writing a page again is
  idempotent; at equal times the later arrival wins. ``keep="all"``: one row per version.
- A record that is in a page exists: its removal mark is cleared, whatever its version.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence, Set
from datetime import datetime
from types import TracebackType
from typing import Self, TypeVar

from sqlalchemy import Connection
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from ladon_storage.collection.protocols import Position, WriteResult
from ladon_storage.collection.records import Page, Record
from ladon_storage.errors import ConfigurationError, SinkError
from ladon_storage.sinks.sql.dialect import Dialect
from ladon_storage.sinks.sql.errors import describe
from ladon_storage.sinks.sql.postgresql import Postgresql
from ladon_storage.sinks.sql.rows import Rows
from ladon_storage.sinks.sql.schema import create_or_migrate, is_current
from ladon_storage.sinks.sql.sqlite import Sqlite
from ladon_storage.sinks.sql.tables import PRIMARY_KEYS, Keep, Tables
from ladon_storage.sinks.worker import WorkerThread

T = TypeVar("T")

_NAME = re.compile(r"(?!sqlite_|ladon_)(?!.*_quarantine$)[a-z_][a-z0-9_]{0,51}", re.IGNORECASE)
"""Names that leave room for `_quarantine` in PostgreSQL's 63 bytes, and are not reserved."""

_DATABASES: dict[str, type[Sqlite] | type[Postgresql]] = {
    "sqlite": Sqlite,
    "postgresql": Postgresql,
}


class SqlSink:
    """A table of records in a database, created or migrated if needed.

    The columns are ``source_id``, ``record_id``, ``version``, ``record_timestamp``, ``payload``
    (JSON as the source gave it), ``collected_at`` (when this version arrived) and ``removed_at``
    (since when the source no longer lists it). Where all versions are kept, the current one has no
    ``replaced_at``, which is the time when another one followed. Further tables are
    ``<table>_quarantine``, and for all tables of the database ``ladon_positions``, ``ladon_meta``
    and ``ladon_deleted`` (deleted records, which are stored again only once they change).

    One object serves one run at a time; several runs and processes may share the table.

    Args:
        url: The address of the database: ``sqlite:///records.db`` in the working directory,
            ``sqlite:////var/lib/ladon/records.db`` anywhere,
            ``postgresql://user:password@host/database``.
        table: The name of the table.
        keep: ``latest`` for one row per record, ``all`` for one row per version.

    Raises:
        ConfigurationError: An argument is invalid, or psycopg is not installed.
    """

    def __init__(self, url: str, table: str = "records", keep: Keep = "latest") -> None:
        parsed = _parsed(url)
        if not isinstance(table, str) or not _NAME.fullmatch(table):
            raise ConfigurationError(
                f"The sink's table cannot be named {table!r}; use a letter, then letters, digits "
                "and underscores, 52 at most, and no name of the sink's own, such as ladon_meta."
            )
        if keep not in PRIMARY_KEYS:
            raise ConfigurationError(f"The sink's keep should be 'latest' or 'all', not {keep!r}.")
        self._shown = parsed.render_as_string(hide_password=True)
        self._keep = keep
        self._tables = Tables.of(table, keep)
        self._database: Dialect = _DATABASES[parsed.drivername](parsed, table, keep)
        self._thread: WorkerThread | None = None
        self._connection: Connection | None = None
        self._rows: Rows | None = None
        self._place: object = None

    def __repr__(self) -> str:
        return f"SqlSink({self._shown!r}, table={self._tables.records.name!r}, keep={self._keep!r})"

    async def __aenter__(self) -> Self:
        if self._thread is not None:
            raise SinkError(f"The sink {self._shown} serves another run; give each run its own.")
        self._thread = WorkerThread()
        try:
            await self._do(self._open, "be opened")
        except BaseException:
            await self._leave()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._leave()

    async def write(
        self, source_id: str, page: Page, *, run_id: str = "", position: Position | None = None
    ) -> WriteResult:
        """Make a page durable, completely or not at all, and return the changes.

        A row that only lost its mark is not counted. Where all versions are kept, a new version
        that is older than the current one counts as changed, and is reported as superseded.

        Raises:
            SinkError: The database refused it; nothing of the page was stored.
        """
        return await self._do(
            lambda: self._changed(lambda rows: rows.write(source_id, page, run_id, position)),
            "store a page",
            source_id,
        )

    async def position(self, source_id: str) -> Position | None:
        """Return the last position that was written; ``None``: there is none.

        Raises:
            SinkError: The database did not answer.
        """
        return await self._do(
            lambda: self._opened().position(source_id), "read its position", source_id
        )

    async def mark_removed(self, source_id: str, listed_ids: Set[str], max_share: float) -> int:
        """Mark the records whose ids are not in ``listed_ids``, and return how many are new there.

        Raises:
            SourceError: More than the share ``max_share`` of the unmarked records would be; none
                was.
            SinkError: The database refused it; none was.
        """
        return await self._do(
            lambda: self._changed(lambda rows: rows.mark_removed(source_id, listed_ids, max_share)),
            "mark what was removed",
            source_id,
        )

    async def revert(self, source_id: str, records: Sequence[Record], *, run_id: str = "") -> int:
        """Make versions the current ones, whatever their time; return how many were not current.

        A version that was deleted from the table is omitted, and a version that this run added is
        not counted.

        Raises:
            SinkError: The database refused it; nothing changed.
        """
        return await self._do(
            lambda: self._changed(lambda rows: rows.revert(source_id, records)),
            "make an earlier version current",
            source_id,
        )

    async def lacking(self, source_id: str, listed: Mapping[str, datetime]) -> set[str]:
        """Return the ids of ``listed`` without a record of that time or later.

        A record that was deleted from the table is not lacking, unless its source lists a later
        time.

        Raises:
            SinkError: The database did not answer.
        """
        return await self._do(
            lambda: self._opened().lacking(source_id, listed), "look records up", source_id
        )

    async def _do(self, work: Callable[[], T], aim: str, source_id: str | None = None) -> T:
        if self._thread is None:
            raise SinkError(
                f"The sink {self._shown} is not open; use `async with` around it.", source_id
            )
        try:
            return await self._thread.do(work)
        except SQLAlchemyError as error:
            said, step, cause = describe(error)
            raise SinkError(
                f"The sink {self._shown} could not {aim}: {said}; {step}: it goes on where durable "
                "data ends.",
                source_id,
            ) from cause

    async def _leave(self) -> None:
        thread, self._thread = self._thread, None
        if thread is not None:
            await thread.close(self._close)

    # The following runs in the thread.

    def _open(self) -> None:
        self._connection = connection = self._database.engine().connect()
        self._make(connection)
        self._place = self._database.place()
        self._rows = Rows(self._database, self._tables, connection)

    def _make(self, connection: Connection) -> None:
        names = [table.name for table in self._tables.all]
        with connection.begin():
            found = self._database.existing_columns(connection, names)
            if is_current(connection, self._tables, found, self._shown):
                return
            self._database.begin_schema_change(connection)
            # Again: the missing tables may have been created while this waited.
            found = self._database.existing_columns(connection, names)
            create_or_migrate(connection, self._tables, found, self._shown)

    def _opened(self) -> Rows:
        if self._rows is None:
            raise SinkError(f"The sink {self._shown} could not be opened; open it again.")
        return self._rows

    def _changed(self, change: Callable[[Rows], T]) -> T:
        """Change rows, and return when the change is durable where the next run looks for it."""
        result = change(self._opened())
        if self._database.place() != self._place:
            raise SinkError(
                f"The file of the sink {self._shown} was moved, removed or replaced while a run "
                "collected into it, so that what it stored is not there. Run again: it goes on "
                "where the file that is there now ends."
            )
        return result

    def _close(self) -> None:
        connection, self._connection, self._rows = self._connection, None, None
        if connection is not None:
            connection.close()


def _parsed(url: str) -> URL:
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        parsed = None
    # Neither the text nor the original error: an unreadable address may contain a password.
    if parsed is None or parsed.drivername not in _DATABASES:
        examples = " or ".join(database.example for database in _DATABASES.values())
        raise ConfigurationError(f"The sink's address cannot be used; write it as {examples}.")
    return parsed
