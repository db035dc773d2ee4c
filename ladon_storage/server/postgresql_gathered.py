"""Watermarks that are wanted at the same time, read together and written together.

A statement waits for no other one that could be made at once. What is asked for while others are
made shares the next one: a statement costs more than the rows that it returns or changes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextvars import copy_context

from ladon_storage.errors import DatabaseError
from ladon_storage.server.backend import Row
from ladon_storage.server.changes import Written, fault_of
from ladon_storage.server.logs import in_one_write
from ladon_storage.server.postgresql_writes import Change

MOST_READERS, MOST_READ = 2, 100
"""The reads at one time, and the watermarks of one read."""
MOST_WRITERS, MOST_WRITTEN = 3, 100
"""The statements at one time that replace watermarks, and the watermarks of one."""

Outcome = Written | DatabaseError | None
_Waiting = tuple[Change, float, Callable[[Outcome], object], "asyncio.Future[Written | None]"]
_Wanted = tuple[str, "asyncio.Future[Row | None]"]


class GatheredReads:
    """The reads of one event loop.

    Args:
        fetch: Returns the rows of names, each of which begins with its name.
    """

    def __init__(self, fetch: Callable[[list[str]], Awaitable[list[Row]]]) -> None:
        self._fetch = fetch
        self._wanted: list[_Wanted] = []
        self._readers: set[asyncio.Task[None]] = set()

    async def read(self, source_id: str) -> Row | None:
        """Return the row of a name, as it is stored after this call.

        Raises:
            DatabaseError: The database could not be read.
        """
        future: asyncio.Future[Row | None] = asyncio.get_running_loop().create_future()
        self._wanted.append((source_id, future))
        if len(self._readers) < MOST_READERS:
            reader = asyncio.create_task(self._work())
            self._readers.add(reader)
        return await future

    async def _work(self) -> None:
        try:
            while self._wanted:
                await asyncio.sleep(0)  # what has arrived already is read with it
                wanted, self._wanted = self._wanted[:MOST_READ], self._wanted[MOST_READ:]
                if wanted:
                    await self._answer(wanted)
        finally:
            _leave(self._readers)

    async def _answer(self, wanted: list[_Wanted]) -> None:
        found: dict[str, Row] = {}
        failure = ""
        try:
            rows = await self._fetch([source_id for source_id, _ in wanted])
            found = {row[0]: row for row in rows}
        except Exception as error:  # each of them must be answered
            # Those that waited for this read meanwhile have waited long enough.
            failure, wanted, self._wanted = str(error), wanted + self._wanted, []
        for source_id, future in wanted:
            if future.done():  # its caller was cancelled
                continue
            if failure:
                future.set_exception(DatabaseError(failure))
            else:
                future.set_result(found.get(source_id))


class GatheredWrites:
    """The changes of one event loop that replace watermarks, of one source one at a time.

    Args:
        store: Stores changes until a deadline, and returns what came of each.
    """

    def __init__(
        self, store: Callable[[Sequence[Change], float], Awaitable[Sequence[Outcome]]]
    ) -> None:
        self._store = store
        self._waiting: list[_Waiting] = []
        self._writers: set[asyncio.Task[None]] = set()

    def write(
        self, change: Change, deadline: float, end: Callable[[Outcome], object]
    ) -> asyncio.Future[Written | None]:
        """Store a change; ``None``: another write was faster.

        Cancelling the caller does not revert the change.

        Args:
            change: The change.
            deadline: Until when.
            end: Called with what came of it, in its caller's context, whether or not that one
                still waits; those of a statement one after another. What it raises is the
                caller's.

        Raises:
            DatabaseError: It is not stored, or its error says that this is not known.
        """
        future: asyncio.Future[Written | None] = asyncio.get_running_loop().create_future()
        context = copy_context()
        self._waiting.append((change, deadline, lambda outcome: context.run(end, outcome), future))
        if len(self._writers) < MOST_WRITERS:
            writer = asyncio.create_task(self._work())
            self._writers.add(writer)
        return future

    async def end(self) -> None:
        """Wait until all changes have ended."""
        while self._writers:
            await asyncio.wait(self._writers)

    async def _work(self) -> None:
        try:
            while self._waiting:
                await asyncio.sleep(0)  # what has arrived already is written with it
                waiting, self._waiting = self._waiting[:MOST_WRITTEN], self._waiting[MOST_WRITTEN:]
                if waiting:
                    await self._answer(waiting)
        finally:
            _leave(self._writers)

    async def _answer(self, waiting: list[_Waiting]) -> None:
        changes = [change for change, _, _, _ in waiting]
        try:
            outcomes = await self._store(changes, min(deadline for _, deadline, _, _ in waiting))
        except Exception as error:  # each of them must be answered
            outcomes = [DatabaseError(str(error))] * len(waiting)
        with in_one_write():
            faults = [
                fault_of(end, outcome)
                for (_, _, end, _), outcome in zip(waiting, outcomes, strict=True)
            ]
        for (_, _, _, future), outcome, fault in zip(waiting, outcomes, faults, strict=True):
            if future.done():  # its caller was cancelled
                continue
            if fault is not None:
                future.set_exception(fault)
            elif isinstance(outcome, DatabaseError):
                future.set_exception(DatabaseError(str(outcome)))
            else:
                future.set_result(outcome)


def _leave(workers: set[asyncio.Task[None]]) -> None:
    """Take the running task out, in the step in which it has found nothing more to do.

    A callback of its end would come later: what arrives in between would wait for a task that has
    ended.
    """
    task = asyncio.current_task()
    assert task is not None  # noqa: S101 - it runs in one
    workers.discard(task)
