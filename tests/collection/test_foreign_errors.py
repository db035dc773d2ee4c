"""Errors of custom classes on their way out of the engine."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from ladon_storage.collection.foreign_errors import errors_made_visible
from ladon_storage.errors import SourceError


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


def test_error_without_a_text_stays_what_it_is() -> None:
    """The class alone says what went wrong."""
    with pytest.raises(SilentError), errors_made_visible("own"):
        raise SilentError("x")
