"""The engine against random schedules: whatever happens, no version is lost and nothing promised.

``RANDOM_EXAMPLES=2000 pytest tests/collection/test_random_schedules.py`` looks for new ones, in
minutes; without it the schedules are the same each time. One that fails is told line by line, with
what each run said.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings

from ladon_storage.collection import extraction as passage
from tests.collection.schedules.backends import Scripted, real_parts
from tests.collection.schedules.drawn import DAYS, feeds, schedules
from tests.collection.schedules.steps import (
    Fault,
    Feed,
    Lose,
    Publish,
    Reset,
    Run,
    Step,
    Storm,
    Tick,
)
from tests.collection.schedules.world import World, played
from tests.postgres import PostgresServer
from tests.service_databases import emptied

EXAMPLES = int(os.environ.get("RANDOM_EXAMPLES", "0"))
pytestmark = [pytest.mark.slow] if EXAMPLES else []


def examples(number: int) -> settings:
    return settings(
        max_examples=EXAMPLES or number,
        derandomize=not EXAMPLES,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


@pytest.fixture(autouse=True)
def _every_page(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Checkpoint after each page, and say nothing: a schedule that fails is told whole."""
    monkeypatch.setattr(passage, "CHECKPOINT_SECONDS", 0.0)
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


# What is older than a watermark is not promised either while that one is in the future.
LATE_AND_AHEAD = [
    *(Run(), Publish("late", 2, 6), Run(), Reset("ahead")),
    *(Publish("late", 2, 6), Reset("again", 6)),
]
# Found by many more schedules than a test has time for.
AFTER_BREAK = Run((Fault("write", 1, "after", "kill"),))
THREE = [Publish("new", 0), Tick(1), Publish("new", 1), Tick(1), Publish("new", 2)]
UNHEARD = Run((Fault("open", 0, "before", "error"),))
GONE_BACK = [
    *(Publish("new", 0), Tick(1), Publish("moved", 0), Run(), Publish("revert", 0)),
    *(Tick(3), Publish("new", 1), Tick(6), Publish("new", 2), Tick(6), Publish("new", 3)),
    Run((Fault("read", 3, "before", "kill"),)),
]
JUMPED = [
    *(Publish("new", 0), Run(), Reset("ahead"), Tick(1), Publish("new", 1)),
    *(Run((), False, DAYS), Tick(60)),
]

# The request of an operator is on its way while the run that it hits ends, killed or failed.
CUT_OFF = [
    *(Publish("new"), Tick(5), Publish("new", 1), Run()),
    *(step for n in range(2, 5) for step in (Tick(2), Publish("new", n))),
    Run((Fault("read", 2, "after", "reset"), Fault("write", 1, "before", "kill"))),
    Run((Fault("read", 2, "after", "reset"), Fault("write", 1, "after", "error"))),
]

# A watermark that is wrong must not hide what the rules about a right one find out.
COLLECTED = [step for n in range(3) for step in (Tick(5), Publish("new", n), Run())]
OVERRULED = [Reset("back", 6), Reset("ahead")]

WRITTEN_OVER = [
    *(Publish("new"), Run(), Storm(), Publish("late", 1, 1)),
    *(Reset("back", 1), Reset("ahead")),
]


def deeply(few: int, many: int) -> pytest.MarkDecorator:
    """Play few schedules, and many where slow tests run."""
    return pytest.mark.parametrize("number", [few, pytest.param(many, marks=pytest.mark.slow)])


@deeply(120, 1200)
def test_any_schedule_loses_nothing_in_a_sink_that_remembers(number: int) -> None:
    """Each promise holds when it is made, and at the end all that is due is there, once."""

    @examples(number)
    @example(Feed(overlap=0, ordered=True, honest=False, page=1, seed=7), [*THREE, AFTER_BREAK])
    @example(Feed(), [*THREE, Run(), Publish("late", 3, 6), Reset("delete"), UNHEARD])
    @example(Feed(lookback=30), [Run(), Publish("new"), Tick(60)])
    @example(Feed(lookback=30), [Publish("new"), Tick(1), Publish("new", 1), Run((), False, DAYS)])
    @example(Feed(), [*THREE, Storm(), Run(), Storm(), Publish("older", 0, 1), Run()])
    @example(Feed(ordered=True, page=1), GONE_BACK)
    @example(Feed(overlap=0, ordered=False, honest=False, page=1), WRITTEN_OVER)
    @given(feeds, schedules)
    def check(feed: Feed, schedule: list[Step]) -> None:
        asyncio.run(played(World(feed), schedule))

    check()


@deeply(60, 600)
def test_any_schedule_loses_nothing_in_a_sink_that_does_not(number: int) -> None:
    """The watermark alone is enough, as long as the sink keeps what it has."""

    @examples(number)
    @example(Feed(overlap=0), JUMPED)
    @example(Feed(overlap=0, lookback=30), LATE_AND_AHEAD)
    @given(feeds, schedules)
    def check(feed: Feed, schedule: list[Step]) -> None:
        world = World(feed)
        world.backend = Scripted(world, remembers=False)
        asyncio.run(played(world, schedule))

    check()


@pytest.mark.parametrize(
    ("kind", "keep", "service"),
    [
        ("sqlite", "latest", "sqlite"),
        pytest.param("sqlite", "all", "sqlite", marks=pytest.mark.slow),
        ("sqlite", "all", "postgresql"),
        pytest.param("duckdb", "latest", "sqlite", marks=pytest.mark.slow),
        pytest.param("duckdb", "all", "sqlite", marks=pytest.mark.slow),
    ],
)
def test_any_schedule_loses_nothing_between_real_service_and_table(
    kind: str,
    keep: str,
    service: str,
    tmp_path_factory: pytest.TempPathFactory,
    request: pytest.FixtureRequest,
) -> None:
    """What holds in memory holds where a request and a transaction can fail in the middle."""

    def database(folder: Path) -> Path | str:
        if service == "sqlite":
            return folder / "service.db"
        found: PostgresServer = request.getfixturevalue("postgres")
        return emptied(found, request.getfixturevalue("migrated_postgres"))

    async def play(feed: Feed, schedule: list[Step]) -> None:
        world = World(feed)
        folder = tmp_path_factory.mktemp("world")
        async with real_parts(world, folder, kind, keep, database(folder)):
            await played(world, schedule)

    @examples(6 if (kind, service) == ("sqlite", "sqlite") else 2)
    @example(Feed(page=1), CUT_OFF)
    @example(Feed(overlap=0), [*COLLECTED, Lose(0), Reset("ahead"), Run()])
    @example(Feed(overlap=0), [*COLLECTED, Reset("ahead"), Lose(6), Run()])
    @example(Feed(overlap=0), [*COLLECTED, Publish("late", 3, 4), *OVERRULED, Run()])
    @given(feeds, schedules)
    def check(feed: Feed, schedule: list[Step]) -> None:
        asyncio.run(play(feed, schedule))

    check()
