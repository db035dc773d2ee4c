"""Opening a Delta table of the sink: it is created, recognised as the sink's own, or refused.

- The purpose of a table is in its description, which its owner may change, and in a commit.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pyarrow as pa
from deltalake import CommitProperties, DeltaTable, Transaction
from deltalake.exceptions import CommitFailedError, TableNotFoundError

from ladon_storage.errors import SinkError
from ladon_storage.sinks.delta import disk
from ladon_storage.sinks.delta.object_store import Location

PARTITIONS = ("source_id", "day")
CHECKPOINT_COMMITS = 10
"""Commits between checkpoints; a commit's cost grows with the commits since the last one."""

# Not a property: the kernel refuses properties that it does not know.
_MADE_BY = "Made by ladon-storage: "
_TRANSACTION = '"txn"'
_OURS = '{"txn":{"appId":"ladon-'


@dataclass(frozen=True)
class TableOpener:
    """The way to one table.

    Args:
        location: Its folder, absolute, or its address on an object storage.
        schema: Its columns, the two of the partition first.
        kind: Its purpose. A table with another purpose, or of another program, is refused.
        later: Columns of the schema that an older table may lack.
    """

    location: Location
    schema: pa.Schema
    kind: str
    later: Sequence[str] = ()

    @property
    def address(self) -> str:
        """Its folder, or its address."""
        return self.location.address

    @cached_property
    def folder(self) -> Path | None:
        """The folder of the table, unless it is on an object storage."""
        return None if "://" in self.address else Path(self.address)

    @cached_property
    def uri(self) -> str:
        """The address as ``deltalake`` takes it."""
        return self.folder.as_uri() if self.folder else self.address

    def open(self) -> DeltaTable:
        """Return the table, created if needed.

        Raises:
            SinkError: It is another program's, or one that the sink cannot write.
        """
        try:
            log = self._load()
        except TableNotFoundError:
            self._refuse_what_is_there()
            try:
                log = self._create()
            except CommitFailedError:  # another run just created it
                log = self._load()
        self._check(log)
        return log

    def _load(self) -> DeltaTable:
        return DeltaTable(self.uri, storage_options=self.location.storage_options)

    def _refuse_what_is_there(self) -> None:
        if self.folder and self.folder.exists():
            others = [path for path in self.folder.iterdir() if path.name != "_delta_log"]
            if others:
                raise SinkError(
                    f"The folder {self.folder} of the sink contains other files, such as "
                    f"{others[0].name!r}. Use another address or table, or remove the folder if "
                    "these are the remains of a table that was deleted during a run."
                )

    def _create(self) -> DeltaTable:
        if self.folder:
            self.folder.mkdir(parents=True, exist_ok=True)
        log = DeltaTable.create(
            self.uri,
            self.schema,
            mode="ignore",
            partition_by=list(PARTITIONS),
            description=_MADE_BY + self.kind,
            configuration={"delta.checkpointInterval": str(CHECKPOINT_COMMITS)},
            storage_options=self.location.storage_options,
            commit_properties=naming({kind_name(self.kind): 1}),
        )
        if self.folder:
            disk.flush(self.folder / "_delta_log" / f"{0:020}.json")
            disk.flush(*disk.up_to(self.folder.parent.parent, self.folder / "_delta_log"))
        return log

    def _check(self, log: DeltaTable) -> None:
        columns = {field.name: field for field in log.schema().fields}
        missing = [each for each in self.schema.names if each not in (*columns, *self.later)]
        _, is_ours, kind = (log.metadata().description or "").partition(_MADE_BY)
        if not is_ours:  # its owner may have changed the description
            kind = self.kind if log.transaction_version(kind_name(self.kind)) else ""
        if missing or not kind or log.metadata().partition_columns != list(PARTITIONS):
            raise SinkError(
                f"The table {self.address} was not created by this sink: it has the columns "
                f"{', '.join(columns)}. Use another address or table."
            )
        if kind != self.kind:
            raise SinkError(
                f"The table {self.address} was created with {kind}, not {self.kind}. Use that, "
                "or another table."
            )
        needed = [each for each in columns.values() if not each.nullable]
        if others := [each.name for each in needed if each.name not in self.schema.names]:
            raise SinkError(
                f"The table {self.address} has the column {others[0]!r}, which does not belong "
                "to the sink and must have a value. Make it nullable."
            )
        if log.metadata().configuration.get("delta.columnMapping.mode", "none") != "none":
            raise SinkError(
                f"The table {self.address} has its columns under other names in its files "
                "(delta.columnMapping.mode), which this sink cannot write. Use another table."
            )


def naming(names: Mapping[str, int], *, max_commit_retries: int | None = None) -> CommitProperties:
    """Return the properties of a commit with an application transaction for each name."""
    transactions = [Transaction(name, number) for name, number in names.items()]
    return CommitProperties(None, max_commit_retries, transactions)


def is_ours(commit: str) -> bool:
    """Return whether the log's text of a commit has an application transaction of this sink."""
    return _OURS in commit


def only_adds_elsewhere(commit: str, sources: Set[str]) -> bool:
    """Return whether the log's text of a commit only adds files, of other sources than some."""
    for action in map(json.loads, filter(None, commit.split("\n"))):
        if not action.keys() <= {"add", "commitInfo", "txn"}:
            return False
        if "add" in action and action["add"]["partitionValues"]["source_id"] in sources:
            return False
    return True


def numbers_in(commit: str) -> dict[str, int]:
    """Return the application transactions in the log's text of a commit, by their names."""
    # Not `splitlines`: a source's name may have another separator than a line feed.
    actions = [json.loads(line) for line in commit.split("\n") if _TRANSACTION in line]
    told = [action["txn"] for action in actions if "txn" in action]
    return {each["appId"]: each["version"] for each in told}


def kind_name(kind: str) -> str:
    """Return the name of the number in a commit that identifies a purpose."""
    return f"ladon-kind:{kind}"
