"""The client's requests for operators: the list, resets and deletions, where a service offers them.

- They are additions to the base contract. A service that lacks one answers 404 or 405, and the
  method returns ``None`` or ``False``.
- A change carries its reason and its author, which the service's history keeps.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import quote

from pydantic import ValidationError
from yarl import URL

from ladon_storage.client.pool import Pool
from ladon_storage.client.responses import Response, watermark_of
from ladon_storage.client.transport import Transport
from ladon_storage.errors import InvalidResponseError, StorageResponseError
from ladon_storage.models import (
    UNCONDITIONAL,
    Precondition,
    Watermark,
    WatermarkDelete,
    WatermarkPage,
    WatermarkReset,
    WatermarkStatus,
)
from ladon_storage.values import check_source_id

T = TypeVar("T")

_MISSING = (404, 405, 501)


class OperatorRequests:
    """The part of the Storage Service's client that operators' commands use."""

    if TYPE_CHECKING:
        base_url: str
        _watermarks: str
        _shown_additions: bool | None
        _transport: Transport

    @property
    def has_additions(self) -> bool:
        """Whether a response of the service has shown the additions to the base contract."""
        return bool(self._shown_additions)

    async def list_watermarks(
        self,
        *,
        status: WatermarkStatus | None = None,
        older_than_seconds: int | None = None,
        stale: bool | None = None,
        prefix: str = "",
        limit: int = 100,
        after: str | None = None,
    ) -> WatermarkPage | None:
        """Return a page of watermarks by ``source_id``.

        Args:
            status: Only those whose last run had this outcome.
            older_than_seconds: Only those whose last success is longer ago, or that have none.
            stale: Only those whose run does not end, or only the others.
            prefix: Only those whose names begin with it.
            limit: The most watermarks of the page.
            after: ``next`` of the page before.

        Returns:
            The page, or ``None`` from a service that has no list.

        Raises:
            CircuitOpenError: The service was not called, since it keeps failing.
            StorageError: The service did not answer, or not with a list.
        """
        if not self.has_additions:
            return None
        query = {"limit": str(limit)}
        query |= {} if status is None else {"status": status.value}
        query |= (
            {} if older_than_seconds is None else {"older_than_seconds": f"{older_than_seconds}"}
        )
        query |= {} if stale is None else {"stale": "true" if stale else "false"}
        query |= {"prefix": prefix} if prefix else {}
        query |= {} if after is None else {"after": after}
        url = URL(self._watermarks.rstrip("/"), encoded=True).with_query(query)
        try:
            return await self._transport.call("GET", "", url, _page)
        except StorageResponseError as error:
            if error.status not in _MISSING:
                raise
        return None

    async def reset_watermark(
        self,
        source_id: str,
        reset: WatermarkReset,
        precondition: Precondition = UNCONDITIONAL,
    ) -> Watermark | None:
        """Move a watermark to any timestamp, and return it; the outcome of its last run stays.

        Args:
            source_id: The source.
            reset: The timestamp, the reason and the author.
            precondition: The version that must be stored; with ``if_none_match`` the watermark of
                a source that was never collected is made.

        Returns:
            The watermark, or ``None`` where there is none to move, or the service has no resets.

        Raises:
            ValueError: ``source_id`` cannot name a source.
            WatermarkConflictError: Another writer was faster.
            WatermarkInFutureError: The timestamp is far ahead of the service's clock.
            CircuitOpenError: The service was not called, since it keeps failing.
            StorageError: The service did not answer, or not with a watermark.
        """
        body = reset.model_dump_json(exclude_none=True)
        return await self._post(source_id, "reset", body, precondition, _watermark)

    async def delete_watermark(
        self,
        source_id: str,
        deletion: WatermarkDelete,
        precondition: Precondition = UNCONDITIONAL,
    ) -> bool:
        """Delete a watermark, and keep its history; return whether that was done.

        ``False`` means that there is none, or that the service has no deletions with a reason.

        Args:
            source_id: The source.
            deletion: The reason and the author.
            precondition: The version that must be stored.

        Raises:
            ValueError: ``source_id`` cannot name a source.
            WatermarkConflictError: Another writer was faster.
            CircuitOpenError: The service was not called, since it keeps failing.
            StorageError: The service did not answer, or not as one.
        """
        body = deletion.model_dump_json(exclude_none=True)
        return await self._post(source_id, "delete", body, precondition, _done) or False

    async def _post(
        self,
        source_id: str,
        act: str,
        body: str,
        precondition: Precondition,
        read: Callable[[Response, str, Pool], Awaitable[T]],
    ) -> T | None:
        place = f"{self._watermarks}{quote(check_source_id(source_id), safe='')}/{act}"
        headers = {"Content-Type": "application/json"}
        if precondition.if_match is not None:
            headers["If-Match"] = precondition.if_match
        if precondition.if_none_match:
            headers["If-None-Match"] = "*"
        try:
            return await self._transport.call(
                "POST", source_id, URL(place, encoded=True), read, body.encode(), headers
            )
        except StorageResponseError as error:
            if error.status not in _MISSING:
                raise
        return None


async def _page(answer: Response, _source_id: str, _pool: Pool) -> WatermarkPage | None:
    if answer.status == 404:
        return None
    try:
        return WatermarkPage.model_validate_json(answer.body)
    except ValidationError:
        raise InvalidResponseError(
            f"The Storage Service's answer {answer.status} to the request of a list is none; see "
            "what answers at its address.",
            answer.status,
        ) from None


async def _watermark(answer: Response, source_id: str, _pool: Pool) -> Watermark:
    return watermark_of(answer, source_id)


async def _done(_answer: Response, _source_id: str, _pool: Pool) -> bool:
    return True
