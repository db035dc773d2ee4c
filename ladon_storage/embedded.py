"""The Storage Service's own store inside this process, with the interface of its client.

- The rules are the service's, because the store is: compare-and-set, leases, refusals, history.
  `ladon-storage serve` may serve the same file at the same time or later.
- A file has one store in a process, on an event loop of its own, which all event loops and threads
  call. SQLite's locks keep the processes of one host apart.
- An acknowledged write is on disk. The store is closed with its last client or with the process;
  after that the file is complete without SQLite's two files next to it.
- A store is not used across a fork: the child opens its own.
- The history is bounded as the service's is. A file may have no process that lives for an hour, so
  the writer of each thousandth change deletes what is beyond the bounds, beside its other calls.
"""

from __future__ import annotations

import asyncio
import atexit
import contextvars
import logging
import os
import threading
import weakref
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from ladon_storage.circuit.breaker import CircuitBreaker
from ladon_storage.client.keywords import KeywordUpdate
from ladon_storage.errors import (
    ConfigurationError,
    DatabaseError,
    StorageResponseError,
    StorageUnhealthyError,
)
from ladon_storage.models import (
    UNCONDITIONAL,
    HistoryPage,
    Precondition,
    Watermark,
    WatermarkDelete,
    WatermarkPage,
    WatermarkReset,
    WatermarkStatus,
    WatermarkUpdate,
)
from ladon_storage.server.store import WatermarkDatabase
from ladon_storage.settings import check_folder
from ladon_storage.values import check_source_id

logger = logging.getLogger(__name__)

T = TypeVar("T")
Clock = Callable[[], datetime]

SCHEME = "sqlite:///"
CLOSING_SECONDS = 10.0
PRUNED_EVERY = 1000
"""The changes after which history is deleted."""
PRUNED_BATCHES = 20
"""The most batches that one process deletes at a time, so that no run waits for long."""


def _utc_now() -> datetime:
    return datetime.now(UTC)


def file_of(url: str) -> Path:
    """Return the file that a storage address names, absolute.

    Raises:
        ConfigurationError: The address names no file, or one in a folder that no address can name.

    >>> str(file_of("sqlite:////var/lib/ladon.db"))
    '/var/lib/ladon.db'
    """
    name = url.strip()[len(SCHEME) :]
    is_file = url.strip().lower().startswith(SCHEME) and name and name.strip("/.")
    if not is_file or name.startswith(":memory:") or any(mark in name for mark in "?#\0"):
        # Not repeated: the text before an @ may be a password.
        raise ConfigurationError(
            "The storage's address names no file. Write it as sqlite:///ladon.db, or as "
            "sqlite:////var/lib/ladon.db for one anywhere."
        )
    path = Path(name)
    if not path.is_absolute():
        check_folder(Path.cwd())
    return path.absolute()


