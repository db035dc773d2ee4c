"""Files and folders that are flushed to the disk: ``deltalake`` does not flush its writes."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path


def up_to(top: Path, path: Path) -> list[Path]:
    """Return a path and the folders above it, up to and including ``top``."""
    return [path, *(each for each in path.parents if each == top or top in each.parents)]


def flush(*paths: Path) -> None:
    """Flush files and folders to the disk; missing ones are skipped."""
    for path in paths:
        with suppress(FileNotFoundError):
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
