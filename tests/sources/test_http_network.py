"""The network between a source and us: proxies, certificates, packings, headers, clocks."""

from __future__ import annotations

import asyncio
import gzip
import io
import json
import logging
import re
import ssl
import time
import traceback
import zipfile
import zlib
from base64 import b64encode
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import trustme
from pydantic import ValidationError
from yarl import URL

from ladon_storage.circuit.breaker import CircuitState
from ladon_storage.client.masking import Redactor
from ladon_storage.errors import ConfigurationError, SourceError
from ladon_storage.sources import KINDS, source_from
from ladon_storage.sources.fields import Connection
from ladon_storage.sources.http import connections, hosts, sending
from ladon_storage.sources.http import decompression as packing
from ladon_storage.sources.http.client import Credentials, shared_connections, source_http
from ladon_storage.sources.http.proxies import proxy_of
from ladon_storage.sources.http.retry_after import wait_of
from ladon_storage.testing.feed_server import Answer, FeedServer
from tests.connect_proxy import ConnectProxy
from tests.raw_server import RawServer, Reply
from tests.raw_server import http as reply

pytestmark = pytest.mark.usefixtures("no_waiting")

PROXY_VARIABLES = [
    each
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy")
    for each in (name, name.upper())
]


def zipped(*texts: bytes, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for number, text in enumerate(texts):
            archive.writestr(f"{number}.json", text)
    return file.getvalue()


def encrypted(body: bytes) -> bytes:
    """Return a ZIP file whose directory says that its member is encrypted."""
    place = body.index(b"PK\x01\x02") + 8
    return body[:place] + b"\x01" + body[place + 1 :]


def gzipped(body: bytes) -> bytes:
    """Return a gzip that is the same whenever it is made."""
    return gzip.compress(body, mtime=0)


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no test go by the proxies of whoever runs it."""
    for name in PROXY_VARIABLES:
        monkeypatch.delenv(name, raising=False)


async def fetch(url: str, connection: Connection | None = None, **options: Any) -> Any:
    async with source_http("feed", connection=connection, **options) as client:
        return await client.get_json(url)


async def failure(url: str, connection: Connection | None = None, **options: Any) -> SourceError:
    with pytest.raises(SourceError) as caught:
        await fetch(url, connection, **options)
    return caught.value


@pytest.mark.parametrize("name", ["http_proxy", "HTTP_PROXY", "all_proxy"])
async def test_proxy_of_the_environment_is_asked(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind a company's proxy a feed is collected as it is told to every other program."""
    async with RawServer(reply(200, b"[1]")) as proxy:
        monkeypatch.setenv(name, proxy.url)
        assert await fetch("http://feed.invalid/recent?a=1") == [1]

    assert proxy.requests[0].startswith(b"GET http://feed.invalid/recent?a=1 HTTP/1.1\r\n")


@pytest.mark.parametrize(
    ("exceptions", "url", "direct"),
    [
        ("feed.example", "http://feed.example/", True),
        ("FEED.example", "http://feed.example/", True),
        ("other.example, feed.example", "http://feed.example/", True),
        ("example", "http://feed.example/", True),
        (".example", "http://feed.example/", True),
        ("*.example", "http://feed.example/", True),
        ("ample", "http://feed.example/", False),
        ("feed.example:8080", "http://feed.example:8080/", True),
        ("feed.example:8080", "http://feed.example/", False),
        ("*", "http://feed.example/", True),
        ("10.0.0.0/8", "http://10.1.2.3/", True),
        ("10.0.0.0/8", "http://11.1.2.3/", False),
        ("10.0.0.0/8", "http://feed.example/", False),
        ("fd00::/8,[::1]", "http://[::1]/", True),
        ("127.0.0.1", "http://127.0.0.1:8080/", True),
        ("", "http://feed.example/", False),
        (" , ", "http://feed.example/", False),
        ("other.example feed.example", "http://feed.example/", True),
        ("other.example,\tfeed.example 10.0.0.0/8", "http://10.1.2.3/", True),
    ],
)
def test_exceptions_from_the_proxy_are_hosts_domains_ports_and_networks(
    exceptions: str, url: str, direct: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is inside is asked directly, in all the ways in which it can be told."""
    monkeypatch.setenv("http_proxy", "proxy.example:3128")
    monkeypatch.setenv("no_proxy", exceptions)

    assert proxy_of(URL(url)) == (None if direct else URL("http://proxy.example:3128"))


def test_proxy_is_told_by_scheme(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy for plain addresses says nothing about encrypted ones."""
    monkeypatch.setenv("http_proxy", "http://plain.example:1")
    assert proxy_of(URL("https://feed.example/")) is None

    monkeypatch.setenv("HTTPS_PROXY", "http://secure.example:2")
    assert proxy_of(URL("https://feed.example/")) == URL("http://secure.example:2")


@pytest.mark.parametrize(
    "value",
    [
        "socks5://me:SECRET@proxy.example",
        "http://me:SECRET@:x",
        "http://me:p@SECRET/w@proxy.example",
        "http://me:p@SECRET?w@proxy.example",
        "me:p@SECRET#w@proxy.example",
        "http://SECRET:12/3@proxy.example",
    ],
)
async def test_proxy_that_is_no_address_is_refused_unshown(
    value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A variable that cannot be used ends the run, and its password is in no message."""
    monkeypatch.setenv("http_proxy", value)
    with pytest.raises(ConfigurationError) as caught:
        await fetch("http://feed.invalid/")

    assert "HTTP_PROXY" in str(caught.value)
    assert "SECRET" not in "".join(traceback.format_exception(caught.value))


async def test_proxy_of_a_source_goes_before_the_environments(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its password is the secret that is named, and is sent to the proxy alone."""
    monkeypatch.setenv("http_proxy", "http://other.invalid")
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setenv("PROXY_PASSWORD", "SECRET")
    async with RawServer(reply(200, b"[1]")) as proxy:
        settings = Connection(proxy=proxy.url, proxy_user="me", proxy_password="PROXY_PASSWORD")
        assert await fetch("http://feed.invalid/", settings) == [1]

    told = b64encode(b"me:SECRET")
    assert b"\r\nProxy-Authorization: Basic " + told + b"\r\n" in proxy.requests[0]


@pytest.mark.parametrize(
    ("user", "sent"),
    [("łu:pä:ß", "łu:pä:ß".encode()), ("mü:pä", "mü:pä".encode("latin-1")), ("me:", b"me:")],
)
@pytest.mark.parametrize("is_quoted", [True, False])
async def test_credentials_of_a_proxy_may_have_any_characters(
    user: str, sent: bytes, is_quoted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that Latin-1 has are sent in it, and all others in UTF-8."""
    async with RawServer(reply(200, b"[1]")) as proxy:
        written = quote(user, safe=":") if is_quoted else user
        monkeypatch.setenv("HTTP_PROXY", proxy.url.replace("://", f"://{written}@"))
        assert await fetch("http://feed.invalid/") == [1]

    assert b"\r\nProxy-Authorization: Basic " + b64encode(sent) + b"\r\n" in proxy.requests[0]


@pytest.mark.parametrize("status", [407, 403, 502])
@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("told", ["environment", "setting"])
async def test_password_of_a_proxy_is_in_no_error_and_no_log(
    status: int,
    scheme: str,
    told: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Whatever a proxy says, and wherever its password stands, the error does not say that."""
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("PROXY_PASSWORD", "SEC/RET")
    async with RawServer(reply(status, b"SEC/RET", "X-Echo: SEC/RET", end="close")) as proxy:
        settings = None
        if told == "environment":
            url = proxy.url.replace("://", "://me:SEC%2FRET@")
            monkeypatch.setenv("HTTP_PROXY", url)
            monkeypatch.setenv("HTTPS_PROXY", url)
        else:
            settings = Connection(proxy=proxy.url, proxy_user="me", proxy_password="PROXY_PASSWORD")
        error = await failure(f"{scheme}://feed.invalid/", settings)

    shown = "".join(traceback.format_exception(error)) + caplog.text + repr(vars(error))
    for secret in ("SEC/RET", "SEC%2FRET", b64encode(b"me:SEC/RET").decode()):
        assert secret not in shown
    assert str(status) in str(error)
    assert error.transient is (status == 502)


async def test_proxy_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who reads the error knows that the proxy, not the feed, is what to look at."""
    async with RawServer(Reply()) as proxy:
        url = proxy.url
    monkeypatch.setenv("HTTP_PROXY", url.replace("://", "://me:SECRET@"))
    error = await failure("http://feed.invalid/")

    assert f"through the proxy {url} (ClientProxyConnectionError) at http://feed.invalid/" in str(
        error
    )
    assert "SECRET" not in "".join(traceback.format_exception(error))


@pytest.mark.parametrize("status", [None, 407, 502])
@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_proxy_that_fails_counts_against_no_host(
    status: int | None, scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Runs that take another way to the host are not kept from it by a proxy that is down."""
    async with RawServer(reply(status or 200, end="close")) as proxy:
        monkeypatch.setenv(f"{scheme.upper()}_PROXY", proxy.url)
        if status is not None:
            error = await failure(f"{scheme}://feed.invalid/")
    if status is None:
        error = await failure(f"{scheme}://feed.invalid/")

    host = hosts.host_circuit_of(URL(f"{scheme}://feed.invalid/"))
    path = hosts.circuit_of(URL(f"{scheme}://feed.invalid/"))
    assert (host.state, host.failure_count) == (CircuitState.CLOSED, 0)
    # Over plain HTTP a proxy's 502 may be the host's own.
    may_be_the_hosts = (scheme, status) == ("http", 502)
    assert path.failure_count == (sending.ATTEMPTS if may_be_the_hosts else 0)
    assert error.transient is (status != 407)
    assert len(proxy.requests) == {None: 0, 407: 1, 502: sending.ATTEMPTS}[status]


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_proxy_that_refuses_closes_no_circuit(
    scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its refusal is no answer of the host, whose failures it does not make undone."""
    host = hosts.host_circuit_of(URL(f"{scheme}://feed.invalid/"))
    host.failure(host.acquire())
    async with RawServer(reply(407, end="close")) as proxy:
        monkeypatch.setenv(f"{scheme.upper()}_PROXY", proxy.url)
        await failure(f"{scheme}://feed.invalid/")

    assert host.failure_count == 1


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"proxy": "http://me:SECRET@proxy.example"}, "proxy_password to the name of a secret"),
        ({"proxy": "http://me@proxy.example"}, "proxy_user"),
        ({"proxy": "proxy"}, "should be an address"),
        ({"proxy_user": "me"}, "needs the address of the proxy"),
        ({"proxy": "http://proxy.example", "proxy_password": "NAME"}, "needs its user"),
        ({"client_key": "key.pem"}, "client_key is set without client_cert"),
        ({"redirects_to": ["https://a.example/b"]}, "should be a host"),
        ({"timeout": 0}, "greater than 0"),
        ({"max_bytes": 0}, "greater than or equal to 1"),
    ],
)
def test_connection_that_makes_no_sense_says_why(settings: Any, problem: str) -> None:
    """A setting is refused where it is written, and no password is repeated."""
    with pytest.raises(ValidationError, match=problem) as caught:
        Connection.model_validate(settings)

    assert "SECRET" not in str(caught.value)


def test_every_source_of_http_has_a_connection() -> None:
    """Whatever is collected over HTTP can be reached through a proxy."""
    kinds = [kind for kind in KINDS if "connection" in kind.model_fields]

    assert len(kinds) == len(KINDS) - 1  # a table is no HTTP
    source = source_from({"kind": "kev", "connection": {"timeout": 5}})
    assert getattr(source, "connection") == Connection(timeout=5)  # noqa: B009 - not of `Source`


def mutual_tls(folder: Path, host: str) -> tuple[trustme.CA, Connection, ssl.SSLContext]:
    """Return an authority, a collector's connection by its files, and a server's side."""
    authority = trustme.CA()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert(host).configure_cert(context)
    authority.configure_trust(context)
    context.verify_mode = ssl.CERT_REQUIRED
    files = {name: folder / f"{name}.pem" for name in ("ca_file", "client_cert", "client_key")}
    client = authority.issue_cert("collector@example.org")
    authority.cert_pem.write_to_path(files["ca_file"])
    client.cert_chain_pems[0].write_to_path(files["client_cert"])
    client.private_key_pem.write_to_path(files["client_key"])
    return authority, Connection(**files), context


async def test_private_authority_and_client_certificate_are_used(tmp_path: Path) -> None:
    """A feed behind mutual TLS is read by the files that are named, by each source its own."""
    _, connection, context = mutual_tls(tmp_path, "127.0.0.1")
    async with FeedServer(Answer.of(1), Answer.of(2), tls=context) as feed, shared_connections():
        assert await fetch(feed.url, connection) == 1
        assert "of an unknown authority" in str(await failure(feed.url))
        await failure(feed.url, Connection(ca_file=connection.ca_file))
        hosts._circuits.clear()
        assert await fetch(feed.url, connection) == 2

    assert len(feed.requests) == 2


@pytest.mark.parametrize("named", ["HTTPS_PROXY", "ALL_PROXY", "setting"])
@pytest.mark.parametrize("is_encrypted", [False, True])
async def test_source_behind_mutual_tls_is_read_through_a_tunnel(
    named: str, is_encrypted: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The proxy gets its user and the source the certificate, and neither what is the other's."""
    authority, connection, context = mutual_tls(tmp_path, "feed.example")
    proxy_tls = None
    if is_encrypted:
        proxy_tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        authority.issue_cert("127.0.0.1").configure_cert(proxy_tls)
    async with (
        FeedServer(Answer.of(["a"] * 10_000), tls=context) as feed,
        ConnectProxy(URL(feed.url).port or 0, user="me:SEC/RET", tls=proxy_tls) as proxy,
    ):
        if named == "setting":
            monkeypatch.setenv("PROXY_PASSWORD", "SEC/RET")
            monkeypatch.setenv("HTTPS_PROXY", "http://other.invalid")
            own = {"proxy": proxy.url, "proxy_user": "me", "proxy_password": "PROXY_PASSWORD"}
            connection = Connection.model_validate(connection.model_dump() | own)
        else:
            monkeypatch.setenv(named, proxy.url.replace("://", "://me:SEC%2FRET@"))
        keys = Credentials("https://feed.example/", {"Auth-Key": "mine"})
        found = await fetch("https://feed.example/api/", connection, credentials=keys)

        assert found == ["a"] * 10_000
        assert proxy.tunnels == ["feed.example:443"]
        assert feed.asks[0].headers["Auth-Key"] == "mine"
        assert "Proxy-Authorization" not in feed.asks[0].headers


async def test_runs_with_other_users_of_a_proxy_share_no_tunnel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A source without the password is refused, also where another one is connected already."""
    _, connection, context = mutual_tls(tmp_path, "feed.example")
    monkeypatch.setenv("RIGHT", "SECRET")
    monkeypatch.setenv("WRONG", "OTHER")
    async with (
        FeedServer(Answer.of(1), Answer.of(2), tls=context) as feed,
        ConnectProxy(URL(feed.url).port or 0, user="me:SECRET") as proxy,
        shared_connections(),
    ):

        def through(password: str) -> Connection:
            own = {"proxy": proxy.url, "proxy_user": "me", "proxy_password": password}
            return Connection.model_validate(connection.model_dump() | own)

        assert await fetch("https://feed.example/api/", through("RIGHT")) == 1
        error = await failure("https://feed.example/api/", through("WRONG"))
        assert "refused by the proxy with status 407" in str(error)
        assert await fetch("https://feed.example/api/", through("RIGHT")) == 2
    assert (len(feed.asks), proxy.refused) == (2, 1)


async def test_document_whose_tunnel_was_cut_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever ends a response in the middle, a part of a document is none."""
    _, connection, context = mutual_tls(tmp_path, "feed.example")
    many = Answer.of([["a" * 100]] * 10_000)
    async with (
        FeedServer(play=lambda _: many, tls=context) as feed,
        ConnectProxy(URL(feed.url).port or 0, cuts=(100, 9_000, 500_000)) as proxy,
    ):
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        assert len(await fetch("https://feed.example/api/", connection)) == 10_000
    assert len(proxy.tunnels) == 4


async def test_file_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    """A certificate that is not there is a wrong setting, and no fault of the feed."""
    with pytest.raises(ConfigurationError, match=r"ca_file '.*missing\.pem' cannot be used"):
        await fetch("https://feed.invalid/", Connection(ca_file=tmp_path / "missing.pem"))


async def test_timeout_of_a_source_is_its_own() -> None:
    """A slow API gets its time, and one that should be quick no more than that."""
    stalled = Answer(b'{"a": 1}', stall_at=1)
    async with FeedServer(stalled, play=lambda _: Answer.of({"a": 1})) as feed:
        async with asyncio.timeout(30):  # half of what a source without one waits for
            assert await fetch(feed.url, Connection(timeout=0.1)) == {"a": 1}

    assert len(feed.requests) >= 2
    assert connections._timeout(Connection(timeout=900)).sock_read == 900


async def test_largest_answer_is_a_setting() -> None:
    """What a source publishes may be larger than what others may send."""
    async with FeedServer(Answer(b'["12345"]'), Answer(b'["12345"]')) as feed:
        assert await fetch(feed.url, Connection(max_bytes=9)) == ["12345"]
        error = await failure(feed.url, Connection(max_bytes=8))

    assert "sends more than 8 bytes" in str(error)
    assert "max_bytes" in str(error)


@pytest.mark.parametrize("status", [200, 201, 203])
async def test_document_counts_whatever_success_it_comes_with(status: int) -> None:
    """A proxy that changed an answer says 203, and an API that made a search 201."""
    async with FeedServer(Answer(b"[1]", status=status)) as feed:
        assert await fetch(feed.url) == [1]


@pytest.mark.parametrize(
    ("answer", "empty"),
    [
        (Answer(b"", status=204), True),
        (Answer(b""), True),
        (Answer(b"\r\n "), True),
        (Answer(b"[]"), False),
    ],
)
async def test_answer_without_a_document_is_told_from_a_document(
    answer: Answer, empty: bool
) -> None:
    """Who takes nothing for an answer can ask; whoever parses it gets an error."""
    async with FeedServer(answer) as feed, source_http("feed") as client:
        got = await client.get(feed.url)

        assert got.is_empty is empty
        if empty:
            with pytest.raises(SourceError, match=r"without a document|it is empty"):
                client.parsed(got)
            with pytest.raises(SourceError, match=r"without a document|it is empty"):
                await client.document(got, "")


async def test_part_of_a_document_is_no_document() -> None:
    """A 206 without our having asked for a range lacks something, however well it parses."""
    async with FeedServer(Answer(b"[1]", status=206)) as feed:
        error = await failure(feed.url)

    assert "answered 206" in str(error)
    assert "a partial document" in str(error)


RAW_DEFLATE = zlib.compressobj(wbits=-zlib.MAX_WBITS)
RAW = RAW_DEFLATE.compress(b"[1]") + RAW_DEFLATE.flush()


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("gzip", gzipped(b"[1]")),
        ("x-gzip", gzipped(b"[1]") + b"\0" * 8),
        ("gzip", gzipped(b"[") + gzipped(b"1]")),
        ("", gzipped(b"[1]")),
        ("identity", gzipped(b"[") + gzipped(b"1]")),
        ("deflate", zlib.compress(b"[1]")),
        ("deflate", RAW),
        ("identity", b"[1]"),
        *[
            (name, b"[1]")
            for name in (
                "UTF-8",
                "iso-8859-1",
                "utf-16",
                "none",
                "binary",
                "8bit",
                "aws-chunked",
                ",",
            )
        ],
        ("gzip,aws-chunked", gzipped(b"[1]")),
        ("aws-chunked, x-gzip", gzipped(b"[1]")),
        ("utf-8", gzipped(b"[1]")),
        ("", zipped(b"[1]")),
        ("identity", zipped(b"[1]", method=zipfile.ZIP_STORED)),
    ],
)
async def test_packed_answer_is_unpacked(name: str, body: bytes) -> None:
    """All that was asked for is understood, in the forms in which servers send it."""
    async with FeedServer(Answer(body, headers={"Content-Encoding": name})) as feed:
        assert await fetch(feed.url) == [1]


@pytest.mark.parametrize("name", ["gzip", "deflate", "identity", "zip"])
@pytest.mark.parametrize("kept", [0.2, 0.9, -1, -5])
async def test_packed_answer_that_was_cut_is_asked_for_again(name: str, kept: float) -> None:
    """A stream without its end was cut, though as many bytes came as were announced."""
    text = b"id,dateadded\n" + b"1,2024-01-01\n" * 5_000
    packed = {"deflate": zlib.compress(text), "zip": zipped(text)}
    whole = packed.get(name, gzipped(text))
    cut = whole[: int(len(whole) * kept)] if kept > 0 else whole[: int(kept)]
    headers = {"Content-Encoding": "" if name == "zip" else name}
    async with (
        FeedServer(Answer(cut, headers=headers), Answer(whole, headers=headers)) as feed,
        source_http("feed") as client,
    ):
        assert (await client.get(feed.url)).body == text

    assert len(feed.requests) == 2


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("gzip", b"[1]"),
        ("gzip", gzipped(b"[1]")[:-8] + b"\0" * 8),
        ("gzip", gzipped(b"[1]") + b"[2]"),
    ],
    ids=["plain", "damaged", "followed"],
)
async def test_answer_that_is_not_packed_as_it_says_is_refused(name: str, body: bytes) -> None:
    """Nothing is taken from what cannot be unpacked to its end."""
    async with FeedServer(*[Answer(body, headers={"Content-Encoding": name})] * 5) as feed:
        error = await failure(feed.url)

    assert "is not valid gzip" in str(error)


@pytest.mark.parametrize(
    ("name", "body", "problem"),
    [
        ("compress", b"[1]", "is compressed with 'compress', which was not requested"),
        ("gzip, gzip", gzipped(gzipped(b"[1]")), "is compressed with 'gzip, gzip'"),
        ("bz2", b"[1]", "is compressed with 'bz2'"),
        ("base64", b"WzFd", "is compressed with 'base64'"),
        ("x" * 60, b"[1]", "is compressed with 'xxx"),
        (
            "aws-chunked",
            b"3;chunk-signature=0123\r\n[1]\r\n0;chunk-signature=4567\r\n\r\n",
            "is divided into chunks by 'aws-chunked'",
        ),
        ("aws-chunked", b"3\r\n[1]\r\n0\r\n\r\n", "is divided into chunks by 'aws-chunked'"),
    ],
)
async def test_packing_that_nothing_here_undoes_is_refused_at_once(
    name: str, body: bytes, problem: str
) -> None:
    """The same answer would come again, and it says nothing against the host."""
    async with FeedServer(*[Answer(body, headers={"Content-Encoding": name})] * 5) as feed:
        error = await failure(feed.url)

    assert problem in str(error)
    assert not error.transient
    assert len(feed.requests) == 1


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (zipped(b"[1]", b"[2]"), "is a ZIP file with 2 members instead of one"),
        (zipped(), "is a ZIP file with 0 members instead of one"),
        (encrypted(zipped(b"[1]")), "is an encrypted ZIP file"),
        (zipped(b"[1]", method=zipfile.ZIP_LZMA), "of the compression method 14"),
        (zipped(b"[1]", method=zipfile.ZIP_STORED).replace(b"[1]", b"[2]"), "Bad CRC-32"),
        (zipped(*[b""] * 20_000), "with too large a directory for one member"),
        (zipped(b"[1]")[:-22], "was cut off within its ZIP file"),
    ],
    ids=["two", "none", "encrypted", "method", "damaged", "many", "cut"],
)
async def test_zip_file_without_one_readable_member_is_refused(body: bytes, message: str) -> None:
    """A choice among members would be a guess, and a part of one is no document."""
    async with FeedServer(*[Answer(body)] * 5) as feed:
        error = await failure(feed.url)

    assert message in str(error)


