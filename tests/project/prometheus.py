"""A real Prometheus of this machine, with the shipped configuration, that scrapes at once."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import yaml

from ladon_storage.cli.local import free_port

MONITORING = Path(__file__).resolve().parent.parent.parent / "monitoring"
PROMETHEUS = shutil.which("prometheus")
GATEWAY = shutil.which("prometheus-pushgateway")
SECONDS = 60
"""The longest time for a start or a result, on a machine that does other things too."""


class Prometheus:
    """A running Prometheus.

    Args:
        session: The session of its requests.
        address: Its address.
    """

    def __init__(self, session: aiohttp.ClientSession, address: str) -> None:
        self._session = session
        self._address = address

    async def _ask(self, path: str, **query: str) -> Any:
        url = f"http://{self._address}/api/v1/{path}"
        async with self._session.get(url, params=query) as response:
            answer = await response.json()
            assert answer["status"] == "success", (query, answer)
            return answer["data"]

    async def series(self, expression: str) -> list[dict[str, Any]]:
        """Return what an expression yields, waiting for it to yield anything."""
        for _ in range(4 * SECONDS):
            if found := (await self._ask("query", query=expression))["result"]:
                result: list[dict[str, Any]] = found
                return result
            await asyncio.sleep(0.25)
        raise AssertionError(f"{expression} yields no series")

    async def range(self, expression: str, seconds: int) -> list[dict[str, Any]]:
        """Return what an expression yielded in each of the last seconds."""
        end = time.time()
        span = {"start": str(end - seconds), "end": str(end), "step": "1"}
        found: list[dict[str, Any]] = (await self._ask("query_range", query=expression, **span))[
            "result"
        ]
        return found

    async def alert(self, name: str) -> dict[str, Any]:
        """Return an alert that is pending or firing, waiting for it."""
        for _ in range(4 * SECONDS):
            for alert in (await self._ask("alerts"))["alerts"]:
                if alert["labels"]["alertname"] == name:
                    found: dict[str, Any] = alert
                    return found
            await asyncio.sleep(0.25)
        raise AssertionError(f"{name} is neither pending nor firing")


@asynccontextmanager
async def prometheus(folder: Path, service: str, gateway: str) -> AsyncIterator[Prometheus]:
    """Run Prometheus with the shipped configuration, but every second, and at these addresses.

    Args:
        folder: Where its files are.
        service: The host and port of the Storage Service.
        gateway: Those of the Pushgateway.
    """
    configuration = yaml.safe_load((MONITORING / "prometheus.yml").read_text(encoding="utf-8"))
    configuration["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    for job, target in zip(configuration["scrape_configs"], (service, gateway), strict=True):
        job["static_configs"] = [{"targets": [target]}]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(configuration), encoding="utf-8")
    shutil.copy(MONITORING / "alerts.yml", folder)
    address = f"127.0.0.1:{free_port()}"
    command = (
        *(str(PROMETHEUS), "--config.file", "prometheus.yml", "--storage.tsdb.path", "data"),
        *("--web.listen-address", address),
    )
    async with _running(folder, address, *command) as session:
        yield Prometheus(session, address)


@asynccontextmanager
async def pushgateway(folder: Path) -> AsyncIterator[str]:
    """Run a Pushgateway, and give its host and port."""
    address = f"127.0.0.1:{free_port()}"
    async with _running(folder, address, str(GATEWAY), "--web.listen-address", address):
        yield address


@asynccontextmanager
async def _running(
    folder: Path, address: str, *command: str
) -> AsyncIterator[aiohttp.ClientSession]:
    """Run a program of Prometheus's until the context ends, once it is ready."""
    with (folder / "log").open("ab") as log:
        process = await asyncio.create_subprocess_exec(*command, cwd=folder, stdout=log, stderr=log)
    try:
        async with aiohttp.ClientSession() as session:
            async with asyncio.timeout(SECONDS):
                while not await _is_ready(session, address):
                    assert process.returncode is None, (folder / "log").read_text()
                    await asyncio.sleep(0.1)
            yield session
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def _is_ready(session: aiohttp.ClientSession, address: str) -> bool:
    try:
        async with session.get(f"http://{address}/-/ready") as response:
            return response.status == 200
    except aiohttp.ClientError:
        return False
