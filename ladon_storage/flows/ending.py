"""The cause of a run's end: a signal, a cancellation in Prefect, the run's own timeout.

A run that must end gets a `CancelledError`, which names no cause. So signals are noted when they
arrive, and Prefect is asked for the other causes.

- A handler raises nothing into a run: an exception in a callback of the loop, a parser or another
  task is lost there, or disturbs them. Instead the loop cancels the run, and the signal's exception
  is raised after the run has ended and written its outcome. Prefect and the process then end as
  they would have.
- Only a run that blocks its loop gets the exception itself, after a while.
- Before the body of a run there is nothing to cancel. The previous handler handles the signal, and
  if its exception is lost, the body does not start.
- A further SIGTERM or SIGHUP changes nothing: the outcome is being written. A second SIGINT goes to
  the previous handler, because a user who repeats it means it.
- SIGHUP ends a run as SIGTERM does, unless it is ignored: under ``nohup`` it stays so.
- Prefect acknowledges that it was asked to cancel or reschedule a run only while its own handler of
  SIGTERM is set, and kills the run otherwise. So it is given ours as its own.
- Handlers belong to the process: the first run in its main thread sets them, and the last one
  restores the previous ones. A run in another thread ends with those of the main thread.
"""

from __future__ import annotations

import _thread
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
from prefect.utilities import engine

T = TypeVar("T")

GRACE_SECONDS = 5.0
"""The longest time for which a run may block its loop before it gets the signal's exception."""

ASK_SECONDS = 3.0
"""The longest time for Prefect to answer whether it cancelled a run."""

_NOTED = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)

_NAMELESS = re.compile(
    r"(cancelled|CancelledError|TerminationSignal|KeyboardInterrupt|SystemExit)\b"
)
_SUSPENDED = re.compile(r"Pause\b")

_PREFECTS: Any = getattr(engine, "_prefect_sigterm_handler", None)

_runs = 0
_is_begun = False  # whether a run before its body set the handlers
_handlers: dict[int, Any] = {}
_signal: signal.Signals | None = None
_bodies: list[_Body] = []


class _Body:
    """The body of a run in its task, which its own loop cancels where a signal ends it."""

    def __init__(self, task: asyncio.Task[Any] | None) -> None:
        self.task = task
        self.signal: signal.Signals | None = None
        self.is_in_main_thread = threading.current_thread() is threading.main_thread()
        self._asked_at = 0.0
        self._is_cancelled = False

    def end(self, number: signal.Signals) -> bool:
        """Cancel the run from a signal's handler; return whether it ends by that."""
        if self.task is None:
            return False
        if self.signal is not None:
            return True
        self.signal, self._asked_at = number, time.monotonic()
        with suppress(RuntimeError):  # the loop is closed
            self.task.get_loop().call_soon_threadsafe(self._cancel)
            return True
        return False

    def is_stuck(self) -> bool:
        """Return whether the loop has been blocked for a while since the run's cancellation."""
        return (
            self.signal is not None
            and not self._is_cancelled
            and self.is_in_main_thread
            and time.monotonic() - self._asked_at >= GRACE_SECONDS
        )

    def leave(self) -> None:
        """Take the run's cancellation back: the signal's exception stands for it."""
        if self._is_cancelled and self.task is not None and self not in _bodies:
            self.task.uncancel()

    def _cancel(self) -> None:
        if self.task is not None and self in _bodies:
            self._is_cancelled = True
            self.task.cancel()


def note_signals() -> None:
    """Note the signals that end this process from now on, for a run before its body."""
    global _is_begun, _signal
    if threading.current_thread() is not threading.main_thread():
        return
    handler = signal.getsignal(signal.SIGTERM)
    if handler is not _note and not getattr(handler, "__module__", "").startswith("prefect."):
        return  # no run: a caller who only checks parameters keeps the process's handlers
    if not _runs:
        _is_begun, _signal = True, None
    _set_handlers()


def forget_signals() -> None:
    """Give the handlers back that were set for a run which ended before its body."""
    global _is_begun
    if _is_begun and not _runs and threading.current_thread() is threading.main_thread():
        _is_begun = False
        _restore_handlers()


@contextmanager
def signals_noted() -> Iterator[None]:
    """Note the signals that end this process, and let SIGHUP end it as SIGTERM does.

    A signal cancels the task of the block; its exception is raised after the block.

    Raises:
        TerminationSignal: The process received SIGTERM or SIGHUP.
        KeyboardInterrupt: The process received SIGINT.
    """
    body = _present_body() or _Body(_present_task())
    if body.is_in_main_thread:
        _take_handlers()
    _bodies.append(body)
    try:
        _end_if_told(body)
        yield
    except (GeneratorExit, TerminationSignal, KeyboardInterrupt):
        raise
    except BaseException as error:
        if body.is_in_main_thread and body.signal is not None:
            raise _exception_of(body.signal) from error
        raise
    else:
        if body.is_in_main_thread and body.signal is not None:
            raise _exception_of(body.signal)
    finally:
        _bodies.remove(body)
        body.leave()
        if body.is_in_main_thread:
            _give_handlers_back()


