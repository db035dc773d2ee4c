"""Ranges of time, half-open: a record at the end of one is in the next."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

from ladon_storage.errors import ConfigurationError
from ladon_storage.values import to_utc


@dataclass(frozen=True, slots=True)
class TimeRange:
    """The times from ``start`` on and before ``end``, in UTC; ``None`` sets no bound.

    Raises:
        ConfigurationError: The range is empty.

    >>> from datetime import UTC
    >>> january = TimeRange(datetime(2026, 1, 1), datetime(2026, 2, 1))
    >>> [datetime(2026, month, 1, tzinfo=UTC) in january for month in (1, 2)]
    [True, False]
    """

    start: datetime | None = None
    end: datetime | None = None

    def __post_init__(self) -> None:
        for name in ("start", "end"):
            value: datetime | None = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, to_utc(value))
        if self.start is not None and self.end is not None and self.start >= self.end:
            raise ConfigurationError(
                f"The range from {self.start.isoformat()} until {self.end.isoformat()} is empty. "
                "Set until to a later time than since."
            )

    def __contains__(self, instant: datetime) -> bool:
        start, end = self.start, self.end
        return (start is None or instant >= start) and (end is None or instant < end)

    @property
    def is_bounded(self) -> bool:
        """Whether a time can be outside."""
        return self.start is not None or self.end is not None

    def windows(self, length: timedelta) -> Iterator[TimeRange]:
        """Yield ranges of ``length``, the last one shorter, that are together this range.

        Raises:
            ValueError: The range has an open end, or ``length`` is not above 0.
        """
        start, end = self.start, self.end
        if start is None or end is None or length <= timedelta(0):
            raise ValueError("windows need a start, an end and a length above 0")
        while end - start > length:
            yield TimeRange(start, start + length)
            start += length
        yield TimeRange(start, end)


ALL_TIME = TimeRange()
"""The range without bounds."""
