"""A 404 that is not the service's: what stands before it says so of a service that is gone."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from ladon_storage import (
    InvalidResponseError,
    StorageError,
    StorageServiceClient,
    WatermarkConflictError,
)
from tests.raw_server import Reply, http, served, watermark
from tests.service import embedded_service

JANUARY = datetime(2024, 1, 1, tzinfo=UTC)
OWN = b'{"error": "Source \'kev\' was never collected.", "field": "source_id"}'
HEALTHY = http(200, b'{"status": "healthy"}')


def said(body: bytes | dict[str, Any], *headers: str) -> Reply:
    """Return a 404 that says this."""
    text = body if isinstance(body, bytes) else json.dumps(body).encode()
    return http(404, text, *headers)


NO_SERVICE = {
    "Traefik": said(b"404 page not found\n", "Content-Type: text/plain; charset=utf-8"),
    "nginx": said(b"<html><h1>404 Not Found</h1></html>", "Content-Type: text/html"),
    "nginx, a page with a tag": said(b"<html>gone</html>", 'ETag: "0"'),
    "Kubernetes": said(b"default backend - 404", "Content-Type: text/plain"),
    "Kong": said({"message": "no Route matched with those values", "request_id": "7"}),
    "APISIX": said({"error_msg": "404 Route Not Found"}),
    "Express": said({"error": "Cannot GET /api/v1/watermarks/kev"}),
    "the embedded service's other routes": said(
        {"error": "There is no such route; GET /openapi.json lists all of them.", "field": None}
    ),
    "Kubernetes's API": said(
        {"kind": "Status", "status": "Failure", "message": 'services "kev" not found', "code": 404}
    ),
    "Apigee": said(
        {
            "fault": {
                "faultstring": "Unable to identify proxy for host",
                "detail": {"errorcode": "messaging.adaptors.http.flow.ApplicationNotFound"},
            }
        }
    ),
    "S3": said({"code": "NoSuchBucket", "message": "The specified bucket does not exist"}),
    "an upstream": said({"error": "upstream service storage unavailable"}),
    "API Gateway": said({"message": "API not deployed"}),
    "Heroku": said({"title": "Application not found", "message": "Application not found"}),
    "DNS": said({"errors": [{"message": "DNS resolution error"}]}),
    "a tenant": said({"error": "tenant not found"}),
    "Google": said(
        {
            "error": {
                "code": 404,
                "message": "The requested URL /api/v1/watermarks/kev was not found on this server.",
            }
        }
    ),
    "a handler": said({"error": "No handler for GET /api/v1/watermarks/kev"}),
    "JSON that is no object": said(b"404", "Content-Type: application/json"),
    "JSON that is declared and is none": said(b"gone", "Content-Type: application/json"),
    "bytes": said(b"\xff\xfe\x00"),
}
NEVER_COLLECTED = {
    "empty": said(b""),
    "white space": said(b"\r\n"),
    "an object": said({"error": "never collected"}),
    "an object of another type": said({"detail": "unknown source"}, "Content-Type: text/plain"),
    "the source by name": said({"errors": [{"message": "Nothing is known of kev yet"}]}),
    "a watermark": said({"detail": "Watermark not found"}),
    "the embedded service's": said(OWN, 'ETag: "0"'),
    "the embedded service's, the tag lost on the way": said(OWN),
}
NOT_FOUND = {
    "FastAPI": said({"detail": "Not Found"}),
    "AWS": said({"message": "Not Found"}),
    "Spring": said({"status": 404, "error": "Not Found", "path": "/api/v1/watermarks/kev"}),
    "an empty object": said(b"{}"),
}


def each(replies: dict[str, Reply]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("reply", replies.values(), ids=list(replies))


@each(NO_SERVICE)
async def test_404_that_no_service_says_is_an_error(reply: Reply) -> None:
    """It counts as a failure, and may pass by itself: a service is restarted behind its gateway."""
    async with served(reply, HEALTHY) as (client, _):
        with pytest.raises(InvalidResponseError, match="404") as caught:
            await client.get_watermark("kev")
        assert (caught.value.status, caught.value.transient) == (404, True)
        assert client.circuit_breaker.failure_count == 1


@each(NEVER_COLLECTED)
async def test_404_of_a_base_service_is_never_collected(reply: Reply) -> None:
    """The contract words no 404: an object about the source is a service's, and so is nothing."""
    async with served(reply) as (client, _):
        assert await client.get_watermark("kev") is None
        assert client.circuit_breaker.failure_count == 0


@each(NOT_FOUND)
async def test_404_that_says_no_more_is_believed_of_who_has_a_health_check(reply: Reply) -> None:
    """A service and a gateway may say *not found* alike; only the service knows its other route."""
    async with served(reply, HEALTHY) as (client, _):
        assert await client.get_watermark("kev") is None
    async with served(reply, reply) as (client, _):
        with pytest.raises(InvalidResponseError, match="health check too"):
            await client.get_watermark("kev")
    async with served(reply, http(200, b'{"status": "healthy"}', 'ETag: "0"')) as (client, _):
        with pytest.raises(InvalidResponseError):
            await client.get_watermark("kev")
    async with served(reply, Reply(end="reset")) as (client, _):
        assert await client.get_watermark("kev") is None


