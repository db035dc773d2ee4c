"""The limits of freshness of a ``ladon.toml``, for a service that outlives its edits.

A file that cannot be used leaves the limits as they are: a page without any would call each source
fresh.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path

from ladon_storage.errors import ConfigurationError
from ladon_storage.project import Project

logger = logging.getLogger(__name__)


class LimitsFile:
    """The greatest age of each source in a file, by the name of its watermark.

    Args:
        file: The file.

    Raises:
        ConfigurationError: The file cannot be read, or something in it is wrong.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._seen = self._state()
        self.limits: Mapping[str, timedelta] = self._read()

    def renewed(self) -> Mapping[str, timedelta] | None:
        """Return the limits if the file changed; ``None``: it did not, or cannot be used.

        It reads the file and makes its sources, so it belongs to a thread of its own.
        """
        state = self._state()
        if state == self._seen:
            return None
        self._seen = state
        try:
            self.limits = self._read()
        except ConfigurationError as error:
            logger.warning("The limits of freshness stay as they were. %s", error)
            return None
        logger.info("The limits of freshness in %s are used", self._file)
        return self.limits

    def _read(self) -> dict[str, timedelta]:
        project = Project.load(self._file)
        return {
            project.source(name).source_id: timedelta(hours=table.freshness.max_age_hours)
            for name, table in project.sources.items()
            if table.freshness is not None
        }

    def _state(self) -> tuple[int, int, int] | None:
        try:
            stat = self._file.stat()
        except OSError:
            return None
        return stat.st_ino, stat.st_mtime_ns, stat.st_size
