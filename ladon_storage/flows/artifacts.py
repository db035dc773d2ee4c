"""A run in Prefect's UI: its progress, a page per source, and events for automations.

- A source's artifacts share one key, so its page is its history. Each has the last runs.
- No fault here may fail a healthy run or delay its pages: a slow or missing Prefect is only logged.
- A failed run is reported like a completed one, with the records that it had made durable.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import re
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, TypeVar
from uuid import UUID

from prefect.artifacts import (
    Artifact,
    acreate_markdown_artifact,
    acreate_progress_artifact,
    aupdate_progress_artifact,
)
from prefect.states import Completed

from ladon_storage.client.metrics import count_collected
from ladon_storage.client.pushing import push_metrics
from ladon_storage.collection.ledger import ExtractionResult, Ledger
from ladon_storage.collection.protocols import Source, utc_now
from ladon_storage.collection.run import Report
from ladon_storage.collection.summaries import (
    code,
    instant_or_never,
    instant_text,
    one_line,
    refilled,
    source_label,
    span_text,
    summary,
)
from ladon_storage.events import COLLECTED, FAILED, GAP, SKIPPED, emit_of_source
from ladon_storage.flows.ending import Ending, finished
from ladon_storage.flows.overview import SourceFacts, shown_id, update_overview
from ladon_storage.models import meant

logger = logging.getLogger("ladon_storage.flows")

R = TypeVar("R")

PROGRESS_SECONDS = 2.0
PREFECT_SECONDS = 10.0
"""The longest time for one update of Prefect."""

TOLD_SECONDS = 30.0
"""The longest time for a failed run to report itself."""

LAST_RUNS = 20
_BARS = "▁▂▃▄▅▆▇█"
_MARKS = {"failed": "✗", "skipped": "·"}
_RUN = re.compile(r"^\| \d{4}-.*\|$", re.MULTILINE)
_REASONS = 3
COUNTS = {
    "pages",
    *(f"records_{each}" for each in ("delivered", "new", "changed", "known")),
    *(f"records_{each}" for each in ("read", "written", "quarantined", "skipped", "removed")),
}
_ENDS = {
    "total": "as many came as the source states",
    "last page": "by the last page",
    "whole document": "the whole document came",
    "declared": "only declared: nothing in the answers shows it",
}
_GOES_ON = "The next run goes on where durable data ends."


def artifact_key(source_id: str) -> str:
    """Return the key of a source's artifacts: lower-case letters, digits and dashes.

    >>> artifact_key("threatfox"), artifact_key("Table: Logs")
    ('collection-threatfox', 'collection-table-logs--603ac413')
    """
    return f"collection-{_slug(source_id)}"


def reconciliation_key(source_id: str) -> str:
    """Return the key of the artifacts of a source's reconciliations.

    >>> reconciliation_key("kev")
    'reconciliation-kev'
    """
    return f"reconciliation-{_slug(source_id)}"


def _slug(source_id: str) -> str:
    label = source_label(source_id)
    slug = re.sub(r"[^a-z0-9]+", "-", label.lower()).strip("-")[:60].strip("-")
    if slug == source_id:
        return slug
    # Two ids must not share a page. Other slugs have no two dashes.
    return f"{slug}--{hashlib.sha256(source_id.encode()).hexdigest()[:8]}"


@dataclass
class RunReporter:
    """The reporter of one run of one source to Prefect."""

    source_id: str
    began: datetime = field(default_factory=utc_now)
    so_far: ExtractionResult = field(default_factory=ExtractionResult)
    report: Report | None = None
    ending: Ending | None = None
    overlap: timedelta | None = None
    is_backfill: bool = False
    seconds: Callable[[], float] = time.monotonic
    _artifact: UUID | None = None
    _shown: float = float("-inf")
    _showing: asyncio.Task[None] | None = None

    async def progress(self, so_far: ExtractionResult) -> None:
        """Note a page; publish progress at most every `PROGRESS_SECONDS`, without a wait."""
        self.so_far = so_far
        if self._showing is not None and not self._showing.done():
            return
        if self.seconds() - self._shown >= PROGRESS_SECONDS:
            self._shown = self.seconds()
            self._showing = asyncio.create_task(self._show(_share(so_far, utc_now())))

    async def _shown_so_far(self) -> None:
        """Wait for the update in flight, or drop it."""
        if self._showing is not None:
            await asyncio.wait({self._showing}, timeout=PREFECT_SECONDS)
            self._showing.cancel()

    async def _show(self, share: float) -> None:
        counts = self.so_far
        text = (
            f"{shown_id(self.source_id)}: page {counts.pages}, {counts.records_read:,} records "
            f"read, {counts.records_written:,} new or changed"
        )
        async with best_effort("show the progress"):
            if self._artifact is None:
                self._artifact = await acreate_progress_artifact(share, description=text)
            else:
                await aupdate_progress_artifact(self._artifact, share, description=text)

    async def publish(self, error: BaseException | None) -> None:
        """Write the source's page and its row of the overview, and emit the event."""
        await self._shown_so_far()
        why = await self._why(error)
        if error is None:
            await self._show(100.0)
        elif self._artifact is not None:
            await self._show(_share(self.so_far, utc_now()))
        if error is not None:
            counts = self.so_far.model_dump(mode="json", include=COUNTS)
            emit_of_source(FAILED, self.source_id, counts | {"error": why})
        elif self.report is not None:
            self._completed(self.report)
        await asyncio.gather(
            self._write_page(why), self._write_row(why), push_metrics(self.source_id)
        )

    async def _write_page(self, why: str) -> None:
        async with best_effort("write the artifact"):
            key = artifact_key(self.source_id)
            before = await Artifact.aget(key)
            text = before.data if before and isinstance(before.data, str) else ""
            await acreate_markdown_artifact(
                self._page(why, _RUN.findall(text)),
                key=key,
                description=f"Collections of {shown_id(self.source_id)}, the latest first.",
            )

    async def _write_row(self, why: str) -> None:
        if self.is_backfill:  # says nothing of the regular runs
            return
        async with best_effort("update the overview"):
            if why:
                written = self.so_far.records_written
                await update_overview([SourceFacts.of_failure(self.source_id, why, written)])
            elif self.report is not None and self.report.skipped is None:
                await update_overview([SourceFacts.of_report(self.report)])

    def _completed(self, report: Report) -> None:
        if report.skipped is not None:  # logged by the run
            emit_of_source(SKIPPED, self.source_id, report.skipped.model_dump(mode="json"))
            return
        count_collected(report.source_id, report.model_dump(include=COUNTS), report.reasons)
        logger.info(
            "Source %r is collected: %s; watermark %s.",
            self.source_id,
            summary(report),
            instant_or_never(report.watermark_after),
        )
        emit_of_source(COLLECTED, self.source_id, report.model_dump(mode="json"))
        if report.gap is not None:
            emit_of_source(GAP, self.source_id, report.gap.model_dump(mode="json"))

    async def _why(self, error: BaseException | None) -> str:
        """Return the reason of the run's failure or end; an empty text where it completed."""
        if error is None:
            return ""
        why = one_line(error)
        return why if self.ending is None else await self.ending.named(why)

    def _page(self, why: str, runs_before: list[str]) -> str:
        now, counts, report = utc_now(), self.so_far, self.report
        seconds = (now - self.began).total_seconds()
        skipped = None if report is None else report.skipped
        ended = "failed" if why else "skipped" if skipped else "completed"
        run = (
            f"| {self.began:%Y-%m-%d %H:%M:%S} | {ended} | {counts.records_read:,} "
            f"| {counts.records_written:,} | {seconds:.1f} |"
        )
        runs = [run, *runs_before][:LAST_RUNS]
        facts = [] if skipped else ledger_facts(report or counts)
        facts += [] if skipped else _lateness_facts(report or counts, self.overlap)
        if report is not None and not report.backfill:
            facts += [
                ("watermark before", instant_or_never(report.watermark_before)),
                ("watermark after", instant_or_never(report.watermark_after)),
                ("lag", _lag(meant(report.watermark_after), now)),
            ]
        elif report is not None:
            told = f"{instant_text(report.start)} to {instant_text(report.until)}"
            facts.append(("backfill", told))
        facts.append(("duration", f"{seconds:.1f} s"))
        lines = [f"# {shown_id(self.source_id)}: {ended}", ""]
        if why:
            lines += [f"> {code(why)}", "", _GOES_ON, ""]
        if skipped:
            lines += [f"> {code(str(skipped))}", ""]
        lines += ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in facts), ""]
        lines += [
            "## Last runs",
            "",
            f"`{_sparkline(runs)}` new or changed, oldest first",
        ]
        lines += ["", "| began (UTC) | ended | read | new or changed | seconds |"]
        lines += ["|---|---|---:|---:|---:|", *runs]
        return "\n".join(lines) + "\n"


