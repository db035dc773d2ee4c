"""Sources that note the process that reads them, for workers of task runners."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

from pydantic import BaseModel

from ladon_storage.collection.records import Page, Record


class Noted(BaseModel):
    """A source of one record, read in some seconds."""

    source_id: str
    folder: str
    seconds: float = 0.0

    @property
    def overlap(self) -> timedelta:
        """Return that each run reads the record again."""
        return timedelta(days=1)

    async def pages(self, start: datetime | None, until: datetime | None) -> AsyncIterator[Page]:
        """Note the process, and yield the record."""
        line = f"{self.source_id} {os.getpid()}\n".encode()
        file = os.open(Path(self.folder, "read"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        try:
            os.write(file, line)  # one write, which no other process cuts
        finally:
            os.close(file)
        await asyncio.sleep(self.seconds)
        yield Page([Record.of("1", datetime(2024, 1, 1, tzinfo=UTC), {"id": "1"})])


class Lost(Noted):
    """A source that awaits something that was cancelled."""

    async def pages(self, start: datetime | None, until: datetime | None) -> AsyncIterator[Page]:
        """Yield the record, and raise the cancellation of another task."""
        async for page in super().pages(start, until):
            yield page
        lost = asyncio.get_running_loop().create_future()
        lost.cancel()
        await lost
