"""The service's database file: opened, migrated, and written to in groups.

- All waiting changes are applied in one transaction, each in its own savepoint, and acknowledged
  after the commit. An acknowledged change is on disk, and the changes share the cost of a sync. A
  refused change rolls back its own savepoint and nothing else.
- Committing waits for the disk and runs in a thread. The statements before it, and the looks at
  the files, run in the thread of the event loop, which they hold for microseconds; in another
  thread each would wait for the GIL. So this connection never waits for a lock of the file: it
  tries again.
- A failed commit fails every change in it, including refusals, which judged a state that was never
  stored.
- Migrations are numbered SQL files. Each is one transaction with the ``user_version`` it leads to,
  begun before the version is read, so that two programs may open the same new file.
- Several services may share one file on one machine: SQLite's own locks keep their transactions
  apart. `files` watches for other programs that touch the file of a running service.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from contextvars import copy_context
from importlib import resources
from pathlib import Path
from queue import SimpleQueue
from tempfile import mkstemp
from threading import Thread
from typing import Any, TypeVar

from ladon_storage.errors import ConfigurationError, DatabaseError
from ladon_storage.server.changes import fault_of
from ladon_storage.server.files import DatabaseFiles
from ladon_storage.server.logs import in_one_write
from ladon_storage.server.room import is_of_disk

T = TypeVar("T")
Change = Callable[[sqlite3.Connection], Any]
Note = Callable[[Any], object]

logger = logging.getLogger(__name__)

APPLICATION_ID = 0x4C41444E
"""``LADN``: the mark of the service's files."""
BUSY_TIMEOUT_SECONDS = 5.0
BUSY_PAUSE_SECONDS = 0.005
GATHERING_PASSES = 4
"""Passes of the event loop without another change after which a group is complete: requests that
have arrived already share its commit."""
MAX_GROUP = 64
"""The most changes in one commit, which bounds the time for which they hold the event loop."""

_PAGES_COPIED = 1_000
"""The pages of one part of a copy: four megabytes."""


def open_database(path: Path) -> sqlite3.Connection:
    """Open the database for writing, and bring its schema up to date.

    A file that does not exist is created; its directory is not.

    Raises:
        ConfigurationError: The file cannot be this program's database.
        DatabaseError: The disk is full, or fails.
    """
    if not path.parent.is_dir():
        raise ConfigurationError(
            f"The directory of database {str(path)!r} does not exist; create it, or choose "
            "another file."
        )
    connection = None
    try:
        with suppress(OSError):  # it exists, or SQLite says why it cannot
            # Its log and its index get the same mode. A file that exists is not opened: closing it
            # would drop the locks that other connections of this process have on it.
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        connection = connect(path)
        _check_ours(connection, path)
        _use_write_ahead_log(connection)
        migrate(connection)
    except (sqlite3.Error, ConfigurationError) as error:
        if connection is not None:
            connection.close()
        if isinstance(error, ConfigurationError):
            raise
        if is_of_disk(error, path):
            raise _disk_failed(path, error) from error
        raise ConfigurationError(
            f"Database {str(path)!r} cannot be used ({error}); choose a database of this service, "
            "or a new file in a folder that it may write to."
        ) from error
    return connection


def _disk_failed(path: Path, error: Exception) -> DatabaseError:
    return DatabaseError(
        f"Database {str(path)!r} cannot be used ({error}): its disk is full, or fails. Make room, "
        "and run it again."
    )


def connect(path: Path, timeout_seconds: float = BUSY_TIMEOUT_SECONDS) -> sqlite3.Connection:
    """Return a connection in autocommit mode, for one thread at a time."""
    connection = sqlite3.connect(
        path, timeout=timeout_seconds, isolation_level=None, check_same_thread=False
    )
    # FULL syncs the log at each commit; WAL's default, NORMAL, may lose commits with the power.
    connection.execute("PRAGMA synchronous = FULL")
    # A line is written before the watermark that names it, and stays as long. A check of that would
    # look through all watermarks for each line that is deleted.
    connection.execute("PRAGMA foreign_keys = OFF")
    return connection


