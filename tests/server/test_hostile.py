"""Nothing that a client sends makes a 5xx, and every refusal says in JSON what is wrong."""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ladon_storage.server import requests
from tests.service import Answer, Caller, calling, embedded_service, path

# One service serves all examples of a test: what one leaves behind is there for the next.
hostile = settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
JSON = {"Content-Type": "application/json"}


@pytest.fixture
async def call(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> AsyncIterator[Caller]:
    """Call a service that must not log a fault while it is called."""
    async with (
        embedded_service(tmp_path / "watermarks.db") as address,
        calling(address) as caller,
    ):
        yield caller
        assert (await caller("GET", "/health")).status == 200
    # `caplog.records` has those of the teardown alone.
    assert [each for each in caplog.get_records("call") if each.levelno >= logging.ERROR] == []


def check_refused(answer: Answer) -> None:
    """Check that an answer is a 4xx in the one shape of all errors."""
    assert 400 <= answer.status < 500, answer.text
    assert set(answer.json) == {"error", "field"}
    assert re.fullmatch(r"\S.*\.", answer.json["error"])


def check_sane(answer: Answer) -> None:
    """Check that an answer is done, or refused in the one shape of all errors."""
    if answer.status >= 300:
        check_refused(answer)


@hostile
@given(body=st.binary(max_size=200))
async def test_any_bytes_as_a_body_are_refused(call: Caller, body: bytes) -> None:
    """A body that is no JSON object with a timestamp is a 4xx."""
    check_refused(await call("PUT", path("kev"), data=body, headers=JSON))


@pytest.mark.parametrize(
    ("body", "status", "field"),
    [
        ('{"timestamp": "2026-01-01", "timestamp": "2026-01-02"}', 400, "timestamp"),
        ('{"timestamp": "2026-01-01", "unknown": 1, "unknown": 1}', 400, "unknown"),
        ('{"timestamp": "2026-01-01", "ledger": {"a": {"b": 1, "b": 2}}}', 400, "b"),
        ('{"timestamp": "2026-01-01", "time\\u0073tamp": "2026-01-02"}', 400, "timestamp"),
        ('{"timestamp": "2026-01-01", "records_collected": true}', 422, "records_collected"),
        ('{"timestamp": "2026-01-01", "records_collected": "5"}', 422, "records_collected"),
        ('{"timestamp": "2026-01-01", "lease_seconds": true}', 422, "lease_seconds"),
        ('{"timestamp": "2026-01-01", "lease_seconds": "60"}', 422, "lease_seconds"),
    ],
)
async def test_ambiguous_body_is_refused(call: Caller, body: str, status: int, field: str) -> None:
    """A key that stands twice, and a value that is only nearly a number, are never guessed."""
    answer = await call("PUT", path("kev"), data=body.encode(), headers=JSON)
    check_refused(answer)
    assert (answer.status, answer.json["field"]) == (status, field)
    assert (await call("GET", path("kev"))).status == 404


async def test_number_that_no_json_has_keeps_no_outcome_from_being_written(call: Caller) -> None:
    """Python writes NaN into what it calls JSON; the run succeeded all the same."""
    ledger = '{"a": NaN, "b": [-Infinity, 1e999], "c": 1.5}'
    body = f'{{"timestamp": "2026-01-01T00:00:00Z", "ledger": {ledger}}}'
    answer = await call("PUT", path("kev"), data=body.encode(), headers=JSON)
    assert (answer.status, answer.json["ledger"]) == (201, {"a": None, "b": [None] * 2, "c": 1.5})
    assert (await call("GET", path("kev"))).json["ledger"] == answer.json["ledger"]


@pytest.mark.parametrize("encoding", ["nosuch", "gzip, gzip", "x-gzip", "compress", "gzip;q=1"])
async def test_unknown_encoding_of_a_body_is_refused(call: Caller, encoding: str) -> None:
    """A body in an encoding that is not decoded is not read as if it had none."""
    headers = {**JSON, "Content-Encoding": encoding}
    answer = await call("PUT", path("kev"), data=b'{"timestamp": "2026-01-01"}', headers=headers)
    check_refused(answer)
    assert (answer.status, answer.json["field"]) == (415, "Content-Encoding")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)
