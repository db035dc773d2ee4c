"""Each error of aiohttp's and of the system's becomes one of ours, at one boundary."""

from __future__ import annotations

import asyncio
import pickle
import ssl
from collections.abc import Iterator

import aiohttp
import pytest
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from ladon_storage import (
    CircuitOpenError,
    InvalidResponseError,
    PoolTimeoutError,
    StorageConnectionError,
    StorageError,
    StorageResponseError,
    StorageServiceClient,
    StorageTimeoutError,
    StorageUnhealthyError,
    WatermarkConflictError,
)
from tests.mocked_http import MockedHttp

ADDRESS = "http://storage:8000"
TIMEOUT, CONNECTION, TRUST, ANSWER = "timeout", "connection", "trust", "answer"
KINDS: dict[str, tuple[type[StorageError], bool]] = {
    TIMEOUT: (StorageTimeoutError, True),
    CONNECTION: (StorageConnectionError, True),
    TRUST: (StorageConnectionError, False),
    ANSWER: (InvalidResponseError, False),
}
KNOWN = {
    "ClientConnectionError": CONNECTION,
    "ClientConnectionResetError": CONNECTION,
    "ClientConnectorCertificateError": TRUST,
    "ClientConnectorDNSError": CONNECTION,
    "ClientConnectorError": CONNECTION,
    "ClientConnectorSSLError": TRUST,
    "ClientOSError": CONNECTION,
    "ClientPayloadError": CONNECTION,
    "ClientProxyConnectionError": CONNECTION,
    "ClientResponseError": ANSWER,
    "ClientSSLError": TRUST,
    "ConnectionTimeoutError": TIMEOUT,
    "ContentTypeError": ANSWER,
    "ServerConnectionError": CONNECTION,
    "ServerDisconnectedError": CONNECTION,
    "ServerFingerprintMismatch": TRUST,
    "ServerTimeoutError": TIMEOUT,
    "SocketTimeoutError": TIMEOUT,
    "UnixClientConnectorError": CONNECTION,
    "TimeoutError": TIMEOUT,
    "OSError": CONNECTION,
    "ConnectionResetError": CONNECTION,
    "BrokenPipeError": CONNECTION,
    "SSLError": TRUST,
    "SSLCertVerificationError": TRUST,
}
SYSTEMS = [TimeoutError, OSError, ConnectionResetError, BrokenPipeError, ssl.SSLError,
           ssl.SSLCertVerificationError]  # fmt: skip


def aiohttps(of: type[Exception] = aiohttp.ClientError) -> Iterator[type[Exception]]:
    """Yield aiohttp's error classes, all that there are."""
    yield of
    for below in of.__subclasses__():
        if below.__module__.startswith("aiohttp"):
            yield from aiohttps(below)


ALL = sorted({*aiohttps(), *SYSTEMS}, key=lambda kind: kind.__name__)


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
async def test_foreign_error_becomes_one_of_ours(kind: type[Exception]) -> None:
    """Also one that a later aiohttp adds: callers catch one tree, and the cause stays chained."""
    error = kind.__new__(kind)
    if isinstance(error, aiohttp.ClientResponseError):
        headers = CIMultiDictProxy(CIMultiDict({"Authorization": "Bearer s3cret"}))
        url = URL(ADDRESS)
        error.request_info = aiohttp.RequestInfo(url, "GET", headers, url)
        error.status, error.message = 400, "no HTTP"
    async with StorageServiceClient(ADDRESS) as client:
        with MockedHttp() as mocked:
            mocked.get(f"{ADDRESS}/api/v1/watermarks/kev", exception=error)
            with pytest.raises(StorageError) as caught:
                await client.get_watermark("kev")
        assert client.circuit_breaker.failure_count == 1
    assert caught.value.__cause__ is error
    assert ADDRESS in str(caught.value)
    if kind.__name__ in KNOWN:
        ours, transient = KINDS[KNOWN[kind.__name__]]
        assert type(caught.value) is ours
        assert caught.value.transient is transient


async def test_error_that_is_no_failure_of_the_service_passes_unchanged() -> None:
    """A mistake in the program is no outage: it is neither renamed nor counted."""
    async with StorageServiceClient(ADDRESS) as client:
        with MockedHttp() as mocked:
            mocked.get(f"{ADDRESS}/api/v1/watermarks/kev", exception=ZeroDivisionError())
            with pytest.raises(ZeroDivisionError):
                await client.get_watermark("kev")
        assert client.circuit_breaker.failure_count == 0


async def test_cancellation_passes_unchanged() -> None:
    """Whoever cancels gets a cancellation, from a health check too, and nothing is counted."""
    async with StorageServiceClient(ADDRESS, environment="development") as client:
        for path, call in (
            ("api/v1/watermarks/kev", client.get_watermark("kev")),
            ("health", client.health_check()),
        ):
            with MockedHttp() as mocked:
                mocked.get(f"{ADDRESS}/{path}", exception=asyncio.CancelledError())
                with pytest.raises(asyncio.CancelledError):
                    await call
        assert client.circuit_breaker.failure_count == 0


@pytest.mark.parametrize(
    "error",
    [
        CircuitOpenError("the service", 7.0),
        PoolTimeoutError("full"),
        StorageUnhealthyError("unhealthy", 503),
        StorageConnectionError("gone"),
        StorageTimeoutError("slow"),
        InvalidResponseError("strange", 200),
        StorageResponseError("no", 429, 7.0),
        WatermarkConflictError("faster", 412),
    ],
    ids=lambda error: type(error).__name__,
)
def test_error_survives_a_process(error: StorageError) -> None:
    """A task runner in another process brings back the class, the text and the fields."""
    error.transient = not error.transient
    back = pickle.loads(pickle.dumps(error))
    assert type(back) is type(error)
    assert str(back) == str(error)
    assert vars(back) == vars(error)
    assert back.args == error.args
