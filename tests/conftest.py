"""Fixtures of a whole session, made once however many files ask for them."""

from __future__ import annotations

import gc
import logging
import os
import signal
from collections.abc import Generator, Iterator
from typing import Any

import pytest

from ladon_storage import errors
from ladon_storage.sources.http import hosts
from tests.mariadb import mariadb
from tests.postgres import postgres
from tests.redis_server import _redis_server, redis_server
from tests.s3_server import s3
from tests.service_databases import empty_postgres, migrated_postgres, service_database

TOGETHER = (
    "tests/circuit/test_rates",
    "tests/flows/",
    "tests/project/test_packaging",
    "tests/project/test_public_names",
    "tests/sinks/test_delta_s3",
    "tests/sources/test_json_documents",
    "tests/sources/test_taxii",
    "tests/testing/test_judge",
)
"""Tests that share what takes seconds to start or to make."""

LIMIT_SECONDS = 180.0
SLOW_SECONDS = 1200.0
FOLDER_SECONDS = {"flows": 300.0, "contract": SLOW_SECONDS, "e2e": SLOW_SECONDS, "up": SLOW_SECONDS}
"""For a whole test: what waits for something that a fault keeps away fails, and does not hang.

Prefect's server stalls for minutes on a machine that is busy.
"""

# Every server of these tests is on loopback: no test goes by the proxies of whoever runs it.
for _name in [name for name in os.environ if name.lower().endswith("_proxy")]:
    del os.environ[_name]

__all__ = [
    "_redis_server",
    "empty_postgres",
    "mariadb",
    "migrated_postgres",
    "postgres",
    "redis_server",
    "s3",
    "service_database",
]


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    """Keep from each test what a call of the command in another one has the package log to."""
    handlers = logging.getLogger("ladon_storage").handlers
    before = list(handlers)
    yield
    handlers[:] = before


@pytest.fixture(autouse=True)
def _no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep from each test the secrets of another one: its errors would be shown without them."""
    monkeypatch.setattr(errors, "_secrets", set())
    errors._longest_first.cache_clear()


@pytest.fixture(autouse=True)
def _no_circuits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep from each test the circuits of another one, whose server may have had the same port."""
    monkeypatch.setattr(hosts, "_circuits", {})


@pytest.fixture
def small_heap() -> Iterator[None]:
    """Leave what was there before a test out of its look for garbage, which takes a second else."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None]:
    """End a test that waits for ever, also where it waits in a thread, a pipe or a process."""
    seconds = FOLDER_SECONDS.get(item.path.parent.name, LIMIT_SECONDS)
    if item.get_closest_marker("slow"):
        seconds = SLOW_SECONDS

    def end(*_: object) -> None:
        pytest.fail(f"The test did not end in {seconds:g} s.")

    before = signal.signal(signal.SIGALRM, end)
    # Once more and more often: the first may end a task of an event loop that goes on.
    signal.setitimer(signal.ITIMER_REAL, seconds, 1)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish() -> None:
    """Look for what tests left behind once; pytest does five times, through all that is."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Keep in one process what has one server, one wheel or one fork for all of its tests.

    xdist 3.8 loses the groups of its marks with pytest 9.2 (pytest-xdist#1386). It also counts what
    is left of all that a worker was ever given whenever a test ends: of two or three tests here.
    """
    from xdist.scheduler import LoadScopeScheduling

    if config.getvalue("dist") != "loadgroup":
        return None

    class Scheduling(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            return next(filter(nodeid.startswith, TOGETHER), nodeid)

        def mark_test_complete(self, node: Any, item_index: int, duration: float = 0) -> None:
            scope = self._split_scope(self.registered_collections[node][item_index])
            super().mark_test_complete(node, item_index, duration)
            if all(self.assigned_work[node][scope].values()):
                del self.assigned_work[node][scope]

    return Scheduling(config, log)
