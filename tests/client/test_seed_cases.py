"""What the client makes of each response of the service, with aiohttp's sessions mocked.

The same behaviour against real sockets: ``test_contract`` and ``test_answers``.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import aiohttp
import pytest
from yarl import URL

from ladon_storage import (
    CircuitBreaker,
    CircuitOpenError,
    MockStorageClient,
    StorageConnectionError,
    StorageResponseError,
    StorageServiceClient,
)
from ladon_storage.testing.clock import FakeClock
from tests.mocked_http import MockedHttp

ADDRESS = "http://test-storage:8000"
WATERMARK = f"{ADDRESS}/api/v1/watermarks/test_source"
HEALTH = f"{ADDRESS}/health"
NOON = datetime(2024, 1, 1, 12, tzinfo=UTC)
STORED = {
    "source_id": "test_source",
    "last_successful_timestamp": "2024-01-01T12:00:00+00:00",
    "last_run_timestamp": "2024-01-01T12:05:00+00:00",
    "status": "success",
    "error_message": None,
    "records_collected": 150,
}


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
async def client(clock: FakeClock) -> AsyncIterator[StorageServiceClient]:
    circuit = CircuitBreaker(failure_threshold=3, timeout_seconds=60, clock=clock)
    async with StorageServiceClient(ADDRESS, circuit_breaker=circuit) as made:
        yield made


@pytest.fixture
def mocked() -> Iterator[MockedHttp]:
    http = MockedHttp()
    with http:
        yield http


def sent(mocked: MockedHttp, method: str, url: str) -> dict[str, Any]:
    """Return what went out with the only request to ``url``."""
    [request] = mocked.requests[method, URL(url)]
    options: dict[str, Any] = request.kwargs
    return options


async def fail(client: StorageServiceClient, mocked: MockedHttp, times: int) -> None:
    """Let the service fail so often."""
    for _ in range(times):
        mocked.get(WATERMARK, status=500)
        with pytest.raises(StorageResponseError):
            await client.get_watermark("test_source")


async def test_circuit_begins_closed(client: StorageServiceClient) -> None:
    """A new client asks."""
    assert client.circuit_breaker.state == "closed"
    assert client.circuit_breaker.failure_count == 0


async def test_default_circuit_opens_after_five_failures(mocked: MockedHttp) -> None:
    """Without a circuit of one's own it takes 5 failures, and 60 seconds."""
    async with StorageServiceClient(ADDRESS) as client:
        await fail(client, mocked, 4)
        assert client.circuit_breaker.state == "closed"
        await fail(client, mocked, 1)
        assert client.circuit_breaker.state == "open"
        with pytest.raises(CircuitOpenError) as caught:
            await client.get_watermark("test_source")
    assert 59 < caught.value.retry_after <= 60


async def test_circuit_below_the_threshold_stays_closed(
    client: StorageServiceClient, mocked: MockedHttp
) -> None:
    """An answer between failures begins the count anew."""
    for _ in range(2):
        await fail(client, mocked, 2)
        mocked.get(WATERMARK, payload=STORED)
        await client.get_watermark("test_source")
    assert client.circuit_breaker.state == "closed"
    assert client.circuit_breaker.failure_count == 0


async def test_circuit_at_the_threshold_keeps_requests_from_the_service(
    client: StorageServiceClient, mocked: MockedHttp
) -> None:
    """An open circuit answers for the service, to reads and writes alike."""
    await fail(client, mocked, 3)
    assert client.circuit_breaker.state == "open"
    with pytest.raises(CircuitOpenError):
        await client.get_watermark("test_source")
    with pytest.raises(RuntimeError):
        await client.update_watermark("test_source", NOON)
    assert sum(len(requests) for requests in mocked.requests.values()) == 3


