"""Watermarks and their history: the rules of each change, and nothing of HTTP.

- A change and its line of history are one transaction, and ``models.apply_update`` is the one rule
  of every write. The version of a watermark is the number of that line.
- Every change is one line in the log, written after the change is stored and before the response.
- A write whose response was lost may come again. If its precondition fails only because it is
  stored already (same run, same status, same timestamp), the response is the stored watermark.
- The database is a `Backend`: a SQLite file, or PostgreSQL for services on several hosts.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from ladon_storage.errors import ConfigurationError, DatabaseError
from ladon_storage.models import (
    HONEST_SKEW,
    RUN_LEASE,
    UNCONDITIONAL,
    ChangeAction,
    HistoryPage,
    Precondition,
    Watermark,
    WatermarkPage,
    WatermarkReset,
    WatermarkStatus,
    WatermarkUpdate,
    apply_update,
    check_not_in_future,
    check_precondition,
    meant,
)
from ladon_storage.server.access import Token
from ladon_storage.server.backend import Backend
from ladon_storage.server.changes import Line, Write, Written
from ladon_storage.server.dialect import Connection
from ladon_storage.server.overview import (
    Details,
    Listing,
    Overview,
    SourceState,
    overview,
    source_state,
)
from ladon_storage.server.retention import Retention, Rule, rules
from ladon_storage.server.rows import (
    COLUMNS,
    HISTORY_COLUMNS,
    to_answer,
    to_change,
    to_length,
    to_microseconds,
    to_watermark,
)

logger = logging.getLogger(__name__)

_MOVED = (
    "AND (from_timestamp <> to_timestamp OR (from_timestamp IS NULL) <> (to_timestamp IS NULL)) "
)


class StoredWatermark(NamedTuple):
    """The watermark after a write, and whether the write created it."""

    watermark: Watermark
    created: bool


class WatermarkDatabase:
    """The watermarks in one database; made by ``open``, for one event loop.

    Every method raises ``DatabaseError`` when the database fails. Then nothing was stored, unless
    the error says that this is not known.
    """

    def __init__(self, backend: Backend, now: Callable[[], datetime]) -> None:
        self.now = now
        """The service's clock."""
        self.limits: Mapping[str, timedelta] = {}
        """The greatest age of each source that is no fault, by its name."""
        self._backend = backend

    @classmethod
    async def open(
        cls, database: Path | str, now: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> WatermarkDatabase:
        """Open the database; create and migrate it if necessary.

        Args:
            database: The file, or the address of a database in PostgreSQL.
            now: The service's clock, in UTC.

        Raises:
            ConfigurationError: It cannot be this program's database.
        """
        if isinstance(database, Path):
            from ladon_storage.server.sqlite import SqliteBackend

            return cls(await SqliteBackend.open(database), now)
        try:
            from ladon_storage.server.postgresql import PostgresqlBackend
        except ImportError as error:
            raise ConfigurationError(
                "A service over PostgreSQL requires psycopg. Install ladon-storage[postgresql]."
            ) from error
        return cls(await PostgresqlBackend.open(database), now)

    @property
    def lost_changes(self) -> int:
        """The acknowledged changes that the database was found to lack, as after a failover."""
        return self._backend.lost_changes

    async def close(self) -> None:
        """Finish the writes that wait, and close the database."""
        await self._backend.close()

    async def get(self, source_id: str) -> Watermark | None:
        """Return the watermark with its version tag, or ``None``: never collected."""
        row = await self._backend.read(source_id)
        return None if row is None else to_watermark(row)

    async def read(self, source_id: str) -> tuple[bytes, str] | None:
        """Return the watermark as JSON with its version tag, or ``None``: never collected."""
        row = await self._backend.read(source_id)
        return None if row is None else to_answer(row)

    async def put(
        self,
        source_id: str,
        update: WatermarkUpdate,
        precondition: Precondition = UNCONDITIONAL,
        *,
        actor: str | None = None,
    ) -> StoredWatermark:
        """Store the outcome of a run, by the rule of ``models.apply_update``.

        Args:
            source_id: The source.
            update: The write.
            precondition: The version that must be stored.
            actor: The author, for the history.

        Raises:
            WatermarkConflictError: The rule refuses it.
            WatermarkInFutureError: The update is too far ahead of the clock.
        """

        def judge(stored: Watermark | None) -> Line:
            now = self.now()
            new = apply_update(stored, source_id, update, now, precondition)
            return Line(
                ChangeAction.PUT,
                now,
                new,
                actor,
                update.run_id,
                update.timestamp,
                ledger=update.ledger,
            )

        def note(written: Written) -> None:
            logger.info(
                "Watermark %r: run %r from %s reported %s at %s; version %s",
                source_id, update.run_id, actor, update.status, update.timestamp.isoformat(),
                written.after and written.after.etag,
                extra={"source_id": source_id, "run_id": update.run_id},
            )  # fmt: skip

        is_repeated = None if update.run_id is None else partial(_is_of, update)
        before, after = await self._backend.write(Write(source_id, judge, is_repeated), note)
        assert after is not None  # noqa: S101 - a put leaves a watermark
        return StoredWatermark(after, created=before is None)

    async def reset(
        self,
        source_id: str,
        reset: WatermarkReset,
        precondition: Precondition = UNCONDITIONAL,
        *,
        actor: str | None = None,
    ) -> Watermark | None:
        """Move a watermark to a timestamp, and leave the outcome of its last run as it is.

        The precondition ``if_none_match`` makes the watermark of a source that was never collected.

        Returns:
            The watermark, or ``None`` where there is none to move.

        Raises:
            WatermarkConflictError: The precondition fails.
            WatermarkInFutureError: The timestamp is far in the future, as with a mistyped year.
        """

        def judge(stored: Watermark | None) -> Line | None:
            check_precondition(stored, source_id, precondition)
            now = self.now()
            if stored is not None:
                new = stored.model_copy(
                    # An operator wrote it, not a run.
                    update={"last_successful_timestamp": reset.timestamp, "run_id": None}
                )
            elif precondition.if_none_match:
                new = apply_update(None, source_id, WatermarkUpdate(timestamp=reset.timestamp), now)
            else:
                return None
            check_not_in_future(source_id, reset.timestamp, now)
            return Line(
                ChangeAction.RESET,
                now,
                new,
                reset.actor or actor,
                timestamp=reset.timestamp,
                reason=reset.reason,
            )

        def note(written: Written) -> None:
            if written.after is not None:
                logger.info(
                    "Watermark %r: %r from %s reset it to %s; version %s",
                    source_id, reset.actor, actor, reset.timestamp.isoformat(), written.after.etag,
                    extra={"source_id": source_id},
                )  # fmt: skip

        return (await self._backend.write(Write(source_id, judge), note)).after

    async def delete(
        self,
        source_id: str,
        precondition: Precondition = UNCONDITIONAL,
        *,
        actor: str | None = None,
        reason: str | None = None,
    ) -> bool:
        """Delete a watermark, and keep its history; return whether there was one."""

        def judge(stored: Watermark | None) -> Line | None:
            check_precondition(stored, source_id, precondition)
            if stored is None:
                return None
            return Line(ChangeAction.DELETE, self.now(), None, actor, reason=reason)

        def note(written: Written) -> None:
            if written.before is not None:
                logger.info(
                    "Watermark %r: %s deleted it", source_id, actor, extra={"source_id": source_id}
                )

        return (await self._backend.write(Write(source_id, judge), note)).before is not None

    async def page(
        self,
        *,
        status: WatermarkStatus | None = None,
        older_than_seconds: int | None = None,
        stale: bool | None = None,
        prefix: str = "",
        limit: int = 100,
        after: str = "",
    ) -> WatermarkPage:
        """Return a page of watermarks by ``source_id``, which stays in place while rows change.

        Args:
            status: Only those whose last run had this outcome.
            older_than_seconds: Only those whose last success is longer ago, or that have none, or
                one in the future.
            stale: Only those whose run does not end, or only the others.
            prefix: Only those whose names begin with it.
            limit: The most watermarks of the page.
            after: The cursor of the page before.
        """
        where: list[str] = ["source_id > ?"]
        values: list[Any] = [after]
        if prefix:
            where.append("substr(source_id, 1, length(CAST(? AS TEXT))) = ? AND source_id >= ?")
            values += [prefix] * 3
        if status is not None:
            where.append("status = ?")
            values.append(status.value)
        if older_than_seconds is not None:
            where.append(
                "(last_successful_timestamp IS NULL "
                "OR last_successful_timestamp NOT BETWEEN ? AND ?)"
            )
            now = to_microseconds(self.now())
            values += [now - older_than_seconds * 1_000_000, now + to_length(HONEST_SKEW)]
        if stale is not None:
            where.append(
                f"{'' if stale else 'NOT '}(status = 'running' AND "
                "last_run_timestamp + coalesce(lease_microseconds, ?) < ?)"
            )
            values += [to_length(RUN_LEASE), to_microseconds(self.now())]
        query = (
            f"SELECT {COLUMNS} FROM watermarks "  # noqa: S608 - constants; values are bound
            f"WHERE {' AND '.join(where)} ORDER BY source_id LIMIT ?"
        )
        rows = await self._rows(query, (*values, limit + 1))
        watermarks = [_for_people(to_watermark(row)) for row in rows[:limit]]
        return WatermarkPage(
            watermarks=watermarks,
            next=watermarks[-1].source_id if len(rows) > limit else None,
        )

    async def history(
        self,
        source_id: str,
        *,
        moved: bool = False,
        limit: int = 100,
        before: int | None = None,
    ) -> HistoryPage:
        """Return a page of a source's changes, the latest first; deleted sources have theirs too.

        Args:
            source_id: The source.
            moved: Only the changes that moved or deleted the watermark.
            limit: The most changes of the page.
            before: The cursor of the page before.
        """
        query = (
            f"SELECT {HISTORY_COLUMNS} FROM history "  # noqa: S608 - constants
            "WHERE source_id = ? AND version < ? "
            f"{_MOVED if moved else ''}"
            "ORDER BY version DESC LIMIT ?"
        )
        latest = 2**63 - 1 if before is None else before
        rows = await self._rows(query, (source_id, latest, limit + 1))
        changes = [to_change(row) for row in rows[:limit]]
        return HistoryPage(changes=changes, next=changes[-1].version if len(rows) > limit else None)

    async def overview(self, listing: Listing) -> Overview:
        """Return a page of sources with their states."""
        dialect = self._backend.dialect
        return await self._backend.scan(
            lambda connection: overview(connection, dialect, self.now(), self.limits, listing)
        )

    async def source_state(self, source_id: str) -> tuple[SourceState, Details] | None:
        """Return one source with its state; ``None``: never collected."""
        dialect = self._backend.dialect
        return await self._backend.scan(
            lambda connection: source_state(connection, dialect, self.now(), self.limits, source_id)
        )

    def find_token(self, digest: bytes) -> Token | None:
        """Return the stored token of a digest, if there is one."""
        return self._backend.find_token(digest)

    def has_tokens(self) -> bool:
        """Return whether any token is stored."""
        return self._backend.has_tokens()

    async def prune(
        self,
        retention: Retention = Retention(),  # noqa: B008 - immutable
        *,
        batches: int | None = None,
    ) -> int:
        """Delete the history beyond the bounds, and return how many lines went.

        Args:
            retention: The bounds.
            batches: The most batches of this call; ``None``: as many as there are.

        Raises:
            DatabaseError: A rule could not be applied; the others were.
        """
        total, left = 0, batches
        failure: DatabaseError | None = None
        for rule in rules(retention, self.now()):
            last = 0
            try:
                while left != 0 and (
                    versions := await self._backend.scan(partial(_batch, rule, last), prunes=True)
                ):
                    await self._backend.delete_lines(versions)
                    total, last = total + len(versions), versions[-1]
                    left = None if left is None else left - 1
            except DatabaseError as error:
                failure = failure or error
        if failure is not None:
            raise failure
        return total

    async def check(self) -> None:
        """Read, and make a write durable, as the next request may need to.

        Raises:
            DatabaseError: One of the two failed.
        """
        await self._backend.check(to_microseconds(self.now()))

    async def _rows(self, query: str, arguments: Sequence[Any]) -> list[Any]:
        return await self._backend.scan(
            lambda connection: connection.execute(query, arguments).fetchall()
        )


def _batch(rule: Rule, after: int, connection: Connection) -> list[int]:
    return rule(connection, after)


def _for_people(watermark: Watermark) -> Watermark:
    """Return a watermark as a list shows it: *nothing collected* is ``None``."""
    success = watermark.last_successful_timestamp
    if success == meant(success):
        return watermark
    return watermark.model_copy(update={"last_successful_timestamp": None})


def _is_of(update: WatermarkUpdate, line: tuple[Any, ...]) -> bool:
    """Return whether a line's run, status and timestamp are those of an update."""
    return line == (update.run_id, update.status.value, to_microseconds(update.timestamp))
