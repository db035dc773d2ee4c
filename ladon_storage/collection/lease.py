"""One run's hold on a source's watermark: fence, lease, heartbeat, checkpoints, and outcome.

- Each write carries the version tag of the write before it. So another writer in between, a faster
  run or an operator, wins, and the loser writes nothing more, not even `failed`.
- Records are stored by a run that was awake: one that slept, and whose lease is over, asks for the
  source first.
- A watermark with `running` that was written less than a lease ago belongs to that run. A live run
  writes it again three times a lease, so a killed run blocks others no longer than one lease.
- The age of a write is by the service's clock alone: the time of the response and the time of the
  write. The run's clock stands in only for a service that does not send its time. The length of the
  lease is the one that its holder set.
- A checkpoint is `success` and then `running` again: the source stays held.
- Nothing is written before the watermark was read: an unfenced failure could take the watermark
  away from a healthy run.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

from ladon_storage.collection.protocols import (
    MAX_LEASE,
    Run,
    SupportsHistory,
    WatermarkStore,
)
from ladon_storage.collection.standby import Holder, Standby
from ladon_storage.collection.stores import watermark_store
from ladon_storage.collection.summaries import one_line
from ladon_storage.errors import (
    InvalidResponseError,
    SourceBusyError,
    StorageError,
    StorageResponseError,
    WatermarkConflictError,
)
from ladon_storage.models import (
    EMPTY_WATERMARK,
    Precondition,
    Watermark,
    WatermarkChange,
    WatermarkStatus,
    WatermarkUpdate,
    meant,
)

logger = logging.getLogger(__name__)

FAILURE_SECONDS = 30.0
"""The longest time in which a failed or cancelled run may write its failure."""

RENEWALS_PER_LEASE = 3

MAX_RACES = 10
"""The number of times that other runs may be faster, until that is a fault of the service."""

HISTORY_PAGES, CHANGES_PER_PAGE = 20, 25
"""The depth of the search for a plausible watermark. A change has a ledger and an error message,
and a page of them must fit into a response.
"""

_CLOCK_RESOLUTION = timedelta(seconds=1)
"""The resolution of a service's `Date`."""

awake_or_asleep: Callable[[], float] = (
    partial(time.clock_gettime, time.CLOCK_BOOTTIME)
    if hasattr(time, "CLOCK_BOOTTIME")
    else time.monotonic
)
"""Seconds that never go back, and that also pass while the machine sleeps, where it counts them."""

_LONGEST_ERROR = 2_000 - len(" …")


