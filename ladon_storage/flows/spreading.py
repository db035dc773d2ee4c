"""Groups of a flow run on many workers: those of its task runner, or runs on a work pool.

- Work is taken in groups, a few for each worker: Prefect is not asked for each source, and a worker
  that is slow, or dies, has only a part.
- A group whose worker died is taken again by another. The sources that the dead worker had finished
  have nothing new; the one that it held is free when its lease has ended.
- The results of flow runs on a work pool come by an artifact: Prefect keeps no result of another
  process unless it has a storage for it.
- A run on a work pool may never begin: no worker is free, or the host ends before the first
  heartbeat. The run that starts the others takes its part over. Both may collect at once, and each
  source still has one writer: an execution waits for the lease of another.
"""

from __future__ import annotations

import asyncio
import contextvars
import json
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any, TypeVar
from uuid import UUID

from prefect import get_client
from prefect.artifacts import acreate_table_artifact
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    ArtifactFilterKey,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.context import FlowRunContext
from prefect.deployments.flow_runs import arun_deployment
from prefect.futures import PrefectFuture
from prefect.task_runners import ThreadPoolTaskRunner

from ladon_storage.collection.summaries import one_line
from ladon_storage.collection.workers import run_workers
from ladon_storage.errors import CollectionError, ConfigurationError
from ladon_storage.flows.part_runs import PartRun
from ladon_storage.flows.zombies import CONFIRMED, MISSED, frequency, keep_sweeping

logger = logging.getLogger("ladon_storage.flows")

T = TypeVar("T")
G = TypeVar("G")

DEFAULT_SPREAD = 8
"""The number of workers where the flow has a task runner of Dask or Ray, and none is said."""

MAX_SPREAD = 1_000
GROUPS_PER_WORKER = 4
ATTEMPTS = 4
"""The number of workers that may die of one group until it is given up."""

PART_KEY = "ladon-collect-many-part"
_POLL_SECONDS = 5.0


def is_local() -> bool:
    """Return whether the task runner of the present flow run is the one of this process."""
    context = FlowRunContext.get()
    return context is None or isinstance(context.task_runner, ThreadPoolTaskRunner)


def spread_of(asked: int | None) -> int:
    """Return the number of workers that share the present run.

    Raises:
        ConfigurationError: It is none.
    """
    if asked is None:
        return 1 if is_local() else DEFAULT_SPREAD
    if not 1 <= asked <= MAX_SPREAD:
        raise ConfigurationError(f"spread is {asked}. Set it to 1 to {MAX_SPREAD}.")
    return asked


def parted(items: Sequence[T], count: int) -> list[Sequence[T]]:
    """Return items in so many consecutive parts of about the same length, none of them empty.

    >>> parted("abcde", 2), parted("ab", 3)
    (['abc', 'de'], ['a', 'b'])
    """
    count = min(count, len(items))
    size, more = divmod(len(items), count) if count else (0, 0)
    ends = [number * size + min(number, more) for number in range(count + 1)]
    return [items[begin:end] for begin, end in pairwise(ends)]


async def by_task_runner(
    submit: Callable[[G], PrefectFuture[Any]],
    groups: Sequence[G],
    workers: int,
    done: Callable[[G, Any], None],
) -> None:
    """Run a task for each group on the workers of the flow's task runner.

    Args:
        submit: Submits the task of a group. It raises only where its worker died, or is wrong.
        groups: The groups.
        workers: The number of groups that are in flight.
        done: Called with each group and its result, or with the error of its last attempt.
    """
    left = deque(groups)
    loop = asyncio.get_running_loop()

    async def work(threads: ThreadPoolExecutor) -> None:
        while left:
            group = left.popleft()
            for attempt in range(1, ATTEMPTS + 1):
                future = submit(group)
                context = contextvars.copy_context()
                outcome = await loop.run_in_executor(threads, context.run, _outcome, future)
                if not isinstance(outcome, BaseException):
                    break
                logger.warning(
                    "A worker ended in the middle of a group (attempt %d of %d): %s",
                    attempt,
                    ATTEMPTS,
                    one_line(outcome),
                )
            done(group, outcome)

    with ThreadPoolExecutor(workers, "ladon-groups") as threads:
        await run_workers(min(workers, len(groups)), lambda: work(threads))


def _outcome(future: PrefectFuture[Any]) -> Any:
    """Return the result of a task run, or its error, whichever library raises it."""
    try:
        return future.result(raise_on_failure=False)
    except Exception as error:  # of Dask or Ray: the worker's process is gone
        return error


