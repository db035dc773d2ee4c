"""Errors of other libraries and of custom classes, whose texts may quote a feed, or a secret.

A traceback prints such a text as it is, and so do Prefect's log and console. So the text is made
fit to be shown where the error leaves the engine: the error, its class and its traceback stay.

A cancellation that is not one of the run's own task becomes an error there, and a sink hides none.
"""

from __future__ import annotations

import asyncio
import sysconfig
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ladon_storage import errors
from ladon_storage.collection.protocols import Sink
from ladon_storage.errors import (
    CollectionError,
    LadonStorageError,
    SourceError,
    told,
    visible,
    without_secrets,
)

_LIBRARIES = tuple(map(sysconfig.get_path, ("stdlib", "purelib", "platlib")))


@contextmanager
def errors_fit_to_show(source_id: str) -> Iterator[None]:
    """Let no error leave whose text a terminal would act on, or has a secret in it.

    Raises:
        SourceError: The text of another error cannot be changed, or its class fails to return it.
    """
    try:
        yield
    except (Exception, BaseExceptionGroup) as error:
        causes = _chain(error)[1:]
        for each in (error, *causes):
            _make_fit(each)
        is_fit = _is_fit(error) or _is_own(error)
        if is_fit and all(map(_is_fit, causes)) and isinstance(error, Exception):
            raise
        if is_fit and not isinstance(error, BaseExceptionGroup):
            raise error from None  # its own text says enough
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


class Entered:
    """A sink that is entered and left, and whose class can hide no error on the way out.

    A class that returns something true from ``__aexit__`` says that it handled the error, be it a
    cancellation: a run that lost records would go on as if it had ended well.

    Args:
        sink: The sink.
    """

    def __init__(self, sink: Sink) -> None:
        self._sink = sink

    async def __aenter__(self) -> Sink:
        return await self._sink.__aenter__()

    async def __aexit__(self, *error: Any) -> None:
        await self._sink.__aexit__(*error)


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


def _is_own(error: BaseException) -> bool:
    """Return whether an error is of a class of this package, whose texts are fit."""
    return isinstance(error, LadonStorageError) and type(error).__module__ == errors.__name__


def _chain(error: BaseException) -> list[BaseException]:
    """Return an error, its causes, and the members of a group, each once: it may be a circle."""
    found: dict[int, BaseException] = {}
    left: list[BaseException | None] = [error]
    while left:
        each = left.pop()
        if each is None or id(each) in found:
            continue
        found[id(each)] = each
        if isinstance(each, BaseExceptionGroup):
            left += each.exceptions
        left += [each.__cause__, each.__context__]
    return list(found.values())


def _make_fit(error: BaseException) -> None:
    # A custom class may forbid any of it: see `errors_fit_to_show`.
    with suppress(Exception):
        error.args = tuple(visible(each) if isinstance(each, str) else each for each in error.args)
    for name in ("message", "strerror", "msg", "text"):  # of an OSError, of a SyntaxError
        with suppress(Exception):
            if isinstance(said := getattr(error, name, None), str):
                setattr(error, name, visible(said))
    with suppress(Exception):
        error.__notes__ = [visible(each) for each in error.__notes__]


def _is_fit(error: BaseException) -> bool:
    try:
        said = str(error)
        shown = "".join(traceback.format_exception_only(error))
    except Exception:
        return False
    if any(each != without_secrets(each) for each in (said, shown)):
        return False
    return all(each.isprintable() or each == "\n" for each in said)  # lines, as of a validation
