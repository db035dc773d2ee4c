"""The number of items that an API states: where it stands on a page, and whether it counts all.

- A declared total is read where it was declared. An undeclared one is searched for in the usual
  places, and can only contradict an end, never prove one.
- A number that may count the items of its own page proves nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sized
from dataclasses import dataclass, replace

from ladon_storage.sources.http.client import HttpResponse
from ladon_storage.sources.json.items import value_at
from ladon_storage.sources.rest.asides import totals_aside
from ladon_storage.sources.rest.links import linked, parameters_of
from ladon_storage.sources.rest.names import LONGEST_SIGN, count_in, names, plain
from ladon_storage.sources.rest.page_metadata import (
    declared_value,
    metadata,
    metadata_between,
    own_headers,
    related,
)
from ladon_storage.sources.rest.vocabulary import (
    FILTERED_TOTALS,
    LAST_LINKS,
    OFFSETS,
    PAGE_NUMBERS,
    PAGE_TOTALS,
    TOTALS,
    UNSURE_TOTALS,
)

_TOTAL_HEADERS = (
    "X-Total-Count",
    "X-Total",
    "X-WP-Total",
    "Total-Count",
    "X-Total-Results",
    "X-Total-Items",
    "Total",
    "X-Pagination-Total-Count",
    "X-Pagination-Total",
    "Pagination-Count",
)
_UNSURE_HEADERS = ("X-Result-Count", "X-Count")
_PAGE_HEADERS = ("X-WP-TotalPages", "X-Last-Page")
_CONTENT_RANGE = re.compile(r"\s*(?:[a-z-]+[\s=]\s*)?(?:\d+-\d+|\*)/(\d+)\s*", re.IGNORECASE)
_BOUND = re.compile(r"(?:>=?|≥|over|more than)\s*(\S.*)|(.*\S)\s*\+", re.IGNORECASE)
_OF_ALL = re.compile(r"(?:\d[\d,.]*\s*(?:/|(?:out )?of)\s*)?(\d[\d,.]*?)(?:\.0+)?", re.IGNORECASE)
_WITH_NOUN = re.compile(r"(\S.*\S|\S)\s+[a-z]+", re.IGNORECASE)
_SHOWN = names(
    "message showing shown range display displaying displayed summary info text results pagination "
    "paging page"
)
_PART = re.compile(
    r"(?:[a-z]+:?\s+){0,2}\d[\d,.]*\s*(?:-|\u2013|to|\.\.)\s*\d[\d,.]*(?:\s+of\s+|\s*/\s*)(\d[\d,.]*)(?:\s+\w+)?\.?",
    re.IGNORECASE,
)
_OF_PAGES = re.compile(r"(?:page\s+)?\d{1,9}\s*(?:/|of)\s*(\d{1,9})", re.IGNORECASE)
_LONGEST_SENTENCE = 100
_MOST_LINKS = 10
_MOST_COUNTED = 10**9
_PAGES = names("page p pg pagenumber pageno pageindex pagenum currentpage")
_COUNTS = ("value", "count", "total")


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
    value = declared_value(answer, document, path)
    if isinstance(value, dict):
        return _bounded(value, path)
    above, _, name = path.rpartition(".")
    if name == "value":
        return _bounded(value_at(document, above), path)
    return _exact(value, path)


def usual_total(
    answer: HttpResponse, document: object, items: object, records: str
) -> Total | None:
    """Return the largest total that stands where APIs usually put it.

    A total of the requested items precedes one next to it, which may be of all there are.
    """
    found, filtered = list(_totals_of_headers(answer)), list[Total]()
    named, counted = _own_names(records)
    for place, name, value in metadata(answer, document, items, records):
        is_filtered = name in FILTERED_TOTALS
        if is_filtered or name in TOTALS or name in named:
            total = _bounded(value, place) if isinstance(value, dict) else _exact(value, place)
            if total is not None:
                (filtered if is_filtered else found).append(total)
        elif name in UNSURE_TOTALS or name in counted:
            if (count := count_in(value)) is not None:
                found.append(Total(count, place, is_sure=False))
        elif name in _SHOWN and (count := _of_text(_PART, value)):
            found.append(Total(count, place))
    found += [
        Total(number, place, is_sure=False)
        for place, name, number in _last_positions(answer, document, items, records)
        if name in OFFSETS
    ]
    if not filtered and not found:
        totals = (
            _exact(value, place)
            for place, name, value in metadata_between(document, items, records)
            if name in TOTALS
        )
        found = [replace(total, is_sure=False) for total in totals if total is not None]
    if not filtered and not found and isinstance(items, Sized):
        aside = totals_aside(document, items, records, len(items))
        found = [Total(count, place, is_sure=False) for place, count, is_list in aside if is_list]
    return max(filtered or found, key=lambda total: (total.count, total.is_sure), default=None)


def total_aside(document: object, items: Sized, records: str) -> Total | None:
    """Return the largest total in a place that is not known, which may count something else."""
    aside = totals_aside(document, items, records, len(items))
    found = [Total(count, place, is_sure=False) for place, count, _ in aside]
    return max(found, key=lambda total: total.count, default=None)


def stated_pages(answer: HttpResponse, document: object, items: object, records: str) -> int:
    """Return the number of pages that an API states; 0 where it states none."""
    found = [count_in(answer.headers.get(header)) for header in _PAGE_HEADERS]
    found += [
        count_in(answer.headers[header])
        for header, name in own_headers(answer)
        if name in PAGE_TOTALS and name != "lastpage"
    ]
    for _, name, value in metadata(answer, document, items, records):
        if name in PAGE_TOTALS:
            found.append(count_in(value))
        if name in PAGE_NUMBERS:
            found.append(_of_text(_OF_PAGES, value))
    return max((each for each in found if each is not None), default=0)


def last_number(answer: HttpResponse, document: object, items: object, records: str) -> int:
    """Return the number of the last page, by the link to it; 0 where there is none."""
    positions = _last_positions(answer, document, items, records)
    return max((number for _, name, number in positions if name in _PAGES), default=0)


def _last_positions(
    answer: HttpResponse, document: object, items: object, records: str
) -> Iterator[tuple[str, str, int]]:
    """Yield the numbers in the links to the last page, each with its place and its name."""
    links: list[tuple[str, object]] = [
        ("Link", linked(answer.headers.getall("Link", []), "last", answer.url))
    ]
    for place, name, value in metadata(answer, document, items, records):
        if name in LAST_LINKS:
            links.append((place, value))
        elif name in ("link", "links"):
            links.append((place, related(value, "last")))
    for place, link in links[:_MOST_LINKS]:
        for parameter, value in parameters_of(answer.url, link):
            if (number := count_in(value)) is not None:
                yield place, plain(parameter), number


def _own_names(records: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the names of a total and of a count that have the name of the records."""
    many = plain(records.rpartition(".")[2])
    one = many.removesuffix("s")
    if not many:
        return (), ()
    return (f"total{many}", f"{many}total", f"total{one}count"), (f"{many}count", f"{one}count")


