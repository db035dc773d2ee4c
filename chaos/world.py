"""One feed, one service, one sink: cycles in which something is killed, and an oracle after each.

- What kills, and when, is drawn from the seed, the world's number and the cycle's. A step that is
  named is met exactly. Which pages a write holds, and after how many milliseconds of a machine that
  does other things, too, a process is where, is not: what was hit is told.
- A run that is hit by nothing must succeed, or say that another run holds the source, or that the
  list moved faster than it could be read. In a quiet feed it must succeed.
- A run that succeeded has all that was shown from its beginning to its end.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import random
import sqlite3
import time
from collections import Counter
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

from chaos.collection import LEASE, SOURCE, Job, Moment, collect
from chaos.feed import Manner, serve_feed
from chaos.services import OneService, Service
from ladon_storage.testing.judging.ticking_feed import FUTURE, TickingFeed, Ticks, Version
from ladon_storage.testing.processes import Child, Nursery, heard

RUN_SECONDS = 30.0
CYCLES = 25
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

POINTS = [
    *[("health", "before"), ("get", "after"), ("running", "before"), ("running", "after")],
    *[("open", "before"), ("open", "after"), ("position", "after"), ("read", "before")],
    *[("read", "after"), ("write", "before"), ("write", "after"), ("success", "before")],
    *[("success", "after"), ("close", "before")],
]
CLOCKS = [timedelta(0)] * 3 + [timedelta(seconds=-90), timedelta(seconds=90), timedelta(days=-3)]
CLOCKS += [timedelta(days=3)]
LATER = [each for each in POINTS if each[0] in ("read", "write", "success", "close")]


class ViolationError(Exception):
    """Say which guarantee does not hold, and where the schedule was."""


@dataclass
class Tally:
    """Count what happened."""

    kills: Counter[str] = field(default_factory=Counter)
    phases: Counter[str] = field(default_factory=Counter)
    ends: Counter[str] = field(default_factory=Counter)
    runs: int = 0
    worlds: int = 0
    records: int = 0
    versions: int = 0

    @property
    def killed(self) -> int:
        """How many processes were killed."""
        return self.kills.total()


@dataclass(frozen=True)
class Plan:
    """Say who is killed in a cycle, and when.

    Args:
        victims: Whom: ``collection``, ``service`` or both.
        moment: At which step of the collection; ``None``: after a time.
        write: At which write of the service.
        milliseconds: How long after the start, or after the step.
        rival: Whether a second run of the same source starts at the same time.
        restart: Whether a service that was killed is back while the run still goes on.
        news: How far the feed goes on while the run reads it.
        ahead: How far the collection's clock is ahead of the others'.
    """

    victims: tuple[str, ...]
    moment: Moment | None
    write: int
    milliseconds: float
    rival: bool
    restart: bool
    news: int
    ahead: timedelta


def draw_plan(draw: random.Random, first: bool) -> Plan:
    """Draw a plan; the first of a world is about the making of what is not there yet."""
    victims = draw.choice([("collection",)] * 5 + [("service",)] * 2 + [("collection", "service")])
    point, when = draw.choice(POINTS[:8] if first else POINTS + LATER * 2)
    nth = draw.choice([0, 0, 1, 2, 3]) if point in ("read", "write", "running", "success") else 0
    kind = draw.choice(["step", "step", "soon", "time"])
    return Plan(
        victims,
        None if kind == "time" else Moment(point, nth, when),
        draw.choice([1, 2, 3]) if victims == ("service",) and kind == "step" else 0,
        0 if kind == "step" else draw.uniform(10, 150) if kind == "time" else draw.uniform(0, 4),
        draw.random() < 0.15,
        draw.random() < 0.5,
        draw.choice([0, 0, 0, 1, 2, 3, 9]),
        draw.choice(CLOCKS),
    )


class World:
    """Hold what several runs meet.

    Args:
        folder: Where its files are.
        seed: The seed with the world's number.
        nursery: Where processes come from.
        tally: Where it counts.
        fault: What the sink does wrong on purpose.
        service: The service, empty; ``None``: one of its own over a file.
    """

    def __init__(
        self,
        folder: Path,
        seed: str,
        nursery: Nursery,
        tally: Tally,
        fault: str | None = None,
        service: Service | None = None,
    ) -> None:
        self._seed = seed
        self._draw = random.Random(seed)
        self._folder = folder
        self._nursery = nursery
        self._tally = tally
        self._fault = fault
        self._manner = Manner.drawn(self._draw)
        while not self._manner.can_show(fault):
            self._manner = Manner.drawn(self._draw)
        self._keep = self._draw.choice(["all", "all", "latest"])
        self._checkpoints = self._draw.random() < 0.5
        self._feed = TickingFeed(seed, has_old=self._manner.delivers_all)
        self._ticks = Ticks()
        self._run = 0
        self._cycle = 0
        self._rows: set[Version] = set()
        self._watermark: datetime | None = None
        self._position: datetime | None = None
        self._answered: set[int] = set()
        self._plan: Plan | None = None
        self._hit: set[str] = set()
        serve_it = partial(_serve_feed, self._feed, self._ticks, self._manner)
        self._feeding = nursery.fork(serve_it, folder / "feed.log")
        self._feed_port = int(self._feeding.line())
        self._service = service or OneService(folder, nursery)
        tally.worlds += 1

    def close(self) -> None:
        """End its processes."""
        self._service.close()
        self._feeding.kill()

    def cycle(self) -> None:
        """Let some time pass, collect, kill what the plan says, and look."""
        draw = random.Random(f"{self._seed}/{self._cycle}")
        self._ticks.now += draw.choice([0, 1, 1, 3, 6])
        plan = self._plan = draw_plan(draw, self._cycle == 0)
        self._cycle += 1
        if draw.random() < 0.5 or not self._run:
            self._run += 1
            if draw.random() < 0.5:
                self._await_lease()
        began = self._ticks.now
        self._ticks.coming = 0 if self._is_pinned else plan.news
        hit = self._play(plan)
        if hit or draw.random() < 0.3:
            self._restart_service(draw)
        self._look(began)

    def end(self) -> None:
        """Collect once more with nothing killed, and look whether everything is there."""
        self._plan = None
        self._ticks.coming = 0
        self._restart_service(random.Random(0))
        self._await_lease()
        self._run += 1
        child = self._collecting(ahead=self._draw.choice(CLOCKS))
        self._hear([child], child, None, RUN_SECONDS)
        self._check_end(child, self._ticks.now, hit=False, rival=False, may_be_busy=False)
        tick = self._ticks.now
        self._look(tick)
        shown = self._feed.at(tick)
        missing = shown.versions() - self._rows
        self._demand(not missing, f"{len(missing)} versions are not in the sink: {missing}")
        current = self._versions("WHERE replaced_at IS NULL" if self._keep == "all" else "")
        stale = {*current} ^ shown.versions()
        self._demand(not stale, f"the sink shows what is not: {stale}")
        with closing(sqlite3.connect(self._folder / "records.db")) as database:
            ids = [row[0] for row in database.execute("SELECT record_id FROM records")]
            raws = [row[0] for row in database.execute("SELECT raw FROM records_quarantine")]
        if self._keep == "latest":
            self._demand(sorted(ids) == sorted(shown.shown), "an id is there twice, or too many")
        notes = sorted(json.loads(raw)["note"] for raw in raws)
        self._demand(notes == sorted(shown.rejects), "the quarantine has not each reject once")
        self._tally.records += len(set(ids))
        self._tally.versions += len(self._rows)

    # Processes

    def _restart_service(self, draw: random.Random) -> None:
        """Kill the service if it lives, sometimes again while it starts, and wait for it."""
        self._service.fuse.set(0, "")
        if self._service.restart(draw if self._plan is not None else None):
            self._count("service", "starting")

    @property
    def _is_pinned(self) -> bool:
        return self._manner.paging == "pinned"

    def _await_lease(self) -> None:
        """Wait until the source is free, by the service's clock, whose seconds are all it tells."""
        found = self._told()
        if found is not None and found["status"] == "running":
            free = datetime.fromisoformat(found["last_run_timestamp"]) + LEASE
            whole = free.replace(microsecond=0) + timedelta(seconds=1)
            time.sleep(max(0.0, (whole - datetime.now(UTC)).total_seconds()))

    def _collecting(
        self, run_id: str = "", end: Moment | None = None, ahead: timedelta = timedelta(0)
    ) -> Child:
        job = Job(
            run_id or f"run-{self._run}",
            self._service.port,
            self._feed_port,
            self._folder / "records.db",
            self._keep,
            self._manner,
            self._checkpoints,
            ahead,
            end,
            self._fault,
        )
        self._tally.runs += 1
        return self._nursery.fork(partial(collect, job), self._folder / "collection.log")

    def _play(self, plan: Plan) -> bool:
        """Run the plan's collections until they end; tell whether the service was killed."""
        exact = plan.moment if plan.milliseconds == 0 and "collection" in plan.victims else None
        if plan.write:
            self._service.fuse.set(plan.write, plan.moment.when if plan.moment else "before")
        began = self._ticks.now
        child = self._collecting(end=exact, ahead=plan.ahead)
        children = [child]
        if plan.rival:
            children.append(self._collecting(f"rival-{self._run}", ahead=-plan.ahead))
        self._hear(children, child, plan, RUN_SECONDS)
        if child.signalled and exact is not None and "collection" not in self._hit:
            self._count("collection", _phase(child))
        hit = self._service_died(plan)
        self._service.fuse.set(0, "")
        for each in children:
            killed = each.signalled != 0
            if killed:
                self._demand(each is child, "a run was killed that nobody was to kill")
            else:
                self._check_end(each, began, hit=hit, rival=plan.rival, may_be_busy=True)
        return hit

    def _service_died(self, plan: Plan) -> bool:
        if plan.write and self._service.has_burnt():
            self._count("service", f"write {plan.write}")
            return True
        return "service" in self._hit

    def _hear(self, children: list[Child], child: Child, plan: Plan | None, seconds: float) -> None:
        """Listen to the runs until they end, and kill at the plan's moment."""
        self._hit = set()
        began = time.monotonic()
        listening = list(children)
        due: float | None = None
        if plan is not None and plan.moment is None:
            due = began + plan.milliseconds / 1000
        looked = 0
        while listening:
            until = began + seconds if due is None else due
            for _ in heard(listening, until):
                for said in child.said[looked:] if plan else []:
                    assert plan is not None
                    if (
                        plan.news
                        and self._is_pinned
                        and said.get("at") == "after read"
                        and not said["nth"]
                    ):
                        self._ticks.now += 1
                    if due is None and not plan.write and _is_at(said, plan.moment):
                        due = time.monotonic() + plan.milliseconds / 1000
                looked = len(child.said)
                if due is not None:
                    break
            if due is not None and plan is not None:
                time.sleep(max(0.0, due - time.monotonic()))
                self._kill(plan, child, listening)
                plan, due = None, None
            elif listening and time.monotonic() - began > seconds:
                raise self._violation(f"a run did not end within {seconds:g} s")
        for each in children:
            each.wait()

    def _kill(self, plan: Plan, child: Child, listening: list[Child]) -> None:
        phase = _phase(child)
        if "collection" in plan.victims and child in listening:
            child.kill()
            listening.remove(child)
            if child.signalled:
                self._count("collection", phase)
        if "service" in plan.victims:
            self._service.kill()
            self._count("service", phase)
            if plan.restart:
                self._service.start()

    def _count(self, victim: str, phase: str) -> None:
        self._hit.add(victim)
        self._tally.kills[victim] += 1
        self._tally.phases[f"{victim}: {phase}"] += 1

    # The oracle

    def _check_end(
        self, child: Child, began: int, *, hit: bool, rival: bool, may_be_busy: bool
    ) -> None:
        ends = [said for said in child.said if "end" in said]
        self._demand(bool(ends), f"a run broke off: {(self._folder / 'collection.log')}")
        end = ends[-1]["end"]
        self._tally.ends[end] += 1
        self._answered |= {said["stored"] for said in child.said if "stored" in said}
        if end == "success":
            first, last = began, self._ticks.now
            if self._is_pinned:
                first = last = [said["tick"] for said in child.said if "tick" in said][-1]
            if self._keep == "all":
                shown = self._feed.throughout(first, last).versions()
                missing = shown - self._rows_now()
                self._demand(not missing, f"a run succeeded without {missing}")
            return
        moves = self._plan is not None and self._plan.news > 0 and not self._is_pinned
        moved = moves and end == "SourceError" and "changed in each" in ends[-1]["text"]
        allowed = hit or (may_be_busy and end == "SourceBusyError") or rival or moved
        self._demand(allowed, f"a run failed that nothing was done to: {ends[-1]}")

    def _look(self, began: int) -> None:
        """Compare what is promised with what is there, and with what was there before."""
        rows = self._rows_now()
        if self._keep == "all":
            self._demand(rows >= self._rows, f"rows are gone: {self._rows - rows}")
        self._rows = rows
        position = self._position_now()
        watermark = self._watermark_now()
        before = self._watermark
        if before is not None:
            self._demand(watermark is not None and watermark >= before, "the watermark went back")
        earlier = self._position
        kept = self._feed.throughout(began, self._ticks.now)
        for what, promise, known in (
            ("watermark", watermark, before),
            ("position", position, self._position),
        ):
            # What the position promised before was looked at then; what came late since is read
            # again, being within the overlap, and need not be there before.
            if promise is None or promise == known or (earlier and promise <= earlier):
                continue
            self._demand(promise < FUTURE, f"the {what} is in the future")
            missing = kept.versions(promise) - rows
            self._demand(not missing, f"the {what} {promise} passed what is not there: {missing}")
        self._watermark, self._position = watermark, position
        self._look_at_history(watermark)

    def _look_at_history(self, watermark: datetime | None) -> None:
        lines = self._service.history()
        last = None
        for version, before, after in lines:
            self._demand(before == last, f"version {version} does not go on from the one before")
            self._demand(last is None or after >= last, f"version {version} went back")
            last = after
        stored = None if last is None else EPOCH + timedelta(microseconds=last)
        self._demand(stored == watermark, "the history ends elsewhere than the watermark")
        lost = self._answered - {version for version, _, _ in lines}
        self._demand(not lost, f"writes were answered and are gone: versions {lost}")

    def _rows_now(self) -> set[Version]:
        return self._versions("")

    def _versions(self, which: str) -> set[Version]:
        fields = "json_extract(payload, '$.value'), json_extract(payload, '$.at')"
        found = self._asked(f"SELECT record_id, {fields} FROM records {which}")
        self._demand(len(found) == len(set(found)), "a version is in the sink twice")
        return {(record_id, value, at) for record_id, value, at in found}

    def _position_now(self) -> datetime | None:
        found = self._asked("SELECT timestamp FROM ladon_positions")
        return datetime.fromisoformat(found[0][0]) if found else None

    def _asked(self, statement: str) -> list[tuple[str, ...]]:
        if not (self._folder / "records.db").exists():
            return []
        with closing(sqlite3.connect(self._folder / "records.db")) as database:
            tables = database.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
            return database.execute(statement).fetchall() if tables else []

    def _watermark_now(self) -> datetime | None:
        told = self._told()
        found = told["last_successful_timestamp"] if told else None
        return datetime.fromisoformat(found) if found else None

    def _told(self) -> dict[str, Any] | None:
        """Return what the service has of the source, as soon as it answers for itself."""
        deadline = time.monotonic() + RUN_SECONDS
        while True:
            status, body = self._asked_service()
            if status in (200, 404):
                return None if status == 404 else dict(json.loads(body))
            if time.monotonic() > deadline:
                raise self._violation(f"the service answers {status}: {body!r}")
            time.sleep(0.05)

    def _asked_service(self) -> tuple[int, bytes]:
        port = self._service.port
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=RUN_SECONDS)
        with closing(connection):
            connection.request("GET", f"/api/v1/watermarks/{SOURCE}")
            answer = connection.getresponse()
            return answer.status, answer.read()

    def _demand(self, holds: bool, what: str) -> None:
        if not holds:
            raise self._violation(what)

    def _violation(self, what: str) -> ViolationError:
        kind = f"{self._manner}, keep={self._keep}"
        return ViolationError(
            f"{what}\n  world {self._seed} ({kind}), cycle {self._cycle}, {self._plan}\n"
            f"  its files: {self._folder}"
        )


def _serve_feed(feed: TickingFeed, ticks: Ticks, manner: Manner, pipe: int) -> None:
    asyncio.run(serve_feed(feed, ticks, manner, pipe))


def _is_at(said: dict[str, object], moment: Moment | None) -> bool:
    if moment is None:
        return False
    return said.get("at") == f"{moment.when} {moment.point}" and said["nth"] == moment.nth


def _phase(child: Child) -> str:
    """Return the last step that a run told."""
    return next((str(said["at"]) for said in reversed(child.said) if "at" in said), "starting")
