"""The metadata next to a page's items: how many there are, and whether more follow.

- A declared value is read where it was declared. An undeclared one is searched for in the usual
  places, and can only contradict an end, never prove one.
- A number that may count the items of its own page proves nothing. A page that was cut contradicts
  itself by a next link, a cursor or a total, whatever pagination was declared.
- A flag is read by its name: `isLast` says the opposite of `hasMore`, declared or not.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from yarl import URL

from ladon_storage.sources.http.client import HttpResponse
from ladon_storage.sources.json.items import value_at


def names(text: str) -> frozenset[str]:
    """Return the names in a text, which are as `plain` makes them."""
    return frozenset(text.split())


_TOTALS = names(
    "total totalcount totalresults totalitems totalrecords totalelements totalhits "
    "totalrows totalentries totalsize recordstotal numfound nbhits itemcount resultstotal "
    "ntotal totalfound totalmatches totaldocs"
)
_UNSURE_TOTALS = names("count resultcount recordcount found totalavailable")
_PAGE_TOTALS = names("totalpages pagecount lastpage numpages pagestotal pages totalpage pagetotal")
_MORE = names(
    "hasmore more morepages hasnext hasnextpage moreavailable moreresults istruncated "
    "truncated incompleteresults ismore hasmoreitems hasmoreresults hasmorepages hasmorerecords "
    "hasmoredata moreitems morerecords moredata moredataavailable ismoreavailable limitreached "
    "resultstruncated hasnextlink moreitemsincollection"
)
_LAST = names(
    "islast islastpage last lastpage done isdone final isfinal end isend eof iseof complete "
    "iscomplete finished isfinished endofstream endoflist endofresults exhausted"
)
_FIRST = names("first isfirst firstpage isfirstpage")
_BEFORE = names("hasprevious hasprev hasprevpage haspreviouspage")
_LINKS = names(
    "next nextlink nextpage nexturl nexthref nexturi nextpageurl nextpagelink "
    "nextrecordsurl nexturlpath afterurl"
)
_CURSORS = names(
    "cursor nextcursor nexttoken nextpagetoken nextpagecursor nextoffset nextmarker nextkey "
    "nextpagekey continuation continuationtoken nextcontinuationtoken aftercursor lastevaluatedkey "
    "cursorsafter"
)
_INNER = names(
    "meta metadata pagination paging page pager pageinfo paginginfo links responsemetadata "
    "responseheader cursors hits response responsecontext searchmetadata info resultinfo view "
    "paginator searchresult"
)
_DEPTH = 4
_TOTAL_HEADERS = (
    "X-Total-Count",
    "X-Total",
    "X-WP-Total",
    "Total-Count",
    "X-Total-Results",
    "X-Total-Items",
    "Total",
    "X-Pagination-Total-Count",
    "Pagination-Count",
)
_UNSURE_HEADERS = ("X-Result-Count", "X-Count")
_PAGE_HEADERS = ("X-Total-Pages", "X-WP-TotalPages", "X-Page-Count", "X-Pagination-Page-Count")
_CURSOR_HEADERS = (
    "X-Next-Page",
    "X-Next",
    "X-Next-Cursor",
    "X-Continuation-Token",
    "X-Next-Token",
    "X-MS-Continuation",
    "Next-Range",
)
_PAGING_HEADERS = ("X-Pagination", "Pagination", "X-Paging")
_CONTENT_RANGE = re.compile(r"\s*(?:[a-z-]+[\s=]\s*)?(?:\d+-\d+|\*)/(\d+)\s*", re.IGNORECASE)
_GROUPED = re.compile(r"\d{1,3}(?:([,.'_ \u00a0\u202f\u2019])\d{3})(?:\1\d{3})*")
_BOUND = re.compile(r"(?:>=?|≥|over|more than)\s*(\S.*)|(.*\S)\s*\+", re.IGNORECASE)
_COUNTS = ("value", "count", "total")

_VALUE = r"(?:\"[^\"]*\"|'[^']*'|[^\"';,\s]*)"
_PARAMETER = re.compile(rf";\s*([^\s=;,]+)\s*(?:=\s*({_VALUE}))?")
_LINK = re.compile(rf"<([^>]*)>((?:\s*;\s*[^\s=;,]+\s*(?:=\s*{_VALUE})?)*)")
_DATE = re.compile(r"\d{4}-\d\d-\d\d(?:[T ].*)?")
_SKIPPING = names("offset start startindex startat skip from")


@dataclass(frozen=True)
class Total:
    """The number of items that an API states.

    Args:
        count: The number.
        place: The path of the number.
        is_sure: Whether it counts all items, so that it can prove an end; one that may count those
            of its page, or is only a lower bound, can contradict one.
        is_bound: Whether there are more than that.
    """

    count: int
    place: str
    is_sure: bool = True
    is_bound: bool = False


def declared_total(answer: HttpResponse, document: object, path: str) -> Total | None:
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


def usual_total(
    answer: HttpResponse, document: object, items: object, records: str
) -> Total | None:
    """Return the largest total that stands where APIs usually put it."""
    found = list(_totals_of_headers(answer))
    for place, name, value in _said(answer, document, items, records):
        if name in _TOTALS:
            total = _bounded(value, place) if isinstance(value, dict) else _exact(value, place)
            if total is not None:
                found.append(total)
        elif name in _UNSURE_TOTALS and (count := _count(value)) is not None:
            found.append(Total(count, place, is_sure=False))
    return max(found, key=lambda total: (total.count, total.is_sure), default=None)


def promise(
    answer: HttpResponse,
    document: object,
    items: object,
    records: str,
    *,
    heeds_next: bool = True,
    position: int | None = None,
    is_alone: bool = False,
) -> str | None:
    """Return the sign that more items follow, worded for an error; ``None``: there is none.

    Args:
        answer: The answer.
        document: Its JSON.
        items: The items in it.
        records: The path of the items.
        heeds_next: Whether a next link or cursor counts, and not only a plain "there are more".
        position: The end of the list by its total, so that a link which skips as many items leads
            to nothing.
        is_alone: Whether no paging is declared, so that any cursor counts.
    """
    said = list(_said(answer, document, items, records))
    for place, name, value in said:
        if _is_more(name, value):
            return f"says at {place!r} that there are more"
    if truth(answer.headers.get("X-Has-More")):
        return "says in its header X-Has-More that there are more"
    if not heeds_next or _is_over(said):
        return None
    link = next_in(answer.headers.getall("Link", []))
    if link is not None and not _leads_nowhere(answer, link, position):
        return "has a next link in its header Link"
    for header in _CURSOR_HEADERS:
        if _leads_on(answer.headers.get(header, "").strip()):
            return f"has a next page in its header {header}"
    for place, name, value in said:
        is_link = name in _LINKS and not (isinstance(value, str) and _DATE.fullmatch(value))
        if is_link and _leads_on(value) and not _leads_nowhere(answer, value, position):
            return f"has a next page at {place!r}"
        listed = _next_of(value) if name in ("link", "links") else None
        if listed is not None and not _leads_nowhere(answer, listed, position):
            return f"has a next page at {place!r}"
        if name in _CURSORS and _leads_on(value) and (is_alone or name != "cursorsafter"):
            return f"has a cursor at {place!r}"
    return None


def is_over(answer: HttpResponse, document: object, items: object, records: str) -> bool:
    """Return whether an answer says that nothing follows."""
    said = list(_said(answer, document, items, records))
    return _is_over(said) and not any(_is_more(name, value) for _, name, value in said)


def flags(answer: HttpResponse, document: object, items: object, records: str) -> bool:
    """Return whether an answer has a flag of more, a next link or a cursor, whatever its value."""
    usual = ("Link", "X-Has-More", *_CURSOR_HEADERS)
    said = _said(answer, document, items, records)
    return any(header in answer.headers for header in usual) or any(
        is_sign(name) and name not in _INNER for _, name, _ in said
    )


def is_sign(name: str) -> bool:
    """Return whether a name is that of a flag of more, a next link, a cursor or their place."""
    told = plain(name)
    return any(told in each for each in (_MORE, _LAST, _LINKS, _CURSORS, _INNER))


def misses_front(answer: HttpResponse, document: object, items: object, records: str) -> str | None:
    """Return where the page requested as the first says that it is not the first."""
    for place, name, value in _said(answer, document, items, records):
        if (name in _FIRST and value is False) or (name in _BEFORE and value is True):
            return place
    return None


def stated_pages(answer: HttpResponse, document: object, items: object, records: str) -> int:
    """Return the number of pages that an API states; 0 where it states none."""
    found = [_count(answer.headers.get(header)) for header in _PAGE_HEADERS]
    found += [
        _count(value)
        for _, name, value in _said(answer, document, items, records)
        if name in _PAGE_TOTALS
    ]
    return max((each for each in found if each is not None), default=0)


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
            told = {
                name.lower(): value.strip("\"'").lower()
                for name, value in reversed(_PARAMETER.findall(parameters))
            }
            if "anchor" in told:
                continue  # it is of another document
            if relation in told.get("rel", "").split() and told.get("results") != "false":
                return str(target)
    return None


def number_in(link: str, parameter: str) -> int | None:
    """Return the number in a parameter of a link.

    >>> number_in("/x?page=5", "page"), number_in("/x?page=five", "page")
    (5, None)
    """
    try:
        return _count(URL(link).query.get(parameter))
    except ValueError:
        return None


def truth(value: object) -> bool | None:
    """Return whether a flag is set, also one that is a number or a text; ``None``: it is none."""
    if isinstance(value, str):
        told = value.strip().lower()
        return True if told in _YES else False if told in _NO else None
    return bool(value) if isinstance(value, bool | int) else None


def promised_at(document: object, path: str) -> bool | None:
    """Return whether a flag at a declared path says that there are more, by its name.

    >>> promised_at({"isLast": True}, "isLast"), promised_at({"more": "Y"}, "more")
    (False, True)
    """
    told = truth(value_at(document, path))
    return not told if told is not None and plain(path) in _LAST else told


_YES = names("true 1 yes y t on")
_NO = names("false 0 no n f off")


def _said(
    answer: HttpResponse, document: object, items: object, records: str
) -> Iterator[tuple[str, str, Any]]:
    """Yield the place, the plain name and the value of everything next to the items."""
    above = records.rpartition(".")[0]
    for prefix, each in [("", document)] + [(above, value_at(document, above))] * bool(above):
        yield from _within(prefix, each, items, _DEPTH)
    for header in _PAGING_HEADERS:
        try:
            yield from _within(header, json.loads(answer.headers.get(header, "")), items, 1)
        except ValueError:
            continue


def _within(
    prefix: str, there: object, items: object, depth: int
) -> Iterator[tuple[str, str, Any]]:
    if not isinstance(there, dict) or there is items:
        return
    for key, value in there.items():
        place, name = f"{prefix}.{key}" if prefix else key, plain(key)
        is_after = name == "after" and plain(prefix) == "cursors"
        yield place, "cursorsafter" if is_after else name, value
        if depth > 1 and name in _INNER and isinstance(value, dict):
            yield from _within(place, value, items, depth - 1)


def plain(name: str) -> str:
    """Return a name without its case, its separators and its prefix up to a dot or a colon.

    >>> plain("@odata.nextLink"), plain("total_count"), plain("hydra:next")
    ('nextlink', 'totalcount', 'next')
    """
    return re.sub(r"[^a-z]", "", re.split(r"[.:]", name)[-1].lower())


def _totals_of_headers(answer: HttpResponse) -> Iterator[Total]:
    for headers, is_sure in ((_TOTAL_HEADERS, True), (_UNSURE_HEADERS, False)):
        for header in headers:
            total = _exact(answer.headers.get(header), header)
            if total is not None:
                yield replace(total, is_sure=is_sure and total.is_sure)
    ranged = _CONTENT_RANGE.fullmatch(answer.headers.get("Content-Range", ""))
    if ranged:
        yield Total(int(ranged[1]), "Content-Range")


def _exact(value: object, place: str) -> Total | None:
    """Return a total that is a number, also one that is a text such as 1,330 or 10000+."""
    bound = _BOUND.fullmatch(value.strip()) if isinstance(value, str) else None
    count = _count(value if bound is None else bound[1] or bound[2])
    if count is None:
        return None
    return Total(count, place, is_sure=bound is None, is_bound=bound is not None)


def _bounded(value: object, place: str) -> Total | None:
    """Return a total that states whether it is exact, as in Elasticsearch."""
    if not isinstance(value, Mapping):
        return None
    total = next((_exact(value[name], place) for name in _COUNTS if name in value), None)
    if total is None or value.get("relation", "eq") == "eq":
        return total
    return replace(total, is_sure=False, is_bound=True)


def _count(value: object) -> int | None:
    if isinstance(value, str) and value.strip().isascii() and value.strip().isdecimal():
        return int(value) if len(value) < 20 else None
    if isinstance(value, str) and (grouped := _GROUPED.fullmatch(value.strip())):
        return int(value.strip().replace(grouped[1], ""))
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _is_more(name: str, value: object) -> bool:
    return bool(name in _MORE and truth(value)) or _is_last(name, value) is False


def _is_over(said: list[tuple[str, str, Any]]) -> bool:
    return any(
        (name in _MORE and truth(value) is False) or _is_last(name, value)
        for _, name, value in said
    )


def _is_last(name: str, value: object) -> bool | None:
    # A number there is the number of the last page.
    is_flag = isinstance(value, bool) or (isinstance(value, str) and not value.strip().isdecimal())
    return truth(value) if name in _LAST and is_flag else None


def _leads_on(value: object) -> bool:
    if isinstance(value, dict):
        return any(_leads_on(each) for each in value.values())
    if isinstance(value, str):
        return value.strip() not in ("", "null", "0", "-1")
    return bool(value) and value != -1


def _next_of(links: object) -> object:
    """Return the next link among links that each state their relation, as in FHIR."""
    for link in links if isinstance(links, list) else ():
        if isinstance(link, dict) and "next" in (link.get("rel"), link.get("relation")):
            return link.get("href") or link.get("url")
    return None


def _leads_nowhere(answer: HttpResponse, link: object, position: int | None) -> bool:
    """Return whether a link leads to its own page, or to the end of the list by its total."""
    if isinstance(link, dict):
        link = link.get("href")
    try:
        if not isinstance(link, str):
            return False
        target = answer.url.join(URL(link))
    except ValueError:
        return False
    if target == answer.url:
        return True
    skipped = [
        int(value)
        for name, value in target.query.items()
        if plain(name) in _SKIPPING and value.isascii() and value.isdecimal() and len(value) < 20
    ]
    return position is not None and any(each >= position for each in skipped)
