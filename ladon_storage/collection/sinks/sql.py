"""The sink that is a table of a database, through SQLAlchemy.

- A page is one transaction, and durable when `SqlSink.write` returns: SQLite runs with a
  write-ahead log and ``synchronous=FULL``.
- The database is driven from one thread of its own, so that the event loop never waits for a disk.
  Leaving the sink waits for that thread: a cancelled run leaves nothing running behind it.
- ``keep="latest"``: an older content never replaces a newer one, so that a page which is replayed
  does no harm; at equal times what arrived later wins. ``keep="all"``: one row per version.
- A timestamp is text of fixed width in UTC, so that the database orders it right.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TypeVar

from sqlalchemy import Column, Connection, MetaData, Table, Text, create_engine, inspect
from sqlalchemy.dialects import sqlite
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError
from sqlalchemy.pool import NullPool
from sqlalchemy.schema import CreateTable

from ladon_storage.collection.interfaces import Position
from ladon_storage.collection.records import Page, Record
from ladon_storage.errors import ConfigurationError, SinkError

T = TypeVar("T")

_NAME = re.compile(r"(?!sqlite_)[a-z_][a-z0-9_]{0,62}", re.IGNORECASE)
_KEYS = {
    "latest": ("source_id", "record_id"),
    "all": ("source_id", "record_id", "version"),
}
_COLUMNS = ("source_id", "record_id", "version", "record_timestamp", "payload", "collected_at")
_BUSY_SECONDS = 30
"""How long a write waits for another process that writes to the same file."""


class SqlSink:
    """Keep records in a table of a database, which it makes where it is missing.

    The columns are ``source_id``, ``record_id``, ``version``, ``record_timestamp``, ``payload``
    (JSON text) and ``collected_at`` (when this version arrived). One object serves one run at a
    time; several runs and processes may share the table.

    Args:
        url: The address of the database: ``sqlite:///records.db`` beside the working directory,
            ``sqlite:////var/lib/ladon/records.db`` anywhere.
        table: The name of the table.
        keep: ``latest`` for one row per record, ``all`` for one row per version.

    Raises:
        ConfigurationError: An argument makes no sense.
    """

    def __init__(
        self, url: str, table: str = "records", keep: Literal["latest", "all"] = "latest"
    ) -> None:
        self._url = _checked_url(url)
        if not isinstance(table, str) or not _NAME.fullmatch(table):
            raise ConfigurationError(
                f"The sink's table cannot be named {table!r}; use a letter, then letters, digits "
                "and underscores, 63 at most."
            )
        if keep not in _KEYS:
            raise ConfigurationError(f"The sink's keep should be 'latest' or 'all', not {keep!r}.")
        self._keep = keep
        self._table = Table(
            table,
            MetaData(),
            *(
                Column(name, Text, primary_key=name in _KEYS[keep], nullable=False)
                for name in _COLUMNS
            ),
        )
        self._upsert = _upsert(self._table, keep)
        self._thread: ThreadPoolExecutor | None = None
        self._connection: Connection | None = None

    def __repr__(self) -> str:
        return f"SqlSink({self._shown!r}, table={self._table.name!r}, keep={self._keep!r})"

    async def __aenter__(self) -> Self:
        if self._thread is not None:
            raise SinkError(f"The sink {self._shown} serves another run; give each run its own.")
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="ladon-sink")
        try:
            await self._in_thread(self._open, "be opened")
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

        Raises:
            SinkError: The database refused it; nothing of the page was stored.
        """
        collected_at = _text(datetime.now(UTC))
        records = page.records if self._keep == "all" else _latest(page.records)
        rows = [
            {
                "source_id": source_id,
                "record_id": record.record_id,
                "version": record.version,
                "record_timestamp": _text(record.timestamp),
                "payload": record.payload,
                "collected_at": collected_at,
            }
            for record in records
        ]
        return await self._in_thread(lambda: self._write(rows), "store a page", source_id)

    @property
    def _shown(self) -> str:
        return self._url.render_as_string(hide_password=True)

    async def _in_thread(self, work: Callable[[], T], aim: str, source_id: str | None = None) -> T:
        if self._thread is None:
            raise SinkError(
                f"The sink {self._shown} is not open; use `async with` around it.", source_id
            )
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, work)
        except SQLAlchemyError as error:
            # Of SQLAlchemy's text only what the database said: the rest is SQL and its parameters.
            said = str(getattr(error, "orig", None) or type(error).__name__)
            raise SinkError(
                f"The sink {self._shown} could not {aim}: {said}; "
                "repair the database, and the next run goes on where durable data ends.",
                source_id,
            ) from error

    async def _leave(self) -> None:
        """Close behind whatever the thread is still doing; cancelling does not cut it short."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        try:
            await asyncio.shield(asyncio.get_running_loop().run_in_executor(thread, self._close))
        finally:
            thread.shutdown(wait=False)

    # What follows runs in the thread.

    def _open(self) -> None:
        folder = Path(self._url.database or "").parent
        if not folder.is_dir():
            raise SinkError(
                f"The sink's folder {folder} does not exist; make it, or correct the address."
            )
        engine = create_engine(
            self._url,
            poolclass=NullPool,
            hide_parameters=True,
            connect_args={"timeout": _BUSY_SECONDS},
        )
        self._connection = engine.connect()
        self._connection.exec_driver_sql("PRAGMA journal_mode=WAL")
        self._connection.exec_driver_sql("PRAGMA synchronous=FULL")
        self._connection.execute(CreateTable(self._table, if_not_exists=True))
        self._check_table(self._connection)
        self._connection.commit()

    def _check_table(self, connection: Connection) -> None:
        """Refuse a table that this sink did not make, or made to keep something else."""
        found = inspect(connection)
        columns = {column["name"] for column in found.get_columns(self._table.name)}
        key = set(found.get_pk_constraint(self._table.name)["constrained_columns"])
        for keep, expected in _KEYS.items():
            if columns == set(_COLUMNS) and key == set(expected):
                if keep == self._keep:
                    return
                raise SinkError(
                    f"The table {self._table.name!r} of the sink {self._shown} was made with "
                    f"keep={keep!r}, not {self._keep!r}; use that, or another table."
                )
        raise SinkError(
            f"The table {self._table.name!r} of the sink {self._shown} holds no records: it has "
            f"the columns {', '.join(sorted(columns))}; use another table."
        )

    def _write(self, rows: list[dict[str, Any]]) -> int:
        if not rows or self._connection is None:
            return 0
        with self._connection.begin():
            return self._connection.execute(self._upsert, rows).rowcount

    def _close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
            connection.engine.dispose()


def _checked_url(url: str) -> URL:
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        parsed = None
    # Neither the text nor the original error: an address that cannot be read may hold a password.
    if parsed is None or parsed.drivername != "sqlite" or parsed.host or parsed.username:
        raise ConfigurationError(
            "The sink's address cannot be used; write it as sqlite:///records.db."
        )
    if not parsed.database or parsed.database.startswith((":memory:", "file:")):
        raise ConfigurationError(
            f"The sink {parsed.render_as_string(hide_password=True)} is no file, so not durable; "
            "write its address as sqlite:///records.db."
        )
    return parsed


def _upsert(table: Table, keep: str) -> sqlite.Insert:
    statement = sqlite.insert(table)
    if keep == "all":
        statement = statement.on_conflict_do_nothing()
    else:
        new = statement.excluded
        statement = statement.on_conflict_do_update(
            index_elements=_KEYS[keep],
            set_={name: new[name] for name in _COLUMNS if name not in _KEYS[keep]},
            where=(new.version != table.c.version)
            & (new.record_timestamp >= table.c.record_timestamp),
        )
    # SQLAlchemy keeps the number of rows of an insert only when told to.
    return statement.execution_options(preserve_rowcount=True)


def _latest(records: list[Record]) -> list[Record]:
    """Return one record for each id: so that a row which a page changes twice counts once."""
    latest: dict[str, Record] = {}
    for record in records:
        known = latest.get(record.record_id)
        if known is None or record.timestamp >= known.timestamp:
            latest[record.record_id] = record
    return list(latest.values())


def _text(timestamp: datetime) -> str:
    return timestamp.isoformat(timespec="microseconds")
