"""The evidence of a first answer about its pagination, and the signs that there is more."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from yarl import URL

from ladon_storage.probing.ranges import form_of
from ladon_storage.sources.http.client import HttpResponse
from ladon_storage.sources.http.urls import as_written, with_those
from ladon_storage.sources.rest.names import names, plain
from ladon_storage.sources.rest.page_metadata import hint, promise
from ladon_storage.sources.rest.totals import declared_total, total_aside, usual_total

SIZES = names(
    "limit perpage pagesize size rows maxresults resultsperpage top count itemsperpage pagelimit "
    "maxitems numperpage"
)
"""The names of parameters for the number of records in a page."""

_DEPTH = 6


@dataclass(frozen=True)
class Evidence:
    """A first answer, and the findings in it."""

    url: URL
    method: str
    body: Mapping[str, Any] | None
    answer: HttpResponse
    document: Any
    records: str
    items: Any
    id: str | None

    @property
    def count(self) -> int:
        """The number of its records."""
        return len(self.items)

    @property
    def asked(self) -> dict[str, str]:
        """The parameters of the URL."""
        return {name.strip(): value for name, value in self.url.query.items()}

    @property
    def query(self) -> Mapping[str, Any]:
        """The parameters of the request, from its body if there is one."""
        return self.body if self.method == "POST" and self.body is not None else self.asked

    @property
    def where(self) -> str:
        """The place of parameters."""
        return "body" if self.method == "POST" and self.body is not None else "query"


@dataclass(frozen=True)
class Proposal:
    """A proposed pagination.

    Args:
        paging: The setting.
        reason: The evidence for it.
        can_be_tried: Whether the answer says that there is a next page.
        changes: Other settings that it needs.
        drops: The URL's or body's parameters that belong to the pagination.
    """

    paging: dict[str, Any]
    reason: str
    can_be_tried: bool = True
    changes: dict[str, Any] = field(default_factory=dict)
    drops: frozenset[str] = frozenset()


def without_paging(settings: Mapping[str, Any], proposal: Proposal) -> dict[str, Any]:
    """Return settings whose URL and body lack the pagination's parameters.

    A time stays in the URL: the range begins there, also where a cursor has the same name.
    """
    url = with_those(
        as_written(settings["url"]),
        lambda k, v: k.strip() not in proposal.drops or bool(form_of(v)),
    )
    settings = {**settings, "url": str(url), **proposal.changes}
    if isinstance(settings.get("body"), dict) and proposal.paging.get("location") == "body":
        body = {k: v for k, v in settings["body"].items() if k not in proposal.drops}
        settings = {**settings, "body": {**body, **proposal.changes.get("body", {})}}
    return {**settings, "paging": proposal.paging}


def says_more(seen: Evidence, *, is_alone: bool = False) -> str | None:
    """Return the sign in an answer that there are more records than it has.

    With ``is_alone``, a cursor counts that the last page of a list may have, too.
    """
    told = (seen.answer, seen.document, seen.items, seen.records)
    promised = promise(*told, is_alone=is_alone)
    if promised is not None:
        return promised
    bound = usual_total(*told)
    if bound is not None and bound.is_bound and bound.count >= seen.count:
        return f"states more than {bound.count} records at {bound.place!r}"
    total = total_of(seen)
    return f"states {total[1]} records at {total[0]!r}" if total and total[1] > seen.count else None


def may_say_more(seen: Evidence) -> str | None:
    """Return a sign that there may be more, which may be about something else."""
    found = hint(seen.answer, seen.document, seen.items, seen.records)
    if found is not None:
        return found
    total = total_aside(seen.document, seen.items, seen.records)
    if total is None or total.count <= seen.count:
        return None
    return f"states {total.count} at {total.place!r}, which may be a total"


def is_as_asked(seen: Evidence) -> bool:
    """Return whether there are exactly as many records as were requested at most."""
    sizes = [str(value) for name, value in seen.query.items() if plain(name) in SIZES]
    return seen.count > 0 and str(seen.count) in sizes


def total_of(seen: Evidence) -> tuple[str, int] | None:
    """Return the path and value of the total that an answer states."""
    total = usual_total(seen.answer, seen.document, seen.items, seen.records)
    if total is None or total.is_bound or not (total.is_sure or total.count > seen.count):
        return None
    declared = declared_total(seen.answer, seen.document, total.place)
    if declared is None or declared.count != total.count:  # its path contains dots
        return None
    return total.place, total.count


def beside(document: object, records: str) -> Iterator[tuple[str, str, Any]]:
    """Yield the path, the plain name and the value of everything around the records."""
    yield from _within(document, "", records, _DEPTH)


def _within(there: object, path: str, records: str, depth: int) -> Iterator[tuple[str, str, Any]]:
    if not isinstance(there, dict) or depth == 0:
        return
    for key, value in there.items():
        place = f"{path}.{key}" if path else key
        if place == records:
            continue
        yield place, plain(key), value
        yield from _within(value, place, records, depth - 1)
