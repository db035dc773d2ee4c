"""A second reading of a source, which finds the records that the regular runs missed.

- A record is missed if the sink had no version of it, though all records up to its timestamp should
  have been durable. A record in the overlap of the next run is not missed yet.
- Records that are found are stored. The watermark, the position and the marks of removed records
  stay.
- The reading begins at the origin of the first collection: earlier records were omitted on purpose.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from types import TracebackType
from typing import Self

from pydantic import BaseModel, ConfigDict, computed_field

from ladon_storage.collection.findings import warn_of_superseded
from ladon_storage.collection.foreign_errors import Entered
from ladon_storage.collection.ledger import Ledger, OnProgress
from ladon_storage.collection.protocols import (
    Clock,
    Limits,
    Position,
    Run,
    Sink,
    Source,
    SupportsCount,
    SupportsPosition,
    WatermarkStore,
    WriteResult,
    supports,
    utc_now,
)
from ladon_storage.collection.ranges import TimeRange
from ladon_storage.collection.records import Page
from ladon_storage.collection.reversions import NAMED
from ladon_storage.collection.run import ExtractCallable, beside_runs, extract
from ladon_storage.errors import ConfigurationError
from ladon_storage.models import collected_up_to


class Reconciliation(BaseModel):
    """The result of a second reading: the records that the regular runs had missed.

    Args:
        source_id: The source.
        run_id: The run.
        watermark: The timestamp up to which the regular runs had collected.
        horizon: The timestamp up to which all records should have been in the sink.
        due: The number of delivered records that should have been there.
        missed: The number of them of which the sink had no version.
        changed: The number of records in another version than the sink had.
        superseded: The number of records in an older version than the sink has, which keeps it.
        early: The number of records that the next regular run reads anyway.
        missed_ids: The first ids of the missed records.
        changed_ids: The first ids of the changed records.
        superseded_ids: The first ids of the superseded records.
        ledger: The request and the results of the reading.
    """

    model_config = ConfigDict(frozen=True)

    source_id: str
    run_id: str
    watermark: datetime
    horizon: datetime
    due: int
    missed: int
    changed: int
    superseded: int
    early: int
    missed_ids: tuple[str, ...]
    changed_ids: tuple[str, ...]
    superseded_ids: tuple[str, ...]
    ledger: Ledger

    @computed_field  # type: ignore[prop-decorator]
    @property
    def rate(self) -> float:
        """The missed share of the records that should have been in the sink."""
        return self.missed / self.due if self.due else 0.0


class ComparingSink:
    """A sink that notes the records that are new to it, and keeps its position and its marks.

    Of a range that is read again it notes only what is new: it had the others by then.

    Args:
        sink: The sink that makes records durable.
        horizon: The timestamp up to which all records should be there already.
    """

    def __init__(self, sink: Sink, horizon: datetime) -> None:
        self._sink = sink
        self._horizon = horizon
        self._readings = 0
        self.due = self.missed = self.changed = self.early = 0
        self.missed_ids: list[str] = []
        self.changed_ids: list[str] = []

    async def __aenter__(self) -> Self:
        await self._sink.__aenter__()
        self._readings += 1
        if supports(self._sink, SupportsCount):
            self.count_records = self._sink.count_records
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._sink.__aexit__(kind, error, traceback)

    async def write(
        self, source_id: str, page: Page, *, run_id: str = "", position: Position | None = None
    ) -> WriteResult:
        """Make a page durable, and note the records that were not there."""
        result = await self._sink.write(source_id, page, run_id=run_id)
        if isinstance(result, int):
            raise ConfigurationError(
                f"The sink of source {source_id!r} does not distinguish new records from "
                "changed ones, so missed records are unknown. Let its write return a "
                "WriteResult."
            )
        missed = [each.record_id for each in result.new if each.timestamp <= self._horizon]
        if self._readings == 1:
            self.due += sum(each.timestamp <= self._horizon for each in page.records)
            self._note_changed(result)
        else:
            self.due += len(missed)
        self.missed += len(missed)
        self.early += len(result.new) - len(missed)
        self.missed_ids += missed[: NAMED - len(self.missed_ids)]
        return result

    def _note_changed(self, result: WriteResult) -> None:
        self.changed += len(result.changed)
        self.changed_ids += [
            each.record_id for each in result.changed[: NAMED - len(self.changed_ids)]
        ]


async def reconcile(
    source: Source,
    sink: Sink,
    storage: WatermarkStore,
    *,
    run_id: str,
    since: datetime | None = None,
    until: datetime | None = None,
    limits: Limits = Limits(),  # noqa: B008 - frozen
    on_progress: OnProgress | None = None,
    extract: ExtractCallable = extract,
    clock: Clock = utc_now,
) -> Reconciliation:
    """Read a source again, store the records that the regular runs missed, and return both counts.

    Args:
        source: The source.
        sink: The sink of the regular runs.
        storage: The storage of the watermark, which is read, and stays.
        run_id: The name of this run.
        since: The first timestamp; naive is UTC; ``None``: the origin of the first collection.
        until: The timestamp before which the reading ends; naive is UTC.
        limits: The limits beyond which it fails.
        on_progress: Called after each page.
        extract: The function that reads and writes the pages.
        clock: The time, as an aware datetime.

    Raises:
        ConfigurationError: The source was never collected, the range is empty, or the sink does
            not report which records are new to it.
        LadonStorageError: The storage, the source or the sink failed.
    """
    asked = TimeRange(since, until)
    await storage.health_check()
    watermark = collected_up_to(await storage.get_watermark(source.source_id))
    if watermark is None:
        raise ConfigurationError(
            f"Source {source.source_id!r} was never collected, so there is nothing to compare "
            "with; collect it first."
        )
    origin = await _origin(source, sink)
    since = max((each for each in (asked.start, origin) if each is not None), default=None)
    if since is not None and asked.end is not None and since >= asked.end:
        raise ConfigurationError(
            f"Between {since.isoformat()} and {asked.end.isoformat()} nothing was collected. Set "
            "until to a later time."
        )
    asked = TimeRange(since, asked.end)
    # A watermark in the future proves nothing about what is still to come.
    horizon = min(watermark, clock()) - (source.overlap or timedelta(0))
    comparing = ComparingSink(sink, horizon)
    this = Run(run_id, limits, clock, on_progress, asked=asked, stored=asked)
    collected = await beside_runs(extract, storage)(source, comparing, this)
    warn_of_superseded(source, collected.records_superseded, collected.superseded_since)
    return Reconciliation(
        source_id=source.source_id,
        run_id=run_id,
        watermark=watermark,
        horizon=horizon,
        due=comparing.due,
        missed=comparing.missed,
        changed=comparing.changed,
        superseded=collected.records_superseded,
        early=comparing.early,
        missed_ids=tuple(comparing.missed_ids),
        changed_ids=tuple(comparing.changed_ids),
        superseded_ids=collected.superseded_ids,
        ledger=Ledger(**collected.as_fields()),
    )


async def _origin(source: Source, sink: Sink) -> datetime | None:
    """Return the origin of the source's first collection; ``None``: its beginning."""
    async with Entered(sink):  # an open sink shows which methods it has
        if not supports(sink, SupportsPosition):
            return None
        position = await sink.position(source.source_id)
    return None if position is None else position.origin
