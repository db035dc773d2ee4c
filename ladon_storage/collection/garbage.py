"""Python's garbage collection, and the many objects of a run that are no garbage.

- Python searches young objects for unreachable cycles whenever some hundreds more were made, and
  all objects from time to time. What a parser makes is in use and ends by its reference counts:
  the searches find nothing, and take a third of the time of a page of large records.
- Nothing here lasts beyond a run, and what the program froze itself stays as it is.
- Cycles that are passed over are collected at intervals, so that memory does not grow.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from threading import RLock

_MANY = 500
"""The new objects of a run, or of one document, that are worth being passed over."""

_INTERVAL = 1_000_000
"""The number of objects that are passed over until all are searched."""

_MOST = 10_000
"""The objects of one document that count: an interval has at least a hundred documents."""

_BETWEEN_RUNS = 100_000
"""The number of objects that runs may pass over one after another until all are searched."""
_OF_ALL = 4
"""The part of all objects, a quarter, that it must be besides, as Python has it.

So the search costs each object the same, however many a program holds.
"""

_may_set_aside = False
_are_set_aside = False
_changing = RLock()
"""Held while the two change, and what is frozen with them: runs may be in several threads.

A collection meanwhile may end a run that was abandoned, in the same thread.
"""
_passed_over = 0
_passed_over_by_runs = 0


@contextmanager
def objects_set_aside() -> Iterator[None]:
    """Let a run freeze objects for the garbage collector as soon as it makes many.

    Records live as long as a page. Without the freeze, the collector scans all objects of the
    process every few pages: an eighth of the cost of a first collection. A run that makes few
    freezes none, and the program's garbage is collected as ever. Where another run or the program
    has frozen objects already, nothing is changed.
    """
    global _may_set_aside
    # Counting takes as long as a scan: not once for each of many concurrent runs.
    if _may_set_aside or gc.get_freeze_count():
        yield
        return
    try:
        _may_set_aside = True
        yield
    finally:
        _put_back()


def note_made(count: int, in_use: int = 0) -> None:
    """Set aside what exists, if a run has made many objects for the first time.

    Args:
        count: The objects that it made.
        in_use: How many of them are certainly no garbage.
    """
    global _are_set_aside, _passed_over_by_runs
    if count < _MANY or _are_set_aside or not _may_set_aside:
        return
    unsearched = _unsearched()
    with _changing:
        if _may_set_aside and not _are_set_aside:
            _are_set_aside = True
            _passed_over_by_runs += max(unsearched - in_use, 0)
            gc.freeze()
            if not _may_set_aside:  # the run ended by a collection just now
                _are_set_aside = False
                gc.unfreeze()


def _put_back() -> None:
    global _may_set_aside, _are_set_aside, _passed_over_by_runs
    is_due, unsearched = False, _unsearched()
    with _changing:
        _may_set_aside = False
        if _are_set_aside:
            _are_set_aside = False
            _passed_over_by_runs += unsearched
            # What was frozen is old, and old objects are searched by a count that begins anew with
            # each freeze: a program of nothing but such runs would never search them.
            is_due = (
                _passed_over_by_runs >= _BETWEEN_RUNS
                and _passed_over_by_runs >= gc.get_freeze_count() // _OF_ALL
            )
            gc.unfreeze()
    if is_due and gc.isenabled() and gc.get_threshold()[0]:
        _passed_over_by_runs = 0
        gc.collect()


def _unsearched() -> int:
    """Return about how many objects were made since all were searched."""
    (made, searched, searched_more), (most, often, _) = gc.get_count(), gc.get_threshold()
    return made + most * (searched + often * searched_more)


@contextmanager
def uncollected() -> Iterator[None]:
    """Let Python collect no garbage inside, where all objects that are made are in use.

    In a run, many objects that were made inside are set aside as well.
    """
    collects, before = gc.isenabled(), gc.get_count()[0]
    try:
        # Where it is off, another thread is inside, and may turn it on before this line: whoever
        # turns it off turns it on again, and nobody else does.
        if collects:
            gc.disable()
        yield
    finally:
        if collects:
            try:
                if _may_set_aside and (count := gc.get_count()[0] - before) >= _MANY:
                    _set_more_aside(count)
            finally:
                gc.enable()


def _set_more_aside(count: int) -> None:
    global _passed_over
    note_made(count, in_use=count)
    _passed_over += min(count, _MOST)
    if _passed_over >= _INTERVAL:
        _passed_over = 0
        gc.unfreeze()
        gc.collect()
    with _changing:
        if _are_set_aside:
            gc.freeze()
