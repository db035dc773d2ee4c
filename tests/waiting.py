"""Waiting for what a task of a test does, no longer than the task lives."""

from __future__ import annotations

import asyncio
from typing import Any

SECONDS = 20.0


async def reached(event: asyncio.Event, running: asyncio.Future[Any]) -> None:
    """Wait until ``running`` sets ``event``; fail with its error if it ends before, and in time."""
    waiting = asyncio.ensure_future(event.wait())
    try:
        await asyncio.wait((waiting, running), timeout=SECONDS, return_when=asyncio.FIRST_COMPLETED)
        if not event.is_set():
            assert running.done(), f"the task did not get there in {SECONDS:g} s: {running!r}"
            raise AssertionError(f"the task ended before it got there: {running.result()!r}")
    finally:
        waiting.cancel()


async def accepted_begin() -> None:
    """Let the connections begin that a server of streams has accepted: it closes no others."""
    for _ in range(4):
        await asyncio.sleep(0)
