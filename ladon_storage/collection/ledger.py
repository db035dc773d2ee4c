"""The ledger of a run: what it asked for and was given, in numbers that add up."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, computed_field

from ladon_storage.collection.lateness import Lateness
from ladon_storage.collection.records import Completeness


class Gap(BaseModel):
    """The records that a source no longer had when it was asked for them."""

    model_config = ConfigDict(frozen=True)

    start: datetime
    end: datetime


class SinkBehind(BaseModel):
    """The range that the watermark covers and the sink did not have.

    Args:
        start: The position of the sink; ``None``: it had nothing of the source.
        end: The watermark.
    """

    model_config = ConfigDict(frozen=True)

    start: datetime | None = None
    end: datetime


class Counts(BaseModel):
    """The numbers of one run, or of several together.

    ``records_delivered`` is the sum of new, changed, known, quarantined and skipped ones.

    Args:
        pages: The number of pages.
        records_delivered: The items that came, usable or not.
        records_new: The records that the sink did not have.
        records_changed: The new versions of records that the sink had.
        records_known: The records that the sink had in the same version.
        records_quarantined: The items that cannot be used.
        records_skipped: The records outside a backfill's range, or before a first collection's.
        records_in_future: The records from the future, beyond the allowed skew.
        records_removed: The records that the source no longer lists.
        records_superseded: The records of which the sink keeps a later version than the source
            delivered: a part of the known and the changed ones.

    >>> (Counts(records_new=2) + Counts(records_new=1, records_changed=3)).records_written
    6
    """

    model_config = ConfigDict(frozen=True)

    pages: int = 0
    records_delivered: int = 0
    records_new: int = 0
    records_changed: int = 0
    records_known: int = 0
    records_quarantined: int = 0
    records_skipped: int = 0
    records_in_future: int = 0
    records_removed: int = 0
    records_superseded: int = 0

    @computed_field  # type: ignore[prop-decorator]
    @property
    def records_read(self) -> int:
        """The number of usable records."""
        return self.records_delivered - self.records_quarantined

    @computed_field  # type: ignore[prop-decorator]
    @property
    def records_written(self) -> int:
        """The number of new or changed rows of the sink."""
        return self.records_new + self.records_changed

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            **{name: getattr(self, name) + getattr(other, name) for name in Counts.model_fields}
        )


class Ledger(Counts):
    """The request and the results of a run, in numbers that add up.

    Args:
        start: The first timestamp that the source was asked for; ``None``: all records.
        until: The timestamp before which it was asked to end.
        reasons: The reasons of quarantined records, the most frequent first.
        completeness: The evidence of a complete reading; ``None``: the source gives none.
        total: The number of items that the source states.
        gap: The records that the source no longer had.
        sink_behind: The range that a restored, dropped or new sink did not have at the beginning.
        lateness: The time from the records' timestamps to their first sight.
        behind_seconds: The distance of the oldest new record behind the watermark.
    """

    start: datetime | None = None
    until: datetime | None = None
    reasons: dict[str, int] = {}
    completeness: Completeness | None = None
    total: int | None = None
    gap: Gap | None = None
    sink_behind: SinkBehind | None = None
    lateness: Lateness = Lateness()
    behind_seconds: float = 0.0

    def as_fields(self) -> dict[str, Any]:
        """Return the fields of the ledger alone, as a report of the run repeats them."""
        return {name: getattr(self, name) for name in Ledger.model_fields}


class ExtractionResult(Ledger):
    """The result of an extraction, with what does not belong into its ledger.

    Args:
        candidate: The possible next watermark.
        superseded_ids: The first ids of the superseded records.
        superseded_since: A timestamp that is not after any of them.
    """

    candidate: datetime | None = None
    superseded_ids: tuple[str, ...] = ()
    superseded_since: datetime | None = None


OnProgress = Callable[[ExtractionResult], Awaitable[None]]
"""A function that is called after each page with the durable result; the next page waits for it."""
