"""The processes that ``ladon-storage up`` runs on this host: a Prefect server, a Storage Service.

- All their files are in one folder, and none of the user's own Prefect settings reaches them. All
  of them listen on loopback alone.
- With a lock they are parts of the process that has it. They end with it, however it ends, and keep
  the lock until they have.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import socket
import sys
from asyncio.subprocess import DEVNULL, PIPE, STDOUT, Process
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NoReturn

import aiohttp

from ladon_storage.errors import LadonStorageError
from ladon_storage.settings import VARIABLES

_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
_PR_SET_PDEATHSIG = 1


class NotStartedError(LadonStorageError, RuntimeError):
    """Raised when a process did not start, or ended by itself; the message names its log."""


@dataclass(frozen=True)
class Part:
    """A process that must not end by itself, and where it says why it did.

    Args:
        name: Its name in a sentence.
        process: The process.
        log: Its log.
    """

    name: str
    process: Process
    log: Path


async def refuse_ended(*parts: Part) -> NoReturn:
    """Wait until a part ends; of several, the first is the cause.

    Raises:
        NotStartedError: It ended; the message names it, how it ended, and its log.
    """
    waits = [asyncio.ensure_future(part.process.wait()) for part in parts]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
    part = next(part for part in parts if part.process.returncode is not None)
    code = part.process.returncode or 0
    how = f"by signal {-code}" if code < 0 else f"with exit code {code}"
    raise NotStartedError(f"{part.name} ended {how}; read {part.log}.")


def environment(folder: Path, **variables: str) -> dict[str, str]:
    """Return the environment of a process that knows only the Prefect of this folder."""
    # The secrets of sources and sinks have whatever names their users gave them.
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("PREFECT_") and name not in VARIABLES.values()
    }
    return inherited | {
        "PREFECT_HOME": str(folder / "prefect"),
        "PREFECT_LOGGING_LEVEL": "ERROR",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "PYTHONUNBUFFERED": "1",
        **variables,
    }


def free_port() -> int:
    """Return a free port of loopback."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def started(name: str, *command: str, lock: IO[str] | None = None, **options: Any) -> Process:
    """Start a Python module in a group of its own.

    Args:
        name: Its name in the lock.
        command: The module and its arguments.
        lock: The locked file that it keeps, and in which it is named.
        options: More of `asyncio.create_subprocess_exec`.
    """
    if lock is not None:
        options |= {"pass_fds": [lock.fileno()], "preexec_fn": _end_with_parent}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", *command, stdin=DEVNULL, start_new_session=True, **options
    )
    if lock is not None:
        print(process.pid, name, file=lock, flush=True)
    return process


def _end_with_parent() -> None:
    """Have the kernel end this process after its parent, where it knows how to."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


async def ended(process: Process, *, seconds: float = 20) -> None:
    """End a process and its children, forcibly if that takes longer than ``seconds``."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), seconds)
            return


@contextlib.asynccontextmanager
async def prefect_server(
    folder: Path, port: int | None = None, lock: IO[str] | None = None, /, **variables: str
) -> AsyncIterator[str]:
    """Run a Prefect server on loopback, and yield the URL of its API.

    Args:
        folder: The folder of its database and its log.
        port: Its port; a free one unless given.
        lock: The locked file of the process that it is a part of.
        variables: More variables of its environment.

    Raises:
        ConfigurationError: A newer Prefect has migrated its database.
        NotStartedError: It did not start; the message names its log.
    """
    async with prefect_part(folder, port, lock, **variables) as (api, _):
        yield api


@contextlib.asynccontextmanager
async def prefect_part(
    folder: Path, port: int | None = None, lock: IO[str] | None = None, /, **variables: str
) -> AsyncIterator[tuple[str, Part]]:
    """Run a Prefect server as `prefect_server` does, and yield its process, too."""
    from ladon_storage.flows.home import check_database

    check_database(folder / "prefect" / "prefect.db")
    port = port or free_port()
    api = f"http://127.0.0.1:{port}/api"
    log = folder / "prefect-server.log"
    with log.open("wb") as output:
        process = await started(
            "Prefect", "prefect", "server", "start", "--host", "127.0.0.1",
            env=environment(
                folder, PREFECT_SERVER_API_HOST="127.0.0.1", PREFECT_SERVER_API_PORT=str(port),
                **variables,
            ),
            stdout=output, stderr=STDOUT, lock=lock,
        )  # fmt: skip
    try:
        async with aiohttp.ClientSession() as session:
            for _ in range(600):
                with contextlib.suppress(aiohttp.ClientError):
                    async with session.get(f"{api}/health") as answer:
                        if answer.status == 200:
                            break
                if process.returncode is not None:
                    raise NotStartedError(f"The Prefect server did not start; read {log}.")
                await asyncio.sleep(0.2)
            else:
                raise NotStartedError(f"The Prefect server did not answer in time; read {log}.")
        yield api, Part("Prefect", process, log)
    finally:
        await ended(process)


class LocalService:
    """An embedded Storage Service in a process of its own, on the same port each time.

    Args:
        folder: The folder of its log, and of its database unless that is given.
        port: Its port; a free one unless given.
        database: Its database.
        options: Further options of ``ladon-storage serve``.
        lock: The locked file of the process that it is a part of.
    """

    def __init__(
        self,
        folder: Path,
        port: int = 0,
        database: Path | None = None,
        options: Sequence[str] = (),
        lock: IO[str] | None = None,
    ) -> None:
        self._folder = folder
        self._log = folder / "storage-service.log"
        self._database = database or folder / "storage.db"
        self._port = port
        self._options = options
        self._lock = lock
        self._process: Process | None = None

    @property
    def url(self) -> str:
        """The service's URL."""
        return f"http://127.0.0.1:{self._port}"

    async def start(self) -> Part:
        """Start it, and return its process when it answers."""
        with self._log.open("ab") as log:
            self._process = await started(
                "Storage Service", "ladon_storage.cli", "serve",
                "--database", str(self._database), "--port", str(self._port), *self._options,
                env=environment(self._folder), stdout=PIPE, stderr=log, lock=self._lock,
            )  # fmt: skip
        assert self._process.stdout  # noqa: S101 - it is a pipe
        address = (await self._process.stdout.readline()).decode().strip()
        if not address:
            raise NotStartedError(f"The Storage Service did not start; read {self._folder}.")
        self._port = int(address.rpartition(":")[2])
        return Part("The Storage Service", self._process, self._log)

    async def stop(self) -> None:
        """End it in good order."""
        if self._process and self._process.returncode is None:
            await ended(self._process)
