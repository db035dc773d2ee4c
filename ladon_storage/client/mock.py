"""A storage client in memory, with the same interface and rules, for tests and development.

Nothing persists: the watermarks end with the object.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from types import TracebackType
from typing import Self

from ladon_storage.circuit.breaker import CircuitBreaker
from ladon_storage.client.keywords import KeywordUpdate
from ladon_storage.errors import WatermarkConflictError
from ladon_storage.models import (
    UNCONDITIONAL,
    ChangeAction,
    HistoryPage,
    Precondition,
    Watermark,
    WatermarkChange,
    WatermarkUpdate,
    apply_update,
    meant,
)
from ladon_storage.values import check_source_id


class MockStorageClient(KeywordUpdate):
    """A storage of watermarks in a dictionary, with the rules of the embedded Storage Service.

    Args:
        clock: The service's time.

    >>> import asyncio
    >>> async def main() -> None:
    ...     client = MockStorageClient()
    ...     await client.update_watermark("kev", datetime(2026, 1, 1, tzinfo=UTC))
    ...     failed = await client.update_watermark("kev", datetime(2026, 1, 2), "failed", "boom")
    ...     print(failed.status, failed.last_successful_timestamp)
    >>> asyncio.run(main())
    failed 2026-01-01 00:00:00+00:00
    """

    def __init__(self, *, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self.circuit_breaker = CircuitBreaker()
        self._clock = clock
        self._watermarks: dict[str, Watermark] = {}
        self._last_updates: dict[str, WatermarkUpdate] = {}
        self._changes: list[WatermarkChange] = []

    def __repr__(self) -> str:
        return f"<MockStorageClient with {len(self._watermarks)} watermarks>"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Do nothing: there is no connection. The watermarks stay."""

    async def health_check(self, *, through_circuit: bool = False) -> bool:
        """Return ``True``."""
        return True

    async def get_watermark(self, source_id: str) -> Watermark | None:
        """Return the watermark of ``source_id``, or ``None`` if it was never collected.

        Raises:
            ValueError: ``source_id`` cannot name a source.
        """
        stored = self._watermarks.get(check_source_id(source_id))
        return stored.as_answered(self._clock()) if stored else None

    async def watermark_history(
        self, source_id: str, *, moved: bool = False, limit: int = 100, before: int | None = None
    ) -> HistoryPage | None:
        """Return a page of the changes of a watermark, the latest first.

        Raises:
            ValueError: ``source_id`` cannot name a source.
        """
        check_source_id(source_id)
        found = [
            each
            for each in reversed(self._changes)
            if each.source_id == source_id
            and (before is None or each.version < before)
            and not (moved and each.from_timestamp == each.to_timestamp)
        ]
        more = found[limit - 1].version if len(found) > limit else None
        return HistoryPage(changes=found[:limit], next=more)

    async def put_watermark(
        self, source_id: str, update: WatermarkUpdate, precondition: Precondition = UNCONDITIONAL
    ) -> Watermark:
        """Write the outcome of a run, and return the stored watermark.

        A repeated write of the same run, whose precondition it outdated itself, changes nothing.

        Raises:
            ValueError: ``source_id`` cannot name a source.
            WatermarkConflictError: The precondition fails, or a success is older than the stored
                one.
            WatermarkInFutureError: It is a success far ahead of the clock.
        """
        stored = self._watermarks.get(check_source_id(source_id))
        now = self._clock()
        try:
            new = apply_update(stored, source_id, update, now, precondition)
        except WatermarkConflictError as conflict:
            if conflict.status == 412 and stored and self._is_replay(source_id, update):
                return stored.as_answered(now)
            raise
        self._last_updates[source_id] = update
        self._note(stored, new, update, now)
        self._watermarks[source_id] = new.with_etag(f'"{len(self._changes)}"')
        return self._watermarks[source_id].as_answered(now)

    def _note(
        self, before: Watermark | None, after: Watermark, update: WatermarkUpdate, now: datetime
    ) -> None:
        self._changes.append(
            WatermarkChange(
                version=len(self._changes) + 1,
                source_id=after.source_id,
                at=now,
                action=ChangeAction.PUT,
                actor=None,
                run_id=update.run_id,
                status=update.status,
                timestamp=meant(update.timestamp),
                from_timestamp=meant(before.last_successful_timestamp) if before else None,
                to_timestamp=meant(after.last_successful_timestamp),
                records_collected=after.records_collected,
                error_message=after.error_message,
                reason=None,
                ledger=update.ledger,
            )
        )

    def _is_replay(self, source_id: str, update: WatermarkUpdate) -> bool:
        last = self._last_updates[source_id]
        return update.run_id is not None and (
            (last.run_id, last.status, last.timestamp)
            == (update.run_id, update.status, update.timestamp)
        )
