"""One collection in a process of its own: its time and its peak memory, as JSON.

- Imports are over when the clock starts, and what they took is not counted as memory.
- Both read the same dictionaries in the same pages, keep where they got to, and are asked how many
  rows there are in the end: who lost or doubled some has no figure.
- dlt is told nothing that a user would not tell it: a cursor, a primary key where it merges, the
  parquet loader. It runs in a folder of its own, without telemetry.
- The floor is the library below a sink, which does no more than make each page durable.
"""

from __future__ import annotations

import asyncio
import json
import resource
import sqlite3
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from functools import partial
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import Any

import duckdb
import orjson

PAGE = 1_000
BEGIN = datetime(2024, 1, 1, tzinfo=UTC)
Item = dict[str, Any]

_FLOOR_TABLE = (
    "PRAGMA journal_mode = WAL",
    "PRAGMA synchronous = FULL",
    "CREATE TABLE records (source_id TEXT, record_id TEXT, payload TEXT, "
    "PRIMARY KEY (source_id, record_id))",
)
_FLOOR_COLUMNS = (
    "INSERT INTO records SELECT 'generated', unnest(?::VARCHAR[]), unnest(?::VARCHAR[]) "
    "ON CONFLICT DO UPDATE SET payload = excluded.payload"
)
_FLOOR_UPSERT = (
    "INSERT INTO records VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET payload = excluded.payload"
)


def pages_of(records: int) -> Iterator[list[Item]]:
    """Yield records of six fields in pages, one a second from `BEGIN` on."""
    for first in range(0, records, PAGE):
        yield [item(number) for number in range(first, min(first + PAGE, records))]


# What makes the records is no part of what is measured, and should cost next to nothing.
_days = [(BEGIN + timedelta(days=day)).date().isoformat() for day in range(100)]
_times = [f"{n // 3_600:02}:{n // 60 % 60:02}:{n % 60:02}" for n in range(86_400)]


def item(number: int) -> Item:
    """Return the record of a number."""
    return {
        "id": f"{number * 2654435761 % 2**32:08x}",
        "seen": f"{_days[number // 86_400]}T{_times[number % 86_400]}+00:00",
        "kind": ("url", "domain", "ip")[number % 3],
        "value": f"host-{number}.example.invalid",
        "confidence": number % 101,
        "is_active": number % 2 == 0,
    }


def main() -> None:
    """Measure what the command line says: who, what, a folder, and a number or an address."""
    who, what, folder, argument = sys.argv[1:]
    kind, _, which = who.rpartition(" ")
    contender: Any = {"dlt": _Dlt, "floor": _Floor, "": _Ours}[kind](which, Path(folder))
    if what == "nothing new":
        seconds, cpu = contender.find_nothing(argument)
        print(json.dumps({"seconds": seconds, "cpu": cpu}))
        return
    records = int(argument)
    baseline = _peak()
    began, cpu = time.perf_counter(), time.process_time()
    contender.collect(records)
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    peak = _peak() - baseline
    found = contender.count()
    if found != records:
        raise SystemExit(f"{who} has {found} rows of {records}")
    print(json.dumps({"seconds": seconds, "cpu": cpu, "mebibytes": peak}))


