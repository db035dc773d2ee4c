"""The lateness of records, from their timestamp to their first sight: evidence for the overlap.

It is a histogram of fixed bounds. Those of two runs merge by addition, and a year of runs takes no
more room than one. A quantile is the upper bound of its bucket: it may be too high, never too low.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from datetime import timedelta
from itertools import pairwise
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field

_MINUTE, _HOUR, _DAY = 60, 3_600, 86_400

BOUNDS = (
    *(0, 1, 5, 15, 30),
    *(each * _MINUTE for each in (1, 2, 5, 10, 15, 20, 30, 45)),
    *(each * _HOUR for each in (1, 2, 3, 4, 6, 8, 12, 16, 20)),
    *(each * _DAY for each in (1, 1.5, 2, 3, 4, 5, 7, 10, 14, 21, 30, 60, 90, 180, 365)),
)
"""The upper bounds of the buckets, in seconds; one more bucket holds later records."""


class Lateness(BaseModel):
    """The histogram of the time from records' timestamps to their first sight.

    Args:
        counts: The records in each bucket; buckets after the last used one are left out.
        worst_seconds: The greatest lateness; ``None``: nothing was seen.

    >>> seen = Lateness.of([timedelta(minutes=3), timedelta(hours=5)])
    >>> seen.quantile(0.5), seen.worst, (seen + seen).count
    (datetime.timedelta(seconds=300), datetime.timedelta(seconds=18000), 4)
    """

    model_config = ConfigDict(frozen=True)

    counts: tuple[Annotated[int, Field(ge=0, le=2**53)], ...] = Field(
        (), max_length=len(BOUNDS) + 1
    )
    worst_seconds: float | None = Field(None, ge=0, le=10**13)

    @classmethod
    def of(cls, delays: Iterable[timedelta]) -> Self:
        """Return the histogram of delays; a record from the future is not late at all."""
        seconds = sorted(map(timedelta.total_seconds, delays))
        if not seconds:
            return cls()
        # Sorted, so that a bound is looked up among the delays: there are more of them.
        passed = [0, *(bisect_right(seconds, bound) for bound in BOUNDS), len(seconds)]
        counts = [after - before for before, after in pairwise(passed)]
        while not counts[-1]:
            counts.pop()
        return cls(counts=tuple(counts), worst_seconds=max(seconds[-1], 0.0))

    @property
    def count(self) -> int:
        """The number of records."""
        return sum(self.counts)

    @property
    def worst(self) -> timedelta | None:
        """The greatest lateness; ``None``: nothing was seen."""
        return None if self.worst_seconds is None else timedelta(seconds=self.worst_seconds)

    def quantile(self, share: float) -> timedelta | None:
        """Return the time within which a ``share`` of the records was seen; ``None``: none was."""
        worst, passed = self.worst, 0
        if worst is None:
            return None
        for number, count in enumerate(self.counts):
            passed += count
            if passed >= share * self.count and number < len(BOUNDS):
                return min(timedelta(seconds=BOUNDS[number]), worst)
        return worst

    def __add__(self, other: Lateness) -> Lateness:
        if not other.counts and other.worst_seconds is None:  # nothing, as in nearly all runs
            return self
        width = max(len(self.counts), len(other.counts))
        one, two = (each.counts + (0,) * (width - len(each.counts)) for each in (self, other))
        worst = max(
            (each for each in (self.worst_seconds, other.worst_seconds) if each is not None),
            default=None,
        )
        return Lateness(counts=tuple(map(sum, zip(one, two, strict=True))), worst_seconds=worst)
