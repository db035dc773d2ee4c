"""The signs next to a page's items that more items follow, or that none do.

- An undeclared sign is searched for in the usual places, and can only contradict an end, never
  prove one. A page that was cut contradicts itself by a next link or a cursor, whatever pagination
  was declared.
- A flag is read by its name: `isLast` says the opposite of `hasMore`, declared or not.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sized
from typing import Any

from yarl import URL

from ladon_storage.sources.http.client import HttpResponse
from ladon_storage.sources.http.urls import LONGEST_ADDRESS, normalized
from ladon_storage.sources.json.items import value_at
from ladon_storage.sources.rest.asides import flags_aside, hint_aside, own_plain
from ladon_storage.sources.rest.links import next_in
from ladon_storage.sources.rest.message_words import CUTS
from ladon_storage.sources.rest.names import LONGEST_SIGN, count_in, levels, names, plain, truth
from ladon_storage.sources.rest.vocabulary import (
    BEFORE,
    CURSORS,
    FIRST,
    INNER,
    LAST,
    LINKS,
    MAY_BE_MORE,
    MORE,
    NOWHERE,
    OFFSETS,
    PAGE_NUMBERS,
    REMAINING,
    SIZES,
    WEAK,
)

_DEPTH = 4
MOST_NAMES = 5_000
"""Names next to the items that are examined; no API has so many."""

_CURSOR_HEADER = re.compile(
    r".*continuation.*"
    r"|(x-)?(.+-)?next(-?(page|cursor|token|marker|range|link|url|uri|offset|key|start))*"
)
_PAGING_HEADERS = tuple(
    f"{prefix}{name}{suffix}"
    for name in ("Pagination", "Paging")
    for prefix in ("X-", "")
    for suffix in ("", "-Info", "-Headers")
)
_OWN = re.compile(r"(?:x-)?(?:(?:pagination|paging|meta)-?)?(.+)", re.IGNORECASE)
_OWN_BEGINS = ("x-", "total", "paging", "pagination", "record", "result")
_HEADER_NAME = re.compile(r"[A-Za-z][\w-]*")
_WARNINGS = ("Warning", "X-Warning", "X-Notice")
_DATE = re.compile(r"\d{4}-\d\d-\d\d(?:[T ].*)?")
_DAY_LENGTH = len("2024-01-01")
"""The length of a date alone, which many records share."""

_SKIPPING = names("offset start startindex startat skip from")
_CONTENT_RANGE = re.compile(r"\s*(?:[a-z-]+[\s=]\s*)?(\d{1,18})-\d", re.IGNORECASE)
_ALONE_HEADER = re.compile(r"x-(?:.+-)?cursor")
_MOST_LINKS = 50
_MOST_RELATIONS = 10
_BEHIND = ("prev", "before", "start")


def metadata(
    answer: HttpResponse, document: object, items: object, records: str
) -> Iterator[tuple[str, str, Any]]:
    """Yield the place, the plain name and the value of everything next to the items."""
    above = records.rpartition(".")[0]
    for prefix, each in [("", document)] + [(above, value_at(document, above))] * bool(above):
        yield from _within(prefix, each, items, _DEPTH)
    for header in _PAGING_HEADERS:
        if header not in answer.headers:
            continue
        try:
            yield from _within(header, json.loads(answer.headers[header]), items, 1)
        except ValueError:
            continue


def metadata_between(
    document: object, items: object, records: str
) -> Iterator[tuple[str, str, Any]]:
    """Yield the same of the levels between the top and the items, which may be of other lists."""
    for prefix in levels(records)[1:-1]:
        yield from _within(prefix, value_at(document, prefix), items, 1)


def crowded(document: object, items: object, records: str) -> str | None:
    """Return the place next to the items with more names than are examined."""
    above, count = records.rpartition(".")[0], 0
    left: list[tuple[str, object]] = [("", document)]
    left += [(above, value_at(document, above))] if above else []
    for place, there in left:
        if not isinstance(there, dict) or there is items:
            continue
        count += len(there)
        if count > MOST_NAMES:
            return place
        left += [
            (f"{place}.{key}" if place else key, value)
            for key, value in there.items()
            if isinstance(value, dict) and plain(key) in INNER
        ]
    return None


def _within(
    prefix: str, there: object, items: object, depth: int
) -> Iterator[tuple[str, str, Any]]:
    if not isinstance(there, dict) or (there is items and len(there) > MOST_NAMES):
        return
    for key, value in there.items():
        if there is items and isinstance(value, dict | list):
            continue  # a record, whatever its id
        place, name = f"{prefix}.{key}" if prefix else key, plain(key)
        if name == "after":
            name = _name_of_after(prefix, there)
        yield place, name, value
        if depth > 1 and name in INNER and isinstance(value, dict):
            yield from _within(place, value, items, depth - 1)


def _name_of_after(prefix: str, there: Mapping[Any, Any]) -> str:
    """Return a name that says whether an ``after`` is a cursor, as next to an empty ``before``."""
    if plain(prefix) == "cursors":
        return "cursorsafter"
    return "firstafter" if there.get("before", 0) in (None, "") else "after"


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
    said = _named(metadata(answer, document, items, records), records)
    between = _named(metadata_between(document, items, records), records)
    aside: list[tuple[str, str, Any]] = []
    if position is None and not _is_over(said):
        aside = list(flags_aside(document, items, records))
    for place, name, value in said + between + aside:
        if _is_more(name, value):
            return f"says at {place!r} that there are more"
    for header, name in own_headers(answer):
        if _is_more(name, answer.headers[header]):
            return f"says in its header {header} that there are more"
    for header in _WARNINGS:
        if CUTS.are_in(answer.headers.get(header, "")[:LONGEST_SIGN]):
            return f"says in its header {header} that records are missing"
    if not heeds_next or _is_over(said):
        return None
    link = next_in(answer.headers.getall("Link", []), answer.url)
    if link is not None and not _leads_nowhere(answer, link, position):
        return "has a next link in its header Link"
    for header in cursor_headers(answer, is_alone=is_alone):
        if _leads_on(answer.headers[header].strip()):
            return f"has a next page in its header {header}"
    for place, name, value in said + between:
        is_link = name in LINKS and not (_is_date(value) and not _is_of_last(value, items))
        if is_link and _leads_on(value) and not _leads_nowhere(answer, value, position):
            return f"has a next page at {place!r}"
        listed = related(value, "next") if name in ("link", "links") else None
        if listed is not None and not _leads_nowhere(answer, listed, position):
            return f"has a next page at {place!r}"
        is_cursor = name in CURSORS and (is_alone or name != "cursorsafter")
        if (is_cursor or (is_alone and _is_token(answer, name, value))) and _leads_on(value):
            return f"has a cursor at {place!r}"
    return None


def hint(
    answer: HttpResponse,
    document: object,
    items: object,
    records: str,
    *,
    heeds_next: bool = True,
) -> str | None:
    """Return a sign that there may be more items, worded for a warning; ``None``: there is none.

    It has a name or a place that is not known, and may be about something else.
    """
    said = list(metadata(answer, document, items, records))
    for place, name, value in said:
        if value is True and name in MAY_BE_MORE:
            return f"says at {place!r} that there may be more"
    if _is_over(said):
        return None
    return hint_aside(document, items, records, heeds_next=heeds_next)


def _named(signs: Iterable[tuple[str, str, Any]], records: str) -> list[tuple[str, str, Any]]:
    return [(place, own_plain(name, records), value) for place, name, value in signs]


def _is_date(value: object) -> bool:
    """Return whether a value is a date, as that of a next edition, with a time or without."""
    return isinstance(value, str) and _DATE.fullmatch(value) is not None


def _is_of_last(value: object, items: object) -> bool:
    """Return whether a time is also the last item's, as a cursor of pages by time is."""
    left = [items[-1]] if isinstance(items, list) and items else []
    while left:
        each = left.pop()
        if isinstance(each, dict | list):
            left += each.values() if isinstance(each, dict) else each
        elif each == value:
            return len(str(value)) > _DAY_LENGTH
    return False


