"""A DuckDB file as a DB-API connection, and the dialect by which SQLAlchemy speaks to it.

- DuckDB gives a file to one process alone, readers included. A process keeps it while it has
  transactions to do: opening and closing cost as much as several pages. It closes the file after a
  pause, and after a while in any case, so that other processes have their turn.
- In one process all sinks of a file share one connection, and do one transaction at a time: DuckDB
  lets two that write the same rows fail.
- A commit returns when the log is on the disk; that is DuckDB's own doing.
"""

from __future__ import annotations

import itertools
import os
import re
import threading
import time
from pathlib import Path
from types import ModuleType
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.dialects import registry
from sqlalchemy.dialects.postgresql.base import PGDDLCompiler, PGDialect

from ladon_storage.errors import SinkError
from ladon_storage.sinks.sql.dialect import WAIT_SECONDS
from ladon_storage.sinks.sql.files import place_of, taken_away

IDLE_SECONDS = 1.0
"""The time without a transaction after which the file is closed."""

TURN_SECONDS = 5.0
"""The time after which the file is closed although there are transactions to do."""

PAUSE_SECONDS = 0.25
"""The time for which a file that was closed after a turn is left to other processes."""

_POLL_SECONDS = 0.05
_KIND = "SELECT type FROM duckdb_databases() WHERE database_name = current_database()"
_OTHER = "sqlite_scanner"
"""The extension that DuckDB would load for a file of SQLite."""

_COMPRESSIONS = {"payload": "zstd", "raw": "zstd", "version": "uncompressed"}
"""The compression of columns whose best one is known: DuckDB would try each at every checkpoint.

Large texts take it as long as all else that is done with their records, and a hash has no pattern.
"""

_IS_HELD = re.compile(r"Could not set lock on file .*?(?:\(PID (\d+)\)|$)", re.DOTALL)


class DuckdbFile:
    """A file that the sinks of this process share.

    Args:
        path: Its path, without symbolic links.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.users = 0
        self._process = os.getpid()
        self._turn = threading.Lock()
        self._timer: threading.Timer | None = None
        self._connection: Any = None
        self._place: tuple[int, int] | None = None
        self._opened_at = self._used_at = 0.0
        self._reserved_until = 0.0

    def begin(self) -> Any:
        """Return the connection with a transaction begun, after the one before has ended."""
        if self._process != os.getpid():
            raise SinkError(
                f"The file {self.path} of a sink was open when this process was forked. Start "
                "processes by spawning them, and run again."
            )
        self._turn.acquire()
        try:
            if self._connection is None:
                self._connection = self._open()
                self._opened_at = time.monotonic()
            self._connection.execute("BEGIN TRANSACTION")
        except BaseException:
            self._shut()
            self._turn.release()
            raise
        return self._connection

    def end(self, statement: str) -> None:
        """End the transaction, by ``COMMIT`` or ``ROLLBACK``."""
        try:
            self._connection.execute(statement)
        except BaseException:
            self._shut()  # whatever is left of the transaction ends with the connection
            raise
        finally:
            self._used_at = time.monotonic()
            if self._used_at - self._opened_at >= TURN_SECONDS:
                self._shut()
                self._reserved_until = time.monotonic() + PAUSE_SECONDS
            elif self._timer is None and self._connection is not None:
                self._close_later(IDLE_SECONDS)
            self._turn.release()

    def close(self) -> None:
        """Close the file, if there is no transaction."""
        with self._turn:
            if self._timer is not None:
                self._timer.cancel()
            self._shut()

    def _open(self) -> Any:
        import duckdb  # an extra

        deadline = time.monotonic() + WAIT_SECONDS
        time.sleep(max(0.0, self._reserved_until - time.monotonic()))
        while True:
            # DuckDB would make a new file in place of one that was taken away.
            if self._place is not None and place_of(self.path) != self._place:
                raise taken_away(f"duckdb:///{self.path}")
            try:
                connection = duckdb.connect(str(self.path))
                break
            except duckdb.IOException as error:
                if _OTHER in str(error):
                    raise self._of_sqlite() from None
                held = _IS_HELD.search(str(error))
                if held is None:
                    raise
                if time.monotonic() > deadline:
                    raise self._held_by(held[1]) from None
            time.sleep(_POLL_SECONDS)
        if connection.execute(_KIND).fetchone() != ("duckdb",):
            connection.close()
            raise self._of_sqlite()
        self._place = self._place or place_of(self.path)
        # A time without a zone, as its owner may have made of a column, is in UTC.
        connection.execute("SET TimeZone = 'UTC'")
        # A page is less than what DuckDB gives to a second thread, which costs a sixth more.
        connection.execute("SET threads = 1")
        return connection

    def _of_sqlite(self) -> SinkError:
        return SinkError(
            f"The file {self.path} of a sink is a database of SQLite. Write its address as "
            "sqlite:///, or use another file."
        )

    def _held_by(self, process: str | None) -> SinkError:
        by = f"process {process}" if process else "another process"
        return SinkError(
            f"The file {self.path} of a sink is open in {by}, and was not closed within "
            f"{WAIT_SECONDS} seconds; DuckDB lets one process at a time use a file. Close it "
            "there, and run again; collection resumes after the last durable page."
        )

    def _shut(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _close_later(self, seconds: float) -> None:
        self._timer = threading.Timer(seconds, self._close_idle)
        self._timer.daemon = True
        self._timer.start()

    def _close_idle(self) -> None:
        with self._turn:
            self._timer = None
            left = self._used_at + IDLE_SECONDS - time.monotonic()
            if self._connection is not None and left > 0:
                self._close_later(left)
            else:
                self._shut()


_files: dict[Path, DuckdbFile] = {}
_files_lock = threading.Lock()


class DuckdbConnection:
    """One sink's use of a file, with the methods of a DB-API connection that SQLAlchemy needs.

    Args:
        path: The path of the file.
    """

    def __init__(self, path: Path) -> None:
        path = path.resolve()
        with _files_lock:
            self._file = _files.setdefault(path, DuckdbFile(path))
            self._file.users += 1
        self._begun: Any = None

    def begin(self) -> None:
        """Begin a transaction, after waiting for those of other sinks and processes."""
        self._begun = self._file.begin()

    def cursor(self) -> DuckdbCursor:
        """Return a cursor in the transaction; DuckDB's own would be another connection."""
        return DuckdbCursor(self._begun)

    def commit(self) -> None:
        """Return when the transaction is durable."""
        self._end("COMMIT")

    def rollback(self) -> None:
        """Undo the transaction, if there is one."""
        self._end("ROLLBACK")

    def close(self) -> None:
        """Give the file up; the last sink closes it."""
        self.rollback()
        with _files_lock:
            self._file.users -= 1
            if not self._file.users:
                del _files[self._file.path]
                self._file.close()

    def _end(self, statement: str) -> None:
        begun, self._begun = self._begun, None
        if begun is not None:
            self._file.end(statement)


