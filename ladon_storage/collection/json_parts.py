"""The encoding of a JSON value with very many values, in parts between which other threads run.

The C encoder holds the interpreter until it has written its whole value: seconds, for an object
with nearly a million keys. The text of the parts together is that of the whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

PART_VALUES = 20_000
"""The values that are encoded in one step: a few milliseconds."""


def by_parts(encode: Callable[[object], str], *, in_order: bool = False) -> Callable[[object], str]:
    """Return an encoder that encodes a value with many values in parts.

    Args:
        encode: The encoder of a part, without spaces.
        in_order: Whether it sorts the keys of an object.
    """

    def encoded(content: object) -> str:
        if _size(content, PART_VALUES) <= PART_VALUES:
            return encode(content)
        if isinstance(content, dict):
            # A part is an object of its own, or the name of a value that is encoded by itself.
            keys = sorted(content) if in_order else content
            parts = _parts((key, content[key]) for key in keys)
            texts = (
                encode(dict(part))[1:-1]
                if is_small
                else f"{encode({part[0][0]: None})[1:-5]}{encoded(part[0][1])}"
                for part, is_small in parts
            )
            return f"{{{','.join(texts)}}}"
        assert isinstance(content, list | tuple)  # noqa: S101 - nothing else is large
        parts = _parts((None, each) for each in content)
        texts = (
            encode([each for _, each in part])[1:-1] if is_small else encoded(part[0][1])
            for part, is_small in parts
        )
        return f"[{','.join(texts)}]"

    return encoded


def _parts(pairs: Iterable[tuple[Any, object]]) -> Iterator[tuple[list[tuple[Any, object]], bool]]:
    """Yield pairs in groups with few values together, and each pair with many alone."""
    part: list[tuple[Any, object]] = []
    total = 0
    for pair in pairs:
        size = _size(pair[1], PART_VALUES)
        if part and total + size > PART_VALUES:
            yield part, True
            part, total = [], 0
        if size > PART_VALUES:
            yield [pair], False
        else:
            part.append(pair)
            total += size
    if part:
        yield part, True


def _size(content: object, limit: int) -> int:
    """Return the number of values in a value, or some number above the limit."""
    if not isinstance(content, dict | list | tuple):
        return 1
    total = 1 + len(content)
    for each in content.values() if isinstance(content, dict) else content:
        if total > limit:
            break
        if isinstance(each, dict | list | tuple):
            total += _size(each, limit - total)
    return total
