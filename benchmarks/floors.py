"""What no collection can be cheaper than: each of its steps alone, by the cheapest way known.

In a process of its own, over all pages of a feed, in CPU seconds and for the disk also in seconds:

- the network; the parser; the text of each record, as it is stored and as it is hashed; its hash of
  16 bytes; the check of its times;
- SQLite: the rows of our table, ``VALUES`` of hundreds in the order of their ids, in transactions
  of many pages;
- the disk alone: each page is written and synchronized by itself, as a durable page is;
- other sinks: the same records in one file of parquet, and in one transaction of DuckDB under a
  key.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import sys
import time
from datetime import datetime
from hashlib import blake2b
from pathlib import Path
from typing import Any

import aiohttp
import duckdb
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.insertion import Row, insert, opened

_DUCKDB_TABLE = """
CREATE TABLE records (id VARCHAR PRIMARY KEY, version VARCHAR USING COMPRESSION uncompressed,
                      payload VARCHAR USING COMPRESSION zstd)
"""


async def _fetched(url: str | None, *, are_kept: bool) -> list[bytes]:
    bodies: list[bytes] = []
    async with aiohttp.ClientSession() as session:
        while url:
            async with session.get(url) as response:
                body = await response.read()
            url = orjson.loads(body[: body.index(b',"data"')] + b"}")["next"]
            bodies += [body] * are_kept
    return bodies


_SQLITE_TABLE = """
CREATE TABLE records (source_id TEXT NOT NULL, record_id TEXT NOT NULL, version TEXT NOT NULL,
record_timestamp TEXT NOT NULL, payload TEXT NOT NULL, collected_at TEXT NOT NULL, removed_at TEXT,
PRIMARY KEY (source_id, record_id))
"""
_GROUP = 50_000


def inserted(rows: list[Row], folder: Path) -> float:
    """Insert rows into a new table, and return the CPU seconds."""
    with opened(folder / "floor.db") as database:
        database.execute(_SQLITE_TABLE)
        began = time.process_time()
        for first in range(0, len(rows), _GROUP):
            insert(database, sorted(rows[first : first + _GROUP]))
        return time.process_time() - began


def _in_parquet(columns: list[list[str]], file: Path) -> None:
    arrays = [pa.array(each, pa.string()) for each in columns]
    rows = pa.table(arrays, names=["id", "version", "payload"])
    pq.write_table(rows, file, compression="zstd", use_dictionary=False)


def _in_duckdb(columns: list[list[str]], file: Path) -> None:
    with duckdb.connect(str(file)) as connection:
        connection.execute(_DUCKDB_TABLE)
        connection.execute("BEGIN")
        with connection.appender("records") as appender:
            appender.append_rows(zip(*columns, strict=True))
        connection.execute("COMMIT")


def main() -> None:
    """Print the floors of a feed: its address, its field of the time, a folder on the disk."""
    url, field, folder = sys.argv[1:]
    gc.disable()  # nothing here is garbage
    found: dict[str, float] = dict.fromkeys(("texts", "hash", "times"), 0.0)
    began = time.process_time()
    asyncio.run(_fetched(url, are_kept=False))
    found["http"] = time.process_time() - began
    bodies = asyncio.run(_fetched(url, are_kept=True))
    for name, parse in (("json", json.loads), ("orjson", orjson.loads)):
        began = time.process_time()
        for body in bodies:
            pages: Any = parse(body)
        found[name] = time.process_time() - began
    texts, rows = [], list[Row]()
    for body in bodies:
        pages = orjson.loads(body)["data"]
        began = time.process_time()
        payloads = [orjson.dumps(each).decode() for each in pages]
        records = [orjson.dumps(each, None, orjson.OPT_SORT_KEYS) for each in pages]
        hashing = time.process_time()
        hashes = [blake2b(each, digest_size=16).hexdigest() for each in records]
        timing = time.process_time()
        times = [datetime.fromisoformat(each[field]).isoformat() for each in pages]
        done = time.process_time()
        for name, seconds in (
            ("texts", hashing - began),
            ("hash", timing - hashing),
            ("times", done - timing),
        ):
            found[name] += seconds
        texts.append(b"\n".join(records))
        keys = [str(each["id"]) for each in pages]
        rows += zip(keys, hashes, times, payloads, strict=True)
    found["sqlite"] = inserted(rows, Path(folder))
    (Path(folder) / "floor.db").unlink()
    began, cpu = time.perf_counter(), time.process_time()
    with (Path(folder) / "disk").open("wb", buffering=0) as file:
        for text in texts:
            file.write(text)
            os.fsync(file.fileno())
    found["disk seconds"] = time.perf_counter() - began
    found["disk"] = time.process_time() - cpu
    columns = [[row[place] for row in rows] for place in (0, 1, 3)]
    for name, store in (("parquet", _in_parquet), ("duckdb", _in_duckdb)):
        path = Path(folder) / f"floor.{name}"
        began = time.process_time()
        store(columns, path)
        found[name] = time.process_time() - began
        path.unlink()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
