"""A circuit whose record a store keeps, so that all processes that use it have the same one.

It is `CircuitBreaker` between a read and a compare-and-set. A simulation adopts the stored record,
the event happens in the simulation, and it counts once the store has kept the outcome. A process
that is too late reads again and tries again. So the whole fleet has one probe, and one process
calls its listeners for a change.

- A call in a *trusted* circuit makes no access to the store until its last response is too old. A
  circuit is trusted while the last call did not fail and some process had a recent success.
- In an untrusted circuit, each call is recorded before it is made: no more calls are in flight than
  may fail. Otherwise two hundred runs that start together would all find a closed circuit, and try.
- A store that fails is not accessed for a while, and this process uses its own circuit. When the
  store answers again, its record holds, but only after a successful write: a store that can only be
  read would revert each failure.
- Times are stored in the store's time. A deadline that is further ahead than when it was written
  belongs to a clock that has restarted since, as a machine's does: it is past.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import threading
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any, Literal, NamedTuple, TypeVar

from ladon_storage.circuit.breaker import (
    CircuitBreaker,
    CircuitChange,
    CircuitRecord,
    CircuitState,
    Listener,
)
from ladon_storage.circuit.stores import CircuitStore, VersionedText
from ladon_storage.errors import CircuitOpenError, CircuitStoreError, CircuitUndecidedError

T = TypeVar("T")

logger = logging.getLogger(__name__)

FRESH_SECONDS = 0.1
TRUSTED_SECONDS = 10.0
RETRY_SECONDS = 5.0
# Between processes that fail at once: another process succeeds in each lost attempt.
MAX_CAS_ATTEMPTS = 50
LONGEST_PAUSE_SECONDS = 0.05

Event = Literal["acquire", "success", "failure", "release", "trip", "reset", "record"]

store_error_listeners: list[Callable[[], object]] = []
"""Listeners, called at each failed access to a store; the metrics of the client count them."""


class SharedRecord(NamedTuple):
    """The state of a circuit that all processes share.

    ``under_way`` counts the calls in flight of a closed circuit that is not trusted; ``trusted`` is
    the seconds for which it still is. ``reason`` and ``since`` describe the last change to a
    reader.
    """

    circuit: CircuitRecord = CircuitRecord(CircuitState.CLOSED, 0, 0, 0.0)
    in_flight: int = 0
    trusted: float = 0.0
    reason: str = "no call has failed"
    since: str = ""


class SharedCircuit(CircuitBreaker):
    """One circuit for all processes that name the same ``key`` in the same store.

    It behaves like a `CircuitBreaker`, and is used like one. `acquire` may also raise
    `CircuitUndecidedError`; ``call``, ``async with`` and `admit` wait instead.

    Args:
        store: The store of the record. No other circuit may use the same object, unless it is a
            `GuardedStore`.
        key: The service that the circuit protects, by its URL.
        failure_threshold: As of a `CircuitBreaker`; processes should agree on it.
        timeout_seconds: The same.
        clock: Seconds of this process that never go back.
        probe_lease_seconds: Seconds after which another process probes instead of one that died.
        ignored: Exceptions that say nothing about the service.
        listeners: Called with each `CircuitChange` that this process made.
        name: The service that the circuit protects, as messages name it.
        limits_unproven: Whether no more calls of an untrusted circuit are in flight than may fail.

    Raises:
        ValueError: A limit makes no sense.

    >>> from ladon_storage.circuit.stores import MemoryStore
    >>> store = MemoryStore()
    >>> one, another = SharedCircuit(store, "the feed"), SharedCircuit(store, "the feed")
    >>> one.trip()
    >>> another.state
    <CircuitState.OPEN: 'open'>
    """

    def __init__(
        self,
        store: CircuitStore,
        key: str,
        failure_threshold: int = 5,
        timeout_seconds: float = 60,
        *,
        clock: Callable[[], float] = time.monotonic,
        probe_lease_seconds: float | None = None,
        ignored: tuple[type[Exception], ...] = (),
        listeners: tuple[Listener, ...] = (),
        name: str | None = None,
        limits_unproven: bool = True,
    ) -> None:
        super().__init__(
            failure_threshold,
            timeout_seconds,
            clock=clock,
            probe_lease_seconds=probe_lease_seconds,
            ignored=ignored,
            listeners=listeners,
            name=name or key,
        )
        self.key = key
        self.store = store
        self.limits_unproven = limits_unproven
        self._deciding = threading.Lock()
        self._simulation = _Simulation(self)
        self._last = SharedRecord()
        self._fresh_until = -math.inf
        self._trusted_until = -math.inf
        self._retry_at = -math.inf
        self.store_error: CircuitStoreError | None = None
        """The store's last error; ``None`` while it answers."""

    @property
    def state(self) -> CircuitState:
        """The present state in all processes, or in this one while the store does not answer."""
        return self.shared_record().circuit.state

    def shared_record(self) -> SharedRecord:
        """Return the shared record, or this process's own while the store does not answer."""
        if self._clock() >= self._fresh_until:
            self._decide("record")
        return self._last._replace(circuit=self.record())

    async def call(self, func: Callable[[], Awaitable[T]]) -> T:
        """Await ``func()`` if the circuit admits it, and judge the service by how it ends.

        Raises:
            CircuitOpenError: The call was rejected; ``func`` was not called.
            TypeError: ``func`` is no async callable without arguments; that counts as nothing.
        """
        permit = await self.admit()
        try:
            result = await func()
        except BaseException as error:
            self._judge_call(permit, error)
            raise
        self.success(permit)
        return result

    async def admit(self) -> int:
        """Call `acquire`, but wait while it is not decided whether the service works.

        Raises:
            CircuitOpenError: The circuit is open, or its probe is in flight.
        """
        pause = 0.001
        while True:
            try:
                return self.acquire()
            except CircuitUndecidedError:
                await asyncio.sleep(pause)
                pause = min(pause * 1.5, LONGEST_PAUSE_SECONDS)

    def acquire(self) -> int:
        """Admit one call and return its permit, to be handed to exactly one of the verdicts.

        Raises:
            CircuitOpenError: The circuit is open, or its probe is in flight.
            CircuitUndecidedError: As many calls are in flight as may fail.
        """
        now = self._clock()
        if now < self._fresh_until:
            permit = self._generation
            if self._state is not CircuitState.CLOSED:
                wait = self._next_probe - now
                if wait > 0:
                    raise CircuitOpenError(self.name, wait)
            elif now < self._trusted_until and not self._failures:
                return permit
        admitted: int = self._decide("acquire")
        return admitted

    def success(self, permit: int) -> None:
        """Judge the call of ``permit``: the service works."""
        if self._is_in_doubt(TRUSTED_SECONDS / 2):
            self._decide("success", permit)

    def failure(self, permit: int) -> None:
        """Judge the call of ``permit``: the service failed."""
        self._decide("failure", permit)

    def release(self, permit: int) -> None:
        """Give ``permit`` back without a verdict: the call says nothing about the service."""
        if self._is_in_doubt(0):
            self._decide("release", permit)

    def trip(self, reason: str = "tripped by hand") -> None:
        """Open the circuit in all processes; a probe is admitted after the timeout."""
        self._decide("trip", reason)

    def reset(self, reason: str = "reset by hand") -> None:
        """Close the circuit in all processes; verdicts of calls in flight are discarded."""
        self._decide("reset", reason)

    def _is_in_doubt(self, seconds: float) -> bool:
        """Return whether the circuit is not closed, or not trusted for that long."""
        return (
            self._failures > 0
            or self._state is not CircuitState.CLOSED
            or self._clock() + seconds >= self._trusted_until
        )

    def _decide(self, event: Event, *arguments: object) -> Any:
        """Let an event happen in all processes, or in this one while the store does not answer."""
        try:
            with self._deciding:
                if self._clock() >= self._retry_at:
                    return self._agree(event, *arguments)
        except CircuitStoreError as error:
            self._lose(error)
        finally:
            self._notify()
        return getattr(CircuitBreaker, event)(self, *arguments)

    def _agree(self, event: Event, *arguments: object) -> Any:
        for _ in range(MAX_CAS_ATTEMPTS):
            stored = self.store.read(self.key)
            before = self._known(stored, event)
            try:
                outcome, after, changes = self._simulation.of(before, event, *arguments)
            except CircuitOpenError:
                if not self.store_error or self._swap(stored, before):
                    self._learn(before)
                    raise
                continue
            if (after == before and not self.store_error) or self._swap(stored, after):
                self._learn(after)
                self._changes.extend(changes)
                return outcome
        raise CircuitStoreError(
            f"The circuit store {self.store.place} was changed by others {MAX_CAS_ATTEMPTS} times "
            "in a row; "
            "see what writes there."
        )

    def _known(self, stored: VersionedText, event: Event) -> SharedRecord:
        try:
            return _record(stored, self.store.place)
        except CircuitStoreError:
            if event not in ("trip", "reset"):
                raise
            return SharedRecord()  # an operator's command replaces an unreadable record

    def _swap(self, stored: VersionedText, record: SharedRecord) -> bool:
        return self.store.compare_and_set(self.key, stored.tag, _text(record, stored.now))

    def _learn(self, record: SharedRecord) -> None:
        self.adopt(record.circuit)
        self._last = record
        now = self._clock()
        self._fresh_until, self._trusted_until = now + FRESH_SECONDS, now + record.trusted
        if self.store_error:
            self.store_error = None
            if not getattr(self.store, "logs_errors", False):
                logger.info("The circuit store %s answers again.", self.store.place)

    def _lose(self, error: CircuitStoreError) -> None:
        """Use this process's own circuit for a while, and log that the first time."""
        for listener in store_error_listeners:
            listener()
        now = self._clock()
        self._retry_at, self._fresh_until, self._trusted_until = now + RETRY_SECONDS, now, now
        if not self.store_error and not getattr(self.store, "logs_errors", False):
            logger.warning(
                "%s Meanwhile the circuit of %s is each process's own.", error, self.name
            )
        self.store_error = error


