"""One circuit for many processes, here objects over one store."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import math
import threading
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import REGISTRY

from ladon_storage.circuit.breaker import CircuitBreaker, CircuitChange, CircuitState
from ladon_storage.circuit.shared import (
    FRESH_SECONDS,
    RETRY_SECONDS,
    TRUSTED_SECONDS,
    SharedCircuit,
)
from ladon_storage.circuit.stores import CircuitStore, MemoryStore, VersionedText
from ladon_storage.client import metrics
from ladon_storage.errors import CircuitOpenError, CircuitStoreError, CircuitUndecidedError
from ladon_storage.testing.clock import FakeClock

CLOSED, OPEN, HALF_OPEN = CircuitState.CLOSED, CircuitState.OPEN, CircuitState.HALF_OPEN


class Ground:
    """Be a store that counts what it is asked, and fails on demand."""

    place = "the ground"

    def __init__(self, clock: Callable[[], float]) -> None:
        self.kept = MemoryStore(clock)
        self.reads = self.writes = 0
        self.is_down = self.is_read_only = False
        self.before_swap: Callable[[], object] = lambda: None
        self.ahead = 0.0

    def read(self, key: str) -> VersionedText:
        self.reads += 1
        if self.is_down:
            raise CircuitStoreError("The circuit store is down.")
        stored = self.kept.read(key)
        return stored._replace(now=stored.now + self.ahead)

    def compare_and_set(self, key: str, tag: int, text: str) -> bool:
        self.writes += 1
        if self.is_down or self.is_read_only:
            raise CircuitStoreError("The circuit store is read-only.")
        act, self.before_swap = self.before_swap, lambda: None
        act()
        return self.kept.compare_and_set(key, tag, text)

    def close(self) -> None:
        pass


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def ground(clock: FakeClock) -> Ground:
    return Ground(clock)


@pytest.fixture
def changes() -> list[CircuitChange]:
    """Return what all processes together were told."""
    return []


@pytest.fixture
def process(
    ground: Ground, clock: FakeClock, changes: list[CircuitChange]
) -> Callable[[], SharedCircuit]:
    """Return a function that makes the circuit of one more process."""
    return lambda: SharedCircuit(
        ground,
        "the feed",
        failure_threshold=3,
        timeout_seconds=60,
        clock=clock,
        probe_lease_seconds=30,
        listeners=(changes.append,),
    )


Process = Callable[[], SharedCircuit]


def fail(circuit: SharedCircuit) -> None:
    circuit.failure(circuit.acquire())


def succeed(circuit: SharedCircuit) -> None:
    circuit.success(circuit.acquire())


def opened(process: Process) -> None:
    """Open the circuit by failures of three processes, each with one call in its life."""
    for _ in range(3):
        fail(process())


def afters(changes: list[CircuitChange]) -> list[CircuitState]:
    return [change.after for change in changes]


def test_first_call_of_a_new_process_is_rejected(process: Process, clock: FakeClock) -> None:
    """Whoever comes after the one that tripped it is rejected at once, with a retry hint."""
    process().trip()
    clock.advance(20)
    with pytest.raises(CircuitOpenError) as rejected:
        process().acquire()
    assert rejected.value.retry_after == pytest.approx(40)
    assert process().state is OPEN


def test_failures_of_processes_add_up(process: Process, changes: list[CircuitChange]) -> None:
    """One failure of each of three processes opens it, and one of them tells."""
    opened(process)
    assert process().state is OPEN
    assert process().failure_count == 0  # not asked yet
    assert [(each.after, each.reason) for each in changes] == [(OPEN, "3 consecutive failures")]


def test_success_of_another_process_counts(process: Process) -> None:
    """Failures are consecutive in the whole fleet."""
    for act in (fail, fail, succeed, fail, fail):
        act(process())
    assert process().state is CLOSED


def test_one_of_all_processes_probes(
    process: Process, clock: FakeClock, changes: list[CircuitChange]
) -> None:
    """Of eight at the deadline one is admitted; when it succeeds, all run again."""
    opened(process)
    clock.advance(60)
    processes = [process() for _ in range(8)]
    permits = []
    for each in processes:
        with contextlib.suppress(CircuitOpenError):
            permits.append((each, each.acquire()))
    [(prober, permit)] = permits
    prober.success(permit)
    clock.advance(FRESH_SECONDS)
    for each in processes:
        succeed(each)
    assert afters(changes) == [OPEN, HALF_OPEN, CLOSED]


def test_loser_of_the_election_is_rejected(
    process: Process, ground: Ground, clock: FakeClock, changes: list[CircuitChange]
) -> None:
    """Who read that a probe is due, and writes second, is no prober and tells nothing."""
    opened(process)
    clock.advance(60)
    winner, loser = process(), process()
    ground.before_swap = winner.acquire
    with pytest.raises(CircuitOpenError) as rejected:
        loser.acquire()
    assert rejected.value.retry_after == 30
    assert afters(changes) == [OPEN, HALF_OPEN]


def test_prober_that_died_is_replaced_after_its_lease(process: Process, clock: FakeClock) -> None:
    """Its place is free when the lease ends, and its late verdict changes nothing."""
    opened(process)
    clock.advance(60)
    dead = process()
    late = dead.acquire()
    clock.advance(29)
    with pytest.raises(CircuitOpenError):
        process().acquire()
    clock.advance(1)
    another = process()
    permit = another.acquire()
    dead.failure(late)
    assert process().state is HALF_OPEN
    another.success(permit)
    dead.failure(late)
    assert process().state is CLOSED


def test_failed_probe_opens_for_all(process: Process, clock: FakeClock) -> None:
    """A new timeout begins, also for those who were not there."""
    opened(process)
    clock.advance(60)
    fail(process())
    clock.advance(59)
    with pytest.raises(CircuitOpenError):
        process().acquire()
    clock.advance(1)
    succeed(process())


def test_released_probe_is_the_next_one_of_any_process(process: Process, clock: FakeClock) -> None:
    """A probe that judges nothing gives its place to whoever comes."""
    opened(process)
    clock.advance(60)
    cancelled = process()
    cancelled.release(cancelled.acquire())
    succeed(process())
    assert process().state is CLOSED


@pytest.mark.parametrize("trusting", [True, False])
def test_open_and_trusted_circuits_cost_no_access_while_fresh(
    process: Process, ground: Ground, clock: FakeClock, trusting: bool
) -> None:
    """Within 100 ms of the store's last answer a call neither reads nor writes, whatever it is."""
    circuit = process()
    if trusting:
        succeed(circuit)
    else:
        opened(process)
        with pytest.raises(CircuitOpenError):
            circuit.acquire()
    ground.reads = ground.writes = 0
    for _ in range(100):
        clock.advance(FRESH_SECONDS / 101)
        with contextlib.suppress(CircuitOpenError):
            succeed(circuit)
    assert (ground.reads, ground.writes) == (0, 0)
    clock.advance(FRESH_SECONDS)
    with contextlib.suppress(CircuitOpenError):
        succeed(circuit)
    assert (ground.reads, ground.writes) == (1, 0)


