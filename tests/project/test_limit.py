"""The tests themselves: none of them hangs."""

from __future__ import annotations

import asyncio
import threading

import pytest

from tests import conftest
from tests.waiting import reached


def test_test_that_waits_for_ever_fails(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A test fails at its limit, also where it waits for what no event loop can end."""
    monkeypatch.setattr(conftest, "LIMIT_SECONDS", 0.05)
    call = conftest.pytest_runtest_call(request.node)
    next(call)
    with pytest.raises(pytest.fail.Exception, match=r"did not end in 0\.05 s"):
        threading.Event().wait(20)
    call.close()


async def test_task_that_ends_before_its_event_fails_at_once() -> None:
    """A test that waits for what a task does sees the error that kept the task from it."""

    async def broken() -> None:
        raise ConnectionError("refused")

    with pytest.raises(ConnectionError, match="refused"):
        await reached(asyncio.Event(), asyncio.ensure_future(broken()))
