"""The store's database in PostgreSQL, which any number of services share.

- Services hold no lock between two statements, and share nothing but the database.
- Each statement ends in bounded time. At its end the socket is shut down rather than the statement
  cancelled: a server that hangs answers no cancellation, and a commit must not be cancelled while
  it waits for a standby.
- A write is judged by what this service wrote last, if it did. The statement refuses it where
  something else is stored, and only then is that read.
- A read whose connection was lost is made again over another one. A write is not: it may be stored.
  Its caller sends it again, and the store recognises it.
- Tokens are kept in memory, and read again every second: each request needs them.
"""

from __future__ import annotations

import asyncio
import json
import logging
import select
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, TypeVar

import psycopg
import psycopg_pool
from psycopg_pool import AsyncConnectionPool

from ladon_storage.errors import DatabaseError, WatermarkConflictError, WatermarkInFutureError
from ladon_storage.models import Watermark
from ladon_storage.server import retention
from ladon_storage.server.access import Token
from ladon_storage.server.backend import Row
from ladon_storage.server.changes import Line, Note, Write, Written
from ladon_storage.server.dialect import Dialect, statement
from ladon_storage.server.postgresql_gathered import GatheredReads, GatheredWrites, Outcome
from ladon_storage.server.postgresql_scans import Scans
from ladon_storage.server.postgresql_schema import (
    address_of,
    migrate,
    unusable,
)
from ladon_storage.server.postgresql_servers import (
    MOST_ABANDONED,
    Servers,
    ServiceConnection,
    refuse_other_systems,
)
from ladon_storage.server.postgresql_writes import (
    SELECT,
    SELECT_LINE,
    Change,
    fetched,
    stored,
    stored_together,
    unread,
    unstored,
)
from ladon_storage.server.rows import (
    SET_CHECKED,
    to_length,
    to_microseconds,
    to_watermark,
    version_of,
)

logger = logging.getLogger(__name__)

T = TypeVar("T")

SECONDS = 5.0
"""The longest time for one read or write, from its call to its end."""
SCAN_SECONDS = 20.0
"""The longest time for a read that grows with the number of rows."""
PRUNE_SECONDS = 600.0
"""The longest time for one look for lines that are beyond the bounds."""
TOKENS_SECONDS = 1.0
"""The time between two reads of the tokens: how long a revoked one still holds."""
TOKENS_AGE_SECONDS = 15.0
"""The age at which tokens that could not be read again admit no request."""
MOST_IN_MIND = 250
"""The most watermarks that are kept in mind after a write: the largest take half a MiB."""
LEAST_CONNECTIONS, MOST_CONNECTIONS = 2, 20
"""The connections of one service, besides at most two that scan."""

_SET_CHECKED = statement(SET_CHECKED)
_TOKENS = "SELECT digest, name, read_only, prefix FROM tokens"


def _keep_limits(_: object, limits: Mapping[str, timedelta]) -> dict[str, Any]:
    ages = {source_id: to_length(limit) for source_id, limit in limits.items()}
    return {"limits": json.dumps(ages)}


class _Turn:
    """What one write of a source holds at a time, and how many hold it or wait for it."""

    __slots__ = ("lock", "writes")

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.writes = 0


