"""TLS of the client: whom it trusts, what it shows, and what it refuses."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import trustme
from cryptography.hazmat.primitives import serialization

from ladon_storage import (
    ConfigurationError,
    StorageConnectionError,
    StorageServiceClient,
    StorageUnhealthyError,
)
from tests.raw_server import served, watermark
from tests.service import embedded_service

DAY = timedelta(days=1)


@dataclass(frozen=True)
class Authority:
    """Be a private authority, and the files that it issued."""

    ca: trustme.CA
    ca_file: Path
    cert: Path
    key: Path
    cert_and_key: Path

    def server(
        self,
        *names: str,
        asks: bool = False,
        valid: tuple[datetime | None, datetime | None] = (None, None),
    ) -> ssl.SSLContext:
        """Return a server's side, which asks for a certificate of this authority if it should."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        shown = names or ("127.0.0.1",)
        issued = self.ca.issue_cert(*shown, not_before=valid[0], not_after=valid[1])
        issued.configure_cert(context)
        if asks:
            self.ca.configure_trust(context)
            context.verify_mode = ssl.CERT_REQUIRED
        return context


def authority(directory: Path) -> Authority:
    ca = trustme.CA()
    files = [directory / name for name in ("ca.pem", "cert.pem", "key.pem", "both.pem")]
    issued = ca.issue_cert("collector@ladon.example")
    ca.cert_pem.write_to_path(files[0])
    issued.cert_chain_pems[0].write_to_path(files[1])
    issued.private_key_pem.write_to_path(files[2])
    issued.private_key_and_cert_chain_pem.write_to_path(files[3])
    return Authority(ca, *files)


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return authority(tmp_path_factory.mktemp("ours"))


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return authority(tmp_path_factory.mktemp("theirs"))


async def test_private_authority_is_trusted_where_it_is_named(ours: Authority) -> None:
    """With its file, as a path or as text, the client speaks to a service of the authority."""
    for file in (ours.ca_file, str(ours.ca_file)):
        async with served(watermark(), tls=ours.server(), ca_file=file) as (client, _):
            assert await client.get_watermark("kev") is not None


@pytest.mark.parametrize(
    ("doubt", "said"),
    [
        ("unknown authority", "is of an unknown authority .*; name the file of that authority"),
        ("another authority", "is of an unknown authority .*; name the file of that authority"),
        ("another name", "has another name .*; check the address"),
        ("another address", "has another name .*; check the address"),
        ("expired", "has expired .*; have it renewed"),
        ("not valid yet", "is not valid yet .*; set the clock"),
    ],
)
async def test_bad_certificate_counts_and_is_not_worth_repeating(
    ours: Authority, theirs: Authority, doubt: str, said: str
) -> None:
    """Nobody is spoken to who cannot show a valid certificate, and the error says what it lacks."""
    name = {"another name": "storage.example", "another address": "127.0.0.2"}.get(doubt)
    now = datetime.now(UTC)
    valid = {
        "expired": (now - 2 * DAY, now - DAY),
        "not valid yet": (now + DAY, now + 2 * DAY),
    }.get(doubt, (None, None))
    known = {"unknown authority": None, "another authority": theirs.ca_file}
    ca_file = known.get(doubt, ours.ca_file)
    tls = ours.server(*([name] if name else []), valid=valid)
    async with served(watermark(), tls=tls, ca_file=ca_file) as (client, server):
        with pytest.raises(StorageConnectionError, match=said) as caught:
            await client.get_watermark("kev")
        assert not caught.value.transient
        assert client.circuit_breaker.failure_count == 1
        with pytest.raises(StorageUnhealthyError, match=said):
            await client.health_check()
        assert not server.requests


async def test_plain_service_at_an_https_address_is_a_failure(tmp_path: Path) -> None:
    """A service that speaks no TLS is not spoken to."""
    async with (
        embedded_service(tmp_path / "watermarks.db") as address,
        StorageServiceClient(address.replace("http:", "https:")) as client,
    ):
        with pytest.raises(StorageConnectionError, match="no TLS at that port") as caught:
            await client.get_watermark("kev")
        assert "CERTIFICATE" not in str(caught.value).upper()
        assert not caught.value.transient
        assert client.circuit_breaker.failure_count == 1


@pytest.mark.parametrize("in_one_file", [True, False])
async def test_client_certificate_is_shown(ours: Authority, in_one_file: bool) -> None:
    """A service that asks who is there gets the certificate, its key in it or beside it."""
    shown: dict[str, Any] = {"client_cert": ours.cert_and_key}
    if not in_one_file:
        shown = {"client_cert": ours.cert, "client_key": ours.key}
    tls = ours.server(asks=True)
    async with served(watermark(), tls=tls, ca_file=ours.ca_file, **shown) as (client, _):
        assert await client.get_watermark("kev") is not None


def refuse(sock: socket.socket, tls: ssl.SSLContext) -> None:
    """Shake hands, as OpenSSL's own servers do: who is refused is told so before the end."""
    sock.setblocking(True)
    sock.settimeout(10)
    wrapped = tls.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
    with contextlib.suppress(ssl.SSLError):
        wrapped.do_handshake()
    with socket.socket(fileno=wrapped.detach()) as bare, contextlib.suppress(OSError):
        bare.shutdown(socket.SHUT_WR)
        while bare.recv(65_536):
            pass