def copy_database(path: Path, to: Path) -> int:
    """Copy the database to a new file while services use it; return the number of watermarks.

    The copy is one state of the database. It is checked, flushed, and only then has its name. Until
    then it is a draft in the same folder, of a name of its own; an exception removes it.

    Raises:
        ConfigurationError: The file is no database of this program, or the copy cannot be made.
        DatabaseError: The disk of one of the two is full, or fails.
    """
    if not to.parent.is_dir():
        raise ConfigurationError(
            f"The folder of the copy {str(to)!r} does not exist; create it, or name another file."
        )
    try:
        opened, name = mkstemp(prefix=f".{to.name[:100]}.", suffix=".tmp", dir=to.parent)
        draft = Path(name)
        try:
            os.close(opened)
            count = _copied(path, draft)
            with draft.open("rb") as written:
                os.fsync(written.fileno())
            _give_name(draft, to)
        finally:
            draft.unlink(missing_ok=True)
    except FileExistsError as error:
        raise ConfigurationError(
            f"{str(to)!r} exists already; name another file for the copy."
        ) from error
    except (sqlite3.Error, OSError) as error:
        text = f"The copy {str(to)!r} could not be written ({getattr(error, 'strerror', error)})"
        if is_of_disk(error, to):
            raise DatabaseError(
                f"{text}: its disk is full, or fails. Make room, or name a file on another disk."
            ) from error
        raise ConfigurationError(
            f"{text}; name a new file in a folder that you may write to, with room for it."
        ) from error
    return count


def _copied(path: Path, draft: Path) -> int:
    """Copy the database to an empty file and check it; return the number of watermarks.

    Raises:
        ConfigurationError: The database cannot be read.
        sqlite3.Error: The copy cannot be written.
    """
    with closing(_opened(path)) as source, closing(sqlite3.connect(draft)) as copy:
        try:
            source.execute("BEGIN")  # all parts are of one state
            [(count,)] = source.execute("SELECT count(*) FROM watermarks").fetchall()
            # In parts, between which Python hears of signals.
            source.backup(copy, pages=_PAGES_COPIED, progress=lambda *_: None)
            copy.execute("PRAGMA journal_mode = DELETE")
            if faults := check_integrity(copy):
                raise sqlite3.DatabaseError(faults)
        except sqlite3.Error as error:
            if _is_of_writing(getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT)):
                raise
            raise ConfigurationError(
                f"Database {str(path)!r} could not be copied ({error}). Look at it with "
                "`ladon-storage doctor`."
            ) from error
    return int(count)


def _is_of_writing(code: int) -> bool:
    """Return whether an error of SQLite is of the file that is written, not of the one read."""
    if code in (sqlite3.SQLITE_IOERR_READ, sqlite3.SQLITE_IOERR_SHORT_READ):
        return False
    return code & 0xFF in (
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_CANTOPEN,
    )


