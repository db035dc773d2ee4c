"""Errors of custom classes on their way out of the engine."""

from __future__ import annotations

import asyncio
import gc
import weakref
from dataclasses import dataclass

import pytest

from ladon_storage.collection.foreign_errors import cancellations_checked, errors_made_visible
from ladon_storage.errors import CollectionError, SourceError


@dataclass(frozen=True)
class FrozenError(Exception):
    """An error that cannot be changed."""

    text: str


class SilentError(Exception):
    """An error whose class fails to tell it."""

    def __str__(self) -> str:
        raise RuntimeError("no text")


def test_error_that_cannot_be_changed_is_told_by_another() -> None:
    """The text is that of the error, and not of the attempt to change it."""
    with pytest.raises(SourceError) as caught, errors_made_visible("own"):
        raise FrozenError("kev\x1b[31m")
    assert str(caught.value) == r"FrozenError: kev\x1b[31m"


def test_error_without_a_text_is_told_by_another() -> None:
    """Whatever shows it would fail, such as Prefect's states; the class says what went wrong."""
    with pytest.raises(SourceError) as caught, errors_made_visible("own"):
        raise SilentError("x")
    assert str(caught.value) == "SilentError: its text cannot be shown (RuntimeError)"


async def test_cancellation_that_was_not_requested_is_an_error() -> None:
    """A task that ends with it would look as if its caller had cancelled it."""
    lost = asyncio.create_task(asyncio.sleep(60))
    lost.cancel()
    place = r"'own' ended by .* in test_foreign_errors\.py, line \d+:"
    with pytest.raises(CollectionError, match=place), cancellations_checked("own"):
        await lost


async def test_error_in_place_of_a_cancellation_keeps_nothing_in_a_cycle() -> None:
    """A task that ends with it goes when it is let go, with the pages in its frames."""

    async def work() -> None:
        with cancellations_checked("own"):
            raise asyncio.CancelledError

    gc.collect()
    gc.disable()
    try:
        task = asyncio.create_task(work())
        await asyncio.wait({task})
        assert isinstance(task.exception(), CollectionError)
        ended = weakref.ref(task)
        del task
        assert ended() is None
    finally:
        gc.enable()


async def test_cancellation_of_a_class_of_its_own_stays_what_it_is() -> None:
    """Prefect ends code that exceeds its time by one, wherever that is."""

    class OutOfTimeError(asyncio.CancelledError):
        pass

    with pytest.raises(OutOfTimeError), cancellations_checked("own"):
        raise OutOfTimeError


async def test_cancellation_of_the_task_stays_one() -> None:
    """Its caller waits for it."""

    async def work() -> None:
        with cancellations_checked("own"):
            await asyncio.Event().wait()

    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_time_that_is_over_stays_a_timeout() -> None:
    """It cancels the task, and takes that back."""

    async def work() -> None:
        async with asyncio.timeout(0):
            with cancellations_checked("own"):
                await asyncio.Event().wait()

    with pytest.raises(TimeoutError):
        await work()
