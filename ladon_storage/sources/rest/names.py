"""The names and the values next to a page's items, whatever way an API writes them."""

from __future__ import annotations

import re
from functools import lru_cache

LONGEST_SIGN = 1_000
"""Characters of the longest name or value that is read as a sign, a number or a state."""

_GROUPED = re.compile(r"\d{1,3}(?:([,.'_ \u00a0\u202f\u2019])\d{3})(?:\1\d{3})*")

_LONGEST_COUNT = 30
"""Characters of the longest text that is read as a number of items."""


def names(text: str) -> frozenset[str]:
    """Return the names in a text, which are as `plain` makes them."""
    return frozenset(text.split())


def levels(path: str) -> list[str]:
    """Return the paths of all that is around the value at a path, the outermost first.

    >>> levels("a.b.rows"), levels("rows"), levels("")
    (['', 'a', 'a.b'], [''], [''])
    """
    parts = path.split(".")[:-1]
    return [".".join(parts[:length]) for length in range(len(parts) + 1)]


def plain(name: str) -> str:
    """Return a name without its case, its separators and its prefix up to a dot or a colon.

    >>> plain("@odata.nextLink"), plain("total_count"), plain("hydra:next")
    ('nextlink', 'totalcount', 'next')
    """
    return "" if len(name) > LONGEST_SIGN else _plain(name)


@lru_cache(maxsize=4096)
def _plain(name: str) -> str:
    return re.sub(r"[^a-z]", "", re.split(r"[.:]", name)[-1].lower())


def truth(value: object) -> bool | None:
    """Return whether a flag is set, also one that is a number or a text; ``None``: it is none."""
    if isinstance(value, str):
        text = value.strip().lower() if len(value) <= LONGEST_SIGN else ""
        return True if text in _YES else False if text in _NO else None
    return bool(value) if isinstance(value, bool | int) else None


def count_in(value: object) -> int | None:
    """Return a number of items, also one that is a text such as 1,330; ``None``: it is none."""
    if isinstance(value, str) and len(value) > _LONGEST_COUNT:
        return None
    if isinstance(value, str) and value.strip().isascii() and value.strip().isdecimal():
        return int(value)
    if isinstance(value, str) and (grouped := _GROUPED.fullmatch(value.strip())):
        return int(value.strip().replace(grouped[1], ""))
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


_YES = names("true 1 yes y t on")
_NO = names("false 0 no n f off")