@pytest.mark.parametrize("body", [zipped(b"[1]"), b"PK", b"P", b"", b"PK\x03", b"PK,1\n"])
def test_file_is_recognised_however_its_bytes_arrive(body: bytes) -> None:
    """The first of them may come alone, and those of a text are its text."""
    unpacker = packing.Decompressor("")
    parts = [step for n in range(len(body)) for step in unpacker.unpacked(body[n : n + 1])]

    assert b"".join([*parts, *unpacker.finish()]) == (b"[1]" if len(body) > 9 else body)


def test_packing_is_asked_for_only_where_its_library_is() -> None:
    """Nobody sends brotli or zstd where nothing here can unpack it."""
    asked = set(packing.ACCEPTED.split(", "))

    assert {"gzip", "deflate"} <= asked
    assert ("br" in asked) is (packing._brotli is not None)
    assert ("zstd" in asked) is (packing._zstd is not None)


async def test_only_what_can_be_unpacked_is_asked_for() -> None:
    """What is sent is what this process can read."""
    async with FeedServer(Answer.of(1)) as feed:
        await fetch(feed.url)

    assert feed.asks[0].headers["Accept-Encoding"] == packing.ACCEPTED


@pytest.mark.parametrize("host", ["a" * 70, "a..b", "a\u2028b"])
async def test_host_that_is_no_name_is_an_error_of_ours(host: str) -> None:
    """What no resolver takes is no bare error of an encoding."""
    error = await failure(f"http://{host}.example/")

    assert "has an invalid host name" in str(error) or "leads to an invalid address" in str(error)
    assert not error.transient


