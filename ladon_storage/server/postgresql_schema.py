"""The service's schema in PostgreSQL: the address of its database, and its migrations.

- Migrations have the numbers of SQLite's. Each is one transaction with the version it leads to,
  under an advisory lock: of the services that start together one migrates, and the others wait.
- A password is in no message: an address is shown without it, and one that cannot be read is not
  repeated.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib import resources
from threading import Timer
from typing import Any, NamedTuple

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.types.numeric import Int8BinaryDumper

from ladon_storage import databases
from ladon_storage.errors import ConfigurationError
from ladon_storage.server.database import migrations as sqlite_migrations
from ladon_storage.server.dialect import statement

logger = logging.getLogger(__name__)

SCHEMA = "ladon_storage"
CONNECT_SECONDS = 5
"""The time in which a server must accept a connection; its next host is tried after it."""
SILENT_SECONDS = 10
"""The time after which unacknowledged data marks a connection as lost."""

_LOCK = 1_418_742_213
"""The advisory lock of migrations; an arbitrary number that no other program uses."""
_LOCK_SECONDS = 60
_OPTIONS = databases.POSTGRESQL | {
    "connect_timeout": CONNECT_SECONDS,
    "tcp_user_timeout": SILENT_SECONDS * 1000,
}
_VERSION = f"SELECT version FROM {SCHEMA}.schema_version"  # noqa: S608 - a constant
# An acknowledged commit is durable, even if the role's default is otherwise.
_PREPARE = """
SELECT set_config('search_path', %s, false), set_config('statement_timeout', %s, false),
set_config('lock_timeout', %s, false),
set_config('default_transaction_isolation', 'read committed', false),
CASE current_setting('synchronous_commit')
WHEN 'off' THEN set_config('synchronous_commit', 'on', false) END
"""


class Address(NamedTuple):
    """The address of a database in PostgreSQL.

    Args:
        conninfo: What libpq takes, with the password.
        shown: The address in messages, without it.
    """

    conninfo: str
    shown: str

    def rotated(self) -> Address:
        """Return the address with its first server after the others."""
        found, lists = self._lists()
        for name, each in lists.items():
            found[name] = ",".join([*each[1:], each[0]])
        return self._replace(conninfo=make_conninfo(**found))

    def servers(self) -> list[str]:
        """Return libpq's address of each of several servers; of a single one, none.

        A server that accepts no writes is reached by it, too.
        """
        found, lists = self._lists()
        found["target_session_attrs"] = "any"
        each_server = zip(*lists.values(), strict=False)
        return [
            make_conninfo(**found | dict(zip(lists, each, strict=True))) for each in each_server
        ]

    def _lists(self) -> tuple[dict[str, Any], dict[str, list[str]]]:
        """Return the parameters, and those of them that have a value for each server."""
        found: dict[str, Any] = conninfo_to_dict(self.conninfo)
        return found, {
            name: str(found[name]).split(",")
            for name in ("host", "hostaddr", "port")
            if "," in str(found.get(name) or "")
        }


def address_of(url: str) -> Address:
    """Return the address in a text such as ``postgresql://user@host/database``.

    Raises:
        ConfigurationError: It is none, or names no database.
    """
    scheme, _, rest = url.strip().partition("://")
    try:
        # Of SQLAlchemy's addresses, too, which name their driver.
        found: dict[str, Any] = conninfo_to_dict(f"{scheme.partition('+')[0]}://{rest}")
    except psycopg.Error:
        found = {}
    if not found.get("dbname") and not found.get("service"):
        # Outside of the handler, and not repeated: the text may contain a password.
        raise ConfigurationError(
            "The address of the database cannot be read, or names no database. Write it as "
            "postgresql://user@host/database, or with several hosts that have a comma between "
            "them."
        )
    shown = f"postgresql://{found.get('host') or ''}/{found.get('dbname') or ''}"
    missing = databases.arguments_beside(found, _options(found))
    return Address(make_conninfo(**{**missing, **found}), shown)


def _options(found: Mapping[str, Any]) -> dict[str, Any]:
    named = found.get("hostaddr") or found.get("host") or os.environ.get("PGHOST", "")
    if (servers := str(named).count(",") + 1) == 1:
        return _OPTIONS
    # All of them are tried within the time of one request, and only one of them writes.
    options = _OPTIONS | {"connect_timeout": max(2, CONNECT_SECONDS // servers)}
    if "PGTARGETSESSIONATTRS" in os.environ:
        return options
    return options | {"target_session_attrs": "read-write"}


def prepared(timeout_seconds: float) -> tuple[str, tuple[str, ...]]:
    """Return the statement that a new connection begins with.

    Args:
        timeout_seconds: How long one statement may take; a lock is waited for a little less.
    """
    milliseconds = round(timeout_seconds * 1000)
    return _PREPARE, (SCHEMA, str(milliseconds), str(milliseconds * 9 // 10))


def adapt(connection: psycopg.Connection[Any] | psycopg.AsyncConnection[Any]) -> None:
    """Give every whole number one type, so that a statement is prepared once."""
    connection.adapters.register_dumper(int, Int8BinaryDumper)


class PostgresqlConnection:
    """A connection for one thread at a time, which takes statements in the form of `dialect`."""

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self.inner = connection

    def execute(self, query: str, values: Any = (), /) -> psycopg.Cursor[Any]:
        """Run one statement."""
        return self.inner.execute(statement(query), _storable(values) or None)


def _storable(values: Any) -> Any:
    """Return values without the one character that PostgreSQL's texts cannot have."""
    if isinstance(values, Mapping):
        return {name: storable(value) for name, value in values.items()}
    return tuple(storable(value) for value in values)


