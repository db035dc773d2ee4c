"""The judge of collectors finds each usual mistake, and nothing in a right loop."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from datetime import timedelta
from multiprocessing import get_context
from pathlib import Path
from uuid import uuid4

import pytest
import stamina

from ladon_storage.collection import Limits, run
from ladon_storage.embedded import EmbeddedStorage
from ladon_storage.errors import ConfigurationError
from ladon_storage.sinks import SqlSink
from ladon_storage.sources import RestApi
from ladon_storage.sources.rest.pagination import NextLinkPagination
from ladon_storage.sources.rest.source import TimeParameter
from ladon_storage.testing import Verdict, judge
from ladon_storage.testing.judging.trials import TRIALS, Trial
from tests.testing import loops

Judge = Callable[..., Verdict]


@pytest.fixture(scope="module")
def judged() -> Iterator[Judge]:
    """Judge in a process that has imported little: a fork of it takes a third of the time."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as processes:
        yield lambda *collector, **options: processes.submit(judge, *collector, **options).result()


@pytest.mark.slow
def test_right_loop_passes_every_trial(judged: Judge) -> None:
    """Whatever the feed does, and whatever ends a run."""
    verdict = judged(loops.Loop(), schedules=1)
    assert verdict.passed, str(verdict)
    assert verdict.trials == list(TRIALS)
    assert verdict.runs >= 10 * len(TRIALS)
    assert verdict.kills > 0
    assert str(verdict).count("passed") == len(TRIALS)


@pytest.mark.slow
def test_right_loop_by_pages_passes_what_finds_a_wrong_one(judged: Judge) -> None:
    """Its watermark moves with each page, and in the same transaction."""
    verdict = judged(loops.PageLoop(), trials=["kills", "interrupts"], schedules=3)
    assert verdict.passed, str(verdict)


class Ours:
    """The engine of this package, from a JSON API into a table, with a short lease."""

    async def collect(self, url: str, folder: Path) -> None:
        source = RestApi(
            source_id="feed",
            url=url,
            records="items",
            timestamps=("updated_at",),
            since=TimeParameter(parameter="since"),
            paging=NextLinkPagination(),
            overlap=timedelta(minutes=5),
        )
        sink = SqlSink(f"sqlite:///{folder}/records.db")
        limits = Limits(lease=timedelta(milliseconds=200))
        async with EmbeddedStorage(folder / "ladon.db") as storage:
            with stamina.set_testing(True, attempts=2):
                await run(source, sink, storage, run_id=uuid4().hex, limits=limits)

    def rows(self, folder: Path) -> list[tuple[str, str]]:
        with closing(sqlite3.connect(folder / "records.db")) as database:
            rows = database.execute("SELECT record_id, payload FROM records").fetchall()
        return [(record_id, json.loads(payload)["value"]) for record_id, payload in rows]


@pytest.mark.parametrize(
    "trial",
    [
        "kills",
        "mixed",
        *(pytest.param(each, marks=pytest.mark.slow) for each in ("ties", "returns", "future")),
        pytest.param("rivals", marks=pytest.mark.slow),
    ],
)
def test_engine_of_this_package_passes(trial: Trial, judged: Judge) -> None:
    """What a loop by hand is judged by, the engine is judged by as well."""
    verdict = judged(Ours(), trials=[trial], schedules=1, patience=10)
    assert verdict.passed, str(verdict)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("collector", "trial", "kind"),
    [
        (loops.TieLoop(), "ties", "lost"),
        (loops.LateLoop(), "late", "lost"),
        (loops.AppendLoop(), "kills", "repeated"),
        (loops.AppendLoop(), "interrupts", "repeated"),
        (loops.AppendLoop(), "rivals", "repeated"),
        (loops.FutureLoop(), "future", "lost"),
        (loops.QuietLoop(), "faults", "lost"),
        (loops.StrictLoop(), "unusable", "failed"),
        (loops.FirstWordLoop(), "updates", "stale"),
        (loops.FirstWordLoop(), "returns", "stale"),
        (loops.ClockLoop(), "ties", "lost"),
        (loops.MarkFirstLoop(), "kills", "lost"),
        (loops.MarkFirstLoop(), "interrupts", "lost"),
        (loops.BufferLoop(), "kills", "lost"),
        (loops.FinallyLoop(), "faults", "lost"),
        (loops.TieLoop(), "mixed", "stale"),
        (loops.FirstWordLoop(), "mixed", "stale"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_mistake_is_found_and_its_seed_shows_it_again(
    collector: loops.Loop, trial: Trial, kind: str, judged: Judge
) -> None:
    """The first records that are concerned are named, and the schedule up to there is printed."""
    # Two processes must meet, which the machine decides: it gets as many chances as it needs.
    is_race = trial == "rivals"
    verdict = judged(collector, trials=[trial], schedules=100 if is_race else 5)
    [finding] = verdict.findings
    assert (finding.trial, finding.kind) == (trial, kind)
    assert bool(finding.records) == (kind != "failed")
    assert "tick" in finding.story
    if not is_race:
        [again] = judged(collector, trials=[trial], seed=finding.seed, schedules=1).findings
        assert (again.kind, again.seed) == (finding.kind, finding.seed)
    assert f"{trial}: {kind}" in str(verdict)


class Sleeper(loops.Loop):
    """A loop that does not end."""

    def collect(self, url: str, folder: Path) -> None:
        while True:
            pass


@pytest.mark.slow
def test_run_that_does_not_end_is_killed_and_found(judged: Judge) -> None:
    """A judge does not wait for ever."""
    verdict = judged(Sleeper(), trials=["ties"], timeout=0.2)
    [finding] = verdict.findings
    assert (finding.kind, verdict.runs) == ("failed", 1)
    assert "did not end" in finding.story


class Inventor(loops.Loop):
    """A loop that has a row which the feed never showed."""

    def rows(self, folder: Path) -> list[tuple[str, str]]:
        return [*super().rows(folder), ("r0", "v0")]


def test_row_that_the_feed_never_showed_is_found(judged: Judge) -> None:
    """A torn record is none of the feed's."""
    [finding] = judged(Inventor(), trials=["ties"]).findings
    assert (finding.kind, list(finding.records)) == ("invented", [("r0", "v0")])


class Coroutine(loops.Loop):
    """A loop that is a coroutine."""

    async def collect(self, url: str, folder: Path) -> None:  # type: ignore[override]
        await asyncio.to_thread(super().collect, url, folder)


def test_collector_may_be_a_coroutine(judged: Judge) -> None:
    """Each run has an event loop of its own."""
    assert judged(Coroutine(), trials=["ties"], schedules=1).passed


def test_unknown_trial_is_refused() -> None:
    """A misspelt trial would be one that always passes."""
    with pytest.raises(ConfigurationError, match="no trial 'tie'; choose"):
        judge(loops.Loop(), trials=["tie"])  # type: ignore[list-item]


async def test_judge_refuses_a_running_event_loop() -> None:
    """A forked process cannot go on with it."""
    with pytest.raises(ConfigurationError, match="call it outside"):
        judge(loops.Loop())


def test_verdict_of_nothing_is_passed() -> None:
    """It has no finding."""
    assert Verdict().passed