@each({**NO_SERVICE, **NOT_FOUND, "empty": said(b""), "an object": said({"error": "none"})})
@pytest.mark.parametrize(
    "shown",
    [
        lambda client: client.get_watermark("kev"),
        lambda client: client.update_watermark("kev", JANUARY),
        lambda client: client.health_check(),
    ],
    ids=["read", "write", "health"],
)
async def test_service_that_showed_more_is_believed_in_its_own_words_only(
    reply: Reply, shown: Callable[[StorageServiceClient], Any]
) -> None:
    """Whoever showed an `ETag` once, on whatever route, says *never collected* with its marks."""
    kept = http(
        200, b'{"source_id": "kev", "status": "healthy"}', 'ETag: "0"'
    )  # a watermark, and a health check
    async with served(kept, reply, said(OWN, 'ETag: "0"')) as (client, _):
        await shown(client)
        with pytest.raises(InvalidResponseError):
            await client.get_watermark("kev")
        assert await client.get_watermark("kev") is None


async def test_answer_without_its_tag_takes_no_precondition_away() -> None:
    """A gateway or a cache that drops the tag of one answer does not make a write unfenced."""
    tagged, stripped = watermark("kev", 'ETag: "7"'), watermark("nvd")
    async with served(tagged, stripped, tagged) as (client, server):
        mine = await client.get_watermark("kev")
        assert mine is not None
        await client.get_watermark("nvd")
        await client.update_watermark("kev", JANUARY, if_match=mine.etag, run_id="r")
        await client.update_watermark("kev", JANUARY, if_none_match=True)
    assert b'\r\nIf-Match: "7"\r\n' in server.requests[2]
    assert b'"run_id":"r"' in server.requests[2]
    assert b"\r\nIf-None-Match: *\r\n" in server.requests[3]


async def test_version_of_another_client_is_sent_to_a_service_that_showed_none() -> None:
    """It is from this service, whose first answer lost its tag; no other addition is sent."""
    async with served(watermark("kev")) as (client, server):
        await client.get_watermark("kev")
        await client.update_watermark("kev", JANUARY, if_match='"7"', run_id="r")
    assert b'\r\nIf-Match: "7"\r\n' in server.requests[1]
    assert b"run_id" not in server.requests[1]


async def test_health_check_shows_the_additions_before_the_first_write() -> None:
    """Its tag is the embedded service's, so that a first write is fenced, too."""
    healthy = http(200, b'{"status": "healthy"}', 'ETag: "0"')
    async with served(healthy, watermark("kev", 'ETag: "1"')) as (client, server):
        await client.health_check()
        await client.update_watermark("kev", JANUARY, if_none_match=True, run_id="r")
    assert b"\r\nIf-None-Match: *\r\n" in server.requests[1]
    assert b'"run_id":"r"' in server.requests[1]


@pytest.mark.parametrize(
    "own", [said({"error": "none"}, 'ETag: "0"'), said(OWN)], ids=["the tag", "the field"]
)
async def test_either_mark_makes_a_404_the_services_own(own: Reply) -> None:
    """A proxy may take the tag away, and a later service may word it otherwise."""
    async with served(watermark("kev", 'ETag: "7"'), own) as (client, _):
        assert await client.get_watermark("kev") is not None
        assert await client.get_watermark("kev") is None


CONTENT_TAGS = {
    "Express": 'W/"2b-GaMj3mjZbL5Zgsf1eZvgRFVq7Hw"',
    "Rack": 'W/"9a0364b9e99bb480dd25e1f0284c8555"',
    "Django": '"9a0364b9e99bb480dd25e1f0284c8555"',
    "Spring": '"09a0364b9e99bb480dd25e1f0284c8555"',
    "nginx": '"65937f00-1c5"',
}


@pytest.mark.parametrize("tag", CONTENT_TAGS.values(), ids=list(CONTENT_TAGS))
async def test_service_that_a_framework_tags_is_a_base_service(tag: str) -> None:
    """A tag made of the content shows none of the additions, and a weak one fences nothing."""
    read = watermark("kev", f"ETag: {tag}", run_id=7)
    none = said({"error": "Watermark not found"}, f"ETag: {tag}")
    async with served(read, none, read, watermark("nvd")) as (client, server):
        stored = await client.get_watermark("kev")
        assert stored is not None
        assert await client.get_watermark("nvd") is None
        assert not client.has_additions
        await client.update_watermark("kev", JANUARY, if_match=stored.etag, run_id="r")
        await client.update_watermark("nvd", JANUARY, if_none_match=True, run_id="r")
    conditions = [b"\r\nIf-Match: " in each for each in server.requests[2:]]
    assert conditions == [not tag.startswith("W/"), False]
    assert not [each for each in server.requests if b"run_id" in each or b"If-None" in each]


