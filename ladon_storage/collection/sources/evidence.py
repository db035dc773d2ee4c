"""What an answer says beside its items: how many there are, and whether there are more.

- What was declared is looked up where it was declared. What was not is looked for in the places
  where APIs usually say it, and can only contradict an end: it never makes one.
- A number that may as well count the items of its own page proves nothing. A page that was cut
  contradicts itself by a next link, a cursor or a total, whatever way of paging was declared.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from yarl import URL

from ladon_storage.collection.sources.http import HttpAnswer
from ladon_storage.collection.sources.items import value_at


def names(text: str) -> frozenset[str]:
    """Return the names in a text, which are as `plain` makes them."""
    return frozenset(text.split())


_TOTALS = names(
    "total totalcount totalresults totalitems totalrecords totalelements totalhits "
    "totalrows totalentries totalsize recordstotal numfound nbhits itemcount resultstotal"
)
_UNSURE_TOTALS = frozenset({"count", "resultcount", "recordcount"})
_PAGE_TOTALS = frozenset({"totalpages", "pagecount", "lastpage", "numpages", "pagestotal"})
_MORE = names(
    "hasmore more morepages hasnext hasnextpage moreavailable moreresults istruncated "
    "truncated incompleteresults"
)
_LAST = frozenset({"islast", "islastpage", "last", "lastpage", "done"})
_LINKS = names(
    "next nextlink nextpage nexturl nexthref nexturi nextpageurl nextpagelink "
    "nextrecordsurl nexturlpath"
)
_CURSORS = names(
    "cursor nextcursor nexttoken nextpagetoken nextpagecursor nextoffset nextmarker nextkey "
    "nextpagekey continuation continuationtoken nextcontinuationtoken"
)
_INNER = names(
    "meta metadata pagination paging page pager pageinfo paginginfo links responsemetadata "
    "responseheader cursors hits response responsecontext searchmetadata info"
)
_TOTAL_HEADERS = ("X-Total-Count", "X-Total", "X-WP-Total", "Total-Count", "X-Total-Results")
_UNSURE_HEADERS = ("X-Result-Count", "X-Count")
_PAGE_HEADERS = ("X-Total-Pages", "X-WP-TotalPages", "X-Page-Count")
_CURSOR_HEADERS = ("X-Next-Page", "X-Next-Cursor", "X-Continuation-Token", "X-Next-Token")
_CONTENT_RANGE = re.compile(r"\s*(?:[a-z-]+\s+)?(?:\d+-\d+|\*)/(\d+)\s*", re.IGNORECASE)

_PARAMETER = re.compile(r";\s*([^\s=;,]+)\s*(?:=\s*(?:\"([^\"]*)\"|([^\";,\s]*)))?")
_LINK = re.compile(r"<([^>]*)>((?:\s*;\s*[^\s=;,]+\s*(?:=\s*(?:\"[^\"]*\"|[^\";,\s]*))?)*)")


@dataclass(frozen=True)
class Total:
    """How many items an API states.

    Args:
        count: The number.
        place: Where it stands.
        is_sure: Whether it counts all items, so that it can prove an end; one that may count those
            of its page, or is only a lower bound, can contradict one.
    """

    count: int
    place: str
    is_sure: bool = True


def declared_total(answer: HttpAnswer, document: object, path: str) -> Total | None:
    """Return the total at a declared path, or in the header of that name."""
    value = value_at(document, path)
    if value is None:
        value = answer.headers.get(path) if re.fullmatch(r"[A-Za-z][\w-]*", path) else None
    if isinstance(value, dict):
        return _bounded(value, path)
    above, _, name = path.rpartition(".")
    if name == "value":
        return _bounded(value_at(document, above), path)
    return _exact(value, path)


def usual_total(answer: HttpAnswer, document: object, items: object, records: str) -> Total | None:
    """Return the largest total that stands where APIs usually put it."""
    found = list(_totals_of_headers(answer))
    for place, name, value in _said(document, items, records):
        if name in _TOTALS:
            total = _bounded(value, place) if isinstance(value, dict) else _exact(value, place)
            if total is not None:
                found.append(total)
        elif name in _UNSURE_TOTALS and (count := _count(value)) is not None:
            found.append(Total(count, place, is_sure=False))
    return max(found, key=lambda total: (total.count, total.is_sure), default=None)


def promise(
    answer: HttpAnswer, document: object, items: object, records: str, *, heeds_next: bool = True
) -> str | None:
    """Return what says that more items follow, as an error puts it; ``None`` where nothing does.

    Args:
        answer: The answer.
        document: Its JSON.
        items: The items in it.
        records: The path of the items.
        heeds_next: Whether a next link or cursor counts, and not only a plain "there are more".
    """
    said = list(_said(document, items, records))
    for place, name, value in said:
        if (name in _MORE and truth(value)) or _is_last(name, value) is False:
            return f"says at {place!r} that there are more"
    is_over = any(
        (name in _MORE and truth(value) is False) or _is_last(name, value)
        for _, name, value in said
    )
    if not heeds_next or is_over:
        return None
    link = next_in(answer.headers.getall("Link", []))
    if link is not None and not _is_self(answer, link):
        return "has a next link in its header Link"
    for header in _CURSOR_HEADERS:
        if answer.headers.get(header, "").strip():
            return f"has a next page in its header {header}"
    for place, name, value in said:
        if name in _LINKS and _leads_on(value) and not _is_self(answer, value):
            return f"has a next page at {place!r}"
        if name in _CURSORS and _leads_on(value):
            return f"has a cursor at {place!r}"
    return None


def stated_pages(answer: HttpAnswer, document: object, items: object, records: str) -> int:
    """Return how many pages an API says that there are; 0 where it does not."""
    found = [_count(answer.headers.get(header)) for header in _PAGE_HEADERS]
    found += [
        _count(value) for _, name, value in _said(document, items, records) if name in _PAGE_TOTALS
    ]
    return max((each for each in found if each is not None), default=0)


def next_in(headers: list[str]) -> str | None:
    """Return the address of the next page in the values of `Link` headers.

    >>> next_in(['<https://example.org/?page=1>; rel="prev", </?page=3>; title="a, b"; rel=next'])
    '/?page=3'
    """
    for value in headers:
        for target, parameters in _LINK.findall(value):
            for name, quoted, plain in _PARAMETER.findall(parameters):
                if name.lower() == "rel" and "next" in (quoted or plain).lower().split():
                    return str(target)
    return None


def truth(value: object) -> bool | None:
    """Return whether a flag is set, also one that is a number or a text; ``None``: it is none."""
    if isinstance(value, str):
        return {"true": True, "false": False}.get(value.strip().lower())
    return bool(value) if isinstance(value, bool | int) else None


def _said(document: object, items: object, records: str) -> Iterator[tuple[str, str, Any]]:
    """Yield the place, the plain name and the value of all that stands beside the items."""
    above = records.rpartition(".")[0]
    outer = [("", document)] + [(above, value_at(document, above))] * bool(above)
    for prefix, each in outer:
        if not isinstance(each, dict) or each is items:
            continue
        for key, value in each.items():
            place = f"{prefix}.{key}" if prefix else key
            yield place, plain(key), value
            if isinstance(value, dict) and value is not items and plain(key) in _INNER:
                for inner, found in value.items():
                    yield f"{place}.{inner}", plain(inner), found
                    if isinstance(found, dict) and found is not items and plain(inner) in _INNER:
                        for last, deep in found.items():
                            yield f"{place}.{inner}.{last}", plain(last), deep


def plain(name: str) -> str:
    """Return a name without its case, its separators and what stands before a dot.

    >>> plain("@odata.nextLink"), plain("total_count")
    ('nextlink', 'totalcount')
    """
    return re.sub(r"[^a-z]", "", name.rpartition(".")[2].lower())


def _totals_of_headers(answer: HttpAnswer) -> Iterator[Total]:
    for headers, is_sure in ((_TOTAL_HEADERS, True), (_UNSURE_HEADERS, False)):
        for header in headers:
            count = _count(answer.headers.get(header))
            if count is not None:
                yield Total(count, header, is_sure)
    ranged = _CONTENT_RANGE.fullmatch(answer.headers.get("Content-Range", ""))
    if ranged:
        yield Total(int(ranged[1]), "Content-Range")


def _exact(value: object, place: str) -> Total | None:
    count = _count(value)
    return None if count is None else Total(count, place)


def _bounded(value: object, place: str) -> Total | None:
    """Return a total that says whether it is exact, as Elasticsearch's does."""
    if not isinstance(value, Mapping):
        return None
    count = _count(value.get("value"))
    is_sure = value.get("relation", "eq") == "eq"
    return None if count is None else Total(count, place, is_sure)


def _count(value: object) -> int | None:
    if isinstance(value, str) and value.strip().isascii() and value.strip().isdecimal():
        return int(value) if len(value) < 20 else None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _is_last(name: str, value: object) -> bool | None:
    # A number there is that of the last page.
    return truth(value) if name in _LAST and isinstance(value, bool | str) else None


def _leads_on(value: object) -> bool:
    if isinstance(value, dict):
        return any(_leads_on(each) for each in value.values())
    return bool(value) and not (isinstance(value, str) and value.strip() in ("", "null", "0", "-1"))


def _is_self(answer: HttpAnswer, link: object) -> bool:
    """Tell whether a link leads to the page that it stands on."""
    if isinstance(link, dict):
        link = link.get("href")
    try:
        return isinstance(link, str) and answer.url.join(URL(link)) == answer.url
    except ValueError:
        return False
