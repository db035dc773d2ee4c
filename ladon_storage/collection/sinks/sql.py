"""The sink that is a table of a database, SQLite or PostgreSQL, through SQLAlchemy.

- A page, what of it cannot be used, and the position after it are one transaction, which is durable
  when `SqlSink.write` returns. A page that holds nothing new is a read, unless the one before it
  was all new: then it is not looked up first.
- ``keep="latest"``: an older content never replaces a newer one, so that a page which is replayed
  does no harm; at equal times what arrived later wins. ``keep="all"``: one row per version.
- A record that is in a page is there: the mark that it was removed goes, whatever its version.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Set
from contextlib import contextmanager
from datetime import datetime
from functools import lru_cache
from hashlib import blake2b
from itertools import islice
from types import TracebackType
from typing import Any, Self, TypeVar

from sqlalchemy import Connection
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from ladon_storage.collection.interfaces import Position, utc_now
from ladon_storage.collection.records import Page, Record, Reject
from ladon_storage.collection.sinks.removal import refuse_implausible_removal
from ladon_storage.collection.sinks.sql_database import Database
from ladon_storage.collection.sinks.sql_errors import told
from ladon_storage.collection.sinks.sql_postgresql import Postgresql
from ladon_storage.collection.sinks.sql_sqlite import Sqlite
from ladon_storage.collection.sinks.sql_tables import KEYS, Keep, Tables, are_ready, make_tables
from ladon_storage.collection.sinks.thread import SinkThread
from ladon_storage.errors import ConfigurationError, SinkError

T = TypeVar("T")

_NAME = re.compile(r"(?!sqlite_|ladon_)(?!.*_quarantine$)[a-z_][a-z0-9_]{0,51}", re.IGNORECASE)
"""What leaves room for `_quarantine` in the 63 bytes of PostgreSQL, and means no other table."""

_BATCH = 10_000
"""Ids of one statement."""

_DATABASES: dict[str, type[Sqlite] | type[Postgresql]] = {
    "sqlite": Sqlite,
    "postgresql": Postgresql,
}


class SqlSink:
    """Keep records in a table of a database, which it makes, or migrates, where that is needed.

    The columns are ``source_id``, ``record_id``, ``version``, ``record_timestamp``, ``payload``
    (JSON as the source gave it), ``collected_at`` (when this version arrived) and ``removed_at``
    (since when the source no longer lists it). Beside it are ``<table>_quarantine``, and for all
    tables of the database ``ladon_positions`` and ``ladon_meta``.

    One object serves one run at a time; several runs and processes may share the table.

    Args:
        url: The address of the database: ``sqlite:///records.db`` beside the working directory,
            ``sqlite:////var/lib/ladon/records.db`` anywhere,
            ``postgresql://user:password@host/database``.
        table: The name of the table.
        keep: ``latest`` for one row per record, ``all`` for one row per version.

    Raises:
        ConfigurationError: An argument makes no sense, or psycopg is not installed.
    """

    def __init__(self, url: str, table: str = "records", keep: Keep = "latest") -> None:
        parsed = _parsed(url)
        if not isinstance(table, str) or not _NAME.fullmatch(table):
            raise ConfigurationError(
                f"The sink's table cannot be named {table!r}; use a letter, then letters, digits "
                "and underscores, 52 at most, and no name of the sink's own, such as ladon_meta."
            )
        if keep not in KEYS:
            raise ConfigurationError(f"The sink's keep should be 'latest' or 'all', not {keep!r}.")
        self._shown = parsed.render_as_string(hide_password=True)
        self._keep = keep
        self._tables = Tables.of(table, keep)
        self._database: Database = _DATABASES[parsed.drivername](parsed, table, keep)
        self._thread: SinkThread | None = None
        self._connection: Connection | None = None
        self._was_all_new = False

    def __repr__(self) -> str:
        return f"SqlSink({self._shown!r}, table={self._tables.records.name!r}, keep={self._keep!r})"

    async def __aenter__(self) -> Self:
        if self._thread is not None:
            raise SinkError(f"The sink {self._shown} serves another run; give each run its own.")
        self._thread = SinkThread()
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
    ) -> int:
        """Make a page durable, whole or not at all, and return how many rows are new or changed.

        A row that only lost its mark is not counted.

        Raises:
            SinkError: The database refused it; nothing of the page was stored.
        """
        return await self._do(
            lambda: self._write(source_id, page, run_id, position), "store a page", source_id
        )

    async def position(self, source_id: str) -> Position | None:
        """Return the last position that was written; ``None``: none was.

        Raises:
            SinkError: The database did not answer.
        """
        return await self._do(lambda: self._read(source_id), "read its position", source_id)

    async def mark_removed(self, source_id: str, present: Set[str], most: float) -> int:
        """Mark the records whose ids are not in ``present``, and return how many are new there.

        Raises:
            SourceError: More than the share ``most`` of what is not marked would be; none was.
            SinkError: The database refused it; none was.
        """
        return await self._do(
            lambda: self._mark_removed(source_id, present, most), "mark what was removed", source_id
        )

    async def _do(self, work: Callable[[], T], aim: str, source_id: str | None = None) -> T:
        if self._thread is None:
            raise SinkError(
                f"The sink {self._shown} is not open; use `async with` around it.", source_id
            )
        try:
            return await self._thread.do(work)
        except SQLAlchemyError as error:
            said, step, cause = told(error)
            raise SinkError(
                f"The sink {self._shown} could not {aim}: {said}; {step}: it goes on where durable "
                "data ends.",
                source_id,
            ) from cause

    async def _leave(self) -> None:
        thread, self._thread = self._thread, None
        if thread is not None:
            await thread.close(self._close)

    # What follows runs in the thread.

    def _open(self) -> None:
        self._connection = connection = self._database.engine().connect()
        names = [table.name for table in self._tables.all]
        with connection.begin():
            found = self._database.found(connection, names)
            if are_ready(connection, self._tables, found, self._shown):
                return
            self._database.begin_making(connection)
            # Again: what was missing may have been made while this waited.
            found = self._database.found(connection, names)
            make_tables(connection, self._tables, found, self._shown)

    @contextmanager
    def _transaction(self) -> Iterator[Connection]:
        if self._connection is None:
            raise SinkError(f"The sink {self._shown} could not be opened; open it again.")
        with self._connection.begin():
            yield self._connection

    def _write(self, source_id: str, page: Page, run_id: str, position: Position | None) -> int:
        if not len(page) and position is None:
            return 0
        database, now = self._database, utc_now()
        records = page.records if self._keep == "all" else _latest(page.records)
        with self._transaction() as connection:
            # What writes repeats the conditions, so that a page need not be looked up first.
            unknown = records
            if records and not self._was_all_new:
                unknown = database.unknown(connection, source_id, records)
            may_restore = bool(records) and self._has_marks(connection, source_id)
            if not (unknown or may_restore or page.rejects or position):
                return 0
            database.begin_writing(connection)
            if may_restore:
                ids = [record.record_id for record in records]
                database.mark(connection, source_id, ids, None)
            written = database.store(connection, source_id, unknown, now) if unknown else 0
            if page.rejects:
                self._quarantine(connection, source_id, run_id, page.rejects, now)
            if position is not None:
                self._remember(connection, source_id, position)
        if records:
            self._was_all_new = written == len(records)
        return written

    def _has_marks(self, connection: Connection, source_id: str) -> bool:
        found = connection.execute(self._tables.a_mark, {"source_id": source_id})
        return found.one_or_none() is not None

    def _quarantine(
        self,
        connection: Connection,
        source_id: str,
        run_id: str,
        rejects: list[Reject],
        now: datetime,
    ) -> None:
        rows = [
            {
                "source_id": source_id,
                "digest": blake2b(raw.encode(), digest_size=16).hexdigest(),
                "run_id": _storable(run_id),
                "reason": _storable(reject.reason),
                "raw": raw,
                "quarantined_at": now,
            }
            for reject in rejects
            for raw in [_storable(reject.raw)]
        ]
        rows.sort(key=lambda row: str(row["digest"]))
        statement = self._database.insert(self._tables.quarantine).on_conflict_do_nothing()
        connection.execute(statement, rows)

    def _remember(self, connection: Connection, source_id: str, position: Position) -> None:
        moved = position.model_dump()
        if position.run_id is not None:
            moved["run_id"] = _storable(position.run_id)
        key = {"table_name": self._tables.records.name, "source_id": source_id}
        connection.execute(_remembering(self._tables, self._database.insert), key | moved)

    def _read(self, source_id: str) -> Position | None:
        with self._transaction() as connection:
            found = connection.execute(self._tables.position, {"source_id": source_id})
            row = found.one_or_none()
        if row is None:
            return None
        return Position(**row._asdict())

    def _mark_removed(self, source_id: str, present: Set[str], most: float) -> int:
        with self._transaction() as connection:  # most runs remove nothing, and need no lock
            if not any(self._mistaken(connection, source_id, present, most)):
                return 0
        now = utc_now()
        with self._transaction() as connection:
            self._database.begin_writing(connection)
            missing, back = self._mistaken(connection, source_id, present, most)
            for ids, removed_at in ((missing, now), (back, None)):
                remaining = iter(sorted(ids))
                while batch := list(islice(remaining, _BATCH)):
                    self._database.mark(connection, source_id, batch, removed_at)
        return len(missing)

    def _mistaken(
        self, connection: Connection, source_id: str, present: Set[str], most: float
    ) -> tuple[set[str], set[str]]:
        """Return the ids that should be marked and are not, and those that should not be."""
        missing, back, unmarked = set(), set(), 0
        found = connection.execute(
            self._tables.marks, {"source_id": source_id}, execution_options={"yield_per": _BATCH}
        )
        for record_id, is_marked in found:
            unmarked += not is_marked
            if is_marked and record_id in present:
                back.add(record_id)
            elif not is_marked and record_id not in present:
                missing.add(record_id)
        refuse_implausible_removal(source_id, len(missing), unmarked, most)
        return missing, back

    def _close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


@lru_cache  # as `Tables` has the others: compiled once
def _remembering(tables: Tables, insert: Callable[..., Any]) -> Any:
    positions = tables.positions
    statement = insert(positions)
    changes = [column.name for column in positions.c if not column.primary_key]
    return statement.on_conflict_do_update(
        index_elements=list(positions.primary_key),
        set_={name: statement.excluded[name] for name in changes},
    )


def _parsed(url: str) -> URL:
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        parsed = None
    # Neither the text nor the original error: an address that cannot be read may hold a password.
    if parsed is None or parsed.drivername not in _DATABASES:
        examples = " or ".join(database.example for database in _DATABASES.values())
        raise ConfigurationError(f"The sink's address cannot be used; write it as {examples}.")
    return parsed


def _latest(records: list[Record]) -> list[Record]:
    """Return one record for each id: so that a row which a page changes twice counts once."""
    latest: dict[str, Record] = {}
    for record in records:
        known = latest.get(record.record_id)
        if known is None or record.timestamp >= known.timestamp:
            latest[record.record_id] = record
    return list(latest.values())


def _storable(text: str) -> str:
    """Return a text of an item that cannot be used as one that any database takes."""
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\0")
