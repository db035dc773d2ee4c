"""Run what collections need on this machine: Prefect, a Storage Service, the deployments.

- All that they write is in one folder of the project, and a second start goes on from there. The
  user's own Prefect settings are neither read nor changed.
- The runner ends first, so that a run under way can still write that it failed.
- Everything listens on loopback alone. A port that is taken is replaced, and the address says so.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import fcntl
import signal
import socket
import sys
from asyncio.subprocess import DEVNULL, STDOUT, Process
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from rich.console import Console

from demo.stage import PROJECT, StorageService, ended, environment, free_port, prefect_server
from ladon_storage.errors import ConfigurationError

PREFECT_PORT, STORAGE_PORT = 4200, 8080
HEARTBEAT_SECONDS = 30
SERVING = "Serving."
"""What the runner says when its deployments are registered."""

SERVER = {
    # In memory, as they are by default, a slot that a killed run held would outlive a restart.
    "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": (
        "prefect.server.concurrency.lease_storage.filesystem"
    ),
    # A schedule that was just switched on would otherwise wait for a minute.
    "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "10",
}
RUNS = {
    "PREFECT_LOGGING_LEVEL": "INFO",  # what the UI shows of a run
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT_SECONDS),
    "PREFECT_RUNNER_POLL_FREQUENCY": "2",
}

console = Console(highlight=False, soft_wrap=True)


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold ``folder`` against another process that would start the same there.

    Raises:
        RuntimeError: One did already.
    """
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise RuntimeError(f"It is up already, in {folder}; end that one first.") from None
        yield


def port_near(wanted: int, name: str) -> int:
    """Return ``wanted`` if nobody listens there, and a free port otherwise; 0 is any free one."""
    if not wanted:
        return free_port()
    with socket.socket() as probe:
        # As servers do: a connection that was closed just now keeps no port.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", wanted))
        except OSError:
            port = free_port()
            console.print(f"Port {wanted} is taken: {name} is at {port}.")
            return port
    return wanted


@contextlib.asynccontextmanager
async def storage_service(folder: Path, port: int) -> AsyncIterator[str]:
    """Run the Storage Service, and give its address."""
    service = StorageService(folder, port)
    try:
        await service.start()
        yield service.url
    finally:
        await service.stop()


async def run_module(folder: Path, api: str, *command: str, **variables: str) -> Process:
    """Start a module of the project as a process that knows only this Prefect."""
    with (folder / "runner.log").open("ab") as log:
        return await asyncio.create_subprocess_exec(
            sys.executable, "-m", *command,
            cwd=PROJECT, env=environment(folder, PREFECT_API_URL=api, **RUNS, **variables),
            stdin=DEVNULL, stdout=log, stderr=STDOUT, start_new_session=True,
        )  # fmt: skip


async def prepared(folder: Path, api: str, service: str) -> None:
    """Save the default blocks.

    Raises:
        RuntimeError: It failed; the message names the log.
    """
    sink = f"sqlite:///{folder / 'records.db'}"
    process = await run_module(
        folder, api, "demo.defaults", service, sink, STORAGE_SERVICE_URL=service
    )
    try:
        if await process.wait():
            raise RuntimeError(f"The blocks were not saved; read {folder / 'runner.log'}.")
    finally:
        await ended(process)


async def up(folder: Path, prefect_port: int, storage_port: int) -> None:
    """Start everything, say where it is, and keep it until this task is cancelled.

    Raises:
        RuntimeError: A part did not start, or ended by itself; the message names its log.
    """
    (folder / "prefect").mkdir(parents=True, exist_ok=True)
    async with contextlib.AsyncExitStack() as parts:
        parts.enter_context(held(folder))
        port = port_near(prefect_port, "Prefect")
        console.print("Starting Prefect (15 to 30 s the first time) …")
        api = await parts.enter_async_context(prefect_server(folder, port, **SERVER))
        console.print("Starting the Storage Service …")
        port = port_near(storage_port, "the Storage Service")
        service = await parts.enter_async_context(storage_service(folder, port))
        console.print("Starting the deployments …")
        (folder / "runner.log").unlink(missing_ok=True)
        await prepared(folder, api, service)
        runner = await run_module(folder, api, "ladon_storage.flows.serve")
        parts.push_async_callback(ended_with_its_runs, runner)
        await registered(folder, runner)
        console.print(
            f"\nPrefect UI       {api.removesuffix('/api')}\n"
            f"Storage Service  {service}\n"
            f"Records          {folder / 'records.db'}\n"
            f"Logs             {folder / '*.log'}\n\n"
            "Ctrl-C ends it all; the next start goes on from here."
        )
        await runner.wait()
        raise RuntimeError(f"The runner of the deployments ended; read {folder / 'runner.log'}.")


async def ended_with_its_runs(runner: Process) -> None:
    """End the runner, which ends its runs: told twice, they could not write that they failed."""
    with contextlib.suppress(ProcessLookupError, TimeoutError):
        runner.terminate()
        await asyncio.wait_for(runner.wait(), 60)
    await ended(runner, seconds=5)


async def registered(folder: Path, runner: Process) -> None:
    """Return when the runner says that it serves, or has ended."""
    log = folder / "runner.log"
    # Another process writes the file: there is nothing to wait on.
    while runner.returncode is None and SERVING not in log.read_text(errors="replace"):  # noqa: ASYNC110
        await asyncio.sleep(0.2)


async def main(arguments: list[str] | None = None) -> int:
    """Run it from the command line, until SIGINT or SIGTERM; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m demo.up",
        description="Run Prefect, a Storage Service and the deployments on this machine.",
    )
    parser.add_argument("--folder", type=Path, default=PROJECT / ".local", help="(%(default)s)")
    parser.add_argument("--prefect-port", type=int, default=PREFECT_PORT, help="(%(default)s)")
    parser.add_argument("--storage-port", type=int, default=STORAGE_PORT, help="(%(default)s)")
    options = parser.parse_args(arguments)
    running = asyncio.ensure_future(
        up(options.folder.resolve(), options.prefect_port, options.storage_port)
    )

    def end() -> None:
        if not running.cancelling():  # cut short, the ending would leave parts behind
            running.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, end)
    try:
        await running
    except asyncio.CancelledError:
        console.print("Ended.")
    except (RuntimeError, ConfigurationError) as error:
        console.print(str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
