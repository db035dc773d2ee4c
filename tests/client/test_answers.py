"""Answers that published clients get wrong, from raw sockets; ``test_connections`` has the rest."""

from __future__ import annotations

import asyncio
import gzip
import json
import tracemalloc
import zlib
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import aiohttp
import pytest

from ladon_storage import (
    InvalidResponseError,
    StorageConnectionError,
    StorageError,
    StorageResponseError,
    StorageServiceClient,
    StorageTimeoutError,
)
from ladon_storage.client import transport
from tests.raw_server import Reply, http, served, watermark

NOON = datetime(2024, 1, 1, 12, tzinfo=UTC)
GOOD = json.dumps({"source_id": "kev", "status": "success"}).encode()
HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"


async def ask(client: StorageServiceClient, method: str = "GET") -> None:
    if method == "GET":
        await client.get_watermark("kev")
    else:
        await client.update_watermark("kev", NOON)


async def failure(client: StorageServiceClient, method: str = "GET") -> StorageError:
    with pytest.raises(StorageError) as caught:
        await ask(client, method)
    return caught.value


@pytest.mark.parametrize("method", ["GET", "PUT"])
@pytest.mark.parametrize("status", [500, 503, 599])
@pytest.mark.parametrize(
    "rest",
    [
        Reply(b"\r\n", "close"),
        Reply(b"Content-Length: 0\r\n\r\n"),
        Reply(b"Content-Type: application/json\r\nContent-Length: 90\r\n\r\n{", "stall"),
        Reply(b"Content-Type: application/json\r\nContent-Length: 90\r\n\r\n{", "reset"),
        Reply(b"Content-Encoding: gzip\r\nContent-Length: 3\r\n\r\nabc"),
    ],
    ids=["no headers", "no body", "a body that stalls", "a body that breaks off", "no gzip"],
)
async def test_5xx_is_judged_by_its_status(method: str, status: int, rest: Reply) -> None:
    """Whatever the body is, and whether it comes, the status says what happened, and is counted."""
    reply = Reply(f"HTTP/1.1 {status} X\r\n".encode() + rest.data, rest.end)
    async with served(reply) as (client, _):
        error = await failure(client, method)
        assert isinstance(error, StorageResponseError)
        assert (error.status, error.transient) == (status, True)
        assert client.circuit_breaker.failure_count == 1


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("7", 7.0),
        (" 7 ", 7.0),
        ("300", 300.0),
        ("301", 300.0),
        ("1000000000", 300.0),
        ("9" * 500, 300.0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", 300.0),
        ("0", None),
        ("-5", None),
        ("1.5", None),
        ("inf", None),
        ("nan", None),
        ("", None),
        ("soon", None),
        ("²", None),
        ("Wed, 21 Oct 2015 07:28:00 GMT", None),
        ("Wed, 99 Oct 2015 99:28:00 GMT", None),
        ("Mon, 01 Jan 0001 00:00:00 +2359", None),
    ],
)
@pytest.mark.parametrize(("status", "counted"), [(429, 0), (503, 1)])
async def test_retry_after_is_honoured_ignored_or_capped(
    value: str, seconds: float | None, status: int, counted: int
) -> None:
    """The wish to wait is told in seconds, within reason, and never breaks the error it is in."""
    async with served(http(status, b"", f"Retry-After: {value}")) as (client, _):
        error = await failure(client)
        assert isinstance(error, StorageResponseError)
        assert (error.status, error.retry_after, error.transient) == (status, seconds, True)
        assert client.circuit_breaker.failure_count == counted


async def test_retry_after_as_a_date_is_the_seconds_until_then() -> None:
    """A date is as good as seconds."""
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=200), usegmt=True)
    async with served(http(503, b"", f"Retry-After: {date}")) as (client, _):
        error = await failure(client)
    assert isinstance(error, StorageResponseError)
    assert error.retry_after is not None
    assert 150 < error.retry_after <= 200


async def test_retry_after_is_counted_by_the_clock_that_named_it() -> None:
    """Where our clock differs from the service's, the seconds are still those that it meant."""
    then = datetime(2000, 1, 1, tzinfo=UTC)
    dates = [format_datetime(each, usegmt=True) for each in (then, then + timedelta(seconds=9))]
    reply = http(503, b"", f"Date: {dates[0]}", f"Retry-After: {dates[1]}")
    async with served(reply) as (client, _):
        error = await failure(client)
    assert isinstance(error, StorageResponseError)
    assert error.retry_after == 9


