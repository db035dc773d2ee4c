"""The open storage of a SQL sink: its connection, its tables, and where its file is.

A change counts only if it is where the next run looks: a database file that was moved, removed or
replaced meanwhile fails the run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from datetime import datetime
from typing import TypeVar

from ladon_storage.collection.protocols import Position, WriteResult
from ladon_storage.collection.records import Page, Record
from ladon_storage.sinks.sql.dialect import Dialect
from ladon_storage.sinks.sql.files import taken_away
from ladon_storage.sinks.sql.rows import Rows
from ladon_storage.sinks.sql.schema import create_or_migrate, is_current
from ladon_storage.sinks.sql.tables import Tables

T = TypeVar("T")


class SqlStore:
    """The tables of a sink, created or migrated if needed, on one connection.

    Args:
        database: The kind of database.
        tables: The sink's tables.
        shown: The address without its password.
    """

    def __init__(self, database: Dialect, tables: Tables, shown: str) -> None:
        self._database = database
        self._tables = tables
        self._shown = shown
        self.connection = database.engine().connect()
        try:
            self._make()
            self._place = database.place()
        except BaseException:
            self.connection.close()
            raise
        self._rows = Rows(database, tables, self.connection)

    def write(
        self, source_id: str, page: Page, run_id: str, position: Position | None
    ) -> WriteResult:
        """Make a page durable in one transaction, and return the changes."""
        return self._changed(lambda: self._rows.write(source_id, page, run_id, position))

    def position(self, source_id: str) -> Position | None:
        """Return the last position that was written."""
        return self._rows.position(source_id)

    def mark_removed(self, source_id: str, listed_ids: Set[str], max_share: float) -> int:
        """Mark the records that are not listed, and return how many are new there."""
        return self._changed(lambda: self._rows.mark_removed(source_id, listed_ids, max_share))

    def revert(self, source_id: str, records: Sequence[Record]) -> int:
        """Make versions the current ones, and return how many were not current."""
        return self._changed(lambda: self._rows.revert(source_id, records))

    def lacking(self, source_id: str, listed: Mapping[str, datetime]) -> set[str]:
        """Return the ids without a record of a time or later.

        A record that was deleted is lacking once its source lists a later time.
        """
        return self._rows.lacking(source_id, listed)

    def count_records(
        self, source_id: str, after: datetime | None, before: datetime, limit: int
    ) -> int:
        """Return how many records have a current version between two times, at most ``limit``."""
        return self._rows.count_records(source_id, after, before, limit)

    def close(self, *, is_clean: bool) -> None:
        """Close the connection."""
        self.connection.close()

    def _make(self) -> None:
        connection, names = self.connection, [table.name for table in self._tables.all]
        with connection.begin():
            found = self._database.existing_columns(connection, names)
            if is_current(connection, self._tables, found, self._shown):
                return
            self._database.begin_schema_change(connection)
            # Again: the missing tables may have been created while this waited.
            found = self._database.existing_columns(connection, names)
            create_or_migrate(connection, self._tables, found, self._shown)

    def _changed(self, change: Callable[[], T]) -> T:
        """Change rows, and return when the change is durable where the next run looks for it."""
        result = change()
        if self._database.place() != self._place:
            raise taken_away(self._shown)
        return result
