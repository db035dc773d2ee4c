"""What no collection can be cheaper than: the network, the parser, the hash and the disk alone.

In a process of its own, over all pages of a feed, in CPU seconds and for the disk also in seconds:
each page is written and synchronized by itself, as a durable page is. The same records in one file
of parquet, and in one transaction of DuckDB under a key, are the floors of these two sinks.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from hashlib import blake2b
from pathlib import Path
from typing import Any

import aiohttp
import duckdb
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

_TABLE = """
CREATE TABLE records (id VARCHAR PRIMARY KEY, version VARCHAR USING COMPRESSION uncompressed,
                      payload VARCHAR USING COMPRESSION zstd)
"""


async def _fetched(url: str | None) -> list[bytes]:
    bodies = []
    async with aiohttp.ClientSession() as session:
        while url:
            async with session.get(url) as response:
                bodies.append(await response.read())
            url = orjson.loads(bodies[-1][: bodies[-1].index(b',"data"')] + b"}")["next"]
    return bodies


def _in_parquet(columns: list[list[str]], file: Path) -> None:
    arrays = [pa.array(each, pa.string()) for each in columns]
    rows = pa.table(arrays, names=["id", "version", "payload"])
    pq.write_table(rows, file, compression="zstd", use_dictionary=False)


def _in_duckdb(columns: list[list[str]], file: Path) -> None:
    with duckdb.connect(str(file)) as connection:
        connection.execute(_TABLE)
        connection.execute("BEGIN")
        with connection.appender("records") as appender:
            appender.append_rows(zip(*columns, strict=True))
        connection.execute("COMMIT")


def main() -> None:
    """Print the floors of a feed, given its address and a folder on the disk."""
    url, folder = sys.argv[1:]
    found: dict[str, float] = {}
    began = time.process_time()
    bodies = asyncio.run(_fetched(url))
    found["http"] = time.process_time() - began
    for name, parse in (("json", json.loads), ("orjson", orjson.loads)):
        began = time.process_time()
        for body in bodies:
            pages: Any = parse(body)
        found[name] = time.process_time() - began
    found["hash"] = 0.0
    texts = []
    columns: list[list[str]] = [[], [], []]
    for body in bodies:
        pages = orjson.loads(body)["data"]
        records = [orjson.dumps(each, option=orjson.OPT_SORT_KEYS) for each in pages]
        texts.append(b"\n".join(records))
        began = time.process_time()
        for each in records:
            blake2b(each, digest_size=16).hexdigest()
        found["hash"] += time.process_time() - began
        columns[0] += [str(each["id"]) for each in pages]
        columns[1] += [blake2b(each, digest_size=16).hexdigest() for each in records]
        columns[2] += [each.decode() for each in records]
    began, cpu = time.perf_counter(), time.process_time()
    with (Path(folder) / "disk").open("wb", buffering=0) as file:
        for text in texts:
            file.write(text)
            os.fsync(file.fileno())
    found["disk seconds"] = time.perf_counter() - began
    found["disk"] = time.process_time() - cpu
    for name, store in (("parquet", _in_parquet), ("duckdb", _in_duckdb)):
        path = Path(folder) / f"floor.{name}"
        began = time.process_time()
        store(columns, path)
        found[name] = time.process_time() - began
        path.unlink()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
