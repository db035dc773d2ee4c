"""The files of a Delta table: their list, their names in the log, and their content.

- The log's statistics are a hint. Another writer may omit them, or truncate a bound: no file is
  skipped because of missing statistics.
- A file has the columns and types of its writer. The rows that are read have the table's columns
  and types.
- The log percent-encodes names like a part of a URL.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, unquote

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import pyarrow.parquet as pq
from deltalake import DeltaTable

_AS_THEY_ARE = "!$&'()+,-./:;=@_~"
"""Characters that the library does not encode in a name that it writes into the log."""

_SOURCE = "partition.source_id"


@dataclass(frozen=True, slots=True)
class File:
    """One file of a table.

    Args:
        path: Its name on the disk.
        size: Its size in bytes.
        rows: The number of its rows; ``None``: the log does not say.
        day: The day of its partition.
        low: A lower bound of its keys; ``None``: the log does not say.
        high: The beginning of an upper bound of its keys, or ``None``.
        unmarked: The number of rows without a mark; ``None``: the log does not say.
        kept: Which of its rows remain, if a deletion vector removed some.
        named: Its name in the log.
    """

    path: str
    size: int
    rows: int | None
    day: str
    low: str | None
    high: str | None
    unmarked: int | None
    kept: pa.BooleanArray | None = None
    named: str = ""

    @property
    def may_have_marks(self) -> bool:
        """Whether a row may have a mark."""
        return None in (self.rows, self.unmarked) or self.rows != self.unmarked

    def may_hold(self, first: str, last: str) -> bool:
        """Return whether it may contain a key between two texts, inclusive."""
        if self.low is not None and self.low > last:
            return False
        # Truncated like the bound: not every writer increments its last character.
        return self.high is None or first[: len(self.high)] <= self.high

    @property
    def why_it_stays(self) -> str | None:
        """Why a commit of this sink cannot remove it from the table; ``None``: it can."""
        if self.kept is not None:
            return "has a deletion vector"
        if self.named and quote(self.path, safe=_AS_THEY_ARE) != self.named:
            # The library would remove another file, which does not exist.
            return "has a name that only its writer understands"
        return None


def files_of(log: DeltaTable, source_id: str, key: str, mark: str | None) -> list[File]:
    """Return the files of a source at the loaded version of a table."""
    actions = log.get_add_actions(flatten=True)
    if not actions.num_rows:
        return []
    names = ["path", "size_bytes", "num_records", "partition.day"]
    names += [f"min.{key}", f"max.{key}", f"null_count.{mark}"]
    there = set(actions.column_names)
    # The others, three for each column of the table, are not converted.
    found = pa.table(actions.select([_SOURCE, *(name for name in names if name in there)]))
    found = found.filter(pc.equal(found[_SOURCE], source_id))
    nothing = [None] * found.num_rows
    columns = [found[name].to_pylist() if name in there else nothing for name in names]
    kept = _kept(log)
    return [
        File(
            unquote(path),
            size,
            rows,
            day.isoformat(),
            low,
            high,
            unmarked,
            kept.get(_last(path)),
            path,
        )
        for path, size, rows, day, low, high, unmarked in zip(*columns, strict=True)
    ]


def _kept(log: DeltaTable) -> dict[str, pa.BooleanArray]:
    """Return the rows that deletion vectors leave, by the last part of the files' names."""
    if "deletionVectors" not in (log.protocol().reader_features or ()):
        return {}
    vectors = pa.table(log.deletion_vectors())
    if not vectors.num_rows:
        return {}
    uris, masks = (vectors[name].to_pylist() for name in ("filepath", "selection_vector"))
    return {
        _last(unquote(uri)): pa.array(mask, pa.bool_())
        for uri, mask in zip(uris, masks, strict=True)
    }


def _last(path: str) -> str:
    return unquote(path).rpartition("/")[2]


@contextmanager
def opened(files: pafs.FileSystem, path: str, *, is_remote: bool) -> Iterator[pq.ParquetFile]:
    """Open a file of a table, including one outside of its folder."""
    if "://" in path:
        files, path = pafs.FileSystem.from_uri(path)
    # Instants of an engine that writes them in 96 bits are exact in every year only this way.
    with (
        files.open_input_file(path) as stream,
        pq.ParquetFile(stream, pre_buffer=is_remote, coerce_int96_timestamp_unit="us") as found,
    ):
        yield found


def has_any(found: pq.ParquetFile, key: str, wanted: pa.Array) -> bool:
    """Return whether a file, deleted rows included, has one of some keys."""
    return any(
        pc.any(pc.is_in(_cast(batch[key], wanted.type), wanted)).as_py()
        for batch in found.iter_batches(columns=[key], use_threads=False)
    )


def batches(found: pq.ParquetFile, file: File, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """Yield the remaining rows of a file, in the columns of a schema."""
    there = set(found.schema_arrow.names)
    first = 0
    # In this thread: each thread of a pool keeps memory.
    for batch in found.iter_batches(
        columns=[name for name in schema.names if name in there], use_threads=False
    ):
        rows = as_schema(batch, schema)
        if file.kept is not None:
            kept = file.kept.slice(first, batch.num_rows).to_pylist()
            first += batch.num_rows
            # Rows beyond the vector's end remain.
            kept += [True] * (batch.num_rows - len(kept))
            rows = rows.filter(pa.array(kept, pa.bool_()))
        yield rows


def as_schema(batch: Any, schema: pa.Schema) -> Any:
    """Return rows with the columns of a schema; a column that they lack is null."""
    if batch.schema.equals(schema):
        return batch
    count, there = batch.num_rows, set(batch.schema.names)
    columns = [
        _cast(batch[field.name], field.type) if field.name in there else pa.nulls(count, field.type)
        for field in schema
    ]
    return type(batch).from_arrays(columns, schema=schema)


def _cast(column: Any, kind: pa.DataType) -> Any:
    return column if column.type.equals(kind) else column.cast(kind, safe=False)
