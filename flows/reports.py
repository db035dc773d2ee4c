"""What people see of a run in Prefect: its progress, a page per source, and events to act on.

- A source's artifacts share one key, so that its page is its history; each has the last runs.
- Nothing here may fail a run that is well, or hold its pages up: Prefect being slow or away is
  logged, and no more.
- A failed run is told as well as a completed one, with what it had made durable until then.
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
from datetime import UTC, datetime
from uuid import UUID

from prefect.artifacts import (
    Artifact,
    acreate_markdown_artifact,
    acreate_progress_artifact,
    aupdate_progress_artifact,
)

from flows.ending import Ending, finished, is_an_ending
from ladon_storage.collection.engine import Report
from ladon_storage.collection.interfaces import Collected, utc_now
from ladon_storage.events import COLLECTED, FAILED, GAP, emit_of_source

logger = logging.getLogger("ladon_storage.flows")

PROGRESS_SECONDS = 2.0
PREFECT_SECONDS = 10.0
"""How long Prefect may take to be shown something."""

TOLD_SECONDS = 30.0
"""How long a run that failed may take to tell it."""

LAST_RUNS = 20
_BARS = "▁▂▃▄▅▆▇█"
_RUN = re.compile(r"^\| \d{4}-.*\|$", re.MULTILINE)
_LONGEST_ERROR = 300
_GOES_ON = "The next run goes on where durable data ends."


def artifact_key(source_id: str) -> str:
    """Return the key of a source's artifacts: lower-case letters, digits and dashes.

    >>> artifact_key("threatfox"), artifact_key("Table: Logs")
    ('ladon-threatfox', 'ladon-table-logs-603ac4')
    """
    slug = re.sub(r"[^a-z0-9]+", "-", source_id.lower()).strip("-")[:60]
    if slug != source_id:  # two ids must not share a page
        slug = f"{slug}-{hashlib.sha256(source_id.encode()).hexdigest()[:6]}".lstrip("-")
    return f"ladon-{slug}"


@dataclass
class RunReporter:
    """Follow one run of one source, and tell Prefect how it went."""

    source_id: str
    began: datetime = field(default_factory=utc_now)
    so_far: Collected = field(default_factory=Collected)
    report: Report | None = None
    ending: Ending | None = None
    seconds: Callable[[], float] = time.monotonic
    _artifact: UUID | None = None
    _shown: float = float("-inf")
    _showing: asyncio.Task[None] | None = None

    async def progress(self, so_far: Collected) -> None:
        """Hear of a page, and show it at most every `PROGRESS_SECONDS`; no page waits for that."""
        self.so_far = so_far
        if self._showing is not None and not self._showing.done():
            return
        if self.seconds() - self._shown >= PROGRESS_SECONDS:
            self._shown = self.seconds()
            self._showing = asyncio.create_task(self._show(_share(so_far, utc_now())))

    async def _shown_so_far(self) -> None:
        """Wait for what is being shown, or drop it."""
        if self._showing is not None:
            await asyncio.wait({self._showing}, timeout=PREFECT_SECONDS)
            self._showing.cancel()

    async def _show(self, share: float) -> None:
        counts = self.so_far
        text = (
            f"{self.source_id}: page {counts.pages}, {counts.records_read:,} records read, "
            f"{counts.records_written:,} new or changed"
        )
        async with harmless("show the progress"):
            if self._artifact is None:
                self._artifact = await acreate_progress_artifact(share, description=text)
            else:
                await aupdate_progress_artifact(self._artifact, share, description=text)

    async def told(self, error: BaseException | None) -> None:
        """Write the source's page, and emit what people automate on."""
        await self._shown_so_far()
        why = await self._why(error)
        if error is None:
            await self._show(100.0)
        elif self._artifact is not None:
            await self._show(_share(self.so_far, utc_now()))
        counts = {
            "pages": self.so_far.pages,
            "records_read": self.so_far.records_read,
            "records_written": self.so_far.records_written,
            "records_quarantined": self.so_far.records_quarantined,
        }
        if error is not None:
            told = counts | {"error": why}
            emit_of_source(FAILED, self.source_id, told)
        elif self.report is not None:
            logger.info(
                "Source %r is collected: %s records read, %s new or changed, watermark %s.",
                self.source_id,
                f"{self.report.records_read:,}",
                f"{self.report.records_written:,}",
                _instant(self.report.watermark_after),
            )
            emit_of_source(COLLECTED, self.source_id, self.report.model_dump(mode="json"))
            if self.report.gap is not None:
                emit_of_source(GAP, self.source_id, self.report.gap.model_dump(mode="json"))
        async with harmless("write the artifact"):
            key = artifact_key(self.source_id)
            before = await Artifact.aget(key)
            text = before.data if before and isinstance(before.data, str) else ""
            await acreate_markdown_artifact(
                self._page(why, _RUN.findall(text)),
                key=key,
                description=f"Collections of {self.source_id}, the latest first.",
            )

    async def _why(self, error: BaseException | None) -> str:
        """Return why the run failed, or who ended it; nothing where it completed."""
        if error is None:
            return ""
        if self.ending is not None and is_an_ending(error):
            return await self.ending.said()
        return one_line(error)

    def _page(self, why: str, runs_before: list[str]) -> str:
        now, counts, report = utc_now(), self.so_far, self.report
        seconds = (now - self.began).total_seconds()
        ended = "failed" if why else "completed"
        run = (
            f"| {self.began:%Y-%m-%d %H:%M:%S} | {ended} | {counts.records_read:,} "
            f"| {counts.records_written:,} | {seconds:.1f} |"
        )
        runs = [run, *runs_before][:LAST_RUNS]
        facts: list[tuple[str, str]] = [
            (
                "records read",
                f"{counts.records_read:,} on {counts.pages:,} page{'s' * (counts.pages != 1)}",
            ),
            ("new or changed", f"{counts.records_written:,}"),
            ("quarantined", f"{counts.records_quarantined:,}"),
            ("removed at the source", f"{counts.records_removed:,}"),
            ("from the future, only stored", f"{counts.records_in_future:,}"),
        ]
        if report is not None and not report.backfill:
            facts += [
                ("watermark before", _instant(report.watermark_before)),
                ("watermark after", _instant(report.watermark_after)),
                ("lag", _lag(report.watermark_after, now)),
            ]
        elif report is not None:
            facts.append(("backfill", f"{_instant(report.start)} to {_instant(report.until)}"))
        if report is not None and report.gap is not None:
            gap = report.gap
            facts.append(("**gap**", f"lost: {_instant(gap.start)} to {_instant(gap.end)}"))
        facts.append(("duration", f"{seconds:.1f} s"))
        lines = [f"# {self.source_id}: {ended}", ""]
        if why:
            lines += [f"> {why}", "", _GOES_ON, ""]
        lines += ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in facts), ""]
        lines += [
            "## Last runs",
            "",
            f"`{_picture(runs)}` new or changed, oldest first",
        ]
        lines += ["", "| began (UTC) | ended | read | new or changed | seconds |"]
        lines += ["|---|---|---:|---:|---:|", *runs]
        return "\n".join(lines) + "\n"


