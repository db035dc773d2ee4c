"""The paginations that an answer may have: all that something in it suggests.

- The answer's own signs (a link, a cursor, a flag) come before those of its parameters and counts,
  and these before conventions of similar APIs.
- A proposal is a guess until it led to a next page. One that cannot be tried, because there is only
  one page, says so.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from yarl import URL

from ladon_storage.collection.json_values import Number
from ladon_storage.probing.signs import SIZES, Evidence, Proposal, beside, total_of
from ladon_storage.sources.json.items import value_at
from ladon_storage.sources.rest.asides import own_plain
from ladon_storage.sources.rest.links import next_in
from ladon_storage.sources.rest.names import names, plain
from ladon_storage.sources.rest.page_metadata import cursor_headers
from ladon_storage.sources.rest.vocabulary import CURSORS, HAS_MORE, LAST, LINKS

_CURSORS = names(
    "cursor nextcursor nexttoken nextpagetoken nextpagecursor nextoffset nextmarker nextkey "
    "continuation continuationtoken nextcontinuationtoken aftercursor lastevaluatedkey endcursor "
    "after startingafter marker scrollid nextpage next nextid nextpageid syncmarker offset "
    "pagingtoken bookmark"
)
_MORE = names(
    "hasmore more morepages hasnext hasnextpage moreavailable moreresults istruncated hasmoreitems "
    "hasmoreresults hasmorepages islast islastpage last"
)

# Parameters of a size, and what an API of the same style calls the records to skip.
_SIZE = re.compile(r"(?P<prefix>.*?)(?P<size>limit|top|take|rows|maxresults)", re.IGNORECASE)
_SKIPS = {
    "limit": "offset", "top": "skip", "take": "skip", "rows": "start", "maxresults": "startAt",
}  # fmt: skip

# The name under which a cursor is sent back, by its name in the answer.
_SENT_AS = {
    "nextcursor": ("cursor", "start_cursor", "next_cursor"),
    "cursor": ("cursor", "after"),
    "nextpagetoken": ("pageToken", "page_token"),
    "nexttoken": ("nextToken", "next_token", "pagination_token", "page_token"),
    "continuationtoken": ("continuationToken", "continuation_token"),
    "nextcontinuationtoken": ("continuation-token", "continuationToken"),
    "endcursor": ("after", "cursor"),
    "aftercursor": ("cursor", "after"),
    "startingafter": ("starting_after",),
    "nextmarker": ("marker",),
    "nextkey": ("key", "nextKey"),
    "nextoffset": ("offset",),
    "nextpage": ("page", "nextPage"),
    "nextpageid": ("pageId", "page_id"),
    "nextid": ("id", "after", "next_id"),
    "next": ("next", "cursor", "after", "page", "offset"),
    "scrollid": ("scroll_id",),
}
_OFFSETS = names("offset start startindex startat skip from startposition firstresult")
_PAGES = names("page pagenumber pageno pageindex pagenum currentpage number p pg")
_NOT_ASKED = ("end", "total", "size_parameter", "page_size")
"""The settings of a paging that alone change no position of a page."""

_LAST_IDS = ("starting_after", "after", "after_id", "since_id")


def proposals(seen: Evidence) -> Iterator[Proposal]:
    """Yield the paginations that an answer suggests, the most likely first."""
    found: set[str] = set()
    for signs in (
        _by_header, _by_link, _by_search, _by_cursor, _by_own_header, _by_count, _by_last_id,
        _by_convention,
    ):  # fmt: skip
        for proposal in signs(seen):
            # Two signs of the same requests are tried once: there are few requests.
            same = repr(sorted((k, v) for k, v in proposal.paging.items() if k not in _NOT_ASKED))
            if same not in found:
                found.add(same)
                yield proposal


def _by_header(seen: Evidence) -> Iterator[Proposal]:
    headers = seen.answer.headers.getall("Link", [])
    link = next_in(headers)
    if link is not None:
        yield Proposal(
            {"kind": "link"} | _keeping(seen, link), "the header Link has a next address"
        )
    elif any("rel=" in each for each in headers) and seen.records == "":
        relations = ('rel="first"', 'rel="last"', 'rel="self"', "rel=first", "rel=last")
        if any(each in header for header in headers for each in relations):
            yield Proposal({"kind": "link"}, "the header Link has addresses, no next one", False)


def _by_link(seen: Evidence) -> Iterator[Proposal]:
    empty: list[Proposal] = []
    for place, name, value in beside(seen.document, seen.records):
        if name in ("links", "link") and isinstance(value, list):
            yield from _by_listed_link(seen, place, value)
        is_link = name in LINKS or own_plain(name, seen.records) in LINKS
        if not is_link or (isinstance(value, str) and not _is_link(value) and value):
            continue
        target = value.get("href") if isinstance(value, dict) else value
        path = f"{place}.href" if isinstance(value, dict) and "href" in value else place
        more = _more_of(seen) if not place.startswith(("_links", "links")) else {}
        if isinstance(target, str) and _is_link(target):
            paging = {"kind": "next", "path": path} | _keeping(seen, target) | more
            yield Proposal(paging, f"{path} has the next address")
        elif value is None or value == "":
            reason = f"{path} is where a next address would be"
            empty.append(Proposal({"kind": "next", "path": path}, reason, False))
    # A single page in HAL or JSON:API has links, but none to a next one.
    for place in ("_links", "links"):
        links = value_at(seen.document, place)
        if isinstance(links, dict) and "self" in links and not empty and "next" not in links:
            tail = ".href" if isinstance(links["self"], dict) else ""
            reason = f"{place} has no next address on an only page"
            empty.append(Proposal({"kind": "next", "path": f"{place}.next{tail}"}, reason, False))
    yield from empty


def _by_listed_link(seen: Evidence, place: str, links: list[Any]) -> Iterator[Proposal]:
    """Yield the counting pagination behind a next link in a list of links, whose index changes."""
    for link in links:
        if not isinstance(link, dict) or "next" not in (link.get("rel"), link.get("relation")):
            continue
        target = link.get("href") or link.get("url")
        if isinstance(target, str):
            reason = f"the next address in {place} counts"
            if (joined := _joined(seen, target)) is not None:
                yield from _counted_as(seen, joined, reason)
            path = f"{place}.{links.index(link)}.{'href' if 'href' in link else 'url'}"
            paging = {"kind": "next", "path": path} | _keeping(seen, target)
            yield Proposal(paging, f"{path} has the next address")


def _counted_as(seen: Evidence, target: URL, reason: str) -> Iterator[Proposal]:
    sizes = {
        name: int(v) for name, v in target.query.items() if plain(name) in SIZES and v.isdecimal()
    }
    for name, value in target.query.items():
        if plain(name) in _OFFSETS and value == str(seen.count):
            yield _offset(seen, name, sizes, reason)
        elif plain(name) in _PAGES and value in ("1", "2"):
            yield _page(seen, name, int(value) - 1, sizes, reason)


def _by_search(seen: Evidence) -> Iterator[Proposal]:
    """Yield ``search_after`` for Elasticsearch and OpenSearch, also in place of a scroll."""
    hits = value_at(seen.document, "hits.hits")
    if seen.records != "hits.hits" or not isinstance(hits, list) or not hits:
        return
    paging = {
        "kind": "cursor",
        "path": "hits.hits.-1.sort",
        "parameter": "search_after",
        "location": "body",
    }
    drops = frozenset({"scroll", "size", "sort", "from", "q"} & seen.asked.keys())
    if isinstance(hits[-1], dict) and hits[-1].get("sort"):
        reason = "hits have the values by which they are sorted"
        if seen.body is not None:
            yield Proposal(paging, reason, drops=drops)
            return
        yield Proposal({**paging, "location": "query"}, reason)
    time = next((p for p in ("@timestamp", "timestamp") if value_at(hits[0], f"_source.{p}")), "")
    body: dict[str, Any] = {"size": max(seen.count, 100), **(seen.body or {})}
    if "size" in seen.asked and seen.asked["size"].isdecimal():
        body["size"] = int(seen.asked["size"])
    if seen.asked.get("q"):
        body["query"] = {"query_string": {"query": seen.asked["q"]}}
    body |= {"sort": [*([{time: "asc"}] if time else []), {"_id": "asc"}], "track_total_hits": True}
    changes = {"method": "POST", "body": body}
    reason = "hits of Elasticsearch are read whole by their sort values, not by pages of a scroll"
    yield Proposal(paging, reason, changes=changes, drops=drops)


def _by_cursor(seen: Evidence) -> Iterator[Proposal]:
    empty: list[Proposal] = []
    for place, name, value in beside(seen.document, seen.records):
        if not _is_cursor(name) or isinstance(value, bool | dict | list):
            continue
        if name in ("after", "offset", "cursor") and isinstance(value, int):
            continue  # the offset of this page
        if isinstance(value, str) and _is_link(value):
            continue
        is_number = isinstance(value, int)
        for parameter in ("page", "offset") if is_number else _sent_as(place, name):
            if isinstance((seen.body or {}).get("variables"), dict):  # of GraphQL
                parameter = f"variables.{parameter}"
            paging = {"kind": "cursor", "path": place, "parameter": parameter}
            paging |= {"location": seen.where} if seen.where == "body" else {}
            paging |= _more_of(seen)
            drops = frozenset({parameter} & seen.asked.keys())
            has_cursor = isinstance(value, str | int | Number) and value not in ("", 0, "0")
            if has_cursor and "more" in paging and _says_no_more(seen, paging["more"]):
                has_cursor = False
            if has_cursor:
                yield Proposal(paging, f"{place} has a cursor", drops=drops)
            elif name not in ("next", "nextpage", "offset", "after"):
                reason = f"{place} is where a cursor would be"
                empty.append(Proposal(paging, reason, False, drops=drops))
    yield from empty


def _by_own_header(seen: Evidence) -> Iterator[Proposal]:
    """Yield the pagination by an address or a cursor in a header that only this service has."""
    for header in cursor_headers(seen.answer):
        value = seen.answer.headers[header].strip()
        if _is_link(value):
            paging = {"kind": "next", "path": header} | _keeping(seen, value)
            yield Proposal(paging, f"the header {header} has the next address")
        elif value and not value.isdecimal():  # a number is that of a page, or an offset
            name = re.sub(r"^x-(?:ms-)?", "", header, flags=re.IGNORECASE)
            for parameter in _sent_as(name, plain(name)):
                paging = {"kind": "cursor", "path": header, "parameter": parameter}
                paging |= {"location": seen.where} if seen.where == "body" else {}
                drops = frozenset({parameter} & seen.asked.keys())
                yield Proposal(paging, f"the header {header} has a cursor", drops=drops)


def _is_cursor(name: str) -> bool:
    # One that is called after its parameter, such as MediaWiki's rccontinue.
    return name in _CURSORS or name in CURSORS or name.endswith("continue")


def _is_last(name: str) -> bool:
    return name in ("islastpage", "last") or name in LAST


def _sent_as(place: str, name: str) -> list[str]:
    """Return the names under which a cursor may be sent back, the most likely first."""
    last = place.rpartition(".")[2]
    same_style = re.sub(r"^next[_-]?", "", last, flags=re.IGNORECASE) or last
    same_style = same_style[:1].lower() + same_style[1:]
    if place.endswith("next.after"):
        return ["after"]
    usual = _SENT_AS.get(name, ())
    if "_" in last or last.islower():
        usual = tuple(sorted(usual, key=lambda each: not (each.islower())))
    same = ("next", "endcursor", "cursor", "scrollid", "nexttoken")
    first = [last] if name == "nexttoken" else [same_style] if name not in same else []
    return list(dict.fromkeys([*first, *usual, last]))[:3]


def _by_last_id(seen: Evidence) -> Iterator[Proposal]:
    """Yield cursors from the last record's id, where only a flag says that more follow."""
    more = _more_of(seen)
    if not more or _is_last(plain(more["more"])):
        return
    if seen.id is None or not isinstance(seen.items, list):
        return
    last = f"{seen.records}.-1.{seen.id}" if seen.records else f"-1.{seen.id}"
    can_be_tried = not _says_no_more(seen, more["more"])
    for parameter in _LAST_IDS:
        paging = {"kind": "cursor", "path": last, "parameter": parameter} | more
        reason = f"{more['more']} is the only sign of more, as where the last id is the cursor"
        yield Proposal(
            paging, reason, can_be_tried, drops=frozenset({parameter} & seen.asked.keys())
        )
        if not can_be_tried:
            return