class DuckdbCursor:
    """A statement of the transaction, and its result.

    Args:
        connection: DuckDB's connection.
    """

    arraysize = 1

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._has_result = False

    @property
    def description(self) -> Any:
        """The columns of a query; a change has none, although DuckDB returns its count."""
        return self._connection.description if self._has_result else None

    @property
    def rowcount(self) -> int:
        """The number of changed rows."""
        return int(self._connection.rowcount)

    def execute(self, statement: str, parameters: Any = ()) -> None:
        """Execute a statement."""
        self._connection.execute(statement, parameters)
        self._has_result = statement.lstrip()[:6].upper() == "SELECT"

    def executemany(self, statement: str, rows: Any) -> None:
        """Execute a change for all rows at once: for each of them DuckDB would plan it again."""
        self.execute(_for_all(statement), [list(column) for column in zip(*rows, strict=True)])

    def fetchone(self) -> Any:
        """Return the next row."""
        return self._connection.fetchone()

    def fetchmany(self, size: int = 1) -> Any:
        """Return the next rows."""
        return self._connection.fetchmany(size)

    def fetchall(self) -> Any:
        """Return the remaining rows."""
        return self._connection.fetchall()

    def close(self) -> None:
        """Do nothing: the result ends with the next statement."""


def _for_all(statement: str) -> str:
    """Return a change of one row as the change of all rows in a list for each parameter.

    >>> _for_all("INSERT INTO t (a, b) VALUES (?, ?) ON CONFLICT DO NOTHING")
    'INSERT INTO t (a, b) SELECT p1, p2 FROM (SELECT unnest(?) AS p1, unnest(?) AS p2) AS page \
ON CONFLICT DO NOTHING'
    >>> _for_all("UPDATE t SET a=? WHERE t.b = ?")
    'UPDATE t SET a=p1 FROM (SELECT unnest(?) AS p1, unnest(?) AS p2) AS page WHERE t.b = p2'
    """
    number = itertools.count(1)
    named = re.sub(r"\?", lambda _: f"p{next(number)}", statement)
    lists = ", ".join(f"unnest(?) AS p{each}" for each in range(1, next(number)))
    page = f" FROM (SELECT {lists}) AS page"
    if found := re.search(r"VALUES \((.*?)\)", named):
        return f"{named[: found.start()]}SELECT {found[1]}{page}{named[found.end() :]}"
    return named.replace(" WHERE ", f"{page} WHERE ", 1)


class DuckdbTables(PGDDLCompiler):
    """The definition of tables in DuckDB."""

    def get_column_specification(self, column: Any, **settings: Any) -> str:
        """Return the definition of a column with its compression."""
        specification: str = super().get_column_specification(column, **settings)  # type: ignore[no-untyped-call]
        if compression := _COMPRESSIONS.get(column.name):
            return f"{specification} USING COMPRESSION {compression}"
        return specification


class DuckdbDialect(PGDialect):
    """DuckDB's SQL, which is that of PostgreSQL as far as the sinks' statements go."""

    name = "duckdb"
    driver = "ladon"
    ddl_compiler = DuckdbTables
    default_paramstyle = "qmark"
    supports_statement_cache = True

    @classmethod
    def import_dbapi(cls) -> ModuleType:
        """Return the module with the classes of errors."""
        import duckdb

        return duckdb

    def initialize(self, connection: Connection) -> None:
        """Ask nothing: there is no server, and so no version and no setting of it."""

    def do_begin(self, dbapi_connection: Any) -> None:
        """Begin a transaction, which DuckDB does not do by itself."""
        dbapi_connection.begin()


registry.register("duckdb.ladon", __name__, "DuckdbDialect")
