"""What the engine asks of its parts: a storage of watermarks, a source, a sink.

A part of one's own is any class that has the methods; there is nothing to inherit from.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Protocol, Self, runtime_checkable

from pydantic import BaseModel, ConfigDict

from ladon_storage.collection.records import Page
from ladon_storage.models import Watermark, WatermarkStatus

Clock = Callable[[], datetime]
"""The time, as an aware datetime."""


def utc_now() -> datetime:
    """Return the time as an aware UTC datetime."""
    return datetime.now(UTC)


class Storage(Protocol):
    """Keep one watermark for each source: a storage client, or what calls one."""

    async def health_check(self) -> bool:
        """Return whether the service is healthy; raise where an unhealthy one must end the run."""
        ...

    async def get_watermark(self, source_id: str) -> Watermark | None:
        """Return the watermark, or ``None`` if and only if there is none."""
        ...

    async def update_watermark(
        self,
        source_id: str,
        timestamp: datetime,
        status: WatermarkStatus = ...,
        error_message: str | None = None,
        *,
        if_match: str | None = None,
        records_collected: int | None = None,
        run_id: str | None = None,
    ) -> Watermark:
        """Write the watermark and return what is stored."""
        ...


@runtime_checkable
class Source(Protocol):
    """Yield what there is to collect."""

    @property
    def source_id(self) -> str:
        """The stable name."""
        ...

    @property
    def overlap(self) -> timedelta | None:
        """How far before the watermark a run reads again; ``None``: each run reads all there is."""
        ...

    def pages(self, start: datetime | None, until: datetime | None) -> AsyncIterator[Page]:
        """Yield the records with ``start <= timestamp < until``; ``None`` sets no bound.

        It may yield others too: they are stored as well.
        """
        ...


@runtime_checkable
class Sink(Protocol):
    """Make records durable. Entered before its first page and left after its last."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...

    async def write(self, source_id: str, page: Page) -> int:
        """Make a page durable, whole or not at all, and return how many rows are new or changed.

        The same records again, in this page or a later one, change nothing.
        """
        ...


class Collected(BaseModel):
    """Say what was read and made durable; ``candidate`` is what the watermark may become."""

    model_config = ConfigDict(frozen=True)

    pages: int = 0
    records_read: int = 0
    records_written: int = 0
    records_in_future: int = 0
    candidate: datetime | None = None


class Collect(Protocol):
    """Be `collect`, or what wraps it."""

    async def __call__(
        self,
        source: Source,
        sink: Sink,
        start: datetime | None,
        until: datetime | None = None,
        *,
        clock: Clock = ...,
    ) -> Collected:
        """Collect what there is from ``start`` on, and return when it is durable."""
        ...