def _by_count(seen: Evidence) -> Iterator[Proposal]:
    said = dict[str, Any]()
    for place, _, value in beside(seen.document, seen.records):
        said.setdefault(place.rpartition(".")[2], value)
    sizes = {name: v for name, v in _numbers({**said, **seen.query}) if plain(name) in SIZES}
    sizes = {
        name: v for name, v in sizes.items() if v >= seen.count > 0 and _is_asked(seen, name, v)
    }
    numbers = {**dict(_numbers(said)), **dict(_numbers(seen.query))}
    for name, value in numbers.items():
        asked = "the body" if seen.where == "body" else "the address"
        source = asked if name in seen.query else "the answer"
        if plain(name) in _OFFSETS and value == 0:
            yield _offset(seen, name, sizes, f"{source} has the offset {name}")
        elif plain(name) in _PAGES and value in (0, 1) and plain(name) != "number":
            name = "page" if plain(name) == "currentpage" else name
            yield _page(seen, name, value, sizes, f"{source} has the page number {name}")
    number = value_at(seen.document, "page.number")
    number = said.get("number") if number is None else number
    if number in (0, 1) and not isinstance(number, bool):
        yield _page(seen, "page", number, sizes, "the answer has the number of its page")


def _is_asked(seen: Evidence, name: str, value: int) -> bool:
    """Return whether a number is the requested size, not the count of existing records."""
    total = total_of(seen)
    return name in seen.query or total is None or value != total[1] or plain(name) != "count"


