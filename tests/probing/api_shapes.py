"""APIs of twenty shapes, each with a few dozen records on several pages, as their documents say.

A shape answers as its API does where a source could tell the difference: sizes are capped, cursors
belong to the question that they came with, and what lies beyond the end is refused where it is.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from ladon_storage.testing.feed_server import Answer, Asked

BEGIN = datetime(2024, 3, 1, 8, 30, tzinfo=UTC)
COUNT = 23


@dataclass(frozen=True)
class Shape:
    """An API.

    Args:
        path: Its path below ``/api/``, with the query that a person would try.
        play: Its answers; the first argument is the address of the server, up to ``/api/``.
        ids: The ids that a source of it collects.
        asks: What else is given to `guess`.
    """

    path: str
    play: Callable[[str, Asked], Answer]
    ids: list[str]
    asks: dict[str, Any] = field(default_factory=dict)


def instant(number: int) -> datetime:
    """Return the time of a record."""
    return BEGIN + timedelta(hours=7 * number, seconds=number)


def iso(number: int) -> str:
    """Return it as most APIs write it."""
    return instant(number).strftime("%Y-%m-%dT%H:%M:%SZ")


def uuid(number: int) -> str:
    """Return the UUID of a record."""
    return str(UUID(int=0x5F0C_0000_4000_8000_0000_0000_0000_0000 + number * 7919))


def answer(document: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Answer:
    """Return an answer that is JSON."""
    media = {"Content-Type": "application/json; charset=utf-8"}
    return Answer(json.dumps(document).encode(), status, {**media, **(headers or {})})


def _int(query: Mapping[str, Any], name: str, default: int) -> int:
    return int(query.get(name, default))


def _numbered(
    asked: Asked, rows: list[Any], size_name: str, cap: int
) -> tuple[list[Any], int, int]:
    """Return the rows of a page by number, its number, and the number of the last one."""
    size = min(_int(asked.query, size_name, 10), cap)
    page = _int(asked.query, "page", 1)
    return rows[(page - 1) * size : page * size], page, -(-len(rows) // size)


# GitHub


def _issue(number: int) -> dict[str, Any]:
    return {
        "url": f"https://api.github.com/repos/octo/hello/issues/{number}",
        "id": 2_100_000_000 + number,
        "node_id": f"I_kwDO{number:06}",
        "number": number,
        "title": f"Found a bug in {number % 5}",
        "user": {"login": "octocat", "id": 1, "created_at": "2011-01-25T18:44:36Z"},
        "labels": [{"id": 208045946, "name": "bug"}],
        "state": "open" if number % 3 else "closed",
        "comments": number % 4,
        "created_at": iso(number),
        "updated_at": iso(number + 2),
        "closed_at": None if number % 3 else iso(number + 2),
        "body": None,
    }


_ISSUES = [_issue(number) for number in range(COUNT, 0, -1)]


def _github(base: str, asked: Asked) -> Answer:
    rows, page, last = _numbered(asked, _ISSUES, "per_page", 100)
    links = []
    for relation, number in (("prev", page - 1), ("next", page + 1), ("last", last), ("first", 1)):
        if (relation == "prev" and page > 1) or (relation != "prev" and page < last):
            url = f"{base}repositories/1300192/issues?state=all&per_page=10&page={number}"
            links.append(f'<{url}>; rel="{relation}"')
    return answer(rows, headers={"Link": ", ".join(links)} if links else {})


# Stripe


def _stripe(_: str, asked: Asked) -> Answer:
    rows = [
        {
            "id": f"evt_1NG8Du2eZvKYlo2CUI79v{number:03}",
            "object": "event",
            "api_version": "2023-10-16",
            "created": int(instant(number).timestamp()),
            "data": {"object": {"id": f"seti_{number}", "object": "setup_intent", "created": 1}},
            "livemode": False,
            "pending_webhooks": 0,
            "request": {"id": None, "idempotency_key": None},
            "type": "setup_intent.created",
        }
        for number in range(COUNT, 0, -1)
    ]
    after, size = asked.query.get("starting_after"), min(_int(asked.query, "limit", 10), 100)
    ids = [each["id"] for each in rows]
    if after is not None and after not in ids:
        return answer({"error": {"message": f"No such event: {after}"}}, 400)
    if unknown := set(asked.query) - {"starting_after", "ending_before", "limit", "type"}:
        error = {"message": f"Received unknown parameters: {', '.join(sorted(unknown))}"}
        return answer({"error": error}, 400)
    first = ids.index(after) + 1 if after else 0
    page = rows[first : first + size]
    more = first + size < len(rows)
    return answer({"object": "list", "url": "/v1/events", "has_more": more, "data": page})


# Slack


def _slack(_: str, asked: Asked) -> Answer:
    rows = [
        {
            "type": "message",
            "user": f"U0{number % 3}2AFLQ",
            "text": "I find you punny and would like to smell your nose letter",
            "ts": f"{int(instant(number).timestamp())}.{number:06}",
            "team": "T01ABCDE2F",
        }
        for number in range(COUNT, 0, -1)
    ]
    cursor = asked.query.get("cursor", "")
    first = int(cursor.removeprefix("bmV4dF90czox")) if cursor else 0
    size = min(_int(asked.query, "limit", 10), 10)
    more = first + size < len(rows)
    following = f"bmV4dF90czox{first + size}" if more else ""
    document: dict[str, Any] = {"ok": True, "messages": rows[first : first + size]}
    document |= {"has_more": more, "pin_count": 0}
    if more:
        document["response_metadata"] = {"next_cursor": following}
    return answer(document)


# Microsoft Graph


def _graph(base: str, asked: Asked) -> Answer:
    rows: list[dict[str, Any]] = [
        {
            "@odata.type": "#microsoft.graph.security.alert",
            "id": f"da637551227677560813_{number:06}",
            "providerAlertId": f"da6375512276{number:04}",
            "status": "new",
            "severity": "low",
            "createdDateTime": iso(number),
            "lastUpdateDateTime": instant(number + 1).strftime("%Y-%m-%dT%H:%M:%S.6233333Z"),
            "resolvedDateTime": None,
            "evidence": [],
        }
        for number in range(1, COUNT + 1)
    ]
    first = _int(asked.query, "$skiptoken", 0)
    document: dict[str, Any] = {
        "@odata.context": f"{base}v1.0/$metadata#security/alerts_v2",
        "value": rows[first : first + 10],
    }
    if first + 10 < len(rows):
        document["@odata.nextLink"] = f"{base}v1.0/security/alerts_v2?$skiptoken={first + 10}"
    return answer(document)


# Okta


def _okta(base: str, asked: Asked) -> Answer:
    rows = [
        {
            "id": f"00ub0oNGTSWTBKOLGLN{number:03}",
            "status": "ACTIVE",
            "created": instant(number).strftime("%Y-%m-%dT%H:%M:%S.000Z"),
            "activated": None,
            "lastLogin": None,
            "lastUpdated": instant(number + 3).strftime("%Y-%m-%dT%H:%M:%S.000Z"),
            "profile": {"login": f"isaac{number}@example.com", "email": "isaac@example.com"},
            "_links": {"self": {"href": f"{base}v1/users/{number}"}},
        }
        for number in range(1, COUNT + 1)
    ]
    after = asked.query.get("after", "")
    first = int(after.removeprefix("100u")) if after else 0
    size = min(_int(asked.query, "limit", 10), 200)
    links = [f'<{base}v1/users?limit={size}>; rel="self"']
    if first + size < len(rows):
        links.append(f'<{base}v1/users?after=100u{first + size}&limit={size}>; rel="next"')
    return answer(rows[first : first + size], headers={"Link": ", ".join(links)})


# abuse.ch


def _urlhaus(_: str, __: Asked) -> Answer:
    rows = [
        {
            "id": str(3_500_000 + number),
            "urlhaus_reference": f"https://urlhaus.abuse.ch/url/{3_500_000 + number}/",
            "url": f"http://192.0.2.{number}/bin.sh",
            "url_status": "online" if number % 2 else "offline",
            "host": f"192.0.2.{number}",
            "date_added": instant(number).strftime("%Y-%m-%d %H:%M:%S UTC"),
            "threat": "malware_download",
            "reporter": "abuse_ch",
            "tags": ["mozi"],
        }
        for number in range(COUNT, 0, -1)
    ]
    return answer({"query_status": "ok", "urls": rows})


# NVD


def _nvd(_: str, asked: Asked) -> Answer:
    rows = [
        {
            "cve": {
                "id": f"CVE-2024-{1000 + number}",
                "sourceIdentifier": "security@example.org",
                "published": instant(number).strftime("%Y-%m-%dT%H:%M:%S.117"),
                "lastModified": instant(number + 5).strftime("%Y-%m-%dT%H:%M:%S.620"),
                "vulnStatus": "Analyzed",
                "descriptions": [{"lang": "en", "value": "A flaw."}],
            }
        }
        for number in range(1, COUNT + 1)
    ]
    first, size = _int(asked.query, "startIndex", 0), _int(asked.query, "resultsPerPage", 2000)
    page = rows[first : first + size]
    document: dict[str, Any] = {
        "resultsPerPage": len(page),
        "startIndex": first,
        "totalResults": len(rows),
    }
    document |= {"format": "NVD_CVE", "version": "2.0", "timestamp": iso(99)}
    return answer({**document, "vulnerabilities": page})


# CISA KEV


def _kev(_: str, __: Asked) -> Answer:
    rows = [
        {
            "cveID": f"CVE-2023-{2000 + number}",
            "vendorProject": "Vendor",
            "product": "Product",
            "vulnerabilityName": "A vulnerability",
            "dateAdded": instant(number).strftime("%Y-%m-%d"),
            "shortDescription": "It is exploited.",
            "requiredAction": "Apply updates.",
            "dueDate": instant(number + 60).strftime("%Y-%m-%d"),
            "knownRansomwareCampaignUse": "Unknown",
            "notes": "",
        }
        for number in range(COUNT, 0, -1)
    ]
    catalogue = {
        "title": "CISA Catalog of Known Exploited Vulnerabilities",
        "catalogVersion": "2024.03.09",
        "dateReleased": iso(30),
        "count": len(rows),
        "vulnerabilities": rows,
    }
    return answer(catalogue)


# GeoJSON


def _geojson(_: str, __: Asked) -> Answer:
    rows = [
        {
            "type": "Feature",
            "properties": {
                "mag": 1.2,
                "place": f"{number} km N of Somewhere",
                "time": int(instant(number).timestamp() * 1000),
                "updated": int(instant(number + 1).timestamp() * 1000) + 40,
                "tz": None,
                "code": str(74_000_000 + number),
                "net": "nc",
                "title": "M 1.2",
            },
            "geometry": {"type": "Point", "coordinates": [-122.8, 38.8, 1.5]},
            "id": f"nc{74_000_000 + number}",
        }
        for number in range(COUNT, 0, -1)
    ]
    metadata = {"generated": 1_709_300_000_000, "status": 200, "api": "1.10.3", "count": len(rows)}
    return answer({"type": "FeatureCollection", "metadata": metadata, "features": rows})


# JSON:API


def _jsonapi(base: str, asked: Asked) -> Answer:
    rows = [
        {
            "type": "articles",
            "id": str(number),
            "attributes": {
                "title": f"JSON:API paints my bikeshed! {number % 4}",
                "created": iso(number),
                "updated": iso(number + 1),
            },
            "relationships": {"author": {"data": {"id": "42", "type": "people"}}},
            "links": {"self": f"{base}articles/{number}"},
        }
        for number in range(1, COUNT + 1)
    ]
    number = _int(asked.query, "page[number]", 1)
    last = -(-len(rows) // 10)

    def link(page: int) -> str:
        return f"{base}articles?page[number]={page}&page[size]=10"

    links: dict[str, str | None] = {"self": link(number), "first": link(1), "last": link(last)}
    links |= {"prev": link(number - 1)} if number > 1 else {"prev": None}
    links |= {"next": link(number + 1)} if number < last else {"next": None}
    people = [{"type": "people", "id": "42", "attributes": {"name": "John", "created": iso(0)}}]
    page = rows[(number - 1) * 10 : number * 10]
    return answer({"data": page, "included": people, "meta": {"total": COUNT}, "links": links})


# HAL


def _hal(base: str, asked: Asked) -> Answer:
    rows = [
        {
            "orderNumber": f"A-{number:05}",
            "total": 30.0 + number,
            "currency": "USD",
            "status": "shipped",
            "placedAt": iso(number),
            "lastModified": iso(number + 2),
            "_links": {"self": {"href": f"{base}orders/{number}"}},
        }
        for number in range(1, COUNT + 1)
    ]
    page = _int(asked.query, "page", 0)
    links = {"self": {"href": f"{base}orders?page={page}&size=10"}}
    if (page + 1) * 10 < len(rows):
        links["next"] = {"href": f"{base}orders?page={page + 1}&size=10"}
    sizes = {"size": 10, "totalElements": len(rows), "totalPages": 3, "number": page}
    embedded = {"orders": rows[page * 10 : page * 10 + 10]}
    return answer({"_embedded": embedded, "_links": links, "page": sizes})


# Django REST framework


def _drf(base: str, asked: Asked) -> Answer:
    rows = [
        {
            "url": f"{base}indicators/{number}/",
            "pk": number,
            "value": f"192.0.2.{number}",
            "modified": instant(number).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        }
        for number in range(1, COUNT + 1)
    ]
    page, number, last = _numbered(asked, rows, "page_size", 100)
    if number > last:
        return answer({"detail": "Invalid page."}, 404)
    following = f"{base}indicators/?page={number + 1}" if number < last else None
    before = f"{base}indicators/?page={number - 1}" if number > 1 else None
    return answer({"count": COUNT, "next": following, "previous": before, "results": page})


# WordPress


def _wordpress(_: str, asked: Asked) -> Answer:
    rows = [
        {
            "id": number,
            "date": (instant(number) + timedelta(hours=2)).strftime("%Y-%m-%dT%H:%M:%S"),
            "date_gmt": instant(number).strftime("%Y-%m-%dT%H:%M:%S"),
            "guid": {"rendered": f"https://blog.example.org/?p={number}"},
            "modified": (instant(number) + timedelta(hours=3)).strftime("%Y-%m-%dT%H:%M:%S"),
            "modified_gmt": instant(number + 1).strftime("%Y-%m-%dT%H:%M:%S"),
            "slug": f"hello-{number}",
            "status": "publish",
            "title": {"rendered": "Hello"},
            "author": 1,
        }
        for number in range(COUNT, 0, -1)
    ]
    page, number, last = _numbered(asked, rows, "per_page", 100)
    if number > last:
        refusal = {"code": "rest_post_invalid_page_number", "data": {"status": 400}}
        return answer(refusal, 400)
    return answer(page, headers={"X-WP-Total": str(COUNT), "X-WP-TotalPages": str(last)})


# Elasticsearch


def _hit(number: int) -> dict[str, Any]:
    source = {"@timestamp": iso(number), "message": "GET /", "event": {"created": iso(number)}}
    return {"_index": "logs", "_id": f"lX9k{number:05}", "_score": 1.0, "_source": source}


_HITS = [_hit(number) for number in range(1, COUNT + 1)]


def _found(hits: list[Any], **more: Any) -> Answer:
    total = {"value": len(_HITS), "relation": "eq"}
    document = {"took": 3, "timed_out": False, "_shards": {"total": 1, "failed": 0}}
    return answer({**more, **document, "hits": {"total": total, "max_score": 1.0, "hits": hits}})


def _sorted_after(body: Mapping[str, Any]) -> Answer:
    """Answer ``search_after`` as it is documented: behind the sort values of a hit."""
    names = [next(iter(each)) for each in body["sort"]]

    def values(hit: dict[str, Any]) -> list[Any]:
        of_time = int(datetime.fromisoformat(hit["_source"]["@timestamp"]).timestamp() * 1000)
        return [of_time if name == "@timestamp" else hit["_id"] for name in names]

    hits = sorted(_HITS, key=values)
    after = body.get("search_after")
    hits = [each for each in hits if after is None or values(each) > after]
    size = min(int(body.get("size", 10)), 10)
    return _found([{**each, "sort": values(each)} for each in hits[:size]])


def _scroll(_: str, asked: Asked) -> Answer:
    """Answer a scroll, whose pages have an address of their own, and any other search."""
    body = asked.body or {}
    if asked.path.endswith("/_search/scroll"):
        first = int(body["scroll_id"].removeprefix("DXF1ZXJ5"))
        return _found(_HITS[first : first + 10], _scroll_id=f"DXF1ZXJ5{first + 10}")
    if body.get("sort"):
        return _sorted_after(body)
    return _found(_HITS[:10], **({"_scroll_id": "DXF1ZXJ510"} if "scroll" in asked.query else {}))


def _search_after(_: str, asked: Asked) -> Answer:
    return _sorted_after(asked.body or {"sort": [{"_doc": "asc"}]})


# AlienVault OTX


def _otx(base: str, asked: Asked) -> Answer:
    rows = [
        {
            "id": f"65e1{number:020x}",
            "name": f"Pulse {number}",
            "description": "",
            "author_name": "AlienVault",
            "modified": instant(number).strftime("%Y-%m-%dT%H:%M:%S.%f"),
            "created": instant(number - 1).strftime("%Y-%m-%dT%H:%M:%S.%f"),
            "tlp": "white",
            "adversary": "",
            "indicators": [{"id": number, "indicator": "192.0.2.1", "created": iso(number)}],
            "revision": 1,
        }
        for number in range(1, COUNT + 1)
    ]
    page, number, last = _numbered(asked, rows, "limit", 10)
    url = f"{base}v1/pulses/subscribed?limit=10&page="
    following = f"{url}{number + 1}" if number < last else None
    before = f"{url}{number - 1}" if number > 1 else None
    return answer({"results": page, "count": COUNT, "next": following, "previous": before})


# MISP


def _misp(_: str, asked: Asked) -> Answer:
    rows = [
        {
            "Event": {
                "id": str(number),
                "orgc_id": "2",
                "org_id": "1",
                "date": instant(number).strftime("%Y-%m-%d"),
                "threat_level_id": "1",
                "info": "OSINT",
                "published": True,
                "uuid": uuid(number),
                "attribute_count": "1",
                "analysis": "2",
                "timestamp": str(int(instant(number).timestamp())),
                "publish_timestamp": str(int(instant(number + 1).timestamp())),
                "Orgc": {"id": "2", "name": "CIRCL", "uuid": uuid(9999)},
                "Attribute": [{"id": str(number), "value": "192.0.2.1"}],
            }
        }
        for number in range(1, COUNT + 1)
    ]
    body = asked.body or {}
    size, page = int(body.get("limit", 60)), int(body.get("page", 1))
    return answer({"response": rows[(page - 1) * size : page * size]})


# TAXII 2.1


def _taxii(_: str, asked: Asked) -> Answer:
    if "taxii+json" not in asked.headers.get("Accept", ""):
        return answer({"title": "Not acceptable", "http_status": "406"}, 406)
    rows = [
        {
            "type": "indicator",
            "spec_version": "2.1",
            "id": f"indicator--{uuid(number)}",
            "created": iso(number),
            "modified": instant(number).strftime("%Y-%m-%dT%H:%M:%S.000Z"),
            "pattern": "[ipv4-addr:value = '192.0.2.1']",
            "pattern_type": "stix",
            "valid_from": iso(number),
        }
        for number in range(1, COUNT + 1)
    ]
    first = _int(asked.query, "next", 0)
    after = asked.query.get("added_after")
    if after is not None:
        rows = [each for each in rows if each["created"] > after]
    page = rows[first : first + 10]
    document: dict[str, Any] = {"objects": page, "more": first + 10 < len(rows)}
    if document["more"]:
        document["next"] = str(first + 10)
    headers = {"Content-Type": "application/taxii+json;version=2.1"}
    if page:
        headers["X-TAXII-Date-Added-First"] = page[0]["modified"]
        headers["X-TAXII-Date-Added-Last"] = page[-1]["modified"]
    return answer(document, headers=headers)


# CKAN


def _ckan(base: str, asked: Asked) -> Answer:
    rows = [
        {
            "id": uuid(number),
            "name": f"dataset-{number}",
            "title": "Air quality",
            "owner_org": uuid(500),
            "metadata_created": instant(number).strftime("%Y-%m-%dT%H:%M:%S.%f"),
            "metadata_modified": instant(number + 2).strftime("%Y-%m-%dT%H:%M:%S.%f"),
            "organization": {"id": uuid(500), "created": "2012-01-01T00:00:00.000000"},
            "resources": [{"id": uuid(number + 1000), "last_modified": iso(number)}],
        }
        for number in range(COUNT, 0, -1)
    ]
    first, size = _int(asked.query, "start", 0), min(_int(asked.query, "rows", 10), 1000)
    result = {"count": COUNT, "facets": {}, "results": rows[first : first + size]}
    result |= {"sort": "metadata_modified desc", "search_facets": {}}
    return answer({"help": f"{base}3/action/help_show", "success": True, "result": result})


# An object whose keys are the ids


def _keyed(_: str, __: Asked) -> Answer:
    rows = {
        str(1_700_000 + number): [
            {
                "ioc_value": f"198.51.100.{number}:4444",
                "ioc_type": "ip:port",
                "threat_type": "botnet_cc",
                "malware": "win.dcrat",
                "first_seen": instant(number).strftime("%Y-%m-%d %H:%M:%S"),
                "last_seen": None,
                "confidence_level": 100,
            }
        ]
        for number in range(COUNT, 0, -1)
    }
    return answer(rows)


_KEYED_IDS = [str(1_700_000 + number) for number in range(1, COUNT + 1)]
_NUMBERS = [str(number) for number in range(1, COUNT + 1)]

SHAPES: dict[str, Shape] = {
    "github": Shape(
        "repos/octo/hello/issues?state=all&per_page=10",
        _github,
        [str(2_100_000_000 + number) for number in range(1, COUNT + 1)],
    ),
    "stripe": Shape(
        "v1/events?limit=10",
        _stripe,
        [f"evt_1NG8Du2eZvKYlo2CUI79v{number:03}" for number in range(1, COUNT + 1)],
        {"headers": {"Authorization": "Bearer sk_test_4eC39HqLyjWDarjtT1zdp7dc"}},
    ),
    "slack": Shape(
        "conversations.history?channel=C123ABC456&limit=10",
        _slack,
        [f"{int(instant(n).timestamp())}.{n:06}" for n in range(1, COUNT + 1)],
    ),
    "graph": Shape(
        "v1.0/security/alerts_v2",
        _graph,
        [f"da637551227677560813_{number:06}" for number in range(1, COUNT + 1)],
    ),
    "okta": Shape(
        "v1/users?limit=10", _okta, [f"00ub0oNGTSWTBKOLGLN{n:03}" for n in range(1, COUNT + 1)]
    ),
    "abuse.ch": Shape(
        "v1/urls/recent/", _urlhaus, [str(3_500_000 + number) for number in range(1, COUNT + 1)]
    ),
    "nvd": Shape(
        "rest/json/cves/2.0", _nvd, [f"CVE-2024-{1000 + number}" for number in range(1, COUNT + 1)]
    ),
    "kev": Shape(
        "feeds/known_exploited_vulnerabilities.json",
        _kev,
        [f"CVE-2023-{2000 + number}" for number in range(1, COUNT + 1)],
    ),
    "geojson": Shape(
        "earthquakes/feed/v1.0/summary/all_day.geojson",
        _geojson,
        [f"nc{74_000_000 + number}" for number in range(1, COUNT + 1)],
    ),
    "jsonapi": Shape("articles", _jsonapi, _NUMBERS),
    "hal": Shape("orders", _hal, [f"A-{number:05}" for number in range(1, COUNT + 1)]),
    "drf": Shape("indicators/", _drf, _NUMBERS),
    "wordpress": Shape("wp/v2/posts", _wordpress, _NUMBERS),
    "elasticsearch scroll": Shape(
        "logs/_search?scroll=1m", _scroll, [f"lX9k{number:05}" for number in range(1, COUNT + 1)]
    ),
    "search_after": Shape(
        "logs/_search",
        _search_after,
        [f"lX9k{number:05}" for number in range(1, COUNT + 1)],
        {"body": {"size": 10, "sort": [{"@timestamp": "asc"}, {"_id": "asc"}]}},
    ),
    "otx": Shape(
        "v1/pulses/subscribed?limit=10",
        _otx,
        [f"65e1{number:020x}" for number in range(1, COUNT + 1)],
        {"key": "OTX_KEY", "key_header": "X-OTX-API-KEY"},
    ),
    "misp": Shape(
        "events/restSearch",
        _misp,
        [uuid(number) for number in range(1, COUNT + 1)],
        {"key": "MISP_KEY", "body": {"returnFormat": "json", "limit": 10, "page": 1}},
    ),
    "taxii": Shape(
        "root/collections/91a7b528-80eb-42ed-a74d-c6fbd5a26116/objects/",
        _taxii,
        [f"indicator--{uuid(number)}" for number in range(1, COUNT + 1)],
    ),
    "ckan": Shape(
        "3/action/package_search", _ckan, [uuid(number) for number in range(1, COUNT + 1)]
    ),
    "keyed": Shape("export/json/recent/", _keyed, _KEYED_IDS),
}
