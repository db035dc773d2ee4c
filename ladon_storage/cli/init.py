"""``ladon-storage init``: a ladon.toml to begin with."""

from __future__ import annotations

from ladon_storage.cli.output import note, print_text
from ladon_storage.cli.writing import write_new


def init() -> None:
    """Write a ladon.toml with commented examples."""
    from ladon_storage.project.project import FILE_NAME, example

    [file] = write_new({FILE_NAME: example()})
    print_text(str(file))
    note("Next: `ladon-storage source try kev`, then `ladon-storage collect kev`.")
