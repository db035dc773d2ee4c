"""The servers behind the address of a database, as they hang, fail and take over from each other.

- A server that is promoted begins a new timeline. One of an earlier timeline was the primary before
  it, and is refused: what it stores is lost when it joins the others again.
- All servers of an address are copies of one system. One of another system is refused as long as
  the service runs: its versions have nothing to do with those that were given out.
- The last acknowledged changes are remembered. A new connection to a server without one of them is
  logged as a loss, and the versions that were given out are not given out again.
- A commit that waits for a standby keeps its backend, also when its connection is gone. So few such
  commits are left behind that reads still get their connections.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from contextlib import suppress
from typing import Any, Self

import psycopg

from ladon_storage import databases
from ladon_storage.errors import ConfigurationError, DatabaseError
from ladon_storage.models import Watermark, WatermarkStatus
from ladon_storage.server.postgresql_schema import (
    CONNECT_SECONDS,
    Address,
    PostgresqlConnection,
    adapt,
    bounded,
    connect,
    hang_up,
    prepared,
)
from ladon_storage.server.rows import version_of

logger = logging.getLogger(__name__)

REMEMBERED = 64
"""The acknowledged changes that a new connection is asked for: more than are written at once."""
MOST_ABANDONED = 8
"""The backends whose answer was not waited for, beyond which no change is sent."""

_TIMELINE = """
SELECT system_identifier, CASE WHEN pg_is_in_recovery() THEN 0
ELSE ('x' || substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8))::bit(32)::int END
FROM pg_control_system()
"""
# The retention deletes lines before the stored watermark's: those of renewals, or all older ones.
_KNOWN = """
SELECT pg_is_in_recovery(), pg_sequence_last_value('history_version'), ARRAY(
SELECT version FROM unnest(%s::bigint[], %s::text[], %s::bool[]) AS known(version, source, renews)
WHERE EXISTS (SELECT FROM history WHERE history.version = known.version)
OR EXISTS (SELECT FROM history WHERE source_id = source AND history.version > known.version)
AND (renews OR NOT EXISTS (SELECT FROM history
WHERE source_id = source AND history.version < known.version AND action = 'put')))
"""
_SKIP = "SELECT count(nextval('history_version')) FROM generate_series(1, %s)"
_RUNNING = "SELECT pid, wait_event FROM pg_stat_activity WHERE pid = ANY(%s)"


class RefusedServerError(psycopg.OperationalError):
    """Raised when a server is an earlier primary, or no copy of those that were reached before."""


def refuse_other_systems(address: Address) -> None:
    """Refuse an address of servers that are no copies of each other, as far as they answer.

    Raises:
        ConfigurationError: Two of them belong to different systems.
    """
    found: dict[int, str] = {}
    for each in address.servers():
        with suppress(psycopg.Error), psycopg.connect(each, autocommit=True) as connection:
            with bounded(connection, CONNECT_SECONDS):
                rows = connection.execute(_TIMELINE).fetchall()
            for system, _ in rows:
                found.setdefault(system, f"{connection.info.host}:{connection.info.port}")
    if len(found) > 1:
        raise ConfigurationError(
            f"The servers of database {address.shown} are no copies of each other: "
            f"{' and '.join(found.values())} have data of their own. Name the servers of one "
            "PostgreSQL cluster alone."
        )


class ServiceConnection(psycopg.AsyncConnection[Any]):
    """A connection of a service to the server that writes."""

    warning = ""
    """The last warning of the server, such as that a change is not at a standby."""

    @classmethod
    async def connect(cls, conninfo: str = "", *, servers: Servers, **options: Any) -> Self:  # type: ignore[override]
        """Connect to one of the servers.

        Raises:
            psycopg.Error: None of them accepts the connection, or writes.
        """
        try:
            connection = await super().connect(servers.address.conninfo, **options)
            try:
                await servers.set_up(connection)
            except BaseException:
                await connection.close()
                raise
        except psycopg.Error as error:
            servers.failure = databases.driver_error(error)[1].rpartition(" failed: ")[2]
            raise
        servers.failure = ""
        return connection

    def note(self, notice: psycopg.errors.Diagnostic) -> None:
        """Remember a warning."""
        if notice.severity_nonlocalized == "WARNING":
            self.warning = notice.message_primary or "a warning"


class Servers:
    """The servers of one address, and what is known of them.

    Args:
        address: The address.
        seconds: How long one statement may take.
    """

    def __init__(self, address: Address, seconds: float) -> None:
        self.address = address
        self.failure = ""
        """The reason for which the last connection was not made; empty: it was made."""
        self.abandoned: set[int] = set()
        """The backends whose answer was not waited for."""
        self.lost = 0
        """The acknowledged changes that a server was found to lack."""
        self._seconds = seconds
        self._system: int | None = None
        self._timeline = 0
        self._acknowledged: deque[tuple[int, str, bool]] = deque(maxlen=REMEMBERED)
        self._greatest = 0

    def acknowledge(self, after: Watermark) -> None:
        """Remember a change whose caller will be answered, by the watermark that it left."""
        version, may_renew = version_of(after), after.status is WatermarkStatus.RUNNING
        self._acknowledged.append((version, after.source_id, may_renew))
        self._greatest = max(self._greatest, version)

    async def set_up(self, connection: ServiceConnection) -> None:
        """Make a new connection ready, and find out whose it is.

        Raises:
            psycopg.Error: It cannot be used.
        """
        adapt(connection)
        connection.add_notice_handler(connection.note)
        loop = asyncio.get_running_loop()
        timer = loop.call_later(self._seconds, hang_up, connection)
        try:
            await connection.execute(*prepared(self._seconds))
            # A plan that is kept from when there were few sources must do for many.
            await connection.execute("SET enable_seqscan = off")
            await self._admit(connection)
            if self._greatest:
                await self._compare(connection)
        finally:
            timer.cancel()

    def abandon(self, connection: psycopg.AsyncConnection[Any]) -> None:
        """Hang up on a server that does not answer in time."""
        self.abandoned.add(connection.info.backend_pid)
        hang_up(connection)

    async def check_abandoned(self, connection: psycopg.AsyncConnection[Any]) -> None:
        """Refuse a change where too many before it have not ended.

        Raises:
            DatabaseError: Nothing should be sent.
        """
        try:
            rows = await (await connection.execute(_RUNNING, (list(self.abandoned),))).fetchall()
        except psycopg.Error as error:
            raise DatabaseError(
                f"The database did not store the change ({databases.driver_error(error)[1]}); try "
                "again later."
            ) from error
        self.abandoned.intersection_update(pid for pid, _ in rows)
        if len(rows) >= MOST_ABANDONED:
            waiting = sum(event == "SyncRep" for _, event in rows)
            raise DatabaseError(
                f"The database did not store the change: {len(rows)} earlier ones have not ended, "
                f"of which {waiting} wait for a standby; try again later."
            )

    def connect(self, seconds: float) -> PostgresqlConnection:
        """Return a connection for another thread.

        Args:
            seconds: How long one statement may take.

        Raises:
            psycopg.Error: None of the servers accepts it, or writes.
        """
        for is_last in (False, True):
            connection = connect(self.address, seconds)
            try:
                with bounded(connection.inner, self._seconds):
                    self._check(connection.inner.execute(_TIMELINE).fetchall(), connection.inner)
            except RefusedServerError:
                connection.inner.close()
                if is_last:
                    raise
                continue
            except psycopg.Error:
                if connection.inner.closed:
                    raise
            break
        return connection

    async def _admit(self, connection: psycopg.AsyncConnection[Any]) -> None:
        """Refuse a primary that is no longer the one, and a server that never was one of them."""
        try:
            rows = await (await connection.execute(_TIMELINE)).fetchall()
        except psycopg.Error:
            if connection.closed:
                raise
            return  # a service of another provider may not answer this
        self._check(rows, connection)

    def _check(
        self,
        rows: list[tuple[int, int]],
        connection: psycopg.Connection[Any] | psycopg.AsyncConnection[Any],
    ) -> None:
        for system, timeline in rows:
            server = f"server {connection.info.host}:{connection.info.port}"
            if self._system not in (None, system):
                self.address = self.address.rotated()
                raise RefusedServerError(
                    f"{server} is no copy of the database that this service began with: name the "
                    "servers of one PostgreSQL cluster alone, or restart the service if the "
                    "database was moved on purpose"
                )
            self._system = system
            if 0 < timeline < self._timeline:
                self.address = self.address.rotated()
                raise RefusedServerError(
                    f"{server} was replaced by another one: its timeline is {timeline}, and not "
                    f"{self._timeline}"
                )
            self._timeline = timeline or self._timeline

    async def _compare(self, connection: psycopg.AsyncConnection[Any]) -> None:
        """Look whether a server has the last acknowledged changes."""
        columns = [[each[column] for each in self._acknowledged] for column in range(3)]
        cursor = await connection.execute(_KNOWN, columns)
        [(is_standby, last, found)] = await cursor.fetchall()
        if is_standby:
            return
        # Without those that another connection has found out meanwhile.
        left = {version for version, _, _ in self._acknowledged}
        missing = left.intersection(columns[0]).difference(found)
        if missing:
            self._acknowledged.clear()
            self.lost += len(missing)
            logger.error(
                "Database %s lacks %d of the last %d acknowledged changes, such as version %d: it "
                "is older than they are, as after a failover to an asynchronous standby. The next "
                "run of each source goes on at its sink's position",
                self.address.shown, len(missing), len(columns[0]), min(missing),
            )  # fmt: skip
        if (behind := self._greatest - (last or 0)) > 0:
            await connection.execute(_SKIP, (behind,))