class EmbeddedStorage(KeywordUpdate):
    """Watermarks in a file of this host, with the same interface and rules as the service's client.

    Args:
        path: The file; created at the first call if it does not exist.
        environment: In ``production`` an unhealthy file raises, elsewhere it does not.
        clock: The storage's time.

    Raises:
        ConfigurationError: At the first call: the file cannot be a database of this program.

    Example:
        ```python
        async with EmbeddedStorage("ladon.db") as storage:
            watermark = await storage.get_watermark("kev")
        ```
    """

    def __init__(
        self,
        path: Path | str,
        *,
        environment: str = "production",
        clock: Clock = _utc_now,
    ) -> None:
        self.circuit_breaker = CircuitBreaker()
        self.path = Path(path).absolute()
        self.environment = environment
        self._clock = clock
        self._uses = _Uses(self.path, clock)
        # At exit every store is closed anyway.
        weakref.finalize(self, self._uses.release).atexit = False

    def __repr__(self) -> str:
        return f"<EmbeddedStorage in {str(self.path)!r}>"

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
        """Close the file unless another client of this process uses it; the next call opens it."""
        closing = self._uses.release()
        if closing is not None:
            await asyncio.wrap_future(closing)

    async def health_check(self, *, through_circuit: bool = False) -> bool:
        """Return whether the file can be read and written.

        Raises:
            StorageUnhealthyError: It cannot, in production.
            ConfigurationError: The file cannot be a database of this program.
        """
        try:
            await self._call(lambda store: store.check())
        except StorageResponseError as error:
            text = f"The storage in {str(self.path)!r} is unhealthy: {error}"
            if self.environment.strip().lower() == "production":
                raise StorageUnhealthyError(text, error.status) from error
            logger.warning("%s (health_check_failed)", text)
            return False
        return True

    async def get_watermark(self, source_id: str) -> Watermark | None:
        """Return the watermark of ``source_id``, or ``None`` if it was never collected.

        Raises:
            ValueError: ``source_id`` cannot name a source.
            StorageError: The file could not be read.
        """
        check_source_id(source_id)
        stored = await self._call(lambda store: store.get(source_id))
        return None if stored is None else stored.as_answered(self._clock())

    async def watermark_history(
        self, source_id: str, *, moved: bool = False, limit: int = 100, before: int | None = None
    ) -> HistoryPage | None:
        """Return a page of the changes of a watermark, the latest first.

        Raises:
            ValueError: ``source_id`` cannot name a source.
            StorageError: The file could not be read.
        """
        check_source_id(source_id)
        return await self._call(
            lambda store: store.history(source_id, moved=moved, limit=limit, before=before)
        )

    async def put_watermark(
        self, source_id: str, update: WatermarkUpdate, precondition: Precondition = UNCONDITIONAL
    ) -> Watermark:
        """Write the outcome of a run, and return the stored watermark.

        Raises:
            ValueError: ``source_id`` cannot name a source.
            WatermarkConflictError: Another run, or a later success, was faster.
            WatermarkInFutureError: It is a success far ahead of the clock.
            StorageError: The file could not be written.
        """
        check_source_id(source_id)
        actor = f"process {os.getpid()}"
        stored = await self._call(
            lambda store: store.put(source_id, update, precondition, actor=actor)
        )
        if _is_prune_due(stored.watermark):
            self._uses.submit(_prune)
        return stored.watermark.as_answered(self._clock())

    @property
    def has_additions(self) -> bool:
        """Whether it has the additions to the base contract: always."""
        return True

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

        Raises:
            StorageError: The file could not be read.
        """
        return await self._call(
            lambda store: store.page(
                status=status,
                older_than_seconds=older_than_seconds,
                stale=stale,
                prefix=prefix,
                limit=limit,
                after=after or "",
            )
        )

    async def reset_watermark(
        self,
        source_id: str,
        reset: WatermarkReset,
        precondition: Precondition = UNCONDITIONAL,
    ) -> Watermark | None:
        """Move a watermark to any timestamp, and return it; ``None`` where there is none to move.

        Raises:
            ValueError: ``source_id`` cannot name a source.
            WatermarkConflictError: Another writer was faster.
            WatermarkInFutureError: The timestamp is far ahead of the clock.
            StorageError: The file could not be written.
        """
        check_source_id(source_id)
        stored = await self._call(
            lambda store: store.reset(
                source_id, reset, precondition, actor=f"process {os.getpid()}"
            )
        )
        return None if stored is None else stored.as_answered(self._clock())

    async def delete_watermark(
        self,
        source_id: str,
        deletion: WatermarkDelete,
        precondition: Precondition = UNCONDITIONAL,
    ) -> bool:
        """Delete a watermark, and keep its history; return whether there was one.

        Raises:
            ValueError: ``source_id`` cannot name a source.
            WatermarkConflictError: Another writer was faster.
            StorageError: The file could not be written.
        """
        check_source_id(source_id)
        return await self._call(
            lambda store: store.delete(
                source_id,
                precondition,
                actor=deletion.actor or f"process {os.getpid()}",
                reason=deletion.reason,
            )
        )

    async def _call(self, act: Callable[[WatermarkDatabase], Awaitable[T]]) -> T:
        try:
            return await asyncio.wrap_future(self._uses.submit(act))
        except DatabaseError as error:
            # The text of the service's client for a response with this error.
            raise StorageResponseError(
                f"The storage in {str(self.path)!r}: {error}", 503
            ) from error


class _Uses:
    """One client's share in the store of a file."""

    def __init__(self, path: Path, clock: Clock) -> None:
        self._path = path
        self._clock = clock
        self._store: _SharedStore | None = None

    def submit(self, act: Callable[[WatermarkDatabase], Awaitable[T]]) -> Future[T]:
        """Start a call of the store, and open the store if it is not open."""
        with _lock:  # so that no call comes after the store's end
            while self._store is None or self._store.pid != os.getpid() or self._store.is_closing:
                key = (os.getpid(), self._path, self._clock)
                store = _stores.get(key) or _SharedStore(key)
                # Collecting garbage may have released its last other client just now.
                store.clients += 1
                _stores[key] = self._store = store
            return self._store.submit(act)

    def release(self) -> Future[None] | None:
        """Give the share back; return the closing of the store if this share was the last."""
        with _lock:
            store, self._store = self._store, None
            if store is None or store.pid != os.getpid():
                return None
            store.clients -= 1
            if store.clients:
                return None
            if _stores.get(store.key) is store:
                del _stores[store.key]
            return store.close()