def test_trust_is_renewed_in_time(process: Process, ground: Ground, clock: FakeClock) -> None:
    """A service that is in use and works is written of twice in its time of trust, not more."""
    circuit = process()
    succeed(circuit)
    ground.writes = 0
    for _ in range(100):
        clock.advance(TRUSTED_SECONDS / 100)
        succeed(circuit)
    assert 1 <= ground.writes <= 2


def test_no_more_calls_start_than_may_fail_before_one_succeeds(
    process: Process, clock: FakeClock
) -> None:
    """Of processes that start together against a service nobody knows, three try it."""
    permits = [(each, each.acquire()) for each in (process(), process(), process())]
    with pytest.raises(CircuitUndecidedError) as undecided:
        process().acquire()
    assert isinstance(undecided.value, CircuitOpenError)
    assert undecided.value.retry_after == 30
    assert "in flight" in str(undecided.value)
    permits[0][0].failure(permits[0][1])
    with pytest.raises(CircuitUndecidedError):
        process().acquire()
    permits[1][0].release(permits[1][1])
    permits.append((process(), process().acquire()))
    permits[2][0].success(permits[2][1])
    for _ in range(10):
        process().acquire()


def test_call_that_died_under_way_is_given_up(process: Process, clock: FakeClock) -> None:
    """Processes that are killed in a call do not keep others out for longer than a lease."""
    for _ in range(3):
        process().acquire()
    clock.advance(29)
    with pytest.raises(CircuitUndecidedError):
        process().acquire()
    clock.advance(1)
    for _ in range(3):
        process().acquire()
    with pytest.raises(CircuitUndecidedError):
        process().acquire()