@pytest.mark.parametrize("name", ["gzip", "zip"])
async def test_few_packedtes_fill_no_memory(name: str) -> None:
    """A limit holds for what is unpacked, and is noticed while it is unpacked."""
    bomb = zipped(b"0" * 2**24) if name == "zip" else gzipped(b"0" * 2**24)
    encoding = "" if name == "zip" else name
    async with FeedServer(Answer(bomb, headers={"Content-Encoding": encoding})) as feed:
        error = await failure(feed.url, Connection(max_bytes=2**20))

    assert "sends more than 1048576 bytes" in str(error)
    unpacker = packing.Decompressor(encoding)
    steps = [*unpacker.unpacked(bomb), *unpacker.finish()]
    assert len(steps) > 1
    assert max(map(len, steps)) <= packing.STEP_BYTES


@pytest.mark.parametrize("size", [9_000, 2**16])
async def test_long_header_is_read(size: int) -> None:
    """A policy or a cursor of up to 64 KiB makes no feed unreadable."""
    async with RawServer(reply(200, b"[1]", f"Link: {'a' * size}")) as server:
        assert await fetch(server.url) == [1]


@pytest.mark.parametrize(
    ("headers", "problem"),
    [([f"Link: {'a' * (2**16 + 1)}"], "too long"), (["X-A: b"] * 200, "too many headers")],
)
async def test_header_beyond_the_bound_is_called_so(headers: list[str], problem: str) -> None:
    """The error says what is wrong, and not that the feed speaks no HTTP."""
    async with RawServer(reply(200, b"[1]", *headers, end="close")) as server:
        error = await failure(server.url)

    assert problem in str(error)
    assert "not HTTP" not in str(error)


