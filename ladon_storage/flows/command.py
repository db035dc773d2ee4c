"""The common part of every flow's command: run, print, and exit with 0, or with 1 and a text."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from prefect.exceptions import TerminationSignal
from prefect.settings import (
    PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS,
    temporary_settings,
)

from ladon_storage.errors import LadonStorageError
from ladon_storage.flows.ending import signal_noted
from ladon_storage.flows.home import check_home

T = TypeVar("T")


def run_command(begin: Callable[[], Coroutine[Any, Any, T]], shown: Callable[[T], str]) -> int:
    """Run the coroutine of ``begin``, print its outcome as ``shown``, and return the exit code."""
    try:
        check_home()
        # A fresh Prefect database takes longer than the 20 s that Prefect waits for it.
        with temporary_settings({PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS: 120}):
            outcome = asyncio.run(begin())
    except TerminationSignal as error:
        print(f"Ended by {signal_noted() or error}.", file=sys.stderr)  # noqa: T201 - a command
        return 128 + signal.SIGTERM
    except KeyboardInterrupt:
        print("Ended by SIGINT.", file=sys.stderr)  # noqa: T201 - a command
        return 128 + signal.SIGINT
    except LadonStorageError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)  # noqa: T201 - a command
        return 1
    print(shown(outcome))  # noqa: T201 - a command
    return 0