class _Simulation(CircuitBreaker):
    """A simulation of one event on a record, and of its outcome.

    Its clock stands at 0, since a record's seconds count from now. In addition to its base class it
    counts the calls of a circuit that is not trusted. ``_next_probe`` means nothing while a circuit
    is closed; here it is then the time at which the last of those calls is given up.
    """

    def __init__(self, circuit: SharedCircuit) -> None:
        super().__init__(
            circuit.failure_threshold,
            circuit.timeout_seconds,
            clock=lambda: 0.0,
            probe_lease_seconds=circuit.probe_lease_seconds,
            name=circuit.name,
        )
        self._limits_unproven = circuit.limits_unproven
        self._in_flight = 0
        self._trusted = 0.0
        self._reason = self._since = ""

    def of(
        self, record: SharedRecord, event: Event, *arguments: object
    ) -> tuple[Any, SharedRecord, list[CircuitChange]]:
        """Return the result of an event on ``record``, the record after it, and the changes.

        Raises:
            CircuitOpenError: The event was a call that is rejected, and has no other outcome.
        """
        self._changes.clear()
        self.adopt(record.circuit)
        _, self._in_flight, self._trusted, self._reason, self._since = record
        outcome = getattr(self, event)(*arguments)
        after = SharedRecord(
            CircuitRecord(self._state, self._generation, self._failures, self._next_probe),
            self._in_flight,
            self._trusted,
            self._reason,
            self._since,
        )
        return outcome, after, list(self._changes)

    def acquire(self) -> int:
        permit = super().acquire()
        if self._state is CircuitState.CLOSED and (self._failures or not self._trusted):
            if not self._next_probe:
                self._in_flight = 0
            unproven = self._in_flight + self._failures
            if self._limits_unproven and unproven >= self.failure_threshold:
                raise CircuitUndecidedError(self.name, self._next_probe)
            self._in_flight += 1
            self._next_probe = self.probe_lease_seconds
        return permit

    def success(self, permit: int) -> None:
        is_late = permit != self._generation or self._state is CircuitState.OPEN
        super().success(permit)
        if not is_late:
            self._in_flight, self._next_probe, self._trusted = 0, 0.0, TRUSTED_SECONDS

    def failure(self, permit: int) -> None:
        self._end_one(permit)
        super().failure(permit)

    def release(self, permit: int) -> None:
        self._end_one(permit)
        super().release(permit)

    def _end_one(self, permit: int) -> None:
        if permit == self._generation and self._state is CircuitState.CLOSED:
            self._in_flight = max(self._in_flight - 1, 0)

    def _change(self, state: CircuitState, reason: str) -> None:
        super()._change(state, reason)
        self._in_flight, self._trusted, self._reason = 0, 0.0, reason
        self._since = datetime.now(UTC).isoformat(timespec="seconds")
        if state is CircuitState.CLOSED:
            self._next_probe = 0.0

    def _notify(self) -> None:
        """Call no listener: the change may still be discarded."""