def _of_text(pattern: re.Pattern[str], value: object) -> int | None:
    """Return the number that a text such as ``1-10 of 23`` ends with."""
    if not isinstance(value, str) or len(value) > _LONGEST_SENTENCE:
        return None
    found = pattern.fullmatch(value.strip())
    return count_in(found[1].rstrip(".,")) if found else None


def _totals_of_headers(answer: HttpResponse) -> Iterator[Total]:
    for headers, is_sure in ((_TOTAL_HEADERS, True), (_UNSURE_HEADERS, False)):
        for header in headers:
            total = _exact(answer.headers.get(header), header)
            if total is not None:
                yield replace(total, is_sure=is_sure and total.is_sure)
    for header, name in own_headers(answer):
        if header in (*_TOTAL_HEADERS, *_UNSURE_HEADERS):
            continue
        if name in TOTALS or name in UNSURE_TOTALS:
            total = _exact(answer.headers[header], header)
            if total is not None:
                yield replace(total, is_sure=total.is_sure and name in TOTALS)
    ranged = _CONTENT_RANGE.fullmatch(answer.headers.get("Content-Range", ""))
    if ranged and (count := count_in(ranged[1])) is not None:
        yield Total(count, "Content-Range")


def _exact(value: object, place: str) -> Total | None:
    """Return a total that is a number, also one that is a text such as 1,330 or 10000+."""
    if isinstance(value, str) and len(value) > LONGEST_SIGN:
        return None
    if type(value) is int and value < 0:
        # As in LogicMonitor: so many were counted, and there are more. Other APIs say -1 or -999
        # where they do not know.
        is_count = value >= -_MOST_COUNTED and set(str(-value)) != {"9"} and value != -1
        return Total(-value, place, is_sure=False, is_bound=True) if is_count else None
    bound = _BOUND.fullmatch(value.strip()) if isinstance(value, str) else None
    if isinstance(value, str) and count_in(value) is None and bound is None:
        named = _OF_ALL.fullmatch(value.strip()) or _WITH_NOUN.fullmatch(value.strip())
        value = named[1] if named else value
    count = count_in(value if bound is None else bound[1] or bound[2])
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
