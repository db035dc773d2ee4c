"""One Delta table: its files by partition, and commits that name their dependencies.

- A file is on the disk before the commit that names it, and the commit is on the disk when `commit`
  returns: the library does not flush its own writes.
- A commit carries an application transaction for each given name. It is refused if a commit with
  one of these names came in between, or one of another program that does more than add files of
  other sources. So a writer that names the transactions it read cannot add anything twice.
- The library must not decide that: of two commits that remove a file, it accepts both if the first
  is an OPTIMIZE, and the rows are there twice.
- The folders are for people. Only the log says which partition a file belongs to, so that a source
  may have any name.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Any
from uuid import uuid4

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import pyarrow.parquet as pq
from deltalake import (
    DeltaTable,
    PostCommitHookProperties,
    Schema,
)
from deltalake.exceptions import CommitFailedError
from deltalake.fs import DeltaStorageHandler
from deltalake.transaction import AddAction, RemoveAction

from ladon_storage.errors import SinkError
from ladon_storage.sinks.delta import disk
from ladon_storage.sinks.delta.files import (
    File,
    as_schema,
    batches,
    files_of,
    has_any,
    opened,
)
from ladon_storage.sinks.delta.object_store import Location
from ladon_storage.sinks.delta.opening import (
    CHECKPOINT_COMMITS,
    PARTITIONS,
    TableOpener,
    is_ours,
    kind_name,
    naming,
    numbers_in,
    only_adds_elsewhere,
)

COMMIT_ATTEMPTS = 15
"""The number of attempts for a commit when commits that it does not depend on come in between."""

# Cleaning lists the whole log: it happens now and then at the end of a run, not at each checkpoint.
_NO_CLEANUP = PostCommitHookProperties(create_checkpoint=True, cleanup_expired_logs=False)


class OvertakenError(CommitFailedError):
    """Raised when another writer's commit came first."""

    def __init__(self) -> None:
        super().__init__("other writers committed to its table before each attempt")


