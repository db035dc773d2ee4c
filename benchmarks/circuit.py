"""What a shared, closed circuit adds to a request, and what its store takes when it is asked.

The CPU time of the client's process for one request to the bare handler, with a circuit of its own
and with one that processes share. A request is far more than what is added to it, and so are its
swings: the circuit's part of it is measured alone too, as the same calls without the request.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from benchmarks.client import SOURCES, microseconds
from benchmarks.measuring import (
    alternating,
    describe,
    is_quick,
    ratios,
    shown,
    table,
    tables,
    verdict,
)
from benchmarks.processes import bare_handler
from ladon_storage import CircuitBreaker, StorageServiceClient
from ladon_storage.circuit.urls import circuit_of

TARGET = 1.05
PLAIN = "a circuit of its own"


def circuits(url: str, folder: Path) -> dict[str, Callable[[], CircuitBreaker]]:
    """Return how each kind of circuit is made."""
    return {
        PLAIN: CircuitBreaker,
        "shared, memory": partial(circuit_of, url, "memory://"),
        "shared, SQLite file": partial(circuit_of, url, f"sqlite:///{folder}/circuits.db"),
    }


async def nanoseconds(make: Callable[[], CircuitBreaker], calls: int) -> float:
    """Return the CPU time of admitting one call and judging it."""
    circuit = make()
    circuit.success(circuit.acquire())
    started = time.process_time_ns()
    for _ in range(calls):
        circuit.success(circuit.acquire())
    return (time.process_time_ns() - started) / calls


async def accesses(make: Callable[[], CircuitBreaker], calls: int, *, writes: bool) -> float:
    """Return the microseconds of wall time that one access of the store takes a caller."""
    circuit = make()
    circuit.reset()
    started = time.perf_counter_ns()
    for _ in range(calls):
        if writes:
            circuit.reset()
        else:
            circuit.release(-1)  # of no call: it is looked up, and changes nothing
    return (time.perf_counter_ns() - started) / calls / 1000


async def requests(url: str, folder: Path, count: int, repetitions: int, turns: int) -> float:
    """Measure requests, print them, and return the nanoseconds of a plain one."""
    clients = {
        name: StorageServiceClient(url, circuit_breaker=make())
        for name, make in circuits(url, folder).items()
    }
    figures = await alternating(
        "requests",
        {
            name: partial(microseconds, client.get_watermark, count, 1)
            for name, client in clients.items()
        },
        repetitions,
        turns,
    )
    for client in clients.values():
        await client.close()
    shows = table(
        "Reading a watermark, one after another: microseconds of CPU time",
        ("client with",),
        ("a request", "beside its own"),
    )
    for name, each in figures.items():
        shows.add_row(name, shown(each), shown(ratios(each, figures[PLAIN]), 2))
    tables.print(shows)
    for name in list(figures)[1:]:
        beside = ratios(figures[name], figures[PLAIN])
        verdict(f"A request with a circuit {name}", beside, TARGET, at_most=True)
    return median(figures[PLAIN]) * 1000


async def main(*, quick: bool) -> None:
    """Measure requests, the circuit's part of them, and the store."""
    describe("ladon-storage", "aiohttp")
    count, repetitions, turns = (len(SOURCES), 1, 1) if quick else (250, 9, 10)
    with TemporaryDirectory() as name:
        folder = Path(name)
        async with bare_handler() as url:
            request = await requests(url, folder, count, repetitions, turns)
            made = circuits(url, folder)
        await alone(made, request, 100 if quick else 20_000, repetitions)
        await stores(made, 10 if quick else 1000, repetitions)


async def alone(
    made: dict[str, Callable[[], CircuitBreaker]], request: float, calls: int, repetitions: int
) -> None:
    """Measure the circuit's part of a request, and print it."""
    figures = await alternating(
        "the circuit alone",
        {name: partial(nanoseconds, make, calls) for name, make in made.items()},
        repetitions,
    )
    shows = table(
        "Admitting a call and judging it: nanoseconds of CPU time",
        ("circuit",),
        ("a call", "above its own, in percent of a request"),
    )
    for name, each in figures.items():
        above = [
            (figure - own) / request * 100 for figure, own in zip(each, figures[PLAIN], strict=True)
        ]
        shows.add_row(name, shown(each), shown(above, 2))
    tables.print(shows)


async def stores(
    made: dict[str, Callable[[], CircuitBreaker]], calls: int, repetitions: int
) -> None:
    """Measure what a store takes when it is asked, and print it."""
    contenders: dict[str, Callable[[], Awaitable[float]]] = {}
    for name, make in list(made.items())[1:]:
        for writes in (False, True):
            what = f"{name}: {'a change' if writes else 'a look'}"
            contenders[what] = partial(accesses, make, calls, writes=writes)
    shows = table("Asking the store: microseconds", ("circuit",), ("an access",))
    for name, each in (await alternating("stores", contenders, repetitions)).items():
        shows.add_row(name, shown(each, 1))
    tables.print(shows)


if __name__ == "__main__":
    asyncio.run(main(quick=is_quick("Measure what a shared circuit adds to a request.")))