NOW = "Thu, 01 Jan 2026 00:00:00 GMT"
EPOCH = int(datetime(2026, 1, 1, tzinfo=UTC).timestamp())


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"X-RateLimit-Reset": "7"}, 7),
        ({"RateLimit-Reset": "7"}, 7),
        ({"X-Rate-Limit-Reset": "7.5"}, 7.5),
        ({"X-RateLimit-Reset": str(EPOCH + 30), "Date": NOW}, 30),
        ({"X-RateLimit-Reset": str((EPOCH + 30) * 1000), "Date": NOW}, 30),
        ({"X-RateLimit-Reset": str(EPOCH + 30)}, None),
        ({"X-RateLimit-Reset": str(EPOCH - 30), "Date": NOW}, None),
        ({"X-RateLimit-Reset": str(EPOCH + 9_000), "Date": NOW}, 120),
        ({"X-RateLimit-Reset": "Thu, 01 Jan 2026 00:00:30 GMT", "Date": NOW}, 30),
        ({"X-RateLimit-Reset": "soon", "Date": NOW}, None),
        ({"X-RateLimit-Reset": "9" * 500, "Date": NOW}, 120),
        ({"Retry-After": "3", "X-RateLimit-Reset": "7"}, 3),
        ({"Retry-After": "Thu, 01 Jan 2026 00:00:30 GMT", "Date": NOW}, 30),
        ({"Retry-After": "Thu, 01 Jan 2026 00:00:30 GMT"}, None),
        ({}, None),
    ],
)
def test_wait_is_told_in_every_form_by_the_answers_own_clock(
    headers: dict[str, str], seconds: float | None
) -> None:
    """A server whose clock is an hour off is waited for as long as it means."""
    assert wait_of(headers, throttled=True) == seconds
    if "Retry-After" not in headers:
        assert wait_of(headers, throttled=False) is None


