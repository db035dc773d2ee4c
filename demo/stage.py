"""The processes of the demonstration: a Prefect server and a Storage Service of its own.

Everything that they write stays in one folder of the project, and none of the user's own Prefect
settings reaches them.
"""

from __future__ import annotations

import asyncio
import json
import sys
from asyncio.subprocess import DEVNULL, PIPE
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ladon_storage.cli.local import LocalService, ended, environment, free_port, prefect_server
from ladon_storage.databases import escaped

__all__ = [
    "LEASE_SECONDS",
    "PROJECT",
    "FlowRun",
    "StorageService",
    "ended",
    "environment",
    "free_port",
    "prefect_server",
    "run_flow",
]

LEASE_SECONDS = 5
"""How long a run that died keeps others from its source; a minute, where nobody is waiting."""

PROJECT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class FlowRun:
    """Say how a run of the flow ended: with a report, or with the sentence that it failed with."""

    report: dict[str, Any] | None
    why: str

    @property
    def ended(self) -> str:
        """What Prefect calls its state, in small letters."""
        return "failed" if self.report is None else "completed"


async def run_flow(
    folder: Path, api: str, storage: str, source: dict[str, Any], sink: Path, keep: str
) -> FlowRun:
    """Run the ``collect`` flow in a process of its own, as Prefect runs it."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "ladon_storage.cli", "collect", json.dumps(source),
        "--sink", json.dumps({"url": f"sqlite:///{escaped(sink)}", "keep": keep}),
        "--limits", json.dumps({"lease": LEASE_SECONDS}), "--prefect", "--json",
        cwd=PROJECT, stdin=DEVNULL, stdout=PIPE, stderr=PIPE,
        env=environment(folder, PREFECT_API_URL=api, STORAGE_SERVICE_URL=storage),
    )  # fmt: skip
    output, errors = await process.communicate()
    if not output:
        return FlowRun(None, (errors.decode().strip().splitlines() or [""])[-1])
    [outcome] = json.loads(output)
    if outcome["outcome"] == "failed":
        return FlowRun(None, outcome["error"])
    return FlowRun(outcome, "")


class StorageService(LocalService):
    """An embedded Storage Service that a test or the demonstration kills."""

    async def kill(self) -> None:
        """Kill it as a crash does: without a chance to finish anything."""
        if self._process and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()

    async def close_circuit(self) -> None:
        """Tell the runs that it works again, as an operator does; or they see it in a minute."""
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "ladon_storage.cli", "circuit", "reset",
            "--service", self.url, "--reason", "the service is back",
            env=environment(self._folder), stdin=DEVNULL, stdout=DEVNULL,
        )  # fmt: skip
        if await process.wait():
            raise RuntimeError("The circuit could not be closed; its message is above.")