timestamps = json_values | st.datetimes(timezones=st.sampled_from([None]) | st.timezones()).map(
    lambda instant: instant.isoformat()
)


@hostile
@given(
    body=st.dictionaries(
        st.sampled_from(["timestamp", "status", "error_message", "records_collected", "run_id"]),
        json_values | timestamps | st.text(),
    )
    | json_values,
    timestamp=timestamps,
)
async def test_any_json_as_a_body_is_stored_or_refused(
    call: Caller, body: Any, timestamp: Any
) -> None:
    """Values of every type in every field, also beyond JSON as NaN is, never make a 5xx."""
    if isinstance(body, dict):
        body = {"timestamp": timestamp, **body}
    data = json.dumps(body).encode()
    check_sane(await call("PUT", path("kev"), data=data, headers=JSON))
    check_sane(await call("GET", path("kev")))
    check_sane(await call("POST", path("kev", "/reset"), data=data, headers=JSON))
    check_sane(await call("GET", path("kev", "/history")))


segments = st.one_of(
    st.text(max_size=90).map(quote),
    st.binary(max_size=40).map(quote),
    st.text("az09%.{}|^~:@!$&'()*+,;=-[]", max_size=40),
    st.sampled_from(["", ".", "..", "%2E", "%2e%2E", "%2F", "%2f..%2f", "%00", "%FF", "%C0%80",
                     "%ED%A0%80", "%", "%2", "%zz", "%25", "%252F", "a" * 256, "%F0%9F%98%80"]),
)  # fmt: skip


@hostile
@given(segment=segments)
async def test_any_path_segment_is_a_source_or_refused(call: Caller, segment: str) -> None:
    """Whatever stands where a source's name belongs names one source exactly, or is a 4xx."""
    route = f"/api/v1/watermarks/{segment}"
    put = await call("PUT", route, {"timestamp": "2024-01-01T00:00:00Z"})
    check_sane(put)
    for below in ("", "/history"):
        check_sane(await call("GET", route + below))
    if put.status < 300:
        again = await call("GET", path(put.json["source_id"]))
        assert (again.status, again.etag) == (200, put.etag)
    check_sane(await call("DELETE", route))


@pytest.mark.parametrize(
    "segment",
    [".", "..", "%2E", "%2e%2E", "%00", "a%0Ab", "%FF", "%C0%80", "%ED%A0%80", "%", "%2", "%zz",
     "a" * 256, "", "%E2%80%AEkev", "ke%E2%80%8Bv", "%EF%BB%BFkev", "kev%20", "%C2%A0kev",
     "cafe%CC%81", "a%E2%80%A8b"],
)  # fmt: skip
async def test_segment_that_names_no_source_is_400(call: Caller, segment: str) -> None:
    """It is refused with the field: a 404 would say that the source was never collected."""
    answer = await call("GET", f"/api/v1/watermarks/{segment}")
    check_refused(answer)
    assert (answer.status, answer.json["field"]) == (400, "source_id")