@contextlib.asynccontextmanager
async def reported(source_id: str, ending: Ending | None = None) -> AsyncIterator[RunReporter]:
    """Follow a run, and tell how it ended, also where it was cancelled or told to end."""
    reporter = RunReporter(source_id, ending=ending)
    try:
        yield reporter
    except GeneratorExit:
        raise
    except BaseException as error:
        await finished(reporter.told(error), TOLD_SECONDS)
        raise
    await reporter.told(None)


@contextlib.asynccontextmanager
async def harmless(aim: str) -> AsyncIterator[None]:
    """Log what keeps Prefect from being told, or takes it too long, and go on."""
    try:
        async with asyncio.timeout(PREFECT_SECONDS):
            yield
    except Exception as error:  # whatever Prefect's API says
        logger.warning("Prefect could not %s: %s", aim, one_line(error))


def _share(so_far: Collected, now: datetime) -> float:
    """Return how much of its range a run has read, in percent; nobody knows it before the end."""
    if so_far.start is None or so_far.candidate is None or so_far.candidate <= so_far.start:
        return 0.0
    whole = (now - so_far.start).total_seconds()
    return min(99.0, 100 * (so_far.candidate - so_far.start).total_seconds() / max(whole, 1.0))


def _picture(runs: list[str]) -> str:
    """Return a bar for each run, the oldest first; a failed one is a cross."""
    cells = [[cell.strip() for cell in run.strip("|").split("|")] for run in reversed(runs)]
    written = [int(each[3].replace(",", "")) for each in cells]
    most = max([*written, 1])
    return "".join(
        "✗" if each[1] == "failed" else _BARS[round(number / most * (len(_BARS) - 1))]
        for each, number in zip(cells, written, strict=True)
    )


def _instant(value: datetime | None) -> str:
    return "never" if value is None else f"{value.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def _lag(watermark: datetime | None, now: datetime) -> str:
    if watermark is None:
        return "everything"
    minutes = max(0, int((now - watermark).total_seconds() // 60))
    days, rest = divmod(minutes, 24 * 60)
    return f"{days} d {rest // 60} h" if days else f"{rest // 60} h {rest % 60} min"


def one_line(error: BaseException) -> str:
    """Return an error as one line that a table can hold."""
    text = " ".join(f"{type(error).__name__}: {error}".split()).replace("|", "/")
    return text if len(text) <= _LONGEST_ERROR else f"{text[:_LONGEST_ERROR]} …"
