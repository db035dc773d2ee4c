"""Watermarks and their history in the database: SQL, and nothing of HTTP.

- A change and its line of history are one transaction, and ``models.apply_update`` is the one rule
  of every write. The version of a watermark is the number of that line.
- A watermark is read in the thread of the event loop: a point read by primary key takes
  microseconds and, in WAL, waits for no writer. Reads that grow with the number of rows run in a
  separate thread.
- Every change is one line in the log, written after the change is stored and before the response.
  The lines of one commit are written together: a line between two responses takes twice as long.
- A write whose response was lost may come again. If its precondition fails only because it is
  stored already (same run, same status, same timestamp), the response is the stored watermark.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from ladon_storage.errors import DatabaseError, WatermarkConflictError
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
from ladon_storage.server.database import GroupCommit, connect, open_database
from ladon_storage.server.overview import (
    Details,
    Listing,
    Overview,
    SourceState,
    overview,
    source_state,
)
from ladon_storage.server.retention import Retention, Rule, delete_lines, rules
from ladon_storage.server.rows import (
    COLUMNS,
    HISTORY_COLUMNS,
    record,
    replace,
    select,
    select_answer,
    to_change,
    to_length,
    to_microseconds,
    to_watermark,
)

logger = logging.getLogger(__name__)

_READ_TIMEOUT_SECONDS = 1.0


class StoredWatermark(NamedTuple):
    """The watermark after a write, and whether the write created it."""

    watermark: Watermark
    created: bool


class WatermarkDatabase:
    """The watermarks in one SQLite file; made by ``open``, for one event loop.

    Every method raises ``DatabaseError`` when the database fails; then nothing was stored.
    """

    def __init__(
        self, path: Path, connection: sqlite3.Connection, now: Callable[[], datetime]
    ) -> None:
        self.now = now
        """The service's clock."""
        self.limits: Mapping[str, timedelta] = {}
        """The greatest age of each source that is no fault, by its name."""
        self._writer = GroupCommit(connection, path)
        self._reader = connect(path, _READ_TIMEOUT_SECONDS)
        self._scanner = connect(path)
        self._scans = ThreadPoolExecutor(1, thread_name_prefix="storage-scan")

    @classmethod
    async def open(
        cls, path: Path, now: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> WatermarkDatabase:
        """Open the database; create and migrate it if necessary.

        Args:
            path: The file.
            now: The service's clock, in UTC.

        Raises:
            ConfigurationError: The file cannot be this program's database.
        """
        return cls(path, await asyncio.to_thread(open_database, path), now)

    async def close(self) -> None:
        """Finish the writes that wait, and close the file."""
        await self._writer.close()
        # In this thread: while the interpreter ends, no other takes work.
        self._scans.shutdown()
        self._reader.close()
        self._scanner.close()

    def get(self, source_id: str) -> Watermark | None:
        """Return the watermark with its version tag, or ``None``: never collected."""
        try:
            return select(self._reader, source_id)
        except sqlite3.Error as error:
            raise _unread(error) from error

    def read(self, source_id: str) -> tuple[bytes, str] | None:
        """Return the watermark as JSON with its version tag, or ``None``: never collected."""
        try:
            return select_answer(self._reader, source_id)
        except sqlite3.Error as error:
            raise _unread(error) from error

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

        def change(connection: sqlite3.Connection) -> StoredWatermark:
            stored = select(connection, source_id)
            now = self.now()
            try:
                new = apply_update(stored, source_id, update, now, precondition)
            except WatermarkConflictError as conflict:
                if conflict.status == 412 and stored and _is_replay(connection, stored, update):
                    return StoredWatermark(stored, created=False)
                raise
            version = record(
                connection,
                source_id,
                ChangeAction.PUT,
                now,
                stored,
                new,
                actor=actor,
                run_id=update.run_id,
                timestamp=update.timestamp,
                ledger=update.ledger,
            )
            return StoredWatermark(replace(connection, new, version), created=stored is None)

        def note(outcome: StoredWatermark) -> None:
            logger.info(
                "Watermark %r: run %r from %s reported %s at %s; version %s",
                source_id, update.run_id, actor, update.status, update.timestamp.isoformat(),
                outcome.watermark.etag, extra={"source_id": source_id, "run_id": update.run_id},
            )  # fmt: skip

        return await self._writer.apply(change, note)

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

        def change(connection: sqlite3.Connection) -> Watermark | None:
            stored = select(connection, source_id)
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
            version = record(
                connection,
                source_id,
                ChangeAction.RESET,
                now,
                stored,
                new,
                actor=reset.actor or actor,
                timestamp=reset.timestamp,
                reason=reset.reason,
            )
            return replace(connection, new, version)

        def note(watermark: Watermark | None) -> None:
            if watermark is not None:
                logger.info(
                    "Watermark %r: %r from %s reset it to %s; version %s",
                    source_id, reset.actor, actor, reset.timestamp.isoformat(), watermark.etag,
                    extra={"source_id": source_id},
                )  # fmt: skip

        return await self._writer.apply(change, note)

    async def delete(
        self,
        source_id: str,
        precondition: Precondition = UNCONDITIONAL,
        *,
        actor: str | None = None,
        reason: str | None = None,
    ) -> bool:
        """Delete a watermark, and keep its history; return whether there was one."""

        def change(connection: sqlite3.Connection) -> bool:
            stored = select(connection, source_id)
            check_precondition(stored, source_id, precondition)
            if stored is None:
                return False
            record(
                connection,
                source_id,
                ChangeAction.DELETE,
                self.now(),
                stored,
                None,
                actor=actor,
                reason=reason,
            )
            connection.execute("DELETE FROM watermarks WHERE source_id = ?", (source_id,))
            return True

        def note(was_there: bool) -> None:
            if was_there:
                logger.info(
                    "Watermark %r: %s deleted it", source_id, actor, extra={"source_id": source_id}
                )

        return await self._writer.apply(change, note)

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
            where.append("substr(source_id, 1, ?) = ? AND source_id >= ?")
            values += [len(prefix), prefix, prefix]
        if status is not None:
            where.append("status = ?")
            values.append(status.value)
        if older_than_seconds is not None:
            where.append("ifnull(last_successful_timestamp NOT BETWEEN ? AND ?, 1)")
            now = to_microseconds(self.now())
            values += [now - older_than_seconds * 1_000_000, now + to_length(HONEST_SKEW)]
        if stale is not None:
            where.append(
                f"{'' if stale else 'NOT '}(status = 'running' AND "
                "last_run_timestamp + ifnull(lease_microseconds, ?) < ?)"
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
            f"{'AND from_timestamp IS NOT to_timestamp ' if moved else ''}"
            "ORDER BY version DESC LIMIT ?"
        )
        latest = 2**63 - 1 if before is None else before
        rows = await self._rows(query, (source_id, latest, limit + 1))
        changes = [to_change(row) for row in rows[:limit]]
        return HistoryPage(changes=changes, next=changes[-1].version if len(rows) > limit else None)

    async def overview(self, listing: Listing) -> Overview:
        """Return a page of sources with their states."""
        found: Overview = await self._scan(
            lambda connection: overview(connection, self.now(), self.limits, listing)
        )
        return found

    async def source_state(self, source_id: str) -> tuple[SourceState, Details] | None:
        """Return one source with its state; ``None``: never collected."""
        found: tuple[SourceState, Details] | None = await self._scan(
            lambda connection: source_state(connection, self.now(), self.limits, source_id)
        )
        return found

    def find_token(self, digest: bytes) -> Token | None:
        """Return the stored token of a digest, if there is one."""
        row = self._read("SELECT name, read_only, prefix FROM tokens WHERE digest = ?", digest)
        return Token(row[0], bool(row[1]), row[2]) if row else None

    def token_digest(self, name: str) -> bytes | None:
        """Return the digest of a token's name, if there is one."""
        row = self._read("SELECT digest FROM tokens WHERE name = ?", name)
        return bytes(row[0]) if row else None

    def has_tokens(self) -> bool:
        """Return whether any token is stored."""
        return self._read("SELECT 1 FROM tokens LIMIT 1") is not None

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
        """
        total, left = 0, batches
        for rule in rules(retention, self.now()):
            last = 0
            while left != 0 and (versions := await self._scan(partial(_batch, rule, last))):
                await self._writer.apply(partial(delete_lines, versions=versions))
                total, last = total + len(versions), versions[-1]
                left = None if left is None else left - 1
        return total

    async def check(self) -> None:
        """Read, and make a write durable, as the next request may need to.

        Raises:
            DatabaseError: One of the two failed.
        """
        self.get("")
        checked_at = to_microseconds(self.now())
        await self._writer.apply(
            lambda connection: connection.execute(
                "INSERT OR REPLACE INTO health (id, checked_at) VALUES (1, ?)", (checked_at,)
            )
        )

    def _read(self, query: str, *arguments: Any) -> Any:
        try:
            rows = self._reader.execute(query, arguments).fetchall()
        except sqlite3.Error as error:
            raise _unread(error) from error
        return rows[0] if rows else None

    async def _rows(self, query: str, arguments: Sequence[Any]) -> list[Any]:
        rows: list[Any] = await self._scan(
            lambda connection: connection.execute(query, arguments).fetchall()
        )
        return rows

    async def _scan(self, read: Callable[[sqlite3.Connection], Any]) -> Any:
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._scans, read, self._scanner)
        except sqlite3.Error as error:
            raise _unread(error) from error


def _batch(rule: Rule, after: int, connection: sqlite3.Connection) -> list[int]:
    return rule(connection, after)


def _for_people(watermark: Watermark) -> Watermark:
    """Return a watermark as a list shows it: *nothing collected* is ``None``."""
    success = watermark.last_successful_timestamp
    if success == meant(success):
        return watermark
    return watermark.model_copy(update={"last_successful_timestamp": None})


def _unread(error: sqlite3.Error) -> DatabaseError:
    return DatabaseError(f"The database could not be read ({error}); try again later.")


def _is_replay(connection: sqlite3.Connection, stored: Watermark, update: WatermarkUpdate) -> bool:
    if update.run_id is None or stored.etag is None:
        return False
    row = connection.execute(
        "SELECT run_id, status, timestamp FROM history WHERE version = ?",
        (int(stored.etag.strip('"')),),
    ).fetchone()
    return bool(row == (update.run_id, update.status.value, to_microseconds(update.timestamp)))
