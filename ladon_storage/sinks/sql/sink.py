"""The sink for a table of a database, SQLite, DuckDB or PostgreSQL, through SQLAlchemy.

- A page, its rejects, and the position after it are one transaction, which is durable when
  `SqlSink.write` returns. A page without new records is only a read, unless the page before was all
  new: then the page is written without a look-up.
- ``keep="latest"``: an older version never replaces a newer one, so that writing a page again is
  idempotent; at equal times the later arrival wins. ``keep="all"``: one row per version.
- A record that is in a page exists: its removal mark is cleared, whatever its version.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from sqlalchemy.engine import URL
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from ladon_storage.databases import parsed, shown_address
from ladon_storage.errors import ConfigurationError
from ladon_storage.sinks.sql.errors import describe
from ladon_storage.sinks.sql.sqlite import Sqlite
from ladon_storage.sinks.sql.store import SqlStore
from ladon_storage.sinks.sql.tables import Keep, Tables
from ladon_storage.sinks.threaded import ThreadedSink

if TYPE_CHECKING:
    from ladon_storage.sinks.sql.duckdb import Duckdb
    from ladon_storage.sinks.sql.postgresql import Postgresql

_NAME = re.compile(r"(?!sqlite_|ladon_)(?!.*_quarantine$)[a-z_][a-z0-9_]{0,51}", re.IGNORECASE)
"""Names that leave room for `_quarantine` in PostgreSQL's 63 bytes, and are not reserved."""

_DRIVERS = ("sqlite", "duckdb", "postgresql")


class SqlSink(ThreadedSink[SqlStore]):
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
            ``sqlite:////var/lib/ladon/records.db`` anywhere, ``duckdb:///records.duckdb``,
            ``postgresql://user:password@host/database``.
        table: The name of the table.
        keep: ``latest`` for one row per record, ``all`` for one row per version.

    Raises:
        ConfigurationError: An argument is invalid, or the database's extra is not installed.
    """

    _names = _NAME
    _name_rule = "52 at most, and no name of the sink's own, such as ladon_meta"
    _failures = (SQLAlchemyError,)

    def __init__(self, url: str, table: str = "records", keep: Keep = "latest") -> None:
        address = _checked(url)
        super().__init__(shown_address(address), table, keep)
        self._tables = Tables.of(table, keep)
        self._database = _database(address.drivername)(address, table, keep)
        self.batch_characters: int | None = getattr(self._database, "batch_characters", None)

    def _open(self) -> SqlStore:
        return SqlStore(self._database, self._tables, self._shown)

    def _described(self, error: Exception) -> tuple[str, str, Exception | None]:
        return describe(error)


def _checked(url: str) -> URL:
    try:
        found = parsed(url)
    except (ArgumentError, ValueError):
        found = None
    # Neither the text nor the original error: an unreadable address may contain a password.
    if found is None or found.drivername not in _DRIVERS:
        examples = " or ".join(_database(driver).example for driver in _DRIVERS)
        raise ConfigurationError(f"The sink's address cannot be used. Write it as {examples}.")
    return found


def _database(driver: str) -> type[Sqlite] | type[Duckdb] | type[Postgresql]:
    if driver == "sqlite":
        return Sqlite
    # A twentieth of a short run would be the import of a dialect that it does not use.
    if driver == "duckdb":
        from ladon_storage.sinks.sql.duckdb import Duckdb

        return Duckdb
    from ladon_storage.sinks.sql.postgresql import Postgresql

    return Postgresql
