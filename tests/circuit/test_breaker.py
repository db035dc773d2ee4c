"""The circuit's state machine."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import threading
import time
import traceback
import tracemalloc
from collections.abc import Awaitable, Callable
from typing import Any
from unittest import mock

import pytest

from ladon_storage.circuit.breaker import CircuitBreaker, CircuitChange, CircuitState, _entered
from ladon_storage.errors import CircuitOpenError, LadonStorageError
from ladon_storage.testing.clock import FakeClock
from tests.waiting import reached

CLOSED, OPEN, HALF_OPEN = CircuitState.CLOSED, CircuitState.OPEN, CircuitState.HALF_OPEN


class IgnoredError(Exception):
    """Say nothing about the service."""


async def succeed() -> str:
    return "answer"


async def fail() -> str:
    raise ConnectionError("refused")


def raising(error: BaseException) -> Callable[[], Awaitable[str]]:
    async def call() -> str:
        raise error

    return call


async def failures(breaker: CircuitBreaker, count: int) -> None:
    for _ in range(count):
        with pytest.raises(ConnectionError):
            await breaker.call(fail)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def changes() -> list[CircuitChange]:
    return []


@pytest.fixture
def breaker(clock: FakeClock, changes: list[CircuitChange]) -> CircuitBreaker:
    return CircuitBreaker(
        failure_threshold=3,
        timeout_seconds=60,
        clock=clock,
        probe_lease_seconds=30,
        ignored=(IgnoredError,),
        listeners=(changes.append,),
        name="the feed",
    )


def opens(changes: list[CircuitChange]) -> int:
    return sum(change.after is OPEN for change in changes)


async def test_success_between_failures_keeps_it_closed(breaker: CircuitBreaker) -> None:
    """Only consecutive failures open a circuit."""
    await failures(breaker, 2)
    assert await breaker.call(succeed) == "answer"
    assert breaker.failure_count == 0
    await failures(breaker, 2)
    assert breaker.state is CLOSED
    await failures(breaker, 1)
    assert breaker.state is OPEN


async def test_tripping_call_raises_its_own_error(breaker: CircuitBreaker) -> None:
    """The call that opens the circuit raises what it raised; the next is rejected."""
    await failures(breaker, 2)
    error = ConnectionError("the third")
    with pytest.raises(ConnectionError) as caught:
        await breaker.call(raising(error))
    assert caught.value is error
    assert caught.value.__context__ is None
    assert breaker.state is OPEN
    with pytest.raises(CircuitOpenError) as rejected:
        await breaker.call(succeed)
    assert rejected.value.retry_after == 60


async def test_rejected_call_is_never_made(breaker: CircuitBreaker) -> None:
    """An open circuit does not touch the service, and its error is a ``RuntimeError`` too."""
    breaker.trip()
    call = mock.AsyncMock()
    with pytest.raises(RuntimeError) as rejected:
        await breaker.call(call)
    call.assert_not_called()
    assert isinstance(rejected.value, LadonStorageError)
    assert str(rejected.value) == (
        "The circuit of the feed is open; it admits a probe in 60.0 s; try again then."
    )


async def gathered_at_expiry(
    breaker: CircuitBreaker, probe: Callable[[], Awaitable[str]]
) -> tuple[int, list[str | BaseException]]:
    """Let 50 callers arrive while the first one's call takes its time."""
    made = 0
    arrived = asyncio.Event()

    async def slow() -> str:
        nonlocal made
        made += 1
        await arrived.wait()
        return await probe()

    calls = [asyncio.ensure_future(breaker.call(slow)) for _ in range(50)]
    for _ in range(3):
        await asyncio.sleep(0)
    arrived.set()
    return made, await asyncio.gather(*calls, return_exceptions=True)


