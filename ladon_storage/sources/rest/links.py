"""Links from a page to another one: in its headers, and as an address in its document.

- A link leads on as the source reached this page: with TLS, and without a user of its own.
"""

from __future__ import annotations

import re

from yarl import URL

from ladon_storage.sources.http.client import HttpResponse
from ladon_storage.sources.http.urls import check_url
from ladon_storage.sources.rest.names import count_in

_VALUE = r"(?:\"[^\"]*\"|'[^']*'|[^\"';,\s]*)"
_PARAMETER = re.compile(rf";\s*([^\s=;,]+)\s*(?:=\s*({_VALUE}))?")
_LINK = re.compile(rf"<([^>]*)>((?:\s*;\s*[^\s=;,]+\s*(?:=\s*{_VALUE})?)*)")


def next_in(headers: list[str]) -> str | None:
    """Return the address of the next page in the values of `Link` headers."""
    return linked(headers, "next")


def linked(headers: list[str], relation: str) -> str | None:
    """Return the address of the page with a relation to this one, by the `Link` headers' values.

    >>> linked(['<http://example.org/?page=1>; rel="prev", </?page=3>; title="a, b"; rel=next'],
    ...        "next")
    '/?page=3'
    """
    for value in headers:
        for target, parameters in _LINK.findall(value):
            attributes = {
                name.lower(): value.strip("\"'").lower()
                for name, value in reversed(_PARAMETER.findall(parameters))
            }
            if "anchor" in attributes:
                continue  # it is of another document
            if (
                relation in attributes.get("rel", "").split()
                and attributes.get("results") != "false"
            ):
                return str(target)
    return None


def number_in(link: str, parameter: str) -> int | None:
    """Return the number in a parameter of a link.

    >>> number_in("/x?page=5", "page"), number_in("/x?page=five", "page")
    (5, None)
    """
    try:
        return count_in(URL(link).query.get(parameter))
    except ValueError:
        return None


def link_target(answer: HttpResponse, link: object, *, keep_host: bool = False) -> URL:
    """Return the address that a link in an answer leads to.

    Raises:
        ValueError: It is no address.
    """
    home = answer.url
    try:
        if isinstance(link, dict):
            link = link.get("href")
        if not isinstance(link, str):
            raise ValueError  # noqa: TRY301 - the same to the reader
        there = URL(link.strip())
        if not there.host and (there.scheme or link.strip().startswith("//")):
            raise ValueError  # noqa: TRY301
        if there.raw_user is not None:
            there = there.with_user(None)  # the source's own credentials are the only ones
        target = home.join(there)
        if keep_host:
            target = _at_home(home, target)
        check_url(str(target))
        target.port  # noqa: B018 - it is only looked at here
    except ValueError:
        raise ValueError("has a next link that is not a valid address") from None
    # Services behind a TLS proxy often give their own addresses with http.
    if target.scheme == "http" and home.scheme == "https" and target.host == home.host:
        return target.with_scheme("https")
    return target


def _at_home(home: URL, target: URL) -> URL:
    """Return an address of a backend in the form that the gateway in front of it uses."""
    # A gateway's address often has a prefix that the backend does not know.
    path = home.raw_path if home.raw_path.endswith(target.raw_path) else target.raw_path
    at_home = str(home.with_query(None).with_fragment(None).with_path(path, encoded=True))
    query = f"?{target.raw_query_string}" if target.raw_query_string else ""
    return URL(at_home + query, encoded=True)