async def test_circuit_after_its_timeout_recovers_with_one_probe(
    client: StorageServiceClient, mocked: MockedHttp, clock: FakeClock
) -> None:
    """The first answer after the timeout closes the circuit, and it is half open until then."""
    await fail(client, mocked, 3)
    clock.advance(60)
    seen: list[str] = []
    mocked.get(
        WATERMARK,
        payload=STORED,
        callback=lambda *_, **__: seen.append(client.circuit_breaker.state),
    )
    assert await client.get_watermark("test_source") is not None
    assert seen == ["half_open"]
    assert client.circuit_breaker.state == "closed"


async def test_circuit_whose_probe_fails_opens_again(
    client: StorageServiceClient, mocked: MockedHttp, clock: FakeClock
) -> None:
    """One failure is enough while half open, and the timeout begins anew."""
    await fail(client, mocked, 3)
    clock.advance(60)
    await fail(client, mocked, 1)
    assert client.circuit_breaker.state == "open"
    clock.advance(59)
    with pytest.raises(CircuitOpenError):
        await client.get_watermark("test_source")


async def test_circuit_at_404_recovers(
    client: StorageServiceClient, mocked: MockedHttp, clock: FakeClock
) -> None:
    """A service that knows no watermark works: its 404 closes the circuit."""
    await fail(client, mocked, 3)
    clock.advance(60)
    mocked.get(WATERMARK, status=404)
    assert await client.get_watermark("test_source") is None
    assert client.circuit_breaker.state == "closed"


@pytest.mark.parametrize("status", [400, 401, 429])
async def test_circuit_at_another_4xx_is_as_it_was(
    client: StorageServiceClient, mocked: MockedHttp, clock: FakeClock, status: int
) -> None:
    """A refusal neither counts nor clears the count, and a probe leaves its place to the next."""
    await fail(client, mocked, 2)
    mocked.get(WATERMARK, status=status)
    with pytest.raises(StorageResponseError):
        await client.get_watermark("test_source")
    assert client.circuit_breaker.failure_count == 2
    await fail(client, mocked, 1)
    clock.advance(60)
    for _ in range(2):
        mocked.get(WATERMARK, status=status)
        with pytest.raises(StorageResponseError):
            await client.get_watermark("test_source")
        assert client.circuit_breaker.state == "half_open"


async def test_get_watermark_at_200_returns_it(
    client: StorageServiceClient, mocked: MockedHttp
) -> None:
    """What the service stores arrives, as fields and as a dictionary would have it."""
    mocked.get(WATERMARK, payload=STORED)
    watermark = await client.get_watermark("test_source")
    assert watermark is not None
    assert watermark["status"] == "success"
    assert watermark.last_successful_timestamp == NOON
    assert dict(watermark) == STORED


async def test_get_watermark_at_404_is_none(
    client: StorageServiceClient, mocked: MockedHttp
) -> None:
    """Never collected is no error, and no failure of the service."""
    mocked.get(WATERMARK, status=404, payload={"error": "never collected"})
    assert await client.get_watermark("test_source") is None
    assert client.circuit_breaker.failure_count == 0


@pytest.mark.parametrize("status", [500, 502, 503, 504, 507, 599])
async def test_get_watermark_at_5xx_raises_and_counts(
    client: StorageServiceClient, mocked: MockedHttp, status: int
) -> None:
    """An outage is not a missing watermark."""
    mocked.get(WATERMARK, status=status)
    with pytest.raises(StorageResponseError) as caught:
        await client.get_watermark("test_source")
    assert caught.value.status == status
    assert caught.value.transient
    assert client.circuit_breaker.failure_count == 1


async def test_get_watermark_without_a_connection_raises_and_counts(
    client: StorageServiceClient, mocked: MockedHttp
) -> None:
    """Errors of aiohttp's become ours, with the cause behind them."""
    mocked.get(WATERMARK, exception=aiohttp.ClientConnectionError("no route"))
    with pytest.raises(StorageConnectionError, match="could not be reached") as caught:
        await client.get_watermark("test_source")
    assert isinstance(caught.value.__cause__, aiohttp.ClientConnectionError)
    assert client.circuit_breaker.failure_count == 1


