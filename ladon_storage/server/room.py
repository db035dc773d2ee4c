"""Failures of the disk below a database: another file or setting would mend none of them."""

from __future__ import annotations

import os
import sqlite3
from errno import EDQUOT, EIO, ENOSPC
from pathlib import Path


def is_of_disk(error: Exception, file: Path) -> bool:
    """Return whether an error of a file is that its disk is full or fails."""
    if isinstance(error, OSError):
        return error.errno in (ENOSPC, EDQUOT, EIO)
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code == sqlite3.SQLITE_CANTOPEN:  # what SQLite says where there is no inode for its log
        return _is_full(file.parent)
    return code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR)


def _is_full(folder: Path) -> bool:
    try:
        disk = os.statvfs(folder)
    except OSError:
        return False
    # Some file systems make inodes as they need them, and count none.
    return not disk.f_bavail or bool(disk.f_files and not disk.f_favail)
