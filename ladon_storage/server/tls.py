"""The service's certificate, from files that are read again when they change.

A certificate that is renewed is used from the next connection on. Where the new files cannot be
used, such as while only one of the two is written, the old certificate stays, and a log line says
why.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from asyncio.sslproto import SSLProtocol
from pathlib import Path

from ladon_storage.errors import ConfigurationError
from ladon_storage.server.connections import HEADERS_SECONDS
from ladon_storage.server.responses import Protocol

logger = logging.getLogger(__name__)

LOOK_SECONDS = 5.0
"""The time between two looks at the files."""


class Certificate:
    """A certificate with its key, for the connections of a service.

    Args:
        certificate: The file with the certificate and its chain, as PEM.
        key: The file with the private key, as PEM; ``None``: it is in the same file.

    Raises:
        ConfigurationError: The files cannot be used.
    """

    def __init__(self, certificate: Path, key: Path | None = None) -> None:
        self.context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self._files = (certificate, key)
        self._seen = self._state()
        try:
            self._load(self.context)
        except OSError as error:  # ssl's are, too
            raise ConfigurationError(
                f"The certificate {str(certificate)!r} cannot be used ({error}); name PEM files of "
                "a certificate and its key that this user may read."
            ) from error

    def renew(self) -> bool:
        """Read the files again if they changed; return whether a new certificate is used."""
        state = self._state()
        if state == self._seen:
            return False
        self._seen = state
        try:
            # A pair that does not fit would leave the context without a certificate.
            self._load(ssl.create_default_context(ssl.Purpose.CLIENT_AUTH))
            self._load(self.context)
        except (OSError, ConfigurationError) as error:  # ssl's are OSErrors
            logger.warning(
                "The renewed certificate %s cannot be used (%s); the old one stays",
                self._files[0], error,
            )  # fmt: skip
            return False
        logger.info("The renewed certificate %s is used", self._files[0])
        return True

    def _load(self, context: ssl.SSLContext) -> None:
        context.load_cert_chain(*self._files, password=_no_password)

    def _state(self) -> list[tuple[int, int, int] | None]:
        return [_state(file) for file in self._files if file is not None]


class Secured(SSLProtocol):
    """The TLS of a connection, which has its place among all before it has begun a handshake.

    A server that asyncio gives TLS tells ``protocol`` of a connection only after its handshake.

    Args:
        protocol: The HTTP of the connection.
        context: The certificate.
    """

    def __init__(self, protocol: Protocol, context: ssl.SSLContext) -> None:
        super().__init__(
            asyncio.get_running_loop(),
            protocol,
            context,
            None,  # type: ignore[arg-type]  # nobody waits for the handshake
            server_side=True,
            ssl_handshake_timeout=HEADERS_SECONDS,  # type: ignore[arg-type]  # any number
        )
        self._of = protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take a place, and begin the handshake."""
        super().connection_made(transport)
        self._of.accepted(transport)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Give the place back."""
        self._of.left()
        super().connection_lost(exc)


def _no_password() -> str:
    """Refuse a key that needs a password: OpenSSL would ask for it on the terminal."""
    raise ConfigurationError("The certificate's key is encrypted; write it without a password.")


def _state(file: Path) -> tuple[int, int, int] | None:
    try:
        stat = file.stat()
    except OSError:
        return None
    return stat.st_ino, stat.st_mtime_ns, stat.st_size
