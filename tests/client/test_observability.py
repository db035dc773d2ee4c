"""What operators see of the client: its log and its metrics."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any
from weakref import WeakSet

import pytest
from prometheus_client import REGISTRY, generate_latest

from ladon_storage import CircuitBreaker, StorageError, StorageServiceClient, StorageUnhealthyError
from ladon_storage.client import metrics
from ladon_storage.testing.clock import FakeClock
from tests.raw_server import Reply, http, served, slot_of, watermark

NOON = datetime(2024, 1, 1, 12, tzinfo=UTC)
HEALTHY = http(200, b'{"status": "healthy"}')


@pytest.fixture(autouse=True)
def _nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep what other tests left behind out of the gauges."""
    monkeypatch.setattr(metrics, "_circuits", WeakSet())
    monkeypatch.setattr(metrics, "_pools", WeakSet())


def sample(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(f"storage_client_{name}", labels) or 0.0


def requests(method: str, status: str, error_type: str) -> float:
    return sample("requests_total", method=method, status=status, error_type=error_type)


async def failure(client: StorageServiceClient, method: str = "GET") -> StorageError:
    async def ask() -> None:
        if method == "GET":
            await client.get_watermark("kev")
        else:
            await client.update_watermark("kev", NOON)

    with pytest.raises(StorageError) as caught:
        await ask()
    return caught.value


@pytest.mark.parametrize("method", ["GET", "PUT"])
@pytest.mark.parametrize(
    ("reply", "error_type", "status"),
    [
        (http(503), "http_error", 503),
        (http(400), "http_error", 400),
        (http(409), "http_error", 409),
        (http(412), "http_error", 412),
        (http(302, b"", "Location: /x"), "http_error", 302),
        (Reply(end="reset"), "client_error", None),
        (Reply(end="close"), "client_error", None),
        (Reply(end="stall"), "client_error", None),
        (http(200, b"{", length=9, end="close"), "client_error", None),
        (http(200, b"{}"), "unexpected_error", 200),
        (http(204), "unexpected_error", 204),
        (Reply(b"no HTTP\r\n\r\n"), "unexpected_error", None),
    ],
    ids=lambda value: None if isinstance(value, Reply) else str(value),
)
async def test_failure_is_logged_once_and_counted_once(
    caplog: pytest.LogCaptureFixture,
    method: str,
    reply: Reply,
    error_type: str,
    status: int | None,
) -> None:
    """One record with the traceback and the facts, and one more request of that kind of error."""
    labels = (method, "" if status is None else str(status), error_type)
    before, timed = requests(*labels), sample("latency_seconds_count")
    async with served(reply, timeout=0.1 if reply.end == "stall" else 10) as (client, _):
        error = await failure(client, method)
    [record] = caplog.records
    assert record.name.startswith("ladon_storage")
    assert record.levelno == logging.ERROR
    assert record.exc_info is not None
    assert record.exc_info[1] is error
    facts = {"source_id": "kev", "error_type": error_type, "status": status}
    assert {name: getattr(record, name, None) for name in facts} == facts
    assert error_type in record.getMessage()
    assert str(error) in record.getMessage()
    assert requests(*labels) == before + 1
    assert sample("latency_seconds_count") == timed + 1


async def test_rejection_is_logged_and_counted_as_one(caplog: pytest.LogCaptureFixture) -> None:
    """What an open circuit rejects is told apart, warned of, and has neither status nor latency."""
    before, timed = requests("GET", "", "circuit_breaker_open"), sample("latency_seconds_count")
    async with served(watermark()) as (client, _):
        client.circuit_breaker.trip()
        caplog.clear()
        error = await failure(client)
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert record.exc_info is not None
    assert record.exc_info[1] is error
    assert vars(record)["error_type"] == "circuit_breaker_open"
    assert vars(record)["source_id"] == "kev"
    assert "status" not in vars(record)
    assert requests("GET", "", "circuit_breaker_open") == before + 1
    assert sample("latency_seconds_count") == timed


async def test_wait_for_the_pool_is_logged_as_the_clients(caplog: pytest.LogCaptureFixture) -> None:
    """A pool that is too small is seen in the log and the metrics, as no failure of the service."""
    before = requests("GET", "", "client_error")
    async with served(watermark(), timeout=0.02, max_connections=1) as (client, _):
        slot = await slot_of(client)
        await failure(client)
        slot.give()
    [record] = caplog.records
    assert vars(record)["error_type"] == "client_error"
    assert requests("GET", "", "client_error") == before + 1


@pytest.mark.parametrize(
    ("environment", "level"), [("production", logging.ERROR), ("development", logging.WARNING)]
)
@pytest.mark.parametrize(
    ("reply", "status"), [(http(503), 503), (http(200), 200), (Reply(end="reset"), None)]
)
async def test_failed_health_check_is_logged_once_and_counted_once(
    caplog: pytest.LogCaptureFixture,
    environment: str,
    level: int,
    reply: Reply,
    status: int | None,
) -> None:
    """It has a kind of its own, is worse in production, and keeps the status where there is one."""
    labels = ("GET", "" if status is None else str(status), "health_check_failed")
    before = requests(*labels)
    async with served(reply, environment=environment) as (client, _):
        if environment == "production":
            with pytest.raises(StorageUnhealthyError) as caught:
                await client.health_check()
            assert caught.value.status == status
        else:
            assert await client.health_check() is False
    [record] = caplog.records
    assert record.levelno == level
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], StorageUnhealthyError)
    assert vars(record)["error_type"] == "health_check_failed"
    assert vars(record).get("status") == status
    assert requests(*labels) == before + 1


