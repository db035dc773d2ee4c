"""The overview in Prefect: one table of all sources, which every run keeps up to date.

- A run adds what it knows of its own sources to the rows of the versions before, so an update costs
  the same few requests for one source and for a thousand, and none of the Storage Service.
- Runs that end at once write versions that do not know each other. So a run reads the last versions
  again after its own, and writes once more what is missing there. The last writer misses nothing.
- Old versions are deleted, or an overview would be larger than all that it is about.
- Rows are read back: what a row shows is all that is known of its source. Ages are counted again by
  each update.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any, Self

from prefect import get_client, runtime
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.actions import ArtifactCreate
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey
from prefect.client.schemas.sorting import ArtifactSort
from prefect.exceptions import ObjectNotFound
from prefect.utilities.urls import url_for

from ladon_storage.collection.freshness import Age
from ladon_storage.collection.protocols import utc_now
from ladon_storage.collection.run import Report
from ladon_storage.collection.summaries import (
    code,
    instant_or_never,
    instant_text,
    most_frequent,
    refilled,
    source_label,
    span_text,
)
from ladon_storage.models import is_ahead, meant

OVERVIEW_KEY = "ladon-overview"

MAX_ROWS = 500
"""The most rows: sources with a problem first."""

_MERGED = 5
"""The versions whose rows are merged: so many runs may end at once without a loss."""

_KEPT = 20
"""The versions that are kept."""

_PROBLEMS = ("in the future", "stale", "never collected", "failing")
_PLAIN = re.compile(r"[\w .:/@-]+")
_INSTANT = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(?= UTC)")
_ENDED = re.compile(r"(completed|failed) (\d.* UTC)")
_NEVER = "never collected"
_SAME_RUN = timedelta(minutes=1)
_OLDEST = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True)
class SourceFacts:
    """The facts about one source; ``None`` and an empty text are not known.

    Args:
        source: The source as the table shows it.
        ended: The end of its last run.
        outcome: Its outcome, ``completed`` or ``failed``.
        reason: Why it failed, or what was wrong though it completed.
        records: How many records it stored.
        run: A link to it.
        watermark: The watermark as text, or that there is none.
        max_age_hours: How old the watermark may be.
    """

    source: str
    ended: datetime | None = None
    outcome: str = ""
    reason: str = ""
    records: int | None = None
    run: str = ""
    watermark: str = ""
    max_age_hours: float | None = None

    @classmethod
    def of_report(cls, report: Report) -> Self:
        """Return the facts of a completed run."""
        remarks = []
        if report.records_quarantined:
            reasons = most_frequent(report.reasons)
            remarks.append(f"{report.records_quarantined:,} quarantined: {reasons}")
        if report.sink_behind is not None:
            remarks.append(refilled(report.sink_behind))
        if report.gap is not None:
            remarks.append("a gap: records are lost")
        return cls(
            shown_id(report.source_id),
            utc_now(),
            "completed",
            code("; ".join(remarks)) if remarks else "",
            report.records_written,
            _link(),
            instant_or_never(report.watermark_after),
        )

    @classmethod
    def of_failure(cls, source_id: str, why: str, records: int) -> Self:
        """Return the facts of a failed run, which leaves the watermark as it was."""
        return cls(shown_id(source_id), utc_now(), "failed", code(why), records, _link())

    @classmethod
    def of_age(cls, age: Age) -> Self:
        """Return the facts of a check of ages."""
        why = age.last_failure
        return cls(
            shown_id(age.source_id),
            age.last_run,
            "failed" if why else "completed" if age.last_run else "",
            code(why) if why else "",
            watermark=instant_or_never(age.watermark),
            max_age_hours=age.max_age_hours,
        )

    @classmethod
    def of_row(cls, row: Mapping[str, Any]) -> Self:
        """Return the facts that a row of the table shows.

        Raises:
            LookupError, TypeError, ValueError: It is a row of another release.
        """
        ended = _ENDED.fullmatch(row["last outcome"])
        return cls(
            row["source"],
            _instant(ended[2]) if ended else None,
            ended[1] if ended else "",
            row["reason"],
            int(row["records"].replace(",", "")) if row["records"] else None,
            row["run"],
            row["watermark"],
            float(row["limit (hours)"]) if row["limit (hours)"] else None,
        )

    def row(self, now: datetime) -> dict[str, Any]:
        """Return the row of the table; Prefect's first UI reads its texts as Markdown."""
        age = self._age(now)
        ended = f"{self.outcome} {instant_text(self.ended)}" if self.ended and self.outcome else ""
        return {
            "source": self.source,
            "state": self.state(now),
            "age": "" if age is None else span_text(max(age, timedelta())),
            "limit (hours)": "" if self.max_age_hours is None else f"{self.max_age_hours:.12g}",
            "last outcome": ended,
            "reason": self.reason,
            "records": "" if self.records is None else f"{self.records:,}",
            "run": self.run,
            "watermark": self.watermark,
        }

    def state(self, now: datetime) -> str:
        """Return the state of the source in a word or two."""
        age, limit = self._age(now), self.max_age_hours
        if is_ahead(_instant(self.watermark), now):
            return "in the future"
        if limit is not None and age is not None and age > timedelta(hours=limit):
            return "stale"
        if self.watermark == _NEVER:
            return _NEVER
        if self.outcome == "failed":
            return "failing"
        return "ok" if limit is None or age is None else "fresh"

    def updated(self, later: SourceFacts) -> SourceFacts:
        """Return these facts with later ones; what is not known of those stays."""
        facts = later if self._is_before(later) else self
        watermark = later.watermark or self.watermark
        limit = self.max_age_hours if later.max_age_hours is None else later.max_age_hours
        if (watermark, limit) == (facts.watermark, facts.max_age_hours):
            return facts
        return replace(facts, watermark=watermark, max_age_hours=limit)

    def _is_before(self, later: SourceFacts) -> bool:
        """Return whether others are of a later run; the service knows the same run without link."""
        if self.ended is None or later.ended is None:
            return later.ended is not None
        same = _SAME_RUN if self.run and not later.run else timedelta()
        return later.ended - self.ended >= same

    def _age(self, now: datetime) -> timedelta | None:
        watermark = meant(_instant(self.watermark))
        return None if watermark is None else now - watermark