@pytest.mark.parametrize(
    ("answer", "is_throttled"),
    [
        (Answer(status=403, headers={"X-RateLimit-Remaining": "0"}), True),
        (Answer(status=403, headers={"Retry-After": "1"}), True),
        (Answer(status=403, headers={"X-RateLimit-Remaining": "7"}), False),
        (Answer(status=403), False),
    ],
)
async def test_refusal_is_waited_for_where_requests_are_used_up(
    answer: Answer, is_throttled: bool
) -> None:
    """A 403 that says that nothing remains is a limit; another one is a refusal."""
    async with FeedServer(answer, Answer.of(1)) as feed:
        if is_throttled:
            assert await fetch(feed.url) == 1
        else:
            assert not (await failure(feed.url)).transient


@pytest.mark.parametrize(
    ("hours", "is_told"), [(-300, True), (-1, True), (0, True), (1, True), (30, False)]
)
async def test_source_tells_when_it_was_asked(hours: float, is_told: bool) -> None:
    """Its own clock counts, before its answer came; one that is days ahead tells nothing."""
    there = (datetime.now(UTC) + timedelta(hours=hours)).replace(microsecond=0)
    date = there.strftime("Date: %a, %d %b %Y %H:%M:%S GMT")
    async with (
        RawServer(reply(200, b"[1]", date), reply(200, b"[2]", "Date: " + NOW)) as server,
        source_http("feed") as client,
    ):
        assert client.asked_at is None
        await client.get(server.url)
        first = client.asked_at
        await client.get(server.url)

    if is_told:
        assert client.asked_at == first
        assert first is not None
        assert there - timedelta(seconds=10) < first < there + timedelta(seconds=hours == 0)
    else:
        assert first is None


