"""The sink for a folder of newline-delimited JSON, for people who want to look at the records.

- A page is a file, written next to its place and moved there: readers never see half of one. The
  position is a file that is moved last, so that it never covers more than the existing records.
- An existing file is never changed. Hence every version is kept, and there is no other choice. If
  another program removes, shortens or edits a file, its source is collected from its beginning.
- It suits up to about a million versions of a source: the digests of all are kept in memory, about
  300 bytes for a record and 100 for each further version, and are read again by every run. Use a
  database for larger sources.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence, Set
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Literal, Self, TypeVar

from ladon_storage.collection.protocols import Position, WriteResult
from ladon_storage.collection.records import Page, Record
from ladon_storage.errors import ConfigurationError, SinkError
from ladon_storage.sinks.jsonl.files import SourceFiles
from ladon_storage.sinks.worker import WorkerThread

T = TypeVar("T")

_SCHEME = "jsonl://"
_NAME = re.compile(r"(?!.*_(quarantine|removed)$)[a-z_][a-z0-9_]{0,62}", re.IGNORECASE)


class JsonlSink:
    """A folder of files with every version of each record, one file for each page with new ones.

    ``<table>/<source>/*.jsonl`` has a line for each version, with ``source_id``, ``record_id``,
    ``version``, ``record_timestamp`` and ``payload``; the names order by the oldest record within.

    The current version of a record is the line with the greatest ``returned_at``; if no line of it
    has one, the greatest ``record_timestamp``; among equals the last in its file:
    ``jq -s 'group_by(.record_id) | map(max_by([.returned_at // "", .record_timestamp]))'``.

    The rejects are in ``<table>_quarantine``, and the removed records in ``<table>_removed``. Ids
    of sources are percent-encoded.

    One object serves one run at a time; several runs and processes may share the folder.

    Args:
        url: The folder: ``jsonl:///var/lib/ladon/records``, or ``jsonl://records`` in the working
            directory.
        table: The name of a folder in it.
        keep: ``all``; a file never loses a line.

    Raises:
        ConfigurationError: An argument is invalid.
    """

    def __init__(self, url: str, table: str = "records", keep: Literal["all"] = "all") -> None:
        path = url[len(_SCHEME) :]
        if not url.lower().startswith(_SCHEME) or not path or "\0" in path:
            raise ConfigurationError(
                "The sink's address cannot be used; write it as jsonl:///folder or jsonl://folder."
            )
        if not isinstance(table, str) or not _NAME.fullmatch(table):
            raise ConfigurationError(
                f"The sink's table cannot be named {table!r}; use a letter, then letters, digits "
                "and underscores, 63 at most, and no name of the sink's own."
            )
        if keep != "all":
            raise ConfigurationError(
                f"A sink at jsonl:// cannot keep {keep!r}, since it never changes a file; set keep "
                "to 'all', or use sqlite://."
            )
        self._shown = url
        self._table = table
        self._folder = Path(path)
        self._files: dict[str, SourceFiles] = {}
        self._thread: WorkerThread | None = None

    def __repr__(self) -> str:
        return f"JsonlSink({self._shown!r}, table={self._table!r}, keep='all')"

    async def __aenter__(self) -> Self:
        if self._thread is not None:
            raise SinkError(f"The sink {self._shown} serves another run; give each run its own.")
        self._thread = WorkerThread()
        try:
            await self._do(self._open, "be opened")
        except BaseException:
            await self._leave()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._leave()

    async def write(
        self, source_id: str, page: Page, *, run_id: str = "", position: Position | None = None
    ) -> WriteResult:
        """Make a page durable, and return the changes.

        A failure leaves nothing of the page. A crash may leave the page without its position, or
        its rejects without the page: the same page again adds only the missing part.

        Raises:
            SinkError: A file could not be written.
        """
        return await self._do(
            lambda: self._of(source_id).write(page, run_id, position), "store a page", source_id
        )

    async def position(self, source_id: str) -> Position | None:
        """Return the last position that was written.

        ``None``: there was none, or files of the source were removed, shortened or edited since.

        Raises:
            SinkError: The file could not be read.
        """
        return await self._do(self._of(source_id).position, "read its position", source_id)

    async def mark_removed(self, source_id: str, listed_ids: Set[str], max_share: float) -> int:
        """List the records whose ids are not in ``listed_ids``, and return how many are new there.

        It reads the files of the source again.

        Raises:
            SourceError: More than ``max_share`` of the unmarked records would be; none was.
            SinkError: A file could not be read or written.
        """
        return await self._do(
            lambda: self._of(source_id).mark_removed(listed_ids, max_share),
            "mark what was removed",
            source_id,
        )

    async def revert(self, source_id: str, records: Sequence[Record], *, run_id: str = "") -> int:
        """Add the lines of versions again, as the current ones, and return how many were not.

        A version that this run added is not counted.

        Raises:
            SinkError: A file could not be written.
        """
        return await self._do(
            lambda: self._of(source_id).revert(records),
            "make an earlier version current",
            source_id,
        )

    async def lacking(self, source_id: str, listed: Mapping[str, datetime]) -> set[str]:
        """Return the ids of ``listed`` whose current line is of an earlier time, or missing.

        Raises:
            SinkError: A file could not be read.
        """
        return await self._do(
            lambda: self._of(source_id).lacking(listed), "look records up", source_id
        )

    def _of(self, source_id: str) -> SourceFiles:
        if source_id not in self._files:
            self._files[source_id] = SourceFiles(self._folder, self._table, source_id)
        return self._files[source_id]

    async def _do(self, work: Callable[[], T], aim: str, source_id: str | None = None) -> T:
        if self._thread is None:
            raise SinkError(
                f"The sink {self._shown} is not open; use `async with` around it.", source_id
            )
        try:
            return await self._thread.do(work)
        except OSError as error:
            said = error.strerror or str(error)
            raise SinkError(
                f"The sink {self._shown} could not {aim}: {said}; repair that and run again: it "
                "goes on where durable data ends.",
                source_id,
            ) from error

    async def _leave(self) -> None:
        thread, self._thread = self._thread, None
        if thread is not None:
            await thread.close(self._files.clear)

    def _open(self) -> None:
        if not self._folder.absolute().parent.is_dir():
            raise SinkError(
                f"The sink's folder {self._folder.parent} does not exist; make it, or correct the "
                "address."
            )
        self._folder.mkdir(exist_ok=True)
