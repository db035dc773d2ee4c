"""What a store asks of its database: the seam between SQLite and PostgreSQL.

- A write is one transaction: the watermark, its line of history, and the rule that judges both by
  what is stored. It is durable when it returns.
- What differs in SQL besides is a `Dialect`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

from ladon_storage.server.access import Token
from ladon_storage.server.changes import Note, Write, Written
from ladon_storage.server.dialect import Dialect

T = TypeVar("T")
Row = tuple[Any, ...]


class Backend(Protocol):
    """The database of one store.

    Every method raises ``DatabaseError`` when the database fails.
    """

    @property
    def dialect(self) -> Dialect:
        """What it says differently."""
        ...

    @property
    def lost_changes(self) -> int:
        """The acknowledged changes that the database was found to lack."""
        ...

    async def read(self, source_id: str) -> Row | None:
        """Return the row of a source's watermark."""
        ...

    async def write(self, write: Write, note: Note) -> Written:
        """Store a change durably, or raise the rule's refusal.

        Cancelling the caller does not revert the change.
        """
        ...

    async def scan(self, read: Callable[[Any], T], *, prunes: bool = False) -> T:
        """Return what a function reads over a `Connection`, in another thread.

        Args:
            read: The function.
            prunes: Whether it looks for lines to delete, which may take long.
        """
        ...

    async def delete_lines(self, versions: Sequence[int]) -> None:
        """Delete lines of history by their numbers."""
        ...

    async def check(self, at: int) -> None:
        """Read, and make a write durable, as the next request may need to."""
        ...

    def find_token(self, digest: bytes) -> Token | None:
        """Return the stored token of a digest, if there is one."""
        ...

    def has_tokens(self) -> bool:
        """Return whether any token is stored."""
        ...

    async def close(self) -> None:
        """Finish the writes that wait, and close the database."""
        ...
