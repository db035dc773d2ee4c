"""The wait for a source that another run holds.

- The service's clock judges the end of the other run's lease. A run that ends earlier releases the
  source at once, so the watermark is read again every few seconds.
- The wait is bounded: a run that renews its lease for ever would otherwise hold all the others.
- Nothing is written meanwhile, and nothing is read from the source.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Literal

from pydantic import BaseModel, ConfigDict

from ladon_storage.errors import SourceBusyError

logger = logging.getLogger(__name__)

WhenBusy = Literal["fail", "wait", "skip"]
"""The behaviour of a run whose source another run holds.

``fail`` raises `SourceBusyError`, ``wait`` collects when the source is free, and ``skip`` completes
without a collection.
"""

WAIT_SECONDS = 3_600.0
"""The longest wait for a source."""

POLL_SECONDS = 5.0
TELL_SECONDS = 60.0
_SHORTEST_SECONDS = 0.5
"""A service states its time in whole seconds."""


class Holder(BaseModel):
    """The run that holds a source, and the end of its lease unless that is renewed."""

    model_config = ConfigDict(frozen=True)

    run_id: str | None = None
    until: datetime | None = None

    @classmethod
    def of(cls, busy: SourceBusyError) -> Holder:
        """Return the holder that an error names."""
        return cls(run_id=busy.run_id, until=busy.until)

    def __str__(self) -> str:
        named = "another run" if self.run_id is None else f"run {self.run_id!r}"
        return f"{named} is collecting the source"


class Standby:
    """The wait of one run for its source.

    Args:
        source_id: The source.
        monotonic: Seconds that never go back.
    """

    def __init__(self, source_id: str, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._source_id = source_id
        self._monotonic = monotonic
        self._began: float | None = None
        self._said = 0.0

    @property
    def is_waiting(self) -> bool:
        """Whether the run has waited already, and may wait longer."""
        return self._began is not None and self._monotonic() - self._began < WAIT_SECONDS

    async def wait(self, busy: SourceBusyError, now: datetime) -> None:
        """Wait until the source may be free, or until it is time to look again.

        Args:
            busy: The error that names the holder and the end of its lease.
            now: The service's time.

        Raises:
            SourceBusyError: The run has waited for `WAIT_SECONDS`.
        """
        began = self._monotonic()
        if self._began is None:
            self._began = began
            self._say(busy, 0.0)
        waited = began - self._began
        if waited >= WAIT_SECONDS:
            raise SourceBusyError(
                f"Source {self._source_id!r} was not free within {WAIT_SECONDS:.0f} s: "
                f"{Holder.of(busy)}. Let runs begin further apart, or look at that run.",
                self._source_id,
                busy.run_id,
                busy.until,
            ) from busy
        if waited - self._said >= TELL_SECONDS:
            self._say(busy, waited)
        left = POLL_SECONDS if busy.until is None else (busy.until - now).total_seconds()
        await asyncio.sleep(min(max(left, _SHORTEST_SECONDS), POLL_SECONDS))

    async def pause(self) -> None:
        """Wait until it is time to look again."""
        await asyncio.sleep(POLL_SECONDS)

    def ended(self) -> None:
        """Log that the source is free, after a wait."""
        if self._began is not None:
            logger.info(
                "Source %r is free after %d s.",
                self._source_id,
                self._monotonic() - self._began,
                extra={"source_id": self._source_id},
            )

    def _say(self, busy: SourceBusyError, waited: float) -> None:
        self._said = waited
        logger.warning(
            "Source %r is held: %s. This run waits for it, %s of at most %s.",
            self._source_id,
            Holder.of(busy),
            timedelta(seconds=round(waited)),
            timedelta(seconds=WAIT_SECONDS),
            extra={"source_id": self._source_id},
        )
