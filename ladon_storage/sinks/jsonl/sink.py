"""The sink for a folder of newline-delimited JSON, for people who want to look at the records.

- A page is a file, written next to its place and moved there: readers never see half of one. The
  position is a file that is moved last, so that it never covers more than the existing records.
- An existing file is never changed. Hence every version is kept, and there is no other choice. If
  another program removes a file or changes its size, its source is collected from its beginning.
- The known lines are found in an index beside the files, which may be deleted at any time: a run
  reads only files that appeared since. Up to a million lines are in memory, about 400 bytes each.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence, Set
from datetime import datetime
from pathlib import Path
from typing import Literal

from ladon_storage.collection.protocols import Position, WriteResult
from ladon_storage.collection.records import Page, Record
from ladon_storage.errors import ConfigurationError, SinkError
from ladon_storage.sinks.jsonl.files import SourceFiles
from ladon_storage.sinks.threaded import ThreadedSink

_SCHEME = "jsonl://"
_NAME = re.compile(r"(?!.*_(quarantine|removed)$)[a-z_][a-z0-9_]{0,62}", re.IGNORECASE)


class JsonlStore:
    """The files of each source in a folder, which is made if needed.

    Args:
        folder: The folder.
        table: The name of a folder in it.
    """

    def __init__(self, folder: Path, table: str) -> None:
        if not folder.absolute().parent.is_dir():
            raise SinkError(
                f"The sink's folder {folder.parent} does not exist. Create it, or correct the "
                "address."
            )
        folder.mkdir(exist_ok=True)
        self._folder = folder
        self._table = table
        self._files: dict[str, SourceFiles] = {}

    def write(
        self, source_id: str, page: Page, run_id: str, position: Position | None
    ) -> WriteResult:
        """Make a page durable, and return the changes.

        A failure leaves nothing of the page. A crash may leave the page without its position, or
        its rejects without the page: the same page again adds only the missing part.
        """
        return self._of(source_id).write(page, run_id, position)

    def position(self, source_id: str) -> Position | None:
        """Return the last position, unless files were removed, or have another size since."""
        return self._of(source_id).position()

    def mark_removed(self, source_id: str, listed_ids: Set[str], max_share: float) -> int:
        """List the records that are not listed, after reading the source's files again."""
        return self._of(source_id).mark_removed(listed_ids, max_share)

    def revert(self, source_id: str, records: Sequence[Record]) -> int:
        """Add the lines of versions again, as the current ones, and return how many were not."""
        return self._of(source_id).revert(records)

    def lacking(self, source_id: str, listed: Mapping[str, datetime]) -> set[str]:
        """Return the ids whose current line is of an earlier time, or missing."""
        return self._of(source_id).lacking(listed)

    def count_records(
        self, source_id: str, after: datetime | None, before: datetime, limit: int
    ) -> int:
        """Return how many records have a current line between two times, at most ``limit``."""
        return self._of(source_id).count_records(after, before, limit)

    def close(self, *, is_clean: bool) -> None:
        """Add what is new to the indexes, also after a failure: it is durable."""
        for each in self._files.values():
            each.close()
        self._files.clear()

    def _of(self, source_id: str) -> SourceFiles:
        if source_id not in self._files:
            self._files[source_id] = SourceFiles(self._folder, self._table, source_id)
        return self._files[source_id]


class JsonlSink(ThreadedSink[JsonlStore]):
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

    _names = _NAME
    _name_rule = "63 at most, and no name of the sink's own"
    _failures = (OSError,)

    def __init__(self, url: str, table: str = "records", keep: Literal["all"] = "all") -> None:
        path = url[len(_SCHEME) :]
        if not url.lower().startswith(_SCHEME) or not path or "\0" in path:
            raise ConfigurationError(
                "The sink's address cannot be used. Write it as jsonl://lines, or as "
                "jsonl:///var/lib/lines for a folder anywhere."
            )
        if keep != "all":
            raise ConfigurationError(
                f"A sink at jsonl:// cannot keep {keep!r}, since it never changes a file. Set keep "
                "to 'all', or use sqlite://."
            )
        super().__init__(url, table, keep)
        self._folder = Path(path)

    def _open(self) -> JsonlStore:
        return JsonlStore(self._folder, self._table)

    def _described(self, error: Exception) -> tuple[str, str, Exception | None]:
        said = error.strerror if isinstance(error, OSError) else None
        return said or str(error), "Repair that, and run again", error
