"""A call as a Prefect task run, or by its caller if Prefect keeps the run from starting.

- Either the task run or the caller makes the call, never both: the first to start has it. A task
  run that starts after its caller made the call takes over the caller's outcome.
- A body that has started is awaited, however long it takes: the request in it has its own timeout.
  Only the silence before its start, between two attempts and after its end is bounded.
- An error of the body is the call's error. Any other error is Prefect's, and no reason to skip the
  call.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
from collections.abc import Awaitable, Callable, Coroutine
from contextvars import ContextVar
from typing import Any, Generic, ParamSpec, TypeVar

logger = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")
Errors = type[BaseException] | tuple[type[BaseException], ...]

PATIENCE_SECONDS = 5.0
"""The longest time for a task run to start, and to end, while its body is not running."""

RETRY_SECONDS = 15.0
"""The longest wait of a task run between two attempts; the pauses of these tasks are shorter."""

_LOOK_SECONDS = 1.0

_left_behind: set[asyncio.Future[Any]] = set()
"""Task runs that their callers left: a loop alone would let them be garbage-collected."""


class _Call(Generic[T]):
    """One call that either a task run or its caller makes."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.is_running = False
        self.since = loop.time()
        self.outcome: asyncio.Future[T] = loop.create_future()
        self.error: BaseException | None = None
        self.directly: asyncio.Future[T] | None = None

    async def attempt(self, make: Callable[[], Awaitable[T]]) -> T:
        """Make the call as the task's body, or await the caller if it was faster."""
        if self.directly is not None:
            outcome: T = await asyncio.shield(self.directly)
            return outcome
        self.is_running, self.error = True, None
        try:
            result = await make()
        except BaseException as error:
            self.error = error
            raise
        finally:
            self.is_running, self.since = False, asyncio.get_running_loop().time()
        self.outcome.set_result(result)
        return result

    def silence_left(self) -> float:
        """Return the seconds for which the task run may still be silent."""
        if self.is_running:
            return _LOOK_SECONDS
        bound = PATIENCE_SECONDS if self.error is None else RETRY_SECONDS
        return self.since + bound - asyncio.get_running_loop().time()


_under_way: ContextVar[_Call[Any] | None] = ContextVar("ladon_storage_call", default=None)


def body(call: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, Coroutine[Any, Any, T]]:
    """Make a function the body of a task that `by_task` may start; elsewhere it is unchanged."""

    @functools.wraps(call)
    async def made(*arguments: P.args, **named: P.kwargs) -> T:
        # By an imported function: the names in this one go to other processes with it.
        return await _attempted(functools.partial(call, *arguments, **named))

    return made


async def _attempted(make: Callable[[], Awaitable[T]]) -> T:
    caller = _under_way.get()
    if caller is None:
        return await make()
    token = _under_way.set(None)  # a task that the body runs is another call
    try:
        outcome: T = await caller.attempt(make)
        return outcome
    finally:
        _under_way.reset(token)


async def by_task(
    name: str,
    task: Callable[[], Awaitable[T]],
    directly: Callable[[], Awaitable[T]],
    *,
    despite: Errors = Exception,
) -> T:
    """Let a task run make a call, or make it directly where Prefect keeps the run from starting.

    When cancelled, it returns after the body has ended.

    Args:
        name: The call's name in the log.
        task: Starts the task run, whose function is a `body`.
        directly: Makes the call without a task run.
        despite: The errors of a task run without a body after which the call is made. Any other is
            meant for the run, and raised.
    """
    call: _Call[T] = _Call()
    token = _under_way.set(call)
    try:
        running: asyncio.Future[T] = asyncio.ensure_future(_awaited(task))
    finally:
        _under_way.reset(token)
    _left_behind.add(running)
    running.add_done_callback(_forget)
    try:
        while not running.done() and (left := call.silence_left()) > 0:
            await asyncio.wait({running}, timeout=left)
    except asyncio.CancelledError:
        running.cancel()
        await _settled(call, running)
        raise
    if call.outcome.done():
        return call.outcome.result()
    if call.error is not None:
        raise call.error
    if (told := _ending(running, despite)) is not None:
        raise told
    logger.warning("%s goes on without its task run: %s", name, _why(running))
    call.directly = asyncio.ensure_future(_awaited(directly))
    call.directly.add_done_callback(_forget)
    return await call.directly


async def _awaited(begin: Callable[[], Awaitable[T]]) -> T:
    return await begin()


async def _settled(call: _Call[T], running: asyncio.Future[T]) -> None:
    """Await a cancelled body's end, and briefly its task run's, despite further cancellations."""
    while not running.done() and call.silence_left() > 0:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait({running}, timeout=min(_LOOK_SECONDS, call.silence_left()))


def _ending(running: asyncio.Future[Any], despite: Errors) -> BaseException | None:
    """Return an exception of a task run that is meant for the run or the process, as a signal's."""
    if not running.done() or running.cancelled():
        return None
    problem = running.exception()
    return None if isinstance(problem, despite) else problem


def _why(running: asyncio.Future[Any]) -> str:
    if not running.done():
        return f"Prefect did not let it begin within {PATIENCE_SECONDS:g} s."
    problem = None if running.cancelled() else running.exception()
    return f"Prefect failed it with {type(problem).__name__}." if problem else "It did nothing."


def _forget(done: asyncio.Future[Any]) -> None:
    """Retrieve the outcome of a future that may have no waiter."""
    _left_behind.discard(done)
    if not done.cancelled():
        done.exception()
