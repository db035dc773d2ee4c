"""The rows of a CSV text, in which a broken row affects no other.

- A cell may span several lines if its quotes close again. An unclosed quote would swallow the rows
  after it, so a line that is a row by itself ends the row before, which is then broken.
- The reason given for a broken row does not depend on its position, so that it is stored once
  however often it is read.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

MOST_LINES = 50
"""The maximum number of lines in one row; an open quote is followed no further."""

_OPEN = "unexpected end of data"
"""The message of `csv` about a row whose quote is not closed."""


@dataclass(frozen=True)
class BrokenRow:
    """A line that is no row: its text, and the reason."""

    text: str
    reason: str


def read_rows(text: str, place: int, width: int) -> Iterator[list[str] | BrokenRow]:
    r"""Yield the rows of ``width`` cells from a place on; comments and empty lines are none.

    >>> one, two, three = read_rows('"1","a\nb"\n"2","c\n"3","d"\n', 0, 2)
    >>> one, two.text, three
    (['1', 'a\nb'], '"2","c', ['3', 'd'])
    """
    while place < len(text):
        end = _line_end(text, place)
        line = text[place:end]
        place = end
        if line.startswith("#") or not line.strip():
            continue
        row = _parsed([line])
        if row == _OPEN and (longer := _over_lines(text, line, place, width)):
            row, place = longer
        if isinstance(row, str):
            yield BrokenRow(line.rstrip("\r\n"), f"is no CSV: {row}")
        elif len(row) != width:
            yield BrokenRow(line.rstrip("\r\n"), f"has {len(row)} columns instead of {width}")
        else:
            yield row


def _over_lines(text: str, line: str, place: int, width: int) -> tuple[list[str], int] | None:
    """Return the row that spans several lines from this one, and its end; or ``None``."""
    lines = [line]
    while place < len(text) and len(lines) < MOST_LINES:
        end = _line_end(text, place)
        following = text[place:end]
        alone = _parsed([following])
        if not isinstance(alone, str) and len(alone) == width:
            return None
        lines.append(following)
        place = end
        cells = _parsed(lines)
        if not isinstance(cells, str):
            return (cells, place) if len(cells) == width else None
        if cells != _OPEN:
            return None
    return None


def _parsed(lines: Sequence[str]) -> list[str] | str:
    """Return the cells of a row in these lines, or the reason why it is none."""
    rows = csv.reader(lines, strict=True)
    try:
        return next(rows)
    except csv.Error as error:
        return str(error)


def _line_end(text: str, place: int) -> int:
    return text.find("\n", place) + 1 or len(text)
