"""``ladon-storage up``: Prefect, a Storage Service and deployments, on this host.

- The deployments are those of ``ladon.toml``, or of a ``prefect.yaml``. The latter names neither a
  storage nor a sink: its runs find both in the blocks called default, which are saved here.
- All their files are in one folder, and a second start resumes there. The user's own Prefect
  settings are neither read nor changed.
- The runner ends first: a run in flight can still write its failure. Where this process is killed,
  all end, and a second start is refused until they have.
- Runs share the circuits and rates of the environment in which this process was started.
- None of them may end by itself: then all end, and the command says which one it was.
- All of them listen on loopback alone. A port in use is replaced, and the printed URL shows that.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import re
import socket
from asyncio.subprocess import STDOUT, Process
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from ladon_storage.cli.ended import Ended
from ladon_storage.cli.options import File, Table
from ladon_storage.cli.output import OUTPUT, note, print_facts
from ladon_storage.databases import escaped
from ladon_storage.errors import ConfigurationError

if TYPE_CHECKING:
    from ladon_storage.cli.local import Part

SERVING = "Serving."
"""The runner's output when its deployments are registered."""

SERVER = {
    # In memory, as they are by default, a slot that a killed run held would outlive a restart.
    "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": (
        "prefect.server.concurrency.lease_storage.filesystem"
    ),
    # A schedule that was just resumed would otherwise wait for a minute.
    "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "10",
    # On SQLite, a transaction that reads before it writes fails at once if another one wrote
    # between the two, and no timeout helps. The service that calls runs late is such a one, every
    # five seconds. The runner is beside the server here, so a run is late only while it is busy.
    "PREFECT_SERVER_SERVICES_LATE_RUNS_ENABLED": "false",
    # A write for each event of a task competes with all others; one a second holds many.
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE": "50",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_FLUSH_INTERVAL": "1",
}
RUNS = {
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
    table: Table = None,
    file: File = None,
) -> None:
    """Run Prefect, a Storage Service and deployments here."""
    from ladon_storage.cli import running

    described = of_file(file) if table is None else _of_table(table, file)
    try:
        running.run(
            _up(described, folder.absolute(), prefect_port, storage_port),
            running.Signals(only_first=True),  # cut short, the end would leave processes behind
        )
    except Ended as ended:  # as it is meant to
        note(str(ended))


@dataclass(frozen=True)
class Described:
    """The deployments to run.

    Args:
        arguments: The options of ``deploy --serve`` that name them.
        folder: The working directory of that command.
        storage: The address of their storage; ``None``: a service is started for them.
        sink: Whether the block of a sink is saved for them.
        named: The environment variables that the file names, such as those of secrets.
    """

    arguments: tuple[str, ...]
    folder: Path
    storage: str | None = None
    sink: bool = False
    named: Mapping[str, str] = field(default_factory=dict)


def of_file(file: Path | None) -> Described:
    """Return the deployments of a file.

    Raises:
        ConfigurationError: The file cannot be read, has no source, or a table of it is wrong.
    """
    from ladon_storage.project.project import Project

    project = Project.load(file, absolute=True)
    if not project.sources:
        raise ConfigurationError(f"{project.path} has no source; add a table [sources.NAME].")
    path = project.path.absolute()
    tables = (project.storage, *project.sinks.values(), *project.sources.values())
    texts = {text for table in tables for text in _texts(table.model_dump())}
    named = {name: value for name, value in os.environ.items() if name in texts}
    return Described(("--file", str(path)), path.parent, project.storage.url, named=named)


def _texts(value: Any) -> Iterator[str]:
    """Yield the texts in a table."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list | tuple):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _texts(each)


def _of_table(table: Path, file: Path | None) -> Described:
    if file is not None:
        raise ConfigurationError("Give either --table or --file, and not both.")
    if not table.is_file():
        raise ConfigurationError(f"There is no {table}; give --table another file.")
    path = table.absolute()
    return Described(("--table", str(path)), path.parent, sink=True)


def shared_by(described: Described) -> dict[str, str]:
    """Return the user's variables that hold for runs, too: of secrets, and of shared circuits."""
    from ladon_storage.circuit.urls import CIRCUIT_URL_VARIABLE, default_url

    with contextlib.suppress(RuntimeError):  # of a user without a home
        return {**described.named, CIRCUIT_URL_VARIABLE: default_url()}
    return {**described.named}