async def update_overview(facts: Sequence[SourceFacts]) -> None:
    """Add facts to the overview; what Prefect's API raises is the caller's to handle."""
    if not facts:
        return
    async with get_client() as client:
        found, known = await _latest(client), dict[str, list[SourceFacts]]()
        for _ in range(_MERGED):
            known = {name: known.get(name) or _facts_in(data) for name, data in found.items()}
            written = await _write(client, _merged(known, facts))
            found = await _latest(client)
            if found.keys() <= {*known, written}:
                break
        await _delete_old(client)


def _merged(
    versions: Mapping[str, list[SourceFacts]], own: Iterable[SourceFacts]
) -> list[SourceFacts]:
    """Return the facts of the versions, the latest first, with a run's own."""
    merged: dict[str, SourceFacts] = {}
    for version in versions.values():
        for each in version:
            latest = merged.get(each.source)
            if latest is None:
                merged[each.source] = each
            elif (each.ended or _OLDEST) > (latest.ended or _OLDEST):
                merged[each.source] = latest.updated(each)  # the later version did not know it
            else:
                merged[each.source] = each.updated(latest)
    for each in own:
        before = merged.get(each.source)
        merged[each.source] = each if before is None else before.updated(each)
    return list(merged.values())


async def _latest(client: PrefectClient) -> dict[str, object]:
    """Return the tables of the last versions by their ids, the latest first."""
    found = await client.read_artifacts(
        artifact_filter=_OF_OVERVIEW, sort=ArtifactSort.CREATED_DESC, limit=_MERGED
    )
    return {str(each.id): each.data for each in found}


def _facts_in(data: object) -> list[SourceFacts]:
    try:
        rows = json.loads(data) if isinstance(data, str) else data
        return [SourceFacts.of_row(row) for row in rows]  # type: ignore[union-attr]
    except (LookupError, TypeError, ValueError, AttributeError):  # of another release
        return []


async def _write(client: PrefectClient, facts: Sequence[SourceFacts]) -> str:
    now = utc_now()

    def order(each: SourceFacts) -> tuple[int, str]:
        state = each.state(now)
        return (_PROBLEMS.index(state) if state in _PROBLEMS else len(_PROBLEMS), each.source)

    states = [each.state(now) for each in facts]
    problems = [f"{states.count(each):,} {each}" for each in _PROBLEMS if each in states]
    sources = f"{len(facts):,} source{'s' * (len(facts) != 1)}"
    made = await client.create_artifact(
        ArtifactCreate(
            key=OVERVIEW_KEY,
            type="table",
            data=json.dumps([each.row(now) for each in sorted(facts, key=order)[:MAX_ROWS]]),
            description=f"{sources}: {', '.join(problems) or 'no problem'}. "
            f"Ages are those of {now:%Y-%m-%d %H:%M} UTC.",
            flow_run_id=runtime.flow_run.id or None,
        )
    )
    return str(made.id)


async def _delete_old(client: PrefectClient) -> None:
    found = await client.read_artifacts(
        artifact_filter=_OF_OVERVIEW, sort=ArtifactSort.CREATED_DESC, limit=_MERGED, offset=_KEPT
    )
    for each in found:
        with suppress(ObjectNotFound):  # another run was faster
            await client.delete_artifact(each.id)


def _link() -> str:
    """Return the link to the present run, which one of Prefect's two UIs shows as such."""
    return _link_to(runtime.flow_run.id, runtime.flow_run.name)


@lru_cache(maxsize=16)  # a run over many sources has one row for each
def _link_to(run_id: str | None, name: str | None) -> str:
    address = url_for("flow-run", obj_id=run_id) if run_id else None
    return f"[{_LINK_TEXT.sub(' ', name or 'run')}]({address})" if address else ""


def _instant(text: str) -> datetime | None:
    found = _INSTANT.search(text)
    return datetime.fromisoformat(found[0]).replace(tzinfo=UTC) if found else None


def shown_id(source_id: str) -> str:
    """Return a source's id as Markdown that shows it; two ids are not shown alike."""
    if _PLAIN.fullmatch(source_id) and source_label(source_id) == source_id:
        return source_id
    digest = hashlib.sha256(source_id.encode()).hexdigest()[:6]
    return f"{code(source_label(source_id))} {digest}"


_LINK_TEXT = re.compile(r"[^\w .:/-]+")
_OF_OVERVIEW = ArtifactFilter(key=ArtifactFilterKey(any_=[OVERVIEW_KEY]))
