"""SQL for two databases: written once where both understand it, and a `Dialect` for the rest.

Statements have ``?`` or ``:name`` in place of values. They do not depend on the type that a
database gives a value of which it sees no more than its place.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from functools import lru_cache
from typing import Any, NamedTuple, Protocol


class Cursor(Protocol):
    """The outcome of one statement."""

    @property
    def rowcount(self) -> int:
        """The rows that it changed."""
        ...

    def fetchall(self) -> list[Any]:
        """Return all rows that are left."""
        ...

    def fetchone(self) -> Any:
        """Return the next row, or ``None``."""
        ...

    def __iter__(self) -> Iterator[Any]:
        """Return the rows that are left, one after another."""
        ...

    def close(self) -> None:
        """End the statement, also before its last row."""
        ...


class Connection(Protocol):
    """A connection of either database, for one thread at a time."""

    def execute(self, query: str, values: Any = (), /) -> Cursor:
        """Run one statement."""
        ...


class Dialect(NamedTuple):
    """What the two databases say differently of the same.

    Args:
        limits: The greatest ages of sources, as a table that is joined by ``source_id``.
        keep_limits: Makes that table ready, and returns the values that it needs.
        matches: Whether a source's name has the text ``:search`` in it, which is folded.
    """

    limits: str
    keep_limits: Callable[[Any, Mapping[str, timedelta]], dict[str, Any]]
    matches: str


_NAMED = re.compile(r":([a-z_]+)")


@lru_cache(maxsize=256)
def statement(query: str) -> str:
    """Return a statement as psycopg takes it.

    >>> statement("SELECT a FROM b WHERE c = ? AND d < :limit")
    'SELECT a FROM b WHERE c = %s AND d < %(limit)s'
    """
    return _NAMED.sub(r"%(\1)s", query).replace("?", "%s")