def _end_if_told(body: _Body) -> None:
    """Raise the exception of a signal before the body, where that was lost."""
    if body.is_in_main_thread and _signal is not None and body.signal is None:
        raise _exception_of(_signal)


def _present_task() -> asyncio.Task[Any] | None:
    try:
        return asyncio.current_task()
    except RuntimeError:  # no loop runs
        return None


def _present_body() -> _Body | None:
    """Return the body that this task is in, even that of a flow around this one."""
    task = _present_task()
    return next((each for each in _bodies if each.task is task is not None), None)


def _take_handlers() -> None:
    global _is_begun, _runs, _signal
    if not _runs and not _is_begun:
        _signal = None
    _is_begun = False
    _runs += 1
    _set_handlers()


def _set_handlers() -> None:
    number: int
    for number in _NOTED:
        before = signal.getsignal(number)
        if before not in (_note, signal.SIG_IGN, None):
            _handlers[number] = before
            signal.signal(number, _note)
    if _PREFECTS is not None and _handlers.get(signal.SIGTERM) is _PREFECTS:
        vars(engine)["_prefect_sigterm_handler"] = _note


def _give_handlers_back() -> None:
    global _runs
    _runs -= 1
    if not _runs:
        _restore_handlers()


def _restore_handlers() -> None:
    for number in list(_handlers):
        before = _handlers.pop(number)
        if signal.getsignal(number) is _note:  # another one may have been set meanwhile
            signal.signal(number, before)
    if _PREFECTS is not None:
        vars(engine)["_prefect_sigterm_handler"] = _PREFECTS


def _exception_of(number: signal.Signals) -> BaseException:
    if number is signal.SIGINT:
        return KeyboardInterrupt()
    return TerminationSignal(signal.SIGTERM)


def _note(number: int, frame: FrameType | None) -> None:
    """Note a signal, and cancel the runs that are in their bodies."""
    global _signal
    is_first = _signal is None
    if _signal is None:
        _signal = signal.Signals(number)
    ended = [each.end(_signal) for each in tuple(_bodies)]
    if any(each.is_stuck() for each in tuple(_bodies)):
        raise _exception_of(_signal)
    if ended and all(ended) and (is_first or number != signal.SIGINT):
        if is_first:
            with suppress(RuntimeError):  # there can be no more threads
                # Not `threading`: the interrupted code may hold its lock.
                _thread.start_new_thread(_insist, (number,))
        return
    _pass_on(number, frame)


def _insist(number: int) -> None:
    """Send a signal again where a run blocks its loop."""
    time.sleep(GRACE_SECONDS)
    main = threading.main_thread().ident
    if main is not None and any(each.is_stuck() for each in tuple(_bodies)):
        signal.pthread_kill(main, number)


def _pass_on(number: int, frame: FrameType | None) -> None:
    """Let the previous handler handle a signal."""
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
    """The cause of one run's end, looked up when it was cancelled; made in its body."""

    def __init__(self, seconds: Callable[[], float] = time.monotonic) -> None:
        self._seconds = seconds
        self._began = seconds()
        self._body = _present_body()
        context = FlowRunContext.get()
        self._timeout = context.flow.timeout_seconds if context and context.flow else None
        self._said: str | None = None

    async def said(self) -> str:
        """Return the cause of the run's end in a few words; every call returns the same."""
        if self._said is None:
            self._said = f"ended by {await self._who()}"
        return self._said

    async def named(self, message: str) -> str:
        """Return an error message, with the cause of the end where the run was cancelled."""
        if _NAMELESS.match(message):
            return await self.said()
        if _SUSPENDED.match(message):
            return "ended by a suspension in Prefect"
        return message if self._signal is None else f"{await self.said()}: {message}"

    @property
    def _signal(self) -> signal.Signals | None:
        return None if self._body is None else self._body.signal

    async def _who(self) -> str:
        if self._timeout and self._seconds() - self._began >= self._timeout:
            return f"its timeout of {self._timeout:g} s"
        number = self._signal
        if number not in (None, signal.SIGTERM):
            return number.name
        cancelled = await self._is_cancelled()
        if cancelled:
            return "a cancellation in Prefect"
        if number is not None:
            return number.name
        if cancelled is None:
            return "a cancellation; Prefect did not answer whether it was its own"
        return "a cancellation"

    async def _is_cancelled(self) -> bool | None:
        """Return whether Prefect wants this run cancelled; ``None``: it did not answer."""
        run_id = runtime.flow_run.id
        if run_id is None:
            return False
        with suppress(Exception):  # whatever Prefect's API says
            async with asyncio.timeout(ASK_SECONDS), get_client() as client:
                state = (await client.read_flow_run(run_id)).state
            return state is not None and state.type in (StateType.CANCELLING, StateType.CANCELLED)
        return None


async def finished(work: Coroutine[Any, Any, T], seconds: float) -> T | None:
    """Return the result of ``work`` within ``seconds``, or ``None``, despite a cancellation."""
    task = asyncio.ensure_future(work)
    deadline = time.monotonic() + seconds
    while not task.done() and (left := deadline - time.monotonic()) > 0:
        with suppress(asyncio.CancelledError):
            await asyncio.wait({task}, timeout=left)
    if task.done():
        return task.result()
    task.cancel()
    return None
