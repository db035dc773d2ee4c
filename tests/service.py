"""Real Storage Services for tests: one in this process, one in a process of its own."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp
from multidict import CIMultiDictProxy
from yarl import URL

from ladon_storage.server.serving import serving

START_SECONDS = 30.0
"""Bound on what a start or an end may take on a machine that does other things too."""


@asynccontextmanager
async def embedded_service(
    database: Path | str,
    *,
    token: str | None = None,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> AsyncIterator[str]:
    """Run the service in this process, on a free port of loopback.

    Args:
        database: The file, or the address of PostgreSQL; a service that is started on it again
            knows what it knew.
        token: What requests must carry.
        now: The service's clock, in UTC.

    Yields:
        Its address.
    """
    async with serving(database, token=token, now=now) as address:
        yield address


@dataclass(frozen=True)
class Answer:
    """Be an answer, read to its end; ``json`` is ``None`` where it has no JSON."""

    status: int
    headers: CIMultiDictProxy[str]
    text: str
    json: Any

    @property
    def etag(self) -> str:
        """The version tag that came with it."""
        return self.headers["ETag"]


class Caller:
    """Send requests to one service, their paths as they are given."""

    def __init__(self, session: aiohttp.ClientSession, address: str) -> None:
        self._session = session
        self.address = address

    async def __call__(self, method: str, path: str, body: object = None, **options: Any) -> Answer:
        """Send a request, with ``body`` as JSON if there is one, and read the answer."""
        if body is not None:
            options["json"] = body
        url = URL(self.address + path, encoded=True)
        async with self._session.request(method, url, **options) as response:
            text = await response.text()
            is_json = response.content_type == "application/json" and text
            return Answer(
                response.status, response.headers, text, json.loads(text) if is_json else None
            )


@asynccontextmanager
async def calling(address: str, token: str | None = None) -> AsyncIterator[Caller]:
    """Hand out a caller of the service at ``address``, for its time with one session."""
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    async with aiohttp.ClientSession(headers=headers) as session:
        yield Caller(session, address)


def path(source_id: str, below: str = "") -> str:
    """Return the path of a source's watermark, or of what is below it."""
    return f"/api/v1/watermarks/{quote(source_id, safe='')}{below}"


def success(timestamp: str, **more: object) -> dict[str, object]:
    """Return the body of a write of a success."""
    return {"timestamp": timestamp, "status": "success", **more}


@dataclass(frozen=True)
class ServiceProcess:
    """Be a running ``ladon-storage serve``: its address, its process, and what it logs."""

    address: str
    process: asyncio.subprocess.Process
    log: Path

    async def end(self, signal_number: int = signal.SIGTERM) -> int:
        """Send a signal to this one process, and return its exit code."""
        self.process.send_signal(signal_number)
        return await asyncio.wait_for(self.process.wait(), START_SECONDS)


@asynccontextmanager
async def service_process(
    database: Path,
    *flags: str,
    environment: Mapping[str, str] | None = None,
    command_line: Sequence[str] = (),
) -> AsyncIterator[ServiceProcess]:
    """Run ``ladon-storage serve`` as a process, on a free port of loopback unless flags say else.

    Args:
        database: The file.
        flags: More of the command line.
        environment: Added to this process's own, from which the service's token is taken out.
        command_line: The whole command line, in place of that of `command`.

    Yields:
        The process, once it answers. It is killed at the end, if it still runs.
    """
    log = database.with_suffix(".log")
    with log.open("ab") as stderr:
        process = await asyncio.create_subprocess_exec(
            *(command_line or command(database, *flags)),
            stdout=asyncio.subprocess.PIPE,
            stderr=stderr,
            env=clean_environment(environment),
        )
    assert process.stdout is not None
    try:
        line = await asyncio.wait_for(process.stdout.readline(), START_SECONDS)
        assert line, f"the service did not start: {log.read_text()}"
        yield ServiceProcess(line.decode().strip(), process, log)
    finally:
        if process.returncode is None:
            process.kill()
        # To its end, so that the loop closes the pipe.
        await process.communicate()


def command(database: Path, *flags: str) -> list[str]:
    """Return the command line of a service on a free port."""
    serve = [sys.executable, "-m", "ladon_storage.cli", "serve"]
    return [*serve, "--database", str(database), "--port", "0", *flags]


def clean_environment(added: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return this process's environment without a token for the service."""
    kept = {name: value for name, value in os.environ.items() if name != "STORAGE_SERVICE_TOKEN"}
    return {**kept, **(added or {})}
