"""SQLite for the SQL sink: a write-ahead log that is flushed with every commit."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import orjson
import sqlalchemy.dialects.sqlite  # noqa: F401 - else a run's first write would import it
from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import URL
from sqlalchemy.pool import NullPool

from ladon_storage.collection.records import Columns, Record
from ladon_storage.sinks.sql.dialect import (
    RULES,
    WAIT_SECONDS,
    Compared,
    Rule,
    split,
    statement,
)
from ladon_storage.sinks.sql.files import check_folder, checked_path, place_of
from ladon_storage.sinks.sql.tables import Keep
from ladon_storage.values import instant_text

_POLL_SECONDS = 0.005

_CACHE_KIB = 2**16
"""The memory for pages of the file, where SQLite's own limit is 2 MiB."""

_LOG_PAGES = 40_000
"""Pages of 4 KiB in the write-ahead log that are copied into the file together."""

_FOUND = """
SELECT page.value, t.name, t.pk FROM json_each(?) AS page
CROSS JOIN pragma_table_info(page.value) AS t
UNION ALL SELECT tbl_name, name, 0 FROM sqlite_master
WHERE type = 'trigger' AND name LIKE 'ladon\\_gone\\_%' ESCAPE '\\' AND sql LIKE '%OLD.removed_at%'
"""

# The keys of a look-up are passed as JSON, so that thousands of records are one step of SQLite,
# during which other threads run. An instant without microseconds is shorter in JSON than in the
# table.
_PAGE = """
WITH page AS (
    SELECT key, json_extract(value, '$[0]') AS record_id, json_extract(value, '$[1]') AS version,
    substr(replace(json_extract(value, '$[2]'), '+', '.000000+'), 1, 26) || '+00:00'
    AS record_timestamp, json_extract(value, '$[3]') AS payload
    FROM json_each(?)
)
"""

_INSERT = """
INSERT INTO {table} (source_id, record_id, version, record_timestamp, payload, collected_at)
VALUES {rows} {on_conflict}
"""

# Known records of a page are found by this alone, which costs less than `_COMPARED`.
_NOT_AS_IT_IS = """
SELECT json_group_array(page.key), count(t.version) FROM json_each(?) AS page
LEFT JOIN {table} AS t ON t.source_id = ? AND t.record_id = page.key
WHERE t.version IS NOT page.value
"""

# A record is new (0), changes a row (1) or is superseded (2). The result is that number, plus three
# times the record's index in the page.
_COMPARED = """
{page} SELECT json_group_array(3 * page.key + CASE WHEN t.record_id IS NULL THEN 0
WHEN t.record_timestamp <= page.record_timestamp THEN 1 ELSE 2 END) FROM page
LEFT JOIN {table} AS t ON t.source_id = ? AND t.record_id = page.record_id
WHERE t.version IS NOT page.version
"""

_UNKNOWN = """
{page} SELECT json_group_array(3 * page.key) FROM page
LEFT JOIN {table} AS t
ON t.source_id = ? AND t.record_id = page.record_id AND t.version = page.version
WHERE t.record_id IS NULL
"""

_UNKNOWN_OR_REPLACED = """
{page} SELECT json_group_array(3 * page.key + 2 * (t.record_id IS NOT NULL)) FROM page
LEFT JOIN {table} AS t
ON t.source_id = ? AND t.record_id = page.record_id AND t.version = page.version
WHERE t.record_id IS NULL OR t.replaced_at IS NOT NULL
"""

_THERE = """
SELECT DISTINCT page.value FROM json_each(?) AS page
CROSS JOIN {table} AS t ON t.source_id = ? AND t.record_id = page.value
"""

_LACKING = """
SELECT page.key FROM json_each(?) AS page WHERE NOT EXISTS (
SELECT 1 FROM {table} AS t
WHERE t.source_id = ? AND t.record_id = page.key AND t.record_timestamp >= page.value{current})
"""

_INSERTED_ROWS = 240
"""The number of rows in one statement: with fewer than 999 values, the limit of old releases."""

_COLUMNS = 4
"""The values of a row that differ from those of the others."""

_INSERTED_CHARACTERS = 2**18
"""The number of payload characters that ends a statement; a few copies are in memory."""

_MARK = """
UPDATE {table} SET removed_at = ?
WHERE source_id = ? AND record_id IN (SELECT value FROM json_each(?)) AND removed_at IS NULL
"""

_UNMARK = _MARK.replace("IS NULL", "IS NOT NULL")


