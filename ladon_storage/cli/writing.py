"""The files that a verb writes for a user: all of them or none, and none that exists already."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ladon_storage.errors import ConfigurationError


def write_new(texts: Mapping[str, str]) -> list[Path]:
    """Write each text to the file of its name in the working directory, and return the files.

    Raises:
        ConfigurationError: One exists already, or cannot be written; none was written.
    """
    written: list[Path] = []
    try:
        for name, text in texts.items():
            file = Path(name).absolute()
            with file.open("x", encoding="utf-8") as opened:
                written.append(file)
                opened.write(text)
    except OSError as error:
        for each in written:
            each.unlink(missing_ok=True)
        if isinstance(error, FileExistsError):
            problem = "exists already. Move it away, or change it by hand"
        else:
            problem = f"cannot be written ({error.strerror}). Choose another folder"
    else:
        return written
    raise ConfigurationError(f"The file {str(file)!r} {problem}.")
