"""One sink and one storage for many runs: opened once, with one health check.

- A sink is opened by the first run that needs it, inside that run. So a sink that cannot be opened
  fails the runs that need it, and their watermarks record it.
- It stays open until the last run has ended: `SharedSink.close` ends it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Self

from ladon_storage.collection.protocols import (
    OPTIONAL_MEMBERS,
    Sink,
    SupportsHistory,
    WatermarkStore,
)
from ladon_storage.collection.stores import watermark_store
from ladon_storage.models import (
    UNCONDITIONAL,
    Precondition,
    Watermark,
    WatermarkStatus,
    WatermarkUpdate,
)


class CheckedStorage:
    """A storage whose health is known, and which records why a failed run ended.

    Args:
        storage: The storage.
        named: Returns the watermark's text for a failure, such as the signal that ended a run.
    """

    def __init__(self, storage: WatermarkStore, named: Callable[[str], Awaitable[str]]) -> None:
        self.get_watermark = storage.get_watermark
        if isinstance(storage, SupportsHistory):
            self.watermark_history = storage.watermark_history
        self._storage = watermark_store(storage)
        self._named = named

    async def health_check(self) -> bool:
        """Return ``True``, without asking again."""
        return True

    async def put_watermark(
        self, source_id: str, update: WatermarkUpdate, precondition: Precondition = UNCONDITIONAL
    ) -> Watermark:
        """Write the watermark and return the stored one."""
        if update.status is WatermarkStatus.FAILED:
            update = update.with_error(await self._named(update.error_message or "failed"))
        return await self._storage.put_watermark(source_id, update, precondition)


class SharedSink:
    """A sink that one run after another enters, and several at once.

    Args:
        sink: The sink.
        is_open: Whether it is open already, and closed by its owner.
    """

    def __init__(self, sink: Sink, *, is_open: bool = False) -> None:
        self._sink = sink
        self._opening = asyncio.Lock()
        self._entered = AsyncExitStack()
        self._is_open = is_open
        self.write = sink.write
        if is_open:
            self._take_methods()

    def _take_methods(self) -> None:
        for name in OPTIONAL_MEMBERS:
            if hasattr(self._sink, name):
                setattr(self, name, getattr(self._sink, name))

    async def __aenter__(self) -> Self:
        if self._is_open:
            return self
        async with self._opening:
            if not self._is_open:
                await self._entered.enter_async_context(self._sink)
                self._is_open = True
                self._take_methods()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Leave it open for the other runs."""

    async def close(self) -> None:
        """Close the sink if a run has opened it."""
        await self._entered.aclose()