@pytest.mark.parametrize("sent", [0, 100, 2_000_000], ids=["nothing", "a part", "all of it"])
async def test_large_503_on_a_pool_of_one_gives_the_slot_back(
    monkeypatch: pytest.MonkeyPatch, sent: int
) -> None:
    """The connection is free before anybody waits, however much of the error is still to come."""
    monkeypatch.setattr(transport, "ERROR_BODY_SECONDS", 60)
    large = http(503, b"x" * sent, length=2_000_000, end="stall")
    async with served(large, watermark(), max_connections=1, timeout=60) as (client, _):
        async with asyncio.timeout(5):
            assert isinstance(await failure(client), StorageResponseError)
            assert await client.get_watermark("kev") is not None


@pytest.mark.parametrize("sent", [b"", b"because"])
@pytest.mark.parametrize("status", [400, 404])
async def test_4xx_without_an_end_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, status: int, sent: bytes
) -> None:
    """What a refusal says is waited for only briefly, and the refusal stays one."""
    monkeypatch.setattr(transport, "ERROR_BODY_SECONDS", 0.05)
    stalled = http(status, sent, length=2_000_000, end="stall")
    async with served(stalled, watermark(), max_connections=1, timeout=60) as (client, _):
        async with asyncio.timeout(5):
            error = await failure(client)
            if status == 404:  # nobody knows whether it says *never collected*
                assert isinstance(error, StorageTimeoutError)
                assert error.transient
            else:
                assert isinstance(error, StorageResponseError)
                assert error.status == 400
            assert await client.get_watermark("kev") is not None


@pytest.mark.parametrize("method", ["GET", "PUT"])
@pytest.mark.parametrize(
    ("reply", "cause"),
    [
        (Reply(end="reset"), aiohttp.ClientOSError),
        (Reply(end="close"), aiohttp.ServerDisconnectedError),
        (Reply(HEAD[:20], "close"), aiohttp.ServerDisconnectedError),
        (Reply(HEAD + GOOD, "reset"), aiohttp.ClientPayloadError),
        (Reply(HEAD + GOOD, "close"), aiohttp.ClientPayloadError),
        (Reply(HEAD.replace(b"Content-Length: 1000", b"Transfer-Encoding: chunked") + b"5\r\n{",
               "close"), aiohttp.ClientPayloadError),
    ],
    ids=["a reset", "a close", "a close in the headers", "a reset in the body",
         "a close in the body", "a close in a chunk"],
)  # fmt: skip
async def test_answer_that_breaks_off_is_a_failure(
    method: str, reply: Reply, cause: type[Exception]
) -> None:
    """However a connection ends before the answer does, the service failed, and may recover."""
    async with served(reply, max_connections=1) as (client, _):
        error = await failure(client, method)
        assert type(error) is StorageConnectionError
        assert error.transient
        assert isinstance(error.__cause__, cause)
        assert client.circuit_breaker.failure_count == 1