@contextlib.asynccontextmanager
async def report_run(
    source: Source, ending: Ending | None = None, *, is_backfill: bool = False
) -> AsyncIterator[RunReporter]:
    """Follow a run, and report its end, even where it was cancelled or a signal ended it."""
    reporter = RunReporter(
        source.source_id, ending=ending, overlap=source.overlap, is_backfill=is_backfill
    )
    try:
        yield reporter
    except GeneratorExit:
        raise
    except BaseException as error:
        await finished(reporter.publish(error), TOLD_SECONDS)
        raise
    await reporter.publish(None)


@contextlib.asynccontextmanager
async def best_effort(aim: str) -> AsyncIterator[None]:
    """Log an error or a timeout of a report to Prefect, and continue."""
    try:
        async with asyncio.timeout(PREFECT_SECONDS):
            yield
    except Exception as error:  # whatever Prefect's API says
        logger.warning("Prefect could not %s: %s", aim, one_line(error))


def _share(so_far: ExtractionResult, now: datetime) -> float:
    """Return the share of its range that a run has read, in percent; at most 99 before its end."""
    if so_far.start is None or so_far.candidate is None or so_far.candidate <= so_far.start:
        return 0.0
    whole = (now - so_far.start).total_seconds()
    return min(99.0, 100 * (so_far.candidate - so_far.start).total_seconds() / max(whole, 1.0))