async def work_pool() -> str | None:
    """Return the work pool on which the present deployment runs; ``None``: it has none.

    Raises:
        ConfigurationError: A limit would keep the runs of the parts waiting for this one.
    """
    context = FlowRunContext.get()
    run = context.flow_run if context else None
    if run is None or run.deployment_id is None:
        return None
    async with get_client() as client:
        deployment = await client.read_deployment(run.deployment_id)
        pool = deployment.work_pool_name
        if pool is None:
            return None
        limits = {
            f"deployment {deployment.name!r}": getattr(
                deployment.global_concurrency_limit, "limit", None
            ),
            f"work pool {pool!r}": (await client.read_work_pool(pool)).concurrency_limit,
        }
    for name, limit in limits.items():
        if limit is not None and limit < 2:
            raise ConfigurationError(
                f"The {name} has a concurrency limit of {limit}, and the runs of the parts would "
                "wait for the run that starts them. Raise it to 2 or more, or set spread to 1."
            )
    return pool


async def by_flow_runs(
    count: int, take_over: Callable[[int], Awaitable[str]]
) -> list[tuple[FlowRun, dict[str, Any]]]:
    """Run this deployment once for each part, on its work pool, and return the runs' reports.

    A run that crashed is started again: its process is gone. Where its worker is gone, too, its
    missing heartbeats show that, and it is marked as crashed. A run that has not begun by then, or
    has sent no heartbeat, is cancelled, and its part taken over; of several, one after another.

    Args:
        count: The number of parts.
        take_over: Collects a part, by its number, here; returns how it failed, or nothing.

    Returns:
        The runs whose parts were not taken over, and their reports.

    Raises:
        CollectionError: A part did not complete; the others did.
    """
    context = FlowRunContext.get()
    assert context is not None  # noqa: S101 - there is a deployment
    assert context.flow_run is not None  # noqa: S101
    deployment, given = context.flow_run.deployment_id, dict(context.flow_run.parameters)
    assert deployment is not None  # noqa: S101
    reason = f"Run {context.flow_run.name!r} takes its part over."

    started: set[UUID] = set()
    one_at_a_time = asyncio.Lock()
    taken: dict[UUID, str] = {}

    async def one(number: int) -> FlowRun:
        parameters = {**given, "spread": 1, "part": f"{number}/{count}"}
        for attempt in range(1, ATTEMPTS + 1):
            begun: FlowRun = await arun_deployment(deployment, parameters=parameters, timeout=0)
            started.add(begun.id)
            part = PartRun(begun, (MISSED + CONFIRMED) * frequency(), _POLL_SECONDS)
            while not await part.ends_in_time():
                async with one_at_a_time:
                    if await part.cancel(reason):
                        taken[begun.id] = await take_over(number)
                        return part.run
            found = part.run
            if found.state is None or found.state.type is not StateType.CRASHED:
                break
            logger.warning(
                "The run of part %d of %d crashed (attempt %d of %d).",
                number, count, attempt, ATTEMPTS,
            )  # fmt: skip
        return found

    sweeping = asyncio.create_task(keep_sweeping(frequency(), started))
    try:
        async with asyncio.TaskGroup() as parts:
            watching = [parts.create_task(one(number)) for number in range(1, count + 1)]
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    finally:
        sweeping.cancel()
        await asyncio.wait({sweeping})
    runs = [each.result() for each in watching]
    failures = [(run.name, taken.get(run.id, _failure(run))) for run in runs]
    failed = [f"{name} ({failure})" for name, failure in failures if failure]
    if failed:
        raise CollectionError(
            f"{len(failed):,} of {count:,} parts failed: {'; '.join(failed)}. The others are "
            "collected."
        )
    return [(run, await _report_of(run.id)) for run in runs if run.id not in taken]


def _failure(run: FlowRun) -> str:
    """Return how a run that has ended failed; empty: it completed."""
    if run.state is None:
        return "no state"
    return "" if run.state.is_completed() else run.state.message or run.state.name or "failed"


async def publish_part(report: dict[str, Any]) -> None:
    """Leave the report of a part for the run that started it."""
    await acreate_table_artifact([report], key=PART_KEY, description="The report of one part.")


async def _report_of(run_id: UUID) -> dict[str, Any]:
    async with get_client() as client:
        found = await client.read_artifacts(
            artifact_filter=ArtifactFilter(
                flow_run_id=ArtifactFilterFlowRunId(any_=[run_id]),
                key=ArtifactFilterKey(any_=[PART_KEY]),
            )
        )
    if not found:
        return {}
    data: Any = found[-1].data
    rows: list[dict[str, Any]] = json.loads(data) if isinstance(data, str) else data
    return rows[0]
