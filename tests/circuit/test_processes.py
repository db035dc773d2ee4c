"""One circuit and many real processes; connections are counted where the service listens.

The bound of each run is its processor time: two hundred at once wait for a processor, not for us.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from statistics import median

import pytest

from tests.circuit.processes import THRESHOLD, Door, Run, door, zygote
from tests.redis_server import RedisServer
from tests.service import embedded_service

TIMEOUT_SECONDS = 1.0
LEASE_SECONDS = 2.0
BUSY_SECONDS = 10.0
"""What a machine that does other things too may add."""


@pytest.fixture(params=["sqlite", pytest.param("redis", marks=pytest.mark.slow)])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Return the address of each store that processes can share."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/circuits.db"
    server: RedisServer = request.getfixturevalue("redis_server")
    return server.url()


@pytest.fixture
async def front(tmp_path: Path) -> AsyncIterator[Door]:
    """Return the door of a service that works, still shut."""
    async with embedded_service(tmp_path / "storage.db") as address, door(address) as made:
        yield made


def changes(runs: list[Run]) -> Counter[str]:
    return Counter(change for run in runs for change in run.changes)


@pytest.mark.slow
async def test_two_hundred_runs_of_a_dead_service_try_it_five_times(
    store: str, front: Door
) -> None:
    """All start together: as many connect as may fail, the others end in less than 50 ms each.

    The service comes back, and within one timeout all run again, after one probe.
    """
    # Two hundred at once wait for a processor for longer than a store may take to answer.
    store = (
        f"{store}?timeout=1"
        if store.startswith("sqlite")
        else store.replace("timeout=5", "timeout=60")
    )
    async with zygote(front.address, store, TIMEOUT_SECONDS) as processes:
        dead = await processes.runs(200)
        probes = changes(dead)["half_open"]
        assert [run.lost for run in dead if run.lost] == []
        assert front.connections <= THRESHOLD + probes
        rejected = [run for run in dead if run.was_rejected]
        assert len(rejected) == 200 - THRESHOLD - probes
        assert max(run.cpu_seconds for run in rejected) < 0.05
        assert changes(dead)["open"] == 1 + probes

        [alone] = await processes.runs(1)
        if alone.was_rejected:
            assert alone.wall_seconds < 0.5

        front.is_open = True
        opened, runs = time.monotonic(), list[Run]()
        while not runs or runs[-1].error:
            assert time.monotonic() - opened < TIMEOUT_SECONDS + BUSY_SECONDS
            runs += await processes.runs(1)
        assert changes(runs)["closed"] == 1
        again = await processes.runs(20)
        assert {run.error for run in again} == {""}
        assert not changes(again)


async def test_failures_of_processes_add_up_and_the_next_is_rejected(
    store: str, front: Door
) -> None:
    """Five processes with one failure each: the first call of the sixth is not made."""
    async with zygote(front.address, store) as processes:
        for _ in range(THRESHOLD):
            [run] = await processes.runs(1)
            assert not run.was_rejected
        [run] = await processes.runs(1)
    assert run.was_rejected
    assert front.connections == THRESHOLD
    assert run.cpu_seconds < 0.05


@pytest.mark.slow
async def test_eight_processes_at_expiry_probe_once(store: str, front: Door) -> None:
    """Whoever is elected asks, and the others are rejected while it does."""
    async with zygote(front.address, store, TIMEOUT_SECONDS) as processes:
        await processes.runs(THRESHOLD)
        before, runs = front.connections, list[Run]()
        while not changes(runs)["half_open"]:
            runs = await processes.runs(8)
        assert front.connections - before == changes(runs)["half_open"] == 1
        assert sum(run.was_rejected for run in runs) == 7


@pytest.mark.slow
async def test_prober_that_is_killed_is_replaced_after_its_lease(store: str, front: Door) -> None:
    """SIGKILL leaves the probe's place taken until its lease ends, and no longer."""
    async with zygote(front.address, store, TIMEOUT_SECONDS, LEASE_SECONDS) as processes:
        await processes.runs(THRESHOLD)
        front.is_silent = True
        before = front.connections
        async with zygote(front.address, store, TIMEOUT_SECONDS, LEASE_SECONDS) as doomed:
            prober = asyncio.ensure_future(doomed.until_killed())
            while front.connections == before:
                await asyncio.sleep(0.01)
            await doomed.kill_runs()
            await prober
        killed = time.monotonic()
        front.is_silent, front.is_open = False, True
        runs = list[Run]()
        while not runs or runs[-1].error:
            runs += await processes.runs(1)
        assert time.monotonic() - killed < LEASE_SECONDS + BUSY_SECONDS
        assert all(run.was_rejected for run in runs[:-1])
        assert runs[:-1], "the lease was not kept"
        assert changes(runs) == Counter(closed=1)


async def test_damaged_store_costs_runs_little_and_stops_none(tmp_path: Path, front: Door) -> None:
    """Each run goes on with a circuit of its own."""
    front.is_open = True
    file = tmp_path / "circuits.db"
    file.write_bytes(b"no database" * 100)
    async with zygote(front.address, f"sqlite:///{file}") as processes:
        runs = [run for _ in range(5) for run in await processes.runs(1)]
    assert {run.error for run in runs} == {""}
    assert all("not a database" in run.lost for run in runs)


@pytest.mark.slow
async def test_silent_redis_costs_runs_little_and_stops_none(front: Door) -> None:
    """A server that accepts and does not answer is not waited for."""
    front.is_open = True
    async with (
        door() as silent,
        zygote(front.address, silent.address.replace("http", "redis")) as processes,
    ):
        silent.is_silent = True
        runs = [run for _ in range(5) for run in await processes.runs(1)]
    assert {run.error for run in runs} == {""}
    assert all("no answer within" in run.lost for run in runs)
    assert median(run.wall_seconds for run in runs) < 0.5