def test_verdict_from_before_a_change_frees_no_place(process: Process) -> None:
    """After an operator's reset calls are counted anew, and earlier ones do not count."""
    succeed(process())  # it was trusted, and two were under way
    fail(process())
    early = [(each, each.acquire()) for each in (process(), process())]
    process().reset()
    for _ in range(3):
        process().acquire()
    for circuit, permit in early:
        circuit.failure(permit)
        circuit.release(permit)
        circuit.success(permit)
    with pytest.raises(CircuitUndecidedError):
        process().acquire()


@pytest.mark.parametrize("works", [True, False])
async def test_calls_wait_until_it_is_decided(process: Process, works: bool) -> None:
    """`call` and ``async with`` wait for those under way: then all run, or all are rejected."""
    made = 0
    entered, leave = asyncio.Event(), asyncio.Event()

    async def called() -> None:
        nonlocal made
        made += 1
        if made == 3:
            entered.set()
        await leave.wait()
        if not works:
            raise ConnectionError

    async def within(circuit: SharedCircuit) -> None:
        async with circuit:
            await called()

    circuits = [process() for _ in range(20)]
    tasks = [
        asyncio.ensure_future(each.call(called) if number % 2 else within(each))
        for number, each in enumerate(circuits)
    ]
    await entered.wait()
    await asyncio.sleep(0)
    assert made == 3
    leave.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert made == (20 if works else 3)
    rejected = [each for each in results if isinstance(each, CircuitOpenError)]
    assert len(rejected) == (0 if works else 17)


def test_busy_service_is_not_held_up_by_a_single_failure(process: Process) -> None:
    """After one failure calls are counted again, until the next success."""
    succeed(process())
    fail(process())
    waiting = process()
    permits = [waiting.acquire(), waiting.acquire()]
    with pytest.raises(CircuitUndecidedError):
        waiting.acquire()
    waiting.success(permits[0])
    for _ in range(10):
        waiting.acquire()
    waiting.success(permits[1])


def errors() -> float:
    assert metrics  # the client's metrics count them, once they are imported
    return REGISTRY.get_sample_value("storage_client_circuit_store_errors_total") or 0.0