class ManagedTable:
    """A Delta table that is partitioned by source and day, and created if needed.

    Its owner may add columns; those of a rewritten file keep their values.

    Args:
        location: Its folder, absolute, or its address on an object storage.
        schema: Its columns, the two of the partition first.
        key: The column whose bounds are kept for each file.
        kind: Its purpose. A table with another purpose, or of another program, is refused.
        mark: The column whose number of nulls is known for each file.
        later: Columns of the schema that an older table may lack.
    """

    def __init__(
        self,
        location: Location,
        schema: pa.Schema,
        key: str,
        kind: str,
        *,
        mark: str | None = None,
        later: Sequence[str] = (),
    ) -> None:
        self.address = location.address
        self.columns = pa.schema([])
        """The columns of the files, as the table has them now."""
        self._schema = schema
        self._key = key
        self._mark = mark
        self._kind = kind
        opener = TableOpener(location, schema, kind, later)
        self._folder, self._uri = opener.folder, opener.uri
        self._options = location.storage_options
        self._folders: set[str] = set()
        self._listed: tuple[str, int, list[File]] | None = None
        self._last_read: tuple[int, str | None] = (-1, None)
        self._numbers: dict[int, dict[str, int]] = {}
        """The numbers of the commits that were read since the last refresh, by their versions."""
        self._log = opener.open()
        self._note_columns()
        self._files: pafs.FileSystem = (
            pafs.SubTreeFileSystem(str(self._folder), pafs.LocalFileSystem())
            if self._folder
            else pafs.PyFileSystem(DeltaStorageHandler(self._uri, self._options))
        )

    @property
    def kind_number(self) -> dict[str, int]:
        """The number in a commit that identifies the table's purpose; descriptions may change."""
        return {kind_name(self._kind): 1}

    @property
    def version(self) -> int:
        """The last commit that is seen."""
        return int(self._log.version())

    def refresh(self) -> None:
        """Load the commits of other writers."""
        self._log.update_incremental()
        self._numbers.clear()
        self._note_columns()

    def transaction(self, name: str) -> int | None:
        """Return the last number committed under a name; ``None``: there is none."""
        version = self.version
        self.commit_text(version)
        # The library would read the whole log for each name.
        while (numbers := self._numbers.get(version)) is not None:
            if name in numbers:
                return numbers[name]
            version -= 1
        return self._log.transaction_version(name)

    def transactions_at(self, version: int) -> Callable[[str], int | None]:
        """Return a look-up of the numbers as they were at a version.

        Raises:
            DeltaError: The log does not reach back to it.
        """
        log = DeltaTable(self._uri, version=version, storage_options=self._options)
        return log.transaction_version

    def commit_text(self, version: int) -> str | None:
        """Return the log's text of a commit; ``None``: it was cleaned up."""
        if self._last_read[0] != version:
            self._last_read = version, self._read_commit(version)
        text = self._last_read[1]
        if text is not None and version not in self._numbers:
            self._numbers[version] = numbers_in(text)
        return text

    def _read_commit(self, version: int) -> str | None:
        try:
            with self._files.open_input_file(f"_delta_log/{version:020}.json") as stream:
                return str(stream.read().decode())
        except FileNotFoundError:
            return None

    def files(self, source_id: str) -> list[File]:
        """Return the files of a source."""
        if self._listed is None or self._listed[:2] != (source_id, self.version):
            found = files_of(self._log, source_id, self._key, self._mark)
            self._listed = (source_id, self.version, found)
        return self._listed[2]

    def count(self, source_id: str) -> int:
        """Return the number of a source's rows."""
        return sum(self.rows_of(file) for file in self.files(source_id))

    def rows_of(self, file: File) -> int:
        """Return the number of remaining rows in a file."""
        if file.rows is None or file.kept is not None:
            return sum(batch.num_rows for batch in self.read([file], [self._key]))
        return file.rows

    def read(
        self, files: Iterable[File], columns: Sequence[str], only: Sequence[str] | None = None
    ) -> Iterator[pa.RecordBatch]:
        """Yield columns of files, of all rows or only those of some keys."""
        wanted = None if only is None else pa.array(only, pa.string())
        schema = self.schema_of(columns)
        for file in files:
            with opened(self._files, file.path, is_remote=self._folder is None) as found:
                # Most files have none of the ids: their other columns are the larger part.
                if wanted is not None and not has_any(found, self._key, wanted):
                    continue
                for batch in batches(found, file, schema):
                    if wanted is not None:
                        batch = batch.filter(pc.is_in(batch[self._key], wanted))
                    yield batch

    def load(
        self, files: Iterable[File], columns: Sequence[str], only: Sequence[str] | None = None
    ) -> pa.Table:
        """Return columns of files as one table."""
        return pa.Table.from_batches(self.read(files, columns, only), self.schema_of(columns))

    def schema_of(self, columns: Sequence[str]) -> pa.Schema:
        """Return the schema of some columns, which the table may not have yet."""
        own = self._schema
        return pa.schema(
            [
                # In our types: a look-up compares texts and instants, however they are stored.
                own.field(name) if name in own.names else self.columns.field(name)
                for name in columns
            ]
        )

    def has_column(self, name: str) -> bool:
        """Return whether the table has a column."""
        return name in self.columns.names

    def add_column(self, name: str) -> None:
        """Add a column to a table that was created before the column existed; no file changes."""
        [field] = Schema.from_arrow(pa.schema([self._schema.field(name)])).fields
        self._log.alter.add_columns([field])
        self.refresh()

    def add(
        self, source_id: str, day: str, rows: pa.Table, *, data_change: bool = True
    ) -> AddAction:
        """Write a file, which belongs to the table when it is committed."""
        # Neither a separator nor a point: a name cannot lead out of the table's folder.
        folder = f"{re.sub(r'[^A-Za-z0-9_-]', '_', source_id)[:80]}/{day}"
        path = f"{folder}/{uuid4()}.parquet"
        is_folder_new = folder not in self._folders
        if is_folder_new:
            self._files.create_dir(folder, recursive=True)
            self._folders.add(folder)
        rows = as_schema(rows, self._stored(rows))
        with self._files.open_output_stream(path) as stream:
            pq.write_table(rows, stream, compression="zstd", use_dictionary=["collected_at"])
        # A third of a run's memory would be what the pool keeps for the next file.
        pa.default_memory_pool().release_unused()
        size = self._files.get_file_info(path).size
        if self._folder:
            upward = disk.up_to(self._folder, self._folder / path)
            disk.flush(*(upward if is_folder_new else upward[:2]))
        stats = json.dumps(self._stats(rows))
        partition = {"source_id": source_id, "day": day}
        return AddAction(path, size, partition, time.time_ns() // 1_000_000, data_change, stats)

    def remove(self, source_id: str, file: File, *, data_change: bool = True) -> RemoveAction:
        """Return the action that removes a file from the table when it is committed.

        Raises:
            SinkError: The file cannot be removed.
        """
        if why := file.why_it_stays:
            raise SinkError(
                f"The file {file.named!r} of the sink's table {why}, so its rows cannot be "
                "replaced. Rewrite it with the engine that wrote it, by OPTIMIZE or REORG "
                "TABLE … APPLY (PURGE).",
                source_id,
            )
        partition: dict[str, str | None] = {"source_id": source_id, "day": file.day}
        now = time.time_ns() // 1_000_000
        return RemoveAction(file.path, data_change, now, file.size, partition)

    def commit(self, actions: Sequence[AddAction | RemoveAction], names: Mapping[str, int]) -> None:
        """Commit the written files and the removals as one change.

        Raises:
            OvertakenError: A commit that this one may depend on came in between.
            CommitFailedError: The storage failed.
        """
        before = self.version
        for _ in range(COMMIT_ATTEMPTS):
            on = self.version
            try:
                self._log.create_write_transaction(
                    list(actions),
                    "append",
                    self._log.schema(),
                    list(PARTITIONS),
                    commit_properties=naming(names, max_commit_retries=0),
                    post_commithook_properties=_NO_CLEANUP,
                )
                break
            except CommitFailedError as error:
                self.refresh()
                if self.version == on:
                    raise
                sources = {str((each.partition_values or {}).get("source_id")) for each in actions}
                came = range(on + 1, self.version + 1)
                if not all(self._is_apart(version, names, sources) for version in came):
                    raise OvertakenError from error
        else:
            raise OvertakenError
        self.refresh()
        if self._folder:
            self._flush_log(before)

    def _is_apart(self, version: int, names: Mapping[str, int], sources: Set[str]) -> bool:
        """Return whether a commit touches no file that one of these names and sources depends on.

        It is this sink's, with none of the names; or another program's that adds files alone.
        """
        text = self.commit_text(version)
        if text is None:
            return False
        if is_ours(text):
            return names.keys().isdisjoint(numbers_in(text))
        return only_adds_elsewhere(text, sources)

    def _flush_log(self, before: int) -> None:
        log = Path(self._folder or "", "_delta_log")
        for number in range(before + 1, self.version + 1):
            disk.flush(log / f"{number:020}.json")
            # A commit is followed by its checkpoint, or by an overdue one of another writer.
            if number % CHECKPOINT_COMMITS == 0:
                disk.flush(log / f"{number:020}.checkpoint.parquet", log / "_last_checkpoint")
        disk.flush(log)

    def clean_up(self) -> None:
        """Clean the log of commits beyond the table's retention."""
        self._log.cleanup_metadata()

    def _note_columns(self) -> None:
        schema = pa.schema(self._log.schema().to_arrow())
        fields = [field for field in schema if field.name not in PARTITIONS]
        if self.columns.names != [field.name for field in fields]:
            self.columns = pa.schema(fields)

    def _stored(self, rows: pa.Table) -> pa.Schema:
        """Return the table's columns of rows, in its order and types."""
        there = set(rows.schema.names)
        return pa.schema([field for field in self.columns if field.name in there])

    def _stats(self, rows: pa.Table) -> dict[str, Any]:
        bounds = pc.min_max(rows[self._key]).as_py()
        nulls = {self._key: 0}
        if self._mark:
            nulls[self._mark] = rows[self._mark].null_count
        return {
            "numRecords": rows.num_rows,
            "minValues": {self._key: bounds["min"]},
            "maxValues": {self._key: bounds["max"]},
            "nullCount": nulls,
        }