async def test_half_open_admits_one_probe(breaker: CircuitBreaker, clock: FakeClock) -> None:
    """Of 50 callers at expiry one runs and 49 are rejected, each with a retry hint."""
    await failures(breaker, 3)
    clock.advance(60)
    made, results = await gathered_at_expiry(breaker, succeed)
    rejected = [result for result in results if isinstance(result, CircuitOpenError)]
    assert made == 1
    assert results.count("answer") == 1
    assert len(rejected) == 49
    assert {error.retry_after for error in rejected} == {30}
    assert breaker.state is CLOSED


async def test_failed_probe_opens_once(
    breaker: CircuitBreaker, clock: FakeClock, changes: list[CircuitChange]
) -> None:
    """A failed probe among 50 callers is one open transition, with a deadline of its own."""
    await failures(breaker, 3)
    clock.advance(60)
    changes.clear()
    made, results = await gathered_at_expiry(breaker, fail)
    assert made == 1
    assert sum(isinstance(result, ConnectionError) for result in results) == 1
    assert opens(changes) == 1
    assert [change.reason for change in changes] == ["the timeout has passed", "the probe failed"]
    clock.advance(59.9)
    with pytest.raises(CircuitOpenError):
        await breaker.call(succeed)
    clock.advance(0.2)
    assert await breaker.call(succeed) == "answer"


async def test_cancelled_probe_frees_the_slot(
    breaker: CircuitBreaker, clock: FakeClock, changes: list[CircuitChange]
) -> None:
    """A cancelled probe judges nothing, and the next caller probes at once."""
    await failures(breaker, 3)
    clock.advance(60)
    changes.clear()
    started = asyncio.Event()

    async def hang() -> str:
        started.set()
        await asyncio.Event().wait()
        return "never"

    probe = asyncio.ensure_future(breaker.call(hang))
    await reached(started, probe)
    probe.cancel()
    with pytest.raises(asyncio.CancelledError):
        await probe
    assert breaker.state is HALF_OPEN
    assert opens(changes) == 0
    assert breaker.failure_count == 3
    assert await breaker.call(succeed) == "answer"
    assert breaker.state is CLOSED


@pytest.mark.parametrize("late", ["success", "failure", "release"])
async def test_expired_probe_is_replaced_and_its_verdict_discarded(
    breaker: CircuitBreaker, clock: FakeClock, late: str
) -> None:
    """A probe that never ends loses its lease; what it says later changes nothing."""
    await failures(breaker, 3)
    clock.advance(60)
    lost = breaker.acquire()
    clock.advance(29.9)
    with pytest.raises(CircuitOpenError) as rejected:
        breaker.acquire()
    assert rejected.value.retry_after == pytest.approx(0.1)
    clock.advance(0.1)
    second = breaker.acquire()
    getattr(breaker, late)(lost)
    assert breaker.state is HALF_OPEN
    with pytest.raises(CircuitOpenError):
        breaker.acquire()
    breaker.success(second)
    assert breaker.state is CLOSED


async def test_success_of_an_earlier_era_changes_nothing(
    breaker: CircuitBreaker, clock: FakeClock
) -> None:
    """A success from before the outage closes neither an open circuit nor ends its probe."""
    early = [breaker.acquire(), breaker.acquire()]
    await failures(breaker, 3)
    breaker.success(early[0])
    assert breaker.state is OPEN
    clock.advance(60)
    breaker.acquire()
    breaker.success(early[1])
    assert breaker.state is HALF_OPEN
    assert breaker.failure_count == 3


async def test_slow_success_from_before_the_outage_does_not_close_it(
    breaker: CircuitBreaker,
) -> None:
    """The same through ``call``, which does not take the lock while all is well."""
    outage = asyncio.Event()

    async def slow() -> str:
        await outage.wait()
        return "late"

    call = asyncio.ensure_future(breaker.call(slow))
    await asyncio.sleep(0)
    await failures(breaker, 3)
    outage.set()
    assert await call == "late"
    assert breaker.state is OPEN
    assert breaker.failure_count == 3


