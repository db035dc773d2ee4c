"""The services for which this package has a kind of its own, recognised by their answers.

A kind that needs a key is proposed only if the request had a key: an answer that was read without a
key must stay readable without one.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from yarl import URL

from ladon_storage.sources.http.client import HttpResponse
from ladon_storage.sources.json.items import value_at

_COLLECTION = re.compile(r"^(.*/collections/[^/]+/?)(objects/?)?$")
_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


@dataclass(frozen=True)
class Seen:
    """An answer and its request."""

    url: URL
    method: str
    body: Any
    answer: HttpResponse
    document: Any
    has_key: bool


@dataclass(frozen=True)
class Provider:
    """A service with recognisable answers.

    Args:
        kind: The kind of source.
        name: The service.
        needs_key: Whether the kind needs a key.
        settings: A function that returns the settings for an answer of the service; ``None``: it is
            another's.
    """

    kind: str
    name: str
    needs_key: bool
    settings: Callable[[Seen], dict[str, Any] | None]


def recognised(seen: Seen) -> tuple[Provider, dict[str, Any]] | None:
    """Return the service that an answer comes from, and the settings of its source."""
    for provider in PROVIDERS:
        if (settings := provider.settings(seen)) is not None:
            return provider, {"kind": provider.kind, **settings}
    return None


def is_taxii(url: URL) -> bool:
    """Return whether a URL is one of TAXII, by its path."""
    return "/collections/" in f"{url.path}/" or "/taxii2" in url.path


def _has(item: object, *paths: str) -> bool:
    return all(value_at(item, path) is not None for path in paths)


def _bare(seen: Seen) -> str:
    return str(seen.url.with_query(None).with_fragment(None))


def _kev(seen: Seen) -> dict[str, Any] | None:
    if _has(seen.document, "catalogVersion", "vulnerabilities.0.cveID"):
        return {"url": str(seen.url)}
    return None


def _nvd(seen: Seen) -> dict[str, Any] | None:
    if _has(seen.document, "totalResults", "vulnerabilities.0.cve.lastModified"):
        return {"url": _bare(seen)}
    return None


def _otx(seen: Seen) -> dict[str, Any] | None:
    first = value_at(seen.document, "results.0")
    if _has(seen.document, "count") and _has(first, "id", "modified", "indicators"):
        return {"url": _bare(seen)}
    return None


def _taxii(seen: Seen) -> dict[str, Any] | None:
    path = _COLLECTION.match(seen.url.path)
    media = seen.answer.headers.get("Content-Type", "")
    is_media = "taxii+json" in media or "X-TAXII-Date-Added-First" in seen.answer.headers
    if path is None or not (is_media or _has(seen.document, "objects.0.id")):
        return None
    return {"url": str(seen.url.with_path(path[1]).with_query(None))}


def _misp_feed(seen: Seen) -> dict[str, Any] | None:
    document = seen.document
    if not isinstance(document, dict) or not document or not all(map(_UUID.fullmatch, document)):
        return None
    if not _has(next(iter(document.values())), "timestamp", "info"):
        return None
    folder = seen.url.parent if not seen.url.path.endswith("/") else seen.url
    return {"via": "feed", "url": _bare_of(folder)}


def _misp(seen: Seen) -> dict[str, Any] | None:
    tail = "/events/restSearch"
    if not _has(seen.document, "response.0.Event.uuid") or not seen.url.path.endswith(tail):
        return None
    filters = dict(seen.body) if isinstance(seen.body, dict) else {}
    for ours in ("returnFormat", "limit", "page", "order", "timestamp"):
        filters.pop(ours, None)
    url = seen.url.with_path(seen.url.path.removesuffix(tail) or "/").with_query(None)
    return {"url": str(url), **({"filters": filters} if filters else {})}


def _threatfox_export(seen: Seen) -> dict[str, Any] | None:
    document = seen.document
    first = next(iter(document.values()), None) if isinstance(document, dict) else None
    if _has(first, "0.ioc_value", "0.first_seen_utc") and len(first or ()) == 1:
        return {"via": "export", "url": str(seen.url)}
    return None


def _threatfox(seen: Seen) -> dict[str, Any] | None:
    asked = value_at(seen.body, "query")
    if asked == "get_iocs" and _has(seen.document, "query_status", "data.0.ioc"):
        return {"via": "api", "url": _bare(seen)}
    return None


def _urlhaus(seen: Seen) -> dict[str, Any] | None:
    if _has(seen.document, "query_status", "urls.0.url_status", "urls.0.urlhaus_reference"):
        return {"via": "api", "url": str(seen.url)}
    return None


def _urlhaus_dump(seen: Seen) -> dict[str, Any] | None:
    start = seen.answer.body[:2_000]
    columns = b"id,dateadded,url,url_status" in start.replace(b'"', b"").replace(b" ", b"")
    if seen.document is None and (columns or b"URLhaus Database Dump (CSV" in start):
        is_online = "online" in seen.url.path
        return {"via": "online" if is_online else "recent", "url": str(seen.url)}
    return None


def _bare_of(url: URL) -> str:
    return str(url.with_query(None).with_fragment(None)).rstrip("/") + "/"


PROVIDERS = (
    Provider("kev", "CISA's catalogue of exploited vulnerabilities", False, _kev),
    Provider("nvd", "NVD's CVE API", False, _nvd),
    Provider("taxii", "a TAXII 2.1 collection", False, _taxii),
    Provider("otx", "AlienVault OTX", True, _otx),
    Provider("misp", "the manifest of a MISP feed", False, _misp_feed),
    Provider("misp", "a MISP instance", True, _misp),
    Provider("threatfox", "ThreatFox's export", False, _threatfox_export),
    Provider("threatfox", "ThreatFox's API", True, _threatfox),
    Provider("urlhaus", "URLhaus's API", True, _urlhaus),
    Provider("urlhaus", "a dump of URLhaus", False, _urlhaus_dump),
)