def _sparkline(runs: list[str]) -> str:
    """Return a bar for each run, the oldest first; a failed one is a cross, a skipped one a dot."""
    cells = [[cell.strip() for cell in run.strip("|").split("|")] for run in reversed(runs)]
    written = [int(each[3].replace(",", "")) for each in cells]
    most = max([*written, 1])
    return "".join(
        _MARKS.get(each[1]) or _BARS[round(number / most * (len(_BARS) - 1))]
        for each, number in zip(cells, written, strict=True)
    )


def completed(report: R, message: str) -> R:
    """Return a value with which a flow completes with a state message, and returns ``report``."""
    state: Any = Completed(message=message, data=report)
    returned: R = state
    return returned


def ledger_facts(ledger: Ledger) -> list[tuple[str, str]]:
    """Return the rows of a ledger, as a page shows them."""
    pages = f"{ledger.pages:,} page{'s' * (ledger.pages != 1)}"
    parts = (
        f"{ledger.records_new:,} new + {ledger.records_changed:,} changed + "
        f"{ledger.records_known:,} known + {ledger.records_quarantined:,} quarantined + "
        f"{ledger.records_skipped:,} skipped"
    )
    facts = [
        ("asked for", _asked_for(ledger)),
        ("records read", f"{ledger.records_read:,} on {pages}"),
        ("new or changed", f"{ledger.records_written:,}"),
        ("delivered", f"{ledger.records_delivered:,} = {parts}"),
        ("how the end was known", _end_of(ledger)),
        ("quarantined", f"{ledger.records_quarantined:,}"),
    ]
    facts += [
        ("quarantined because", f"{code(reason)} ({count:,})")
        for reason, count in list(ledger.reasons.items())[:_REASONS]
    ]
    facts += [
        ("removed at the source", f"{ledger.records_removed:,}"),
        ("older than in the sink, which keeps its version", f"{ledger.records_superseded:,}"),
        ("from the future, only stored", f"{ledger.records_in_future:,}"),
    ]
    if ledger.sink_behind is not None:
        facts.append(("**sink**", refilled(ledger.sink_behind)))
    gap = ledger.gap
    if gap is None:
        return [*facts, ("gap", "none is known")]
    return [*facts, ("**gap**", f"lost: {instant_text(gap.start)} to {instant_text(gap.end)}")]


def _asked_for(ledger: Ledger) -> str:
    start = meant(ledger.start)
    if start is None and ledger.until is None:
        return "all that the source has"
    begin = "the beginning" if start is None else instant_text(start)
    return f"{begin} to {'now' if ledger.until is None else instant_text(ledger.until)}"


def _end_of(ledger: Ledger) -> str:
    stated = "" if ledger.total is None else f"; the source states {ledger.total:,}"
    if ledger.completeness is None:
        return f"not known: the source does not say{stated}"
    return _ENDS[ledger.completeness] + stated


def _lateness_facts(ledger: Ledger, overlap: timedelta | None) -> list[tuple[str, str]]:
    seen, told = (
        ledger.lateness,
        "every run reads all there is" if overlap is None else span_text(overlap),
    )
    facts = [("overlap", told)]
    if not seen.count:
        return [("lateness", "nothing new was seen yet, after the first run"), *facts]
    quantiles = ", ".join(
        f"p{share * 100:g} {span_text(seen.quantile(share))}" for share in (0.5, 0.99)
    )
    text = f"{quantiles}, worst {span_text(seen.worst)}, of {seen.count:,} new since the first run"
    return [("lateness", text), *facts]


def _lag(watermark: datetime | None, now: datetime) -> str:
    if watermark is None:
        return "everything"
    minutes = max(0, int((now - watermark).total_seconds() // 60))
    days, rest = divmod(minutes, 24 * 60)
    return f"{days} d {rest // 60} h" if days else f"{rest // 60} h {rest % 60} min"
