"""Links from a page to another one: in its headers, and as an address in its document.

- A link leads on as the source reached this page: with TLS, and without a user of its own.
"""

from __future__ import annotations

import re

from yarl import URL

from ladon_storage.sources.http.client import HttpResponse
from ladon_storage.sources.http.urls import LONGEST_ADDRESS, as_written, check_url

_QUOTED = r"\"(?:[^\"\\]|\\.)*\""
# The last but one is that of RFC 8187, with a charset: UTF-8''a%20title.
_VALUE = rf"(?:{_QUOTED}|'[^']*'|[\w-]+'[^';,\s]*'[^\"';,\s]*|[^\"';,\s]*)"
_PARAMETER = re.compile(rf";\s*([^\s=;,]+)\s*(?:=\s*({_VALUE}))?")
# Nor has an address a "<": without that rule, many of them would take seconds.
_LINK = re.compile(rf"<([^<>]*)>((?:\s*;\s*[^\s=;,]+\s*(?:=\s*{_VALUE})?)*)")


_MOST_RELATIONS = 10
_NEXT = re.compile(r"(?:.*[/#:])?next(?:[-_]?page)?")
_UNREAD = re.compile(r"\brel\s*=\s*[\"']?(?:[\w-]+\s+)*next\b", re.IGNORECASE)


def hides_next(headers: list[str]) -> bool:
    """Return whether `Link` headers name a next page in a form that is none of a link.

    >>> hides_next(['</?page=2>; rel="next"']), hides_next(['/?page=2; rel="next"'])
    (False, True)
    """
    return any(_UNREAD.search(_LINK.sub("", value)) for value in headers)


def next_in(headers: list[str], page: URL | None = None) -> str | None:
    """Return the address of the next page in the values of `Link` headers."""
    return linked(headers, "next", page)


def linked(headers: list[str], relation: str, page: URL | None = None) -> str | None:
    """Return the address of the page with a relation to this one, by the `Link` headers' values.

    A link with an anchor belongs to the document that this names. It counts if that is this page,
    and no link without an anchor has the relation.

    >>> linked(['<http://example.org/?page=1>; rel="prev", </?page=3>; title="a, b"; rel=next'],
    ...        "next")
    '/?page=3'
    """
    anchored = None
    for value in headers:
        for target, parameters in _LINK.findall(value):
            attributes = {
                name.lower(): value.strip("\"'")
                for name, value in reversed(_PARAMETER.findall(parameters))
            }
            stated = attributes.get("rel", "").lower().split()
            if relation not in [
                "next" if _NEXT.fullmatch(each) else each for each in stated[:_MOST_RELATIONS]
            ]:
                continue
            if attributes.get("results", "").lower() == "false":
                continue
            if "anchor" not in attributes:
                return str(target)
            if anchored is None and page is not None and _is_of(page, attributes["anchor"]):
                anchored = str(target)
    return anchored


def _is_of(page: URL, anchor: str) -> bool:
    """Return whether an anchor is this page, also as a backend behind a gateway names it."""
    try:
        path = page.join(URL(anchor)).path
    except ValueError:
        return False
    return path.endswith(page.path) or page.path.endswith(path)


def parameters_of(page: URL, link: object) -> list[tuple[str, str]]:
    """Return the query parameters of a link on a page; none if it is no link.

    >>> parameters_of(URL("http://example.org/"), {"href": "/x?page=5"})
    [('page', '5')]
    """
    if isinstance(link, dict):
        link = link.get("href")
    try:
        if isinstance(link, str) and "?" in link and len(link) <= LONGEST_ADDRESS:
            return list(page.join(URL(link)).query.items())
    except ValueError:
        pass
    return []


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
        there = as_written(link.strip())
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
