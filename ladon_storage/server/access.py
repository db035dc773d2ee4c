"""Which requests the service answers: by host, by origin, and by token.

- Without a token the service is for programs of this machine. A web page can point a name of its
  own at a loopback address, so the request's ``Host`` must be a loopback name or an allowed one.
- A service that others reach asks for a token even where the last one was revoked.
- A browser's request from another site is refused, with or without a token.
- A token is kept as its SHA-256 alone. It is 256 random bits, so no slow hash is needed. Nothing
  but the token itself admits, so that a copy of the database opens no door.
- A token may be limited to reading, and to sources whose names begin with a prefix. It is looked up
  in the database at each request: revoking it holds from the next one on.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import logging
import secrets
from collections.abc import Sequence
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple, Protocol
from urllib.parse import quote, unquote

from aiohttp import hdrs

from ladon_storage.errors import ConfigurationError, RequestError
from ladon_storage.server.dialect import Connection
from ladon_storage.server.rows import from_microseconds, to_microseconds
from ladon_storage.values import check_form, seen

if TYPE_CHECKING:  # a store in a file of one's own needs no server
    from aiohttp import web

logger = logging.getLogger(__name__)

SHORT_TOKEN_LENGTH = 16
"""The length below which an operator's token is warned of."""
SAFE_METHODS = frozenset({"GET", "HEAD"})


OPERATOR = "operator"
"""The name of the token that the service was started with."""
COOKIE = "ladon_session"
SESSION_SECONDS = 12 * 3600
"""How long a browser stays signed in."""


class Token(NamedTuple):
    """What one token may do.

    Args:
        name: Its name; empty: none is required.
        read_only: Whether it changes nothing.
        prefix: How the names of its sources begin.
    """

    name: str
    read_only: bool = False
    prefix: str = ""


class StoredToken(NamedTuple):
    """A token as the database has it, without its secret."""

    name: str
    read_only: bool
    prefix: str
    created_at: datetime


_ANYBODY = Token("")


class TokenStore(Protocol):
    """The stored tokens of a service."""

    def find_token(self, digest: bytes) -> Token | None:
        """Return the token of a digest, if there is one."""
        ...

    def has_tokens(self) -> bool:
        """Return whether any token is stored."""
        ...


class Access:
    """The rules of one service's requests.

    Args:
        token: The operator's token, which may do everything; ``None``: there is none.
        tokens: The stored tokens.
        allowed_hosts: The names that ``Host`` may have besides those of loopback.
        is_local: Whether only this machine reaches the service.
    """

    def __init__(
        self,
        token: str | None,
        tokens: TokenStore,
        allowed_hosts: Sequence[str] = (),
        *,
        is_local: bool = True,
    ) -> None:
        self._may_be_open = token is None and is_local
        self._digest = None if token is None else digest(token.encode())
        self._tokens = tokens
        self._allowed_hosts = frozenset(host.lower() for host in allowed_hosts)

    @property
    def is_open(self) -> bool:
        """Whether no token is required."""
        return self._may_be_open and not self._tokens.has_tokens()

    def check_origin(self, request: web.Request, *, is_open: bool) -> None:
        """Refuse a request that a web page of another site makes a browser send.

        Args:
            request: The request.
            is_open: Whether no token is required.

        Raises:
            RequestError: With 421 the ``Host`` is not one of this service, with 403 the ``Origin``.
        """
        headers = request.headers
        host = headers.get(hdrs.HOST)
        if is_open and host is not None:
            name = _name_of(host)
            if not is_loopback(name) and name not in self._allowed_hosts:
                raise RequestError(
                    f"This service is not {name!r}. Ask it as localhost, or start it with "
                    "--allow-host or with a token.",
                    421,
                    "Host",
                )
        origin = headers.get("Origin")
        # Compared as text: to be parsed it would have to be a URL.
        own = (host or "").lower()
        foreign = origin is not None and origin.partition("://")[2].lower() != own
        if foreign or headers.get("Sec-Fetch-Site") in ("cross-site", "same-site"):
            # A link from another page is no danger: it only reads, for its reader.
            if headers.get("Sec-Fetch-Mode") == "navigate" and request.method == "GET":
                return
            raise RequestError("A page of another site may not ask this service.", 403, "Origin")

    def of(
        self, request: web.Request, *, is_open: bool | None = None, is_page: bool = True
    ) -> Token | None:
        """Return what a request may do; ``None``: it has no token and no session.

        Args:
            request: The request.
            is_open: Whether no token is required, where its caller has looked already.
            is_page: Whether it is for a page, to which a browser signs in.
        """
        if self.is_open if is_open is None else is_open:
            return _ANYBODY
        if (found := self._of_secret(bearer(request))) or not is_page:
            return found
        return self._of_secret(unquote(request.cookies.get(COOKIE, "")))

    def session(self, secret: str) -> str | None:
        """Return the cookie of a browser with this token; ``None``: it is no token."""
        return None if self._of_secret(secret) is None else quote(secret, safe="")

    def _of_secret(self, secret: str | None) -> Token | None:
        if not secret:
            return None
        given = _given(secret)
        if self._digest is not None and hmac.compare_digest(given, self._digest):
            return Token(OPERATOR)
        return self._tokens.find_token(given)


