"""Fixtures that the tests of sources share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import stamina

from ladon_storage.sources.http import sending


@pytest.fixture
def no_waiting() -> Iterator[None]:
    """Repeat as often as in earnest, without the waiting in between."""
    with stamina.set_testing(True, attempts=sending.ATTEMPTS, cap=True):
        yield


@pytest.fixture
def two_attempts() -> Iterator[None]:
    """Repeat once, and at once."""
    with stamina.set_testing(True, attempts=2, cap=True):
        yield
