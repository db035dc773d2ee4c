"""What a call through the circuit costs while it is closed and while it is open, beside its peers.

Each contender is a library's own way of guarding a coroutine function; where there are several,
each of them. What is measured is the CPU time of one call, and what of it is above the bare
``await func()``: of a function that returns or, beside rejections, of one that raises.
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from importlib import import_module
from itertools import repeat
from statistics import median
from typing import Any

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
from ladon_storage.circuit.breaker import CircuitBreaker

TARGET = 0.5
# The thresholds that all have, and an open circuit that no measurement outlasts.
FAILURES, SECONDS = 5, 3600

Func = Callable[[], Awaitable[None]]


class AdmittedError(BaseException):
    """Say that an open circuit let a call through."""


async def returns() -> None:
    """Be the call that a closed circuit admits."""


async def raises() -> None:
    """Be the bare beside a rejection: an error of no cost of its own, raised and caught."""
    raise ConnectionError


def failing() -> Func:
    """Return a function that fails until its circuit is open, and must not be called after that."""
    outcomes = iter([ConnectionError] * FAILURES)

    async def func() -> None:
        raise next(outcomes, AdmittedError)

    return func


@dataclass(frozen=True)
class Contender:
    """Be one way of guarding a function: ``statement`` calls it through what ``make`` returns.

    ``make`` gets the library, which is imported only here so that it may be missing, and ``func``.
    """

    library: str
    statement: str
    make: Callable[[Any, Func], Awaitable[object]]

    @property
    def name(self) -> str:
        """What tells it from the others."""
        return f"{self.library}: {self.statement}"


async def _bare(_: Any, __: Func) -> object:
    return None


async def _ours(_: Any, __: Func) -> object:
    return CircuitBreaker(FAILURES, SECONDS)


async def _aiobreaker(library: Any, _: Func) -> object:
    return library.CircuitBreaker(fail_max=FAILURES, timeout_duration=timedelta(seconds=SECONDS))


async def _circuitbreaker(library: Any, func: Func) -> object:
    return library.circuit(failure_threshold=FAILURES, recovery_timeout=SECONDS)(func)


async def _hyx(library: Any, _: Func) -> Any:
    return library.consecutive_breaker(failure_threshold=FAILURES, recovery_time_secs=SECONDS)


async def _hyx_decorator(library: Any, func: Func) -> object:
    return (await _hyx(library, func))(func)


async def _purgatory(library: Any, _: Func) -> object:
    factory = library.AsyncCircuitBreakerFactory(default_threshold=FAILURES, default_ttl=SECONDS)
    return await factory.get_breaker("service")


async def _purgatory_decorator(library: Any, func: Func) -> object:
    factory = library.AsyncCircuitBreakerFactory(default_threshold=FAILURES, default_ttl=SECONDS)
    return factory("service")(func)


BARE = Contender("bare", "await func()", _bare)
OURS = Contender("ladon_storage", "await breaker.call(func)", _ours)
OURS_TOO = Contender("ladon_storage", "async with breaker: await func()", _ours)
PEERS = [
    Contender("aiobreaker", "await breaker.call_async(func)", _aiobreaker),
    Contender("circuitbreaker", "await guarded()", _circuitbreaker),
    Contender("hyx.circuitbreaker", "await guarded()", _hyx_decorator),
    Contender("hyx.circuitbreaker", "async with breaker: await func()", _hyx),
    Contender("purgatory", "await guarded()", _purgatory_decorator),
    Contender("purgatory", "async with breaker: await func()", _purgatory),
]

LOOPS = """
async def closed(calls, func, breaker, guarded):
    for _ in calls:
        {statement}

async def rejected(calls, func, breaker, guarded):
    for _ in calls:
        try:
            {statement}
        except Exception:
            pass
"""


async def nanoseconds(contender: Contender, kind: str, calls: int) -> float:
    """Return the CPU time of one call, through a circuit made for this measurement.

    Raises:
        AdmittedError: The circuit was not open when it should have been.
    """
    library = None if contender in (BARE, OURS, OURS_TOO) else import_module(contender.library)
    func = returns if kind == "closed" else raises if contender is BARE else failing()
    breaker = await contender.make(library, func)
    # As timeit does it: a call through another function would be measured with it.
    namespace: dict[str, Any] = {}
    exec(LOOPS.format(statement=contender.statement), namespace)
    loop = partial(namespace[kind], func=func, breaker=breaker, guarded=breaker)
    await loop(repeat(None, FAILURES))
    gc.collect()
    gc.disable()
    try:
        started = time.process_time_ns()
        await loop(repeat(None, calls))
        return (time.process_time_ns() - started) / calls
    finally:
        gc.enable()


def installed(peers: list[Contender]) -> list[Contender]:
    """Return the peers that are there, and say which are not."""
    found = []
    for peer in peers:
        try:
            import_module(peer.library)
        except ModuleNotFoundError:
            progress.print(f"  {peer.library} is not installed, and left out: see `make bench`")
        else:
            found.append(peer)
    return found


async def compare(
    kind: str, peers: list[Contender], calls: int, repetitions: int, turns: int
) -> None:
    """Measure calls of one kind, and print them."""
    contenders = [BARE, OURS, OURS_TOO, *peers]
    figures = await alternating(
        f"{kind} calls",
        {each.name: partial(nanoseconds, each, kind, calls) for each in contenders},
        repetitions,
        turns,
    )
    bare, ours = figures[BARE.name], figures[OURS.name]
    above = {
        each.name: [figure - floor for figure, floor in zip(figures[each.name], bare, strict=True)]
        for each in contenders
    }
    shows = table(
        f"A {kind} call, in nanoseconds of CPU time",
        ("library", "call"),
        ("raw", "above bare", "ours / this"),
    )
    for each in contenders:
        is_floor = each is BARE
        shows.add_row(
            each.library,
            each.statement,
            shown(figures[each.name]),
            "" if is_floor else shown(above[each.name]),
            "" if is_floor else shown(ratios(above[OURS.name], above[each.name]), 2),
        )
    tables.print(shows)
    if not peers:
        tables.print("No peer is installed; there is nothing to compare with.")
        return
    fastest = min(peers, key=lambda each: median(figures[each.name])).name
    what = f"A {kind} call beside the fastest peer's ({fastest})"
    verdict(f"{what}, above bare", ratios(above[OURS.name], above[fastest]), TARGET, at_most=True)
    verdict(f"{what}, raw", ratios(ours, figures[fastest]), TARGET, at_most=True)


async def main(*, quick: bool) -> None:
    """Measure closed and rejected calls."""
    describe("ladon-storage", "aiobreaker", "circuitbreaker", "hyx", "purgatory")
    peers = installed(PEERS)
    calls, repetitions, turns = (100, 1, 1) if quick else (10_000, 9, 5)
    for kind in ("closed", "rejected"):
        await compare(kind, peers, calls, repetitions, turns)


if __name__ == "__main__":
    asyncio.run(main(quick=is_quick("Measure the circuit breaker beside its peers.")))