async def test_fraction_of_a_second_is_ours_where_the_clocks_agree() -> None:
    """A record that is half a second old is no record from the future."""
    before = datetime.now(UTC)
    async with FeedServer(Answer.of(1)) as feed, source_http("feed") as client:
        await client.get(feed.url)

    assert client.asked_at is not None
    # The server may have answered in the next second.
    assert before - timedelta(seconds=1) < client.asked_at <= datetime.now(UTC)


async def test_source_without_a_clock_tells_nothing() -> None:
    """Without a `Date`, or with one that is none, there is only our own clock."""
    async with (
        RawServer(reply(200, b"[1]"), reply(200, b"[1]", "Date: soon")) as server,
        source_http("feed") as client,
    ):
        for _ in range(2):
            await client.get(server.url)
            assert client.asked_at is None


SECRET = 'k3y/with "signs"+'

POSSESSIVE = r"(?<!\\)[*+?}]\+"


@pytest.mark.parametrize(
    "echo",
    [
        SECRET,
        f"Bearer {SECRET}",
        quote(SECRET, safe=""),
        quote(SECRET, safe="").lower(),
        quote(quote(SECRET, safe=""), safe=""),
        SECRET.replace('"', '\\"'),
        SECRET.replace('"', '\\"').replace("/", "\\/"),
        SECRET.replace('"', "&quot;"),
        b64encode(SECRET.encode()).decode(),
        SECRET.lower(),
        SECRET.upper(),
        quote(SECRET, safe="").upper(),
        quote(SECRET, safe="+/"),
        str(URL(f"http://x/{quote(SECRET, safe='')}")).removeprefix("http://x/"),
        quote(SECRET.replace('"', '\\"'), safe=""),
        "".join(f"\\u{ord(each):04x}" for each in SECRET),
        "".join(f"%{ord(each):02x}" for each in SECRET),
        "".join(f"&#{ord(each)};" for each in SECRET),
        "".join(f"&amp;#x{ord(each):X};" for each in SECRET),
        SECRET.replace('"', '""'),
        b64encode(f"me:{SECRET}".encode()).decode().removeprefix("bWU6"),
        quote(b64encode(SECRET.encode()).decode(), safe=""),
        SECRET.encode().hex(),
        SECRET.encode().hex(":"),
        "".join(f"%u{ord(each):04X}" for each in SECRET),
        json.dumps(json.dumps(json.dumps(SECRET))).strip('\\"'),
    ],
)
def test_secret_is_masked_in_every_form(echo: str) -> None:
    """However an API echoes a key, it does not come out."""
    masked = Redactor([f"Bearer {SECRET}"]).of(f"no such key: {echo}.")

    assert masked == "no such key: ***." or masked == "no such key: Bearer ***."
    assert Redactor(["", "a"]).of("a cat") == "a cat"