@hostile
@given(query=st.text(st.characters(codec="ascii", exclude_characters="# \t\r\n"), max_size=60))
async def test_any_query_is_answered_or_refused(call: Caller, query: str) -> None:
    """No query makes a 5xx, on the list and on a history."""
    raw = "".join(c if "!" <= c <= "~" else f"%{ord(c):02X}" for c in query)
    for route in ("/api/v1/watermarks", path("kev", "/history")):
        for prefix in ("", "limit=", "after=", "before=", "older_than_seconds=", "status="):
            check_sane(await call("GET", f"{route}?{prefix}{raw}"))


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b'{"timestamp": "2024-01-01T00:00:00Z", "run_id": "\\ud800"}', 400),
        (b"[" * 100_000, 400),
        (b'{"timestamp":' * 50_000, 400),
        (b'{"timestamp": NaN}', 422),
        (b'{"timestamp": "2024-01-01T00:00:00Z", "records_collected": NaN}', 422),
        (b'{"timestamp": "2024-01-01T00:00:00Z", "records_collected": 1e400}', 422),
        (b'{"timestamp": "2024-01-01T00:00:00Z", "records_collected": ' + b"9" * 5000 + b"}", 400),
        (b'{"timestamp": "0001-01-01T00:00:00+14:00"}', 422),
        (b'{"timestamp": "9999-12-31T23:59:59-14:00"}', 422),
        (b'{"timestamp": "0000-01-01T00:00:00Z"}', 422),
        (b'{"timestamp": "2024-02-30T00:00:00Z"}', 422),
        (b"\xef\xbb\xbf{}", 400),
        (b'{"timestamp": "\xff"}', 400),
        ('{"timestamp": "2024-01-01T00:00:00Z"}'.encode("utf-16"), 400),
        (b"null", 422),
        (b"", 400),
    ],
)  # fmt: skip
async def test_body_that_breaks_parsers_is_refused(call: Caller, body: bytes, status: int) -> None:
    """What is known to break parsers and databases is a 4xx with a sentence."""
    answer = await call("PUT", path("kev"), data=body, headers=JSON)
    check_refused(answer)
    assert answer.status == status


async def test_nul_and_long_texts_are_stored_as_they_are(call: Caller) -> None:
    """What JSON can say in a text survives the database."""
    text = "a\x00b\x1f\u2028😀" + "x" * 16_000
    body = {"timestamp": "2024-01-01T00:00:00Z", "status": "failed", "error_message": text}
    assert (await call("PUT", path("kev"), body)).status == 201
    assert (await call("GET", path("kev"))).json["error_message"] == text


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        ("gzip", b"no gzip"),
        ("deflate", b"no deflate"),
        ("gzip", gzip.compress(b'{"timestamp": "2024-01-01T00:00:00Z"}', mtime=0)[:-20]),
        ("gzip", gzip.compress(b" " * (64 << 20))),
    ],
)
async def test_body_in_a_broken_encoding_is_refused(
    call: Caller, encoding: str, body: bytes
) -> None:
    """A damaged or exploding compression is a 4xx, and the limit holds for what it unpacks to."""
    headers = {**JSON, "Content-Encoding": encoding}
    check_refused(await call("PUT", path("kev"), data=body, headers=headers))


@pytest.mark.parametrize("route", [path("kev"), "/nowhere", "/health"])
async def test_broken_body_that_comes_with_its_headers_is_no_fault_of_the_service(
    call: Caller, route: str
) -> None:
    """The rest of a body is dropped after its answer, which says that the connection ends."""
    body = b'{"timestamp": "2024-01-01T00:00:00Z", "status": "failed"}'
    answer = await exchange(
        call,
        f"PUT {route} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Encoding: gzip\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        + body,
    )
    assert answer.startswith(b"HTTP/1.1 4")
    assert b"\r\nConnection: close\r\n" in answer


async def exchange(call: Caller, *pieces: bytes, hang_up: bool = False) -> bytes:
    """Send raw bytes on a connection of their own, and return all that came back until its end."""
    host, _, port = call.address.removeprefix("http://").partition(":")
    async with asyncio.timeout(20):
        reader, writer = await asyncio.open_connection(host, int(port))
        try:
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
            if hang_up:
                writer.write_eof()
            return await reader.read()
        except ConnectionError:  # Refused before everything was sent.
            return b""
        finally:
            writer.close()


