"""What a SQL sink asks of its kind of database, where SQLite and PostgreSQL differ.

- These statements run for every page, so they pass its rows as they are, around SQLAlchemy's work
  for each row. What runs once for a run or a page is in `sql` and `sql_tables`, for both kinds.
- What is known already is found by one read that locks nothing, and only the rest is written. The
  statements that write repeat the conditions: another run may have been faster, and where all is
  new the read is left out.
- Whoever writes to a source's rows waits for others that do, so that what is looked up behind
  `Dialect.begin_writing` stays so.
- A page's rows are written in the order of their ids: two runs wait for each other, and never in a
  circle.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import islice
from operator import attrgetter
from typing import Any, Literal, Protocol, TypeVar

from sqlalchemy import Connection, Engine

from ladon_storage.collection.records import Record
from ladon_storage.sinks.sql.tables import PRIMARY_KEYS, Keep

T = TypeVar("T")

_BATCH = 10_000
"""Ids of one statement."""

WAIT_SECONDS = 30
"""How long a write waits for another program that holds what it needs."""

Rule = Literal["newer", "new", "any"]
"""What replaces a row where one is kept: what is not older, nothing, or whatever it is."""

RULES: tuple[Rule, ...] = ("newer", "new", "any")

_CHANGED = ("version", "record_timestamp", "payload", "collected_at")


@dataclass(frozen=True, slots=True)
class Compared:
    """What a page's records would change: all that is not in it is known as it is.

    Args:
        new: Records of whose ids there is nothing.
        changed: Versions that are new of other ids, or replace what there is.
        superseded: What there is something later of.
    """

    new: list[Record] = field(default_factory=list)
    changed: list[Record] = field(default_factory=list)
    superseded: list[Record] = field(default_factory=list)


class Dialect(Protocol):
    """Speak to one kind of database about one table of records."""

    example: str
    insert: Callable[..., Any]
    """SQLAlchemy's ``INSERT`` of this kind, which knows ``ON CONFLICT``."""

    def engine(self) -> Engine:
        """Return what opens connections on which a commit is durable."""
        ...

    def place(self) -> object:
        """Return what another database at the same address would have another one of."""
        ...

    def begin_writing(self, connection: Connection, source_id: str) -> None:
        """Let the transaction write a source's rows, waiting for others that do."""
        ...

    def begin_schema_change(self, connection: Connection) -> None:
        """Let the transaction make tables, and keep others from doing so."""
        ...

    def existing_columns(
        self, connection: Connection, names: Sequence[str]
    ) -> dict[str, dict[str, bool]]:
        """Return the columns of those tables that there are, and whether each is in the key.

        The trigger by which deletions are noted is among the columns of its table.
        """
        ...

    def compare(
        self,
        connection: Connection,
        source_id: str,
        records: list[Record],
        *,
        are_replaced: bool,
    ) -> Compared:
        """Return what records would change; ``are_replaced``: there are replaced versions."""
        ...

    def are_unknown(self, connection: Connection, source_id: str, ids: list[str]) -> bool:
        """Tell whether there is no row at all of these ids."""
        ...

    def lacking(
        self, connection: Connection, source_id: str, listed: Mapping[str, datetime]
    ) -> list[str]:
        """Return the ids of which there is no row of that time or later."""
        ...

    def store(
        self,
        connection: Connection,
        source_id: str,
        records: list[Record],
        now: datetime,
        rule: Rule = "newer",
    ) -> int:
        """Write records, and return how many rows are new or changed."""
        ...

    def set_removed(
        self, connection: Connection, source_id: str, ids: list[str], removed_at: datetime | None
    ) -> int:
        """Mark records that have no mark; ``None`` takes it from those that have one.

        Returns:
            How many rows that changed.
        """
        ...


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
    return template.replace("{on_conflict}", on_conflict).replace("{table}", f'"{table}"')


def by_id(records: list[Record]) -> list[Record]:
    """Return records in the order in which every sink writes them."""
    return sorted(records, key=attrgetter("record_id"))


def split(compared: Compared, there: Container[str]) -> Compared:
    """Tell new records from new versions of ids that are there."""
    new: list[Record] = []
    changed: list[Record] = []
    for record in compared.new:
        (changed if record.record_id in there else new).append(record)
    return Compared(new, changed, compared.superseded)


def batches(items: Iterable[T]) -> Iterator[list[T]]:
    """Yield lists of as many as one statement takes."""
    remaining = iter(items)
    while batch := list(islice(remaining, _BATCH)):
        yield batch
