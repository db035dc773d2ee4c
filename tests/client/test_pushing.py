"""Metrics that outlive the process of a run, in a real Pushgateway."""

from __future__ import annotations

import asyncio
import base64
import shutil
from collections.abc import AsyncIterator, Iterable

import aiohttp
import pytest
from prometheus_client import REGISTRY, Metric
from prometheus_client.registry import Collector

from ladon_storage.cli.local import free_port
from ladon_storage.client.metrics import count_missed
from ladon_storage.client.pushing import PUSHGATEWAY_VARIABLE, push_metrics
from tests.raw_server import RawServer, Reply, http

GATEWAY = shutil.which("prometheus-pushgateway")
SECONDS = 30


@pytest.fixture
async def gateway() -> AsyncIterator[str]:
    """Run a Pushgateway of this machine, and give its address."""
    address = f"127.0.0.1:{free_port()}"
    process = await asyncio.create_subprocess_exec(
        str(GATEWAY), "--web.listen-address", address,
        stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stderr is not None
    try:
        async with asyncio.timeout(SECONDS):
            # Its last line before it answers.
            while b"isten" not in (line := await process.stderr.readline()):
                assert line, "the gateway ended"
        async with asyncio.timeout(SECONDS), aiohttp.ClientSession() as session:
            while True:
                try:
                    async with session.get(f"http://{address}/-/ready"):
                        break
                except aiohttp.ClientError:
                    await asyncio.sleep(0)
        yield address
    finally:
        process.kill()
        await process.communicate()


async def text(address: str) -> str:
    """Return what Prometheus would read."""
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"http://{address}/metrics") as answer,
    ):
        return await answer.text()


@pytest.mark.skipif(
    GATEWAY is None,
    reason="there is no Pushgateway; install it: apt-get install prometheus-pushgateway",
)
async def test_metrics_of_a_run_stay_after_it(
    gateway: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gateway has this package's metrics by source, and those of its last run alone."""
    monkeypatch.setenv(PUSHGATEWAY_VARIABLE, f"http://{gateway}")
    for missed in (7, 2):
        count_missed("kev", missed)
        assert await push_metrics("kev")
    shown = await text(gateway)
    assert 'ladon_reconciliation_missed{instance="kev",job="ladon-run",source_id="kev"} 2' in shown
    assert 'storage_client_circuit_breaker_state{instance="kev",job="ladon-run"}' in shown
    assert "python_gc_objects" not in shown.partition("ladon-run")[0]


async def test_gateway_that_is_away_fails_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A run whose metrics cannot be pushed ends as it would; the address is not logged."""
    monkeypatch.setenv(PUSHGATEWAY_VARIABLE, f"http://user:s3cret@127.0.0.1:{free_port()}")
    assert not await push_metrics("kev")
    assert "could not be pushed" in caplog.text
    assert PUSHGATEWAY_VARIABLE in caplog.text
    assert "s3cret" not in caplog.text


@pytest.mark.parametrize(
    ("credentials", "sent"),
    [("me:s3cret", "me:s3cret"), ("me:s%2Fcr%C3%A9t", "me:s/crét"), ("me", "me:")],
)
@pytest.mark.parametrize("scheme", ["http://", ""])
async def test_password_of_the_gateway_is_basic_authentication(
    scheme: str, credentials: str, sent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An address has credentials as that of any other service has them."""
    async with RawServer(http(202)) as server:
        address = server.url.removeprefix("http://")
        monkeypatch.setenv(PUSHGATEWAY_VARIABLE, f"{scheme}{credentials}@{address}/below")
        assert await push_metrics("kev")
    head = server.requests[0].partition(b"\r\n\r\n")[0].decode().lower()
    assert head.startswith("put /below/metrics/job/ladon-run/instance/kev http/1.1\r\n")
    assert f"host: {address}" in head
    basic = base64.b64encode(sent.encode()).decode()
    assert f"authorization: Basic {basic}".lower() in head


@pytest.mark.parametrize(
    "gateway",
    ["http://u:s3cret@127.0.0.1:port", "http://u:s3cret#1@localhost", "http://u:s3cret@[", "//"],
)
async def test_address_that_is_none_fails_nothing(
    gateway: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The run has stored everything; the address, which is wrong, may have a password anywhere."""
    monkeypatch.setenv(PUSHGATEWAY_VARIABLE, gateway)
    assert not await push_metrics("kev")
    assert "could not be pushed" in caplog.text
    assert "s3cret" not in caplog.text


async def test_gateway_that_does_not_speak_http_fails_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Such as a port of TLS, or of gRPC."""
    async with RawServer(Reply(b"\x15\x03\x03\x00\x02\x02\x46\r\n\r\n", "close")) as server:
        monkeypatch.setenv(PUSHGATEWAY_VARIABLE, server.url)
        assert not await push_metrics("kev")
    assert "could not be pushed (BadStatusLine)" in caplog.text


async def test_collector_of_the_process_that_fails_does_not_fail_its_run(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Others register collectors in the same process."""

    class Broken(Collector):
        def describe(self) -> Iterable[Metric]:
            return ()

        def collect(self) -> Iterable[Metric]:
            raise KeyError("theirs")

    broken = Broken()
    REGISTRY.register(broken)
    try:
        async with RawServer(http(202)) as server:
            monkeypatch.setenv(PUSHGATEWAY_VARIABLE, server.url)
            assert not await push_metrics("kev")
    finally:
        REGISTRY.unregister(broken)
    assert "could not be pushed (KeyError)" in caplog.text


async def test_nothing_is_pushed_without_a_gateway(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pushing is the operator's choice."""
    monkeypatch.delenv(PUSHGATEWAY_VARIABLE, raising=False)
    assert not await push_metrics("kev")
