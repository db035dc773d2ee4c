"""Prefect's REST API as a person's browser uses it, and processes that know only one Prefect."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, STDOUT, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp

from demo.stage import PROJECT, ended, environment

CATALOGUE = {
    "count": 2,
    "vulnerabilities": [
        {"cveID": "CVE-2024-0001", "dateAdded": "2024-01-01"},
        {"cveID": "CVE-2024-0002", "dateAdded": "2024-01-02"},
    ],
}
STEP_SECONDS = 300
"""A bound of each step, far beyond what a busy machine takes; no test waits for it."""

END_SECONDS = 150
"""Longer than all parts take to end one after another, each of them forcibly."""

UP = ("ladon_storage.cli", "up")
ENDED = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}


class PrefectApi:
    """Ask one Prefect server."""

    def __init__(self, api: str) -> None:
        self.api = api

    async def ask(self, method: str, path: str, **body: Any) -> Any:
        """Return the answer's JSON; anything but success fails the test.

        503 is asked again, as Prefect's own client does: its database was locked.
        """
        async with aiohttp.ClientSession() as session, asyncio.timeout(STEP_SECONDS):
            while True:
                url = f"{self.api}/{path}"
                async with session.request(method, url, json=body or None) as answer:
                    text = await answer.text()
                    if answer.status != 503:
                        assert answer.ok, text
                        return await answer.json() if text else None
                await asyncio.sleep(0.5)

    async def trigger(self, deployment: str, **parameters: Any) -> str:
        """Create a run of ``deployment`` with other parameters than its own, and return its id."""
        found = await self.ask("GET", f"deployments/name/{deployment}")
        run = await self.ask(
            "POST", f"deployments/{found['id']}/create_flow_run", parameters=parameters
        )
        return str(run["id"])

    async def run(self, run_id: str, *states: str, seconds: float = STEP_SECONDS) -> dict[str, Any]:
        """Return a run when it is in one of ``states``: unless given, when it has ended."""
        async with asyncio.timeout(seconds):
            while True:
                run: dict[str, Any] = await self.ask("GET", f"flow_runs/{run_id}")
                if run["state_type"] in (states or ENDED):
                    return run
                await asyncio.sleep(0.3)

    async def runs(
        self, deployment: str, count: int, seconds: float = STEP_SECONDS
    ) -> list[dict[str, Any]]:
        """Return the runs of ``deployment`` that ended, the oldest first, when they are enough."""
        found = await self.ask("GET", f"deployments/name/{deployment}")
        async with asyncio.timeout(seconds):
            while True:
                runs: list[dict[str, Any]] = await self.ask(
                    "POST",
                    "flow_runs/filter",
                    flow_runs={"deployment_id": {"any_": [found["id"]]}},
                    sort="START_TIME_ASC",
                )
                ended = [run for run in runs if run["state_type"] in ENDED]
                if len(ended) >= count:
                    return ended
                await asyncio.sleep(0.5)


@asynccontextmanager
async def module(folder: Path, *command: str, **variables: str) -> AsyncIterator[Process]:
    """Run ``python -m command`` in the project's folder until the block ends.

    What it started ends too, where it was killed or did not come to that: parts of it have groups
    of their own, and know ``folder``.
    """
    has_parts = command[:2] == UP
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", *command, cwd=PROJECT, env=environment(folder, **variables),
        stdin=DEVNULL, stdout=PIPE, stderr=STDOUT if has_parts else None, start_new_session=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        try:
            await ended(process, seconds=END_SECONDS)
        finally:
            # What a test stopped cannot end by itself.
            for part, _ in processes_of(folder) if has_parts else ():
                with suppress(ProcessLookupError):
                    os.kill(part, signal.SIGKILL)
        assert process.stdout
        await process.stdout.read()


def left_of(folder: Path) -> list[str]:
    """Return the command lines of processes that know ``folder``."""
    return [command for _, command in processes_of(folder)]


def processes_of(folder: Path) -> list[tuple[int, str]]:
    """Return the ids and command lines of processes that know ``folder``."""
    found = []
    for each in Path("/proc").glob("[0-9]*"):
        try:
            known = (each / "environ").read_bytes() + (each / "cmdline").read_bytes()
        except OSError:  # it ended, or is somebody else's
            continue
        if int(each.name) != os.getpid() and str(folder).encode() in known:
            command = (each / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            found.append((int(each.name), command))
    return found
