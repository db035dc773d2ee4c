"""The rules for redirects: within the source's site, and elsewhere only where it was allowed.

- A site is a host and its port, or the same host when it changes from http to https. The same name
  with ``www.`` is another site: only its owner knows that both are theirs.
- The user and the password of an address that a service sends are dropped, as in links.
- No redirect leads from https to http, not even to an allowed host.
- A redirect within the site to the same path, or to that with a slash or without one, keeps the
  query: it asks for what was asked for. A server that loses all of it would answer something else.
  Elsewhere an address without it, or with another one, may well be meant, as of a download. Nor do
  the first page and offset count: an address may be shorter without them.
- Another site gets neither keys nor configured headers, except for the media type that is wanted. A
  redirect from there back to the source's site gets all of them again: without them that may list
  other records. A body is never sent on: it may not be meant for the other site.
"""

from __future__ import annotations

from dataclasses import replace

from yarl import URL

from ladon_storage.sources.http.transport import HttpTransport, Request
from ladon_storage.sources.http.urls import as_written, check_url, is_same_host

_BEGINNING = frozenset({"", "0", "1"})


def redirected(transport: HttpTransport, request: Request, location: str, origin: URL) -> Request:
    """Return the request that a redirect asks for.

    Args:
        transport: The maker of requests.
        request: The request that was redirected.
        location: The address that the redirect leads to.
        origin: The address that was requested before all redirects.

    Raises:
        SourceError: It leads to an invalid or forbidden address, or the request was a POST.
    """
    try:
        # As text in between: what yarl takes from a path with "://" in it is not quoted again.
        target = as_written(str(request.url.join(as_written(location))))
        check_url(str(target))
    except ValueError:
        target = None
    if target is not None and target.raw_user is not None:
        target = target.with_user(None)  # the source's own credentials are the only ones
    if target is None:
        raise transport.error(request.url, "redirects nowhere", "check the address")
    if request.method != "GET":
        raise transport.error(
            request.url,
            f"redirects a {request.method} to {transport.redact_url(target)}, and was not followed",
            "set the address to the target if that is right",
        )
    if request.url.scheme == "https" and target.scheme == "http":
        raise transport.error(
            request.url,
            f"redirects to {transport.redact_url(target)}, which is not encrypted, and was not "
            "followed",
            "set the address to the target if that is right",
        )
    is_home = is_same_host(origin, target)
    if not (is_home or transport.route.allows(target)):
        transport.check_host(replace(request, url=target))
        raise transport.error(
            request.url,
            f"redirects to {transport.redact_url(target)}, another site, and was not followed",
            "set the address to the target, or allow its host in redirects_to of the connection",
        )
    if is_home and (lost := _lost(request.url, target)):
        raise transport.error(
            request.url,
            f"redirects to {transport.redact_url(target)} without the request's "
            f"{', '.join(map(repr, lost))}, and was not followed",
            "set the address to the target, and remove what it does not take",
        )
    if target.user is None and target.origin() == origin.origin():
        target = target.with_user(origin.user).with_password(origin.password)
    return replace(request, url=target, has_left=not is_home)


def _lost(url: URL, target: URL) -> list[str]:
    """Return the parameters without which a redirect leads to the same path."""
    if target.raw_query_string or url.raw_path.rstrip("/") != target.raw_path.rstrip("/"):
        return []
    return list(dict.fromkeys(name for name, value in url.query.items() if value not in _BEGINNING))