class SourceLease:
    """One run's hold on the watermark of one source.

    Args:
        storage: The storage of the watermark.
        source_id: The source.
        run: The run; its clock stands in for a service that does not send its time.
        monotonic: Seconds that never go back.
    """

    def __init__(
        self,
        storage: WatermarkStore,
        source_id: str,
        run: Run,
        *,
        monotonic: Callable[[], float] = awake_or_asleep,
    ) -> None:
        self.run_id = run.run_id
        self.stored: Watermark | None = None
        """The watermark as the run found it."""
        self.before: datetime | None = None
        """Its last success; `EMPTY_WATERMARK` where that found nothing."""
        self.holder: Holder | None = None
        """The run that holds the source, where this run skips it."""
        self._storage = watermark_store(storage)
        self._monotonic = monotonic
        self._when_busy = run.when_busy
        self._standby = Standby(source_id, monotonic)
        self._is_standing_by = False
        self._heard: tuple[datetime, float] | None = None
        self.source_id = source_id
        self._lease = run.limits.lease
        self._clock = run.clock
        self._etag: str | None = None
        self._writing = asyncio.Lock()
        self._is_over = False
        self._conflict: WatermarkConflictError | None = None
        self._unanswered: WatermarkStatus | None = None
        self._awake = self._woken = monotonic()
        """The last time at which this run was seen awake, and the end of its last sleep."""
        self._held = -math.inf
        """The time at which its last answered write was sent."""
        self._answer: Watermark | None = None
        """The answer to that write."""

    @property
    def reading_digest(self) -> object:
        """The ``reading_digest`` of the source in its last complete run; ``None``: unknown."""
        return (getattr(self.stored, "ledger", None) or {}).get("reading_digest")

    async def read(self) -> bool:
        """Read the watermark, and return whether the source is free for this run.

        A run that waits returns when it is. A run that skips gets ``False``, and `holder`.

        Raises:
            SourceBusyError: Another run holds it, and this run does not wait, or not longer.
            InvalidResponseError: It has the status success, but no timestamp.
            StorageError: It could not be read, which is not the same as *never collected*.
        """
        self._is_standing_by = True
        while True:
            try:
                await self._read()
            except SourceBusyError as busy:
                if self._when_busy == "skip":
                    self.holder = Holder.of(busy)
                    return False
                if self._when_busy != "wait":
                    raise
                await self._standby.wait(busy, self.now())
            except StorageError as error:
                if not (error.transient and self._standby.is_waiting):
                    raise
                logger.warning("The wait for source %r goes on: %s", self.source_id, error)
                await self._standby.pause()
            else:
                self._standby.ended()
                self._is_standing_by = False
                return True

    async def _read(self) -> None:
        self.stored = stored = await self._storage.get_watermark(self.source_id)
        if stored is None:
            self.before = self._etag = None
            return
        self._hear(stored)
        self._refuse_if_held(stored)
        self.before = EMPTY_WATERMARK if stored.found_nothing else stored.last_successful_timestamp
        self._etag = stored.etag
        if self.before is None and stored.status == WatermarkStatus.SUCCESS:
            # Taken for "never collected", it would be overwritten without a trace of the mistake.
            raise InvalidResponseError(
                f"Watermark {self.source_id!r} says success and has no last_successful_timestamp; "
                "repair or delete it before collecting, since without it everything is collected "
                "again."
            )

    def now(self) -> datetime:
        """Return the service's time, by its last response and the seconds since, or the clock's."""
        if self._heard is None:
            return self._clock()
        told, then = self._heard
        return told + timedelta(seconds=self._monotonic() - then)

    def _hear(self, answer: Watermark) -> None:
        if (told := answer.answered_at) is not None:
            self._heard = told, self._monotonic()

    async def last_sane(self, limit: datetime) -> datetime | None:
        """Return the last watermark up to ``limit`` in the service's history.

        `EMPTY_WATERMARK` if it was deleted since, or moved to before all records; ``None`` if the
        service keeps no history, or has no such watermark.

        Raises:
            StorageError: The history could not be read.
        """
        async for change in self._moves():
            # One that moved to no instant was deleted, or reset to *nothing collected*.
            moved_to = change.to_timestamp or EMPTY_WATERMARK
            if moved_to <= limit:
                return moved_to
        return None

    async def is_set_by_hand(self, durable: datetime | None) -> bool:
        """Return whether an operator moved the watermark forward, over a range from ``durable`` on.

        A sink that reaches to where the last run had brought it lacks only what the operator left
        out: moves by hand that take each other back leave out nothing. A timestamp that was in the
        future is a mistake, and no choice.

        Args:
            durable: The sink's position; ``None``: it has nothing of the source.

        Raises:
            StorageError: The history could not be read.
        """
        to, is_moved = self.before, False
        async for change in self._moves():
            if not change.is_by_hand or change.to_timestamp != to:
                break
            if not is_moved and to is not None and to > change.at:
                return False
            to, is_moved = change.from_timestamp, True
            if meant(to) is None:
                return durable is None
        # A run had brought it there: a history keeps what operators did, also when it drops more.
        return is_moved and durable is not None and to is not None and to <= durable

    async def _moves(self) -> AsyncIterator[WatermarkChange]:
        """Yield the changes that moved the watermark, the latest first, as far as it is kept."""
        if not isinstance(self._storage, SupportsHistory):
            return
        before: int | None = None
        for _ in range(HISTORY_PAGES):
            try:
                page = await self._storage.watermark_history(
                    self.source_id, moved=True, limit=CHANGES_PER_PAGE, before=before
                )
            except StorageResponseError as error:
                # A service without this parameter, or a gateway that lets only watermarks through.
                if error.status not in (400, 403, 404, 405, 501):
                    raise
                return
            for change in page.changes if page else ():
                yield change
            before = page.next if page else None
            if before is None:
                return

    def _refuse_if_held(self, stored: Watermark) -> None:
        written = stored.last_run_timestamp
        if stored.status != WatermarkStatus.RUNNING or written is None:
            return
        holder, age = stored.run_id, self.now() - written
        lease = lease_of(stored)
        if lease is None:
            lease = self._lease
        # The same run may begin again: Prefect repeats a run that crashed under its own id.
        if holder == self.run_id or age >= lease:
            return
        # The service's clock was set back: a live run would have written again by now.
        if -age > (lease if self._heard is not None else MAX_LEASE):
            return
        until = written + lease
        named = "another run" if holder is None else f"run {holder!r}"
        raise SourceBusyError(
            f"Source {self.source_id!r} is being collected by {named}, last heard of at "
            f"{written.isoformat()}; wait until it ends, or until {until.isoformat()} if it died.",
            self.source_id,
            holder,
            until,
        )

    async def begin(self) -> bool:
        """Acquire the source, and return whether this run has it.

        Where another run was faster, one that waits or skips reads again, as at its beginning.

        Raises:
            SourceBusyError: Another run holds it, and this run does not wait longer.
            WatermarkConflictError: Another run was faster, and this run does not wait or skip.
            StorageError: It could not be read or written.
        """
        for _ in range(MAX_RACES):
            try:
                await self.acquire()
            except WatermarkConflictError:
                if self._when_busy == "fail":
                    raise
            else:
                return True
            if not await self.read():
                return False
        await self.acquire()
        return True

    async def acquire(self) -> None:
        """Write `running`: from now on the source is held."""
        dated = self.now()
        stored = await self._hold()
        # For a source that was never collected this response is the first. Where the service took
        # our time for its own, the lease would be judged by two clocks.
        if stored.last_run_timestamp == dated and abs(self.now() - dated) > _CLOCK_RESOLUTION:
            await self._hold()

    async def _hold(self) -> Watermark:
        return await self._write(WatermarkStatus.RUNNING, self.now(), lease=self._lease)

    @contextlib.asynccontextmanager
    async def renewed(self) -> AsyncIterator[None]:
        """Renew the lease in the background, and end the run when another one took over.

        Raises:
            WatermarkConflictError: Another run wrote the watermark.
        """
        owner = asyncio.current_task()
        assert owner is not None  # noqa: S101 - a coroutine runs in a task
        beating: asyncio.Task[None] | None = None
        waiting: asyncio.TimerHandle
        later = asyncio.get_running_loop().call_later

        def beat() -> None:
            nonlocal beating, waiting
            if self._is_over:
                return
            self._note_awake()
            if self._conflict is None and (beating is None or beating.done()):
                beating = asyncio.create_task(self._renew(owner), name=f"lease of {self.source_id}")
            waiting = later(self._renewal_seconds, beat)

        # Nearly all runs end sooner, and need no task.
        waiting = later(self._renewal_seconds, beat)
        try:
            try:
                yield
            finally:
                waiting.cancel()  # before the last renewal is awaited: none may begin meanwhile
        except GeneratorExit:  # a coroutine that is being closed cannot await
            if beating is not None:
                beating.cancel()
            raise
        except asyncio.CancelledError:
            await _ended(beating)
            if self._conflict is None or owner.uncancel():
                raise
            raise self._conflict from None
        except BaseException:
            await _ended(beating)
            raise
        else:
            await _ended(beating)

    @property
    def _renewal_seconds(self) -> float:
        return self._lease.total_seconds() / RENEWALS_PER_LEASE

    async def _renew(self, owner: asyncio.Task[object]) -> None:
        try:
            if not self._is_over:
                await self._hold()
        except WatermarkConflictError as conflict:
            self._conflict = conflict
            owner.cancel()
        except StorageError as error:
            # The run goes on: whether it still holds the source shows at its next write.
            logger.warning(
                "The lease of source %r could not be renewed: %s",
                self.source_id,
                error,
                extra={"source_id": self.source_id},
            )

    async def confirm(self) -> None:
        """Acquire the source again before a write to the sink, if the lease ended in a sleep.

        One that was stopped, or suspended with its machine, may hold a page from before another
        run took over. One that was awake goes on, also where it could not renew its lease.

        Raises:
            WatermarkConflictError: Another run took over.
            StorageError: Whether one did is unknown.
        """
        self._note_awake()
        if self._ended_asleep:
            await self._hold()

    @property
    def _ended_asleep(self) -> bool:
        """Whether the lease ended, and this run slept since its last answered write."""
        return self._woken > self._held and self._awake - self._held >= self._lease.total_seconds()

    def _note_awake(self) -> None:
        now = self._monotonic()
        if now - self._awake >= self._lease.total_seconds() / 2:  # a renewal is overdue by then
            self._woken = now
        self._awake = now

    async def checkpoint(self, timestamp: datetime, records: int) -> None:
        """Write the timestamp that is durable so far as `success`, and keep the source."""
        await self._write(WatermarkStatus.SUCCESS, timestamp, records_collected=records)
        await self._hold()

    async def commit(
        self, timestamp: datetime, records: int, ledger: Mapping[str, Any] | None = None
    ) -> None:
        """Write `success` and the run's ledger, and release the source."""
        self._is_over = True
        await self._write(
            WatermarkStatus.SUCCESS, timestamp, records_collected=records, ledger=ledger
        )

    async def abort(self, error: BaseException, ledger: Mapping[str, Any] | None = None) -> None:
        """Write `failed` within `FAILURE_SECONDS`; a failure to do so is a note on ``error``.

        The write is in a separate task, which a second cancellation does not reach. A run that
        stands by for its source writes nothing: another run holds it.
        """
        if self._is_standing_by:
            return
        self._is_over = True
        message = one_line(error, _LONGEST_ERROR)
        writing = asyncio.ensure_future(
            self._write(WatermarkStatus.FAILED, self.now(), error_message=message, ledger=ledger)
        )
        deadline = time.monotonic() + FAILURE_SECONDS
        while not writing.done() and (left := deadline - time.monotonic()) > 0:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait({writing}, timeout=left)
        problem: BaseException | None
        if not writing.done():
            writing.cancel()
            problem = TimeoutError(f"no answer within {FAILURE_SECONDS:g} s")
        elif writing.cancelled():
            problem = asyncio.CancelledError()
        else:
            problem = writing.exception()
        if problem is None:
            return
        note = f"That the run failed could not be written to its watermark: {one_line(problem)}"
        error.add_note(note)
        logger.error(
            "Source %r: %s (the run failed with %s)",
            self.source_id,
            note,
            message,
            exc_info=problem,
            extra={"source_id": self.source_id},
        )

    async def _write(
        self, status: WatermarkStatus, timestamp: datetime, **fields: Any
    ) -> Watermark:
        update = WatermarkUpdate.of(timestamp.astimezone(UTC), status, run_id=self.run_id, **fields)
        writing: Awaitable[Watermark] = self._put(status, update)
        if self._etag is None and self._answer is not None:
            # Without a version tag, a request that is on its way would be stored after the next
            # write. So that one waits for its answer, also where this task is cancelled meanwhile.
            writing = asyncio.shield(asyncio.ensure_future(writing))
        answer = await writing
        check_stored(answer, status, timestamp)
        return answer

    async def _put(self, status: WatermarkStatus, update: WatermarkUpdate) -> Watermark:
        async def put() -> Watermark:
            never_written = self.stored is None and self._etag is None
            condition = Precondition(self._etag, if_none_match=never_written)
            return await self._storage.put_watermark(self.source_id, update, condition)

        async with self._writing:
            self._note_awake()
            if self._ended_asleep and self._etag is None:
                await self._refuse_if_taken()
            asked = self._awake  # a sleep during the request is not over before its answer
            try:
                try:
                    answer = await put()
                except WatermarkConflictError:
                    if not await self._is_our_own():
                        raise
                    answer = await put()
            except WatermarkConflictError:
                raise
            except BaseException:
                self._unanswered = status
                raise
            self._unanswered, self._held, self._answer = None, asked, answer
            self._etag = answer.etag
            self._hear(answer)
            return answer

    async def _refuse_if_taken(self) -> None:
        """Refuse to write where no version tag would: another run may have written meanwhile."""
        ours = self._answer
        if ours is None:  # nothing was written yet
            return
        stored = await self._storage.get_watermark(self.source_id)
        written = ours.status, ours.last_run_timestamp
        if (
            None in written
            or stored is None
            or written != (stored.status, stored.last_run_timestamp)
        ):
            raise WatermarkConflictError(
                f"Watermark {self.source_id!r} was written by another run, or may have been, while "
                "this one slept for longer than its lease; run it again.",
                409,
            )

    async def _is_our_own(self) -> bool:
        """Return whether the stored watermark is a write of this run; if so, continue from it.

        A request may have arrived though its response was lost: it is no other run.
        """
        if self._unanswered is None:
            return False
        stored = await self._storage.get_watermark(self.source_id)
        written = (self.run_id, self._unanswered)
        if stored is None or (stored.run_id, stored.status) != written:
            return False
        self._etag, self._unanswered = stored.etag, None
        return True


