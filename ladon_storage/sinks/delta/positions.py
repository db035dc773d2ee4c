"""A position as numbers, the form that Delta keeps for ever: application transactions.

They outlive checkpoints, vacuum, and the cleaning of the log. Texts do not fit: a run is identified
by its digest, and the digest of a document is two numbers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from ladon_storage.collection.protocols import Position, run_digest
from ladon_storage.sinks.delta.rows import NEVER, instant, microseconds

Number = Callable[[str], int | None]
"""A function that returns a table's number for a name."""

_INSTANTS = ("timestamp", "watermark", "origin")
_HALVES = ("document-1", "document-2")

_RUN, _PREFIX = 15, "run:"
_DOCUMENT = re.compile("[0-9a-f]{30}")
_HAS_SHOWN_ORDER, _HAS_RUN, _HAS_DOCUMENT = 2**60, 2**61, 2**62


def numbers_of(position: Position | None, source_id: str) -> dict[str, int]:
    """Return the numbers of a position by their names; no position has numbers that say so."""
    if position is None:
        return {_name("timestamp", source_id): NEVER}
    instants = (position.timestamp, position.watermark, position.origin)
    numbers = dict(
        zip(_INSTANTS, (NEVER if each is None else microseconds(each) for each in instants))  # noqa: B905
    )
    run = 0
    if position.run_id is not None:
        digest = position.run_id
        if not _is_digest(digest):
            digest = run_digest(digest)
        run = int(digest.removeprefix(_PREFIX), 16) | _HAS_RUN
    # A digest that is not one of our sources is not kept, and its document is read again.
    if position.document is not None and _DOCUMENT.fullmatch(position.document):
        run |= _HAS_DOCUMENT
        halves = position.document[:_RUN], position.document[_RUN:]
        numbers.update(zip(_HALVES, (int(each, 16) for each in halves)))  # noqa: B905
    run |= _HAS_SHOWN_ORDER if position.order_shown else 0
    numbers["run"] = run if position.origin is not None else -1 - run
    return {_name(what, source_id): number for what, number in numbers.items()}


def position_of(number: Number, source_id: str) -> Position | None:
    """Return the position that numbers represent; ``None``: there is none."""
    timestamp = instant(number(_name("timestamp", source_id)))
    if timestamp is None:
        return None
    run = number(_name("run", source_id)) or 0
    # Each look-up of a number costs, and most sources have no origin.
    origin = None if run < 0 else instant(number(_name("origin", source_id)))
    watermark = instant(number(_name("watermark", source_id)))
    run = run if run >= 0 else -1 - run
    document = None
    if run & _HAS_DOCUMENT:
        halves = (number(_name(each, source_id)) or 0 for each in _HALVES)
        document = "".join(f"{each:0{_RUN}x}" for each in halves)
    return Position(
        timestamp=timestamp,
        watermark=watermark,
        origin=origin,
        run_id=f"{_PREFIX}{run & _HAS_SHOWN_ORDER - 1:0{_RUN}x}" if run & _HAS_RUN else None,
        document=document,
        order_shown=bool(run & _HAS_SHOWN_ORDER),
    )


def changed(wanted: Mapping[str, int], before: Mapping[str, int]) -> dict[str, int]:
    """Return the numbers that differ from the earlier ones."""
    return {name: number for name, number in wanted.items() if before.get(name) != number}


def _is_digest(run_id: str) -> bool:
    digits = run_id.removeprefix(_PREFIX)
    return len(digits) == _RUN < len(run_id) and set(digits) <= set("0123456789abcdef")


def _name(what: str, source_id: str) -> str:
    # The kind comes first: a source may have any name.
    return f"ladon-{what}:{source_id}"