def storable(value: Any) -> Any:
    r"""Return a text with a mark in place of U+0000, which PostgreSQL cannot store.

    >>> storable("a\0b") == "a\N{REPLACEMENT CHARACTER}b", storable(7)
    (True, 7)
    """
    if isinstance(value, str) and "\0" in value:
        return value.replace("\0", "\N{REPLACEMENT CHARACTER}")
    return value


def hang_up(connection: psycopg.Connection[Any] | psycopg.AsyncConnection[Any]) -> None:
    """Shut the socket of a connection down: what waits for it fails at once."""
    with suppress(OSError, psycopg.Error):
        copy = socket.socket(fileno=os.dup(connection.fileno()))
        with copy:
            copy.shutdown(socket.SHUT_RDWR)


@contextmanager
def bounded(connection: psycopg.Connection[Any], seconds: float) -> Iterator[None]:
    """Hang up where the server does not answer in time."""
    timer = Timer(seconds, hang_up, (connection,))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def connect(address: Address, timeout_seconds: float) -> PostgresqlConnection:
    """Return a connection in autocommit mode, for one thread at a time."""
    connection = psycopg.connect(address.conninfo, autocommit=True)
    try:
        adapt(connection)
        with bounded(connection, CONNECT_SECONDS):
            connection.execute(*prepared(timeout_seconds))
    except BaseException:
        connection.close()
        raise
    return PostgresqlConnection(connection)


@contextmanager
def opened(url: str) -> Iterator[PostgresqlConnection]:
    """Open a database that is up to date, or is brought up to date, for one command.

    Raises:
        ConfigurationError: It cannot be this program's database.
    """
    address = address_of(url)
    migrate(address)
    try:
        connection = connect(address, _LOCK_SECONDS)
    except psycopg.Error as error:
        raise unusable(address, error) from error
    try:
        yield connection
    finally:
        connection.inner.close()


def migrations() -> list[str]:
    """Return the SQL of every migration; number n leads from schema version n - 1 to n."""
    folder = resources.files(__package__) / "migrations" / "postgresql"
    files = sorted((f for f in folder.iterdir() if f.name.endswith(".sql")), key=lambda f: f.name)
    return [file.read_text(encoding="utf-8") for file in files]


def migrate(address: Address, to: int | None = None) -> int:
    """Apply the migrations up to version ``to``, or all, and return how many there were to apply.

    Raises:
        ConfigurationError: The database cannot be reached, or cannot be this program's.
    """
    try:
        with psycopg.connect(address.conninfo, autocommit=True) as connection:
            return _migrate(connection, address, migrations()[:to])
    except psycopg.errors.InsufficientPrivilege as error:
        raise ConfigurationError(
            f"Database {address.shown} denies this role what it needs ({_first(error)}); grant it, "
            "or run `ladon-storage migrate` as a role that may change the schema."
        ) from error
    except psycopg.Error as error:
        raise unusable(address, error) from error