class Sqlite:
    """The operations of SQLite on one table of records in a file.

    Args:
        url: Its address.
        table: The name of the table, which is safe to quote.
        keep: The rule for versions in the table.

    Raises:
        ConfigurationError: The address is not that of a file.
    """

    example = "sqlite:///records.db"
    batch_characters = 2**24
    """A page of the index whose ids come in no order is written once more with each commit."""

    def __init__(self, url: URL, table: str, keep: Keep) -> None:
        self._path = checked_path(url, self.example)
        self._url = url
        self._keep = keep
        self._inserts = {rule: statement(_INSERT, table, keep, rule) for rule in RULES}
        self._compared, self._unknown, self._unknown_or_replaced = (
            statement(each.replace("{page}", _PAGE), table, keep)
            for each in (_COMPARED, _UNKNOWN, _UNKNOWN_OR_REPLACED)
        )
        self._mark, self._unmark, self._there, self._lacking, self._not_as_it_is = (
            statement(each, table, keep)
            for each in (_MARK, _UNMARK, _THERE, _LACKING, _NOT_AS_IT_IS)
        )

    def engine(self) -> Engine:
        """Return an engine that opens the file; it creates the file, but not its folder."""
        check_folder(self._path)
        # The engine of a relative path keeps the folder in which it was created.
        return _engine(self._url, None if self._path.is_absolute() else Path.cwd())

    def place(self) -> tuple[int, int] | None:
        """Return the file's inode: a removed file can still be written to while it is open."""
        return place_of(self._path)

    def begin_writing(self, connection: Connection, source_id: str) -> None:
        """Take the file's only lock at once: after a read it could not wait for a writer."""
        self.begin_schema_change(connection)

    def begin_schema_change(self, connection: Connection) -> None:
        """Take the file's only lock."""
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    def existing_columns(
        self, connection: Connection, names: Sequence[str]
    ) -> dict[str, dict[str, bool]]:
        """Query all tables of the file at once."""
        found: dict[str, dict[str, bool]] = {}
        rows = connection.exec_driver_sql(_FOUND, (json.dumps(names),))
        for table, column, is_key in rows.all():
            found.setdefault(table, {})[column] = bool(is_key)
        return found

    def compare(
        self,
        connection: Connection,
        source_id: str,
        records: Sequence[Record],
        *,
        are_replaced: bool,
    ) -> Compared:
        """Let SQLite compare: fetching a row costs more than looking it up."""
        if self._keep == "latest":
            records, are_new = self._without_known(connection, source_id, records)
            if are_new:
                return Compared(new=Columns.of(records))
        page = _json([(each.record_id, each.version, each.timestamp) for each in records])
        asked = self._compared
        if self._keep == "all":
            asked = self._unknown_or_replaced if are_replaced else self._unknown
        found = connection.exec_driver_sql(asked, (page, source_id)).scalar_one()
        kinds: tuple[list[Record], ...] = ([], [], [])
        for number in orjson.loads(found):
            place, kind = divmod(number, 3)
            kinds[kind].append(records[place])
        compared = Compared(*kinds)
        if self._keep == "all" and compared.new:
            ids = [each.record_id for each in compared.new]
            there = self._ids_there(connection, source_id, ids)
            return split(compared, there)
        return compared

    def _without_known(
        self, connection: Connection, source_id: str, records: Sequence[Record]
    ) -> tuple[Sequence[Record], bool]:
        """Return the records, each of another id, that are not there in the same version.

        And whether none of them is there in another one, as when there are none.
        """
        columns = Columns.of(records)
        page = orjson.dumps(dict(zip(columns.ids, columns.versions, strict=True))).decode()
        found, others = connection.exec_driver_sql(self._not_as_it_is, (page, source_id)).one()
        unknown = set(orjson.loads(found))
        places = [at for at, each in enumerate(columns.ids) if each in unknown] if unknown else []
        if len(places) != len(unknown):  # an id that SQLite does not give back as it is
            return records, False
        if others:  # objects, by which the page distinguishes them
            return [records[place] for place in places], False
        return columns if len(places) == len(columns) else columns.at(places), True

    def are_unknown(self, connection: Connection, source_id: str, ids: list[str]) -> bool:
        """Stop at the first existing row."""
        asked = f"SELECT EXISTS ({self._there})"
        found = connection.exec_driver_sql(asked, (orjson.dumps(ids).decode(), source_id))
        return not found.scalar_one()

    def _ids_there(self, connection: Connection, source_id: str, ids: list[str]) -> set[str]:
        arguments = (orjson.dumps(ids).decode(), source_id)
        return {row[0] for row in connection.exec_driver_sql(self._there, arguments)}

    def lacking(
        self, connection: Connection, source_id: str, listed: Mapping[str, datetime]
    ) -> list[str]:
        """Pass ids and times as one JSON object."""
        times = {each: instant_text(at) for each, at in listed.items()}
        page = orjson.dumps(times, option=orjson.OPT_NON_STR_KEYS).decode()  # derived classes
        return [row[0] for row in connection.exec_driver_sql(self._lacking, (page, source_id))]

    def store(
        self,
        connection: Connection,
        source_id: str,
        records: Sequence[Record],
        now: datetime,
        rule: Rule = "newer",
    ) -> int:
        """Pass hundreds of rows at once: a statement for each row costs more, and so does JSON.

        In the order of their ids: thousands of them change each page of the index once.
        """
        insert, written = self._inserts[rule], 0
        columns = Columns.of(records)
        order = sorted(range(len(columns)), key=columns.ids.__getitem__)
        parts = (columns.ids, columns.versions, columns.instants, columns.payloads)
        values: list[Any] = [None] * (_COLUMNS * len(order))
        in_order = itemgetter(*order) if order != list(range(len(order))) else None
        for place, part in enumerate(parts):
            values[place::_COLUMNS] = part if in_order is None else in_order(part)
        beside = [source_id, instant_text(now)]
        statements = _statements(list(map(len, values[_COLUMNS - 1 :: _COLUMNS])))
        # Those of as many rows are executed by one call of SQLAlchemy, which costs as much as rows.
        for count, some in groupby(statements, lambda each: each[1] - each[0]):
            asked = insert.replace("{rows}", _rows(count))
            rows = [(*beside, *values[_COLUMNS * first : _COLUMNS * last]) for first, last in some]
            written += connection.exec_driver_sql(asked, rows).rowcount
        return written

    def set_removed(
        self, connection: Connection, source_id: str, ids: list[str], removed_at: datetime | None
    ) -> int:
        """Pass the ids as one JSON text."""
        at = None if removed_at is None else instant_text(removed_at)
        marking = self._unmark if removed_at is None else self._mark
        return connection.exec_driver_sql(marking, (at, source_id, json.dumps(ids))).rowcount


