"""dlt: as its first page shows it, and as fast as its documents say that it can be made.

- *Default*: pages of dictionaries, a primary key, ``merge``. Nested values stay in their
  record, as with the others; nothing else is set.
- *Arrow*: pages become Arrow tables of a known schema, which its pages on performance name as the
  way past normalization; the loader's files are parquet; the strategy is ``upsert``, which neither
  deduplicates nor deletes before it inserts, where the destination has it. Nested values are JSON.
- Neither keeps a cursor. It runs in a folder of its own, without telemetry.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import orjson

from benchmarks.feeds import Feed


class Dlt:
    """A pipeline of dlt.

    Args:
        folder: The place of its files and of its destination.
        destination: ``duckdb`` or ``delta``.
        arrow: Whether pages become Arrow tables.
    """

    def __init__(self, folder: Path, destination: str, *, arrow: bool) -> None:
        # By name: only `make bench` installs dlt, and what checks types does without.
        self._dlt: Any = import_module("dlt")
        self._requests: Any = import_module("dlt.sources.helpers.requests")
        self._arrow: Any = import_module("pyarrow") if arrow else None
        import_module("duckdb" if destination == "duckdb" else "deltalake")
        self._folder, self._destination = folder, destination

    def collect(self, url: str, feed: Feed) -> None:
        """Extract, normalize and load the feed."""
        dlt = self._dlt
        settings: dict[str, Any] = {"write_disposition": "merge", "max_table_nesting": 0}
        kinds = dlt.destinations
        if self._destination == "duckdb":
            destination = kinds.duckdb(str(self._folder / "records.duckdb"))
        else:
            destination = kinds.filesystem(f"file://{self._folder}/lake")
            settings["table_format"] = "delta"
        if self._arrow:
            settings["write_disposition"] = {"disposition": "merge", "strategy": "upsert"}
        pipeline = dlt.pipeline(
            "benchmark",
            pipelines_dir=str(self._folder / "pipelines"),
            destination=destination,
            dataset_name="collected",
        )
        pages = self._tables(url, feed) if self._arrow else self._pages(url)
        resource = dlt.resource(pages, name="records", primary_key="id", **settings)
        done = pipeline.run(resource, **({"loader_file_format": "parquet"} if self._arrow else {}))
        done.raise_on_failed_jobs()

    def _pages(self, url: str | None) -> Iterator[list[dict[str, Any]]]:
        while url:
            page = orjson.loads(self._requests.get(url).content)
            yield page["data"]
            url = page["next"]

    def _tables(self, url: str, feed: Feed) -> Iterator[Any]:
        pa = self._arrow
        kinds = {"text": pa.string(), "integer": pa.int64(), "boolean": pa.bool_()}
        schema = pa.schema([(name, kinds.get(of, pa.string())) for name, of in feed.fields.items()])
        nested = [name for name, of in feed.fields.items() if of in ("object", "array")]
        for items in self._pages(url):
            for each in items:
                for name in nested:
                    each[name] = orjson.dumps(each.get(name)).decode()
            yield pa.Table.from_pylist(items, schema)

    def count(self) -> int:
        """Return the number of rows."""
        if self._destination == "delta":
            table = import_module("deltalake").DeltaTable(f"{self._folder}/lake/collected/records")
            return int(table.count())
        with import_module("duckdb").connect(str(self._folder / "records.duckdb")) as connection:
            found = connection.execute("SELECT count(*) FROM collected.records").fetchone()
            return int(found[0])


CONTENDERS = {
    "dlt, DuckDB, default merge": partial(Dlt, destination="duckdb", arrow=False),
    "dlt, DuckDB, Arrow merge": partial(Dlt, destination="duckdb", arrow=True),
    "dlt, Delta, Arrow merge": partial(Dlt, destination="delta", arrow=True),
}