async def test_failures_from_before_a_recovery_do_not_count(
    breaker: CircuitBreaker, clock: FakeClock
) -> None:
    """Failures that began before the outage and end after it leave the count at 0."""
    early = [breaker.acquire() for _ in range(5)]
    await failures(breaker, 3)
    clock.advance(60)
    await breaker.call(succeed)
    for permit in early:
        breaker.failure(permit)
    assert breaker.state is CLOSED
    assert breaker.failure_count == 0


async def test_ignored_error_leaves_the_count_alone(breaker: CircuitBreaker) -> None:
    """An ignored exception is neither a failure nor a success."""
    await failures(breaker, 2)
    with pytest.raises(IgnoredError):
        await breaker.call(raising(IgnoredError()))
    assert breaker.failure_count == 2
    await failures(breaker, 1)
    assert breaker.state is OPEN


async def test_ignored_error_in_a_probe_gives_the_slot_back(
    breaker: CircuitBreaker, clock: FakeClock
) -> None:
    """As the probe's end it judges nothing, and the next caller probes."""
    await failures(breaker, 3)
    clock.advance(60)
    with pytest.raises(IgnoredError):
        await breaker.call(raising(IgnoredError()))
    assert breaker.state is HALF_OPEN
    assert await breaker.call(succeed) == "answer"
    assert breaker.state is CLOSED


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, GeneratorExit])
@pytest.mark.parametrize("probing", [False, True])
def test_interrupts_propagate_and_count_nothing(
    breaker: CircuitBreaker, clock: FakeClock, kind: type[BaseException], *, probing: bool
) -> None:
    """What ends the program passes through; the slot is returned, nothing is counted."""
    if probing:
        breaker.trip()
        clock.advance(60)
    count = breaker.failure_count
    call = breaker.call(raising(kind()))
    with pytest.raises(kind):
        call.send(None)
    assert breaker.failure_count == count
    assert breaker.state is (HALF_OPEN if probing else CLOSED)
    breaker.release(breaker.acquire())


async def test_wall_clock_jump_does_not_move_the_deadline(changes: list[CircuitChange]) -> None:
    """The default clock is monotonic: an hour's jump of the wall clock opens nothing early."""
    breaker = CircuitBreaker(failure_threshold=1, timeout_seconds=60)
    await failures(breaker, 1)
    with (
        mock.patch("time.time", return_value=time.time() + 3600),
        pytest.raises(CircuitOpenError) as rejected,
    ):
        await breaker.call(succeed)
    assert 50 < rejected.value.retry_after <= 60


@pytest.mark.parametrize(
    "limits",
    [
        {"failure_threshold": 0},
        {"failure_threshold": -1},
        {"failure_threshold": 2.5},
        {"failure_threshold": float("nan")},
        {"failure_threshold": True},
        {"timeout_seconds": -1},
        {"timeout_seconds": float("nan")},
        {"timeout_seconds": float("inf")},
        {"probe_lease_seconds": 0},
        {"probe_lease_seconds": -1},
    ],
)
def test_limits_that_make_no_sense_are_refused(limits: dict[str, Any]) -> None:
    """A limit that makes no sense is a ``ValueError`` that names it."""
    with pytest.raises(ValueError, match=next(iter(limits))):
        CircuitBreaker(**limits)


@pytest.mark.usefixtures("small_heap")
async def test_rejections_cost_no_memory_and_no_traceback_depth(breaker: CircuitBreaker) -> None:
    """After 30,000 rejections memory is flat, and a traceback as short as the first."""
    breaker.trip()

    async def rejected() -> int:
        try:
            await breaker.call(succeed)
        except CircuitOpenError as error:
            return sum(1 for _ in traceback.walk_tb(error.__traceback__))
        raise AssertionError("was admitted")

    for _ in range(100):
        depth = await rejected()
    gc.collect()
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    for _ in range(30_000):
        assert await rejected() == depth
    gc.collect()
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert after - before < 100_000  # three bytes for each, and what other threads do meanwhile