@pytest.mark.parametrize("method", ["GET", "PUT"])
@pytest.mark.parametrize(
    "reply",
    [
        pytest.param(http(200, GOOD[:-1]), id="truncated JSON"),
        pytest.param(http(200, b"<p>Hi", "Content-Type: text/html"), id="HTML"),
        pytest.param(http(200), id="empty"),
        pytest.param(Reply(b"HTTP/1.1 204 X\r\n\r\n"), id="204"),
        pytest.param(http(202, GOOD), id="202"),
        pytest.param(http(200, b'{"source_id": "kev", "status": "\xff"}'), id="bad UTF-8"),
        pytest.param(http(200, b"null"), id="null"),
        pytest.param(http(200, b"[]"), id="a list"),
        pytest.param(http(200, b'"kev"'), id="a text"),
        pytest.param(http(200, b"{}"), id="an empty object"),
        pytest.param(http(200, b"[" * 100_000), id="deep nesting"),
        pytest.param(watermark("another"), id="of another source"),
        pytest.param(http(200, b'{"status": "healthy"}'), id="a status of a stub"),
        pytest.param(http(200, b'{"status": "error"}', 'ETag: "7"'), id="a stub with a tag"),
        pytest.param(http(200, b'{"status": null}'), id="no status"),
        pytest.param(http(200, b'{"status": "success"}'), id="a status alone"),
        pytest.param(http(200, b'{"status": "running", "ledger": 7}'), id="a status and no more"),
        pytest.param(
            http(200, b'{"status": "success", "data": %b}' % GOOD), id="a watermark in an envelope"
        ),
        pytest.param(
            http(200, b'{"status": "failed", "message": "Session expired"}'), id="a refusal"
        ),
        pytest.param(watermark(status=7), id="a wrong status"),
        pytest.param(watermark(last_successful_timestamp=1704110400), id="a number for a time"),
        pytest.param(watermark(last_successful_timestamp="yesterday"), id="a text for a time"),
        pytest.param(watermark(last_run_timestamp="0001-01-01T00:00:00+14:00"), id="before year 1"),
        pytest.param(watermark(records_collected="many"), id="a text for a number"),
        pytest.param(watermark("kev", 'ETag: "7"', run_id=42), id="a wrong addition"),
        pytest.param(watermark(run_id=42, status=7), id="a wrong status beside a foreign field"),
    ],
)
async def test_answer_that_breaks_the_contract_is_an_error_of_ours(
    method: str, reply: Reply
) -> None:
    """What is no watermark is never a missing one, counts, and is not worth repeating."""
    async with served(reply) as (client, _):
        error = await failure(client, method)
        assert isinstance(error, InvalidResponseError)
        assert error.status == int(reply.data[9:12])
        assert not error.transient
        assert "'kev'" in str(error)
        assert client.circuit_breaker.failure_count == 1


@pytest.mark.parametrize("method", ["GET", "PUT"])
@pytest.mark.parametrize(
    "foreign",
    [{"run_id": 42}, {"ledger": "L-7"}, {"ledger": [1, 2]}, {"lease_seconds": "none"}],
    ids=str,
)
async def test_foreign_field_of_a_base_service_is_no_addition(
    method: str, foreign: dict[str, object]
) -> None:
    """Without a tag, a field that is named as an addition and is none is an unknown one."""
    fields = {"status": "success", "last_successful_timestamp": NOON.isoformat(), **foreign}
    for each in (fields, {"source_id": "kev", **fields}):
        async with served(http(200, json.dumps(each).encode())) as (client, _):
            await ask(client, method)
            read = await client.get_watermark("kev")
            assert read is not None
            assert (read.source_id, read.last_successful_timestamp) == ("kev", NOON)
            assert (read.run_id, read.lease_seconds, read.ledger) == (None, None, None)
            assert client.circuit_breaker.failure_count == 0


@pytest.mark.parametrize("type_", ["text/html", "text/plain; charset=latin-1", "x", ""])
async def test_watermark_with_a_wrong_content_type_is_one(type_: str) -> None:
    """A service is judged by what it says, not by what it calls it."""
    async with served(watermark("kev", f"Content-Type: {type_}")) as (client, _):
        assert await client.get_watermark("kev") is not None


@pytest.mark.parametrize("tag", [None, '"7"'])
@pytest.mark.parametrize(
    "fields",
    [
        {"status": "failed", "error_message": "boom"},
        {"status": "running", "records_collected": 0},
        {"status": "running"},
        {"status": "failed"},
        {"last_successful_timestamp": None},
        {"status": "paused", "source_id": "kev", "owner": {"team": 7}},
    ],
    ids=["a failure", "a run", "a run alone", "a failure alone", "a timestamp", "unknown fields"],
)
async def test_answer_with_few_or_unknown_fields_is_a_watermark(
    fields: dict[str, object], tag: str | None
) -> None:
    """An older or newer service is understood, and tells the version it is at if it knows one."""
    headers = [f"ETag: {tag}"] if tag else []
    async with served(http(200, json.dumps(fields).encode(), *headers)) as (client, _):
        read = await client.get_watermark("kev")
        assert read is not None
        assert (read.source_id, read.etag) == ("kev", tag)
        assert dict(read) == {"source_id": "kev", **fields}