def _statements(sizes: list[int]) -> Iterator[tuple[int, int]]:
    """Yield the first row of each statement and the one after its last, for payloads of sizes."""
    first, characters = 0, 0
    for after, size in enumerate(sizes, 1):
        characters += size
        if characters >= _INSERTED_CHARACTERS or after - first == _INSERTED_ROWS:
            yield first, after
            first, characters = after, 0
    if first < len(sizes):
        yield first, len(sizes)


@lru_cache(_INSERTED_ROWS)
def _rows(count: int) -> str:
    """Return the placeholders of rows; the first two values are the same in each.

    >>> _rows(2)
    '(?1,?3,?4,?5,?6,?2),(?1,?7,?8,?9,?10,?2)'
    """
    rows = ((4 * row + each for each in (3, 4, 5, 6)) for row in range(count))
    return ",".join(f"(?1,{','.join(f'?{place}' for place in row)},?2)" for row in rows)


def _json(rows: list[Any]) -> str:
    # orjson serialises no subclass of datetime, such as other libraries have, by itself.
    return orjson.dumps(rows, default=instant_text).decode()


@lru_cache  # it holds no connection, only compiled statements
def _engine(url: URL, folder: Path | None) -> Engine:
    # Without an isolation level the driver begins no transaction itself: it would begin too late.
    arguments = {"timeout": WAIT_SECONDS, "isolation_level": None}
    engine = create_engine(url, poolclass=NullPool, hide_parameters=True, connect_args=arguments)
    event.listen(engine, "connect", _prepare)
    return engine


def _prepare(connection: Any, _: object) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            break
        except sqlite3.OperationalError as error:
            # SQLite does not wait here by itself for a process that creates the same file.
            if error.sqlite_errorname != "SQLITE_BUSY" or time.monotonic() > deadline:
                raise
        time.sleep(_POLL_SECONDS)
    connection.execute("PRAGMA synchronous=FULL")
    # Ids in no order change pages all over the index. The more pages of it are in memory, and the
    # more commits change a page before it is copied from the log, the fewer are read and written.
    connection.execute(f"PRAGMA cache_size=-{_CACHE_KIB}")
    connection.execute(f"PRAGMA wal_autocheckpoint={_LOG_PAGES}")
