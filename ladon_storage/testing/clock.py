"""A clock that only moves when a test moves it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta


class FakeClock:
    """A clock: seconds when it is called, as ``time.monotonic``, and an instant by ``now``."""

    def __init__(self, start: datetime = datetime(2026, 1, 1, tzinfo=UTC)) -> None:
        self.start = start
        self.seconds = 0.0

    def __call__(self) -> float:
        """Return the seconds since the start."""
        return self.seconds

    def now(self) -> datetime:
        """Return the present instant."""
        return self.start + timedelta(seconds=self.seconds)

    def advance(self, seconds: float) -> None:
        """Let ``seconds`` pass."""
        self.seconds += seconds