def is_over(answer: HttpResponse, document: object, items: object, records: str) -> bool:
    """Return whether an answer says that nothing follows."""
    said = _named(metadata(answer, document, items, records), records)
    if not _has_sign(answer, said):
        said = list(flags_aside(document, items, records))
    return _is_over(said) and not any(_is_more(name, value) for _, name, value in said)


def flags(answer: HttpResponse, document: object, items: object, records: str) -> bool:
    """Return whether an answer has a flag of more, a next link or a cursor, whatever its value."""
    said = _named(metadata(answer, document, items, records), records)
    return _has_sign(answer, said) or any(flags_aside(document, items, records))


def _has_sign(answer: HttpResponse, said: list[tuple[str, str, Any]]) -> bool:
    usual = ("Link", "X-Has-More", *cursor_headers(answer))
    return any(header in answer.headers for header in usual) or any(
        is_sign(name) and name not in INNER for _, name, _ in said
    )


def own_headers(answer: HttpResponse) -> Iterator[tuple[str, str]]:
    """Yield the headers that only this service has, with their plain names."""
    for header in answer.headers:
        if header.lower().startswith(_OWN_BEGINS) and (found := _OWN.fullmatch(header)):
            yield header, plain(found[1])


def cursor_headers(answer: HttpResponse, *, is_alone: bool = False) -> list[str]:
    """Return the headers whose names are those of a cursor or a next page.

    A plain ``X-Cursor`` is that of the next page only if no page was requested by one.
    """
    found = {each: each.lower() for each in answer.headers}
    return [
        each
        for each, name in found.items()
        if _CURSOR_HEADER.fullmatch(name)
        or (is_alone and _ALONE_HEADER.fullmatch(name) and not any(at in name for at in _BEHIND))
    ]


def _is_token(answer: HttpResponse, name: str, value: object) -> bool:
    """Return whether a text requests the next page: an offset as in Airtable, or on a first page.

    An ``after`` may also repeat what was requested, or be the start of a range.
    """
    if not isinstance(value, str):
        return False
    if name == "firstafter":
        return not _is_date(value) and value not in answer.url.query.values()
    return name == "offset" and count_in(value) is None


