"""URLs: which are valid, how they are redacted, and which may receive the same secrets.

- A query is sent as it was written. yarl decodes and encodes one that it changes: percent codes of
  another charset than UTF-8 are lost, and ``;`` no longer separates parameters.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Annotated
from urllib.parse import quote, unquote_plus

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
_SENDABLE = re.compile(r"(?:[\w.~!$&'()*+,;=:@/?-]|%[0-9A-Fa-f]{2})*", re.ASCII)
"""A query of nothing but the characters and the percent codes of RFC 3986."""

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


def as_written(text: str) -> URL:
    """Return the URL of a text, with its query as it is unless it cannot be sent like that.

    >>> as_written("https://feeds.example.org/recent?q=%D6%d0%20%2F;all").raw_query_string
    'q=%D6%d0%20%2F;all'

    Raises:
        ValueError: It is not a URL.
    """
    url = URL(text)
    query = text.partition("#")[0].partition("?")[2]
    return _with_raw_query(url, query) if _SENDABLE.fullmatch(query) else url


def normalized(url: URL) -> URL:
    """Return ``url`` for a comparison, as it may be written in several ways.

    >>> normalized(as_written("https://example.org/?q=%7e%2F")).raw_query_string
    'q=~/'
    """
    return URL(str(url))


def with_parameters(url: URL, parameters: Mapping[str, str | int]) -> URL:
    """Return ``url`` with parameters, which replace those of the same names; the others stay.

    >>> str(with_parameters(URL("https://example.org/?page=1&q=caf%E9"), {"page": 2, "size": 9}))
    'https://example.org/?page=2&q=caf%E9&size=9'
    """
    if not parameters:
        return url
    new = {
        name: URL().with_query({name: value}).raw_query_string for name, value in parameters.items()
    }
    left = dict(new)
    query = []
    for part in _parts(url):
        name, _ = _decoded(part)
        if name not in new:
            query.append(part)
        elif name in left:
            query.append(left.pop(name))
    return _with_raw_query(url, "&".join([*query, *left.values()]))


def with_those(url: URL, is_kept: Callable[[str, str], bool]) -> URL:
    """Return ``url`` with those parameters of its query whose name and value are kept.

    >>> str(with_those(URL("https://example.org/?q=caf%E9&page=2"), lambda name, _: name != "page"))
    'https://example.org/?q=caf%E9'
    """
    return _with_raw_query(url, "&".join(part for part in _parts(url) if is_kept(*_decoded(part))))


def _parts(url: URL) -> list[str]:
    query = url.raw_query_string.removesuffix("&")
    return query.split("&") if query else []


def _encoded(parameters: Mapping[str, str | int]) -> str:
    return URL().with_query(parameters).raw_query_string


def _decoded(part: str) -> tuple[str, str]:
    name, _, value = part.partition("=")
    return unquote_plus(name), unquote_plus(value)


def _with_raw_query(url: URL, query: str) -> URL:
    if query == url.raw_query_string:
        return url
    fragment = f"#{url.raw_fragment}" if url.raw_fragment else ""
    bare = str(url.with_query(None).with_fragment(None))
    return URL(f"{bare}{'?' if query else ''}{query}{fragment}", encoded=True)


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
