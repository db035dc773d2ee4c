"""One Delta table: its files by partition, and commits that name what they depend on.

- A file is on the disk before the commit that names it, and the commit is when it returns: what the
  library itself writes is not flushed.
- A commit carries an application transaction for each name that it is told. Delta refuses it when
  another commit with one of these names came in between, so that who writes on what it read, and
  names it, cannot add anything twice.
- The folders are for people; which partition a file belongs to is said by the log alone, so that
  a source may have any name.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any
from uuid import uuid4

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import pyarrow.parquet as pq
from deltalake import (
    CommitProperties,
    DeltaTable,
    PostCommitHookProperties,
    Schema,
    Transaction,
)
from deltalake.exceptions import CommitFailedError
from deltalake.fs import DeltaStorageHandler
from deltalake.transaction import AddAction, RemoveAction

from ladon_storage.errors import SinkError

PARTITIONS = ("source_id", "day")
CHECKPOINT_COMMITS = 10
"""A commit costs in proportion to how many there were since the last checkpoint."""

# Not a property: the kernel refuses those that it does not know.
_MADE_BY = "Made by ladon-storage: "
# Cleaning up lists the whole log: once for a run, not at each checkpoint.
_NO_CLEANUP = PostCommitHookProperties(create_checkpoint=True, cleanup_expired_logs=False)


@dataclass(frozen=True, slots=True)
class File:
    """Be one file that the table consists of; ``low`` and ``high`` bound its key column.

    ``marked`` is how many of its rows have a value in the last column.
    """

    path: str
    size: int
    rows: int
    day: str
    low: str
    high: str
    marked: int


class Table:
    """Be a Delta table that is partitioned by source and day, and made where it is missing.

    Args:
        address: Its folder, absolute, or its address on an object storage.
        schema: Its columns, the two of the partition first.
        key: The column whose bounds are kept for each file.
        kind: What it is made for. A table of another kind, or of somebody else, is refused.
    """

    def __init__(self, address: str, schema: pa.Schema, key: str, kind: str) -> None:
        self.address = address
        self.columns = pa.schema([field for field in schema if field.name not in PARTITIONS])
        self._schema = schema
        self._delta_schema = Schema.from_arrow(schema)
        self._key = key
        self._mark = schema.names[-1]
        self._kind = kind
        self._folder = None if "://" in address else Path(address)
        self._uri = self._folder.as_uri() if self._folder else address
        self._folders: set[str] = set()
        self._listed: tuple[str, int, list[File]] | None = None
        self._log = self._open()
        self._files: pafs.FileSystem = (
            pafs.SubTreeFileSystem(str(self._folder), pafs.LocalFileSystem())
            if self._folder
            else pafs.PyFileSystem(DeltaStorageHandler(self._uri))
        )

    @property
    def version(self) -> int:
        """The last commit that is seen."""
        return int(self._log.version())

    def refresh(self) -> None:
        """See what others committed."""
        self._log.update_incremental()

    def transaction(self, name: str) -> int | None:
        """Return the number that the last commit gave to a name; ``None``: none did."""
        return self._log.transaction_version(name)

    def files(self, source_id: str) -> list[File]:
        """Return the files of a source."""
        if self._listed is None or self._listed[:2] != (source_id, self.version):
            self._listed = (source_id, self.version, self._files_of(source_id))
        return self._listed[2]

    def _files_of(self, source_id: str) -> list[File]:
        found = pa.table(self._log.get_add_actions(flatten=True))
        if not found.num_rows:
            return []
        found = found.filter(pc.equal(found["partition.source_id"], source_id))
        names = ("path", "size_bytes", "num_records", "partition.day")
        stats = (f"min.{self._key}", f"max.{self._key}", f"null_count.{self._mark}")
        columns = [found[name].to_pylist() for name in (*names, *stats)]
        return [
            File(path, size, rows, day.isoformat(), low, high, rows - unmarked)
            for path, size, rows, day, low, high, unmarked in zip(*columns, strict=True)
        ]

    def read(
        self, files: Iterable[File], columns: Sequence[str], only: Sequence[str] | None = None
    ) -> Iterator[pa.RecordBatch]:
        """Yield columns of files, of all rows or only those of some keys."""
        wanted = None if only is None else pa.array(only, pa.string())
        for file in files:
            # One file after another, and in this thread: each one that takes part keeps memory.
            with (
                self._files.open_input_file(file.path) as stream,
                pq.ParquetFile(stream, pre_buffer=self._folder is None) as found,
            ):
                for batch in found.iter_batches(columns=list(columns), use_threads=False):
                    if wanted is not None:
                        batch = batch.filter(pc.is_in(batch[self._key], wanted))
                    yield batch

    def load(
        self, files: Iterable[File], columns: Sequence[str], only: Sequence[str] | None = None
    ) -> pa.Table:
        """Return columns of files as one table."""
        schema = pa.schema([self.columns.field(name) for name in columns])
        return pa.Table.from_batches(self.read(files, columns, only), schema)

    def add(self, source_id: str, day: str, rows: pa.Table, *, is_new: bool = True) -> AddAction:
        """Write a file, which belongs to the table when it is committed."""
        # Neither a separator nor a point: a name cannot lead out of the table's folder.
        folder = f"{re.sub(r'[^A-Za-z0-9_-]', '_', source_id)[:80]}/{day}"
        path = f"{folder}/{uuid4()}.parquet"
        is_folder_new = folder not in self._folders
        if is_folder_new:
            self._files.create_dir(folder, recursive=True)
            self._folders.add(folder)
        with self._files.open_output_stream(path) as stream:
            pq.write_table(rows, stream, compression="zstd", use_dictionary=["collected_at"])
        size = self._files.get_file_info(path).size
        if self._folder:
            upward = _up_to(self._folder, self._folder / path)
            _flush(*(upward if is_folder_new else upward[:2]))
        stats = json.dumps(self._stats(rows))
        partition = {"source_id": source_id, "day": day}
        return AddAction(path, size, partition, time.time_ns() // 1_000_000, is_new, stats)

    def remove(self, source_id: str, file: File, *, is_new: bool = True) -> RemoveAction:
        """Return what takes a file out of the table when it is committed."""
        partition: dict[str, str | None] = {"source_id": source_id, "day": file.day}
        now = time.time_ns() // 1_000_000
        return RemoveAction(file.path, is_new, now, file.size, partition)

    def commit(self, actions: Sequence[AddAction | RemoveAction], names: Mapping[str, int]) -> None:
        """Make what was written a part of the table, all at once.

        Raises:
            CommitFailedError: Another commit came in between that one of ``names``, or a file,
                depends on.
        """
        before = self.version
        self._log.create_write_transaction(
            list(actions),
            "append",
            self._delta_schema,
            list(PARTITIONS),
            commit_properties=CommitProperties(
                app_transactions=[Transaction(name, number) for name, number in names.items()]
            ),
            post_commithook_properties=_NO_CLEANUP,
        )
        self.refresh()
        if self._folder:
            self._flush_log(before)

    def _flush_log(self, before: int) -> None:
        log = Path(self._folder or "", "_delta_log")
        for number in range(before + 1, self.version + 1):
            _flush(log / f"{number:020}.json")
            # A commit is followed by its checkpoint, or by the one that others were late with.
            if number % CHECKPOINT_COMMITS == 0:
                _flush(log / f"{number:020}.checkpoint.parquet", log / "_last_checkpoint")
        _flush(log)

    def clean_up(self) -> None:
        """Let the log forget what the table's retention no longer asks for."""
        self._log.cleanup_metadata()

    def _open(self) -> DeltaTable:
        try:
            log = DeltaTable(self._uri) if self._exists() else self._create()
        except CommitFailedError:  # another run made it just now
            log = DeltaTable(self._uri)
        self._check(log)
        return log

    def _exists(self) -> bool:
        if DeltaTable.is_deltatable(self._uri):
            return True
        if self._folder and self._folder.exists():
            others = [path for path in self._folder.iterdir() if path.name != "_delta_log"]
            if others:
                raise SinkError(
                    f"The folder {self._folder} of the sink holds other files, such as "
                    f"{others[0].name!r}; use another address or table."
                )
        return False

    def _create(self) -> DeltaTable:
        if self._folder:
            self._folder.mkdir(parents=True, exist_ok=True)
        log = DeltaTable.create(
            self._uri,
            self._schema,
            mode="ignore",
            partition_by=list(PARTITIONS),
            description=_MADE_BY + self._kind,
            configuration={"delta.checkpointInterval": str(CHECKPOINT_COMMITS)},
        )
        if self._folder:
            _flush(self._folder / "_delta_log" / f"{0:020}.json")
            _flush(*_up_to(self._folder.parent.parent, self._folder / "_delta_log"))
        return log

    def _check(self, log: DeltaTable) -> None:
        _, is_ours, kind = (log.metadata().description or "").partition(_MADE_BY)
        columns = [field.name for field in log.schema().fields]
        if not is_ours or sorted(columns) != sorted(self._schema.names):
            raise SinkError(
                f"The table {self.address} was not made by this sink: it has the columns "
                f"{', '.join(columns)}; use another address or table."
            )
        if kind != self._kind:
            raise SinkError(
                f"The table {self.address} was made with {kind}, not {self._kind}; "
                "use that, or another table."
            )

    def _stats(self, rows: pa.Table) -> dict[str, Any]:
        bounds = pc.min_max(rows[self._key]).as_py()
        return {
            "numRecords": rows.num_rows,
            "minValues": {self._key: bounds["min"]},
            "maxValues": {self._key: bounds["max"]},
            "nullCount": {self._key: 0, self._mark: rows[self._mark].null_count},
        }


def by_day(rows: pa.Table, days: Sequence[date]) -> Iterator[tuple[str, pa.Table]]:
    """Yield the rows of each day with its name as a partition's value."""
    if len(set(days)) == 1:
        yield days[0].isoformat(), rows
        return
    numbers: dict[date, list[int]] = {}
    for number, day in enumerate(days):
        numbers.setdefault(day, []).append(number)
    for day, those in sorted(numbers.items()):
        yield day.isoformat(), rows.take(those)


def _up_to(top: Path, path: Path) -> list[Path]:
    """Return a path with the folders above it, up to and with ``top``."""
    return [path, *(each for each in path.parents if each == top or top in each.parents)]


def _flush(*paths: Path) -> None:
    """Let files and folders reach the disk; those that are not there are passed over."""
    for path in paths:
        with suppress(FileNotFoundError):
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
