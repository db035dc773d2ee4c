"""Who ended a run: a signal, a cancellation in Prefect, the run's own timeout.

What reaches a run that is told to end is a `CancelledError`, whoever told it. So signals are noted
as they come, before Prefect's own handler acts on them, and the rest is asked for.

- SIGHUP ends a run as SIGTERM does, unless it is ignored: under ``nohup`` it stays so.
- Handlers belong to the process: they are set by the first run in its main thread, and given back
  by the last one.
- What a handler raises is lost where it strikes in a callback of the loop or in another task. So a
  signal that came before a run's body ends it there, and one that came later cancels the run, if
  it goes on as if nothing had happened.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, TypeVar

from prefect import get_client, runtime
from prefect.client.schemas.objects import StateType
from prefect.context import FlowRunContext
from prefect.exceptions import TerminationSignal

T = TypeVar("T")

GRACE_SECONDS = 0.5
"""How long a run may go on after a signal before it is cancelled."""

ASK_SECONDS = 3.0
"""How long Prefect may take to say whether it cancelled a run."""

_NOTED = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)

_NAMELESS = re.compile(
    r"(cancelled|CancelledError|TerminationSignal|KeyboardInterrupt|SystemExit)\b"
)

_runs = 0
_is_begun = False  # whether a run whose body is still to come set the handlers
_handlers: dict[int, Any] = {}
_signal: signal.Signals | None = None
_bodies: list[tuple[asyncio.AbstractEventLoop, asyncio.Task[Any]]] = []


def note_signals() -> None:
    """Note the signals that end this process from now on, for a run whose body is still to come."""
    global _is_begun, _signal
    if threading.current_thread() is not threading.main_thread():
        return
    if not _runs:
        _is_begun, _signal = True, None
    _set_handlers()


@contextmanager
def signals_noted() -> Iterator[None]:
    """Note the signals that end this process, and let SIGHUP end it as SIGTERM does.

    Raises:
        TerminationSignal: The process was told to end before.
        KeyboardInterrupt: It was told so by SIGINT.
    """
    global _is_begun, _runs, _signal
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    if not _runs and not _is_begun:
        _signal = None
    _is_begun = False
    _runs += 1
    _set_handlers()
    body = _body()
    _bodies.extend(body)
    try:
        _end_if_told()
        yield
    finally:
        for each in body:
            _bodies.remove(each)
        _runs -= 1
        for number in list(_handlers) if not _runs else ():
            before = _handlers.pop(number)
            if signal.getsignal(number) is _note:  # nobody set another one meanwhile
                signal.signal(number, before)


def _set_handlers() -> None:
    number: int
    for number in _NOTED:
        before = signal.getsignal(number)
        if before not in (_note, signal.SIG_IGN, None):
            _handlers[number] = before
            signal.signal(number, _note)


def _body() -> list[tuple[asyncio.AbstractEventLoop, asyncio.Task[Any]]]:
    """Return the task in which the body of a run is, with its loop."""
    try:
        task = asyncio.current_task()
    except RuntimeError:  # no loop runs
        return []
    return [] if task is None else [(task.get_loop(), task)]


def _end_if_told() -> None:
    if _signal is signal.SIGINT:
        raise KeyboardInterrupt
    if _signal is not None:
        raise TerminationSignal(signal.SIGTERM)


def _cancel_later(body: tuple[asyncio.AbstractEventLoop, asyncio.Task[Any]]) -> None:
    loop, task = body

    def cancel() -> None:
        if body in _bodies and not task.cancelling():
            task.cancel()

    with suppress(RuntimeError):  # the loop is closed
        loop.call_soon_threadsafe(loop.call_later, GRACE_SECONDS, cancel)


def _note(number: int, frame: FrameType | None) -> None:
    """Note a signal, and let whoever handled it before handle it."""
    global _signal
    if _signal is None:
        _signal = signal.Signals(number)
    for body in _bodies:
        _cancel_later(body)
    if number == signal.SIGHUP:
        os.kill(os.getpid(), signal.SIGTERM)
        return
    before = _handlers.get(number)
    if callable(before):
        before(number, frame)
    elif before is signal.SIG_DFL:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)


def signal_noted() -> str | None:
    """Return the name of the signal that was noted last, if one was."""
    return None if _signal is None else _signal.name


class Ending:
    """How one run came to its end, asked for when it was cancelled."""

    def __init__(self, seconds: Callable[[], float] = time.monotonic) -> None:
        self._seconds = seconds
        self._began = seconds()
        context = FlowRunContext.get()
        self._timeout = context.flow.timeout_seconds if context and context.flow else None
        self._said: str | None = None

    async def said(self) -> str:
        """Return in a few words who ended the run; asked again, the same."""
        if self._said is None:
            self._said = f"ended by {await self._who()}"
        return self._said

    async def named(self, message: str) -> str:
        """Return an error message; who ended the run, where it says only that it was."""
        return await self.said() if _NAMELESS.match(message) else message

    async def _who(self) -> str:
        if self._timeout and self._seconds() - self._began >= self._timeout:
            return f"its timeout of {self._timeout:g} s"
        if _signal not in (None, signal.SIGTERM):
            return _signal.name
        cancelled = await self._is_cancelled()
        if cancelled:
            return "a cancellation in Prefect"
        if _signal is not None:
            return _signal.name
        if cancelled is None:
            return "a cancellation; Prefect did not answer whether it was its own"
        return "a cancellation"

    async def _is_cancelled(self) -> bool | None:
        """Tell whether Prefect wants this run cancelled; ``None``: it did not say."""
        run_id = runtime.flow_run.id
        if run_id is None:
            return False
        with suppress(Exception):  # whatever Prefect's API says
            async with asyncio.timeout(ASK_SECONDS), get_client() as client:
                state = (await client.read_flow_run(run_id)).state
            return state is not None and state.type in (StateType.CANCELLING, StateType.CANCELLED)
        return None


def is_an_ending(error: BaseException | None) -> bool:
    """Tell whether an error says only that a run was cancelled or told to end."""
    told = (asyncio.CancelledError, TerminationSignal, KeyboardInterrupt, SystemExit)
    return isinstance(error, told)


async def finished(work: Coroutine[Any, Any, T], seconds: float) -> T | None:
    """Return what ``work`` returns within ``seconds``, or ``None``; cancelled, go on with it."""
    task = asyncio.ensure_future(work)
    deadline = time.monotonic() + seconds
    while not task.done() and (left := deadline - time.monotonic()) > 0:
        with suppress(asyncio.CancelledError):
            await asyncio.wait({task}, timeout=left)
    if task.done():
        return task.result()
    task.cancel()
    return None
