"""The messages of sources: the problem in one sentence, the next step in another."""

from __future__ import annotations

from datetime import datetime, timedelta

from ladon_storage.collection.protocols import utc_now
from ladon_storage.errors import SourceError
from ladon_storage.sources.http.urls import redact_url

_AHEAD = timedelta(hours=1)
"""The most that the clocks of a source and of this machine may differ without notice."""


def present(source_id: str, start: datetime | None) -> datetime:
    """Return the time, as the end of a range that begins at ``start``.

    Raises:
        SourceError: It is long before the start, so that the range would be empty: no request
            would be made, or one that asks for nothing.
    """
    now = utc_now()
    if start is not None and start > now + _AHEAD:
        problem = (
            f"The clock of this machine is at {now.isoformat()}, before {start.isoformat()}, from "
            f"where source {source_id!r} is read"
        )
        raise SourceError(with_step(problem, "set the clock"), source_id)
    return now


def with_step(problem: str, step: str) -> str:
    """Return a message of two sentences.

    >>> with_step("Source 'kev' answered 403", "check the address")
    "Source 'kev' answered 403. Check the address."
    """
    return f"{problem}. {step[:1].upper()}{step[1:]}."


def published_error(subject: str, source_id: str, url: str, problem: str, step: str) -> SourceError:
    """Return the error for something that a source publishes, such as its catalogue."""
    subject = f"The {subject} of source {source_id!r} at {redact_url(url)}"
    return SourceError(with_step(f"{subject} {problem}", step), source_id)
