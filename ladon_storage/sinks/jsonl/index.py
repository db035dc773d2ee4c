"""The index of the lines in a folder's files: a database beside them, which saves reading them all.

- It says nothing that the files do not say: it may be deleted at any time, and is made again.
- It is used only while each file that it covers is there with the same size and time of change.
  Otherwise it is discarded, and the files are read.
- A transaction adds lines together with the files that they are from: a crash leaves both or
  neither. A file that it does not cover is read.
- A new index has a new name: the journal of a killed process belongs to the database of its name.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from itertools import islice
from pathlib import Path
from secrets import token_hex
from typing import NamedTuple

import orjson

_NAME = ".index-"
_VERSION = 1
_SORTED = 2**16
"""The lines that are added in the order of the table, which is many times faster than in theirs."""

_RECENT = 2**15
"""The lines that may be apart from the others: a few lines among a million are on a page each."""

_CREATE = f"""
CREATE TABLE files (name TEXT PRIMARY KEY, size INTEGER, changed INTEGER) WITHOUT ROWID;
CREATE TABLE lines (id TEXT, key BLOB, rank BLOB, PRIMARY KEY (id, key)) WITHOUT ROWID;
CREATE TABLE recent (id TEXT, key BLOB, rank BLOB, PRIMARY KEY (id, key)) WITHOUT ROWID;
PRAGMA user_version = {_VERSION};
"""
_FIND = """
SELECT {table}.id, {table}.key, {table}.rank
FROM json_each(?) AS asked CROSS JOIN {table} ON {table}.id = asked.value
"""
_ADD = """
INSERT INTO {table} {rows} ON CONFLICT DO UPDATE SET rank = excluded.rank
WHERE excluded.rank > rank
"""
_TABLES = ("lines", "recent")
_ALL = "SELECT * FROM lines UNION ALL SELECT * FROM recent ORDER BY id"


class Line(NamedTuple):
    """A line of a file.

    Args:
        id: The id of its record.
        key: The digest that identifies it.
        rank: The sort key by which it is current among those of its id; empty: it is not.
    """

    id: str
    key: bytes
    rank: bytes


class Stamp(NamedTuple):
    """The size of a file, and when it was last changed, in nanoseconds."""

    size: int
    changed: int

    @classmethod
    def of(cls, found: os.stat_result) -> Stamp:
        """Return the stamp of a file's status."""
        # Not the time of modification, which a program can set.
        return cls(found.st_size, found.st_ctime_ns)


class LineIndex:
    """The known lines of some files of a folder, for one thread that holds the folder's lock.

    Args:
        folder: The folder, which need not be there.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._database: sqlite3.Connection | None = None

    @property
    def is_open(self) -> bool:
        """Whether there are lines to be found."""
        return self._database is not None

    def open(self, files: Mapping[str, Stamp]) -> dict[str, Stamp]:
        """Return those of the folder's files that are covered; none if one of these has changed."""
        self.close()
        paths = sorted(self._folder.glob(f"{_NAME}*.db"))
        if not paths:
            return {}
        try:
            self._database = sqlite3.connect(paths[0], isolation_level=None)
            [version] = self._database.execute("PRAGMA user_version").fetchone()
            [page] = self._database.execute("PRAGMA page_size").fetchone()
            if paths[0].stat().st_size % page:  # SQLite takes what is missing of a page for zeros
                raise sqlite3.DatabaseError("torn")
            rows = self._database.execute("SELECT * FROM files") if version == _VERSION else ()
            covered = {name: Stamp(size, changed) for name, size, changed in rows}
        except sqlite3.Error:
            covered = {}
        if not covered or len(paths) > 1 or not covered.items() <= files.items():
            self.discard()
            return {}
        return covered

    def find(self, ids: Iterable[str]) -> list[Line]:
        """Return the lines of some ids.

        Raises:
            sqlite3.Error: The index is damaged.
        """
        if self._database is None:
            return []
        asked = (orjson.dumps(sorted(ids)).decode(),)
        return [
            Line(*row)
            for table in _TABLES
            for row in self._database.execute(_FIND.format(table=table), asked)
        ]

    def lines(self) -> Iterator[Line]:
        """Yield all lines, by their ids.

        Raises:
            sqlite3.Error: The index is damaged.
        """
        if self._database is not None:
            yield from map(Line._make, self._database.execute(_ALL))

    def add(self, lines: Iterable[Line], files: Mapping[str, Stamp]) -> bool:
        """Cover further files, and return whether they are; ``lines`` are those of all of them."""
        try:
            if self._database is None:
                if any(self._folder.glob(f"{_NAME}*")):  # of a run beside this one
                    return False
                path = self._folder / f"{_NAME}{token_hex(8)}.db"
                self._database = sqlite3.connect(path, isolation_level=None)
                self._database.executescript(_CREATE)
            with self._database:
                self._database.execute("BEGIN IMMEDIATE")
                self._add(self._database, iter(lines))
                stamps = [(name, *stamp) for name, stamp in files.items()]
                self._database.executemany("INSERT OR REPLACE INTO files VALUES (?, ?, ?)", stamps)
        except (sqlite3.Error, UnicodeError, TypeError):  # or an id that no sink wrote
            self.discard()
            return False
        return True

    def _add(self, database: sqlite3.Connection, lines: Iterator[Line]) -> None:
        while some := sorted(islice(lines, _SORTED)):
            table = "lines" if len(some) > _RECENT else "recent"
            database.executemany(_ADD.format(table=table, rows="VALUES (?, ?, ?)"), some)
        [recent] = database.execute("SELECT count(*) FROM recent").fetchone()
        if recent > _RECENT:
            rows = "SELECT * FROM recent WHERE true ORDER BY id, key"
            database.execute(_ADD.format(table="lines", rows=rows))
            database.execute("DELETE FROM recent")

    def discard(self) -> None:
        """Remove the index."""
        self.close()
        for left in self._folder.glob(f"{_NAME}*"):
            left.unlink(missing_ok=True)

    def close(self) -> None:
        """Close the database."""
        database, self._database = self._database, None
        if database is not None:
            with suppress(sqlite3.Error):
                database.close()
