"""The refusals of a page: what they say about the list before it.

- A page beyond the end is refused by 416, or in the form that a framework uses for it alone.
- A refusal that names a limit on what may be read says that there is more, whatever its status and
  whatever total is met: the total may be that limit.
"""

from __future__ import annotations

import json
import re

from ladon_storage.sources.http.client import HttpResponse
from ladon_storage.sources.rest.message_words import WINDOWS
from ladon_storage.sources.rest.names import LONGEST_SIGN

BEYOND = 416
"""HTTP's own status for a range beyond the end."""

_MOST_TEXTS = 100
_LARGEST = 65_536
"""Bytes of the largest refusal that is read as a document."""

_JOINTS = re.compile(r"_|(?<=[a-z])(?=[A-Z])")
"""The joints of a code, such as ``RESULT_LIMIT_EXCEEDED``."""


def is_beyond(answer: HttpResponse) -> bool:
    """Return whether a refusal says itself that the page lies beyond the end.

    It does by HTTP's own status, or in the form of Django REST framework or of WordPress.
    """
    if answer.status == BEYOND:
        return True
    document = _document(answer)
    if answer.status == 400:
        code = document.get("code") if isinstance(document, dict) else None
        return code == "rest_post_invalid_page_number"
    return answer.status == 404 and bool(document == {"detail": "Invalid page."})


def limit_named(answer: HttpResponse) -> str | None:
    """Return the text by which a refusal names a limit on what may be read; ``None``: it does not.

    A page beyond the end may be refused in many words: it is invalid, out of range, behind the last
    one, or above the total. None of them says that a limit is exceeded, or how to read on.
    """
    left, count = [_document(answer)], 0
    while left and count < _MOST_TEXTS:
        each, count = left.pop(0), count + 1
        if isinstance(each, dict | list):
            left += list(each.values() if isinstance(each, dict) else each)[:_MOST_TEXTS]
        elif isinstance(each, str) and WINDOWS.are_in(_JOINTS.sub(" ", each[:LONGEST_SIGN])):
            return each
    return None


def _document(answer: HttpResponse) -> object:
    """Return the JSON of a refusal, or its text."""
    try:
        return json.loads(answer.body) if len(answer.body) <= _LARGEST else ""
    except (ValueError, RecursionError):
        return answer.body[:LONGEST_SIGN].decode(errors="replace")
