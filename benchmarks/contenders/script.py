"""The script that somebody would write for the one feed: forty lines, and no guarantee but fsync.

It does the same work: the same records, one row a record, each page durable before the next one is
written. It has no watermark, no versions, no quarantine, and no second attempt.
"""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path

import aiohttp
import orjson

from benchmarks.feeds import Feed

_TABLE = "CREATE TABLE IF NOT EXISTS records (id TEXT PRIMARY KEY, time TEXT, payload TEXT)"
_UPSERT = (
    "INSERT INTO records VALUES (?, ?, ?) "
    "ON CONFLICT (id) DO UPDATE SET time = excluded.time, payload = excluded.payload"
)


class Script:
    """The script."""

    def __init__(self, folder: Path) -> None:
        self._database = sqlite3.connect(folder / "records.db", isolation_level=None)
        self._database.execute("PRAGMA journal_mode = WAL")
        self._database.execute("PRAGMA synchronous = FULL")
        self._database.execute(_TABLE)

    def collect(self, url: str, feed: Feed) -> None:
        """Read page after page, and store each in one transaction."""
        asyncio.run(self._collect(url, feed.times[0]))

    async def _collect(self, url: str | None, time: str) -> None:
        async with aiohttp.ClientSession() as session:
            while url:
                async with session.get(url) as response:
                    page = orjson.loads(await response.read())
                rows = [
                    (each["id"], each[time], orjson.dumps(each).decode()) for each in page["data"]
                ]
                self._database.execute("BEGIN IMMEDIATE")
                self._database.executemany(_UPSERT, rows)
                self._database.execute("COMMIT")
                url = page["next"]

    def count(self) -> int:
        """Return the number of rows."""
        return int(self._database.execute("SELECT count(*) FROM records").fetchone()[0])


CONTENDERS = {"script": Script}
