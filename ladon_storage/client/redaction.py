"""The service's address, and the secrets of it that no error and no log may repeat.

- The base URL is kept without credentials; they go into one header.
- aiohttp's errors carry the request's headers, and quote a part of an answer that is not HTTP. So
  they are not chained where there are credentials, unless they are errors of the system.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from pydantic_core import from_json
from yarl import URL

from ladon_storage.errors import ConfigurationError, encodings_of, redacted

if TYPE_CHECKING:
    from ladon_storage.client.masking import Redactor

LONGEST_EXCERPT = 300


@dataclass(frozen=True, repr=False)
class Address:
    """The address of a service: its URL without credentials, their header, and their secrets."""

    url: URL
    headers: dict[str, str]
    secrets: tuple[str, ...]

    def __repr__(self) -> str:
        return f"<Address {self.url}>"

    @property
    def place(self) -> str:
        """The service as errors name it."""
        return f"The Storage Service at {self.url}"

    def excerpt(self, body: bytes) -> str:
        """Return a response's text on one line, without the client's secrets."""
        # Redacted before it is cut: the beginning of a secret must not appear either.
        return self.redact(_one_line(body))

    def redact(self, text: str) -> str:
        """Return the beginning of a text, without the client's secrets."""
        return self._mask.of(redacted(text, encodings_of(*self.secrets)))[:LONGEST_EXCERPT]

    @cached_property
    def _mask(self) -> Redactor:
        # Only where something failed: the expressions of a long token take a moment.
        from ladon_storage.client.masking import Redactor

        return Redactor(self.secrets)


def address_of(base_url: str, token: str | None) -> Address:
    """Return the address that a URL and a token give.

    Raises:
        ConfigurationError: The URL is none of a service, or the credentials cannot be used.
    """
    try:
        url = URL(base_url.strip())
        usable = url.scheme in ("http", "https") and url.host and not url.query and not url.fragment
        user, password = url.user or "", url.password or ""
    except (ValueError, AttributeError):
        usable = False
    if not usable or ":" in user:
        # The text itself may hold a password.
        raise ConfigurationError(
            "The address of the Storage Service should look like https://storage.example:8000; "
            "set it without a query or fragment."
        )
    bare = url.with_user(None)
    bare = bare.with_path(bare.raw_path.rstrip("/"), encoded=True)
    if token is not None and (user or password):
        raise ConfigurationError(
            f"The address of the Storage Service at {bare} has a user, and there is a token; "
            "set one of them."
        )
    if token is not None:
        if not token.strip() or not token.isascii() or not token.isprintable():
            raise ConfigurationError(
                "The token of the Storage Service should be visible ASCII characters; set another."
            )
        return Address(bare, {"Authorization": f"Bearer {token}"}, (token,))
    if user or password:
        basic = base64.b64encode(f"{user}:{password}".encode()).decode()
        return Address(bare, {"Authorization": f"Basic {basic}"}, (basic, password))
    return Address(bare, {}, ())


def _one_line(body: bytes) -> str:
    """Return the service's text of an error on one line: JSON's ``error``, or the body as it is."""
    text = body.decode("utf-8", "replace")
    try:
        fields = from_json(body)
        text = str(fields["error"]) if isinstance(fields, dict) and "error" in fields else text
    except ValueError:
        pass
    # Unprintable characters could write lines, or control a terminal, in a log.
    visible = "".join(character if character.isprintable() else " " for character in text)
    return " ".join(visible.split())


def redact_url(location: str) -> str:
    """Return a URL without the parts that may be secret."""
    try:
        return str(URL(location).with_query(None).with_fragment(None).with_user(None))
    except ValueError:
        return "another place"