async def test_raising_listener_does_not_change_the_result(
    clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    """A listener that raises is logged; the call's result and the other listeners are safe."""
    seen: list[CircuitChange] = []

    def broken(change: CircuitChange) -> None:
        raise RuntimeError("listener")

    breaker = CircuitBreaker(1, 60, clock=clock, listeners=(broken,))
    breaker.add_listener(seen.append)
    await failures(breaker, 1)
    clock.advance(60)
    assert await breaker.call(succeed) == "answer"
    assert [change.after for change in seen] == [OPEN, HALF_OPEN, CLOSED]
    assert sum("listener" in record.message for record in caplog.records) == 3


def test_one_breaker_serves_many_loops(changes: list[CircuitChange]) -> None:
    """Threads with loops of their own share it: no loop-bound lock, no torn state."""
    breaker = CircuitBreaker(50, 3600, listeners=(changes.append,))
    rejections = []

    async def hammer() -> None:
        for _ in range(100):
            try:
                await breaker.call(fail)
            except ConnectionError:
                pass
            except CircuitOpenError:
                rejections.append(1)

    threads = [threading.Thread(target=lambda: asyncio.run(hammer())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert breaker.state is OPEN
    assert breaker.failure_count == 50
    assert opens(changes) == 1
    # A failure that was under way while another opened the circuit is neither counted nor rejected.
    assert 800 - 50 - 7 <= len(rejections) <= 800 - 50


def test_only_one_thread_gets_the_probe(breaker: CircuitBreaker, clock: FakeClock) -> None:
    """Of 16 threads that ask at the deadline, one is admitted."""
    breaker.trip()
    clock.advance(60)
    barrier = threading.Barrier(16)
    permits = []

    def ask() -> None:
        barrier.wait()
        with contextlib.suppress(CircuitOpenError):
            permits.append(breaker.acquire())

    threads = [threading.Thread(target=ask) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(permits) == 1


async def test_async_with_judges_like_call(breaker: CircuitBreaker, clock: FakeClock) -> None:
    """``async with`` admits, rejects and judges exactly as ``call`` does."""
    for _ in range(3):
        with pytest.raises(ConnectionError):
            async with breaker:
                await fail()
    with pytest.raises(CircuitOpenError):
        async with breaker:
            pytest.fail("was admitted")
    clock.advance(60)
    async with breaker as probing:
        assert probing is breaker
        assert breaker.state is HALF_OPEN
    assert breaker.state is CLOSED


async def test_async_with_keeps_tasks_apart(breaker: CircuitBreaker, clock: FakeClock) -> None:
    """A slow block from before the outage, in another task, does not speak for the probe."""
    entered, leave = asyncio.Event(), asyncio.Event()

    async def slow() -> None:
        async with breaker:
            entered.set()
            await leave.wait()

    early = asyncio.ensure_future(slow())
    await reached(entered, early)
    await failures(breaker, 3)
    clock.advance(60)
    async with breaker:
        leave.set()
        await early
        assert breaker.state is HALF_OPEN
    assert breaker.state is CLOSED


async def test_async_with_nests(breaker: CircuitBreaker) -> None:
    """Blocks of one breaker and of two may be nested."""
    other = CircuitBreaker(1, 60)
    async with breaker, other, breaker:
        pass
    with pytest.raises(ConnectionError):
        async with breaker, other:
            await fail()
    assert (breaker.failure_count, other.state) == (1, OPEN)
    assert _entered.get() == ()


def test_trip_and_reset_by_hand(
    breaker: CircuitBreaker, clock: FakeClock, changes: list[CircuitChange]
) -> None:
    """An operator opens and closes the circuit; a trip ends with a probe after the timeout."""
    early = breaker.acquire()
    breaker.reset()
    breaker.failure(early)
    assert breaker.failure_count == 0
    early = breaker.acquire()
    breaker.trip("maintenance")
    breaker.trip("once more")
    with pytest.raises(CircuitOpenError):
        breaker.check()
    breaker.reset()
    breaker.check()
    breaker.failure(early)
    assert (breaker.state, breaker.failure_count) == (CLOSED, 0)
    breaker.trip()
    clock.advance(60)
    breaker.check()
    breaker.success(breaker.acquire())
    assert breaker.state is CLOSED
    assert changes[0] == CircuitChange("the feed", CLOSED, OPEN, "maintenance")
    assert [change.after for change in changes] == [OPEN, CLOSED, OPEN, HALF_OPEN, CLOSED]


def test_listener_may_change_the_breaker(clock: FakeClock) -> None:
    """A listener that acts on the breaker sees the changes in their order, and no deadlock."""
    seen: list[CircuitState] = []
    breaker = CircuitBreaker(1, 60, clock=clock)

    def act(change: CircuitChange) -> None:
        seen.append(change.after)
        if change.after is OPEN:
            breaker.reset()

    breaker.add_listener(act)
    breaker.add_listener(lambda change: seen.append(change.after))
    breaker.trip()
    assert seen == [OPEN, OPEN, CLOSED, CLOSED]


def test_repr_tells_the_state(breaker: CircuitBreaker) -> None:
    """The text of a breaker is what an operator wants to know of it."""
    breaker.trip()
    assert repr(breaker) == "<CircuitBreaker of the feed: open, 1 of 3 failures>"
    assert breaker.state == "open"


@pytest.mark.parametrize("seconds", [0, 20, 60])
def test_breaker_goes_on_from_what_another_knew(
    breaker: CircuitBreaker, clock: FakeClock, changes: list[CircuitChange], seconds: float
) -> None:
    """A record has all that decides, in seconds from now; whoever adopts it tells nobody."""
    other_clock = FakeClock()
    other_clock.advance(12345)
    other = CircuitBreaker(3, 60, clock=other_clock, name="the other")
    other.trip()
    other_clock.advance(seconds)
    breaker.adopt(other.record())
    assert breaker.record() == other.record() == (OPEN, 1, 1, 60 - seconds)
    assert changes == []
    clock.advance(59.5 - seconds)
    if seconds < 60:
        with pytest.raises(CircuitOpenError):
            breaker.acquire()
    clock.advance(0.5)
    breaker.success(breaker.acquire())
    assert breaker.record() == (CLOSED, 3, 0, 0)


@pytest.mark.parametrize(
    "mistake",
    [None, "text", dict, lambda: 42, lambda needed: needed],
    ids=["none", "text", "class", "no awaitable", "arguments"],
)
async def test_argument_that_cannot_be_called_counts_as_nothing(mistake: Any) -> None:
    """The caller's mistake is its TypeError, and says nothing about the service."""
    breaker = CircuitBreaker(failure_threshold=1)
    with pytest.raises(TypeError):
        await breaker.call(mistake)
    assert breaker.state is CLOSED


async def test_mistake_gives_the_place_of_the_probe_back(clock: FakeClock) -> None:
    """A probe that was never made is admitted again, and decides."""
    breaker = CircuitBreaker(failure_threshold=1, clock=clock)
    await failures(breaker, 1)
    clock.advance(breaker.timeout_seconds)
    with pytest.raises(TypeError):
        await breaker.call(None)  # type: ignore[arg-type]
    assert await breaker.call(succeed) == "answer"
    assert breaker.state is CLOSED


async def test_type_error_of_the_call_itself_is_a_failure() -> None:
    """A TypeError from within the called function is judged as any other error."""
    breaker = CircuitBreaker(failure_threshold=1)
    with pytest.raises(TypeError):
        await breaker.call(raising(TypeError("inside")))
    assert breaker.state is OPEN
