"""The warnings about a source before it runs: each warning is a function of a trial.

A warning has a fact and, if there is one, the next step. It is never an error: a problem that would
fail a run is in the trial's error.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from itertools import pairwise

from ladon_storage.collection.findings import QUARANTINE_MINIMUM
from ladon_storage.collection.protocols import Limits, Source
from ladon_storage.collection.records import Record
from ladon_storage.probing.results import Trial
from ladon_storage.sources import RestApi
from ladon_storage.sources.rest.pagination import (
    CursorPagination,
    LinkHeaderPagination,
    NextLinkPagination,
    OffsetPagination,
    PageNumberPagination,
    Pagination,
    SinglePage,
)

_WIDEST_ZONE = timedelta(hours=14)
_ENDS = {
    "total": "all of the stated total came",
    "last page": "the last page says that there are no more",
    "whole document": "one document is all there is",
    "declared": "nothing but the source's own settings says so",
}


def describe_paging(paging: Pagination | None, trial: Trial) -> str:
    """Return a description of the pagination's next step after the pages of a trial."""
    if trial.error is not None:
        return "Not known: the source could not be read."
    if trial.next_request is not None:
        way = f" by {_way(paging)}" if paging is not None else ""
        return f"The reading goes on{way}."
    if not trial.is_finished:
        return "The reading goes on: there is more than the trial reads."
    if trial.completeness is None:
        return "The reading ends here. The source does not say how it knows the end."
    return f"The reading ends here: {_ENDS[trial.completeness]}."


def _way(paging: Pagination) -> str:
    match paging:
        case PageNumberPagination():
            return f"page numbers in {paging.parameter!r}"
        case OffsetPagination():
            return f"offsets in {paging.parameter!r}"
        case NextLinkPagination():
            return f"the address at {paging.path!r}"
        case LinkHeaderPagination():
            return "the Link header"
        case CursorPagination():
            return f"the cursor at {paging.path!r}, sent as {paging.parameter!r}"
    return "nothing that is declared"


def find_warnings(
    source: Source,
    trial: Trial,
    lists: Sequence[Sequence[Record]],
    limits: Limits,
    now: datetime,
) -> Iterator[str]:
    """Yield the warnings of a trial; ``lists`` are the records of each of its pages."""
    records = [record for each in lists for record in each]
    yield from _of_rejects(trial, limits.quarantine_share)
    if trial.error is None and not trial.delivered:
        yield "No record came: nothing shows that the settings are right."
    yield from _of_times(records, now + limits.future_skew, now)
    yield from _of_ids(records)
    yield from _of_order(source, lists)
    yield from _of_the_end(source, trial)


def _of_rejects(trial: Trial, share: float) -> Iterator[str]:
    if trial.rejected and trial.rejected == trial.delivered:
        reason = next(iter(trial.reasons))
        yield f"All {trial.rejected} items are rejected, most for: {reason}."
    elif trial.rejected > share * trial.delivered:
        rule = f"where more than {QUARANTINE_MINIMUM} are, and more than {share * 100:g}% of all"
        yield (
            f"{trial.rejected} of {trial.delivered} items are rejected: a run fails "
            f"{rule if share else 'at the first of them'}."
        )


def _of_times(records: Sequence[Record], latest: datetime, now: datetime) -> Iterator[str]:
    if not records:
        return
    times = [record.timestamp for record in records]
    future = [each for each in times if each > latest]
    if future:
        which = "All times are" if len(future) == len(times) else f"{len(future)} times are"
        step = "see whether another field is the time of the record"
        if max(future) - now <= _WIDEST_ZONE:
            step = "see whether they are in another time zone than the one that is declared"
        yield f"{which} in the future, up to {max(future).isoformat()}; {step}."
    if len(times) > 1 and len(set(times)) == 1:
        yield (
            f"All {len(times)} times are equal, {times[0].isoformat()}: they may be those of the "
            "answer, not of the records."
        )


def _of_ids(records: Sequence[Record]) -> Iterator[str]:
    contents: dict[tuple[str, datetime], set[str]] = {}
    for record in records:
        contents.setdefault((record.record_id, record.timestamp), set()).add(record.version)
    shared = sorted({key[0] for key, versions in contents.items() if len(versions) > 1})
    if shared:
        yield (
            f"{len(shared)} ids belong to several different records of one time, such as "
            f"{shared[0][:80]!r}; name the fields that together are unique."
        )


def _of_order(source: Source, lists: Sequence[Sequence[Record]]) -> Iterator[str]:
    if len(lists) < 2 or isinstance(getattr(source, "paging", None), SinglePage):
        return
    ranges = [(min(times), max(times)) for times in ([r.timestamp for r in each] for each in lists)]
    rises = all(before[1] <= after[0] for before, after in pairwise(ranges))
    if getattr(source, "ordered", False):
        if not rises:
            yield (
                "The source is declared as ordered, and a later page has an older record; set "
                "ordered to false."
            )
    elif rises:
        yield (
            "The pages rise in time. If the API guarantees that, set ordered to true, and a run "
            "that breaks off goes on where it ended."
        )
    else:
        yield "The pages are in no rising order: a run that breaks off reads the range again."


def _of_the_end(source: Source, trial: Trial) -> Iterator[str]:
    if trial.completeness == "declared":
        yield "Nothing in the answers proves the end: the run reports it as declared."
    if not isinstance(source, RestApi):
        return
    if trial.next_request is not None:
        if trial.total is None:
            yield (
                "The API states no total that counts all pages: a page that it leaves out would "
                "not be noticed."
            )
        if source.since is None:
            yield "Each run reads all pages: no parameter for the beginning is declared in since."
