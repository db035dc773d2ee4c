"""The database files of SQL sinks: their addresses, their folders, and their identity."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy.engine import URL

from ladon_storage.databases import shown_address
from ladon_storage.errors import ConfigurationError, SinkError

_NO_FILES = (":memory:", "file:", "md:", "motherduck:")


def checked_path(url: URL, example: str) -> Path:
    """Return the path of the file at an address.

    Raises:
        ConfigurationError: The address is not that of a file.
    """
    if url.host or url.username:
        raise ConfigurationError(f"The sink's address cannot be used. Write it as {example}.")
    if not url.database or url.database.startswith(_NO_FILES):
        raise ConfigurationError(
            f"The sink {shown_address(url)} is not a file, so it is "
            f"not durable. Write its address as {example}."
        )
    return Path(url.database)


def check_folder(path: Path) -> None:
    """Refuse a file whose folder does not exist: a database creates the file alone."""
    if not path.parent.is_dir():
        raise SinkError(
            f"The sink's folder {path.parent} does not exist. Create it, or correct the address."
        )


def place_of(path: Path) -> tuple[int, int] | None:
    """Return the file's inode: a removed file can still be written to while it is open."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def taken_away(shown: str) -> SinkError:
    """Return the error about a file that is no longer where the next run looks for it."""
    return SinkError(
        f"The file of the sink {shown} was moved, removed or replaced while a run "
        "collected into it, so that what it stored is not there. Run again; collection "
        "resumes where the file that is there now ends."
    )