def check_allowed(token: Token, method: str, sources: str) -> None:
    """Check that a token may do what a request asks for.

    Args:
        token: The token.
        method: The request's method.
        sources: The source that it is about, or the prefix of its sources; empty: all of them.

    Raises:
        RequestError: With 403, it may not.
    """
    if token.read_only and method not in SAFE_METHODS:
        raise RequestError(f"Token {token.name!r} may only read.", 403)
    if not sources.startswith(token.prefix):
        raise RequestError(
            f"Token {token.name!r} is for sources whose names begin with {token.prefix!r}.", 403
        )


def bearer(request: web.Request) -> str | None:
    """Return the token that a request carries as ``Authorization: Bearer``."""
    scheme, _, token = request.headers.get(hdrs.AUTHORIZATION, "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else None


def _given(secret: str) -> bytes:
    return digest(secret.encode("utf-8", "surrogateescape"))


def digest(secret: bytes) -> bytes:
    """Return the form in which a token is kept."""
    return hashlib.sha256(secret).digest()


@lru_cache(maxsize=64)
def is_loopback(host: str) -> bool:
    """Return whether a name or an address is of this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def check_token(token: str, origin: str) -> str:
    """Return an operator's token if it can be one, and warn of one that can be guessed.

    Raises:
        ConfigurationError: It is no word of a header.
    """
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise ConfigurationError(
            f"The token in {origin} should be one word of visible ASCII characters; set another."
        )
    if len(token) < SHORT_TOKEN_LENGTH:
        logger.warning(
            "The token in %s is shorter than %d characters, and can be guessed. Set a longer one, "
            "such as that of `openssl rand -hex 32`.", origin, SHORT_TOKEN_LENGTH
        )  # fmt: skip
    return token


def add_token(
    connection: Connection, name: str, now: datetime, *, read_only: bool, prefix: str
) -> str:
    """Store a new token, and return its secret, which is kept nowhere.

    Raises:
        ConfigurationError: There is a token of this name, or of one that looks the same in a list;
            or the name has another form than the one that names have.
    """
    try:
        check_form(name, "A token's name")
    except ValueError as error:
        raise ConfigurationError(f"{error}; choose another than {name!a}.") from None
    if seen(name) == OPERATOR:
        raise ConfigurationError(f"{name!r} is the service's own token; choose another name.")
    if alike := [each for each in look_alikes(connection, name) if each != name]:
        raise ConfigurationError(
            f"There is a token {alike[0]!a}, which looks the same in a list. Revoke it first, "
            "or choose another name."
        )
    secret = "ladon_" + secrets.token_urlsafe(32)
    row = (name, digest(secret.encode()), int(read_only), prefix, to_microseconds(now))
    added = connection.execute(
        "INSERT INTO tokens (name, digest, read_only, prefix, created_at) "
        "VALUES (?, ?, ?, ?, ?) ON CONFLICT (name) DO NOTHING",
        row,
    )
    if added.rowcount != 1:
        raise ConfigurationError(
            f"There is a token {name!r} already. Revoke it first, or choose another name."
        )
    return secret


def revoke_token(connection: Connection, name: str) -> bool:
    """Delete a token; return whether there was one."""
    return connection.execute("DELETE FROM tokens WHERE name = ?", (name,)).rowcount == 1


def look_alikes(connection: Connection, name: str) -> list[str]:
    """Return the names of stored tokens that a reader sees as this name, such as an older one's."""
    return [each.name for each in stored_tokens(connection) if seen(each.name) == seen(name)]


def stored_tokens(connection: Connection) -> list[StoredToken]:
    """Return all stored tokens by name."""
    rows = connection.execute(
        "SELECT name, read_only, prefix, created_at FROM tokens ORDER BY name"
    ).fetchall()
    return [
        StoredToken(name, bool(read_only), prefix, from_microseconds(created))
        for name, read_only, prefix, created in rows
    ]


def _name_of(host: str) -> str:
    """Return the name in a ``Host`` header, without its port and brackets."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.rpartition(":")[0].lower() if ":" in host else host.lower()
