"""Cursors and links that count items or pages, and so shift when the list does."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from itertools import zip_longest

from yarl import URL

from ladon_storage.sources.rest.names import names, plain

_COUNTING = names(
    "page p pg pagenumber pageno pageindex pagenum pageoffset currentpage offset start "
    "startindex startat skip from begin first"
)
_RANGE = re.compile(r"(\d{1,18})[-,:](\d{1,18})")
_NUMBERED = re.compile(r"([A-Za-z]+)[-_]?(\d{1,18})(?:\.\w+)?")
_BASE64 = re.compile(r"[A-Za-z0-9+/_-]{2,}={0,2}")
_LONGEST_CURSOR = 2_000
_BY_ITEM = names(
    "after afterid sinceid minid maxid lastid startingafter startafter before beforeid"
)
_NUMBER = re.compile(r"(?<!\d)\d{1,18}(?!\d)")
_LONE = re.compile(r"(?<![A-Za-z0-9.])\d{1,18}(?![A-Za-z0-9.])")
_TIME = re.compile(r"\d{4}-\d\d-\d\d(?:[T ][\d:.]+)?|\d\d:\d\d:\d\d")
# A name is tried from its first letter alone: from each of them, a long one would take minutes.
_NAMED_NUMBER = re.compile(r"(?<![A-Za-z_-])([A-Za-z_-]+)[\"']?\s*[:=]\s*[\"']?\d{1,18}(?!\w)")


def is_by_item(name: str) -> bool:
    """Return whether a parameter usually has the id of an item.

    >>> is_by_item("starting_after"), is_by_item("cursor")
    (True, False)
    """
    return plain(name) in _BY_ITEM


def moved(before: URL, after: URL) -> Iterator[tuple[str, str]]:
    """Yield the names and values by which an address differs from that of the page before it.

    A parameter that both have, such as the size of a page, is no position. A segment of the path
    has the name of the one before it, or its own, as in ``page2.json``.

    >>> list(moved(URL("http://a/rows/1?limit=5"), URL("http://a/rows/2?limit=5&at=7")))
    [('at', '7'), ('rows', '2')]
    """
    yield from after.query.items() - before.query.items()
    name = ""
    for there, here in zip_longest(before.parts, after.parts, fillvalue=""):
        if here and here != there:
            numbered = _NUMBERED.fullmatch(here)
            yield (numbered[1], numbered[2]) if numbered else (name, here)
        name = here


def counts(name: str, cursor: object, number: int, index: int) -> bool:
    """Return whether a cursor counts items or pages, including an encoded one.

    A number equal to the number of items that came counts as an offset. If it is an id that happens
    to be the same, the check costs requests and nothing else.

    >>> counts("cursor", "b2Zmc2V0OjIw", 20, 1), counts("page", "7", 20, 1)
    (True, True)
    >>> counts("cursor", "2024-01-05T00:00:00Z", 20, 1), counts("after", 4711, 20, 1)
    (False, False)
    >>> counts("after", "20", 20, 1), counts("after", "21", 20, 1)
    (True, False)
    """
    if isinstance(cursor, dict | list):
        return any(
            counts(name if isinstance(cursor, list) else str(key), each, number, index)
            for key, each in (cursor.items() if isinstance(cursor, dict) else enumerate(cursor))
        )
    text, name = str(cursor), plain(name)
    if name in _COUNTING and text.isdecimal():
        return True
    if name in _COUNTING and (ends := _RANGE.fullmatch(text)):
        return int(ends[1]) in {number, number + 1, index, index + 1}
    if name in _BY_ITEM:  # which may be an offset all the same
        return text == str(number) or _counts_in(_unpacked(text), number, index)
    return any(_counts_in(each, number, index) for each in (text, _unpacked(text)))


def counts_along(
    before: object, cursor: object, items: tuple[int, int], pages: tuple[int, int]
) -> bool:
    """Return whether all numbers that move from one cursor to the next count, beside others.

    In a single cursor a size, an id or a part of a time may be as great by chance. Where another
    number moves, such as the last item's id, the cursor goes on behind that.

    Args:
        before: The cursor before.
        cursor: The cursor.
        items: How many items came before the pages of the two.
        pages: How many pages.

    >>> counts_along("o:20|l:20", "o:40|l:20", (20, 40), (1, 2))
    True
    >>> counts_along("4711_1", "4731_2", (20, 40), (1, 2))
    False
    """
    counted = {(each + pages[0], each + pages[1]) for each in (0, 1)}
    if items[0] < items[1]:
        counted |= {(each + items[0], each + items[1]) for each in (-1, 0, 1)}
    for numbers, others in zip(_numbers_in(before), _numbers_in(cursor), strict=True):
        if not 1 < len(numbers) == len(others):
            continue
        moves = {pair for pair in zip(numbers, others, strict=True) if pair[0] != pair[1]}
        if moves and moves <= counted:
            return True
    return False


def _numbers_in(cursor: object) -> list[list[int]]:
    """Return the numbers of a text that stand alone, and those inside it if it is of base64.

    Those next to a letter are random parts of a token.
    """
    text = str(cursor)
    return [
        [int(each) for each in _LONE.findall(_TIME.sub("", each))]
        for each in (text[:_LONGEST_CURSOR], _unpacked(text))
    ]


def _counts_in(text: str, number: int, index: int) -> bool:
    """Return whether a text is or contains a position: a count of items that came, or of pages."""
    if any(plain(name) in _COUNTING for name in _NAMED_NUMBER.findall(text)):
        return True
    if ends := _RANGE.fullmatch(text):
        return int(ends[1]) in {number, number + 1}
    found = [int(each) for each in _NUMBER.findall(text)]
    if len(found) != 1:
        return False
    is_item = found[0] in {number - 1, number, number + 1}
    return is_item or (index > 1 and found[0] in {index, index + 1})


def _unpacked(text: str) -> str:
    """Return the text inside a base64 text, or nothing."""
    if not _BASE64.fullmatch(text) or len(text) > _LONGEST_CURSOR:
        return ""
    try:
        packed = text.rstrip("=").translate(str.maketrans("-_", "+/"))
        return base64.b64decode(packed + "=" * (-len(packed) % 4)).decode()
    except ValueError:
        return ""
