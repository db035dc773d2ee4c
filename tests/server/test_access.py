"""Who may ask the embedded service, how much, and in what form."""

from __future__ import annotations

import io
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ladon_storage.errors import ConfigurationError
from ladon_storage.server.serving import serving
from tests.service import Caller, calling, embedded_service, path, success

TOKEN = "correct-horse"
JANUARY = "2024-01-01T12:00:00+00:00"
ROUTES = [
    ("GET", "/api/v1/watermarks"),
    ("GET", path("kev")),
    ("PUT", path("kev")),
    ("DELETE", path("kev")),
    ("POST", path("kev", "/reset")),
    ("GET", path("kev", "/history")),
    ("GET", "/metrics"),
    ("GET", "/unknown"),
]


@pytest.fixture
async def call(tmp_path: Path) -> AsyncIterator[Caller]:
    """Call a service that asks for a token, without one."""
    async with (
        embedded_service(tmp_path / "watermarks.db", token=TOKEN) as address,
        calling(address) as caller,
    ):
        yield caller


@pytest.mark.parametrize(("method", "route"), ROUTES)
async def test_route_without_the_token_is_401(call: Caller, method: str, route: str) -> None:
    """Everything but health and the description asks for the token, and says how to send it."""
    answer = await call(method, route)
    assert answer.status == 401
    assert answer.headers["WWW-Authenticate"] == "Bearer"
    assert "Bearer" in answer.json["error"]


@pytest.mark.parametrize("route", ["/health", "/openapi.json", "/logo.svg"])
async def test_health_and_description_are_open(call: Caller, route: str) -> None:
    """A probe needs no secret, and a browser that shows the logo has none."""
    assert (await call("GET", route)).status == 200


@pytest.mark.parametrize(
    "header",
    ["", "Bearer", "Bearer ", f"Basic {TOKEN}", TOKEN, f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}",
     "Bearer cörrect-hörse", "Bearer \udcff\udcfe", "Bearer " + "x" * 8000],
)  # fmt: skip
async def test_wrong_token_is_401(call: Caller, header: str) -> None:
    """Nothing but the token is the token, whatever bytes arrive."""
    answer = await call("GET", path("kev"), headers={"Authorization": header})
    assert answer.status == 401


async def test_token_admits(call: Caller, caplog: pytest.LogCaptureFixture) -> None:
    """With its token a request is answered, its scheme in any case, and no log tells the token."""
    caplog.set_level(0)
    for scheme in ("Bearer", "bearer"):
        authorization = {"Authorization": f"{scheme} {TOKEN}"}
        put = await call("PUT", path("kev"), success(JANUARY), headers=authorization)
        assert put.status in (200, 201)
    await call("GET", path("kev"), headers={"Authorization": f"Basic {TOKEN}"})
    assert TOKEN not in caplog.text


@pytest.mark.parametrize("host", ["0.0.0.0", "", "::", "192.0.2.1", "example.invalid"])
async def test_address_beyond_loopback_needs_a_token(tmp_path: Path, host: str) -> None:
    """What others can reach is not started without a token, and the sentence says what to set."""
    with pytest.raises(ConfigurationError, match="STORAGE_SERVICE_TOKEN"):
        async with serving(tmp_path / "watermarks.db", host):
            pytest.fail("it started")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "localhost"])
async def test_loopback_needs_no_token(tmp_path: Path, host: str) -> None:
    """On this machine alone the service starts as it is."""
    async with serving(tmp_path / "watermarks.db", host) as address, calling(address) as call:
        assert (await call("GET", path("kev"))).status == 404


@pytest.mark.parametrize("chunked", [False, True])
async def test_body_beyond_the_limit_is_413(tmp_path: Path, chunked: bool) -> None:
    """A body of 1 MiB is read, and one byte more is refused, whether its length is told or not."""
    body = b'{"timestamp": "2024-01-01T12:00:00Z"}'

    async def sent(size: int) -> object:
        data = body.ljust(size)
        headers = {"Content-Type": "application/json"}
        sendable = pieces(data) if chunked else io.BytesIO(data)
        answer = await call("PUT", path("kev"), headers=headers, data=sendable)
        assert answer.json is not None
        return answer.status

    async with embedded_service(tmp_path / "w.db") as address, calling(address) as call:
        assert await sent(1 << 20) == 201
        assert await sent((1 << 20) + 1) == 413


async def pieces(data: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(data), 1 << 16):
        yield data[start : start + (1 << 16)]


@pytest.mark.parametrize(
    "content_type", ["text/plain", "application/x-www-form-urlencoded", "", "application/jsonp"]
)
async def test_body_that_is_not_declared_as_json_is_415(tmp_path: Path, content_type: str) -> None:
    """A web page can make a browser send a form to loopback; the service takes none."""
    async with embedded_service(tmp_path / "w.db") as address, calling(address) as call:
        answer = await call(
            "POST",
            path("kev", "/reset"),
            data=b'{"timestamp": "2024-01-01T12:00:00Z", "reason": "x"}',
            headers={"Content-Type": content_type},
        )
        assert (answer.status, answer.json["field"]) == (415, "Content-Type")


@pytest.mark.parametrize("content_type", ["application/json; charset=utf-8", "application/x+json"])
async def test_json_by_any_of_its_types_is_read(tmp_path: Path, content_type: str) -> None:
    """Parameters and suffixes of the type do not matter."""
    async with embedded_service(tmp_path / "w.db") as address, calling(address) as call:
        headers = {"Content-Type": content_type}
        answer = await call(
            "PUT", path("kev"), data=b'{"timestamp": "2024-01-01T12:00:00Z"}', headers=headers
        )
        assert answer.status == 201