def _peak() -> float:
    """Return the most memory that this process had, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _typical(run: Callable[[], None]) -> tuple[float, float]:
    """Return the median of 15 runs, after one that warms up: its seconds, and of CPU time."""
    seconds, cpu = [], []
    for _ in range(16):
        began, spent = time.perf_counter(), time.process_time()
        run()
        seconds.append(time.perf_counter() - began)
        cpu.append(time.process_time() - spent)
    return median(seconds[1:]), median(cpu[1:])


class _Ours:
    def __init__(self, sink: str, folder: Path) -> None:
        from ladon_storage import MockStorageClient, StorageServiceClient
        from ladon_storage.collection import records
        from ladon_storage.collection.run import run
        from ladon_storage.sinks import SqlSink

        self._run, self._records, self._client = run, records, StorageServiceClient
        self._memory = MockStorageClient()
        self._sink: Callable[[], Any] = lambda: SqlSink(f"sqlite:///{folder}/records.db")
        if sink == "duckdb":
            self._sink = lambda: SqlSink(f"duckdb:///{folder}/records.duckdb")
            from ladon_storage.sinks.sql import duckdb_file  # noqa: F401 - as for the others
        if sink == "delta":
            from ladon_storage.sinks.delta.sink import DeltaSink

            self._sink = lambda: DeltaSink(f"delta://{folder}/lake")
        self._folder = folder
        self.count = partial(_count, sink, folder)

    def collect(self, records: int) -> None:
        source = _GeneratedSource(self._records, records)
        asyncio.run(self._run(source, self._sink(), self._memory, run_id="run"))

    def find_nothing(self, addresses: str) -> tuple[float, float]:
        service, feed = addresses.split()

        async def run(expected: int) -> None:
            async with self._client(service) as client:
                source = _FeedSource(self._records, feed, self._folder.name)
                report = await self._run(source, self._sink(), client, run_id="run")
            assert report.records_written == expected

        asyncio.run(run(PAGE))
        return _typical(lambda: asyncio.run(run(0)))


class _Floor:
    def __init__(self, sink: str, folder: Path) -> None:
        if sink == "delta":
            import deltalake  # noqa: F401 - imports are over when the clock starts
            import pyarrow as pa  # noqa: F401

        fill = {"delta": _fill_delta, "duckdb": _fill_duckdb, "sqlite": _fill_sqlite}[sink]
        self.collect = partial(fill, folder)
        self.count = partial(_count, sink, folder)


def _fill_sqlite(folder: Path, records: int) -> None:
    with closing(sqlite3.connect(folder / "records.db", isolation_level=None)) as connection:
        for statement in _FLOOR_TABLE:
            connection.execute(statement)
        for items in pages_of(records):
            rows = [("generated", item["id"], orjson.dumps(item).decode()) for item in items]
            connection.execute("BEGIN IMMEDIATE")
            connection.executemany(_FLOOR_UPSERT, rows)
            connection.execute("COMMIT")


def _fill_duckdb(folder: Path, records: int) -> None:
    with duckdb.connect(str(folder / "records.duckdb")) as connection:
        connection.execute(_FLOOR_TABLE[-1])
        for items in pages_of(records):
            columns = [[item["id"] for item in items]]
            columns.append([orjson.dumps(item).decode() for item in items])
            connection.execute(_FLOOR_COLUMNS, columns)


def _fill_delta(folder: Path, records: int) -> None:
    import pyarrow as pa
    from deltalake import write_deltalake

    for items in pages_of(records):
        rows = pa.Table.from_pylist(items)
        write_deltalake(f"{folder}/lake/records", rows, mode="append")


def _count(sink: str, folder: Path) -> int:
    if sink == "delta":
        from deltalake import DeltaTable

        return int(DeltaTable(f"{folder}/lake/records").count())
    if sink == "duckdb":
        with duckdb.connect(str(folder / "records.duckdb")) as database:
            [count] = database.execute("SELECT count(*) FROM records").fetchone() or [0]
            return int(count)
    with closing(sqlite3.connect(folder / "records.db")) as connection:
        return int(connection.execute("SELECT count(*) FROM records").fetchone()[0])


class _GeneratedSource:
    source_id = "generated"
    overlap = timedelta(days=36_500)  # so that a second run reads all again
    ordered = order_guaranteed = True

    def __init__(self, records: Any, count: int) -> None:
        self._records = records
        self._count = count

    async def pages(self, start: datetime | None, until: datetime | None) -> AsyncIterator[Any]:
        page, record = self._records.Page, self._records.Record.of
        for items in pages_of(self._count):
            yield page([record(i["id"], datetime.fromisoformat(i["seen"]), i) for i in items])


class _FeedSource:
    overlap = timedelta(0)  # both ask the same, and are answered the same
    ordered = order_guaranteed = True

    def __init__(self, records: Any, url: str, source_id: str) -> None:
        self.source_id = source_id
        self._records = records
        self._url = url

    async def pages(self, start: datetime | None, until: datetime | None) -> AsyncIterator[Any]:
        import aiohttp

        query = {"since": start.isoformat()} if start else {}
        async with aiohttp.ClientSession() as session, session.get(self._url, params=query) as got:
            items = await got.json()
        record = self._records.Record.of
        yield self._records.Page(
            [record(i["id"], datetime.fromisoformat(i["seen"]), i) for i in items]
        )


class _Dlt:
    def __init__(self, disposition: str, folder: Path) -> None:
        # By name: only `make bench` installs dlt, and what checks types does without.
        self._dlt: Any = import_module("dlt")
        self._duckdb: Any = import_module("duckdb")
        self._requests: Any = import_module("dlt.sources.helpers.requests")
        self._disposition = disposition
        self._folder = folder

    def collect(self, records: int) -> None:
        self._run(lambda: pages_of(records))

    def find_nothing(self, addresses: str) -> tuple[float, float]:
        feed = addresses.split()[1]

        def items(seen: Any) -> Iterator[list[Item]]:
            query = {"since": seen.last_value} if seen.last_value else {}
            yield self._requests.get(feed, params=query).json()

        self._run(items, with_cursor=True)
        assert self.count() == PAGE
        typical = _typical(lambda: self._run(items, with_cursor=True))
        assert self.count() == PAGE
        return typical

    def _run(
        self, items: Callable[..., Iterator[list[Item]]], *, with_cursor: bool = False
    ) -> None:
        dlt = self._dlt
        pipeline = dlt.pipeline(
            "benchmark",
            pipelines_dir=str(self._folder / "pipelines"),
            destination=dlt.destinations.duckdb(str(self._folder / "records.duckdb")),
            dataset_name="collected",
        )
        key = {"primary_key": "id"} if self._disposition == "merge" else {}

        cursor = dlt.sources.incremental("seen")

        def records(seen: Any = cursor) -> Iterator[list[Item]]:
            yield from items(seen) if with_cursor else items()

        resource = dlt.resource(records, name="records", write_disposition=self._disposition, **key)
        pipeline.run(resource, loader_file_format="parquet").raise_on_failed_jobs()

    def count(self) -> int:
        with self._duckdb.connect(str(self._folder / "records.duckdb")) as connection:
            found = connection.execute("SELECT count(*) FROM collected.records").fetchone()
            return int(found[0])


if __name__ == "__main__":
    main()