class _SharedStore:
    """The store of one file in this process, on an event loop and a thread of its own."""

    def __init__(self, key: tuple[int, Path, Clock]) -> None:
        self.key = key
        self.pid, path, clock = key
        self.clients = 0
        self.is_closing = False
        self._calls: set[asyncio.Task[Any]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._run, name="ladon-storage-embedded", daemon=True
        )
        self._thread.start()
        self._store: asyncio.Task[WatermarkDatabase] | None = None
        self._open = partial(WatermarkDatabase.open, path, clock)

    def submit(self, act: Callable[[WatermarkDatabase], Awaitable[T]]) -> Future[T]:
        """Start a call on the store's loop."""

        async def call() -> T:
            if (task := asyncio.current_task()) is not None:
                self._calls.add(task)
                task.add_done_callback(self._calls.discard)
            if self._store is None or _has_failed(self._store):
                self._store = self._loop.create_task(self._open())
            # A cancelled caller does not take the file from the others.
            return await act(await asyncio.shield(self._store))

        def begin() -> Future[T]:
            return asyncio.run_coroutine_threadsafe(call(), self._loop)

        # In its own context: the store outlives the run that happens to call it first, and
        # what it logs later is no line of that run.
        return contextvars.Context().run(begin)

    def close(self) -> Future[None]:
        """Close the store when its calls have ended, then its loop and its thread."""
        self.is_closing = True

        async def close() -> None:
            if self._calls:
                await asyncio.wait(self._calls)
            if self._store is not None and not _has_failed(self._store):
                await (await self._store).close()

        closing = asyncio.run_coroutine_threadsafe(close(), self._loop)
        closing.add_done_callback(lambda _: self._loop.call_soon_threadsafe(self._loop.stop))
        return closing

    def join(self) -> None:
        """Wait for the thread to end."""
        self._thread.join(CLOSING_SECONDS)

    def _run(self) -> None:
        try:
            self._loop.run_forever()
            self._loop.run_until_complete(self._loop.shutdown_default_executor())
        finally:
            self._loop.close()


def _is_prune_due(stored: Watermark) -> bool:
    return int((stored.etag or "").strip('"') or 1) % PRUNED_EVERY == 0


async def _prune(store: WatermarkDatabase) -> None:
    try:
        await store.prune(batches=PRUNED_BATCHES)
    except DatabaseError as error:
        logger.warning("The history was not shortened (%s); a later run tries again.", error)


def _has_failed(opening: asyncio.Task[WatermarkDatabase]) -> bool:
    return opening.done() and (opening.cancelled() or opening.exception() is not None)


_lock = threading.RLock()
_stores: dict[tuple[int, Path, Clock], _SharedStore] = {}


def _renew_lock() -> None:
    """Replace the lock by one that no thread of the parent holds."""
    global _lock
    _lock = threading.RLock()


os.register_at_fork(after_in_child=_renew_lock)


@atexit.register
def _close_what_is_open() -> None:
    for key, store in list(_stores.items()):
        if key[0] == os.getpid():
            del _stores[key]
            store.close()
            store.join()