@pytest.mark.parametrize("beside", [{}, {"message": "stored"}, {"ledger": 7}], ids=str)
@pytest.mark.parametrize(
    "read",
    [
        *(watermark(), http(404, b'{"error": "no source kev"}')),
        *(http(403), http(500), Reply(end="reset")),
    ],
    ids=["a watermark", "none yet", "a refusal", "a failure", "no answer"],
)
async def test_write_that_is_answered_by_a_status_alone_is_read_back(
    read: Reply, beside: dict[str, object]
) -> None:
    """A base service may answer little to a write; one that has no watermark then is none."""
    little = http(200, json.dumps({"status": "success", **beside}).encode())
    async with served(little, read) as (client, server):
        stored = await client.update_watermark("kev", NOON)
        assert (stored.source_id, stored.status, stored.ledger) == ("kev", "success", None)
        assert client.circuit_breaker.failure_count == 0
    assert [each.split(b" ", 2)[:2] for each in server.requests[:2]] == [
        [b"PUT", b"/api/v1/watermarks/kev"],
        [b"GET", b"/api/v1/watermarks/kev"],
    ]


async def test_write_whose_service_is_not_found_afterwards_was_not_stored() -> None:
    """Something said success, and stored nothing."""
    gateway = http(404, b'{"message": "no route matched"}')
    async with served(http(200, b'{"status": "success"}'), gateway) as (client, _):
        assert isinstance(await failure(client, "PUT"), InvalidResponseError)
        assert client.circuit_breaker.failure_count == 1


async def test_embedded_service_answers_a_write_in_full() -> None:
    """What has its versions, and answers a status alone, stands before it."""
    stub = http(200, b'{"status": "success"}')
    async with served(watermark("kev", 'ETag: "7"'), stub) as (client, server):
        await ask(client)
        assert isinstance(await failure(client, "PUT"), InvalidResponseError)
    assert len(server.requests) == 2


@pytest.mark.parametrize("at_once", [0, len(HEAD)], ids=["headers", "a body"])
@pytest.mark.parametrize("method", ["GET", "PUT"])
async def test_answer_that_drips_ends_with_the_timeout(method: str, at_once: int) -> None:
    """The timeout is one for the whole request, not for each byte, and counts."""
    drip = Reply(HEAD + GOOD, pause=0.05, pause_from=at_once)
    async with served(drip, timeout=0.3) as (client, _):
        error = await failure(client, method)
        assert isinstance(error, StorageTimeoutError)
        assert isinstance(error, TimeoutError)
        assert error.transient
        assert "0.3 s" in str(error)
        assert client.circuit_breaker.failure_count == 1


@pytest.mark.parametrize(
    "data",
    [
        b"220 mail.example ESMTP\r\n\r\n",
        b"HTTP/1.1 abc OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
    ],
    ids=["another protocol", "no number", "an oversized header", "no header", "a negative length"],
)
async def test_answer_that_is_no_http_is_not_a_400(data: bytes) -> None:
    """What aiohttp reports as a 400 is an answer that breaks the contract, and no refusal."""
    async with served(Reply(data, "stall")) as (client, _):
        error = await failure(client)
        assert isinstance(error, InvalidResponseError)
        assert error.status is None
        assert not error.transient
        assert client.circuit_breaker.failure_count == 1


@pytest.mark.parametrize("length", [9_000, 2**16])
async def test_long_header_of_a_gateway_is_read(length: int) -> None:
    """Policies, cookies in parts and lists of proxies are longer than aiohttp's default."""
    async with served(watermark("kev", f"Content-Security-Policy: {'x' * length}")) as (client, _):
        assert await client.get_watermark("kev") is not None


async def test_header_that_is_too_long_is_named_as_such() -> None:
    """What answers is HTTP, and its operator learns what to look for."""
    async with served(watermark("kev", f"Set-Cookie: {'x' * (2**16 + 1)}")) as (client, _):
        error = await failure(client)
    assert isinstance(error, InvalidResponseError)
    assert f"a header of more than {2**16} bytes" in str(error)
    assert "not HTTP" not in str(error)


def packed(encoding: str, body: bytes) -> bytes:
    return gzip.compress(body, mtime=0) if "gzip" in encoding else zlib.compress(body)


