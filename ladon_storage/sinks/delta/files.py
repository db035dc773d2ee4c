"""The files of a Delta table: which there are, how the log names them, and how one is read.

- The log's statistics are a hint. Another writer may leave them out, or cut a bound off: nothing is
  passed over because of what is not there.
- A file has the columns that its writer knew, in the types that its writer uses. What is read has
  the table's columns in the table's types.
- The log encodes names like a part of an address does.
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
"""What the library leaves as it is in a name that it writes into the log."""


@dataclass(frozen=True, slots=True)
class File:
    """One file that a table consists of.

    Args:
        path: Its name, as it is on the disk.
        size: Its size in bytes.
        rows: How many rows it has; ``None``: the log does not say.
        day: The day of its partition.
        low: A text that no key in it is before; ``None``: the log does not say.
        high: The beginning of a text that no key in it is behind, or ``None``.
        unmarked: How many rows have no mark; ``None``: the log does not say.
        kept: Which of its rows are left, where some were taken out by a deletion vector.
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
        """Return whether a key between two texts, or one of them, may be in it."""
        if self.low is not None and self.low > last:
            return False
        # Cut off as the bound may be: not every writer counts it up.
        return self.high is None or first[: len(self.high)] <= self.high

    @property
    def why_it_stays(self) -> str | None:
        """Why a commit of this sink could not take it out of the table; ``None``: it can."""
        if self.kept is not None:
            return "has a deletion vector"
        if self.named and quote(self.path, safe=_AS_THEY_ARE) != self.named:
            # The library would take out another one, which is not there.
            return "is named by another writer in a way of its own"
        return None


def files_of(log: DeltaTable, source_id: str, key: str, mark: str | None) -> list[File]:
    """Return the files of a source at the version of a table that is loaded."""
    found = pa.table(log.get_add_actions(flatten=True))
    if not found.num_rows:
        return []
    found = found.filter(pc.equal(found["partition.source_id"], source_id))
    names = ["path", "size_bytes", "num_records", "partition.day"]
    names += [f"min.{key}", f"max.{key}", f"null_count.{mark}"]
    nothing = [None] * found.num_rows
    there = set(found.schema.names)
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
    """Return what deletion vectors leave, by the last part of the names of the files."""
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
    """Open a file of a table, also one outside of its folder."""
    if "://" in path:
        files, path = pafs.FileSystem.from_uri(path)
    # Of an engine that writes them in 96 bits, instants are exact and of any year this way only.
    with (
        files.open_input_file(path) as stream,
        pq.ParquetFile(stream, pre_buffer=is_remote, coerce_int96_timestamp_unit="us") as found,
    ):
        yield found


def batches(found: pq.ParquetFile, file: File, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """Yield what is left of a file, in the columns of a schema."""
    there = set(found.schema_arrow.names)
    first = 0
    # In this thread: each one that takes part keeps memory.
    for batch in found.iter_batches(
        columns=[name for name in schema.names if name in there], use_threads=False
    ):
        rows = as_schema(batch, schema)
        if file.kept is not None:
            kept = file.kept.slice(first, batch.num_rows).to_pylist()
            first += batch.num_rows
            # What a vector does not reach is left.
            kept += [True] * (batch.num_rows - len(kept))
            rows = rows.filter(pa.array(kept, pa.bool_()))
        yield rows


def as_schema(batch: Any, schema: pa.Schema) -> Any:
    """Return rows with the columns of a schema; without values where they have no such column."""
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
