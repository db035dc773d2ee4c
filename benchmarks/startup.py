"""The start of the command: whole processes, from their start to their end.

A person waits for all of it, imports included. Bytecode is kept, as an installation keeps it. The
run that finds nothing new is against a feed on loopback that answers at once, with a file as its
storage and SQLite as its sink. With Prefect it is a flow on a running server, beside a process that
runs an empty flow on the same one. CPU time is that of the process and its children; until its
first request it is read at the feed, when that request arrives.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import sys
import time
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from aiohttp import web

from benchmarks.measuring import alternating, describe, is_quick, shown, table, tables, verdict
from benchmarks.processes import served
from demo.stage import prefect_server

REPETITIONS = 15
HELP_SECONDS, TRY_SECONDS = 0.2, 2.0
COLLECT_CPU, PREFECT_CPU = 0.5, 0.4
ENTRIES = 1_000
CLI = ("-m", "ladon_storage.cli")
TRY, ALONE = "source try", "collect, nothing new"
FLOW, EMPTY = "collect with Prefect, nothing new", "an empty flow of Prefect"
COMMANDS = {
    "--help": (*CLI, "--help"),
    TRY: (*CLI, "source", "try", "kev"),
    ALONE: (*CLI, "collect", "kev", "--no-prefect"),
    FLOW: (*CLI, "collect", "kev", "--prefect"),
    EMPTY: ("-c", "import prefect; prefect.flow(lambda: None, name='empty')()"),
}


class Runs:
    """Processes of the command, one after another, and what each has used.

    Args:
        folder: The folder that they run in.
        api: The address of the Prefect server.
    """

    def __init__(self, folder: str, api: str) -> None:
        self.cpu: dict[str, list[float]] = {}
        self.first_request: dict[str, list[float]] = {}
        self._folder = folder
        self._environment = os.environ | {
            "PYTHONPYCACHEPREFIX": f"{folder}/bytecode",
            "PREFECT_API_URL": api,
            "PREFECT_HOME": f"{folder}/prefect",
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        }
        self._environment.pop("PYTHONDONTWRITEBYTECODE", None)
        self._process_id: int | None = None
        self._name = ""

    def note_request(self) -> None:
        """Note the CPU time of the running process, at its first request."""
        if self._process_id is not None:
            self.first_request.setdefault(self._name, []).append(_cpu_of(self._process_id))
            self._process_id = None

    async def seconds(self, name: str) -> float:
        """Run a command, and return its seconds."""
        used = _cpu_of_children()
        began = time.perf_counter()
        process = await asyncio.create_subprocess_exec(
            sys.executable, *COMMANDS[name],
            cwd=self._folder, env=self._environment, stdin=DEVNULL, stdout=DEVNULL, stderr=PIPE,
        )  # fmt: skip
        self._name, self._process_id = name, process.pid
        _, errors = await process.communicate()
        taken = time.perf_counter() - began
        self._process_id = None
        if process.returncode:
            raise RuntimeError(f"{name} failed: {errors.decode().strip()}")
        self.cpu.setdefault(name, []).append(_cpu_of_children() - used)
        return taken


def _cpu_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _cpu_of(process_id: int) -> float:
    """Return the CPU seconds of a running process; 0 where the system does not say."""
    try:
        fields = Path(f"/proc/{process_id}/stat").read_text(encoding="ascii").rpartition(")")[2]
    except OSError:
        return 0
    user, system = fields.split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


@asynccontextmanager
async def _feed(asked: list[Runs]) -> AsyncIterator[str]:
    entries = [
        {"cveID": f"CVE-2024-{each:04}", "dateAdded": "2024-01-01"} for each in range(ENTRIES)
    ]
    body = json.dumps({"count": ENTRIES, "vulnerabilities": entries})

    async def answer(_: web.Request) -> web.Response:
        for each in asked:
            each.note_request()
        return web.Response(text=body, content_type="application/json")

    application = web.Application()
    application.router.add_get("/", answer)
    async with served(application) as url:
        yield f"{url}/"


async def main(*, quick: bool) -> None:
    """Take the figures, and show them."""
    describe("ladon-storage", "cyclopts", "aiohttp", "prefect")
    repetitions, asked = (1 if quick else REPETITIONS), list[Runs]()
    with TemporaryDirectory() as folder:
        async with _feed(asked) as url, prefect_server(Path(folder)) as api:
            (Path(folder) / "ladon.toml").write_text(
                '[storage]\nurl = "sqlite:///ladon.db"\n[sinks.r]\nurl = "sqlite:///r.db"\n'
                f'[sources.kev]\nkind = "kev"\nurl = "{url}"\n'
            )
            runs = Runs(folder, api)
            asked.append(runs)
            await runs.seconds(ALONE)  # the records are new once
            contenders = {name: partial(runs.seconds, name) for name in COMMANDS}
            figures = await alternating("start-up", contenders, repetitions)
    cpu = {name: each[-repetitions:] for name, each in runs.cpu.items()}
    shows = table(
        "Whole processes", ("verb",), ("seconds", "CPU seconds", "CPU until the first request")
    )
    for name, each in figures.items():
        first = runs.first_request.get(name, [])[-repetitions:]
        shows.add_row(name, shown(each, 2), shown(cpu[name], 2), shown(first, 2) if first else "")
    tables.print(shows)
    verdict("--help in seconds", figures["--help"], HELP_SECONDS, at_most=True)
    verdict("source try in seconds", figures[TRY], TRY_SECONDS, at_most=True)
    verdict(f"{ALONE}: CPU seconds", cpu[ALONE], COLLECT_CPU, at_most=True)
    above = [flow - empty for flow, empty in zip(cpu[FLOW], cpu[EMPTY], strict=True)]
    verdict(f"{FLOW}: CPU above an empty flow's", above, PREFECT_CPU, at_most=True)


if __name__ == "__main__":
    asyncio.run(main(quick=is_quick("Take the figures of the command's start.")))