async def test_update_watermark_sends_the_contract_and_returns_what_is_stored(
    client: StorageServiceClient, mocked: MockedHttp
) -> None:
    """The body is the base contract's; the answer is the service's."""
    mocked.put(WATERMARK, status=201, payload=STORED)
    stored = await client.update_watermark("test_source", NOON)
    assert json.loads(sent(mocked, "PUT", WATERMARK)["data"]) == {
        "timestamp": "2024-01-01T12:00:00+00:00",
        "status": "success",
    }
    assert sent(mocked, "PUT", WATERMARK)["headers"]["Content-Type"] == "application/json"
    assert stored.records_collected == 150


@pytest.mark.parametrize(
    ("timestamp", "wire"),
    [
        (datetime(2024, 1, 1, 12), "2024-01-01T12:00:00+00:00"),  # noqa: DTZ001 - the point
        (NOON.astimezone(timezone(timedelta(hours=5.5))), "2024-01-01T12:00:00+00:00"),
        (NOON + timedelta(microseconds=999_999), "2024-01-01T12:00:00.999999+00:00"),
    ],
    ids=["naive", "with an offset", "microseconds"],
)
async def test_update_watermark_sends_utc_with_its_offset(
    client: StorageServiceClient, mocked: MockedHttp, timestamp: datetime, wire: str
) -> None:
    """A naive timestamp is UTC, another one is shifted to it, and no digit is lost."""
    mocked.put(WATERMARK, payload=STORED)
    await client.update_watermark("test_source", timestamp)
    assert json.loads(sent(mocked, "PUT", WATERMARK)["data"])["timestamp"] == wire


async def test_update_watermark_sends_the_error_message(
    client: StorageServiceClient, mocked: MockedHttp
) -> None:
    """A failed run says why."""
    mocked.put(WATERMARK, payload={**STORED, "status": "failed", "error_message": "API timeout"})
    stored = await client.update_watermark("test_source", NOON, "failed", "API timeout")
    assert json.loads(sent(mocked, "PUT", WATERMARK)["data"]) == {
        "timestamp": "2024-01-01T12:00:00+00:00",
        "status": "failed",
        "error_message": "API timeout",
    }
    assert (stored.status, stored.error_message) == ("failed", "API timeout")


@pytest.mark.parametrize(
    ("status", "counted"), [(500, 1), (503, 1), (400, 0), (404, 0), (413, 0), (422, 0), (429, 0)]
)
async def test_update_watermark_refused_raises(
    client: StorageServiceClient, mocked: MockedHttp, status: int, counted: int
) -> None:
    """Only 5xx says that the service is failing; nothing is stored at a 404 either."""
    mocked.put(WATERMARK, status=status, payload={"error": "Because of this."})
    with pytest.raises(StorageResponseError, match=r"Because of this\.") as caught:
        await client.update_watermark("test_source", NOON)
    assert caught.value.status == status
    assert client.circuit_breaker.failure_count == counted


async def test_health_check_of_a_healthy_service_is_true(
    client: StorageServiceClient, mocked: MockedHttp
) -> None:
    """200 with the word is healthy."""
    mocked.get(HEALTH, payload={"status": "healthy"})
    assert await client.health_check() is True


UNHEALTHY = [
    pytest.param({"status": 503}, id="503"),
    pytest.param({"status": 404, "payload": {"status": "healthy"}}, id="404"),
    pytest.param({"status": 202, "payload": {"status": "healthy"}}, id="202"),
    pytest.param({"status": 204}, id="204"),
    pytest.param({"payload": {"status": "starting"}}, id="another word"),
    pytest.param({"payload": ["healthy"]}, id="no object"),
    pytest.param({"body": "healthy"}, id="no JSON"),
    pytest.param({"exception": aiohttp.ClientConnectionError("refused")}, id="unreachable"),
    pytest.param({"timeout": True}, id="timeout"),
]