def _by_convention(seen: Evidence) -> Iterator[Proposal]:
    """Yield the paginations of APIs of a known shape, and then the most common ones."""
    document = seen.document if isinstance(seen.document, dict) else {}
    if "X-WP-Total" in seen.answer.headers:
        sizes = {"per_page": seen.count} if seen.count > 1 else {}
        found = _page(seen, "page", 1, sizes, "WordPress counts pages")
        yield replace(found, paging={**found.paging, "end_status": [400]})
    if seen.method == "POST" and _is_misp(seen):
        yield _page(seen, "page", 1, {"limit": seen.count}, "MISP counts pages by page and limit")
    if "success" in document and seen.records == "result.results":
        yield _offset(seen, "start", {"rows": seen.count}, "CKAN skips records by start and rows")
    if seen.records == "hits.hits" and seen.body is None:
        sizes = {"size": seen.count}
        yield _offset(seen, "from", sizes, "Elasticsearch skips hits by from and size")
    if "total_rows" in document and seen.records == "rows":
        yield _offset(seen, "skip", {}, "CouchDB skips rows by skip")
    if seen.records == "response.docs":
        yield _offset(seen, "start", {"rows": seen.count}, "Solr skips records by start and rows")
    if seen.records == "value" and any("odata" in key.lower() for key in document):
        yield _offset(seen, "$skip", {"$top": seen.count}, "OData skips records by $skip and $top")
    for name, size in _numbers(seen.query):
        if size >= seen.count > 0 and (parts := _SIZE.fullmatch(name)):
            skip = f"{parts['prefix']}{_SKIPS[parts['size'].lower()]}"
            yield _offset(seen, skip, {name: size}, f"APIs with {name} mostly skip by {skip}")
    yield _page(seen, "page", 1, {}, "most APIs that count take a page")
    yield _offset(seen, "offset", {}, "most APIs that skip take an offset")
    yield _offset(seen, "skip", {}, "some APIs that skip call it skip")


