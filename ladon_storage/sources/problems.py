"""The messages of sources: the problem in one sentence, the next step in another."""

from __future__ import annotations

from ladon_storage.errors import SourceError
from ladon_storage.sources.http.urls import redact_url


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