def _give_name(draft: Path, to: Path) -> None:
    """Give a file its name, which no other one has.

    Raises:
        FileExistsError: Another one has it.
    """
    try:
        os.link(draft, to)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        os.close(os.open(to, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        draft.replace(to)


def _opened(path: Path) -> sqlite3.Connection:
    try:
        connection = connect(path)
        try:
            _check_ours(connection, path)
        except BaseException:
            connection.close()
            raise
    except sqlite3.Error as error:
        if is_of_disk(error, path):
            raise _disk_failed(path, error) from error
        raise ConfigurationError(
            f"Database {str(path)!r} cannot be read ({error}); name the service's."
        ) from error
    return connection


def check_integrity(connection: sqlite3.Connection) -> str:
    """Return the first faults that SQLite finds in a database; empty: none."""
    rows = connection.execute("PRAGMA integrity_check(3)").fetchall()
    return "" if rows == [("ok",)] else "; ".join(str(row[0]) for row in rows)


def _check_ours(connection: sqlite3.Connection, path: Path) -> None:
    """Refuse another program's database before anything in it changes."""
    # In this order: between the two, another service may make its first tables.
    empty = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0
    ours = connection.execute("PRAGMA application_id").fetchone()[0] == APPLICATION_ID
    if not ours and not empty:
        raise ConfigurationError(
            f"Database {str(path)!r} belongs to another program; choose another file."
        )
    version = _version(connection)
    if version > (latest := len(migrations())):
        raise ConfigurationError(
            f"Database {str(path)!r} has schema version {version}, and this program knows "
            f"{latest}; upgrade ladon-storage."
        )


def _use_write_ahead_log(connection: sqlite3.Connection) -> None:
    # Changing the mode does not wait for locks as statements do, when two programs create the file.
    deadline = time.monotonic() + BUSY_TIMEOUT_SECONDS
    while True:
        try:
            mode = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
            break
        except sqlite3.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)
    if mode != "wal":
        raise sqlite3.OperationalError(f"its file system offers journal mode {mode}, not wal")


def migrations() -> Sequence[str]:
    """Return the SQL of every migration; number n leads from schema version n - 1 to n."""
    folder = resources.files(__package__) / "migrations"
    files = sorted((f for f in folder.iterdir() if f.name.endswith(".sql")), key=lambda f: f.name)
    return [file.read_text(encoding="utf-8") for file in files]


def migrate(connection: sqlite3.Connection, to: int | None = None) -> None:
    """Apply the migrations up to version ``to``, or all, each in one transaction."""
    scripts = migrations()[:to]
    while True:
        connection.execute("BEGIN IMMEDIATE")
        try:
            version = _version(connection)
            # executescript() would commit first; the statements one by one stay in the transaction.
            for statement in _statements("".join(scripts[version : version + 1])):
                connection.execute(statement)
            # Written also where it stays, so that a file which cannot be written to fails now.
            done = version >= len(scripts)
            connection.execute(f"PRAGMA user_version = {version if done else version + 1}")
            connection.execute("COMMIT")
            if done:
                return
        finally:
            if connection.in_transaction:
                connection.execute("ROLLBACK")


def _version(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def _statements(script: str) -> Iterator[str]:
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""


class _Committer:
    """A thread that commits, for one event loop.

    An executor would wrap each commit into two futures with locks, at a tenth of a write's cost.

    Args:
        commit: Called in the thread.
    """

    def __init__(self, commit: Callable[[], object]) -> None:
        self._commit = commit
        self._loop = asyncio.get_running_loop()
        self._asked: SimpleQueue[asyncio.Future[None] | None] = SimpleQueue()
        # Not one that the interpreter's end waits for, where nothing closed it.
        self._thread = Thread(target=self._work, name="storage-writer", daemon=True)
        self._thread.start()

    async def commit(self) -> None:
        """Commit, or raise its error."""
        done = self._loop.create_future()
        self._asked.put(done)
        await done

    def close(self) -> None:
        """End the thread."""
        self._asked.put(None)
        self._thread.join()

    def _work(self) -> None:
        while (done := self._asked.get()) is not None:
            error = None
            try:
                self._commit()
            except Exception as raised:
                error = raised
            with suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(_settle, done, error)


def _settle(done: asyncio.Future[None], error: Exception | None) -> None:
    if done.done():  # its caller was cancelled
        return
    if error is None:
        done.set_result(None)
    else:
        done.set_exception(error)


class GroupCommit:
    """A writer that commits waiting changes of the database together, for one event loop.

    Args:
        connection: The connection to write with; closed by ``close``.
        path: Its file.
        forget: Called when the last changes that were applied are not what is stored now: another
            program wrote since, or a commit failed.
    """

    def __init__(
        self,
        connection: sqlite3.Connection,
        path: Path,
        forget: Callable[[], object] = lambda: None,
    ) -> None:
        self._connection = connection
        self._connection.execute("PRAGMA busy_timeout = 0")
        self.files = DatabaseFiles(path)
        """Its file with the log and the log's index."""
        self._forget = forget
        self._others = -1  # a number that changes with each commit of another connection
        self._waiting: list[tuple[Change, Note, asyncio.Future[Any]]] = []
        self._awake = asyncio.Event()
        self._closed = False
        self._fault = ""
        self._thread = _Committer(self._end)
        self._task = asyncio.create_task(self._work())

    async def apply(
        self,
        change: Callable[[sqlite3.Connection], T],
        note: Callable[[T], object] = lambda _: None,
    ) -> T:
        """Return the result of ``change`` once it is on disk, or raise its error.

        Cancelling the caller does not revert the change.

        Args:
            change: The change.
            note: Called with the change's result when it is on disk, whether or not its caller
                still waits; those of a group one after another. What it raises is the caller's.

        Raises:
            DatabaseError: The database did not accept the change; it is not stored.
        """
        if self._closed or self._task.done():
            raise DatabaseError("The database is closed; start the service again.")
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        # In its caller's context, which has the request that it belongs to.
        context = copy_context()
        self._waiting.append((change, lambda outcome: context.run(note, outcome), future))
        self._awake.set()
        return await future

    async def close(self) -> None:
        """Finish the changes that wait, and close the connection."""
        self._closed = True
        self._awake.set()
        await self._task
        self._thread.close()
        self._connection.close()

    async def _work(self) -> None:
        while self._waiting or not self._closed:
            await self._awake.wait()
            self._awake.clear()
            while self._waiting:
                await self._commit()

    async def _commit(self) -> None:
        group = self._waiting
        try:
            await self._begin()
            # Only now: changes that came during the wait for the lock share this commit.
            group, self._waiting = self._waiting[:MAX_GROUP], self._waiting[MAX_GROUP:]
            outcomes = [self._attempt(change) for change, _, _ in group]
            self._check_files()
            await self._thread.commit()
            self.files.settle()  # it may have started the log again, or copied it to the database
            self._fault = ""
        except Exception as error:
            if str(error) != self._fault:  # once; each request that it refuses has a line besides
                logger.exception("A commit of %d changes failed", len(group))
                self._fault = str(error)
            if group is self._waiting:
                self._waiting = []
            with suppress(sqlite3.Error):
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
            self._forget()
            message = f"The database did not store the change ({error}); try again later."
            outcomes = [(None, DatabaseError(message)) for _ in group]
        with in_one_write():
            outcomes = [
                (result, fault_of(note, result) if refusal is None else refusal)
                for (_, note, _), (result, refusal) in zip(group, outcomes, strict=True)
            ]
        for (_, _, future), (result, refusal) in zip(group, outcomes, strict=True):
            if future.done():  # Its caller was cancelled.
                continue
            if refusal is None:
                future.set_result(result)
            else:
                future.set_exception(refusal)

    async def _begin(self) -> None:
        passes, gathered = 0, 0
        while passes < GATHERING_PASSES and gathered < MAX_GROUP:
            await asyncio.sleep(0)
            passes = passes + 1 if len(self._waiting) == gathered else 0
            gathered = len(self._waiting)
        deadline = time.monotonic() + BUSY_TIMEOUT_SECONDS
        while True:
            try:
                self._connection.execute("BEGIN IMMEDIATE")
                break
            except sqlite3.OperationalError as error:
                busy = error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY
                if not busy or time.monotonic() > deadline:
                    raise
            await asyncio.sleep(BUSY_PAUSE_SECONDS)
        [(others,)] = self._connection.execute("PRAGMA data_version").fetchall()
        if others != self._others:
            self._forget()
            self._others = others

    def _check_files(self) -> None:
        if fault := self.files.fault():
            raise sqlite3.OperationalError(f"{fault}; stop the service before you touch its files")

    def _end(self) -> None:
        self._connection.execute("COMMIT")

    def _attempt(self, change: Change) -> tuple[Any, Exception | None]:
        self._connection.execute("SAVEPOINT change")
        try:
            result = change(self._connection)
        except sqlite3.Error:
            raise  # The database itself fails, and with it the whole group.
        except Exception as refusal:
            self._connection.execute("ROLLBACK TO change")
            self._connection.execute("RELEASE change")
            return None, refusal
        self._connection.execute("RELEASE change")
        return result, None