@pytest.mark.parametrize("encoding", ["gzip", "x-gzip", "GZIP", "deflate"])
async def test_packed_answer_is_unpacked(encoding: str) -> None:
    """A proxy may pack what the client asked for plain."""
    reply = http(200, packed(encoding.lower(), GOOD), f"Content-Encoding: {encoding}")
    async with served(reply) as (client, server):
        assert await client.get_watermark("kev") is not None
        assert b"accept-encoding: identity" in server.requests[0].lower()


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
async def test_bomb_is_refused_unpacked_no_further_than_the_limit(encoding: str) -> None:
    """Little that unpacks to much costs neither memory nor time, and counts."""
    bomb = http(200, packed(encoding, b" " * 50_000_000), f"Content-Encoding: {encoding}")
    async with served(bomb) as (client, _):
        tracemalloc.start()
        try:
            error = await failure(client)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert isinstance(error, InvalidResponseError)
        assert f"more than {2**20} bytes" in str(error)
        assert peak < 8 * 2**20
        assert client.circuit_breaker.failure_count == 1


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        ("gzip", b"no gzip"),
        ("gzip, gzip", gzip.compress(GOOD, mtime=0)),
        ("br", GOOD),
        ("x" * 900, GOOD),
    ],
)
async def test_what_cannot_be_unpacked_is_an_error_of_ours(encoding: str, body: bytes) -> None:
    """A broken or unknown packing breaks the contract, and its name does not fill the log."""
    async with served(http(200, body, f"Content-Encoding: {encoding}")) as (client, _):
        error = await failure(client)
        assert isinstance(error, InvalidResponseError)
        assert len(str(error)) < 300
        assert client.circuit_breaker.failure_count == 1


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize(("spaces", "fits"), [(0, True), (1, False), (5_000_000, False)])
async def test_plain_answer_is_read_up_to_the_limit(chunked: bool, spaces: int, fits: bool) -> None:
    """The limit is exact, also where nobody tells the length, and the slot comes back."""
    body = GOOD + b" " * spaces
    head = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {len(body)}"
    sent = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) if chunked else body
    reply = Reply(f"HTTP/1.1 200 X\r\n{head}\r\n\r\n".encode() + sent)
    async with served(reply, max_response_bytes=len(GOOD), max_connections=1) as (client, _):
        for _ in range(2):
            if fits:
                await ask(client)
            else:
                assert isinstance(await failure(client), InvalidResponseError)


@pytest.mark.parametrize("length", ["Transfer-Encoding: chunked", "Content-Length: 9000000000"])
async def test_answer_without_an_end_is_read_no_further_than_the_limit(length: str) -> None:
    """What is too large already is not waited for, and its connection is given up."""
    head = f"HTTP/1.1 200 X\r\n{length}\r\n\r\n".encode()
    chunk = b"%x\r\n%b\r\n" % (2_000_000, b" " * 2_000_000)
    endless = Reply(head + chunk, "stall")
    async with served(endless, watermark(), max_connections=1, timeout=60) as (client, server):
        async with asyncio.timeout(5):
            assert isinstance(await failure(client), InvalidResponseError)
            await ask(client)
        assert server.connections == 2


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("method", ["GET", "PUT"])
async def test_redirect_is_not_followed(method: str, status: int) -> None:
    """A write is not turned into a read, nor a token sent elsewhere; the error names the place."""
    elsewhere = "Location: https://u:pw@elsewhere.example/x?key=pw#pw"
    async with served(http(status, b"", elsewhere)) as (client, server):
        error = await failure(client, method)
        assert isinstance(error, StorageResponseError)
        assert (error.status, error.transient) == (status, False)
        assert "https://elsewhere.example/x" in str(error)
        assert "pw" not in str(error)
        assert client.circuit_breaker.failure_count == 0
        assert len(server.requests) == 1


@pytest.mark.parametrize("status", [300, 304, 400, 401, 403, 405, 408, 410, 418, 425, 429, 451])
async def test_refusal_raises_and_does_not_count(status: int) -> None:
    """A service that says no works; only what may pass by itself is worth repeating."""
    reply = Reply(f"HTTP/1.1 {status} X\r\nContent-Length: 0\r\n\r\n".encode())
    async with served(reply) as (client, _):
        error = await failure(client)
        assert isinstance(error, StorageResponseError)
        assert error.status == status
        assert error.transient is (status in (408, 425, 429))
        assert client.circuit_breaker.failure_count == 0