def lease_of(held: Watermark) -> timedelta | None:
    """Return the lease that the holder of a source set, at most the longest that a run may have."""
    seconds = held.lease_seconds
    if seconds is None:
        return None
    return timedelta(seconds=min(seconds, MAX_LEASE.total_seconds()) if seconds > 0 else 0)


def check_stored(answer: Watermark, status: WatermarkStatus | None, timestamp: datetime) -> None:
    """Check that the response to a write does not show another watermark.

    Args:
        answer: The response, whose fields may be missing.
        status: What was written; ``None``: a reset, which leaves it.
        timestamp: The timestamp that was written.

    Raises:
        InvalidResponseError: The service did not store what was written.
    """
    stored, said = answer.last_successful_timestamp, answer.status
    is_other = isinstance(said, WatermarkStatus) and status not in (None, said)
    if status is WatermarkStatus.SUCCESS and not isinstance(said, WatermarkStatus | None):
        is_other = stored is None  # a word of the service's own, and nothing that was written
    if status is WatermarkStatus.RUNNING and said is WatermarkStatus.SUCCESS:
        is_other = False  # a service that keeps outcomes alone
    if status in (None, WatermarkStatus.SUCCESS) and stored and timestamp != EMPTY_WATERMARK:
        is_other |= abs(stored - timestamp) >= _CLOCK_RESOLUTION  # it may keep seconds
    if is_other:
        raise InvalidResponseError(
            f"Watermark {answer.source_id!r} was written as {status or 'reset'} at "
            f"{timestamp.isoformat()}, and the service answers that it is {answer.status} at "
            f"{stored.isoformat() if stored else 'no time'}: it did not store that. Look at the "
            "service, and try again."
        )


async def _ended(task: asyncio.Task[None] | None) -> None:
    if task is not None:
        task.cancel()
        await asyncio.wait({task})
