"""The content of a ZIP file that is served as it is, with the one member that a dump has.

- Its directory is at its end, so it is kept packed until then: no part of a cut file is content.
- A step returns as much as one of `decompression`, and no directory is read that fills the memory.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator

FIRST_BYTES = (b"PK\x03\x04", b"PK\x05\x06")
"""The bytes with which a ZIP file begins; the second are those of one without members."""

_MOST_AT_ONCE = 2**20
_IS_ENCRYPTED = 0x1
_METHODS = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}
"""The methods whose steps are bounded, which are those of nearly all ZIP files."""


class ZipFileError(ValueError):
    """Raised when a ZIP file was cut, or is not one that has one readable member."""


class ZipFileContent:
    """The content of a ZIP file that arrives in parts.

    >>> file = io.BytesIO()
    >>> with zipfile.ZipFile(file, "w") as archive:
    ...     archive.writestr("feed.json", "[1]")
    >>> content = ZipFileContent()
    >>> content.add(file.getvalue())
    >>> list(content.steps(2))
    [b'[1', b']']
    """

    def __init__(self) -> None:
        self._packed = _Packed()

    def add(self, data: bytes) -> None:
        """Add the next bytes of the file."""
        self._packed.write(data)

    def steps(self, size: int) -> Iterator[bytes]:
        """Yield the content of the only member, at most ``size`` bytes at once.

        Raises:
            ZipFileError: There is no such member, or its content is not what the file states.
        """
        try:
            with self._opened() as archive, archive.open(_only(archive.infolist())) as member:
                while found := member.read(size):
                    yield found
        except ZipFileError:
            raise
        except Exception as error:  # zlib has errors of its own
            problem = f"is not a valid ZIP file: {error}"
        else:
            return
        raise ZipFileError(problem)

    def _opened(self) -> zipfile.ZipFile:
        if not zipfile.is_zipfile(self._packed):
            raise ZipFileError("was cut off within its ZIP file")
        return zipfile.ZipFile(self._packed)


class _Packed(io.BytesIO):
    """A file that gives only as much at once as the directory of one member may have."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > _MOST_AT_ONCE:
            raise ZipFileError("is a ZIP file with too large a directory for one member")
        return super().read(size)


def _only(members: list[zipfile.ZipInfo]) -> zipfile.ZipInfo:
    if len(members) != 1:
        raise ZipFileError(f"is a ZIP file with {len(members)} members instead of one")
    [member] = members
    if member.flag_bits & _IS_ENCRYPTED:
        raise ZipFileError("is an encrypted ZIP file")
    if member.compress_type not in _METHODS:
        raise ZipFileError(f"is a ZIP file of the compression method {member.compress_type}")
    return member
