"""The confirmation of a pagination: the next page is requested, as the source itself would do.

- A page confirms a pagination if it has records, and others than the first page.
- If the answers say that there is more, and no pagination leads to it, there is no source: it would
  read the first page alone, and fail, or be wrong.
- What looks like a cursor, and led nowhere, is an open question.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ladon_storage.collection.json_values import canonical_text, without
from ladon_storage.errors import ConfigurationError, SourceError
from ladon_storage.probing.pagings import proposals
from ladon_storage.probing.signs import (
    Evidence,
    Proposal,
    is_as_asked,
    may_say_more,
    says_more,
    total_of,
    without_paging,
)
from ladon_storage.sources import RestApi, source_from
from ladon_storage.sources.http.client import SourceHttp
from ladon_storage.sources.rest.page import PageRequest, PageResponse
from ladon_storage.sources.rest.pagination import PageNumberPagination

MAX_REQUESTS = 3
"""The limit on requests after the first one."""

CHEAP_BYTES = 1 << 20
"""The largest answer that is requested again without a sign that there is more."""

_REFUSED = re.compile(r"answered (400|404|416|422) from")
"""The texts with which APIs refuse a page beyond the end."""

_ROUND = 5
"""The divisor of round page sizes: a page of such a size may be full."""


@dataclass
class Confirmed:
    """The pagination that was found.

    Args:
        proposal: The pagination; ``None``: a single document.
        is_confirmed: Whether it led to a next page.
        items: The records of the pages that came.
        unsure: The questions that stay open.
        problem: The reason why there is no source: there is more, and no pagination leads to it.
        requests: The number of requests that were made.
    """

    proposal: Proposal | None = None
    is_confirmed: bool = False
    items: Any = None
    unsure: list[str] = field(default_factory=list)
    problem: str | None = None
    requests: int = 0


async def confirm(
    settings: Mapping[str, Any], seen: Evidence, http: SourceHttp | None
) -> Confirmed:
    """Return the first pagination that leads to the next page."""
    result = Confirmed()
    more = says_more(seen)
    is_full = (seen.count >= 2 * _ROUND and seen.count % _ROUND == 0) or is_as_asked(seen)
    total = total_of(seen)
    is_whole = total is not None and total[1] == seen.count
    hinted = None if more or is_whole else may_say_more(seen)
    is_full = is_full or hinted is not None
    is_cheap = not is_whole and len(seen.answer.body) <= CHEAP_BYTES
    waiting: Proposal | None = None
    tried: list[str] = []
    unfollowed: dict[str, None] = {}
    for proposal in proposals(seen):
        if not proposal.can_be_tried:
            waiting = waiting or proposal
            continue
        if _is_mere_convention(proposal) and (waiting or not (more or is_full or is_cheap)):
            continue
        if http is None:
            waiting = waiting if _is_mere_convention(proposal) else waiting or proposal
            continue
        if result.requests >= MAX_REQUESTS:
            break
        attempt = _Attempt(settings, seen, http, proposal, MAX_REQUESTS - result.requests)
        problem = await attempt.run()
        result.requests += attempt.requests
        if problem is None:
            result.proposal = attempt.proposal
            result.is_confirmed, result.items = True, attempt.items
            result.unsure += attempt.unsure
            _note_end(result, seen)
            return result
        if not more and attempt.is_end and not _is_mere_convention(proposal):
            waiting = waiting or attempt.proposal
        elif proposal.paging["kind"] in ("cursor", "next"):
            unfollowed[proposal.paging["path"]] = None
        tried.append(f"{proposal.paging.get('parameter') or proposal.paging['kind']}: {problem}")
    result.proposal = waiting
    if waiting is None:
        more = more or says_more(seen, is_alone=True)
    if waiting is None and not more:
        result.unsure += [f"whether {path} leads to more records" for path in unfollowed]
    if hinted is not None:
        result.unsure.append(f"whether there are more records: the API {hinted}")
    _note_unconfirmed(
        result, seen, more, tried, is_full=is_full or not is_whole, is_asked=http is not None
    )
    return result


def _note_end(result: Confirmed, seen: Evidence) -> None:
    if total_of(seen) is None:
        result.unsure.append("how many records there are: the API states no total")


def _note_unconfirmed(
    result: Confirmed,
    seen: Evidence,
    more: str | None,
    tried: list[str],
    *,
    is_full: bool,
    is_asked: bool,
) -> None:
    failed = "; ".join(tried)
    if more and is_asked:
        if isinstance(seen.document, dict) and "_scroll_id" in seen.document:
            failed += (
                "; a scroll has an address of its own for its next pages, which a rest source "
                "does not ask: sort the search, so that search_after can be used"
            )
        if result.proposal is None:
            result.problem = (
                f"The API {more}, and no way to the next page was found"
                f"{f' ({failed})' if failed else ''}; see how the API documents its paging, and "
                "set paging."
            )
            return
        result.unsure.append(f"the paging: the API {more}, and no next page came ({failed})")
    elif result.proposal is not None and is_asked:
        kind = result.proposal.paging["kind"]
        result.unsure.append(f"the paging: {kind!r} could not be confirmed, as there is one page")
    elif is_full:
        after = f", and no next page came ({failed})" if failed else ""
        result.unsure.append(
            f"whether {seen.count} records are all there is{after}: the number may be a limit"
        )


def _is_mere_convention(proposal: Proposal) -> bool:
    return proposal.reason.startswith(("most APIs", "some APIs"))


class _Attempt:
    """A pagination on trial.

    Attributes:
        proposal: The pagination, as corrected by the trial.
        items: The records of the next page.
        unsure: The questions that stay open.
        requests: The number of requests that it took.
        is_end: Whether the answer is that of a page beyond the end.
    """

    def __init__(
        self,
        settings: Mapping[str, Any],
        seen: Evidence,
        http: SourceHttp,
        proposal: Proposal,
        budget: int,
    ) -> None:
        self._settings = settings
        self._seen = seen
        self._http = http
        self._budget = budget
        self.proposal = proposal
        self.items: Any = None
        self.unsure: list[str] = []
        self.requests = 0
        self.is_end = False

    async def run(self) -> str | None:
        """Return the reason why no next page came; ``None``: it came."""
        try:
            return await self._run()
        except ConfigurationError as error:
            return str(error)
        except SourceError as error:
            self._heed_status(str(error))
            return str(error).partition(";")[0]
        except ValueError as error:
            return f"the answer {error}"

    async def _run(self) -> str | None:
        seen, source = self._seen, self._source(self.proposal)
        got = PageResponse(seen.answer, seen.document, seen.items)
        step = source.paging.first_request()
        if self.proposal.changes:
            # With another form of request, the first page is another answer.
            if self._budget < 2:
                return "there was no request left to try it"
            got = await self._fetch(source, step)
            if not got.count:
                return "asked so, the first page has no records"
        following = source.paging.next_request(step, got)
        if following is None:
            return "it leads nowhere"
        coming = await self._fetch(source, following)
        if not coming.count:
            self.is_end = True
            return "the next page has no records"
        if self._is_same(source, coming.items, got.items):
            return "it answers the same page"
        self.items = coming.items
        if isinstance(source.paging, PageNumberPagination):
            await self._find_first_number(source, source.paging)
        if (index := self._shifts(coming.document)) is not None:
            return index
        return None

    def _heed_status(self, problem: str) -> None:
        """Treat a refusal as a page beyond the end, if pages are counted."""
        found = _REFUSED.search(problem)
        if found is not None and self.proposal.paging["kind"] in ("page", "offset"):
            self.is_end = True
            paging = {**self.proposal.paging, "end_status": [int(found[1])]}
            self.proposal = replace(self.proposal, paging=paging)

    async def _fetch(self, source: RestApi, step: PageRequest) -> PageResponse:
        self.requests += 1
        return await source.fetch(self._http, step)

    def _source(self, proposal: Proposal) -> RestApi:
        # The key is in the requests already, and its name is not needed. The end is the address's
        # own, as in the first answer: with another there may be other records.
        named = {
            k: v for k, v in self._settings.items() if not k.startswith("key_") and k != "until"
        }
        settings = without_paging(named, proposal)
        settings.pop("key", None)
        source = source_from(settings)
        if not isinstance(source, RestApi):
            raise TypeError("what is tried is a rest source")
        return source

    def _is_same(self, source: RestApi, coming: Any, before: Any) -> bool:
        """Return whether a page has nothing that is not on another one."""
        if isinstance(coming, Mapping):
            return set(coming) <= set(before)
        reader = source.reader()

        def ids(items: Any) -> set[str]:
            return {reader.record_id(item) or repr(item) for item in items}

        # A field that repeats on each page is no id, and a time may be that of the answer.
        def contents(items: Any) -> set[bytes]:
            return {canonical_text(without(item, source.timestamps)) for item in items}

        return ids(coming) <= ids(before) and contents(coming) <= contents(before)

    async def _find_first_number(self, source: RestApi, paging: PageNumberPagination) -> None:
        """Determine whether pages are counted from 0, if only a convention says from 1."""
        if not _is_mere_convention(self.proposal):
            return
        if self.requests >= self._budget:
            self.unsure.append("whether pages are counted from 1 or from 0")
            return
        page = await self._fetch(source, paging.first_request())
        if page.count and not self._is_same(source, page.items, self._seen.items):
            changed = {**self.proposal.paging, "first_number": 0}
            self.proposal = replace(self.proposal, paging=changed)

    def _shifts(self, document: Any) -> str | None:
        """Return the problem of a link whose index in a list of links differs from page to page."""
        parts = self.proposal.paging.get("path", "").split(".")
        if self.proposal.paging["kind"] != "next" or not any(part.isdecimal() for part in parts):
            return None
        *place, index, _ = parts
        links: Any = document
        for part in place:
            links = links.get(part) if isinstance(links, dict) else None
        for position, link in enumerate(links if isinstance(links, list) else ()):
            if isinstance(link, dict) and "next" in (link.get("rel"), link.get("relation")):
                return None if str(position) == index else "the next link moves within its list"
        return "the next page names no next one at this place"
