"""The logs of Prefect's runs: a wrong setting is a sentence there, and no traceback.

Prefect logs each exception of a task and of a flow with its traceback. That of a setting leads to
the code, and the fault is in a file, a form or an environment.
"""

from __future__ import annotations

import logging

from ladon_storage.errors import ConfigurationError

_LOGGERS = ("prefect.flow_runs", "prefect.task_runs")


class SettingsAsSentences(logging.Filter):
    """A filter that logs a `ConfigurationError` by its text alone."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Let every record pass."""
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, ConfigurationError):
            record.msg, record.args = "%s", (str(error),)
            record.exc_info = record.exc_text = None
        return True


def say_settings_in_sentences() -> None:
    """Log wrong settings of runs as sentences; a second call changes nothing."""
    for name in _LOGGERS:
        logger = logging.getLogger(name)
        if not any(isinstance(each, SettingsAsSentences) for each in logger.filters):
            logger.addFilter(SettingsAsSentences())