def statuses(received: bytes) -> list[int]:
    return [
        int(status) for status in re.findall(rb"^HTTP/1\.[01] (\d{3}) ", received, re.MULTILINE)
    ]


HEAD = (
    b"PUT /api/v1/watermarks/kev HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
)
LAST = b"\r\n\r\nGET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
BODY = b'{"timestamp": "2024-01-01T00:00:00Z"}'


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"garbage\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
        (b"GET / HTTP/9.9\r\n\r\n", 400),
        (b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: " + b"y" * 70_000 + b"\r\n\r\n", 400),
        (b"GET /" + b"y" * 70_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
        (b"GET /health HTTP/1.1\r\nHost: localhost\r\nbad header\r\n\r\n", 400),
        (b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: \x00\r\n\r\n", 400),
        (HEAD + b"Content-Length: -1\r\n\r\n", 400),
        (HEAD + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n{}", 400),
        (HEAD + b"Content-Length: 37\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\nZZ\r\n", 400),
        (HEAD + b"Connection: close\r\n\r\n", 400),
        (HEAD + b"Expect: x\r\nConnection: close\r\nContent-Length: 37\r\n\r\n" + BODY, 417),
        (b"GET /nowhere HTTP/1.1\r\nHost: localhost\r\nExpect: more\r\nConnection: close"
         b"\r\n\r\n", 417),
        (b"BREW /health HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
        (b"PROPFIND /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", 405),
        (b"OPTIONS * HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", 404),
        (b"CONNECT x:80 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", 404),
        (b"GET /\xff\xfe HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", 400),
        (HEAD + b"Authorization: a\r\nAuthorization: b\r\nIf-Match: *\r\nIf-Match: *\r\n"
         b"Content-Length: 37\r\nConnection: close\r\n\r\n" + BODY, 400),
    ],
)  # fmt: skip
async def test_raw_bytes_get_a_4xx_in_json(call: Caller, sent: bytes, status: int) -> None:
    """What is no valid request is refused in JSON as well, and disturbs nobody else."""
    received = await exchange(call, sent)
    assert statuses(received) == [status], received
    body = received.partition(b"\r\n\r\n")[2]
    assert set(json.loads(body)) == {"error", "field"}


async def test_absolute_target_and_expectation_are_served(call: Caller) -> None:
    """A proxy's form of the target and ``100-continue`` are part of HTTP."""
    received = await exchange(
        call,
        b"PUT http://x/api/v1/watermarks/kev HTTP/1.1\r\nHost: localhost\r\n"
        b"Expect: 100-continue\r\nContent-Type: application/json\r\n"
        b"Content-Length: 37\r\nConnection: close\r\n\r\n",
        BODY,
    )
    assert statuses(received) == [100, 201]


async def test_body_that_is_cut_off_stores_nothing(call: Caller) -> None:
    """A client that goes away in the middle of a body leaves no trace, in the store or the log."""
    for head in (b"Content-Length: 500\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\n25\r\n"):
        received = await exchange(call, HEAD + head + BODY, hang_up=True)
        assert all(status < 500 for status in statuses(received))
    assert (await call("GET", path("kev"))).status == 404


async def test_body_that_never_arrives_is_408(
    call: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection is not held for a body beyond a bound."""
    monkeypatch.setattr(requests, "BODY_TIMEOUT_SECONDS", 0.05)

    async def never() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.Event().wait()

    answer = await call("PUT", path("kev"), data=never(), headers=JSON)
    check_refused(answer)
    assert answer.status == 408


@hostile
@given(sent=st.binary(min_size=1, max_size=200), is_request=st.booleans())
async def test_any_raw_bytes_never_get_a_5xx(call: Caller, sent: bytes, is_request: bool) -> None:
    """Random bytes on the socket, alone or behind the start of a request, are refused quietly."""
    received = await exchange(call, HEAD + sent if is_request else sent, LAST)
    assert statuses(received)
    assert all(status < 500 for status in statuses(received)), received
