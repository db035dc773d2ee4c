"""The start of the command: whole processes, from their start to their end.

A person waits for all of it, imports included. Bytecode is kept, as an installation keeps it. The
run that finds nothing new is against a feed on loopback that answers at once, with a file as its
storage and SQLite as its sink.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import Awaitable, Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from aiohttp import web

from benchmarks.measuring import alternating, describe, is_quick, shown, table, tables, verdict

REPETITIONS = 15
HELP_SECONDS, TRY_SECONDS = 0.2, 2.0
ENTRIES = 1_000
VERBS = {
    "--help": ("--help",),
    "source try": ("source", "try", "kev"),
    "collect, nothing new": ("collect", "kev"),
}


async def main(*, quick: bool) -> None:
    """Take the figures, and show them."""
    describe("ladon-storage", "cyclopts", "aiohttp")
    body = json.dumps(
        {
            "count": ENTRIES,
            "vulnerabilities": [
                {"cveID": f"CVE-2024-{each:04}", "dateAdded": "2024-01-01"}
                for each in range(ENTRIES)
            ],
        }
    )

    async def feed(_: web.Request) -> web.Response:
        return web.Response(text=body, content_type="application/json")

    application = web.Application()
    application.router.add_get("/", feed)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        with TemporaryDirectory() as folder:
            (Path(folder) / "ladon.toml").write_text(
                '[storage]\nurl = "sqlite:///ladon.db"\n[sinks.r]\nurl = "sqlite:///r.db"\n'
                '[sources.kev]\nkind = "kev"\n'
                f'url = "http://127.0.0.1:{runner.addresses[0][1]}/"\n'
            )
            await _seconds(folder, *VERBS["collect, nothing new"])  # the records are new once
            figures = await alternating(
                "start-up",
                {name: _taken(folder, *verb) for name, verb in VERBS.items()},
                2 if quick else REPETITIONS,
            )
    finally:
        await runner.cleanup()
    shows = table("Whole processes of ladon-storage: seconds", ("verb",), ("seconds",))
    for name, each in figures.items():
        shows.add_row(name, shown(each, 2))
    tables.print(shows)
    verdict("--help in seconds", figures["--help"], HELP_SECONDS, at_most=True)
    verdict("source try in seconds", figures["source try"], TRY_SECONDS, at_most=True)


def _taken(folder: str, *verb: str) -> Callable[[], Awaitable[float]]:
    async def taken() -> float:
        return await _seconds(folder, *verb)

    return taken


async def _seconds(folder: str, *verb: str) -> float:
    """Return the seconds of one process of the command."""
    began = time.perf_counter()
    kept = {"PYTHONPYCACHEPREFIX": f"{folder}/bytecode", **os.environ}
    kept.pop("PYTHONDONTWRITEBYTECODE", None)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "ladon_storage.cli", *verb,
        *(["--no-prefect"] if verb[0] == "collect" else []),
        cwd=folder, env=kept, stdin=DEVNULL, stdout=DEVNULL, stderr=PIPE,
    )  # fmt: skip
    _, errors = await process.communicate()
    taken = time.perf_counter() - began
    if process.returncode:
        raise RuntimeError(f"{' '.join(verb)} failed: {errors.decode().strip()}")
    return taken


if __name__ == "__main__":
    asyncio.run(main(quick=is_quick("Take the figures of the command's start.")))
