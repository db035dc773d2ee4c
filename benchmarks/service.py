"""How many watermarks the embedded service reads and writes in a second, beside floor and stand-in.

The floor is a bare aiohttp handler, which stores nothing. The stand-in is what a Prefect user has
without a Storage Service: Prefect Variables, in a Prefect server of their own. Half of all requests
write, and the service answers a write only once it is on disk. Each server and each client is a
process of its own.

What a request costs is the CPU time of the server's process over the number of its requests, in
user and kernel mode. It depends less than a rate on what else the machine does.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.measuring import (
    alternating,
    describe,
    is_quick,
    progress,
    ratios,
    shown,
    table,
    tables,
    verdict,
)
from benchmarks.processes import Server, bare_server, outcome, storage_server
from demo.stage import prefect_server

CONNECTIONS = 32
LEAST_OF_BARE, LEAST_OF_VARIABLES = 1 / 3, 20
MOST_CPU = {"GET": 1.8, "PUT": 2.8}
"""The most CPU time of each request beside the bare handler's."""

OURS, BARE = "embedded service", "bare aiohttp handler"
VARIABLES = "Prefect Variables: aget, aset"


class Loads:
    """Make contenders of servers, and note how busy the process was that asked them."""

    def __init__(self, folder: Path, seconds: float) -> None:
        self._folder = folder
        self._seconds = str(seconds)
        self.busy: dict[str, list[float]] = {}

    def watermarks(self, name: str, url: str) -> Callable[[], Awaitable[float]]:
        """Return what asks a server of watermarks."""
        return self._load(name, "load", url.rpartition(":")[2])

    def cpu(self, server: Server, method: str) -> Callable[[], Awaitable[float]]:
        """Return what measures the CPU time of a server's request in microseconds."""
        port = server.url.rpartition(":")[2]
        load = (port, str(CONNECTIONS), self._seconds, method, str(server.process_id))

        async def microseconds() -> float:
            found = await outcome(self._folder, "load", *load)
            return float(found["server_cpu_microseconds"])

        return microseconds

    async def compare_cpu(self, servers: dict[str, Server], repetitions: int) -> None:
        """Measure the CPU time of a read and a write in turn, and print them."""
        shows = table(
            f"CPU time of the server's process, µs a request, {CONNECTIONS} at a time",
            ("request", "server"),
            ("µs", "service / this"),
        )
        beside = {}
        for method in MOST_CPU:
            contenders = {name: self.cpu(server, method) for name, server in servers.items()}
            figures = await alternating(f"CPU of {method}", contenders, repetitions)
            beside[method] = ratios(figures[OURS], figures[BARE])
            for name, each in figures.items():
                shows.add_row(method, name, shown(each), shown(ratios(figures[OURS], each), 2))
        tables.print(shows)
        for method, most in MOST_CPU.items():
            named = f"The CPU of a {'read' if method == 'GET' else 'durable write'} beside it"
            verdict(named, beside[method], most, at_most=True)

    def variables(self, name: str, api: str) -> Callable[[], Awaitable[float]]:
        """Return what asks a Prefect server through Prefect's own client."""
        return self._load(name, "variables", PREFECT_API_URL=api)

    def _load(
        self, name: str, module: str, *arguments: str, **variables: str
    ) -> Callable[[], Awaitable[float]]:
        async def answers_per_second() -> float:
            found = await outcome(
                self._folder, module, *arguments, str(CONNECTIONS), self._seconds, **variables
            )
            self.busy.setdefault(name, []).append(found["own_cpu"] * 100)
            return float(found["per_second"])

        return answers_per_second

    async def compare(
        self, other: str, contenders: dict[str, Callable[[], Awaitable[float]]], repetitions: int
    ) -> list[float]:
        """Measure the service and one other in turn, print them, and return the ratios."""
        figures = await alternating(other, contenders, repetitions)
        shows = table(
            f"Reads and writes a second, half and half, {CONNECTIONS} at a time",
            ("server",),
            ("a second", "service / this", "client's CPU, %"),
        )
        for name, each in figures.items():
            beside = shown(ratios(figures[OURS], each), 2)
            shows.add_row(name, shown(each), beside, shown(self.busy[name][1:]))
        tables.print(shows)
        return ratios(figures[OURS], figures[other])


def fsync_milliseconds(folder: Path) -> list[float]:
    """Return how long ``folder``'s disk takes to make 4 KiB durable, which bounds what writes can.

    Around 0 it is no disk, and nothing here was durable.
    """
    figures = []
    with (folder / "fsync").open("ab", buffering=0) as file:
        for _ in range(25):
            file.write(bytes(4096))
            started = time.perf_counter()
            os.fsync(file.fileno())
            figures.append((time.perf_counter() - started) * 1000)
    return figures


async def main(*, quick: bool) -> None:
    """Measure the service beside the bare handler, and then beside Prefect Variables."""
    describe("ladon-storage", "aiohttp", "sqlalchemy", "prefect")
    repetitions = 1 if quick else 7
    with TemporaryDirectory() as folder:
        tables.print(f"fsync of 4 KiB: {shown(fsync_milliseconds(Path(folder)), 2)} ms")
        loads = Loads(Path(folder), 0.2 if quick else 3)
        async with storage_server(Path(folder)) as server:
            service = server.url
            async with bare_server() as bare:
                beside = await loads.compare(
                    BARE,
                    {OURS: loads.watermarks(OURS, service), BARE: loads.watermarks(BARE, bare.url)},
                    repetitions,
                )
                await loads.compare_cpu({OURS: server, BARE: bare}, repetitions)
            verdict("The service beside the bare handler", beside, LEAST_OF_BARE, at_most=False)
            if quick:
                tables.print("Prefect Variables: not at the smallest size.")
                return
            progress.print("  starting a Prefect server (10 to 30 s)", style="dim")
            async with prefect_server(Path(folder)) as api:
                loads.busy.clear()
                beside = await loads.compare(
                    VARIABLES,
                    {
                        OURS: loads.watermarks(OURS, service),
                        VARIABLES: loads.variables(VARIABLES, api),
                    },
                    repetitions,
                )
            verdict(
                "The service beside Prefect Variables", beside, LEAST_OF_VARIABLES, at_most=False
            )


if __name__ == "__main__":
    asyncio.run(main(quick=is_quick("Measure the embedded service beside its floor.")))
