"""Addresses: which can be asked, how they are shown, and which may be told the same secrets."""

from __future__ import annotations

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


HttpUrl = Annotated[str, AfterValidator(check_url)]
"""An http or https address, kept as it was written."""


def shown(url: str | URL) -> str:
    """Return ``url`` without what may be secret.

    >>> shown("https://me:secret@feeds.example.org/recent?key=secret#top")
    'https://feeds.example.org/recent'
    """
    return str(URL(url).with_user(None).with_query(None).with_fragment(None))


def is_same_host(one: str | URL, other: str | URL) -> bool:
    """Tell whether what may be told to one address may be told to the other as well.

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
