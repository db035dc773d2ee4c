"""The shell that the sinks share: one run at a time, one worker thread, one sentence for failures.

- The storage is opened, used and closed in the thread alone. Leaving the sink waits for the work
  in the thread, so a cancelled run leaves nothing running.
- A failure of the storage becomes a `SinkError` without anything that may contain a secret.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence, Set
from datetime import datetime
from types import TracebackType
from typing import ClassVar, Generic, Protocol, Self, TypeVar

from ladon_storage.collection.protocols import Position, WriteResult
from ladon_storage.collection.records import Page, Record
from ladon_storage.errors import ConfigurationError, SinkError
from ladon_storage.sinks.worker import WorkerThread

T = TypeVar("T")


class Store(Protocol):
    """The open storage of a sink, for one thread; its methods are those of the sink."""

    def write(
        self, source_id: str, page: Page, run_id: str, position: Position | None
    ) -> WriteResult:
        """Make a page durable, and return the changes."""
        ...

    def position(self, source_id: str) -> Position | None:
        """Return the last position that was written, if it is valid."""
        ...

    def mark_removed(self, source_id: str, listed_ids: Set[str], max_share: float) -> int:
        """Mark the records that are not listed, and return how many are new there."""
        ...

    def revert(self, source_id: str, records: Sequence[Record]) -> int:
        """Make versions the current ones, and return how many were not current."""
        ...

    def lacking(self, source_id: str, listed: Mapping[str, datetime]) -> set[str]:
        """Return the ids without a current version of a time or later."""
        ...

    def count_records(
        self, source_id: str, after: datetime | None, before: datetime, limit: int
    ) -> int:
        """Return how many records have a current version between two times, at most ``limit``."""
        ...

    def close(self, *, is_clean: bool) -> None:
        """Close the storage; ``is_clean``: the run did not fail."""
        ...


S = TypeVar("S", bound=Store)


class ThreadedSink(ABC, Generic[S]):
    """A sink whose storage blocks, and is used in a thread of its own.

    It is used in the event loop in which it was entered.

    Args:
        shown: The address without its password.
        table: The name of the table.
        keep: Whether a row is kept for each record or for each version.

    Raises:
        ConfigurationError: The name of the table or ``keep`` is invalid.
    """

    _names: ClassVar[re.Pattern[str]]
    """The names that a table may have."""

    _name_rule: ClassVar[str]
    """The same in words."""

    _failures: ClassVar[tuple[type[Exception], ...]]
    """The errors by which the storage fails."""

    def __init__(self, shown: str, table: str, keep: str) -> None:
        if not isinstance(table, str) or not self._names.fullmatch(table):
            raise ConfigurationError(
                f"The sink's table cannot be named {table!r}. Use a letter, then letters, digits "
                f"and underscores, {self._name_rule}."
            )
        if keep not in ("latest", "all"):
            raise ConfigurationError(f"The sink's keep should be 'latest' or 'all', not {keep!r}.")
        self._shown = shown
        self._table = table
        self._keep = keep
        self._thread: WorkerThread | None = None
        self._store: S | None = None

    def __repr__(self) -> str:
        name = type(self).__name__
        return f"{name}({self._shown!r}, table={self._table!r}, keep={self._keep!r})"

    async def __aenter__(self) -> Self:
        if self._thread is not None:
            raise SinkError(f"The sink {self._shown} serves another run. Give each run its own.")
        self._thread = WorkerThread()
        try:
            await self._in_thread(self._enter, "be opened")
        except BaseException:
            await self._leave(is_clean=False)
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._leave(is_clean=error is None)

    async def write(
        self, source_id: str, page: Page, *, run_id: str = "", position: Position | None = None
    ) -> WriteResult:
        """Make a page durable, and return the changes.

        A row that only lost its mark is not counted. Where all versions are kept, a new version
        that is older than the current one counts as changed, and is reported as superseded.

        Raises:
            SinkError: The storage refused it; the page written again adds only what is missing.
        """
        return await self._do(
            lambda store: store.write(source_id, page, run_id, position), "store a page", source_id
        )

    async def position(self, source_id: str) -> Position | None:
        """Return the last position that was written; ``None``: there is none that is valid.

        Raises:
            SinkError: The storage did not answer.
        """
        return await self._do(
            lambda store: store.position(source_id), "read its position", source_id
        )

    async def mark_removed(self, source_id: str, listed_ids: Set[str], max_share: float) -> int:
        """Mark the records whose ids are not in ``listed_ids``, and return how many are new there.

        A record that is listed again loses its mark. Nothing is deleted.

        Raises:
            SourceError: More than the share ``max_share`` of the unmarked records would be; none
                was.
            SinkError: The storage refused it; none was.
        """
        return await self._do(
            lambda store: store.mark_removed(source_id, listed_ids, max_share),
            "mark what was removed",
            source_id,
        )

    async def revert(self, source_id: str, records: Sequence[Record], *, run_id: str = "") -> int:
        """Make versions the current ones, whatever their time; return how many were not current.

        A version that its owner deleted is omitted, and a version that this run added is not
        counted.

        Raises:
            SinkError: The storage refused it.
        """
        return await self._do(
            lambda store: store.revert(source_id, records),
            "make an earlier version current",
            source_id,
        )

    async def lacking(self, source_id: str, listed: Mapping[str, datetime]) -> set[str]:
        """Return the ids of ``listed`` whose current version is not of that time or later.

        A record that its owner deleted is not lacking.

        Raises:
            SinkError: The storage did not answer.
        """
        return await self._do(
            lambda store: store.lacking(source_id, listed), "look records up", source_id
        )

    async def count_records(
        self, source_id: str, after: datetime | None, before: datetime, limit: int
    ) -> int:
        """Return how many records have a current version between two times, at most ``limit``.

        Both times are excluded, and so are records that are marked as removed.

        Raises:
            SinkError: The storage did not answer.
        """
        return await self._do(
            lambda store: store.count_records(source_id, after, before, limit),
            "count its records",
            source_id,
        )

    @abstractmethod
    def _open(self) -> S:
        """Return the open storage; called in the thread."""

    @abstractmethod
    def _described(self, error: Exception) -> tuple[str, str, Exception | None]:
        """Return what the storage said, the next step, and the error to chain."""

    async def _do(self, work: Callable[[S], T], aim: str, source_id: str) -> T:
        return await self._in_thread(lambda: work(self._opened()), aim, source_id)

    async def _in_thread(self, work: Callable[[], T], aim: str, source_id: str | None = None) -> T:
        if self._thread is None:
            raise SinkError(
                f"The sink {self._shown} is not open. Use `async with` around it.", source_id
            )
        try:
            return await self._thread.do(work)
        except self._failures as error:
            said, step, cause = self._described(error)
        # Outside of the handler: what is not chained may contain a password or a signature.
        raise SinkError(
            f"The sink {self._shown} could not {aim}: {said}. {step}; collection resumes after the "
            "last durable page.",
            source_id,
        ) from cause

    def _enter(self) -> None:
        self._store = self._open()

    def _opened(self) -> S:
        if self._store is None:
            raise SinkError(f"The sink {self._shown} could not be opened. Open it again.")
        return self._store

    async def _leave(self, *, is_clean: bool) -> None:
        thread, self._thread = self._thread, None
        if thread is not None:
            await thread.close(lambda: self._close(is_clean=is_clean))

    def _close(self, *, is_clean: bool) -> None:
        store, self._store = self._store, None
        if store is not None:
            store.close(is_clean=is_clean)