@asynccontextmanager
async def strict_server(tls: ssl.SSLContext) -> AsyncIterator[str]:
    """Run a server that trusts nobody; asyncio's own drops the alert that a client should get."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)

        async def serve() -> None:
            while True:
                sock, _ = await asyncio.get_running_loop().sock_accept(listener)
                await asyncio.to_thread(refuse, sock, tls)

        serving = asyncio.create_task(serve())
        yield f"https://127.0.0.1:{listener.getsockname()[1]}"
        serving.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await serving


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("shows", ["nothing", "another's certificate"])
async def test_service_that_does_not_trust_the_client_is_not_worth_repeating(
    ours: Authority, theirs: Authority, version: ssl.TLSVersion, shows: str
) -> None:
    """A refusal that comes in the handshake, or after it as TLS 1.3's does, is one of trust."""
    cert = theirs.cert_and_key if shows != "nothing" else None
    tls = ours.server(asks=True)
    tls.minimum_version = tls.maximum_version = version
    async with (
        strict_server(tls) as address,
        StorageServiceClient(address, ca_file=ours.ca_file, client_cert=cert) as client,
    ):
        with pytest.raises(StorageConnectionError, match="client_cert") as caught:
            await client.get_watermark("kev")
        assert not caught.value.transient
        assert client.circuit_breaker.failure_count == 1


async def test_unverified_service_is_spoken_to_with_a_warning(
    ours: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    """Where it is allowed, no certificate is checked, and the log says what that means."""
    for allowed in ({"environment": "development"}, {"allow_unverified_ssl": True}):
        caplog.clear()
        tls = ours.server("storage.example")
        async with served(watermark(), tls=tls, verify_ssl=False, **allowed) as (client, _):
            assert await client.get_watermark("kev") is not None
        [record] = caplog.records
        assert record.levelno == logging.WARNING
        assert "is not verified" in record.getMessage()


async def test_unverified_service_still_gets_the_client_certificate(ours: Authority) -> None:
    """Checking nothing is about the service's certificate only."""
    options: dict[str, Any] = {"verify_ssl": False, "environment": "development"}
    for more in ({"client_cert": ours.cert_and_key}, {"ca_file": ours.ca_file}):
        tls = ours.server("storage.example", asks="client_cert" in more)
        async with served(watermark(), tls=tls, **options, **more) as (client, _):
            assert await client.get_watermark("kev") is not None


@pytest.mark.parametrize("environment", ["production", " PRODUCTION "])
def test_unverified_https_in_production_is_refused(environment: str) -> None:
    """A flag of development's does not reach production, and the error says what to do."""
    with pytest.raises(ConfigurationError, match=r"ca_file.*allow_unverified_ssl") as caught:
        StorageServiceClient(
            "https://u:s3cret@storage.example", verify_ssl=False, environment=environment
        )
    assert "s3cret" not in str(caught.value)


def test_unverified_http_in_production_warns(caplog: pytest.LogCaptureFixture) -> None:
    """Without TLS there is nothing to refuse, and still nobody is verified."""
    StorageServiceClient("http://u:s3cret@storage.example", verify_ssl=False)
    assert "is not verified" in caplog.text
    assert "s3cret" not in caplog.text


def test_verified_service_does_not_warn(caplog: pytest.LogCaptureFixture) -> None:
    """A client with the defaults says nothing."""
    StorageServiceClient("https://storage.example")
    assert not caplog.records


@pytest.mark.parametrize("argument", ["ca_file", "client_cert", "client_key"])
@pytest.mark.parametrize("problem", ["missing", "a directory", "of other content", "empty"])
def test_file_that_cannot_be_used_is_named_and_not_quoted(
    ours: Authority, tmp_path: Path, argument: str, problem: str
) -> None:
    """The mistake is told when the client is made, with the file's name and none of its content."""
    file = tmp_path / "mistake.pem"
    if problem == "a directory":
        file.mkdir()
    elif problem != "missing":
        file.write_text("-----BEGIN PRIVATE KEY-----\ns3cret" if problem != "empty" else "")
    arguments: dict[str, Any] = {argument: file}
    if argument == "client_key":
        arguments["client_cert"] = ours.cert
    with pytest.raises(ConfigurationError, match=argument) as caught:
        StorageServiceClient("https://storage.example", **arguments)
    assert "cannot be used" in str(caught.value)
    assert "s3cret" not in repr(caught.value)
    assert caught.value.__cause__ is None
    if argument != "client_key":
        assert "mistake.pem" in str(caught.value)


def test_key_of_another_certificate_is_refused(ours: Authority, theirs: Authority) -> None:
    """A certificate with a key that is not its own is found out before any request."""
    with pytest.raises(ConfigurationError, match="client_cert or client_key"):
        StorageServiceClient(
            "https://storage.example", client_cert=ours.cert, client_key=theirs.key
        )


def test_key_without_a_certificate_is_refused(ours: Authority) -> None:
    """Half of an identity is a mistake."""
    with pytest.raises(ConfigurationError, match="without client_cert"):
        StorageServiceClient("https://storage.example", client_key=ours.key)


def test_encrypted_key_is_refused_without_asking(
    ours: Authority, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Nobody is asked for a password at a terminal that a flow does not have."""
    key = serialization.load_pem_private_key(ours.key.read_bytes(), None)
    encrypted = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"s3cret"),
    )
    (tmp_path / "key.pem").write_bytes(encrypted)
    with pytest.raises(ConfigurationError, match="client_cert or client_key"):
        StorageServiceClient(
            "https://storage.example", client_cert=ours.cert, client_key=tmp_path / "key.pem"
        )
    assert capfd.readouterr() == ("", "")
