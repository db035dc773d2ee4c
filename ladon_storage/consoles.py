"""Consoles of the log whose reader may go, which ends no run.

rich, with which Prefect logs to the console, answers a broken pipe with `SystemExit` in whatever
logs. A run whose worker was killed, or whose output goes to ``head``, would end in its middle.
"""

from __future__ import annotations

import logging
import os
from typing import IO, Any, cast

from rich.console import Console

_LOGGERS = ("prefect.flow_runs", "prefect.task_runs", "ladon_storage")


def lose(stream: IO[str]) -> None:
    """Let a stream whose reader has gone lead nowhere: nothing fails at it, nor Python's exit."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, stream.fileno())
    finally:
        os.close(nowhere)


class LosableStream:
    """A stream that writes to nowhere once its reader has gone."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write a text."""
        try:
            return self._stream.write(text)
        except BrokenPipeError:
            lose(self._stream)
            return len(text)

    def flush(self) -> None:
        """Write what is buffered."""
        try:
            self._stream.flush()
        except BrokenPipeError:
            lose(self._stream)


def let_consoles_go() -> None:
    """Let no log line of a run fail at its console; a second call changes nothing."""
    for name in _LOGGERS:
        logger: logging.Logger | None = logging.getLogger(name)
        while logger is not None:
            for console in (getattr(each, "console", None) for each in logger.handlers):
                if isinstance(console, Console) and not isinstance(console.file, LosableStream):
                    console.file = cast(IO[str], LosableStream(console.file))
            logger = logger.parent
