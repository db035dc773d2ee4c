"""The judge: it plays schedules against a collector, and looks at its rows after each run.

- A run that succeeds has all that the feed showed when it began, each version once.
- A run that nothing disturbs succeeds; also after one that was killed.
- A record that the feed never showed is in no row.

A run that fails loudly may leave anything out. Each run is a forked process, which ends as the plan
says; the rows are read by the collector's own function, in this process.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
import os
import random
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

from ladon_storage.errors import ConfigurationError
from ladon_storage.testing.crashes import CrashPoint, homes
from ladon_storage.testing.judging.served import ServedFeed
from ladon_storage.testing.judging.ticking_feed import State, TickingFeed, Version
from ladon_storage.testing.judging.trials import TRIALS, Plan, Trial, kinds_of, plans_of
from ladon_storage.testing.processes import Child, Nursery

FaultKind = Literal["lost", "repeated", "stale", "invented", "failed", "unreadable"]
"""What is wrong with a collector.

- ``lost``: a run succeeded, and a record that the feed showed is not there;
- ``repeated``: a version is there twice, or a record where the latest version is kept;
- ``stale``: a run succeeded, and an earlier version is there instead of the one that it was shown;
- ``invented``: the feed never showed what is there;
- ``failed``: a run that nothing disturbed failed, or did not end;
- ``unreadable``: the rows could not be read.
"""

_LINES = 200
"""The lines of a run of which nothing is known yet."""


class Collector(Protocol):
    """A collector of any kind: a function of a library, a loop written by hand."""

    def collect(self, url: str, folder: Path) -> Any:
        """Collect the feed at ``url`` once, into ``folder``; it has the records and the state.

        It may be a coroutine function. A failed run raises an error.
        """
        ...

    def rows(self, folder: Path) -> Iterable[tuple[str, str]]:
        """Return id and value of each row; none where nothing was collected yet."""
        ...


@dataclass(frozen=True)
class Finding:
    """What is wrong in one trial, and how to see it again.

    Args:
        trial: The trial.
        seed: The seed of the schedule, which ``judge(collector, trials=[trial], seed=seed,
            schedules=1)`` plays again.
        kind: What is wrong.
        records: The first records that are concerned, by id and value.
        story: The schedule up to there, a line for each run.
    """

    trial: Trial
    seed: int
    kind: FaultKind
    records: Sequence[tuple[str, str]]
    story: str

    def __str__(self) -> str:
        """Return what is wrong, with the story."""
        some = ", ".join(" ".join(each) for each in self.records)
        return f"{self.trial}: {self.kind} {some} (seed {self.seed})\n{self.story}"


@dataclass
class Verdict:
    """What a judge found.

    Args:
        findings: The first finding of each trial.
        trials: The trials.
        runs: The number of runs.
        kills: How many of them were killed or interrupted.
    """

    findings: list[Finding] = field(default_factory=list)
    trials: list[Trial] = field(default_factory=list)
    runs: int = 0
    kills: int = 0

    @property
    def passed(self) -> bool:
        """Whether nothing is wrong."""
        return not self.findings

    def __str__(self) -> str:
        """Return a line for each trial, and then the findings."""
        found = {each.trial: f"{each.kind} (seed {each.seed})" for each in self.findings}
        lines = [f"{trial:10} {found.get(trial, 'passed')}" for trial in self.trials]
        lines.append(f"{self.runs} runs, {self.kills} of them killed or interrupted")
        return "\n".join([*lines, *(f"\n{each}" for each in self.findings)])


def judge(
    collector: Collector,
    *,
    trials: Iterable[Trial] = TRIALS,
    schedules: int = 5,
    seed: int = 0,
    keep: Literal["latest", "all"] = "latest",
    patience: float = 0.0,
    timeout: float = 30.0,
) -> Verdict:
    """Try a collector, and return what it does wrong.

    It needs `os.fork`, and must not be called from a running event loop.

    Args:
        collector: The collector.
        trials: What it is tried with.
        schedules: The number of schedules of each trial; the first one with a fault is its last.
        seed: The seed of the first schedule; the next one has the next number.
        keep: Whether its rows are the ``latest`` version of each record, or ``all`` of them.
        patience: The seconds for which a run may be refused after one that was killed, or beside
            another: until a lease ends.
        timeout: The seconds after which a run counts as failed.

    Raises:
        ConfigurationError: There is no such trial.
    """
    chosen = tuple(trials)
    if unknown := [each for each in chosen if each not in TRIALS]:
        raise ConfigurationError(f"There is no trial {unknown[0]!r}; choose of {list(TRIALS)}.")
    _refuse_running_loop()
    verdict = Verdict(trials=list(chosen))
    with Nursery() as nursery:
        for trial in chosen:
            for number in range(seed, seed + schedules):
                with tempfile.TemporaryDirectory() as folder:
                    schedule = _Schedule(
                        collector, trial, number, keep, patience, timeout, verdict, nursery,
                        Path(folder),
                    )  # fmt: skip
                    finding = schedule.play()
                if finding is not None:
                    verdict.findings.append(finding)
                    break
    return verdict


def _refuse_running_loop() -> None:
    with contextlib.suppress(RuntimeError):
        asyncio.get_running_loop()
        raise ConfigurationError(
            "judge() forks this process, which a running event loop would not survive; call it "
            "outside of one, as from a test that is no coroutine."
        )


class _FoundError(Exception):
    """Raised when something is wrong."""

    def __init__(self, kind: FaultKind, records: Iterable[tuple[str, str]] = ()) -> None:
        self.kind: FaultKind = kind
        self.records = sorted(records)[:5]
        super().__init__(kind)


class _Schedule:
    """One schedule of a trial, in a folder of its own."""

    def __init__(
        self,
        collector: Collector,
        trial: Trial,
        seed: int,
        keep: str,
        patience: float,
        timeout: float,
        verdict: Verdict,
        nursery: Nursery,
        folder: Path,
    ) -> None:
        self._collector = collector
        self._own = homes(type(collector), "collect")
        self._trial = trial
        self._seed = seed
        self._keep = keep
        self._patience = patience
        self._timeout = timeout
        self._verdict = verdict
        self._nursery = nursery
        self._log = folder / "collector.log"
        self._folder = folder / "collected"
        self._folder.mkdir()
        self._story: list[str] = []
        self._tick = 0
        self._lines = _LINES
        self._seconds = 0.2
        self._is_refusable = False

    def play(self) -> Finding | None:
        """Play it, and return the first thing that is wrong."""
        name = f"{self._trial}/{self._seed}"
        draw = random.Random(name)
        self._feed = TickingFeed(name, kinds_of(self._trial))
        with ServedFeed(self._feed, self._nursery, self._log.with_name("feed.log")) as served:
            self._served = served
            try:
                for plan in plans_of(self._trial, draw):
                    self._run(plan)
                for ticks in (1, 0):
                    self._run(Plan(ticks))
            except _FoundError as found:
                story = "\n".join(self._story)
                return Finding(self._trial, self._seed, found.kind, found.records, story)
        return None

    def _run(self, plan: Plan) -> None:
        """Run once as planned, and look at the rows."""
        self._tick += plan.ticks
        shown = self._feed.at(self._tick)
        self._story.append(f"  tick {self._tick}, {len(shown.shown)} records: {plan}")
        deadline = time.monotonic() + self._patience
        while True:
            ended = self._processes(plan)
            is_refused = plan.is_undisturbed and not ended.succeeded and self._is_refusable
            if not is_refused or time.monotonic() > deadline:
                break
            time.sleep(0.05)
        self._story[-1] += f" -> {ended}"
        if ended.is_late or (plan.is_undisturbed and not ended.succeeded):
            self._story.append(self._last_words())
            raise _FoundError("failed")
        if ended.succeeded:
            self._look(shown)
        self._is_refusable = not plan.is_undisturbed

    def _processes(self, plan: Plan) -> _Ended:
        """Run the planned processes to their ends; return the best end."""
        self._served.controls.set(self._tick, plan.fault, plan.nth, plan.times)
        line = 1 + int(plan.line * self._lines) if plan.ending else 0
        point = CrashPoint(line, plan.ending or "kill", own=self._own)
        began = time.monotonic()
        children = [self._forked(point)]
        if plan.rival:
            children.append(self._forked(CrashPoint(own=self._own)))
        if plan.moment is not None:
            time.sleep(plan.moment * self._seconds)
            children[0].kill()
        for child in children:
            child.wait(self._timeout)
        self._verdict.runs += len(children)
        ends = [_Ended.of(child) for child in children]
        self._verdict.kills += ends[0].is_crash
        if plan.is_undisturbed and ends[0].succeeded:
            self._seconds = time.monotonic() - began
            self._lines = ends[0].lines or _LINES
        return max(ends, key=lambda each: (each.is_late, each.succeeded))

    def _forked(self, point: CrashPoint) -> Child:
        work = partial(_collect, self._collector, self._served.url, self._folder, point)
        return self._nursery.fork(work, self._log)

    def _look(self, shown: State) -> None:
        """Compare the rows with what the feed showed when a run began that succeeded."""
        try:
            rows = [(str(record_id), str(value)) for record_id, value in self._rows()]
        except Exception as error:
            self._story.append(f"  the rows could not be read: {error!r}")
            raise _FoundError("unreadable") from error
        ever = self._ever_shown()
        if invented := set(rows) - ever.keys():
            raise _FoundError("invented", invented)
        due = {(record_id, value) for record_id, (_, value) in shown.shown.items()}
        there = {record_id for record_id, _ in rows}
        if lost := {each for each in due - set(rows) if each[0] not in there}:
            raise _FoundError("lost", lost)
        if missing := due - set(rows):
            raise _FoundError("lost" if self._keep == "all" else "stale", missing)
        # A version to which the feed went back may be there once for each time it was shown.
        allowed = ever if self._keep == "all" else Counter(set(rows))
        if repeated := [each for each, times in Counter(rows).items() if times > allowed[each]]:
            raise _FoundError("repeated", repeated)
        if self._keep == "latest" and len(rows) > len(there):
            ids = Counter(record_id for record_id, _ in rows)
            raise _FoundError("repeated", [each for each in rows if ids[each[0]] > 1])

    def _rows(self) -> Iterable[tuple[str, str]]:
        return list(self._collector.rows(self._folder))

    def _ever_shown(self) -> Counter[tuple[str, str]]:
        """Return each id and value that the feed showed by now, and at how many times."""
        versions: set[Version] = set()
        for tick in range(self._tick + 1):
            versions |= self._feed.at(tick).versions()
        return Counter((record_id, value) for record_id, value, _ in versions)

    def _last_words(self) -> str:
        """Return the end of what the collector printed."""
        lines = (
            self._log.read_text(errors="replace").splitlines()[-6:] if self._log.exists() else []
        )
        return "\n".join(f"    {line}" for line in lines)


@dataclass(frozen=True)
class _Ended:
    """The end of a run."""

    succeeded: bool
    is_crash: bool
    is_late: bool
    lines: int

    @classmethod
    def of(cls, child: Child) -> _Ended:
        said = [each for each in child.said if isinstance(each, dict)]
        lines = max((int(each["lines"]) for each in said if "lines" in each), default=0)
        interrupted = any(each.get("interrupted") for each in said)
        is_crash = bool(child.signalled and not child.is_late) or interrupted
        return cls(child.code == 0 and not is_crash, is_crash, child.is_late, lines)

    def __str__(self) -> str:
        if self.is_late:
            return "did not end"
        return "success" if self.succeeded else "crash" if self.is_crash else "error"


def _collect(collector: Collector, url: str, folder: Path, point: CrashPoint, pipe: int) -> None:
    """Run a collector once, and report how many lines it executed."""
    point.arm()
    try:
        outcome = collector.collect(url, folder)
        if inspect.isawaitable(outcome):
            asyncio.run(_awaited(outcome))
    except KeyboardInterrupt:
        _report(pipe, interrupted=True)
        raise
    finally:
        point.disarm()
    _report(pipe, lines=point.lines)


def _report(pipe: int, **facts: Any) -> None:
    os.write(pipe, json.dumps(facts).encode() + b"\n")


async def _awaited(outcome: Any) -> None:
    await outcome
