"""Ours: the whole engine, from the JSON API of a source to the position in the sink.

The watermark is in memory, as if the service cost nothing: the service has figures of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.feeds import Feed
from ladon_storage import MockStorageClient
from ladon_storage.collection.ledger import Ledger
from ladon_storage.collection.run import run
from ladon_storage.models import WatermarkStatus, WatermarkUpdate
from ladon_storage.sinks import SINKS, sink_from
from ladon_storage.sources import source_from
from ladon_storage.sources.rest.source import RestApi as RestApi  # imported before the clock starts

PLACES = {
    "SQLite": "sqlite:///{}/records.db",
    "Delta": "delta://{}/lake",
    "JSON lines": "jsonl://{}/lines",
    "DuckDB": "duckdb:///{}/records.duckdb",
}
# A sink for DuckDB competes as soon as there is one.
AVAILABLE = [name for name in PLACES if name != "DuckDB" or "duckdb" in SINKS.names()]


class Ours:
    """Ours with one sink.

    Args:
        folder: The place of the sink.
        sink: The sink's name in `PLACES`.
        keep: The sink's setting.
    """

    def __init__(self, folder: Path, sink: str, keep: str) -> None:
        self._folder, self._name = folder, sink
        url = PLACES[sink].format(folder)
        self._sink = sink_from({"url": url, "keep": keep})
        self.storage = MockStorageClient()

    def collect(self, url: str, feed: Feed) -> None:
        """Run one collection."""
        asyncio.run(self.run(url, feed))

    async def run(self, url: str, feed: Feed, **settings: Any) -> Any:
        """Run one collection in this loop, and return its report."""
        source = source_from(
            {
                "kind": "rest",
                "source_id": "feed",
                "url": url,
                "records": "data",
                "timestamps": list(feed.times),
                "paging": {"kind": "next", "path": "next"},
                **settings,
            }
        )
        return await run(source, self._sink, self.storage, run_id="run")

    async def knows(self, watermark: datetime) -> None:
        """Let the next run begin where an earlier process ended, which had new records alone."""
        ledger = Ledger(start=watermark, records_delivered=1, records_new=1).model_dump(mode="json")
        await self.storage.put_watermark(
            "feed", WatermarkUpdate.of(watermark, WatermarkStatus.SUCCESS, ledger=ledger)
        )

    def count(self) -> int:
        """Return the number of different records, as another reader of the sink finds them."""
        return _COUNTS[self._name](self._folder)


def _in_sqlite(folder: Path) -> int:
    import sqlite3
    from contextlib import closing

    with closing(sqlite3.connect(folder / "records.db")) as database:
        return int(database.execute("SELECT count(DISTINCT record_id) FROM records").fetchone()[0])


def _in_delta(folder: Path) -> int:
    from deltalake import DeltaTable

    return int(DeltaTable(f"{folder}/lake/records").count())


def _in_lines(folder: Path) -> int:
    files = [each for each in (folder / "lines").rglob("*.jsonl") if "quarantine" not in each.name]
    return sum(1 for each in files for line in each.open("rb") if b'"record_id"' in line)


def _in_duckdb(folder: Path) -> int:
    import duckdb

    with duckdb.connect(str(folder / "records.duckdb"), read_only=True) as database:
        found = database.execute("SELECT count(DISTINCT record_id) FROM records").fetchone()
        return int(found[0] if found else 0)


_COUNTS: dict[str, Callable[[Path], int]] = {
    "SQLite": _in_sqlite,
    "Delta": _in_delta,
    "JSON lines": _in_lines,
    "DuckDB": _in_duckdb,
}

CONTENDERS = {
    f"ours, {sink}, {keep}": partial(Ours, sink=sink, keep=keep)
    for sink in AVAILABLE
    for keep in ("latest", "all")
    if (sink, keep) != ("JSON lines", "latest")  # which never changes a file
}
