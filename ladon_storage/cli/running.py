"""The run of a verb: its event loop, the signals that end it, and the choice of Prefect."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import threading
import tomllib
from collections.abc import Coroutine, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from ladon_storage.cli.ended import Ended
from ladon_storage.errors import ConfigurationError

T = TypeVar("T")

PUSHGATEWAY_VARIABLE = "LADON_PUSHGATEWAY_URL"

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_NAMELESS = re.compile(r"(cancelled|CancelledError)\b")


def refuse_without_prefect() -> None:
    """Refuse a verb that needs a Prefect API where none is configured.

    Raises:
        ConfigurationError: None is configured.
    """
    if not is_prefect_configured():
        raise ConfigurationError(
            "No Prefect API is configured; set PREFECT_API_URL, or start one with "
            "`ladon-storage up`."
        )


class Signals:
    """The signals that end a verb's task, which may still write its failure.

    Args:
        only_first: Whether further signals change nothing, because the end must be complete.
    """

    def __init__(self, *, only_first: bool = False) -> None:
        self.number: int | None = None
        self._only_first = only_first

    def watch(self) -> None:
        """Cancel the current task on a signal, from now on; only in the main thread."""
        task = asyncio.current_task()
        if task is None or threading.current_thread() is not threading.main_thread():
            return
        for number in _SIGNALS:
            # Under nohup a verb must outlive its terminal.
            if signal.getsignal(number) is not signal.SIG_IGN:
                task.get_loop().add_signal_handler(number, self._end, task, number)

    def _end(self, task: asyncio.Task[Any], number: int) -> None:
        if self.number is None or not self._only_first:
            task.cancel()
        self.number = self.number or number

    async def named(self, message: str) -> str:
        """Return a failure's message, or the signal if the message is only of a cancellation."""
        if self.number is not None and _NAMELESS.match(message):
            return f"ended by {signal.Signals(self.number).name}"
        return message


def run(work: Coroutine[Any, Any, T], signals: Signals | None = None) -> T:
    """Run a coroutine to its end.

    Raises:
        Ended: A signal ended it.
    """
    noted = signals or Signals()

    async def watched() -> T:
        noted.watch()
        return await work

    try:
        return asyncio.run(watched())
    except asyncio.CancelledError:
        if noted.number is None:
            raise
        raise Ended(noted.number) from None


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Let the first SIGTERM or SIGHUP end a block without an event loop, which may still tidy up.

    Raises:
        Ended: A signal ended it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGHUP)}
    # Under nohup a verb must outlive its terminal.
    heard = [each for each, handler in before.items() if handler is not signal.SIG_IGN]

    def end(number: int, _frame: object) -> None:
        for each in heard:
            signal.signal(each, signal.SIG_IGN)
        raise Ended(number)

    try:
        for each in heard:
            signal.signal(each, end)
        yield
    finally:
        for each in heard:
            signal.signal(each, before[each])


async def push_metrics(instance: str, missed: Mapping[str, int] | None = None) -> None:
    """Push the metrics of this process as a flow run does, where a Pushgateway is configured.

    Args:
        instance: The group in the gateway, whose metrics of the run before are replaced.
        missed: The missed records of a reconciliation, by source.
    """
    if not os.environ.get(PUSHGATEWAY_VARIABLE):
        return
    # Imported only here: a run without a gateway has no use for it.
    from ladon_storage.client.metrics import count_missed
    from ladon_storage.client.pushing import push_metrics as push

    for source_id, number in (missed or {}).items():
        count_missed(source_id, number)
    await push(instance)


def prefect_setting(name: str, environ: Mapping[str, str] = os.environ) -> str | None:
    """Return a setting of Prefect by the environment or the active profile, without Prefect.

    ``None``: neither has it.
    """
    if name in environ:
        return environ[name]
    home = Path(environ.get("PREFECT_HOME") or "~/.prefect").expanduser()
    file = Path(environ.get("PREFECT_PROFILES_PATH") or home / "profiles.toml").expanduser()
    with suppress(OSError, ValueError, AttributeError, KeyError):
        profiles = tomllib.loads(file.read_text(encoding="utf-8"))
        active = environ.get("PREFECT_PROFILE") or profiles.get("active")
        found = profiles["profiles"].get(active, {}).get(name)
        return None if found is None else str(found)
    return None


def is_prefect_configured(environ: Mapping[str, str] = os.environ) -> bool:
    """Return whether a Prefect API is configured, in the environment or the active profile."""
    return bool(prefect_setting("PREFECT_API_URL", environ))
