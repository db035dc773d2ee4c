"""Flows as a verb runs them: Prefect is imported here, and nowhere before it is needed."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from prefect import get_client
from prefect.exceptions import TerminationSignal
from prefect.settings import (
    PREFECT_API_URL,
    PREFECT_SERVER_ANALYTICS_ENABLED,
    PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS,
    temporary_settings,
)

from ladon_storage.cli.ended import Ended
from ladon_storage.collection.credentials import secret_lookup
from ladon_storage.errors import ConfigurationError
from ladon_storage.flows.ending import signal_noted
from ladon_storage.flows.home import check_home
from ladon_storage.sources.http.urls import check_url, redact_url
from ladon_storage.tasks import secret_block

T = TypeVar("T")


def run_flows(begin: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run the coroutine of ``begin``, which runs flows.

    Raises:
        Ended: A signal ended it.
        ConfigurationError: A newer Prefect has migrated the database that this one would open.
    """
    check_home()
    try:
        # A fresh Prefect database takes longer than the 20 s that Prefect waits for it.
        # The server of one command reports no figures: with no network, or with its SQLite locked,
        # that logs a traceback in the middle of a first run.
        settings: dict[Any, Any] = {
            PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS: 120,
            PREFECT_SERVER_ANALYTICS_ENABLED: False,
        }
        with temporary_settings(settings):
            return asyncio.run(_reached(begin))
    except TerminationSignal:
        ended = True
    except BaseExceptionGroup as group:
        if not group.subgroup(TerminationSignal):
            raise
        ended = True
    except KeyboardInterrupt:
        ended = False
    name = signal_noted() or ("SIGTERM" if ended else "SIGINT")
    raise Ended(signal.Signals[name])


async def _reached(begin: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Return the result of ``begin``, if the configured API answers.

    Raises:
        ConfigurationError: The API does not answer, or its address is none.
    """
    address = PREFECT_API_URL.value()
    if address:
        try:
            async with get_client() as client:
                await client.hello()
        except Exception as error:  # whatever Prefect's API says
            problem = type(error).__name__
        else:
            problem = ""
        if problem:
            try:
                shown = redact_url(check_url(address))
            except ValueError:  # its text may have a password in it
                raise ConfigurationError(
                    "PREFECT_API_URL is no address. Write it as http://127.0.0.1:4200/api."
                ) from None
            raise ConfigurationError(
                f"Prefect's API at {shown} does not answer as one "
                f"({problem}). Start it, or correct PREFECT_API_URL; what collects runs without "
                "it by --no-prefect."
            )
    with secret_lookup(secret_block):
        return await begin()
