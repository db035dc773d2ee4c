"""``ladon-storage up``: Prefect, a Storage Service and the file's deployments, on this host.

- All their files are in one folder, and a second start resumes there. The user's own Prefect
  settings are neither read nor changed.
- The runner ends first: a run in flight can still write its failure.
- All of them listen on loopback alone. A port in use is replaced, and the printed URL shows that.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import socket
import sys
from asyncio.subprocess import DEVNULL, STDOUT, Process
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from ladon_storage.cli.ended import Ended
from ladon_storage.cli.options import File
from ladon_storage.cli.output import note, print_facts
from ladon_storage.errors import ConfigurationError

if TYPE_CHECKING:
    from ladon_storage.project.project import Project

SERVING = "Serving."
"""The runner's output when its deployments are registered."""

_SERVER = {
    # In memory, as they are by default, a slot that a killed run held would outlive a restart.
    "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": (
        "prefect.server.concurrency.lease_storage.filesystem"
    ),
    # A schedule that was just resumed would otherwise wait for a minute.
    "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "10",
}
_RUNS = {
    "PREFECT_LOGGING_LEVEL": "INFO",  # what the UI shows of a run
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
    "PREFECT_RUNNER_POLL_FREQUENCY": "2",
}


def up(
    *,
    folder: Annotated[Path, Parameter(help="Where Prefect's database and the logs are.")] = Path(
        ".ladon"
    ),
    prefect_port: Annotated[int, Parameter(help="Port of Prefect; 0 chooses a free one.")] = 4200,
    storage_port: Annotated[
        int, Parameter(help="Port of the Storage Service; 0 chooses a free one.")
    ] = 8080,
    file: File = None,
) -> None:
    """Run Prefect, a Storage Service and deployments here."""
    from ladon_storage.cli import running
    from ladon_storage.project.project import Project

    project = Project.load(file)
    if not project.sources:
        raise ConfigurationError(f"{project.path} has no source; add a table [sources.NAME].")
    try:
        running.run(_up(project, folder.absolute(), prefect_port, storage_port))
    except Ended as ended:  # as it is meant to
        note(str(ended))


async def _up(project: Project, folder: Path, prefect_port: int, storage_port: int) -> None:
    from ladon_storage.cli.local import NotStartedError, prefect_server

    (folder / "prefect").mkdir(parents=True, exist_ok=True)
    async with contextlib.AsyncExitStack() as parts:
        parts.enter_context(_held(folder))
        port = _port_near(prefect_port, "Prefect")
        note("Starting Prefect (15 to 30 s the first time) …")
        api = await parts.enter_async_context(prefect_server(folder, port, **_SERVER))
        service = await parts.enter_async_context(_service(project, folder, storage_port))
        note("Starting the deployments …")
        log = folder / "runner.log"
        log.unlink(missing_ok=True)
        runner = await _runner(project, folder, api, service)
        parts.push_async_callback(_ended_with_its_runs, runner)
        await _registered(log, runner)
        print_facts(
            [
                ("Prefect UI", api.removesuffix("/api")),
                ("Storage Service", service),
                ("Logs", str(folder / "*.log")),
            ]
        )
        sys.stdout.flush()
        note("Ctrl-C ends it all; the next start resumes from here.")
        await runner.wait()
        raise NotStartedError(f"The runner of the deployments ended; read {log}.")


@contextlib.contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Lock a folder against a second start in it."""
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigurationError(
                f"It is up already, in {folder}; end that one first, or give another --folder."
            ) from None
        yield


def _port_near(wanted: int, name: str) -> int:
    """Return a port if it is free, and another one otherwise; 0 is any free one."""
    from ladon_storage.cli.local import free_port

    if not wanted:
        return free_port()
    with socket.socket() as probe:
        # As servers do: a connection that was closed just now keeps no port.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", wanted))
        except OverflowError:
            raise ConfigurationError(f"There is no port {wanted}; write 0 to 65535.") from None
        except OSError:
            port = free_port()
            note(f"Port {wanted} is taken: {name} is at {port}.")
            return port
    return wanted


@contextlib.asynccontextmanager
async def _service(project: Project, folder: Path, port: int) -> AsyncIterator[str]:
    """Yield the URL of the file's storage, served by this command where it is a file."""
    from ladon_storage.cli.local import LocalService
    from ladon_storage.embedded import SCHEME, file_of
    from ladon_storage.project.reading import anchored_address

    url = project.storage.url
    database = None
    if url is not None:
        if not url.lower().startswith(SCHEME):
            yield url
            return
        database = file_of(anchored_address(url, project.path.absolute().parent))
    note("Starting the Storage Service …")
    service = LocalService(folder, _port_near(port, "the Storage Service"), database)
    await service.start()
    try:
        yield service.url
    finally:
        await service.stop()


async def _runner(project: Project, folder: Path, api: str, service: str) -> Process:
    from ladon_storage.cli.local import environment

    variables = {"PREFECT_API_URL": api, **_RUNS}
    if project.storage.url is None:
        variables["STORAGE_SERVICE_URL"] = service
    with (folder / "runner.log").open("ab") as log:
        return await asyncio.create_subprocess_exec(
            sys.executable, "-m", "ladon_storage.cli", "deploy", "--serve",
            "--file", str(project.path.absolute()),
            cwd=project.path.absolute().parent, env=environment(folder, **variables),
            stdin=DEVNULL, stdout=log, stderr=STDOUT, start_new_session=True,
        )  # fmt: skip


async def _registered(log: Path, runner: Process) -> None:
    """Return when the runner serves its deployments, or has ended."""
    # Another process writes the file: there is no event to wait for.
    while runner.returncode is None and not _serves(log):  # noqa: ASYNC110
        await asyncio.sleep(0.2)


def _serves(log: Path) -> bool:
    return SERVING in log.read_text(errors="replace")


async def _ended_with_its_runs(runner: Process) -> None:
    """End the runner, which ends its runs; a second signal would interrupt their writes."""
    from ladon_storage.cli.local import ended

    with contextlib.suppress(ProcessLookupError, TimeoutError):
        runner.terminate()
        await asyncio.wait_for(runner.wait(), 60)
    await ended(runner, seconds=5)
