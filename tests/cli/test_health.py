"""``ladon-storage health``: the probe of a container."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.called import Command
from tests.raw_server import RawServer, Reply, http
from tests.service import embedded_service


async def test_health_of_a_running_service_is_asked_without_a_token(
    ladon: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A probe knows no token, and a proxy of the environment is not on its way."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    async with embedded_service(tmp_path / "w.db", token="t0ken-of-the-service") as address:
        made = await ladon.later("health", address)
        monkeypatch.setenv("STORAGE_SERVICE_URL", f"{address}/")
        named = await ladon.later("health")
    assert (made.code, made.out) == (named.code, named.out) == (0, "healthy\n")


@pytest.mark.parametrize(
    ("answer", "said_of_it"),
    [
        ((b'{"status": "unhealthy"}', 503), "it answers 503"),
        ((b'{"status": "unhealthy"}', 200), "it says so itself"),
        ((b"<html>welcome</html>", 200), "its answer is no JSON"),
        ((b"[]", 200), "it says so itself"),
        ((b"[" * 60_000, 200), "its answer is no JSON"),
        (('{"status": "healthy"}'.encode("utf-16"), 200), "its answer is no JSON"),
        ((b'\xef\xbb\xbf{"status": "healthy"}', 200), "its answer is no JSON"),
        ((b'{"status": "healthy"}', 201), "it answers 201"),
    ],
)
async def test_anything_but_healthy_fails(
    ladon: Command, answer: tuple[bytes, int], said_of_it: str
) -> None:
    """Another server's page in its place, too."""
    body, status = answer
    async with RawServer(http(status, body)) as server:
        made = await ladon.later("health", server.url)
    assert made.code == 1
    assert said_of_it in made.sentence


def test_service_that_is_not_there_fails(ladon: Command) -> None:
    """In one sentence."""
    made = ladon("health", "http://127.0.0.1:9")
    assert (made.code, "cannot be reached" in made.sentence) == (1, True)


async def test_user_of_the_variable_signs_in_and_is_not_shown(
    ladon: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proxy before the service may want one; the command line has none."""
    async with RawServer(http(200, b'{"status": "healthy"}'), http(401, b"no")) as server:
        host = server.url.removeprefix("http://")
        monkeypatch.setenv("STORAGE_SERVICE_URL", f"http://me:S3%40CRET@{host}")
        made = await ladon.later("health")
        refused = await ladon.later("health")
    assert (made.code, made.out) == (0, "healthy\n")
    assert b"Authorization: Basic bWU6UzNAQ1JFVA==" in server.requests[0]
    assert refused.code == 1
    assert "it answers 401" in refused.sentence
    assert "CRET" not in refused.err


async def test_service_that_leads_elsewhere_is_not_healthy(
    ladon: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No run follows a redirect, and no other server gets its password."""
    async with RawServer(http(200, b'{"status": "healthy"}')) as other:
        moved = http(302, b"", f"Location: {other.url}/health")
        async with RawServer(moved) as server:
            host = server.url.removeprefix("http://")
            monkeypatch.setenv("STORAGE_SERVICE_URL", f"http://me:S3CRET@{host}")
            made = await ladon.later("health")
    assert (made.code, "it answers 302" in made.sentence) == (1, True)
    assert b"Authorization" in server.requests[0]
    assert other.requests == []


async def test_early_hints_come_before_the_answer(ladon: Command) -> None:
    """A gateway may send any number of informational answers."""
    hints = b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 102 Processing\r\n\r\n"
    healthy = http(200, b'{"status": "healthy"}')
    async with RawServer(Reply(hints + healthy.data)) as server:
        made = await ladon.later("health", server.url)
    assert (made.code, made.out) == (0, "healthy\n")


@pytest.mark.parametrize("pause_from", [0, 40])
async def test_timeout_is_for_the_whole_answer(ladon: Command, pause_from: int) -> None:
    """A byte now and then, in the head or in the body, makes no probe wait."""
    healthy = http(200, b'{"status": "healthy"}' + b" " * 10_000)
    async with RawServer(Reply(healthy.data, pause=0.05, pause_from=pause_from)) as server:
        async with asyncio.timeout(10):
            made = await ladon.later("health", server.url, "--timeout", "0.3")
    assert (made.code, "within 0.3 s" in made.sentence) == (1, True)


@pytest.mark.parametrize(
    "address",
    [
        "storage:8080",
        "http://me:S3CRET@storage",
        "http://storage/?token=S3CRET",
        "http://[S3CRET",
        "http://u:S3/S3CRET@storage",
        "http://u:8080/S3CRET@storage",
        "file:///etc/x",
    ],
)
def test_address_that_is_none_is_refused_and_not_shown(
    ladon: Command, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may have a password in it."""
    made = ladon("health", address)
    assert made.code == 2
    assert "S3CRET" not in made.err
    if "me:" not in address:  # which the variable may have
        monkeypatch.setenv("STORAGE_SERVICE_URL", address)
        named = ladon("health")
        assert (named.code, named.err) == (2, made.err)


def test_probe_imports_neither_prefect_nor_a_client() -> None:
    """It runs every few seconds."""
    code = (
        "import sys; from ladon_storage.cli.health import health; "
        "print(any(each in sys.modules for each in ('prefect', 'aiohttp', 'pydantic')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
