"""Fixtures that the tests of sources share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import stamina

from ladon_storage.sources.http import sending

FOLDER = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave the processes of the contract to the slow tests: each imports all of a module again."""
    for item in items:
        if (
            item.name == "test_another_process_reads_the_same_versions"
            and FOLDER in item.path.parents
        ):
            item.add_marker(pytest.mark.slow)


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
