"""Recordings of real feeds, which lie beside the repository where they may be read, or nowhere."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parent.parent.parent / "shared" / "data"


def recording(name: str) -> Path:
    """Return where a recording is; the test is skipped, and says so, where it is not."""
    path = FOLDER / name
    if not path.is_file():
        pytest.skip(f"the recording {name} is not beside this repository; nothing was replayed")
    return path


def members(name: str) -> Iterator[tuple[str, bytes]]:
    """Yield the names and contents of a recording's members, one after another, in poll order.

    The test is skipped, and says so, where the recording is not.
    """
    return _members(recording(name))


def _members(path: Path) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(path) as archive:
        for member in archive:
            content = archive.extractfile(member)
            if content is not None:
                yield member.name, content.read()