@pytest.mark.parametrize(
    ("call", "reply", "method", "status"),
    [
        (lambda client: client.get_watermark("kev"), watermark(), "GET", "200"),
        (lambda client: client.get_watermark("kev"), http(404), "GET", "404"),
        (lambda client: client.update_watermark("kev", NOON), watermark(), "PUT", "200"),
        (lambda client: client.health_check(), HEALTHY, "GET", "200"),
    ],
    ids=["read", "never collected", "write", "health"],
)
async def test_success_is_counted_and_not_logged(
    caplog: pytest.LogCaptureFixture,
    call: Callable[[StorageServiceClient], Any],
    reply: Reply,
    method: str,
    status: str,
) -> None:
    """Successes have an empty kind of error, and a log without failures stays empty."""
    before, timed = requests(method, status, ""), sample("latency_seconds_count")
    async with served(reply) as (client, _):
        await call(client)
    assert not caplog.records
    assert requests(method, status, "") == before + 1
    assert sample("latency_seconds_count") == timed + 1


async def test_each_change_of_the_circuit_is_logged_and_counted_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Open, half open, open again, half open, closed: a record each, two opens and one close."""
    caplog.set_level(logging.INFO)
    opens, closes = (sample(f"circuit_breaker_{each}_total") for each in ("opens", "closes"))
    clock, states = FakeClock(), []
    circuit = CircuitBreaker(failure_threshold=1, timeout_seconds=60, clock=clock)
    circuit.add_listener(lambda _: states.append(sample("circuit_breaker_state")))
    script = (http(503), http(503), watermark())
    async with served(*script, circuit_breaker=circuit) as (client, _):
        # A second client with the same circuit tells nothing twice.
        other = StorageServiceClient("http://other.example", circuit_breaker=circuit)
        assert sample("circuit_breaker_state") == 0
        for reply in script:
            if reply is script[-1]:
                await client.get_watermark("kev")
            else:
                await failure(client)
            clock.advance(60)
    changes = [each for each in caplog.records if "went from" in each.getMessage()]
    assert [" ".join(each.getMessage().split()[6:10]) for each in changes] == [
        "went from closed to",
        "went from open to",
        "went from half_open to",
        "went from open to",
        "went from half_open to",
    ]
    assert [each.levelno == logging.WARNING for each in changes] == [True, False] * 2 + [False]
    assert states == [1, 2, 1, 2, 0]
    assert sample("circuit_breaker_opens_total") == opens + 2
    assert sample("circuit_breaker_closes_total") == closes + 1
    assert other.circuit_breaker is circuit


@pytest.mark.usefixtures("small_heap")
async def test_state_is_the_worst_of_the_circuits_that_live() -> None:
    """One open circuit shows, until it closes or its client is gone."""
    clients = [StorageServiceClient(f"http://storage-{each}.example") for each in range(2)]
    clients[1].circuit_breaker.trip()
    assert sample("circuit_breaker_state") == 1
    clients[1].circuit_breaker.reset()
    assert sample("circuit_breaker_state") == 0
    clients[1].circuit_breaker.trip()
    clients.pop()
    gc.collect()
    assert sample("circuit_breaker_state") == 0


async def test_connections_are_active_then_idle_then_gone() -> None:
    """The gauges show requests under way and connections at rest, of every pool that lives."""
    seen: list[tuple[float, float]] = []

    def look() -> None:
        seen.append((sample("connections_active"), sample("connections_idle")))

    def answer(_: bytes) -> Reply:
        look()
        return watermark()

    async with served(answer) as (client, _):
        look()
        for _ in range(2):
            await client.get_watermark("kev")
            look()
        await client.close()
        look()
    assert seen == [(0, 0), (1, 0), (0, 1), (1, 0), (0, 1), (0, 0)]


def test_metrics_have_the_names_that_are_promised() -> None:
    """Dashboards and alerts are written with these names."""
    metrics.count_request("GET", 200)
    text = generate_latest().decode()
    for name, kind in {
        "circuit_breaker_opens_total": "counter",
        "circuit_breaker_closes_total": "counter",
        "circuit_breaker_state": "gauge",
        "requests_total": "counter",
        "connections_active": "gauge",
        "connections_idle": "gauge",
        "latency_seconds": "histogram",
    }.items():
        assert f"# TYPE storage_client_{name} {kind}\n" in text


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b'{"error": "Field \'status\' is wrong."}', "Field 'status' is wrong."),
        (b'{"error": 7, "field": "status"}', "7"),
        (b'{"detail": "no"}', '{"detail": "no"}'),
        (b"\x1b[31mred\x1b[0m\r\nFAKE   LINE\x00\x7f", "[31mred [0m FAKE LINE"),
        (b'{"error": "one\\u2028two\\u202ethree"}', "one two three"),
        (b"\xff\xfe", "\N{REPLACEMENT CHARACTER}" * 2),
        (b"", "check its address."),
    ],
    ids=["error", "no text", "other JSON", "control", "separators", "no Unicode", "nothing"],
)
async def test_words_of_a_refusal_are_one_printable_line(body: bytes, said: str) -> None:
    """What the service says helps, and writes neither lines into a log nor to a terminal."""
    async with served(http(400, body)) as (client, server):
        error = await failure(client)
        assert str(error) == f"The Storage Service at {server.url} answered 400 to GET: {said}"


@pytest.mark.parametrize("size", [299, 300, 301, 1_000_000])
async def test_words_of_a_refusal_are_cut(size: int) -> None:
    """A page of HTML does not fill the log."""
    async with served(http(400, b"x" * size)) as (client, _):
        assert str(await failure(client)).count("x") == min(size, 300)