async def _up(described: Described, folder: Path, prefect_port: int, storage_port: int) -> None:
    from ladon_storage.cli.local import Part, prefect_part, refuse_ended

    try:
        (folder / "prefect").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(
            f"The folder {str(folder)!r} cannot be made ({error.strerror}); give another --folder."
        ) from None
    async with contextlib.AsyncExitStack() as parts:
        lock = parts.enter_context(held(folder))
        port = port_near(prefect_port, "Prefect")
        note("Starting Prefect (15 to 30 s the first time) …")
        api, prefect = await parts.enter_async_context(prefect_part(folder, port, lock, **SERVER))
        service, *served = await parts.enter_async_context(
            _service(described, folder, storage_port, api.removesuffix("/api"), lock)
        )
        note("Starting the deployments …")
        log = folder / "runner.log"
        log.unlink(missing_ok=True)
        variables = {**shared_by(described), "PREFECT_API_URL": api, **RUNS}
        records = f"sqlite:///{escaped(folder / 'records.db')}"
        if described.sink:
            await _saved_blocks(folder, service, records, variables, lock)
        if described.storage is None:
            variables["STORAGE_SERVICE_URL"] = service
        runner = await _module(
            described.folder, folder, variables, lock,
            "ladon_storage.cli", "deploy", "--serve", *described.arguments,
        )  # fmt: skip
        parts.push_async_callback(_ended_with_its_runs, runner)
        await _registered(log, runner)
        print_facts(
            [
                ("Prefect UI", api.removesuffix("/api")),
                ("Storage Service", service),
                *([("Records", str(folder / "records.db"))] if described.sink else []),
                ("Logs", str(folder / "*.log")),
            ]
        )
        OUTPUT.flush()
        note("Ctrl-C ends it all; the next start resumes from here.")
        await refuse_ended(prefect, *served, Part("The runner of the deployments", runner, log))


@contextlib.contextmanager
def held(folder: Path) -> Iterator[IO[str]]:
    """Lock a folder against a second start in it, and yield the file, which names who keeps it."""
    file = folder / "lock"
    with contextlib.ExitStack() as opened:
        try:
            lock = opened.enter_context(file.open("a+", encoding="utf-8", errors="replace"))
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigurationError(
                f"It is up already, in {folder}{_keepers(lock)}; end that one first, or give "
                "another --folder."
            ) from None
        except OSError as error:
            raise ConfigurationError(
                f"The file {str(file)!r} cannot be locked ({error.strerror or error}); move it "
                "away, or give another --folder."
            ) from None
        lock.truncate(0)
        print(os.getpid(), "up", file=lock, flush=True)
        yield lock


def _keepers(lock: IO[str]) -> str:
    """Return the processes of a lock that still run, worded for an error."""
    lock.seek(0)
    # A file that another program wrote names none, and 0 would be this process's own group.
    named = re.findall(r"^([1-9][0-9]{0,8}) ([A-Za-z ]+)$", lock.read(), re.MULTILINE)
    running = [f"{name} ({pid})" for pid, name in named if _runs(int(pid))]
    return f", by the processes {', '.join(running)}" if running else ""


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError as error:
        return isinstance(error, PermissionError)
    return True


def port_near(wanted: int, name: str) -> int:
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
async def _service(
    described: Described, folder: Path, port: int, prefect_url: str, lock: IO[str]
) -> AsyncIterator[tuple[str, *tuple[Part, ...]]]:
    """Yield the URL of the storage, and the process that serves it where it is a file.

    Its status page has the limits of freshness, and links to the runs.
    """
    from ladon_storage.cli.local import LocalService
    from ladon_storage.embedded import SCHEME, file_of

    url = described.storage
    database = None
    if url is not None:
        if not url.lower().startswith(SCHEME):
            yield (url,)
            return
        database = file_of(url)
    note("Starting the Storage Service …")
    options: tuple[str, ...] = ("--prefect-url", prefect_url)
    if described.arguments[0] == "--file":
        options += described.arguments
    port = port_near(port, "the Storage Service")
    service = LocalService(folder, port, database, options, lock)
    part = await service.start()
    try:
        yield service.url, part
    finally:
        await service.stop()


async def _saved_blocks(
    folder: Path, service: str, records: str, variables: Mapping[str, str], lock: IO[str]
) -> None:
    """Save the blocks called default.

    Raises:
        NotStartedError: It failed; the message names the log.
    """
    from ladon_storage.cli.local import NotStartedError, ended

    process = await _module(
        folder, folder, {**variables, "STORAGE_SERVICE_URL": service}, lock,
        "ladon_storage.cli.default_blocks", service, records,
    )  # fmt: skip
    try:
        if await process.wait():
            raise NotStartedError(f"The blocks were not saved; read {folder / 'runner.log'}.")
    finally:
        await ended(process)


async def _module(
    place: Path, folder: Path, variables: Mapping[str, str], lock: IO[str], *command: str
) -> Process:
    """Start a module as a process that knows only the Prefect of a folder."""
    from ladon_storage.cli.local import environment, started

    with (folder / "runner.log").open("ab") as log:
        return await started(
            "runner", *command, lock=lock,
            cwd=place, env=environment(folder, **variables), stdout=log, stderr=STDOUT,
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
