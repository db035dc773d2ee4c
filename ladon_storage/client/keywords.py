"""The write of a watermark by arguments: the one wide signature, for programs that call a client.

Everything inside of the package passes the two values of `put_watermark`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from ladon_storage.models import UNCONDITIONAL, Precondition, Watermark, WatermarkUpdate


class KeywordUpdate(ABC):
    """A storage whose write takes two values, or their fields as arguments."""

    @abstractmethod
    async def put_watermark(
        self, source_id: str, update: WatermarkUpdate, precondition: Precondition = UNCONDITIONAL
    ) -> Watermark:
        """Write the outcome of a run, and return the stored watermark."""

    async def update_watermark(
        self,
        source_id: str,
        timestamp: datetime,
        status: str = "success",
        error_message: str | None = None,
        *,
        if_match: str | None = None,
        if_none_match: bool = False,
        records_collected: int | None = None,
        run_id: str | None = None,
        lease: timedelta | None = None,
        ledger: Mapping[str, Any] | None = None,
    ) -> Watermark:
        """Write the outcome of a run, and return the stored watermark.

        ``failed`` and ``running`` do not move ``last_successful_timestamp``. A service that has
        sent no version as ``ETag`` gets only the base contract's fields: none after
        ``error_message``.

        Args:
            source_id: The source.
            timestamp: The time up to which records are durable; a naive one is UTC.
            status: ``success``, ``failed`` or ``running``.
            error_message: The reason of a failure.
            if_match: The ``etag`` of the watermark that was read; any other one is not replaced.
            if_none_match: Whether the write is refused if there is a watermark already.
            records_collected: Records of this run.
            run_id: Name of this run; by it the service knows a write that is sent again.
            lease: The time for which a running run holds its source unless it writes again.
            ledger: The request and the results of the run; cut where it is too large.

        Raises:
            TypeError: ``timestamp`` is no datetime.
            ValueError: Another argument makes no sense.
            WatermarkConflictError: Another run, or a later success, was faster. Without
                ``run_id`` it may have been this write, sent again after its connection broke.
            WatermarkInFutureError: It is a success far ahead of the storage's clock.
            CircuitOpenError: The service was not called, since it keeps failing.
            StorageError: The storage did not answer, or not with a watermark.
        """
        update = WatermarkUpdate.of(
            timestamp,
            status,
            error_message,
            records_collected=records_collected,
            run_id=run_id,
            lease=lease,
            ledger=ledger,
        )
        return await self.put_watermark(source_id, update, Precondition(if_match, if_none_match))