def _migrate(connection: psycopg.Connection[Any], address: Address, scripts: list[str]) -> int:
    _check(connection, address)
    connection.execute(*prepared(_LOCK_SECONDS))
    applied = 0
    while _version(connection, address) < len(scripts):
        with connection.transaction():
            connection.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
            version = _version(connection, address)  # another service may have been faster
            if version >= len(scripts):
                break
            if version == 0:
                _begin(connection)
            connection.execute(scripts[version].encode())
            connection.execute("UPDATE schema_version SET version = %s", (version + 1,))
            applied += 1
    return applied


def _begin(connection: psycopg.Connection[Any]) -> None:
    # Where an operator made the schema, this role may not be allowed to: IF NOT EXISTS needs that.
    there = connection.execute("SELECT FROM pg_namespace WHERE nspname = %s", (SCHEMA,)).fetchall()
    if not there:
        connection.execute(f"CREATE SCHEMA {SCHEMA}")
    connection.execute("CREATE TABLE schema_version (version INTEGER NOT NULL)")
    connection.execute("INSERT INTO schema_version VALUES (0)")


def _version(connection: psycopg.Connection[Any], address: Address) -> int:
    [(ours, others)] = connection.execute(
        "SELECT count(*) FILTER (WHERE tablename = 'schema_version'), count(*) FROM pg_tables "
        "WHERE schemaname = %s",
        (SCHEMA,),
    ).fetchall()
    if not ours and not others:
        return 0
    if not ours:
        raise ConfigurationError(
            f"Schema {SCHEMA} of database {address.shown} belongs to another program; choose "
            "another database."
        )
    [(version,)] = connection.execute(_VERSION).fetchall()
    if version > (latest := len(sqlite_migrations())):
        raise ConfigurationError(
            f"Database {address.shown} has schema version {version}, and this program knows "
            f"{latest}; upgrade ladon-storage."
        )
    return int(version)


def _check(connection: psycopg.Connection[Any], address: Address) -> None:
    """Refuse a database that cannot hold every name, and warn of one that may lose writes."""
    [(encoding, fsync, commit)] = connection.execute(
        "SELECT current_setting('server_encoding'), current_setting('fsync'), "
        "current_setting('synchronous_commit')"
    ).fetchall()
    if encoding != "UTF8":
        raise ConfigurationError(
            f"Database {address.shown} has the encoding {encoding}; make one with UTF8."
        )
    if fsync == "off":
        logger.warning(
            "Database %s runs with fsync = off: an acknowledged write can be lost with the power",
            address.shown,
        )
    if commit == "off":
        logger.warning(
            "Database %s has synchronous_commit = off by default; the service's own connections "
            "switch it on",
            address.shown,
        )


class Inspected(NamedTuple):
    """The state of a database.

    Args:
        server: The version of PostgreSQL.
        version: The version of the schema; 0: there is none.
        loses: The setting that is off and lets an acknowledged write be lost; empty: none.
    """

    server: str
    version: int
    loses: str


def inspected(address: Address) -> Inspected:
    """Return the state of a database, and change nothing.

    Raises:
        ConfigurationError: The database cannot be reached, or cannot be this program's.
    """
    try:
        with psycopg.connect(address.conninfo, autocommit=True) as connection:
            connection.execute(*prepared(_LOCK_SECONDS))
            [(server, fsync)] = connection.execute(
                "SELECT current_setting('server_version'), current_setting('fsync')"
            ).fetchall()
            version = _version(connection, address)
    except psycopg.Error as error:
        raise unusable(address, error) from error
    return Inspected(server, version, "fsync" if fsync == "off" else "")


def unusable(address: Address, error: Exception) -> ConfigurationError:
    """Return the error for a database that cannot be used."""
    return ConfigurationError(
        f"Database {address.shown} cannot be used ({_first(error)}); check that PostgreSQL runs "
        "there, and that it lets this role in."
    )


def _first(error: Exception) -> str:
    return databases.driver_error(error)[1]