def test_search_for_secrets_asks_for_no_possessive_quantifier() -> None:
    """Before Python 3.11.5 one of a group with alternatives finds less: Debian 12 has 3.11.2."""
    assert re.search(POSSESSIVE, r"(?:a|b){0,16}+c")
    for form in Redactor([f"Bearer {SECRET}", 'aa""bb  cc'])._forms:
        assert not re.search(POSSESSIVE, form.pattern), form.pattern


@pytest.mark.parametrize("between", ["#", "?", "%23", "&#35;", "/"])
async def test_secret_across_the_parts_of_an_address_is_masked(between: str) -> None:
    """A query and a fragment are not shown, and half of a key before them is not shown either."""
    keys = Credentials("http://127.0.0.1", redact=["front1234#back5678"])
    if between in ("?", "/"):
        keys = Credentials("http://127.0.0.1", redact=[f"front1234{between}back5678"])
    async with source_http("feed", credentials=keys) as http:
        told = http.redact_url(f"http://other.invalid/a/front1234{between}back5678")
    assert "front" not in told
    assert "back" not in told


@pytest.mark.parametrize("user", ["", "a", "ab", "abc", "user:", "Bearer "])
def test_secret_is_masked_within_longer_base64(user: str) -> None:
    """What is encoded along with a key shifts its characters, and hides it from no one."""
    echo = b64encode(f"{user}{SECRET}:more".encode()).decode()

    masked = Redactor([SECRET]).of(f"no: {echo}")

    assert "***" in masked
    certain = b64encode(SECRET.encode()).decode()[4:-4]
    assert certain not in masked
    assert len(masked) < len(f"no: {echo}") - len(SECRET)


