"""The circuit of one remote service, which admits or rejects calls by the outcome of the last ones.

A state machine without I/O. It knows no event loop, and takes its clock as an argument.

::

    state      event                              next       effect
    ---------  ---------------------------------  ---------  ---------------------------------
    closed     acquire                            closed     admitted
    closed     success                            closed     the count of failures becomes 0
    closed     failure, below the threshold       closed     the count goes up by one
    closed     failure, reaching the threshold    open       the deadline is now + timeout
    open       acquire before the deadline        open       rejected
    open       acquire from the deadline on       half_open  admitted as the probe, with a lease
    half_open  acquire while the lease runs       half_open  rejected
    half_open  acquire after the lease            half_open  admitted as the probe, with a new lease
    half_open  the probe succeeds                 closed     the count of failures becomes 0
    half_open  the probe fails                    open       the deadline is now + timeout
    half_open  the probe is released unjudged     half_open  the next acquire is the probe
    any        a verdict of an earlier generation the same   none
    any        trip                               open       the deadline is now + timeout
    any        reset                              closed     the count of failures becomes 0

- A *permit* is the number of the generation in which it was given. Every change of state and
  every probe begins a generation. So the verdict of a slow call from before an outage, or of a
  probe whose lease ran out, changes nothing; and admitting a call allocates nothing.
- Only an ``Exception`` is a failure. ``CancelledError``, ``KeyboardInterrupt`` and their kind say
  nothing about the service: they give the permit back. Breakers that treat a cancelled probe as a
  success or a failure close or reopen on a user's Ctrl-C.
- A ``threading.Lock`` guards the transitions, and is never held across an ``await``: one breaker
  serves any number of loops and threads. Reading skips it. A call is admitted while closed with an
  generation that is read before the state: its permit can only be too old. A call is rejected by
  a next probe that is read after the state: it was written for a circuit that is not closed.
- Listeners run outside the lock, in the order of the changes; one that raises is logged.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from enum import StrEnum
from types import TracebackType
from typing import NamedTuple, TypeVar

from ladon_storage.errors import CircuitOpenError

T = TypeVar("T")

logger = logging.getLogger(__name__)


class CircuitState(StrEnum):
    """The state of a circuit, which decides about the next call."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class CircuitChange(NamedTuple):
    """One change of the circuit ``name`` from ``before`` to ``after``, with its reason."""

    name: str
    before: CircuitState
    after: CircuitState
    reason: str


class CircuitRecord(NamedTuple):
    """The state of a circuit as a value that another circuit can adopt.

    ``wait`` is in seconds from now until the next probe may be admitted; a closed circuit has none.
    """

    state: CircuitState
    generation: int
    failures: int
    wait: float


# Every call looks one up, and Python 3.11 finds an enum's member by a function written in Python.
_CLOSED, _OPEN, _HALF_OPEN = CircuitState

Listener = Callable[[CircuitChange], object]

# Permits of the open `async with` blocks of the current context, the innermost last.
_entered: ContextVar[tuple[tuple[CircuitBreaker, int], ...]] = ContextVar("_entered", default=())


