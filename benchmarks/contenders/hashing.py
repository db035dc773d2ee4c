"""The script as soon as it tells a changed record from a known one, and checks times, as ours does.

Each record gets a version, which is the hash of its content with the keys in order; its times are
parsed, and the latest is its own; its row has the columns of ours. It guarantees no more than the
script does.
"""

from __future__ import annotations

import asyncio
import sqlite3
from datetime import UTC, datetime
from hashlib import blake2b
from pathlib import Path
from typing import Any

import aiohttp
import orjson

from benchmarks.feeds import Feed

_TABLE = (
    "CREATE TABLE IF NOT EXISTS records (source_id TEXT, record_id TEXT, version TEXT, "
    "record_timestamp TEXT, payload TEXT, collected_at TEXT, PRIMARY KEY (source_id, record_id))"
)
_UPSERT = (
    "INSERT INTO records VALUES ('feed', ?, ?, ?, ?, ?) ON CONFLICT (source_id, record_id) "
    "DO UPDATE SET version = excluded.version, record_timestamp = excluded.record_timestamp, "
    "payload = excluded.payload WHERE excluded.version <> version"
)


class HashingScript:
    """The script, with a version and a time for each record."""

    def __init__(self, folder: Path) -> None:
        self._database = sqlite3.connect(folder / "records.db", isolation_level=None)
        self._database.execute("PRAGMA journal_mode = WAL")
        self._database.execute("PRAGMA synchronous = FULL")
        self._database.execute(_TABLE)

    def collect(self, url: str, feed: Feed) -> None:
        """Read page after page, and store each in one transaction."""
        asyncio.run(self._collect(url, feed.times))

    async def _collect(self, url: str | None, times: tuple[str, ...]) -> None:
        async with aiohttp.ClientSession() as session:
            while url:
                async with session.get(url) as response:
                    page = orjson.loads(await response.read())
                now = datetime.now(UTC).isoformat()
                rows = [_row(each, times, now) for each in page["data"]]
                self._database.execute("BEGIN IMMEDIATE")
                self._database.executemany(_UPSERT, rows)
                self._database.execute("COMMIT")
                url = page["next"]

    def count(self) -> int:
        """Return the number of rows."""
        return int(self._database.execute("SELECT count(*) FROM records").fetchone()[0])


def _row(record: dict[str, Any], times: tuple[str, ...], now: str) -> tuple[str, ...]:
    hashed = blake2b(orjson.dumps(record, None, orjson.OPT_SORT_KEYS), digest_size=16)
    moments = [datetime.fromisoformat(text) for each in times if (text := record[each])]
    latest = max(moments).replace(tzinfo=UTC).isoformat()  # the feeds have no other
    return record["id"], hashed.hexdigest(), latest, orjson.dumps(record).decode(), now


CONTENDERS = {"hashing script": HashingScript}
