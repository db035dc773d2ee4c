"""How much history the service keeps.

- A line of history goes when its source has more than enough of them, or when it is old. Its space
  in the file is used again.
- What an operator did stays: resets and deletions, with their reasons. So does the line of the
  stored watermark, whose number is its version.
- Lines go in batches, each in a transaction of its own: a write waits for one batch at most.
"""

from __future__ import annotations

import sqlite3
from datetime import datetime, timedelta
from typing import NamedTuple

from ladon_storage.server.rows import to_microseconds

BATCH = 1000
"""The most lines that one transaction deletes."""


class Retention(NamedTuple):
    """The bounds of the history.

    Args:
        age: How long a line is kept.
        changes: How many lines of one source are kept.
    """

    age: timedelta = timedelta(days=400)
    changes: int = 1000


def prune(connection: sqlite3.Connection, retention: Retention, now: datetime) -> int:
    """Delete a batch of lines beyond the bounds; return how many went, ``0`` when none is left."""
    return _prune_old(connection, now - retention.age) or _prune_many(connection, retention.changes)


def _prune_old(connection: sqlite3.Connection, before: datetime) -> int:
    # By the number: lines are written in the order of time, so only old ones are read.
    first = connection.execute(
        "SELECT version FROM history WHERE at >= ? ORDER BY version LIMIT 1",
        (to_microseconds(before),),
    ).fetchone()
    return _delete(connection, "version < ?", (first[0] if first else 2**63 - 1,))


def _prune_many(connection: sqlite3.Connection, kept: int) -> int:
    for (source_id,) in connection.execute(
        "SELECT source_id FROM history GROUP BY source_id HAVING count(*) > ?", (kept,)
    ).fetchall():
        [(newest,)] = connection.execute(
            "SELECT version FROM history WHERE source_id = ? ORDER BY version DESC "
            "LIMIT 1 OFFSET ?",
            (source_id, kept - 1),
        ).fetchall()
        if gone := _delete(connection, "source_id = ? AND version < ?", (source_id, newest)):
            return gone
    return 0


def _delete(connection: sqlite3.Connection, where: str, values: tuple[object, ...]) -> int:
    found = (
        f"SELECT version FROM history WHERE {where} AND action = 'put' "  # noqa: S608 - constants
        "AND version NOT IN (SELECT version FROM watermarks) ORDER BY version LIMIT ?"
    )
    query = f"DELETE FROM history WHERE version IN ({found})"  # noqa: S608 - a constant
    return connection.execute(query, (*values, BATCH)).rowcount