def is_sign(name: str) -> bool:
    """Return whether a name is that of a flag of more, a next link, a cursor or their place."""
    squeezed = plain(name)
    return any(squeezed in each for each in (MORE, LAST, LINKS, CURSORS, REMAINING, INNER))


def misses_front(
    answer: HttpResponse, document: object, items: Sized, records: str, first_number: int
) -> str | None:
    """Return where the page requested as the first says that it is not the first."""
    said = list(metadata(answer, document, items, records))
    sized = {place.rpartition(".")[0] for place, name, _ in said if name in SIZES}
    for place, name, value in said:
        if (name in FIRST and value is False) or (name in BEFORE and value is True):
            return place
        # Next to a size, a position is that of this page, unless it is that of the next one.
        number = count_in(value) if place.rpartition(".")[0] in sized else None
        if number is None:
            continue
        if name in OFFSETS and number > 1 and number != len(items):
            return place
        # The pages of a list that counts from 0 may be named from 1.
        if name in PAGE_NUMBERS and number > first_number + 1:
            return place
    ranged = _CONTENT_RANGE.match(answer.headers.get("Content-Range", ""))
    return "Content-Range" if ranged and int(ranged[1]) > 1 else None


def may_be_cut(answer: HttpResponse, document: object, items: Sized, records: str) -> bool:
    """Return whether an answer has what a page of a list has, and says nothing of the others.

    It has as many items as its own limit, a range of an unknown total, or a cursor that a last page
    has, too.
    """
    if answer.headers.get("Content-Range", "").rstrip().endswith("/*"):
        return True
    if len(items) and count_in(answer.headers.get("X-Per-Page")) == len(items):
        return True
    return any(
        (name in WEAK and _leads_on(value))
        or (name in SIZES and len(items) > 0 and count_in(value) == len(items))
        for _, name, value in metadata(answer, document, items, records)
    )


def declared_value(answer: HttpResponse, document: object, path: str) -> Any:
    """Return the value at a declared path, or that of the header which it names instead."""
    value = value_at(document, path)
    if value is None and not (isinstance(document, dict) and path in document):
        return answer.headers.get(path) if _HEADER_NAME.fullmatch(path) else None
    return value


def promised_at(document: object, path: str) -> bool | None:
    """Return whether a flag at a declared path says that there are more, by its name.

    >>> promised_at({"isLast": True}, "isLast"), promised_at({"more": "Y"}, "more")
    (False, True)
    """
    flag = truth(value_at(document, path))
    return not flag if flag is not None and plain(path) in LAST else flag


def _is_more(name: str, value: object) -> bool:
    if name in REMAINING:
        return bool(count_in(value))
    return bool(name in MORE and truth(value)) or _is_last(name, value) is False


def _is_over(said: list[tuple[str, str, Any]]) -> bool:
    return any(
        (name in MORE and truth(value) is False) or _is_last(name, value) for _, name, value in said
    )


def _is_last(name: str, value: object) -> bool | None:
    # A number there is the number of the last page.
    is_flag = isinstance(value, bool) or (isinstance(value, str) and not value.strip().isdecimal())
    is_flag = is_flag or name.startswith(("is", "no", "all"))
    return truth(value) if name in LAST and is_flag else None


def _leads_on(value: object) -> bool:
    left = [value]
    while left:  # a loop, since it may be nested deeply
        each = left.pop()
        if isinstance(each, dict):
            left += each.values()
        elif isinstance(each, str):
            if each.strip() not in ("", "0") and each.strip().lower() not in NOWHERE:
                return True
        elif each and each != -1:
            return True
    return False


def related(links: object, relation: str) -> object:
    """Return the link with a relation, among links that each state theirs, as in FHIR."""
    for link in links[:_MOST_LINKS] if isinstance(links, list) else ():
        for name in ("rel", "relation") if isinstance(link, dict) else ():
            stated = link.get(name)
            stated = stated[:_MOST_RELATIONS] if isinstance(stated, list) else [stated]
            if relation in [_relation(each) for each in stated if isinstance(each, str)]:
                return link.get("href") or link.get("url")
    return None


def _relation(stated: str) -> str:
    """Return the name of a relation, which may be an address that ends in it."""
    return stated[-LONGEST_SIGN:].lower().rpartition("/")[2].rpartition("#")[2]


def _leads_nowhere(answer: HttpResponse, link: object, position: int | None) -> bool:
    """Return whether a link leads to its own page, or to the end of the list by its total."""
    if isinstance(link, dict):
        link = link.get("href")
    try:
        if not isinstance(link, str) or len(link) > LONGEST_ADDRESS:
            return False
        target = answer.url.join(URL(link))
    except ValueError:
        return False
    if normalized(target) == normalized(answer.url):
        return True
    skipped = [
        int(value)
        for name, value in target.query.items()
        if plain(name) in _SKIPPING and value.isascii() and value.isdecimal() and len(value) < 20
    ]
    return position is not None and any(each >= position for each in skipped)