def _text(record: SharedRecord, now: float) -> str:
    """Return a record's stored text, in the store's time."""
    circuit = record.circuit
    return json.dumps(
        {
            "state": circuit.state,
            "era": circuit.generation,
            "failures": circuit.failures,
            "until": now + circuit.wait,
            "span": circuit.wait,
            "under_way": record.in_flight,
            "trusted_until": now + record.trusted,
            "trusted_span": record.trusted,
            "reason": record.reason,
            "since": record.since,
        }
    )


def _record(stored: VersionedText, place: str) -> SharedRecord:
    """Return the record of a stored text, with seconds from now.

    Raises:
        CircuitStoreError: The text is no circuit's record.
    """
    if not stored.text:
        return SharedRecord()
    try:
        kept = json.loads(stored.text)
        return SharedRecord(
            CircuitRecord(
                CircuitState(kept["state"]),
                int(kept["era"]),
                int(kept["failures"]),
                _left(kept["until"], kept["span"], stored.now),
            ),
            int(kept["under_way"]),
            _left(kept["trusted_until"], kept["trusted_span"], stored.now),
            str(kept["reason"]),
            str(kept["since"]),
        )
    except (ValueError, TypeError, KeyError, OverflowError):
        raise CircuitStoreError(
            f"The circuit store {place} holds something that is no circuit; see what writes there, "
            "or reset the circuit."
        ) from None


def _left(until: float, span: float, now: float) -> float:
    """Return the seconds until ``until``, never more than they were when it was written."""
    left = float(until) - now
    if not math.isfinite(left) or left > float(span) + 1:
        return 0.0
    return min(max(left, 0.0), float(span))
