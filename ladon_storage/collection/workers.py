"""Several workers that share what is left, of which none may end unseen."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from ladon_storage.errors import CollectionError


async def run_workers(count: int, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run ``count`` workers at once, until all have ended.

    An error of one cancels the others, and is raised alone.

    Args:
        count: The number of workers.
        work: Makes the coroutine of one.

    Raises:
        CollectionError: One ended by a cancellation that was not requested, which a group of tasks
            takes for well done: what it had begun is not done.
    """
    error: BaseException | None = None
    try:
        async with asyncio.TaskGroup() as group:
            workers = [group.create_task(work()) for _ in range(count)]
    except BaseExceptionGroup as errors:
        error = errors.exceptions[0]
    try:
        if error is not None:  # not above, where the group would take the place of its context
            raise error
    finally:
        del error
    if cancelled := sum(each.cancelled() for each in workers):
        raise CollectionError(
            f"{cancelled} of {count} workers ended by a cancellation that was not requested, and "
            "did not finish what they had begun. Run it again."
        )
