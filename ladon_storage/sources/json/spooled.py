"""A large document in a file without a name, of which only the part that is read is in memory."""

from __future__ import annotations

import os
import weakref
from tempfile import TemporaryFile
from typing import IO, overload

_STEP_BYTES = 2**20


class SpooledBody:
    """The bytes of a document, in the system's folder for temporary files.

    It has a length, indexes and slices as ``bytes`` have. The file goes with it.

    Args:
        file: The open file.
        size: The number of its bytes.
    """

    def __init__(self, file: IO[bytes], size: int) -> None:
        self._file = file
        self._size = size
        weakref.finalize(self, file.close)

    @classmethod
    def of(cls, body: bytes) -> SpooledBody | bytes:
        """Return a document in a file; where none can be written, it stays in memory."""
        try:
            file = TemporaryFile()  # noqa: SIM115 - it goes with the body
            for first in range(0, len(body), _STEP_BYTES):
                file.write(body[first : first + _STEP_BYTES])
            file.flush()
        except OSError:
            return body
        return cls(file, len(body))

    def __len__(self) -> int:
        return self._size

    def __bytes__(self) -> bytes:
        return self[:]

    @overload
    def __getitem__(self, place: int) -> int: ...
    @overload
    def __getitem__(self, place: slice) -> bytes: ...
    def __getitem__(self, place: int | slice) -> int | bytes:
        """Return a byte, or a range of them without steps."""
        if isinstance(place, int):
            return self[place : place + 1][0]
        first, end, _ = place.indices(self._size)
        found = b""
        while first + len(found) < end:
            more = os.pread(self._file.fileno(), end - first - len(found), first + len(found))
            if not more:
                raise OSError(f"a temporary file lost bytes of a document of {self._size}")
            found = found + more if found else more
        return found
