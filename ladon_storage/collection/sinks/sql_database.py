"""What a SQL sink asks of its kind of database, where SQLite and PostgreSQL differ.

- These statements run for every page, so they pass its rows as they are, around SQLAlchemy's work
  for each row. What runs once for a run or a page is in `sql` and `sql_tables`, for both kinds.
- What is known already is found by one read that locks nothing, and only the rest is written. The
  statements that write repeat the conditions: another run may have been faster, and where all is
  new the read is left out.
- A page's rows are written in the order of their ids: two runs wait for each other, and never in a
  circle.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, Protocol

from sqlalchemy import Connection, Engine

from ladon_storage.collection.records import Record
from ladon_storage.collection.sinks.sql_tables import KEYS, Keep

WAIT_SECONDS = 30
"""How long a write waits for another program that holds what it needs."""

_CHANGED = ("version", "record_timestamp", "payload", "collected_at")


class Database(Protocol):
    """Speak to one kind of database about one table of records."""

    example: str
    insert: Callable[..., Any]
    """SQLAlchemy's ``INSERT`` of this kind, which knows ``ON CONFLICT``."""

    def engine(self) -> Engine:
        """Return what opens connections on which a commit is durable."""
        ...

    def begin_writing(self, connection: Connection) -> None:
        """Let the transaction write, waiting for others that do."""
        ...

    def begin_making(self, connection: Connection) -> None:
        """Let the transaction make tables, and keep others from doing so."""
        ...

    def found(self, connection: Connection, names: Sequence[str]) -> dict[str, dict[str, bool]]:
        """Return the columns of those tables that there are, and whether each is in the key."""
        ...

    def unknown(
        self, connection: Connection, source_id: str, records: list[Record]
    ) -> list[Record]:
        """Return the records that would change the table."""
        ...

    def store(
        self, connection: Connection, source_id: str, records: list[Record], now: datetime
    ) -> int:
        """Write records, and return how many rows are new or changed."""
        ...

    def mark(
        self, connection: Connection, source_id: str, ids: list[str], removed_at: datetime | None
    ) -> None:
        """Mark records that have no mark; ``None`` takes it from those that have one."""
        ...


def statement(template: str, table: str, keep: Keep) -> str:
    """Return a statement about the table, whose name has been checked.

    >>> statement("DELETE FROM {table}", "records", "all")
    'DELETE FROM "records"'
    """
    key = ", ".join(KEYS[keep])
    changes = ", ".join(f"{name} = excluded.{name}" for name in _CHANGED)
    on_conflict = f"ON CONFLICT ({key}) DO NOTHING"
    if keep == "latest":
        on_conflict = (
            f"ON CONFLICT ({key}) DO UPDATE SET {changes} "
            "WHERE {table}.version <> excluded.version "
            "AND {table}.record_timestamp <= excluded.record_timestamp"
        )
    return template.replace("{on_conflict}", on_conflict).replace("{table}", f'"{table}"')


def by_id(records: list[Record]) -> list[Record]:
    """Return records in the order in which every sink writes them."""
    return sorted(records, key=lambda record: record.record_id)
