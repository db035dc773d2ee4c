"""The sink for a Delta Lake table, in a folder or an object storage, through ``deltalake``.

- A page is one commit: its rows, its position, and a number of its source. Delta refuses a commit
  whose source got another one in between; the page is then looked up again and retried. So two runs
  of one source cannot both add a row, and runs of different sources never conflict.
- A position is stored as the versions of application transactions: Delta keeps them for ever,
  through checkpoints, vacuum and the cleaning of its log. A restored table has its old position.
- The table's owner may change it. Files are read by the table's columns, whatever their writer. A
  record deleted deliberately stays deleted until the source delivers a change.
- The quarantine is a table of its own, and written first. A crash in between repeats the page, and
  a reject is stored once.
- ``keep="latest"``: an older version never replaces a newer one; at equal times the later arrival
  wins. A replaced row is removed with its file, whose other rows are written again.
- No credentials are configured here: the storage's own environment variables are read.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence, Set
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Literal, Self, TypeVar

import pyarrow as pa
from deltalake.exceptions import DeltaError

from ladon_storage.collection.protocols import Position, WriteResult
from ladon_storage.collection.records import Page, Record
from ladon_storage.errors import ConfigurationError, SinkError
from ladon_storage.sinks.delta.writer import DeltaWriter
from ladon_storage.sinks.worker import WorkerThread

T = TypeVar("T")

SCHEMES = ("delta", "s3", "s3a", "gs", "az", "abfs", "abfss")
_NAME = re.compile(r"[a-z_][a-z0-9_]{0,62}", re.IGNORECASE)
_SECRET = re.compile(r"KEY|SECRET|TOKEN|PASSWORD|SAS|CREDENTIAL", re.IGNORECASE)
_SHORTEST_SECRET = 5


class DeltaSink:
    """A table of records in Delta Lake, created if needed.

    The columns are ``source_id`` and ``day`` (of the record's timestamp), by which it is
    partitioned, ``record_id``, ``version``, ``record_timestamp``, ``payload`` (JSON text),
    ``collected_at`` (when this version arrived), ``removed_at`` (when the source no longer listed
    it) and, where all versions are kept, ``returned_at`` (when the source went back to it).
    Rejected items are in the table ``<table>_quarantine``. One object serves one run at a time;
    several runs and processes may share the table.

    The current version of each record is the first one of ``row_number() OVER (PARTITION BY
    source_id, record_id ORDER BY returned_at DESC NULLS LAST, record_timestamp DESC, collected_at
    DESC)``.

    Other engines may write the table, too, and add nullable columns. The next run of any of its
    sources notes their deletions in ``<table>_deleted``. A deleted record stays deleted until its
    source delivers another content; if that table is dropped, the record may come back. Rows of
    files that were vacuumed before a run looked cannot be known, and come back. A table that is
    restored to an earlier version is filled from its state then.

    Args:
        url: The folder of the tables: ``delta:///var/lib/ladon`` anywhere, ``delta://lake`` in the
            working directory; or an address on an object storage, ``s3://bucket/lake``.
        table: The name of the table, a folder there.
        keep: ``latest`` for one row per record, ``all`` for one row per version.

    Raises:
        ConfigurationError: An argument is invalid.
    """

    def __init__(
        self, url: str, table: str = "records", keep: Literal["latest", "all"] = "latest"
    ) -> None:
        self._root = _checked_root(url)
        if not isinstance(table, str) or not _NAME.fullmatch(table):
            raise ConfigurationError(
                f"The sink's table cannot be named {table!r}; use a letter, then letters, digits "
                "and underscores, 63 at most."
            )
        if keep not in ("latest", "all"):
            raise ConfigurationError(f"The sink's keep should be 'latest' or 'all', not {keep!r}.")
        self._shown = url
        self._name = table
        self._keep = keep
        self._thread: WorkerThread | None = None
        self._store: DeltaWriter | None = None

    def __repr__(self) -> str:
        return f"DeltaSink({self._shown!r}, table={self._name!r}, keep={self._keep!r})"

    async def __aenter__(self) -> Self:
        if self._thread is not None:
            raise SinkError(f"The sink {self._shown} serves another run; give each run its own.")
        self._thread = WorkerThread()
        try:
            await self._do(self._open, "be opened")
        except BaseException:
            await self._leave(tidy=False)
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._leave(tidy=error is None)

    async def write(
        self, source_id: str, page: Page, *, run_id: str = "", position: Position | None = None
    ) -> WriteResult:
        """Make a page durable, completely or not at all, and return the changes.

        Raises:
            SinkError: The storage refused it, or other runs of the source were always faster.
        """
        return await self._in_store(
            lambda store: store.write(source_id, page, run_id, position), "store a page", source_id
        )

    async def position(self, source_id: str) -> Position | None:
        """Return the last position that was written; ``None``: there is none."""
        return await self._in_store(
            lambda store: store.position(source_id), "read its position", source_id
        )

    async def mark_removed(self, source_id: str, listed_ids: Set[str], max_share: float) -> int:
        """Mark the records whose ids are not in ``listed_ids``, and return how many are new there.

        A record that is listed again loses its mark. Nothing is deleted.

        Raises:
            SourceError: More than the share ``max_share`` of the unmarked records would be; none
                was.
            SinkError: The storage refused it.
        """
        return await self._in_store(
            lambda store: store.mark_removed(source_id, listed_ids, max_share),
            "mark what was removed",
            source_id,
        )

    async def revert(self, source_id: str, records: Sequence[Record], *, run_id: str = "") -> int:
        """Make versions the current ones, whatever their time; return how many were not current.

        A record that was deleted from the table deliberately is not stored again, unless the source
        delivered another version in between.

        Raises:
            SinkError: The storage refused it.
        """
        return await self._in_store(
            lambda store: store.revert(source_id, records), "go back to earlier versions", source_id
        )

    async def lacking(self, source_id: str, listed: Mapping[str, datetime]) -> set[str]:
        """Return the ids of ``listed`` without a record of that time or later.

        A record that was deleted deliberately is not lacking.

        Raises:
            SinkError: The storage did not answer.
        """
        return await self._in_store(
            lambda store: store.lacking(source_id, listed), "look up what it lacks", source_id
        )

    async def _in_store(self, work: Callable[[DeltaWriter], T], aim: str, source_id: str) -> T:
        store = self._store
        if store is None:
            raise SinkError(
                f"The sink {self._shown} is not open; use `async with` around it.", source_id
            )
        return await self._do(lambda: work(store), aim, source_id)

    async def _do(self, work: Callable[[], T], aim: str, source_id: str | None = None) -> T:
        assert self._thread is not None  # noqa: S101 - there is one while there is a store
        try:
            return await self._thread.do(work)
        except (DeltaError, OSError, UnicodeError, pa.ArrowException) as error:
            said = f"{type(error).__name__}: {_harmless(str(error))}"
        # Not chained: a storage's error may contain the signature of a request.
        raise SinkError(
            f"The sink {self._shown} could not {aim}: {said}; "
            "repair the storage, and the next run goes on where durable data ends.",
            source_id,
        )

    async def _leave(self, *, tidy: bool) -> None:
        store, self._store = self._store, None
        thread, self._thread = self._thread, None
        if thread is not None:
            await thread.close(store.tidy if store and tidy else _nothing)

    def _open(self) -> None:
        self._store = DeltaWriter(self._root, self._name, self._keep)


def _checked_root(url: str) -> str:
    """Return the folder, absolute, or the address, if it is valid and contains no password."""
    scheme, found, rest = url.partition("://") if isinstance(url, str) else ("", "", "")
    # A refused address is not repeated: it may contain a password.
    wrong = not found or scheme.lower() not in SCHEMES or "://" in rest
    host = rest.partition("/")[0]
    wrong = wrong or not rest.strip("/") or ":" in host.rpartition("@")[0]
    if not wrong and scheme.lower() == "delta":
        return str(Path(rest).absolute())
    if wrong or not host or any(mark in rest for mark in "?#"):
        raise ConfigurationError(
            "The sink's address cannot be used; write it as delta:///var/lib/ladon or "
            "s3://bucket/lake, and give credentials by the environment."
        )
    return url.rstrip("/")


def _harmless(text: str) -> str:
    """Return a storage's error text, without the signature of a request or a key."""
    text = re.sub(r"\?[^\s'\"]*", "?…", text.partition("\n")[0])
    for name, value in os.environ.items():
        if _SECRET.search(name) and len(value) > _SHORTEST_SECRET:
            text = text.replace(value, "…")
    return text


def _nothing() -> None:
    """Do nothing, as the thread's last work."""
