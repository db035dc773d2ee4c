"""The service's log: a line or a JSON object for each record, and the request that caused it.

- A text that a client chose is shown and never obeyed: a newline in it begins no line of the log,
  and no sequence of it controls a terminal.
"""

from __future__ import annotations

import json
import logging
import random
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Literal, TextIO

from ladon_storage.errors import escaped

LogFormat = Literal["text", "json"]

_FIELDS = ("request_id", "source_id", "run_id")
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")

_random = random.Random()  # noqa: S311

request_id: ContextVar[str] = ContextVar("request_id")
"""The id of the request that is answered."""


def request_id_of(header: str | None) -> str:
    """Return the id that a client sent, or another one where it sent none that is plain."""
    if header is not None and _REQUEST_ID.fullmatch(header):
        return header
    # No secret, and so no question to the system for each request.
    return f"{_random.getrandbits(64):016x}"


def set_up_logging(log_format: LogFormat) -> None:
    """Write the process's log to its standard error, each record in this format."""
    handler = _Handler(sys.stderr)
    handler.setFormatter(JsonLines() if log_format == "json" else TextLines())
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    # Each change is logged; what no format asks for is not looked up for each.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging._srcfile = None  # noqa: SLF001 - as its manual says


class _Held(threading.local):
    lines: list[str] | None = None


_held = _Held()


@contextmanager
def in_one_write() -> Iterator[None]:
    """Write this thread's records inside together: each write costs as much as its text.

    They are written at the end, also where an error ends it.
    """
    lines = _held.lines = []
    try:
        yield
    finally:
        _held.lines = None
        if lines:
            # A log that is gone, or never was, stops no service.
            with suppress(OSError, ValueError, AttributeError):
                sys.stderr.write("".join(lines))


class _Handler(logging.StreamHandler[TextIO]):
    def emit(self, record: logging.LogRecord) -> None:
        lines = _held.lines
        if lines is None:
            super().emit(record)
            return
        try:
            lines.append(self.format(record) + self.terminator)
        except Exception:
            self.handleError(record)


class TextLines(logging.Formatter):
    """One line for each record, with the lines of its traceback indented below it."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record with escapes in place of control characters."""
        line = f"{_time(record)} {record.levelname} {escaped(record.getMessage())}"
        if found := _request_id(record):
            line += f" [{found}]"
        # By "\n" alone: the other separators of lines are part of a text.
        traceback = _traceback(self, record).split("\n") if record.exc_info else []
        return "\n  ".join([line, *(escaped(each) for each in traceback)])


class JsonLines(logging.Formatter):
    """One JSON object for each record, on a line."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as JSON, in ASCII."""
        fields: dict[str, Any] = {
            "time": _time(record),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        known = {**record.__dict__, "request_id": _request_id(record)}
        fields |= {name: known[name] for name in _FIELDS if known.get(name) is not None}
        if record.exc_info:
            fields["traceback"] = _traceback(self, record)
        return json.dumps(fields, default=str)


def _time(record: logging.LogRecord) -> str:
    return f"{_to_second(int(record.created))}.{int(record.msecs):03}+00:00"


@lru_cache(maxsize=1)
def _to_second(seconds: int) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}"


def _request_id(record: logging.LogRecord) -> str | None:
    return getattr(record, "request_id", None) or request_id.get(None)


def _traceback(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    # Not kept in the record: a handler of another format may follow.
    assert record.exc_info  # noqa: S101 - its callers look
    return formatter.formatException(record.exc_info)
