"""The bounds on what one JSON document may hold in memory, and the checks of them.

A few bytes of JSON become a hundred of Python's, so a limit on bytes bounds nothing. Each parsed
part is bounded in values as well: a record, or everything around the records.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

AT_ONCE_BYTES = 2**20
"""The size of a document parsed in one step; a larger one would block the event loop too long."""

IN_THREAD_BYTES = 2**24
"""The size of a document parsed in one step in a thread, which other threads wait for: 0.1 s."""

MAX_ITEM_BYTES = 32 * 2**20
"""Bytes of one record, and of everything around the records."""

MAX_VALUES = 1_000_000
"""Values in memory at once, of a record or of a document: a tenth of a GiB, or two."""

MAX_ITEMS = 10_000_000
"""Records of one document; only a document made to take hours has more."""

# A complete text, an incomplete one at the end, or one that another value follows.
_TEXT_OR_MORE = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"?|[,\[{]', re.DOTALL)
_TEXT_OR_MORE_BYTES = re.compile(_TEXT_OR_MORE.pattern.encode(), re.DOTALL)

_NO_MORE = bytes(set(range(256)).difference(b",[{"))
"""All bytes but those that another value follows."""

_TOO_LONG = "a record, or the document around them, has over {} bytes"


class TooMuchError(ValueError):
    """Raised when too much of a document would have to be in memory at once."""


def more_values(sent: bytes | str) -> int:
    """Return a lower bound of the number of values, not counting the outermost one."""
    if isinstance(sent, str):
        return sent.count(",") + sent.count("[") + sent.count("{")
    return len(sent.translate(None, _NO_MORE))


def check_length(sent: bytes | str) -> None:
    """Raise a `TooMuchError` if this is longer than is parsed at once."""
    size = len(sent.encode("utf-8", "surrogatepass")) if isinstance(sent, str) else len(sent)
    if size > MAX_ITEM_BYTES:
        raise TooMuchError(_TOO_LONG.format(MAX_ITEM_BYTES))


def check_size(sent: bytes | str) -> None:
    """Raise a `TooMuchError` if this is too much to be parsed at once."""
    if len(sent) > 2 * MAX_ITEM_BYTES:  # with the next values in a window
        raise TooMuchError(_TOO_LONG.format(MAX_ITEM_BYTES))
    if more_values(sent) <= MAX_VALUES:
        return
    # Its texts may contain commas.
    found: Iterator[re.Match[Any]] = (
        _TEXT_OR_MORE.finditer(sent)
        if isinstance(sent, str)
        else _TEXT_OR_MORE_BYTES.finditer(sent)
    )
    texts = values = 0
    for each in found:
        if each[0][0] in ('"', ord('"')):
            texts += 1
        else:
            values += 1
        if values > MAX_VALUES or texts > 2 * MAX_VALUES:
            raise TooMuchError(
                f"a record, or the document around them, has over {MAX_VALUES} values"
            )