class CircuitBreaker:
    """A circuit that rejects calls to a failing service, and admits one probe to see if it is back.

    A rejected call raises `CircuitOpenError` with ``retry_after`` in seconds. An admitted call's
    own result or error reaches its caller unchanged, also from the call that opens the circuit.

    Args:
        failure_threshold: Consecutive failures that open the circuit.
        timeout_seconds: Seconds from opening until a probe is admitted.
        clock: Seconds that never go back; not the wall clock, which may jump.
        probe_lease_seconds: Seconds after which a probe without a verdict is given up and another
            is admitted; ``timeout_seconds`` unless set.
        ignored: Exceptions that say nothing about the service: they leave the count alone.
        listeners: Called with each `CircuitChange`.
        name: The service that the circuit protects, as messages name it.

    Raises:
        ValueError: A limit makes no sense.

    >>> import asyncio
    >>> async def unreachable() -> None:
    ...     raise ConnectionError("refused")
    >>> async def main() -> None:
    ...     breaker = CircuitBreaker(failure_threshold=1, timeout_seconds=60, name="the feed")
    ...     for _ in range(2):
    ...         try:
    ...             await breaker.call(unreachable)
    ...         except Exception as error:
    ...             print(breaker.state, "-", error)
    >>> asyncio.run(main())
    open - refused
    open - The circuit of the feed is open; it admits a probe in 60.0 s; try again then.
    """

    def __init__(
        self,
        failure_threshold: int = 5,
        timeout_seconds: float = 60,
        *,
        clock: Callable[[], float] = time.monotonic,
        probe_lease_seconds: float | None = None,
        ignored: tuple[type[Exception], ...] = (),
        listeners: tuple[Listener, ...] = (),
        name: str = "the Storage Service",
    ) -> None:
        if type(failure_threshold) is not int or failure_threshold < 1:
            raise ValueError(
                f"failure_threshold should be a whole number from 1 on, not {failure_threshold!r}"
            )
        if not (math.isfinite(timeout_seconds) and timeout_seconds >= 0):
            raise ValueError(
                f"timeout_seconds should be finite and 0 or more, not {timeout_seconds}"
            )
        if probe_lease_seconds is None:
            probe_lease_seconds = timeout_seconds or 60.0
        if not (math.isfinite(probe_lease_seconds) and probe_lease_seconds > 0):
            raise ValueError(
                f"probe_lease_seconds should be finite and above 0, not {probe_lease_seconds}"
            )
        self.failure_threshold = failure_threshold
        self.timeout_seconds = timeout_seconds
        self.probe_lease_seconds = probe_lease_seconds
        self.name = name
        self._clock = clock
        self._ignored = ignored
        self._listeners = listeners
        self._lock = threading.Lock()
        self._notifying = threading.Lock()
        self._changes: deque[CircuitChange] = deque()
        self._state = _CLOSED
        self._generation = 0
        # Above 0 in every state but a closed one without failures, where a success changes nothing.
        self._failures = 0
        # When the next probe may be admitted: the end of the timeout, or of the probe's lease.
        self._next_probe = 0.0

    @property
    def state(self) -> CircuitState:
        """The present state; an open circuit stays ``open`` until it admits a probe."""
        return self._state

    @property
    def failure_count(self) -> int:
        """Consecutive failures since the last success, the probe's included."""
        return self._failures

    def __repr__(self) -> str:
        return (
            f"<CircuitBreaker of {self.name}: {self._state}, "
            f"{self._failures} of {self.failure_threshold} failures>"
        )

    def add_listener(self, listener: Listener) -> None:
        """Call ``listener`` with each change of state from now on, in the thread that caused it."""
        self._listeners = (*self._listeners, listener)

    def record(self) -> CircuitRecord:
        """Return this circuit's present state as a value."""
        with self._lock:
            wait = 0.0 if self._state is _CLOSED else max(self._next_probe - self._clock(), 0.0)
            return CircuitRecord(self._state, self._generation, self._failures, wait)

    def adopt(self, record: CircuitRecord) -> None:
        """Adopt another circuit's state; no listener is called, since nothing changed."""
        with self._lock:
            self._next_probe = self._clock() + record.wait
            self._failures = record.failures
            self._state, self._generation = record.state, record.generation

    async def call(self, func: Callable[[], Awaitable[T]]) -> T:
        """Await ``func()`` if the circuit admits it, and judge the service by how it ends.

        Raises:
            CircuitOpenError: The call was rejected; ``func`` was not called.
            TypeError: ``func`` is no async callable without arguments; that counts as nothing.
        """
        generation = self._generation
        if self._state is not _CLOSED:
            # `check`, without its frame: a rejection must cost next to nothing.
            wait = self._next_probe - self._clock()
            if wait > 0:
                raise CircuitOpenError(self.name, wait)
            generation = self.acquire()
        try:
            result = await func()
        except BaseException as error:
            self._judge_call(generation, error)
            raise
        if self._failures:
            self.success(generation)
        return result

    async def __aenter__(self) -> CircuitBreaker:
        permit = await self.admit()
        _entered.set((*_entered.get(), (self, permit)))
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        entered = _entered.get()
        for index in range(len(entered) - 1, -1, -1):
            breaker, permit = entered[index]
            if breaker is self:
                _entered.set(entered[:index] + entered[index + 1 :])
                self._judge(permit, error)
                return

    def _judge(self, permit: int, error: BaseException | None) -> None:
        if error is None:
            self.success(permit)
        elif isinstance(error, Exception) and not isinstance(error, self._ignored):
            self.failure(permit)
        else:
            self.release(permit)

    def _judge_call(self, permit: int, error: BaseException) -> None:
        """Judge a call by its error; what could not be called says nothing about the service."""
        if is_of_caller(error):
            self.release(permit)
        else:
            self._judge(permit, error)

    def check(self) -> None:
        """Raise what `acquire` would raise now, and take no permit.

        Raises:
            CircuitOpenError: A call would be rejected.
        """
        if self._state is not _CLOSED:
            wait = self._next_probe - self._clock()
            if wait > 0:
                raise CircuitOpenError(self.name, wait)

    def acquire(self) -> int:
        """Admit one call and return its permit, to be handed to exactly one of the verdicts.

        Raises:
            CircuitOpenError: The circuit is open, or its probe is in flight.
        """
        permit = self._generation
        if self._state is _CLOSED:
            return permit
        with self._lock:
            if self._state is _CLOSED:
                return self._generation
            self.check()
            self._next_probe = self._clock() + self.probe_lease_seconds
            self._generation += 1
            permit = self._generation
            if self._state is _OPEN:
                self._change(_HALF_OPEN, "the timeout has passed")
        self._notify()
        return permit

    async def admit(self) -> int:
        """Call `acquire`; a circuit that processes share may have to wait first."""
        return self.acquire()

    def success(self, permit: int) -> None:
        """Judge the call of ``permit``: the service works."""
        if not self._failures:
            return
        with self._lock:
            if permit != self._generation or self._state is _OPEN:
                return
            self._failures = 0
            if self._state is _HALF_OPEN:
                self._generation += 1
                self._change(_CLOSED, "the probe succeeded")
        self._notify()

    def failure(self, permit: int) -> None:
        """Judge the call of ``permit``: the service failed."""
        with self._lock:
            if permit != self._generation or self._state is _OPEN:
                return
            self._failures += 1
            if self._state is _HALF_OPEN:
                self._open("the probe failed")
            elif self._failures >= self.failure_threshold:
                self._open(f"{self._failures} consecutive failures")
        self._notify()

    def release(self, permit: int) -> None:
        """Give ``permit`` back without a verdict: the call says nothing about the service."""
        with self._lock:
            if permit == self._generation and self._state is _HALF_OPEN:
                self._next_probe = self._clock()

    def trip(self, reason: str = "tripped by hand") -> None:
        """Open the circuit now; a probe is admitted after the timeout, as after failures."""
        with self._lock:
            self._failures = max(self._failures, 1)
            self._open(reason)
        self._notify()

    def reset(self, reason: str = "reset by hand") -> None:
        """Close the circuit now; verdicts of calls in flight are discarded."""
        with self._lock:
            self._failures = 0
            self._generation += 1
            self._change(_CLOSED, reason)
        self._notify()

    def _open(self, reason: str) -> None:
        self._next_probe = self._clock() + self.timeout_seconds
        self._generation += 1
        self._change(_OPEN, reason)

    def _change(self, state: CircuitState, reason: str) -> None:
        before, self._state = self._state, state
        if before is not state:
            self._changes.append(CircuitChange(self.name, before, state, reason))

    def _notify(self) -> None:
        # The holder of the lock also delivers changes that other threads add, to keep the order.
        while self._changes and self._notifying.acquire(blocking=False):
            try:
                while self._changes:
                    change = self._changes.popleft()
                    for listener in self._listeners:
                        try:
                            listener(change)
                        except Exception:
                            logger.exception("A listener of the circuit of %s failed", self.name)
            finally:
                self._notifying.release()


def is_of_caller(error: BaseException) -> bool:
    """Return whether an error was raised by `call` itself: its argument is no async callable."""
    traceback = error.__traceback__
    return isinstance(error, TypeError) and traceback is not None and traceback.tb_next is None
