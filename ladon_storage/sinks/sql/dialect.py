"""The operations in which SQLite, DuckDB and PostgreSQL differ, as the SQL sink uses them.

- These statements run for every page, so they pass its rows directly, without SQLAlchemy's work for
  each row. Statements that are the same for all databases are in `rows` and `tables`.
- Known records are found by one read without locks, and only the rest is written. The writing
  statements repeat the conditions, since another run may have been faster. If a page is likely to
  be all new, the read is omitted.
- A writer of a source's rows waits for other writers of them, so the results of a look-up after
  `Dialect.begin_writing` stay valid.
- A page's rows are written in the order of their ids, so that two runs may wait for each other, but
  never in a deadlock.
"""

from __future__ import annotations

from collections.abc import (
    Container,
    Iterable,
    Iterator,
    Mapping,
    MutableSequence,
    Sequence,
)
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from itertools import islice
from operator import attrgetter
from typing import Any, Literal, Protocol, TypeVar

from sqlalchemy import Connection, CursorResult, Engine

from ladon_storage.collection.records import Record
from ladon_storage.sinks.sql.tables import PRIMARY_KEYS, Keep
from ladon_storage.values import instant_text

T = TypeVar("T")

_BATCH = 10_000
"""The number of ids in one statement."""

WAIT_SECONDS = 30
"""The time limit for a write that waits for another program's lock."""

Rule = Literal["newer", "new", "any"]
"""The rule for replacing a row where one is kept: if it is not newer, never, or always."""

RULES: tuple[Rule, ...] = ("newer", "new", "any")

_CHANGED = ("version", "record_timestamp", "payload", "collected_at")


@dataclass(frozen=True, slots=True)
class Compared:
    """The differences between a page and the table; all other records are known and unchanged.

    Args:
        new: Records whose ids have no row.
        changed: New versions of other ids, or replacements of rows.
        superseded: Records for which there is a later one.
    """

    new: MutableSequence[Record] = field(default_factory=list)
    changed: list[Record] = field(default_factory=list)
    superseded: list[Record] = field(default_factory=list)


class Dialect(Protocol):
    """The operations of one database on one table of records."""

    example: str

    def engine(self) -> Engine:
        """Return an engine whose commits are durable."""
        ...

    def place(self) -> object:
        """Return the identity of the database; another one at the same address has another."""
        ...

    def begin_writing(self, connection: Connection, source_id: str) -> None:
        """Let the transaction write a source's rows, after waiting for other writers."""
        ...

    def begin_schema_change(self, connection: Connection) -> None:
        """Let the transaction create tables, and exclude other transactions from it."""
        ...

    def existing_columns(
        self, connection: Connection, names: Sequence[str]
    ) -> dict[str, dict[str, bool]]:
        """Return the columns of the existing tables, and whether each is in the primary key.

        The trigger by which deletions are noted is among the columns of its table.
        """
        ...

    def compare(
        self,
        connection: Connection,
        source_id: str,
        records: Sequence[Record],
        *,
        are_replaced: bool,
    ) -> Compared:
        """Return the changes of a page; ``are_replaced``: there are replaced versions."""
        ...

    def are_unknown(self, connection: Connection, source_id: str, ids: list[str]) -> bool:
        """Return whether there is no row at all for these ids."""
        ...

    def lacking(
        self, connection: Connection, source_id: str, listed: Mapping[str, datetime]
    ) -> list[str]:
        """Return the ids without a current row of that time or later."""
        ...

    def store(
        self,
        connection: Connection,
        source_id: str,
        records: Sequence[Record],
        now: datetime,
        rule: Rule = "newer",
    ) -> int:
        """Write records, and return how many rows are new or changed."""
        ...

    def set_removed(
        self, connection: Connection, source_id: str, ids: list[str], removed_at: datetime | None
    ) -> int:
        """Mark unmarked records as removed; ``None`` clears the mark of marked ones.

        Returns:
            The number of changed rows.
        """
        ...


@lru_cache(256)  # each sink makes a dozen
def statement(template: str, table: str, keep: Keep, rule: Rule = "newer") -> str:
    """Return a statement about the table, whose name has been checked.

    >>> statement("DELETE FROM {table}", "records", "all")
    'DELETE FROM "records"'
    """
    key = ", ".join(PRIMARY_KEYS[keep])
    changes = ", ".join(f"{name} = excluded.{name}" for name in _CHANGED)
    on_conflict = f"ON CONFLICT ({key}) DO NOTHING"
    if keep == "latest" and rule != "new":
        on_conflict = (
            f"ON CONFLICT ({key}) DO UPDATE SET {changes} "
            "WHERE {table}.version <> excluded.version"
        )
        if rule == "newer":
            on_conflict += " AND {table}.record_timestamp <= excluded.record_timestamp"
    template = template.replace("{on_conflict}", on_conflict).replace(
        "{current}", current_only(keep)
    )
    return template.replace("{table}", f'"{table}"')


def current_only(keep: Keep) -> str:
    """Return the condition for a current row, behind others."""
    return " AND t.replaced_at IS NULL" if keep == "all" else ""


def execute(connection: Connection, asked: str, *rows: Sequence[Any]) -> CursorResult[Any]:
    """Execute a text with a question mark for each value, for one row of values or several.

    An expression would be compiled in every process, for half a millisecond. Instants are passed as
    the database stores them; `aware` reads that.
    """
    dialect = connection.dialect
    passed = [
        tuple(
            instant_text(each) if isinstance(each, datetime) and dialect.name == "sqlite" else each
            for each in row
        )
        for row in rows
    ]
    if dialect.paramstyle != "qmark":
        asked = asked.replace("?", "%s")
    return connection.exec_driver_sql(asked, passed if len(passed) > 1 else passed[0])


def by_id(records: Sequence[Record]) -> list[Record]:
    """Return records in the order in which every sink writes them."""
    return sorted(records, key=attrgetter("record_id"))


def split(compared: Compared, there: Container[str]) -> Compared:
    """Return new records, and new versions of existing ids, separately."""
    new: list[Record] = []
    changed: list[Record] = []
    for record in compared.new:
        (changed if record.record_id in there else new).append(record)
    return Compared(new, changed, compared.superseded)


def batches(items: Iterable[T]) -> Iterator[list[T]]:
    """Yield lists of the size for one statement."""
    remaining = iter(items)
    while batch := list(islice(remaining, _BATCH)):
        yield batch
