"""The check of a SQLite file: whether it is undamaged, found out without touching it.

- The file is opened for reading alone. It is never created, and no file appears beside it.
- A file of which a program left a log or a journal beside it is read together with that. Another
  is read as one that nothing changes. If a program has begun to write meanwhile, it is read again.
- Large files take long, so the check ends after a time, and says that it has not seen all.
"""

from __future__ import annotations

import sqlite3
import threading
from contextlib import closing
from pathlib import Path

from ladon_storage.cli.checks import Check
from ladon_storage.collection.summaries import cut
from ladon_storage.server.room import is_of_disk

SECONDS = 10.0
"""The longest time for the check of one file."""

_FAULTS = 3
_AGAIN_SECONDS = 0.01
_DAMAGED = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
_LONGEST_FINDING = 500


def integrity(what: str, path: Path, repair: str, *, seconds: float = SECONDS) -> Check:
    """Return the verdict of SQLite's integrity check of a file.

    Args:
        what: The name of the check.
        path: The file, which exists.
        repair: The next step where it is damaged.
        seconds: The longest time that the check may take.
    """
    try:
        size = path.stat().st_size
        if not path.is_file() or not size:
            text = "is empty" if path.is_file() else "is no file"
            return Check(what, "failed", f"{path} {text}", repair)
        faults = _faults(path, seconds)
    except (OSError, sqlite3.Error) as error:
        return _unchecked(what, path, repair, error, seconds)
    if faults:
        text = cut("; ".join(faults), _LONGEST_FINDING)
        return Check(what, "failed", f"{path} is damaged: {text}", repair)
    return Check(what, "ok", f"{path}: {size:,} bytes, undamaged")


def _unchecked(
    what: str, path: Path, repair: str, error: OSError | sqlite3.Error, seconds: float
) -> Check:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code in _DAMAGED:
        return Check(what, "failed", f"{path} is damaged: {cut(str(error))}", repair)
    if code == sqlite3.SQLITE_INTERRUPT:
        text = (
            f"{path}: no damage found in {seconds:g} s, and {path.stat().st_size:,} bytes to read"
        )
        step = "`ladon-storage backup` makes a copy, and checks all of it."
        return Check(what, "warning", text, step)
    if code == sqlite3.SQLITE_BUSY:
        return Check(what, "warning", f"{path} is locked by a program", "Check it again.")
    step = "Run this as the user whose file it is."
    if is_of_disk(error, path):
        step = "Its disk is full, or fails: make room, and check it again."
    return Check(what, "failed", f"{path} cannot be read ({cut(str(error))})", step)


def _faults(path: Path, seconds: float) -> list[str]:
    is_alone = not _has_log(path)
    if is_alone:
        try:
            faults = _asked(path, seconds, "immutable=1")
        except sqlite3.Error as error:
            if not _has_log(path) or error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_INTERRUPT:
                raise
        else:
            if not faults or not _has_log(path):
                return faults
    return _asked(path, seconds, "mode=ro")


def _has_log(path: Path) -> bool:
    """Return whether a program uses the file, or ended without a word."""
    return any(path.with_name(f"{path.name}{end}").exists() for end in ("-wal", "-journal"))


def _asked(path: Path, seconds: float, options: str) -> list[str]:
    address = f"{path.absolute().as_uri()}?{options}"
    ended = threading.Event()
    with closing(sqlite3.connect(address, uri=True, timeout=1, check_same_thread=False)) as opened:
        timer = threading.Thread(target=_interrupt, args=(opened, ended, seconds))
        timer.start()
        try:
            rows = opened.execute(f"PRAGMA integrity_check({_FAULTS})").fetchall()
        finally:
            ended.set()
            timer.join()
    return [] if rows == [("ok",)] else [str(row[0]) for row in rows]


def _interrupt(connection: sqlite3.Connection, ended: threading.Event, seconds: float) -> None:
    """Interrupt a statement after a time; again and again, since it may not have begun."""
    while not ended.wait(seconds):
        connection.interrupt()
        seconds = _AGAIN_SECONDS
