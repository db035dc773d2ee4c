"""Processes that live as a flow run does: few calls, then the end; started quickly and at once.

`Zygote` is one process that has imported everything, and forks a run at a time or many together.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from ladon_storage.circuit.shared import SharedCircuit
from ladon_storage.circuit.urls import service_key, store_at
from ladon_storage.client.client import StorageServiceClient
from ladon_storage.errors import LadonStorageError

ROOT = Path(__file__).resolve().parent.parent.parent
THRESHOLD = 5


@dataclass
class Run:
    """Tell how one process ended: ``error`` is empty for a run whose calls succeeded.

    ``changes`` are those of the circuit that this process made; ``lost`` is why its store failed.
    """

    error: str = ""
    cause: str = ""
    cpu_seconds: float = 0.0
    wall_seconds: float = 0.0
    changes: list[str] = field(default_factory=list)
    lost: str = ""

    @property
    def was_rejected(self) -> bool:
        """Whether it was ended by an open circuit."""
        return "CircuitOpenError" in (self.error, self.cause)


async def live(service: str, store: str, timeout_seconds: float, lease_seconds: float) -> Run:
    """Do what a collection asks of the Storage Service, until the first error."""
    run = Run()
    circuit = SharedCircuit(
        store_at(store),
        service_key(service),
        THRESHOLD,
        timeout_seconds,
        probe_lease_seconds=lease_seconds,
        listeners=(lambda change: run.changes.append(change.after),),
    )
    try:
        async with StorageServiceClient(service, circuit_breaker=circuit) as client:
            await client.health_check(through_circuit=True)
            await client.get_watermark(source_id := f"source-{os.getpid()}")
            for status in ("running", "success"):
                await client.update_watermark(source_id, datetime.now(UTC), status)
    except LadonStorageError as error:
        run.error, run.cause = type(error).__name__, type(error.__cause__).__name__
    run.lost = str(circuit.store_error or "")
    return run


def _run(service: str, store: str, timeout_seconds: str, lease_seconds: str) -> None:
    cpu, wall = time.process_time(), time.perf_counter()
    run = asyncio.run(live(service, store, float(timeout_seconds), float(lease_seconds)))
    run.cpu_seconds, run.wall_seconds = time.process_time() - cpu, time.perf_counter() - wall
    os.write(1, json.dumps(run.__dict__).encode() + b"\n")


def _fork(count: int, *arguments: str) -> None:
    """Start ``count`` runs together, and wait for them."""
    wait_for, start = os.pipe()
    processes = []
    for _ in range(count):
        process = os.fork()
        if not process:
            try:
                os.close(start)
                os.read(wait_for, 1)
                _run(*arguments)
            finally:
                os._exit(0)
        processes.append(process)
    os.close(wait_for)
    os.close(start)
    os.write(1, json.dumps(processes).encode() + b"\n")
    for process in processes:
        os.waitpid(process, 0)


def main() -> None:
    """Read numbers from standard input, and start so many runs for each."""
    logging.disable()
    store_at(sys.argv[2])  # a driver is imported at start-up
    for line in sys.stdin:
        _fork(int(line), *sys.argv[1:])
        os.write(1, b"\n")


class Zygote:
    """Start runs against one service and one store."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._running: list[int] = []

    async def runs(self, count: int) -> list[Run]:
        """Let ``count`` processes run at the same time, and return how they ended."""
        found = [Run(**each) for each in await self._told(count) if isinstance(each, dict)]
        assert len(found) == count
        return found

    async def until_killed(self) -> None:
        """Run until one is rejected no more, and let `kill_runs` end that one."""
        while len(await self._told(1)) > 1:
            pass

    async def kill_runs(self) -> None:
        """Kill the processes that run now."""
        for process in self._running:
            os.kill(process, signal.SIGKILL)

    async def _told(self, count: int) -> list[object]:
        """Start ``count`` runs, and return what the zygote says: their ids, and how they ended."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(f"{count}\n".encode())
        told = list[object]()
        while (line := await asyncio.wait_for(self._process.stdout.readline(), 60)) != b"\n":
            assert line, "the zygote has ended"
            told.append(json.loads(line))
            if isinstance(told[-1], list):
                self._running = told[-1]
        return told


@asynccontextmanager
async def zygote(
    service: str, store: str, timeout_seconds: float = 60, lease_seconds: float = 60
) -> AsyncIterator[Zygote]:
    """Run a zygote; a lease is longer than a process may have to wait for the processor."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.circuit.processes", service, store),
        *(str(timeout_seconds), str(lease_seconds)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        cwd=ROOT,
    )
    try:
        yield Zygote(process)
    finally:
        process.send_signal(signal.SIGKILL)
        await process.communicate()


class Door:
    """Be what listens at a service's address: it counts connections, and lets them in or not."""

    def __init__(self, behind: str) -> None:
        self._behind = behind
        self._tasks: set[asyncio.Task[None]] = set()
        self.connections = 0
        self.is_open = False
        self.is_silent = False
        self.address = ""

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        if self.is_silent:
            await reader.read()
        elif self.is_open:
            host, _, port = self._behind.removeprefix("http://").rpartition(":")
            inner_reader, inner_writer = await asyncio.open_connection(host, int(port))
            await asyncio.gather(_pipe(reader, inner_writer), _pipe(inner_reader, writer))
        writer.close()


async def _pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except ConnectionError:
        pass
    writer.close()


@asynccontextmanager
async def door(behind: str = "") -> AsyncIterator[Door]:
    """Listen on a free port of loopback, before the service at ``behind``."""
    made = Door(behind)
    server = await asyncio.start_server(made._serve, "127.0.0.1", 0, backlog=512)
    made.address = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield made
    finally:
        server.close()


if __name__ == "__main__":
    main()
