"""Metrics that outlive the process of a run, in a real Pushgateway."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator

import aiohttp
import pytest

from ladon_storage.cli.local import free_port
from ladon_storage.client.metrics import count_missed
from ladon_storage.client.pushing import PUSHGATEWAY_VARIABLE, push_metrics

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


async def test_nothing_is_pushed_without_a_gateway(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pushing is the operator's choice."""
    monkeypatch.delenv(PUSHGATEWAY_VARIABLE, raising=False)
    assert not await push_metrics("kev")