def test_store_that_is_down_leaves_the_own_circuit_in_charge(
    process: Process, ground: Ground, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Calls go on, three failures of this process open it, and all is counted, logged once."""
    caplog.set_level(logging.INFO)
    ground.is_down = True
    circuit, before = process(), errors()
    for _ in range(3):
        fail(circuit)
        clock.advance(RETRY_SECONDS)
    assert circuit.state is OPEN
    with pytest.raises(CircuitOpenError):
        circuit.acquire()
    assert errors() - before == ground.reads == 4
    [line] = [each for each in caplog.messages if "is down" in each]
    assert "process's own" in line
    assert circuit.store_error
    ground.is_down = False
    clock.advance(RETRY_SECONDS)
    assert circuit.state is CLOSED
    assert not circuit.store_error
    assert caplog.messages[-1] == "The circuit store the ground answers again."


def test_store_that_failed_is_left_alone_for_a_while(
    process: Process, ground: Ground, clock: FakeClock
) -> None:
    """What a failing store costs, it costs once in five seconds."""
    ground.is_down = True
    circuit = process()
    for _ in range(100):
        succeed(circuit)
        clock.advance(RETRY_SECONDS / 100)
    assert ground.reads == 1


def test_store_that_takes_no_writes_does_not_take_back_failures(
    process: Process, ground: Ground, clock: FakeClock
) -> None:
    """A read-only store says *closed* for ever; the own circuit opens, and stays open."""
    ground.is_read_only = True
    circuit = process()
    for _ in range(3):
        fail(circuit)
        clock.advance(RETRY_SECONDS)
    for _ in range(3):
        clock.advance(RETRY_SECONDS)
        with pytest.raises(CircuitOpenError):
            circuit.acquire()


def test_store_that_takes_no_writes_does_not_close_the_own_circuit(
    process: Process, ground: Ground, clock: FakeClock
) -> None:
    """Also one that says that the service was fine a moment ago."""
    ground.is_down = True
    circuit = process()
    for _ in range(3):
        fail(circuit)
    ground.is_down = False
    succeed(process())
    ground.is_read_only = True
    clock.advance(RETRY_SECONDS)
    with pytest.raises(CircuitOpenError):
        circuit.acquire()


def test_store_that_takes_no_writes_does_not_open_the_own_circuit_either(
    process: Process, ground: Ground, clock: FakeClock
) -> None:
    """Once it has failed, a store's word is nothing before it takes a write again."""
    process().trip()
    ground.is_down = True
    circuit = process()
    succeed(circuit)
    ground.is_down, ground.is_read_only = False, True
    clock.advance(RETRY_SECONDS)
    succeed(circuit)
    assert circuit.store_error


def test_store_that_comes_back_has_the_last_word(
    process: Process, ground: Ground, clock: FakeClock
) -> None:
    """What others learned meanwhile holds."""
    circuit = process()
    succeed(circuit)
    ground.is_down = True
    fail(circuit)
    ground.is_down = False
    process().trip()
    clock.advance(RETRY_SECONDS)
    with pytest.raises(CircuitOpenError):
        circuit.acquire()


def test_store_that_was_emptied_is_a_closed_circuit(
    process: Process, ground: Ground, clock: FakeClock
) -> None:
    """What is lost is lost: calls are made, and failures count anew."""
    circuit = process()
    circuit.trip()
    ground.kept = MemoryStore(clock)
    clock.advance(FRESH_SECONDS)
    succeed(circuit)
    opened(process)
    clock.advance(FRESH_SECONDS)
    with pytest.raises(CircuitOpenError):
        circuit.acquire()


def test_damaged_record_is_a_store_that_fails_until_an_operator_resets_it(
    process: Process, ground: Ground, caplog: pytest.LogCaptureFixture
) -> None:
    """What is no record is neither believed nor replaced by a call."""
    for text in ("no JSON", "[]", "{}", '{"state": "ajar"}', '"closed"'):
        ground.kept.compare_and_set("the feed", ground.kept.read("the feed").tag, text)
        circuit = process()
        succeed(circuit)
        assert circuit.store_error
        assert ground.kept.read("the feed").text == text
    operator = process()
    operator.reset()
    assert not operator.store_error
    assert process().state is CLOSED


@pytest.mark.parametrize(
    "field", ["until", "span", "era", "failures", "under_way", "trusted_until"]
)
@pytest.mark.parametrize("value", [None, "x", [], {}, -5, 1e308, math.nan, math.inf])
def test_damaged_field_raises_nothing(
    process: Process, ground: Ground, field: str, value: object
) -> None:
    """Whatever stands there, a call is made or rejected."""
    process().trip()
    kept = json.loads(ground.kept.read("the feed").text)
    kept[field] = value
    ground.kept.compare_and_set("the feed", ground.kept.read("the feed").tag, json.dumps(kept))
    circuit = process()
    for _ in range(3):
        with contextlib.suppress(CircuitOpenError):
            fail(circuit)
    assert circuit.state in CircuitState


def test_clocks_of_processes_may_differ(ground: Ground, clock: FakeClock) -> None:
    """A deadline is in the store's time: hosts that differ by hours wait the same."""
    SharedCircuit(ground, "the feed", clock=lambda: clock() + 7200).trip()
    clock.advance(59)
    for ahead in (-7200, 0, 86400):
        behind = SharedCircuit(ground, "the feed", clock=lambda by=ahead: clock() + by)  # type: ignore[misc]
        with pytest.raises(CircuitOpenError) as rejected:
            behind.acquire()
        assert rejected.value.retry_after == pytest.approx(1)
    clock.advance(1)
    SharedCircuit(ground, "the feed", clock=lambda: 0.0).acquire()


@pytest.mark.parametrize("jump", [-1e6, -3600, -0.5, 0.5, 30, 3600, 1e6])
def test_deadline_is_never_beyond_the_timeout(
    process: Process, ground: Ground, jump: float
) -> None:
    """The store's clock begins anew, or is set: at most the timeout is waited, once."""
    process().trip()
    ground.ahead += jump
    waits = []
    for _ in range(3):
        try:
            process().acquire()
            break
        except CircuitOpenError as rejected:
            waits.append(rejected.retry_after)
            ground.ahead += rejected.retry_after
    assert sum(waits) <= 61
    assert max(waits, default=0) <= 60
    assert len(waits) < 3


def test_changes_of_a_threaded_fleet_are_told_once(clock: FakeClock, ground: Ground) -> None:
    """Counters and events: 16 threads with circuits of their own, one tells of each change."""
    changes: list[CircuitChange] = []
    barrier = threading.Barrier(16)

    def run() -> None:
        circuit = SharedCircuit(
            ground, "the feed", failure_threshold=8, clock=clock, listeners=(changes.append,)
        )
        for step in range(3):
            barrier.wait()
            permit = None
            with contextlib.suppress(CircuitOpenError):
                permit = circuit.acquire()
            barrier.wait()
            if permit is not None:
                circuit.failure(permit) if step == 0 else circuit.success(permit)
            if barrier.wait() == 0:
                clock.advance(60)

    threads = [threading.Thread(target=run) for _ in range(16)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert afters(changes) == [OPEN, HALF_OPEN, CLOSED]


def test_two_services_do_not_share_a_circuit(ground: Ground, clock: FakeClock) -> None:
    """The key tells them apart."""
    SharedCircuit(ground, "one", clock=clock).trip()
    succeed(SharedCircuit(ground, "another", clock=clock))


def test_store_that_others_never_leave_alone_is_given_up(process: Process, ground: Ground) -> None:
    """A call does not try for ever."""
    circuit = process()

    def interfere() -> None:
        ground.before_swap = interfere
        ground.kept.compare_and_set("the feed", ground.kept.read("the feed").tag, "")

    ground.before_swap = interfere
    succeed(circuit)
    assert "times in a row" in str(circuit.store_error)


def test_record_tells_people_what_happened(process: Process, clock: FakeClock) -> None:
    """Why it changed and when is kept beside it."""
    assert process().shared_record().reason == "no call has failed"
    process().trip("maintenance")
    record = process().shared_record()
    assert (record.circuit.state, record.circuit.wait) == (OPEN, 60)
    assert record.reason == "maintenance"
    assert record.since.endswith("+00:00")


ACTS = st.lists(
    st.tuples(
        st.integers(0, 3),  # the process
        st.sampled_from(["begin", "success", "failure", "release", "trip", "reset"]),
        st.sampled_from([FRESH_SECONDS, 1.0, 29.0, 60.0]),
    ),
    max_size=60,
)


def outcome(circuit: CircuitBreaker) -> int | CircuitOpenError:
    try:
        return circuit.acquire()
    except CircuitOpenError as rejected:
        return rejected


@given(ACTS)
@settings(max_examples=150, deadline=None)
def test_fleet_is_one_breaker(acts: list[tuple[int, str, float]]) -> None:
    """Whatever happens in whichever process, all of them are one `CircuitBreaker`."""
    clock = FakeClock()
    store: CircuitStore = MemoryStore(clock)
    limits = {"failure_threshold": 3, "timeout_seconds": 60, "clock": clock}
    told: list[CircuitChange] = []
    expected: list[CircuitChange] = []
    one = CircuitBreaker(**limits, listeners=(expected.append,), name="x")  # type: ignore[arg-type]
    fleet = [
        SharedCircuit(store, "x", **limits, listeners=(told.append,))  # type: ignore[arg-type]
        for _ in range(4)
    ]
    under_way: list[tuple[SharedCircuit, int, int]] = []
    for number, act, seconds in acts:
        clock.advance(seconds)
        circuit = fleet[number]
        if act in ("trip", "reset"):
            getattr(one, act)()
            getattr(circuit, act)()
        elif act == "begin":
            single, shared = outcome(one), outcome(circuit)
            if isinstance(single, int) and isinstance(shared, int):
                under_way.append((circuit, single, shared))
            elif not isinstance(shared, CircuitUndecidedError):  # the one knows no such thing
                assert str(single) == str(shared)
        elif under_way:
            circuit, permit, shared_permit = under_way.pop(number % len(under_way))
            getattr(one, act)(permit)
            getattr(circuit, act)(shared_permit)
        record, shared_record = one.record(), fleet[(number + 1) % 4].shared_record().circuit
        assert record[:3] == shared_record[:3]
        assert record.wait == pytest.approx(shared_record.wait) or record.state is CLOSED
    assert told == expected
