"""Errors of other libraries and of custom classes, whose texts may quote a feed.

A traceback prints such a text as it is, and so do Prefect's log and console. So the text is made
visible where the error leaves the engine: the error, its class and its traceback stay.

A cancellation that is not one of the run's own task becomes an error there.
"""

from __future__ import annotations

import asyncio
import sysconfig
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ladon_storage.errors import CollectionError, LadonStorageError, SourceError, told, visible

_LIBRARIES = tuple(map(sysconfig.get_path, ("stdlib", "purelib", "platlib")))

_MOST = 100
"""The most errors of a chain that are looked at; it may be a circle."""


@contextmanager
def errors_made_visible(source_id: str) -> Iterator[None]:
    """Let no error leave whose text a terminal would act on.

    Raises:
        SourceError: The text of another error cannot be changed, or its class fails to return it.
    """
    try:
        yield
    except Exception as error:
        _make_visible(error)
        if _is_visible(error):
            raise
        text = visible(f"{type(error).__name__}: {told(error)}")
        raise SourceError(text, source_id).with_traceback(error.__traceback__) from None


@contextmanager
def cancellations_checked(source_id: str) -> Iterator[None]:
    """Let no cancellation leave that was not requested.

    A source, a sink or a storage raises one where it awaits what was cancelled. As the end of a
    task it is no error: whatever waits for several tasks would take it for well done.

    Raises:
        CollectionError: In place of a cancellation, where this task is not cancelled.
    """
    try:
        yield
    except asyncio.CancelledError as error:
        if _is_requested(error):
            raise
        raise CollectionError(
            f"The run of source {source_id!r} ended by a cancellation that was not requested, in "
            f"{place_of(error)}: what is awaited there was cancelled by something else. Catch it "
            "there.",
            source_id,
        ) from error


def _is_requested(error: asyncio.CancelledError) -> bool:
    # A class of its own is another way to end a run: Prefect's timeouts raise theirs anywhere.
    task = asyncio.current_task()
    return type(error) is not asyncio.CancelledError or task is None or task.cancelling() > 0


def place_of(error: BaseException) -> str:
    """Return the line that raised an error, or that called the library which did."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [each for each in frames if not each.filename.startswith(_LIBRARIES)]
    place = (own or frames)[-1]
    return f"{Path(place.filename).name}, line {place.lineno}"


def _make_visible(error: BaseException) -> None:
    """Escape the texts of an error, of its causes, and of the members of a group."""
    left: list[BaseException | None] = [error]
    for _ in range(_MOST):
        if not left:
            return
        each = left.pop()
        if each is None:
            continue
        if not isinstance(each, LadonStorageError):
            with suppress(Exception):  # a custom class may forbid it: see `errors_made_visible`
                each.args = tuple(visible(a) if isinstance(a, str) else a for a in each.args)
                if isinstance(each, OSError) and isinstance(each.strerror, str):
                    each.strerror = visible(each.strerror)
        if isinstance(each, BaseExceptionGroup):
            left += each.exceptions
        left += [each.__cause__, each.__context__]


def _is_visible(error: Exception) -> bool:
    try:
        said = str(error)
    except Exception:
        return False
    return all(each.isprintable() or each == "\n" for each in said)  # lines, as of a validation
