"""The tables of a SQL sink, and the statements that are the same for all databases."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property, lru_cache
from typing import Any, Literal

from sqlalchemy import (
    JSON,
    Boolean,
    Column,
    DateTime,
    Dialect,
    Index,
    Integer,
    MetaData,
    Select,
    Table,
    Text,
    TypeDecorator,
    Update,
    bindparam,
    func,
    select,
    update,
)
from sqlalchemy.types import TypeEngine

from ladon_storage.values import instant_text

Keep = Literal["latest", "all"]

PRIMARY_KEYS: dict[Keep, tuple[str, ...]] = {
    "latest": ("source_id", "record_id"),
    "all": ("source_id", "record_id", "version"),
}


class Instant(TypeDecorator[datetime]):
    """An aware datetime: a ``timestamptz``, or `instant_text` if there is no such type."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """Return the type for the database."""
        return dialect.type_descriptor(
            Text() if dialect.name == "sqlite" else DateTime(timezone=True)
        )

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> Any:
        """Return the stored form."""
        return instant_text(value) if value and dialect.name == "sqlite" else value

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:
        """Return the value of the stored form."""
        return None if value is None else aware(value)


def aware(instant: datetime | str) -> datetime:
    """Return a database's time as an aware datetime: its owner may have dropped the time zone."""
    if isinstance(instant, str):
        instant = datetime.fromisoformat(instant)
    return instant.replace(tzinfo=UTC) if instant.tzinfo is None else instant.astimezone(UTC)


@dataclass(frozen=True)
class Tables:
    """The tables of one sink: records, quarantine, positions and metadata."""

    records: Table
    quarantine: Table
    positions: Table
    deleted: Table
    meta: Table
    keep: Keep

    @classmethod
    @lru_cache  # describing them takes longer than opening the database
    def of(cls, name: str, keep: Keep) -> Tables:
        """Return the tables of the sink with this name; the last three are shared by all sinks."""
        metadata = MetaData()
        quarantine = Table(
            f"{name}_quarantine",
            metadata,
            _key("source_id"),
            _key("digest"),
            *(Column(each, Text, nullable=False) for each in ("run_id", "reason", "raw")),
            Column("quarantined_at", Instant, nullable=False),
        )
        positions = Table(
            "ladon_positions",
            metadata,
            _key("table_name"),
            _key("source_id"),
            Column("timestamp", Instant, nullable=False),
            Column("watermark", Instant),
            Column("origin", Instant),
            Column("run_id", Text),
            Column("document", Text),
            Column("order_shown", Boolean),
        )
        deleted = Table(
            "ladon_deleted",
            metadata,
            *(_key(each) for each in ("table_name", "source_id", "record_id", "version")),
            Column("record_timestamp", Instant, nullable=False),
            Column("deleted_at", Instant, nullable=False),
            Column("replaced_at", Instant),
        )
        meta = Table(
            "ladon_meta", metadata, _key("table_name"), Column("version", Integer, nullable=False)
        )
        return cls(_records(metadata, name, keep), quarantine, positions, deleted, meta, keep)

    @property
    def all(self) -> tuple[Table, ...]:
        """Return every table."""
        return self.records, self.quarantine, self.positions, self.deleted, self.meta

    # Made once, each of these statements is compiled once.

    @cached_property
    def current(self) -> Select[Any]:
        """The current versions of the ``ids`` of a ``source_id``, where all are kept."""
        records = self.records.c
        return select(records.record_id, records.version, records.record_timestamp).where(
            records.source_id == bindparam("source_id"),
            records.record_id.in_(bindparam("ids", expanding=True)),
            records.replaced_at.is_(None),
        )

    @cached_property
    def versions(self) -> Select[Any]:
        """Every version of the ``ids`` of a ``source_id``, where all are kept."""
        records = self.records.c
        return select(
            records.record_id, records.version, records.collected_at, records.replaced_at
        ).where(
            records.source_id == bindparam("source_id"),
            records.record_id.in_(bindparam("ids", expanding=True)),
        )

    @cached_property
    def replacing(self) -> Update:
        """The update of the time since which a version is not current, or of its absence."""
        records = self.records.c
        return (
            update(self.records)
            .where(
                records.source_id == bindparam("of_source"),
                records.record_id == bindparam("of_record"),
                records.version == bindparam("of_version"),
            )
            .values(replaced_at=bindparam("at"))
        )

    @cached_property
    def gone(self) -> Select[Any]:
        """The deleted versions of the ``ids`` of a ``source_id``, the latest deletion last."""
        deleted = self.deleted.c
        return (
            select(
                deleted.record_id, deleted.version, deleted.record_timestamp, deleted.replaced_at
            )
            .where(
                deleted.table_name == self.records.name,
                deleted.source_id == bindparam("source_id"),
                deleted.record_id.in_(bindparam("ids", expanding=True)),
            )
            .order_by(deleted.deleted_at)
        )

    @cached_property
    def removed_flags(self) -> Select[Any]:
        """Every id of a ``source_id``, and whether it is marked as removed."""
        records = self.records.c
        ids = select(records.record_id, records.removed_at.is_not(None))
        ids = ids.where(records.source_id == bindparam("source_id"))
        return ids.distinct() if self.keep == "all" else ids

    def between(
        self, source_id: str, after: datetime | None, before: datetime, limit: int
    ) -> Select[Any]:
        """Return the number of current, unmarked records between two times, at most ``limit``."""
        records = self.records.c
        found = select(records.record_id).where(
            records.source_id == source_id,
            records.record_timestamp < before,
            records.removed_at.is_(None),
        )
        if after is not None:
            found = found.where(records.record_timestamp > after)
        if self.keep == "all":
            found = found.where(records.replaced_at.is_(None))
        return select(func.count()).select_from(found.limit(limit).subquery())


def _records(metadata: MetaData, name: str, keep: Keep) -> Table:
    records = Table(
        name,
        metadata,
        *(_key(each) for each in PRIMARY_KEYS[keep]),
        *([] if "version" in PRIMARY_KEYS[keep] else [Column("version", Text, nullable=False)]),
        Column("record_timestamp", Instant, nullable=False),
        # Not jsonb: it reorders keys, rewrites numbers and refuses \u0000. json keeps the source's
        # text, and supports the same operators.
        Column("payload", Text().with_variant(JSON(), "postgresql"), nullable=False),
        Column("collected_at", Instant, nullable=False),
        Column("removed_at", Instant),
        *([Column("replaced_at", Instant)] if keep == "all" else []),
    )
    for column in ("removed_at", "replaced_at"):
        if column in records.c:
            Index(
                f"{name}_{column.removesuffix('_at')}",
                records.c.source_id,
                records.c.record_id,
                # Not `postgresql_where`: it would import that dialect for SQLite, too.
                info={"where": records.c[column].is_not(None)},
            )
    return records


def _key(name: str) -> Column[str]:
    return Column(name, Text, primary_key=True, nullable=False)
