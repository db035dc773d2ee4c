"""A large document whose memory is released from its beginning while its records are read."""

from __future__ import annotations

import mmap
from typing import Self

_STEP_BYTES = 2**20


class ReleasingBody(mmap.mmap):
    """The bytes of a document in memory of their own; what was released cannot be read again.

    It has a length, indexes and slices as ``bytes`` have, and is a buffer.
    """

    _released = 0

    @classmethod
    def of(cls, body: bytes) -> Self:
        """Return a copy of a document."""
        # Private: shared memory would stay until all of it is closed.
        made = cls(-1, len(body), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        for first in range(0, len(body), _STEP_BYTES):
            made[first : first + _STEP_BYTES] = body[first : first + _STEP_BYTES]
        return made

    def release(self, end: int) -> None:
        """Give the memory before a position back to the system."""
        end -= end % mmap.PAGESIZE
        if end - self._released >= _STEP_BYTES:
            self.madvise(mmap.MADV_DONTNEED, self._released, end - self._released)
            self._released = end

    def check(self, start: int) -> None:
        """Refuse to read from a position that was released.

        Raises:
            RuntimeError: It was.
        """
        if start < self._released:
            raise RuntimeError("the records of this document were read, and are not kept")