def _is_misp(seen: Evidence) -> bool:
    first = next(iter(seen.items), None)
    return value_at(first, "Event.uuid") is not None or seen.records == "response.Attribute"


def _page(seen: Evidence, name: str, first: int, sizes: Mapping[str, int], reason: str) -> Proposal:
    paging: dict[str, Any] = {"kind": "page", "parameter": name}
    paging |= {"first_number": first} if first != 1 else {}
    size = next(iter(sizes.items()), None)
    if size is not None:
        paging |= {"size_parameter": size[0], "page_size": size[1]}
    return _counted(seen, paging, {name, *([size[0]] if size else [])}, reason)


def _offset(seen: Evidence, name: str, sizes: Mapping[str, int], reason: str) -> Proposal:
    size = next(iter(sizes.items()), ("", max(seen.count, 1)))
    paging = {"kind": "offset", "parameter": name, "size_parameter": size[0], "page_size": size[1]}
    return _counted(seen, paging, {name, size[0]}, reason)


def _counted(seen: Evidence, paging: dict[str, Any], names: set[str], reason: str) -> Proposal:
    total = total_of(seen)
    if total is not None:
        paging |= {"end": "total", "total": total[0]}
    if seen.where == "body":
        paging |= {"location": "body"}
    return Proposal(paging, reason, True, drops=frozenset(names & seen.query.keys()))


def _numbers(said: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    for name, value in said.items():
        text = value if isinstance(value, str) else str(value)
        if not isinstance(value, bool) and text.isascii() and text.isdecimal() and len(text) < 7:
            yield name, int(text)


def _more_of(seen: Evidence) -> dict[str, str]:
    for place, name, value in beside(seen.document, seen.records):
        if (name in _MORE or name in HAS_MORE or _is_last(name)) and isinstance(value, bool):
            return {"more": place}
    return {}


def _says_no_more(seen: Evidence, path: str) -> bool:
    value = value_at(seen.document, path)
    return bool(value) if _is_last(plain(path)) else not value


def _keeping(seen: Evidence, link: str) -> dict[str, bool]:
    """Return the setting for links that name another host than the requested one."""
    target = _joined(seen, link)
    if target is None or target.authority == seen.answer.url.authority:
        return {}
    return {"keep_host": True}


def _joined(seen: Evidence, link: str) -> URL | None:
    try:
        return seen.answer.url.join(URL(link))
    except ValueError:
        return None


def _is_link(value: str) -> bool:
    return value.startswith(("http://", "https://", "/", "?", "./")) and " " not in value
