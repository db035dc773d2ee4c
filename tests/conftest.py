"""Fixtures of a whole session, made once however many files ask for them."""

from __future__ import annotations

import gc
import logging
import os
from collections.abc import Iterator
from typing import Any

import pytest

from tests.mariadb import mariadb
from tests.postgres import postgres
from tests.redis_server import _redis_server, redis_server
from tests.s3_server import s3
from tests.service_databases import empty_postgres, migrated_postgres, service_database

FLOWS = "tests/flows/"
S3 = "tests/sinks/test_delta_s3"

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


def pytest_collection_finish() -> None:
    """Leave the half a million objects of the collected tests out of each look for garbage."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Keep the tests of flows in one process, and so at one Prefect server, and those of S3, too.

    xdist 3.8 loses the groups of its marks with pytest 9.2 (pytest-xdist#1386).
    """
    from xdist.scheduler import LoadScopeScheduling

    if config.getvalue("dist") != "loadgroup":
        return None
    scheduler = LoadScopeScheduling(config, log)
    scheduler._split_scope = lambda nodeid: next(filter(nodeid.startswith, (FLOWS, S3)), nodeid)
    return scheduler
