"""A call that a Prefect task run makes; or its caller, where Prefect keeps the run from beginning.

- One of both makes the call, never both: whoever begins first has it. A task run that begins after
  its caller made the call takes the caller's outcome for its own.
- A body that has begun is waited for, however long it takes: the request in it has a timeout of its
  own. What is bounded is the silence before it begins, between two attempts, and after its end.
- What the body raised is the call's error. Any other error is Prefect's, and no reason to leave the
  call out.
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

PATIENCE_SECONDS = 5.0
"""How long a task run may take to begin, and to end, while its body does nothing."""

RETRY_SECONDS = 15.0
"""How long a task run may wait between two attempts; the pauses of these tasks are shorter."""

_LOOK_SECONDS = 1.0

_left_behind: set[asyncio.Future[Any]] = set()
"""Task runs whose callers went on: a loop alone would let them be collected as garbage."""


class _Call(Generic[T]):
    """One call of a task run and its caller, and who makes it."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.is_running = False
        self.since = loop.time()
        self.outcome: asyncio.Future[T] = loop.create_future()
        self.error: BaseException | None = None
        self.directly: asyncio.Future[T] | None = None

    async def attempt(self, make: Callable[[], Awaitable[T]]) -> T:
        """Make the call as the task's body, or wait for the caller that was faster."""
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
        """Return for how many more seconds the task run may be silent."""
        if self.is_running:
            return _LOOK_SECONDS
        bound = PATIENCE_SECONDS if self.error is None else RETRY_SECONDS
        return self.since + bound - asyncio.get_running_loop().time()


_under_way: ContextVar[_Call[Any] | None] = ContextVar("ladon_storage_call", default=None)


def body(call: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, Coroutine[Any, Any, T]]:
    """Let a function be the body of a task that `by_task` may begin; else it is as it was."""

    @functools.wraps(call)
    async def made(*arguments: P.args, **named: P.kwargs) -> T:
        # By a function that is imported: what this one names goes to other processes with it.
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
    name: str, task: Callable[[], Awaitable[T]], directly: Callable[[], Awaitable[T]]
) -> T:
    """Let a task run make a call, or make it without one where Prefect keeps it from beginning.

    Cancelled, it returns when the body has ended.

    Args:
        name: What the call is, for the log.
        task: Begins the task run, whose function is a `body`.
        directly: Makes the call without it.
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
    if (told := _ending(running)) is not None:
        raise told
    logger.warning("%s goes on without its task run: %s", name, _why(running))
    call.directly = asyncio.ensure_future(_awaited(directly))
    call.directly.add_done_callback(_forget)
    return await call.directly


async def _awaited(begin: Callable[[], Awaitable[T]]) -> T:
    return await begin()


async def _settled(call: _Call[T], running: asyncio.Future[T]) -> None:
    """Wait for a cancelled body to end, and a while for its task run; cancelled again, go on."""
    while not running.done() and call.silence_left() > 0:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait({running}, timeout=min(_LOOK_SECONDS, call.silence_left()))


def _ending(running: asyncio.Future[Any]) -> BaseException | None:
    """Return what a signal raised in a task run: it is meant for the process, not for the task."""
    if not running.done() or running.cancelled():
        return None
    problem = running.exception()
    return None if isinstance(problem, Exception) else problem


def _why(running: asyncio.Future[Any]) -> str:
    if not running.done():
        return f"Prefect did not let it begin within {PATIENCE_SECONDS:g} s."
    problem = None if running.cancelled() else running.exception()
    return f"Prefect failed it with {type(problem).__name__}." if problem else "It did nothing."


def _forget(done: asyncio.Future[Any]) -> None:
    """Take note of how it ended, which nobody may be waiting for."""
    _left_behind.discard(done)
    if not done.cancelled():
        done.exception()
