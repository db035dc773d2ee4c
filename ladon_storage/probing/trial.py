"""The trial of a source: its first pages as they would be stored, and the course of a run.

- The source's own code reads the pages. The trial only observes, and ends the reading after two
  pages, when the request for the third is known and not made.
- Any error of the source is part of the result. Only an invalid source raises an error.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from contextlib import aclosing
from datetime import datetime
from typing import Any, cast

from ladon_storage.collection.json_values import parse_json
from ladon_storage.collection.protocols import Clock, Limits, Source, utc_now
from ladon_storage.collection.records import Page, Record, Reject
from ladon_storage.errors import LadonStorageError
from ladon_storage.probing.results import Trial, TrialRecord, TrialReject, TrialRequest
from ladon_storage.probing.warnings import describe_paging, find_warnings
from ladon_storage.sources import RestApi, source_from
from ladon_storage.sources.http.client import HttpResponse
from ladon_storage.sources.http.observing import observed_by
from ladon_storage.sources.json.items import value_at
from ladon_storage.sources.rest.totals import declared_total, usual_total

PAGES = 2
"""Pages with records after which only the next request is of interest."""

MAX_REQUESTS = 16
"""The limit on requests: a feed of files requests a list, and then ten files for one page."""

GRACE_SECONDS = 1.0
"""The wait for a second page, once there is one: a rate limit may require longer."""

MAX_PAYLOAD = 2_000
"""Characters of a record that a trial keeps."""


class _EnoughError(Exception):
    """Raised in place of a request that the trial does not make."""


class _Watch:
    """The observer of the requests in one trial."""

    def __init__(self) -> None:
        self.requests: list[TrialRequest] = []
        self.next: TrialRequest | None = None
        self.first: HttpResponse | None = None
        self.pages = 0

    def asking(self, method: str, url: str, body: str | None) -> None:
        request = TrialRequest(method=method, url=url, body=body)
        if self.pages >= PAGES or len(self.requests) >= MAX_REQUESTS:
            self.next = request
            raise _EnoughError
        self.requests.append(request)

    def give_up(self) -> None:
        """Treat the request that was not answered in time as the next one."""
        if self.requests and self.requests[-1].status is None:
            self.next = self.requests.pop()

    def answered(self, answer: HttpResponse) -> None:
        answered = {"status": answer.status, "bytes": len(answer.body)}
        self.requests.append(self.requests.pop().model_copy(update=answered))
        self.first = self.first or answer


class _Messages(logging.Handler):
    """The warnings that a source logs during its trial."""

    def __init__(self, source_id: str) -> None:
        super().__init__(logging.WARNING)
        self._source_id = source_id
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if getattr(record, "source_id", None) == self._source_id:
            self.texts.append(record.getMessage())


async def try_source(
    source: object,
    *,
    records: int = 10,
    since: datetime | None = None,
    seconds: float = 30.0,
    limits: Limits = Limits(),  # noqa: B008 - frozen
    clock: Clock = utc_now,
) -> Trial:
    """Read the first pages of a source, and return what a run would store and do next.

    Args:
        source: A source, or the dictionary that describes one.
        records: The maximum number of records and rejects in the result.
        since: The start of the requested range; ``None``: it has none.
        seconds: The time limit of the trial.
        limits: The limits of the run that its warnings are about.
        clock: The current time, by which records are from the future.

    Raises:
        ConfigurationError: ``source`` describes no source.
    """
    tried = source_from(source)
    began = time.monotonic()
    watch, messages = _Watch(), _Messages(tried.source_id)
    seen: list[Page] = []
    logger = logging.getLogger("ladon_storage")
    logger.addHandler(messages)
    error, is_finished = None, False
    try:
        with observed_by(watch):
            async with asyncio.timeout(seconds) as limit:
                is_finished = await _read(tried, since, watch, seen, limit)
    except TimeoutError:
        watch.give_up()
        if not watch.pages:
            error = f"Source {tried.source_id!r} gave no page in {seconds:g} s; raise the limit."
    except LadonStorageError as failure:
        error = str(failure)
    finally:
        logger.removeHandler(messages)
    return _result(
        tried,
        seen,
        watch,
        records=records,
        is_finished=is_finished,
        error=error,
        limits=limits,
        clock=clock,
        messages=messages.texts,
        seconds=time.monotonic() - began,
    )


async def _read(
    source: Source,
    since: datetime | None,
    watch: _Watch,
    seen: list[Page],
    limit: asyncio.Timeout,
) -> bool:
    """Read until there is enough; return whether the source ended before that."""
    try:
        async with aclosing(cast(Any, source.pages(since, None))) as pages:
            async for page in pages:
                seen.append(page.copy())  # as a run does
                watch.pages += len(page) > 0
                if watch.pages == 1 and (when := limit.when()) is not None:
                    soon = asyncio.get_running_loop().time() + GRACE_SECONDS
                    limit.reschedule(min(when, soon))
                if watch.pages > PAGES:  # of a document, or a table, that makes no further request
                    return False
    except _EnoughError:
        return False
    return True


def _result(
    source: Source,
    pages: list[Page],
    watch: _Watch,
    *,
    records: int,
    is_finished: bool,
    error: str | None,
    limits: Limits,
    clock: Clock,
    messages: list[str],
    seconds: float,
) -> Trial:
    found = [record for page in pages for record in page.records]
    rejects = [reject for page in pages for reject in page.rejects]
    reasons = dict(Counter(each.reason for each in rejects).most_common())
    marks = [page.completeness for page in pages if page.completeness is not None]
    trial = Trial(
        source_id=source.source_id,
        kind=str(getattr(source, "kind", type(source).__name__)),
        records=tuple(_stored(each) for each in found[:records]),
        rejects=tuple(_rejected(each) for each in rejects[:records]),
        delivered=len(found) + len(rejects),
        rejected=len(rejects),
        reasons=reasons,
        requests=tuple(watch.requests),
        next_request=watch.next,
        is_finished=is_finished,
        completeness=marks[-1] if marks and is_finished else None,
        total=_total(source, pages, watch.first),
        error=error,
        seconds=seconds,
    )
    paging = source.paging if isinstance(source, RestApi) else None
    lists = [page.records for page in pages if page.records]
    warnings = [*find_warnings(source, trial, lists, limits, clock()), *messages]
    return trial.model_copy(
        update={"paging": describe_paging(paging, trial), "warnings": tuple(warnings)}
    )


def _total(source: Source, pages: list[Page], first: HttpResponse | None) -> int | None:
    """Return the total that the source states, even if the end was not reached."""
    stated = [page.total for page in pages if page.total is not None]
    if stated or first is None or not isinstance(source, RestApi):
        return max(stated, default=None)
    try:
        document = parse_json(first.body)
    except (ValueError, RecursionError):
        return None
    items = value_at(document, source.records)
    if source.paging.total:
        total = declared_total(first, document, source.paging.total)
    else:
        total = usual_total(first, document, items, source.records)
    return total.count if total is not None and total.is_sure else None


def _stored(record: Record) -> TrialRecord:
    return TrialRecord(
        record_id=record.record_id,
        timestamp=record.timestamp,
        version=record.version,
        payload=_cut(record.payload),
    )


def _rejected(reject: Reject) -> TrialReject:
    return TrialReject(reason=reject.reason, record_id=reject.record_id, raw=_cut(reject.raw))


def _cut(text: str) -> str:
    return text if len(text) <= MAX_PAYLOAD else f"{text[:MAX_PAYLOAD]}…"
