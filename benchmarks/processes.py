"""The processes that figures are taken of: each on a free port of loopback, ended afterwards.

Run as a module it is the floor: bare aiohttp handlers that answer the same watermark to each read
and write, alone or in a batch, and check, store, count and log nothing.
"""

from __future__ import annotations

import asyncio
import json
import sys
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

from aiohttp import web

from demo.stage import PROJECT, ended, environment

API = "api/v1/watermarks"
WATERMARK = {
    "last_successful_timestamp": "2026-01-01T00:00:00.123456Z",
    "last_run_timestamp": "2026-01-01T00:00:00.123456Z",
    "status": "success",
    "error_message": None,
    "records_collected": 1000,
}


class Server(NamedTuple):
    """A server in a process of its own."""

    url: str
    process_id: int


@asynccontextmanager
async def storage_service(folder: Path) -> AsyncIterator[str]:
    """Run ``ladon-storage serve`` over a new file in ``folder``, and give its address."""
    async with storage_server(folder) as server:
        yield server.url


@asynccontextmanager
async def bare_handler() -> AsyncIterator[str]:
    """Run the floor, and give its address."""
    async with bare_server() as server:
        yield server.url


@asynccontextmanager
async def feeds() -> AsyncIterator[str]:
    """Serve the feeds, and give their address."""
    async with _started("benchmarks.feeds") as server:
        yield server.url


@asynccontextmanager
async def storage_server(folder: Path) -> AsyncIterator[Server]:
    """Run ``ladon-storage serve`` over a new file in ``folder``."""
    serve = ("ladon_storage.cli", "serve", "--database", str(folder / "storage.db"), "--port", "0")
    with (folder / "storage-service.log").open("ab") as log:
        async with _started(*serve, log=log, environment=environment(folder)) as server:
            yield server


@asynccontextmanager
async def postgresql_service(folder: Path, url: str) -> AsyncIterator[Server]:
    """Run ``ladon-storage serve`` over PostgreSQL."""
    serve = ("ladon_storage.cli", "serve", "--port", "0")
    variables = {"STORAGE_SERVICE_DATABASE": url}
    with (folder / "storage-service.log").open("ab") as log:
        async with _started(*serve, log=log, environment=environment(folder, **variables)) as made:
            yield made


@asynccontextmanager
async def bare_server() -> AsyncIterator[Server]:
    """Run the floor."""
    async with _started("benchmarks.processes") as server:
        yield server


@asynccontextmanager
async def _started(
    *arguments: str, log: IO[bytes] | None = None, environment: dict[str, str] | None = None
) -> AsyncIterator[Server]:
    """Run a module that prints its address once it answers."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", *arguments,
        cwd=PROJECT, stdin=DEVNULL, stdout=PIPE, stderr=log, env=environment,
        start_new_session=True,
    )  # fmt: skip
    try:
        assert process.stdout
        yield Server((await process.stdout.readline()).decode().strip(), process.pid)
    finally:
        await ended(process)


async def outcome(
    folder: Path, module: str, *arguments: str, python: str = sys.executable, **variables: str
) -> dict[str, Any]:
    """Run a module of the benchmarks in a process of its own, and return the JSON that it prints.

    Raises:
        RuntimeError: It failed; with the end of what it said, all of which is a log in ``folder``.
    """
    log = folder / f"{module}.log"
    with log.open("w") as file:
        process = await asyncio.create_subprocess_exec(
            python, "-m", f"benchmarks.{module}", *arguments,
            cwd=PROJECT, stdin=DEVNULL, stdout=PIPE, stderr=file,
            env=environment(folder, **variables),
        )  # fmt: skip
    try:
        output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
    if process.returncode:
        said = log.read_text(errors="replace")[-2_000:]
        raise RuntimeError(f"benchmarks.{module} exited with {process.returncode}: {said}")
    found: dict[str, Any] = json.loads(output)
    return found


async def _read(request: web.Request) -> web.Response:
    return web.json_response({**WATERMARK, "source_id": request.match_info["source_id"]})


async def _write(request: web.Request) -> web.Response:
    await request.read()
    return await _read(request)


async def _batch(request: web.Request) -> web.Response:
    requests = (await request.json())["requests"]
    answers = [
        {
            "source_id": each["source_id"],
            "status": 200,
            "etag": '"1"',
            "body": {**WATERMARK, "source_id": each["source_id"]},
        }
        for each in requests
    ]
    return web.json_response({"answers": answers})


async def _health(_: web.Request) -> web.Response:
    return web.json_response({"status": "healthy"})


@asynccontextmanager
async def served(app: web.Application) -> AsyncIterator[str]:
    """Serve an application on a free port of loopback, and yield its address."""
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def serve(app: web.Application) -> None:
    """Serve an application, and print its address."""
    async with served(app) as url:
        print(url, flush=True)
        await asyncio.Event().wait()


def _floor() -> web.Application:
    app = web.Application()
    path = f"/{API}/{{source_id}}"
    app.add_routes([web.get(path, _read), web.put(path, _write)])
    app.add_routes([web.get("/health", _health), web.post(f"/{API}", _batch)])
    return app


if __name__ == "__main__":
    asyncio.run(serve(_floor()))
