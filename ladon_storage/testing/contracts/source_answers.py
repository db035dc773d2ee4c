"""The answers of a source's API that are no records, and what of them the API means.

An answer is broken only where the API as the test plays it does not answer so itself: an API of
lines answers nothing with an empty body, and one of pages may end with a 404.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from ladon_storage.testing.feed_server import Answer

SIGN_IN = "/api/sign-in"
"""Where a feed that is broken has a page for people to sign in."""

NOT_FOUND, NULL_LIST = "not found", "a list that is null"

BROKEN = {
    "an error": Answer(b"out of order", 500),
    "an answer that is cut off": Answer(b'[{"id": "1"}, {"id": "2"}]', cut_at=9),
    "JSON that is cut off": Answer(b'[{"id": "1", "upd'),
    "a page for people": Answer(b"<html>We are back soon</html>"),
    "an error in JSON": Answer(b'{"error": "over quota"}'),
    "an empty body": Answer(b""),
    "too many requests": Answer(b"slow down", 429, {"Retry-After": "0"}),
    "a redirect to sign in": Answer(b"", 302, {"Location": SIGN_IN}),
    NOT_FOUND: Answer(b"there is no such page", 404),
    NULL_LIST: Answer(b"null"),
}
"""Answers that are no records, of which a source must not make an empty or a short list.

The contract puts the last one into the document that the API has around its list.
"""

PASSING = ("an error", "too many requests", "an answer that is cut off", "JSON that is cut off")
"""Those after which a source tries again, by what it sees: a status, a connection, a document."""

MAY_END = (NOT_FOUND, NULL_LIST)
"""Those that some APIs end with: a source that has all records by then may believe them."""


def is_own(broken: Answer, given: Sequence[Answer]) -> bool:
    """Return whether an API that gave these answers gives this one as well."""
    return any(
        each.status == broken.status
        and (each.status >= 300 or each.body.strip() == broken.body.strip())
        for each in given
    )


def with_null(full: Answer, empty: Answer) -> Answer | None:
    """Return the answer without items, its list replaced by null; ``None``: it has no list."""
    try:
        documents = json.loads(full.body), json.loads(empty.body)
    except ValueError:
        return None
    nulled = _nulled(*documents)
    return None if nulled == documents[1] else Answer.of(nulled)


def _nulled(full: Any, empty: Any) -> Any:
    if isinstance(full, list) and full and empty == []:
        return None
    if isinstance(full, dict) and isinstance(empty, dict):
        return {key: _nulled(full.get(key), value) for key, value in empty.items()}
    return empty


def with_text(answer: Answer, items: Sequence[Any]) -> Answer | None:
    """Return the answer with a text among its items; ``None``: they are in no list of objects."""
    try:
        document = json.loads(answer.body)
    except ValueError:
        return None
    objects = [each for each in items if isinstance(each, dict)]
    for found in _lists(document):
        if any(each in objects for each in found):
            found.insert(0, "no object")
            return Answer.of(document)
    return None


def _lists(document: Any) -> Iterator[list[Any]]:
    if isinstance(document, list):
        yield document
    elif isinstance(document, dict):
        for value in document.values():
            yield from _lists(value)
