"""URLs: which are valid, how they are redacted, and which may receive the same secrets."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated
from urllib.parse import quote

from pydantic import AfterValidator
from yarl import URL


def check_url(value: str) -> str:
    """Return ``value`` if it is an http or https address with a host.

    Raises:
        ValueError: It is not.
    """
    try:
        url = URL(value)
        usable = url.scheme in ("http", "https") and bool(url.host)
    except ValueError:
        usable = False
    if not usable:
        raise ValueError("should be an address such as https://feeds.example.org/recent.json")
    return value


LONGEST_ADDRESS = 2**16
"""Characters of the longest address or cursor that is followed; servers take far shorter ones."""

HttpUrl = Annotated[str, AfterValidator(check_url)]
"""An http or https address, kept as it was written."""

_SECRET_NAME = re.compile(
    r"secret|passw|passphrase|pwd$|credential|authorization|^x?auth$|^(bearer|jwt|sig|signature)$|"
    r"(api|access|auth|private|account|subscription|licen[sc]e)key|"
    r"(?<!page)(?<!next)(?<!sync)(?<!skip)(?<!start)(?<!continuation)token"
)
_RANDOM = re.compile(r"(?=.*[0-9])(?=.*[A-Za-z])[A-Za-z0-9_-]{16,}")


def secret_in(name: str, value: object) -> str | None:
    """Return the name of the parameter that seems to hold a secret: of ``value``, or in it.

    >>> secret_in("", {"page": 1, "filter": {"apiKey": "hunter2"}})
    'apiKey'
    >>> secret_in("", {"page_token": "x", "author": "me", "key": "name", "token": ""})
    """
    if isinstance(value, Mapping):
        found = (secret_in(str(key), each) for key, each in value.items())
        return next((each for each in found if each is not None), None)
    if isinstance(value, list | tuple):
        return next((each for each in (secret_in(name, one) for one in value) if each), None)
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        return None
    plain = re.sub(r"[^a-z0-9]", "", name.lower())
    # A field's name may be called "key", too.
    is_key = plain == "key" and _RANDOM.fullmatch(str(value)) is not None
    return name if is_key or _SECRET_NAME.search(plain) else None


def _keep_secrets_out(value: str) -> str:
    url = URL(value)
    if url.user or url.password:
        raise ValueError(
            "the address contains a password or a user; store it as a secret, and set key "
            "to its name"
        )
    for name, text in url.query.items():
        if secret_in(name, text):
            raise ValueError(
                f"the address contains a secret in {name}; store it as a secret, and set key to "
                "its name and, for a query parameter, key_param"
            )
    return value


SourceUrl = Annotated[HttpUrl, AfterValidator(_keep_secrets_out)]
"""The address of a source without secrets, since Prefect stores and shows it."""


def redact_url(url: str | URL) -> str:
    """Return ``url`` without parts that may be secret.

    >>> redact_url("https://me:secret@feeds.example.org/recent?key=secret#top")
    'https://feeds.example.org/recent'
    """
    return str(URL(url).with_user(None).with_query(None).with_fragment(None))


def with_query(url: str | URL) -> str:
    """Return ``url`` as `redact_url` does, with the parameters of its query that are not secret.

    >>> with_query("https://me:secret@feeds.example.org/recent?page=2&api_key=secret")
    'https://feeds.example.org/recent?page=2&api_key=***'
    """
    query = [
        f"{name}={'***' if secret_in(name, value) else value}"
        for name, value in URL(url).query.items()
    ]
    return redact_url(url) + (f"?{'&'.join(query)}" if query else "")


def is_same_host(one: str | URL, other: str | URL) -> bool:
    """Return whether credentials for one URL may be sent to the other.

    >>> is_same_host("http://example.org/a", "https://example.org/b")  # no worse than it was
    True
    >>> is_same_host("https://example.org/a", "http://example.org/a")
    False
    """
    one, other = URL(one), URL(other)
    if one.host != other.host:
        return False
    if one.scheme == other.scheme:
        return one.port == other.port
    upgraded = (one.scheme, other.scheme) == ("http", "https")
    return upgraded and one.is_default_port() and other.is_default_port()


def with_key(url: str, key: str | None) -> str:
    """Return ``url`` with the key in place of ``{key}``, for services that want it in the path.

    >>> with_key("https://feeds.example.org/{key}/recent.csv", "a/b")
    'https://feeds.example.org/a%2Fb/recent.csv'
    """
    return url.replace("{key}", quote(key, safe="")) if key else url
