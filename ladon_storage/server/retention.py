"""How much history a database keeps, that of a service and that of a run without one.

- A line of history goes when its source has more than enough of them, or when it is old. Its space
  in the file is used again.
- A run that renews its lease writes a line each time. Of these the first stays, which says when the
  run began.
- What an operator did stays: resets and deletions, with their reasons. So does the line of the
  stored watermark, whose number is its version.
- Lines go in batches, each in a transaction of its own: a write waits for one batch at most.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import NamedTuple

from ladon_storage.server.dialect import Connection
from ladon_storage.server.rows import to_microseconds

BATCH = 1000
"""The most lines that one transaction deletes."""


RENEWALS_AGE = timedelta(hours=1)
"""How long the lines of renewals are kept."""


class Retention(NamedTuple):
    """The bounds of the history.

    Args:
        age: How long a line is kept.
        changes: How many lines of one source are kept.
    """

    age: timedelta = timedelta(days=400)
    changes: int = 1000


Rule = Callable[[Connection, int], list[int]]
"""A rule that returns a batch of lines to delete, by their numbers, after a number; empty: none."""


def rules(retention: Retention, now: datetime) -> tuple[Rule, ...]:
    """Return the rules by which lines are beyond the bounds.

    Each reads much of the history, so it belongs to a thread of its own.
    """
    oldest = datetime.min.replace(tzinfo=UTC)
    return (
        partial(_renewals, before=now - RENEWALS_AGE),
        partial(_old, before=now - min(retention.age, now - oldest)),
        partial(_many, kept=retention.changes),
    )


def delete_lines(connection: Connection, versions: Sequence[int]) -> None:
    """Delete lines by their numbers, but none that has become the stored watermark's."""
    chosen = ", ".join(str(int(version)) for version in versions)
    connection.execute(
        f"DELETE FROM history WHERE version IN ({chosen}) "  # noqa: S608 - numbers
        "AND NOT EXISTS (SELECT 1 FROM watermarks WHERE watermarks.source_id = history.source_id "
        "AND watermarks.version = history.version)"
    )


def _renewals(connection: Connection, after: int, *, before: datetime) -> list[int]:
    return _chosen(
        connection,
        "version > ? AND at < ? AND status = 'running' AND (run_id, 'running') = ("
        "SELECT run_id, status FROM history AS earlier "
        "WHERE earlier.source_id = history.source_id AND earlier.version < history.version "
        "ORDER BY earlier.version DESC LIMIT 1)",
        (after, to_microseconds(before)),
    )


def _old(connection: Connection, after: int, *, before: datetime) -> list[int]:
    # By the number: lines are written in the order of time, so only old ones are read.
    first = connection.execute(
        "SELECT version FROM history WHERE at >= ? ORDER BY version LIMIT 1",
        (to_microseconds(before),),
    ).fetchone()
    return _chosen(
        connection, "version > ? AND version < ?", (after, first[0] if first else 2**63 - 1)
    )


def _many(connection: Connection, _: int, *, kept: int) -> list[int]:
    found: list[int] = []
    for (source_id,) in connection.execute(
        "SELECT source_id FROM history GROUP BY source_id HAVING count(*) > ?", (kept,)
    ).fetchall():
        [(newest,)] = connection.execute(
            "SELECT version FROM history WHERE source_id = ? ORDER BY version DESC "
            "LIMIT 1 OFFSET ?",
            (source_id, kept - 1),
        ).fetchall()
        # A batch is of many sources: for each one alone, the query above would be made again.
        found += _chosen(connection, "source_id = ? AND version < ?", (source_id, newest))
        if len(found) >= BATCH:
            break
    return found[:BATCH]


def _chosen(connection: Connection, where: str, values: tuple[object, ...]) -> list[int]:
    query = (
        f"SELECT version FROM history WHERE {where} "  # noqa: S608 - constants
        "AND action = 'put' AND version <> coalesce(("
        "SELECT version FROM watermarks WHERE watermarks.source_id = history.source_id), 0) "
        "ORDER BY version LIMIT ?"
    )
    return [version for (version,) in connection.execute(query, (*values, BATCH)).fetchall()]