@pytest.mark.parametrize(
    ("if_match", "is_extended"),
    [('"7"', True), ('"7", "8"', True), ("*", True), ('"65937f00-1c5"', False)],
)
async def test_version_of_another_client_shows_what_the_service_is(
    if_match: str, is_extended: bool
) -> None:
    """Before the first answer, a version is the only sign of the embedded service."""
    async with served(watermark()) as (client, server):
        await client.update_watermark("kev", JANUARY, if_match=if_match, run_id="r")
    assert f"\r\nIf-Match: {if_match}\r\n".encode() in server.requests[0]
    assert (b"run_id" in server.requests[0]) is is_extended


async def test_404_that_repeats_a_secret_does_not_tell_it() -> None:
    """What a gateway says is in the error, without the token that it echoes."""
    async with served(said(b"no backend for Bearer s3cret-token"), token="s3cret-token") as (
        client,
        _,
    ):
        with pytest.raises(InvalidResponseError, match="no backend") as caught:
            await client.get_watermark("kev")
    assert "s3cret" not in str(caught.value)


@asynccontextmanager
async def gateway(backend: str, state: dict[str, bool]) -> AsyncIterator[str]:
    """Run a gateway that passes requests on, unless its service is down."""

    async def passed(request: web.Request) -> web.Response:
        if state["down"]:
            return web.json_response({"message": "not found"}, status=404)
        conditions = {name: each for name, each in request.headers.items() if "-Match" in name}
        async with session.request(
            request.method, backend + request.raw_path, data=await request.read(),
            headers={"Content-Type": "application/json", **conditions},
        ) as answer:  # fmt: skip
            told = {name: answer.headers[name] for name in ("ETag",) if name in answer.headers}
            if state.get("weakens"):
                told = {name: f"W/{each}" for name, each in told.items()}
            body = await answer.read()
            return web.Response(
                status=answer.status, body=body, headers=told, content_type="application/json"
            )

    app = web.Application()
    app.router.add_route("*", "/{tail:.*}", passed)
    runner = web.AppRunner(app, access_log=None)
    async with aiohttp.ClientSession() as session:
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            yield f"http://127.0.0.1:{runner.addresses[0][1]}"
        finally:
            await runner.cleanup()


async def test_gateway_of_the_embedded_service_is_told_from_it(tmp_path: Path) -> None:
    """A health check, as every run begins with, is enough to know whose words count."""
    state = {"down": False}
    async with (
        embedded_service(tmp_path / "w.db") as backend,
        gateway(backend, state) as address,
        StorageServiceClient(address) as client,
    ):
        assert await client.health_check()
        assert await client.get_watermark("kev") is None
        state["down"] = True
        for call in (client.get_watermark("kev"), client.update_watermark("kev", JANUARY)):
            with pytest.raises(StorageError, match="404"):
                await call
        state["down"] = False
        await client.update_watermark("kev", JANUARY)
        state["down"] = True
        with pytest.raises(StorageError, match="404"):
            await client.watermark_history("kev")


async def test_version_that_a_gateway_weakens_still_fences(tmp_path: Path) -> None:
    """Whatever compresses on the way makes tags weak, which no `If-Match` may have."""
    async with (
        embedded_service(tmp_path / "w.db") as backend,
        gateway(backend, {"down": False, "weakens": True}) as address,
        StorageServiceClient(address) as client,
    ):
        assert await client.health_check()
        assert client.has_additions
        first = await client.update_watermark("kev", JANUARY, if_none_match=True, run_id="r")
        read = await client.get_watermark("kev")
        assert read is not None
        assert (read.etag, read.run_id) == (first.etag, "r") == ('"1"', "r")
        await client.update_watermark("kev", JANUARY, if_match=read.etag)
        with pytest.raises(WatermarkConflictError):
            await client.update_watermark("kev", JANUARY, if_match=read.etag)


async def test_services_own_time_is_believed_before_a_gateways_date() -> None:
    """A gateway writes a `Date` by its own clock, and leaves the service's header as it is."""
    told = "2024-01-01T12:00:00.250000+00:00"
    headers = ("Date: Mon, 01 Jan 2024 20:00:00 GMT", f"X-Storage-Time: {told}")
    reply = http(200, b'{"source_id": "kev", "status": "running"}', *headers)
    async with served(reply) as (client, _):
        read = await client.get_watermark("kev")
    assert read is not None
    assert read.answered_at == datetime.fromisoformat(told)


async def test_embedded_service_tells_its_time_in_a_header_of_its_own(tmp_path: Path) -> None:
    """It is the time by which its watermarks are dated, with its fractions."""
    async with (
        embedded_service(tmp_path / "w.db") as address,
        StorageServiceClient(address) as client,
        aiohttp.ClientSession() as session,
    ):
        stored = await client.update_watermark("kev", JANUARY)
        async with session.get(f"{address}/api/v1/watermarks/kev") as answer:
            told = datetime.fromisoformat(answer.headers["X-Storage-Time"])
    assert stored.last_run_timestamp is not None
    assert stored.last_run_timestamp <= told