@pytest.mark.parametrize("answer", UNHEALTHY)
@pytest.mark.parametrize("environment", ["development", "staging", ""])
async def test_health_check_of_an_unhealthy_service_elsewhere_is_false(
    mocked: MockedHttp, answer: dict[str, Any], environment: str
) -> None:
    """Outside production an unhealthy service is no error."""
    mocked.get(HEALTH, **answer)
    async with StorageServiceClient(ADDRESS, environment=environment) as client:
        assert await client.health_check() is False


@pytest.mark.parametrize("answer", UNHEALTHY)
@pytest.mark.parametrize("environment", ["production", " Production "])
async def test_health_check_of_an_unhealthy_service_in_production_raises(
    mocked: MockedHttp, answer: dict[str, Any], environment: str
) -> None:
    """A production run does not begin without the service."""
    mocked.get(HEALTH, **answer)
    async with StorageServiceClient(ADDRESS, environment=environment) as client:
        with pytest.raises(RuntimeError, match="is unhealthy"):
            await client.health_check()


async def test_health_check_is_outside_the_circuit(
    client: StorageServiceClient, mocked: MockedHttp
) -> None:
    """It asks while the circuit is open, and neither closes nor opens it."""
    for _ in range(5):
        mocked.get(HEALTH, status=503)
        with pytest.raises(RuntimeError):
            await client.health_check()
    assert client.circuit_breaker.failure_count == 0
    client.circuit_breaker.trip()
    mocked.get(HEALTH, payload={"status": "healthy"})
    assert await client.health_check()
    assert client.circuit_breaker.state == "open"


async def test_session_has_the_pool_that_was_asked_for(
    mocked: MockedHttp, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One connector with both limits and 300 s of DNS serves all requests; timeout is the total."""
    sessions: list[aiohttp.ClientSession] = []
    make = aiohttp.ClientSession.__init__

    def noted(session: aiohttp.ClientSession, *arguments: Any, **options: Any) -> None:
        make(session, *arguments, **options)
        sessions.append(session)

    monkeypatch.setattr(aiohttp.ClientSession, "__init__", noted)
    mocked.get(WATERMARK, payload=STORED, repeat=True)
    async with StorageServiceClient(
        ADDRESS, timeout=7, max_connections=50, max_connections_per_host=20
    ) as client:
        for _ in range(3):
            await client.get_watermark("test_source")
        [session] = sessions
        connector = session.connector
        assert isinstance(connector, aiohttp.TCPConnector)
        assert connector.limit == 50
        assert connector.limit_per_host == 20
        assert connector._cached_hosts._ttl == 300
        assert session.timeout.total == 7
        assert not session.closed
    assert session.closed


async def test_mock_keeps_watermarks() -> None:
    """What was written to the mock is read from it."""
    mock = MockStorageClient()
    await mock.update_watermark("test_source", NOON)
    watermark = await mock.get_watermark("test_source")
    assert watermark is not None
    assert watermark["status"] == "success"
    assert watermark["last_successful_timestamp"] == "2024-01-01T12:00:00+00:00"
    assert await mock.get_watermark("another") is None


async def test_mock_with_a_failure_keeps_the_last_success() -> None:
    """The mock's failures move nothing, as the service's do not."""
    mock = MockStorageClient()
    await mock.update_watermark("test_source", NOON)
    await mock.update_watermark("test_source", NOON + timedelta(days=1), "failed", "boom")
    watermark = await mock.get_watermark("test_source")
    assert watermark is not None
    assert (watermark.status, watermark.error_message) == ("failed", "boom")
    assert watermark.last_successful_timestamp == NOON


async def test_mock_is_healthy() -> None:
    """The mock has nothing that could fail."""
    assert await MockStorageClient().health_check() is True
