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
- The settings of an object storage are given, or are in its own environment variables.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal
from urllib.parse import unquote

import pyarrow as pa
from deltalake.exceptions import DeltaError

from ladon_storage.errors import ConfigurationError
from ladon_storage.sinks.delta.object_errors import described, harmless
from ladon_storage.sinks.delta.object_store import Location, check_options
from ladon_storage.sinks.delta.table import OvertakenError
from ladon_storage.sinks.delta.writer import DeltaWriter
from ladon_storage.sinks.threaded import ThreadedSink

SCHEMES = ("delta", "s3", "s3a", "gs", "az", "abfs", "abfss")
_NAME = re.compile(r"[a-z_][a-z0-9_]{0,62}", re.IGNORECASE)


class DeltaSink(ThreadedSink[DeltaWriter]):
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
        options: Settings of the object storage, such as ``AWS_ENDPOINT_URL`` and
            ``AWS_SECRET_ACCESS_KEY``. They go before the environment's variables of these names,
            and are never shown.

    Raises:
        ConfigurationError: An argument is invalid.
    """

    _names = _NAME
    _name_rule = "63 at most"
    _failures = (DeltaError, OSError, UnicodeError, pa.ArrowException)

    def __init__(
        self,
        url: str,
        table: str = "records",
        keep: Literal["latest", "all"] = "latest",
        *,
        options: Mapping[str, str] | None = None,
    ) -> None:
        self._root = _checked_root(url)
        self._options = check_options(url, options, may_hold_secrets=True) if options else {}
        super().__init__(url, table, keep)

    @property
    def _location(self) -> Location:
        return Location(self._root, self._options)

    def _open(self) -> DeltaWriter:
        location = self._location
        location.check()
        return DeltaWriter(location, self._table, self._keep)

    def _described(self, error: Exception) -> tuple[str, str, Exception | None]:
        # Not chained: a storage's error may contain the signature of a request.
        location, text = self._location, str(error)
        if isinstance(error, OvertakenError):
            return text, "Run again when fewer programs write to it", None
        if location.is_remote:
            said, step = described(text, location.secrets)
            return f"{said}{location.at_endpoint}", step, None
        said = f"{type(error).__name__}: {harmless(text)}"
        return said, "Repair the storage, and run again", None


def _checked_root(url: str) -> str:
    """Return the folder, absolute, or the address, if it is valid and contains no password."""
    scheme, found, rest = url.partition("://") if isinstance(url, str) else ("", "", "")
    # A refused address is not repeated: it may contain a password.
    wrong = not found or scheme.lower() not in SCHEMES or "://" in rest
    host = rest.partition("/")[0]
    wrong = wrong or not rest.strip("/") or ":" in host.rpartition("@")[0]
    if not wrong and scheme.lower() == "delta":
        folder = str(Path(rest).absolute())
        if unquote(folder) != folder:
            # Its library lists the folder, and reads the files of the one with the decoded name.
            raise ConfigurationError(
                f"The folder {folder!r} has a name that Delta Lake reads as another one, "
                f"{unquote(folder)!r}. Use a folder without a '%'."
            )
        return folder
    if wrong or not host or any(mark in rest for mark in "?#"):
        raise ConfigurationError(
            "The sink's address cannot be used. Write it as delta://lake, as "
            "delta:///var/lib/lake for a folder anywhere, or as s3://bucket/lake, with "
            "credentials in the environment, a block or secrets."
        )
    return url.rstrip("/")
