"""Tokens and passwords of the client, which are told to the service and to nobody else."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

import pytest
from yarl import URL

from ladon_storage import ConfigurationError, MockStorageClient, StorageError, StorageServiceClient
from ladon_storage.client.redaction import address_of
from tests.raw_server import RawServer, Reply, http, served

NOON = datetime(2024, 1, 1, 12, tzinfo=UTC)
SECRET = "s3cret-7Hq"
BASIC = base64.b64encode(f"collector:{SECRET}".encode())
HIDDEN = (SECRET.lower(), BASIC.decode().lower())


def told(error: BaseException | None) -> Iterator[str]:
    """Yield whatever can be read of an error, of its fields, and of the errors behind it."""
    left: list[Any] = [error]
    seen: dict[int, Any] = {}
    while left:
        each = left.pop()
        if id(each) in seen:
            continue
        seen[id(each)] = each
        yield f"{each} {each!r}"
        if isinstance(each, Mapping):
            left += [*each.keys(), *each.values()]
        elif isinstance(each, list | tuple | set | frozenset):
            left += each
        elif isinstance(each, BaseException):
            left += [each.__cause__, each.__context__, each.args, vars(each)]
        elif type(each).__module__.partition(".")[0] in ("aiohttp", "ladon_storage"):
            left += [getattr(each, "__dict__", {})]


def echo(status: int, *headers: bytes, form: bytes = b"%s") -> Callable[[bytes], Reply]:
    """Return a reply that says the credentials again that came with the request."""

    def reply(request: bytes) -> Reply:
        [sent] = [each for each in request.split(b"\r\n") if b"authorization" in each.lower()]
        body = form.replace(b"%s", sent + b" or " + SECRET.encode())
        lines = [b"HTTP/1.1 %d X" % status, b"Content-Length: %d" % len(body), *headers, b"", body]
        return Reply(b"\r\n".join(lines))

    return reply


def line(form: bytes) -> Callable[[bytes], Reply]:
    """Return a reply that is no whole answer in HTTP, and quotes the line of the credentials."""

    def reply(request: bytes) -> Reply:
        [sent] = [each for each in request.split(b"\r\n") if b"authorization" in each.lower()]
        return Reply(form.replace(b"%s", sent), end="close")

    return reply


def location(where: str) -> bytes:
    return f"Location: {where}".encode()


@pytest.mark.parametrize("credentials", ["token", "password"])
@pytest.mark.parametrize(
    "reply",
    [
        *(echo(status) for status in (200, 400, 401, 404, 409, 412, 500, 503)),
        *(echo(status, form=b'{"error": "%s"}') for status in (200, 400, 409, 500)),
        echo(200, form=b'{"source_id": "%s", "status": "success"}'),
        echo(200, form=b'{"source_id": "kev", "status": "success", "records_collected": "%s"}'),
        echo(200, form=b'{"source_id": "kev", "status": "success", "last_run_timestamp": "%s"}'),
        echo(302, location(f"https://collector:{SECRET}@elsewhere.example/{SECRET}?key={SECRET}")),
        echo(302, location(f"//[{SECRET}")),
        echo(503, b"Retry-After: " + SECRET.encode()),
        echo(200, b"Content-Encoding: " + SECRET.encode()),
        Reply(b"HTTP/1.1 200\r\nno colon\r\n\r\n"),
        Reply(b"no HTTP\r\n\r\n"),
        line(b"500 unknown command '%s'\r\n"),
        line(b"HTTP/1.1 200 OK\r\n%s\r\n"),
        line(b"HTTP/1.1 200 OK\r\nno colon %s\r\n\r\n"),
        line(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%s\r\n\r\n"),
        line(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}%s\r\n\r\n"),
        Reply(end="reset"),
        Reply(end="close"),
        Reply(end="stall"),
        http(200, b"{", length=9, end="close"),
        http(200, b" " * 2_000_000),
    ],
)
async def test_secret_is_told_nowhere(
    caplog: pytest.LogCaptureFixture, credentials: str, reply: Reply | Callable[[bytes], Reply]
) -> None:
    """No log, error or repr has a credential, also where the service says it again."""
    caplog.set_level(0)
    token = SECRET if credentials == "token" else None
    stalls = isinstance(reply, Reply) and reply.end == "stall"
    errors: list[BaseException] = []
    async with RawServer(reply) as server:
        url = URL(server.url)
        if token is None:
            url = url.with_user("collector").with_password(SECRET)
        client = StorageServiceClient(str(url), timeout=0.1 if stalls else 10, token=token)
        for call in (
            client.get_watermark("kev"),
            client.update_watermark("kev", NOON),
            client.health_check(),
        ):
            try:
                await call
            except StorageError as error:
                errors.append(error)
        await client.close()
        assert all(SECRET.encode() in each or BASIC in each for each in server.requests)
    texts = [caplog.text, repr(client), str(client), client.base_url]
    texts += [str(vars(record)) for record in caplog.records]
    texts += [text for error in errors for text in told(error)]
    assert len(errors) >= 2
    assert not [text for text in texts if any(hidden in text.lower() for hidden in HIDDEN)]


@pytest.mark.parametrize(
    "arguments",
    [
        {"base_url": f"http://collector:{SECRET}@[storage"},
        {"base_url": f"http://collector:{SECRET}@storage:port"},
        {"base_url": f"http://collector:{SECRET}@storage/?key={SECRET}"},
        {"base_url": f"collector:{SECRET}@storage"},
        {"base_url": f"ftp://collector:{SECRET}@storage"},
        {"base_url": f"http://a%3Ab:{SECRET}@storage"},
        {"base_url": f"http://collector:{SECRET}@storage", "token": "another"},
        {"base_url": f"http://collector:{SECRET}@storage", "timeout": 0},
        {"base_url": f"http://collector:{SECRET}@storage", "max_connections": 0},
        {"base_url": f"http://collector:{SECRET}@storage", "client_key": "key.pem"},
        {"base_url": "http://storage", "token": f"{SECRET}\n"},
        {"base_url": "http://storage", "token": f"{SECRET}é"},
    ],
)
def test_mistake_in_the_arguments_tells_no_secret(arguments: dict[str, Any]) -> None:
    """An address or a token that cannot be used is not quoted."""
    with pytest.raises(ConfigurationError) as caught:
        StorageServiceClient(**arguments)
    assert not [text for text in told(caught.value) if SECRET in text]


def test_representations_name_the_service_and_the_circuit() -> None:
    """What a debugger shows helps, and tells no secret."""
    client = StorageServiceClient(f"http://collector:{SECRET}@storage:8000/below/")
    assert repr(client) == "<StorageServiceClient of http://storage:8000/below, circuit closed>"
    assert repr(MockStorageClient()) == "<MockStorageClient with 0 watermarks>"


@pytest.mark.parametrize("shown", range(1, len(SECRET)))
async def test_secret_that_the_excerpt_cuts_is_hidden(shown: int) -> None:
    """The beginning of a secret is one too."""
    answer = http(400, b"x" * (300 - shown) + SECRET.encode())
    async with served(answer, token=SECRET) as (client, _):
        with pytest.raises(StorageError) as caught:
            await client.get_watermark("kev")
    assert SECRET[:shown] not in str(caught.value).rpartition("x")[2]


@pytest.mark.parametrize("said", [b"Bearer a1  b2%2F", b"Bearer a1 b2%2F", b"a1%20%20b2%252F"])
async def test_secret_is_hidden_in_each_of_its_shapes(said: bytes) -> None:
    """Spaces that are drawn together and percent signs do not bring it out."""
    async with served(http(400, said), token="a1  b2%2F") as (client, _):
        with pytest.raises(StorageError) as caught:
            await client.get_watermark("kev")
    assert "a1" not in str(caught.value)


@pytest.mark.parametrize("credentials", ["token", "password"])
@pytest.mark.parametrize(
    "said",
    [
        base64.b64encode(SECRET.encode()).decode(),
        base64.b64encode(f"Bearer {SECRET}".encode()).decode(),
        SECRET.encode().hex(),
        SECRET.encode().hex().upper(),
        SECRET.upper(),
        "".join(f"%{ord(each):02X}" for each in SECRET),
        "".join(f"&#{ord(each)};" for each in SECRET),
        "".join(f"&#x{ord(each):x};" for each in SECRET),
        "".join(f"\\u{ord(each):04x}" for each in SECRET),
    ],
)
async def test_secret_is_hidden_in_each_encoding(said: str, credentials: str) -> None:
    """By the rule of the sources, whose APIs repeat their keys as gateways repeat a token."""
    async with RawServer(http(401, f"no such key: {said}".encode())) as server:
        url, token = URL(server.url), SECRET if credentials == "token" else None
        if token is None:
            url = url.with_user("collector").with_password(SECRET)
        async with StorageServiceClient(str(url), token=token) as client:
            with pytest.raises(StorageError, match=r"no such key: \S*\*\*\*") as caught:
                await client.get_watermark("kev")
    assert said[3:-3] not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "token"),
    [(f"http://collector:{SECRET}@storage:8000", None), ("http://storage:8000", SECRET)],
)
def test_address_shows_no_secret_of_its_own(url: str, token: str | None) -> None:
    """The value that holds the credentials has a text without them, in a log or a debugger."""
    assert repr(address_of(url, token)) == "<Address http://storage:8000>"