def test_text_of_many_backslashes_is_masked_at_once() -> None:
    """How a text was escaped can be tried in as many ways as there are; only one of them is."""
    began = time.monotonic()

    assert Redactor(["a\\\"''b"]).of("a\\\\\\\"''b") == "***"
    assert Redactor(["\\" * 30 + "/key"]).of("\\" * 10_000) == "\\" * 10_000
    assert Redactor(["'" * 30 + "/key"]).of("'" * 10_000) == "'" * 10_000
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("length", range(60, 90))
async def test_key_in_a_refused_answer_is_masked_before_it_is_cut(length: int) -> None:
    """A key that is there twice, or a packing that nobody asked for, may hold a secret."""
    padded = "x" * length + "SECRET-KEY" + "y" * 500
    twice = json.dumps({padded: 1})[:-1] + f', "{padded}": 2}}'
    async with FeedServer(
        Answer(twice.encode()), Answer(headers={"Content-Encoding": padded[length - 35 :]})
    ) as feed:
        keys = Credentials(feed.url, {"Auth-Key": "SECRET-KEY"})
        async with source_http("feed", credentials=keys) as client:
            answer = await client.get(feed.url)
            with pytest.raises(SourceError, match="is ambiguous") as twofold:
                await client.document(answer, "rows")
            with pytest.raises(SourceError, match="is compressed with") as packed:
                await client.get(feed.url, idempotent=False)

    for caught in (twofold, packed):
        assert "SECR" not in str(caught.value)
        assert len(str(caught.value)) < 600


async def leave(keys: Credentials, error: Exception) -> None:
    async with source_http("feed", credentials=keys):
        raise error


async def test_error_of_a_source_is_masked_whoever_says_it() -> None:
    """What a provider makes of an answer passes the same place, and so does what is behind it."""
    async with FeedServer() as feed:
        keys = Credentials(feed.url, {"Authorization": "Bearer SECRET-KEY"})
        missing = KeyError("SECRET-KEY")
        said = SourceError("The API answers 'SECRET-KEY'.", "feed")
        said.__context__ = ValueError("no such key: SECRET-KEY")
        with pytest.raises(SourceError) as caught:
            await leave(keys, said)
        with pytest.raises(KeyError) as other:
            await leave(keys, missing)

    assert str(caught.value) == "The API answers '***'."
    for error in (caught.value, other.value):
        assert "SECRET" not in "".join(traceback.format_exception(error))
        assert "SECRET" not in repr([error.args, vars(error), error.__context__])


async def test_value_is_masked_before_it_is_cut() -> None:
    """Half a key, at the end of what is shown, is half a key too many."""
    keys = Credentials("https://feed.example/", {"Auth-Key": "SECRET-KEY"})
    async with source_http("feed", credentials=keys) as client:
        for length in range(60, 90):
            assert "SECR" not in client.quoted("x" * length + "SECRET-KEY", 80)
        assert len(client.quoted("x" * 10**6)) == 80
        assert client.quoted({"a": "SECRET-KEY"}) == "{'a': '***'}"


async def test_cancelling_leaves_nothing_behind() -> None:
    """A run that is cancelled while it unpacks ends at once."""
    body = gzipped(b"0" * 2**26)
    async with FeedServer(Answer(body, headers={"Content-Encoding": "gzip"})) as feed:
        fetching = asyncio.create_task(fetch(feed.url))
        await asyncio.wait_for(feed.asked.wait(), 5)
        fetching.cancel()
        with suppress(asyncio.CancelledError):
            await fetching
        assert fetching.cancelled()


async def test_user_in_a_redirect_is_dropped() -> None:
    """The source's own credentials are the only ones, and go to its site as they are."""
    async with FeedServer() as feed:
        there = URL(feed.url).with_user("u").with_password("p")
        feed.script.extend([Answer(b"", 302, {"Location": str(there)}), Answer.of(1)])
        keys = Credentials(feed.url, {"Authorization": "SECRET"})
        async with source_http("feed", credentials=keys) as http:
            assert await http.get_json(feed.url) == 1
        assert [each.headers["Authorization"] for each in feed.asks] == ["SECRET"] * 2
