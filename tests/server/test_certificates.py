"""HTTPS by certificate files, which are renewed without a restart."""

from __future__ import annotations

import asyncio
import shutil
import ssl
from contextlib import AsyncExitStack, suppress
from pathlib import Path

import pytest
import trustme

from ladon_storage.errors import ConfigurationError
from ladon_storage.server import serving as server
from ladon_storage.server.serving import serving
from ladon_storage.server.tls import Certificate
from tests.service import calling, path


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    """Sign the certificates of this module."""
    return trustme.CA()


def written(authority: trustme.CA, folder: Path) -> tuple[Path, Path]:
    """Write a new certificate with its key, and return the two files."""
    issued = authority.issue_cert("127.0.0.1")
    certificate, key = folder / "tls.crt", folder / "tls.key"
    issued.cert_chain_pems[0].write_to_path(certificate)
    issued.private_key_pem.write_to_path(key)
    return certificate, key


async def shown(address: str, authority: trustme.CA) -> bytes:
    """Return the certificate that the service shows to a new connection."""
    trusted = ssl.create_default_context()
    authority.configure_trust(trusted)
    host, _, port = address.removeprefix("https://").partition(":")
    _, writer = await asyncio.open_connection(host, int(port), ssl=trusted)
    found: bytes = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.close()
    return found


@pytest.fixture
def trusted(authority: trustme.CA) -> ssl.SSLContext:
    """What a client trusts that knows the authority."""
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


async def test_service_speaks_https(
    tmp_path: Path, authority: trustme.CA, trusted: ssl.SSLContext
) -> None:
    """With a certificate the address is https, and a client that trusts its issuer is answered."""
    certificate = Certificate(*written(authority, tmp_path))
    async with (
        serving(tmp_path / "w.db", certificate=certificate) as address,
        calling(address) as call,
    ):
        assert address.startswith("https://127.0.0.1:")
        assert (await call("GET", path("kev"), ssl=trusted)).status == 404


@pytest.mark.parametrize("sent", [b"", b"\x16\x03"], ids=["nothing", "a beginning"])
async def test_connections_without_a_handshake_have_places(
    tmp_path: Path,
    authority: trustme.CA,
    trusted: ssl.SSLContext,
    monkeypatch: pytest.MonkeyPatch,
    sent: bytes,
) -> None:
    """They give way to new ones as those that send no request do, and keep nobody out."""
    monkeypatch.setattr(server, "possible_connections", lambda: 4)
    certificate = Certificate(*written(authority, tmp_path))
    async with (
        serving(tmp_path / "w.db", certificate=certificate) as address,
        calling(address) as call,
        asyncio.timeout(5),
        AsyncExitStack() as stack,
    ):
        host, _, port = address.removeprefix("https://").partition(":")
        readers = []
        for _ in range(9):
            reader, writer = await asyncio.open_connection(host, int(port))
            stack.callback(writer.close)
            writer.write(sent)
            readers.append(reader)
        for reader in readers[:5]:
            with suppress(ConnectionResetError):
                assert await reader.read() == b""
        assert (await call("GET", path("kev"), ssl=trusted)).status == 404
        metrics = (await call("GET", "/metrics", ssl=trusted)).text
    assert 'storage_service_connections_closed_total{reason="limit"}' in metrics


async def test_renewed_certificate_is_used_without_a_restart(
    tmp_path: Path, authority: trustme.CA
) -> None:
    """The next connection gets the new one; files that do not fit leave the old one in place."""
    files = written(authority, tmp_path)
    certificate = Certificate(*files)
    async with serving(tmp_path / "w.db", certificate=certificate) as address:
        first = await shown(address, authority)
        assert not certificate.renew()
        await asyncio.to_thread(shutil.copy, files[0], tmp_path / "old.crt")
        written(authority, tmp_path)
        await asyncio.to_thread(shutil.copy, tmp_path / "old.crt", files[0])
        assert not certificate.renew()
        assert await shown(address, authority) == first
        written(authority, tmp_path)
        assert certificate.renew()
        assert await shown(address, authority) != first


@pytest.mark.parametrize("content", [None, b"", b"no certificate"])
def test_unusable_certificate_is_one_sentence(tmp_path: Path, content: bytes | None) -> None:
    """A file that is missing or no certificate is named, and the service does not start."""
    if content is not None:
        (tmp_path / "tls.crt").write_bytes(content)
    with pytest.raises(ConfigurationError, match=r"certificate '.*tls\.crt' cannot be used"):
        Certificate(tmp_path / "tls.crt")