class PostgresqlBackend:
    """The watermarks in a database of PostgreSQL; made by ``open``, for one event loop."""

    dialect = Dialect(
        "(SELECT key AS source_id, CAST(value AS BIGINT) AS age "
        "FROM json_each_text(CAST(:limits AS json))) AS limits",
        _keep_limits,
        "strpos(folded, :search) > 0",
    )

    def __init__(self, servers: Servers, pool: AsyncConnectionPool[ServiceConnection]) -> None:
        self._servers = servers
        self._pool = pool
        self._draining: asyncio.Task[None] | None = None
        self._loop = asyncio.get_running_loop()
        self._turns: dict[str, _Turn] = {}
        self._writing: set[asyncio.Future[Any]] = set()
        self._in_mind: dict[str, Watermark] = {}
        self._reads = GatheredReads(lambda names: self._fetch(SELECT, (names,)))
        self._writes = GatheredWrites(self._store)
        self._closed = False
        self._scans = Scans(servers.connect)
        self._tokens: dict[bytes, Token] = {}
        self._tokens_read = self._loop.time()
        self._renewing = asyncio.create_task(self._renew_tokens())

    @classmethod
    async def open(cls, url: str) -> PostgresqlBackend:
        """Open the database; migrate it if necessary.

        Raises:
            ConfigurationError: It cannot be this program's database.
        """
        address = address_of(url)
        await asyncio.to_thread(refuse_other_systems, address)
        await asyncio.to_thread(migrate, address)
        # Each lending would be a line of its log, and each failed attempt one beside ours.
        logging.getLogger("psycopg.pool").setLevel(logging.ERROR)
        servers = Servers(address, SECONDS)
        pool = AsyncConnectionPool(
            connection_class=ServiceConnection,
            kwargs={"autocommit": True, "servers": servers},
            min_size=LEAST_CONNECTIONS,
            max_size=MOST_CONNECTIONS,
            open=False,
            # Its pauses double; a new request begins with the shortest again.
            reconnect_timeout=2.0,
            name="ladon-storage",
        )
        await pool.open()
        backend = cls(servers, pool)
        try:
            await backend._read_tokens()
        except DatabaseError as error:
            await backend.close()
            raise unusable(address, error) from error
        return backend

    async def close(self) -> None:
        """Finish the writes that wait, and close the connections."""
        self._closed = True
        while self._writing:  # one that is judged again is another one
            await asyncio.wait(self._writing)
        await self._writes.end()
        if self._draining is not None:
            await self._draining
        self._renewing.cancel()
        with suppress(asyncio.CancelledError):
            await self._renewing
        await self._pool.close()
        await self._scans.close()

    @property
    def lost_changes(self) -> int:
        """The acknowledged changes that a server was found to lack, since the service began."""
        return self._servers.lost

    async def read(self, source_id: str) -> Row | None:
        """Return the row of a source's watermark."""
        return await self._reads.read(source_id)

    async def write(self, write: Write, note: Note) -> Written:
        """Store a change durably, or raise the rule's refusal."""
        if self._closed:
            raise DatabaseError("The database is closed; start the service again.")
        source_id, deadline = write.source_id, self._loop.time() + SECONDS
        is_free = source_id not in self._turns
        if is_free and (change := self._judged_in_mind(write)) is not None:
            turn = self._enter(source_id)
            await turn.lock.acquire()  # at once
            end = partial(self._end, source_id, note, turn)
            written = await self._until_end(self._writes.write(change, deadline, end))
            if written is not None:
                return written
        # In a task of its own: a caller that is cancelled does not cancel the statement.
        task = asyncio.create_task(self._write(write, note, deadline))
        return await asyncio.shield(self._until_end(task))

    async def scan(self, read: Callable[[Any], T], *, prunes: bool = False) -> T:
        """Return what a function reads, in another thread."""
        seconds = PRUNE_SECONDS if prunes else SCAN_SECONDS
        try:
            async with asyncio.timeout(seconds + SECONDS):
                return await self._scans.run(read, seconds, keep=not prunes)
        except TimeoutError:
            raise DatabaseError("The database is busy; try again later.") from None
        except psycopg.Error as error:
            raise unread(error) from error

    async def delete_lines(self, versions: Sequence[int]) -> None:
        """Delete lines of history by their numbers."""
        await self.scan(partial(retention.delete_lines, versions=versions))

    async def check(self, at: int) -> None:
        """Read, and make a write durable."""
        await self.read("")
        await self._make_durable(at)

    def find_token(self, digest: bytes) -> Token | None:
        """Return the stored token of a digest, if there is one."""
        return self._known_tokens().get(digest)

    def has_tokens(self) -> bool:
        """Return whether any token is stored."""
        return bool(self._known_tokens())

    async def _make_durable(self, at: int) -> None:
        """Wait until all that was stored before is durable, at the standbys too."""
        try:
            async with self._lent(self._loop.time() + SECONDS, writes=True) as connection:
                await connection.execute(_SET_CHECKED, (at,), prepare=True)
        except psycopg.Error as error:
            raise unstored(error) from error

    def _judged_in_mind(self, write: Write) -> Change | None:
        """Judge a write by what was written last here, and return its change.

        ``None``: what is stored must be read, as it decides, or gives the reason of a refusal.
        """
        before = self._in_mind.pop(write.source_id, None)
        if before is None:
            return None
        try:
            line = write.judge(before)
        except (WatermarkConflictError, WatermarkInFutureError):
            return None
        if line is None or line.after is None:
            return None
        return Change(write.source_id, before, line)

    async def _write(self, write: Write, note: Note, deadline: float) -> Written:
        async with self._turn(write.source_id, deadline):
            while True:
                row = await self.read(write.source_id)
                before = None if row is None else to_watermark(row)
                line = await self._judged(write, before)
                end = partial(self._end, write.source_id, note, None)
                if line is None:
                    end(unchanged := Written(before, before))
                    return unchanged
                change = Change(write.source_id, before, line)
                if change.replaces:
                    written = await self._writes.write(change, deadline, end)
                else:
                    async with self._lent(deadline, writes=True) as connection:
                        written = await stored(connection, change)
                    end(written)
                if written is not None:
                    return written
                if self._loop.time() >= deadline:
                    raise DatabaseError(
                        "The database did not store the change: other writes of its source were "
                        "faster; try again later."
                    )

    def _end(self, source_id: str, note: Note, turn: _Turn | None, outcome: Outcome) -> None:
        """Note a change that was stored, and keep in mind what is stored now."""
        if turn is not None:
            turn.lock.release()
            self._leave(source_id, turn)
        if not isinstance(outcome, Written):
            return
        if outcome.after is not None:
            self._servers.acknowledge(outcome.after)
            if len(self._in_mind) >= MOST_IN_MIND:
                self._in_mind.clear()
            self._in_mind[source_id] = outcome.after
        note(outcome)

    async def _store(self, changes: Sequence[Change], deadline: float) -> Sequence[Outcome]:
        async with self._lent(deadline, writes=True) as connection:
            return await stored_together(connection, changes)

    async def _judged(self, write: Write, before: Watermark | None) -> Line | None:
        try:
            return write.judge(before)
        except WatermarkConflictError as conflict:
            if conflict.status == 412 and before is not None and write.is_repeated is not None:
                lines = await self._fetch(SELECT_LINE, (version_of(before),))
                if lines and write.is_repeated(lines[0]):
                    # A restart shows a change that had not yet arrived at a standby.
                    await self._make_durable(to_microseconds(datetime.now(UTC)))
                    return None
            raise

    def _until_end(self, writing: asyncio.Future[T]) -> asyncio.Future[T]:
        """Return it, for which `close` waits."""
        self._writing.add(writing)
        writing.add_done_callback(self._forget)
        return writing

    def _forget(self, writing: asyncio.Future[Any]) -> None:
        self._writing.discard(writing)
        if not writing.cancelled():
            writing.exception()  # of a caller that does not wait any more

    @asynccontextmanager
    async def _turn(self, source_id: str, deadline: float) -> AsyncIterator[None]:
        """Let one write of this process at a time be judged: the others would be judged again."""
        turn = self._enter(source_id)
        try:
            try:
                async with asyncio.timeout_at(deadline):
                    await turn.lock.acquire()
            except TimeoutError:
                raise DatabaseError(
                    "The database did not store the change: other writes of its source wait for "
                    "it, too; try again later."
                ) from None
            try:
                yield
            finally:
                turn.lock.release()
        finally:
            self._leave(source_id, turn)

    def _enter(self, source_id: str) -> _Turn:
        turn = self._turns.get(source_id)
        if turn is None:
            turn = self._turns[source_id] = _Turn()
        turn.writes += 1
        return turn

    def _leave(self, source_id: str, turn: _Turn) -> None:
        turn.writes -= 1
        if not turn.writes:
            del self._turns[source_id]

    @asynccontextmanager
    async def _lent(
        self, deadline: float, *, writes: bool = False
    ) -> AsyncIterator[ServiceConnection]:
        """Lend a connection until a deadline, at which its socket is shut down."""
        while True:
            try:
                connection = await self._pool.getconn(max(0.0, deadline - self._loop.time()))
            except (psycopg_pool.PoolTimeout, psycopg_pool.PoolClosed) as error:
                why = f" ({self._servers.failure})" if self._servers.failure else ""
                raise DatabaseError(
                    f"The database gave no connection in {SECONDS:g} s{why}; try again later."
                ) from error
            if not _was_lost(connection):
                break
            await connection.close()
            await self._pool.putconn(connection)
        timer = self._loop.call_at(deadline, self._give_up, connection, self._loop.time())
        try:
            if writes and len(self._servers.abandoned) >= MOST_ABANDONED:
                await self._servers.check_abandoned(connection)
            yield connection
        except psycopg.errors.ReadOnlySqlTransaction:
            await connection.close()  # the next one may lead to the server that writes
            raise
        finally:
            timer.cancel()
            await self._pool.putconn(connection)

    def _give_up(self, connection: ServiceConnection, lent_at: float) -> None:
        self._servers.abandon(connection)
        # A server that hangs answers none of the others either, and each would cost a request.
        has_waited = self._loop.time() - lent_at > SECONDS / 2
        if has_waited and (self._draining is None or self._draining.done()):
            self._scans.drop_idle()
            self._draining = asyncio.create_task(self._pool.drain())

    async def _fetch(self, query: str, values: Sequence[Any] = ()) -> list[Row]:
        deadline = self._loop.time() + SECONDS
        while True:
            try:
                async with self._lent(deadline) as connection:
                    return await fetched(connection, query, values)
            except psycopg.Error as error:
                if not connection.closed or self._loop.time() >= deadline:
                    raise unread(error) from error

    async def _renew_tokens(self) -> None:
        # Not for ever: before Python 3.12 a wait that has just ended swallows a cancellation.
        while not self._closed:
            await asyncio.sleep(TOKENS_SECONDS)
            with suppress(DatabaseError):  # after a while no request is admitted
                await self._read_tokens()

    async def _read_tokens(self) -> None:
        asked = self._loop.time()
        rows = await self._fetch(_TOKENS)
        self._tokens = {
            bytes(digest): Token(name, bool(read_only), prefix)
            for digest, name, read_only, prefix in rows
        }
        self._tokens_read = asked

    def _known_tokens(self) -> dict[bytes, Token]:
        age = self._loop.time() - self._tokens_read
        if age > TOKENS_AGE_SECONDS:
            raise DatabaseError(
                f"The database could not be read: its tokens are {age:.0f} s old; try again later."
            )
        return self._tokens


def _was_lost(connection: ServiceConnection) -> bool:
    """Return whether the other side has ended an idle connection: it has something to say."""
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    return bool(poll.poll(0))
