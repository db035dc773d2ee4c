"""The counts of a run: the numbers of its ledger, and their evidence about the feed."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from ladon_storage.collection.lateness import Lateness
from ladon_storage.collection.records import Columns, Completeness, Page

REASONS = 5
"""The number of reasons in a ledger, the most frequent ones."""

_DISTINCT_REASONS = 1_000
_OTHER_REASONS = "other reasons"


@dataclass
class ExtractionCounts:
    """The counts of one run.

    Args:
        is_first: Whether the sink has nothing of the source, so that nothing can be late.
    """

    is_first: bool
    pages: int = 0
    delivered: int = 0
    new: int = 0
    changed: int = 0
    quarantined: int = 0
    skipped: int = 0
    in_future: int = 0
    is_ahead: bool = False
    """Whether a record is later than the beginning of the reading."""
    removed: int = 0
    listed: int = 0
    nameless: int = 0
    """Rejects without an id: any record could be one of them."""
    highest: datetime | None = None
    in_order: bool = True
    has_risen: bool = False
    """Whether a page was later than one before it: equal timestamps alone show no order."""
    present: set[str] = field(default_factory=set)
    completeness: Completeness | None = None
    total: int | None = None
    document: str | None = None
    is_unchanged: bool = False
    delays: list[timedelta] = field(default_factory=list)
    behind: timedelta = timedelta(0)
    """The distance of the oldest new record behind the watermark."""
    _reasons: Counter[str] = field(default_factory=Counter)
    _lateness: Lateness = field(default_factory=Lateness)

    @property
    def seen(self) -> int:
        """The number of items that the source listed, usable or not."""
        return self.delivered + self.listed

    @property
    def written(self) -> int:
        """The number of new or changed rows."""
        return self.new + self.changed

    @property
    def is_useless(self) -> bool:
        """Whether the source listed items, and none of them can be used."""
        return 0 < self.quarantined == self.seen

    def note(self, page: Page, *, keeps_ids: bool) -> None:
        """Count a page as it was delivered."""
        # A page that only gives the end of the reading is not counted.
        only_ends = page.completeness is not None and not (len(page) or page.listed)
        self.pages += page.unchanged or not only_ends
        self.delivered += len(page)
        self.quarantined += len(page.rejects)
        self.listed += len(page.listed)
        self.completeness = page.completeness or self.completeness
        self.total = self.total if page.total is None else page.total
        self.document = page.document or self.document
        self.is_unchanged = self.is_unchanged or page.unchanged
        for reject in page.rejects:
            full = len(self._reasons) >= _DISTINCT_REASONS and reject.reason not in self._reasons
            self._reasons[_OTHER_REASONS if full else reject.reason] += 1
        if keeps_ids:
            self.present.update(Columns.of(page.records).ids)
            self.present.update(page.listed)
            for reject in page.rejects:
                if reject.record_id is None:
                    self.nameless += 1
                else:
                    self.present.add(reject.record_id)

    def see_order(self, times: list[datetime]) -> bool:
        """Return whether a page is the first that goes back behind one before it."""
        if not times or self.highest is None:
            return False
        self.has_risen = self.has_risen or max(times) > self.highest
        if not self.in_order or min(times) >= self.highest:
            return False
        self.in_order = False
        return True

    def most_frequent(self, count: int = REASONS) -> list[tuple[str, int]]:
        """Return the reasons of quarantined records, the most frequent first."""
        return self._reasons.most_common(count)

    def as_fields(self) -> dict[str, Any]:
        """Return the fields of a `Ledger` that are counted here."""
        if self.delays:
            self._lateness, self.delays = self._lateness + Lateness.of(self.delays), []
        usable = self.delivered - self.quarantined - self.skipped
        return {
            "pages": self.pages,
            "records_delivered": self.delivered,
            "records_new": self.new,
            "records_changed": self.changed,
            "records_known": usable - self.new - self.changed,
            "records_quarantined": self.quarantined,
            "records_skipped": self.skipped,
            "records_in_future": self.in_future,
            "records_removed": self.removed,
            "reasons": dict(self.most_frequent()),
            "completeness": self.completeness,
            "total": self.total,
            "lateness": self._lateness,
            "behind_seconds": self.behind.total_seconds(),
        }
