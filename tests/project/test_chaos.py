"""Real crashes in a short form: `make chaos` goes on for as long as it is told to."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import pytest

from chaos.collection import FAULTS
from ladon_storage.testing.judging.ticking_feed import FUTURE, OVERLAP, TickingFeed

pytestmark = pytest.mark.slow

NGINX = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
ROOT = Path(__file__).resolve().parent.parent.parent


def chaos(*arguments: str, module: str = "chaos") -> subprocess.CompletedProcess[str]:
    """Run the harness in a process of its own: one that forks must have no threads."""
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_killed_collections_and_services_lose_nothing() -> None:
    """Whatever is killed, and whenever: each version once, nothing promised that is not there."""
    ended = chaos("--kills", "60", "--seed", "1")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    last = ended.stdout.splitlines()[-1]
    found = re.fullmatch(
        r"seed 1: (\d+) kills \((\d+) of a collection, (\d+) of a service\), .*"
        r" (\d+) versions, 0 violations, \d+ s",
        last,
    )
    assert found, last
    kills, collections, services, versions = map(int, found.groups())
    assert kills == collections + services >= 60
    assert min(collections, services) >= 10
    assert versions > 100


@pytest.mark.skipif(NGINX is None, reason="there is no nginx, which stands before the replicas")
def test_killed_replicas_lose_nothing() -> None:
    """Services over one database die behind a balancer, and no run that was let alone fails."""
    ended = chaos("--replicas", "3", "--seconds", "20", "--seed", "2")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    last = ended.stdout.splitlines()[-1]
    found = re.search(r"(\d+) of a replica.* (\d+) versions, 0 violations", last)
    assert found, last
    assert min(map(int, found.groups())) >= 1


def test_killed_schedulers_stand_in_for_each_other() -> None:
    """Of two that skip one dies again and again: no run fails, and no record is lost or twice."""
    ended = chaos("--seconds", "30", "--seed", "3", module="chaos.schedulers")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert re.search(r"\d+ kills, [1-9]\d* of a run that held the source", ended.stdout)
    assert re.search(r"[1-9]\d* records, 0 lost, 0 twice", ended.stdout)


@pytest.mark.parametrize("fault", FAULTS)
def test_sink_that_lies_is_noticed(fault: str) -> None:
    """A page that is dropped, or written after it was said to be, is a violation."""
    ended = chaos("--kills", "200", "--seed", "1", "--fault", fault)
    assert ended.returncode == 1, ended.stdout + ended.stderr
    assert "VIOLATION: " in ended.stdout
    assert "1 violations" in ended.stdout.splitlines()[-1]


def test_feed_is_the_same_for_the_same_seed() -> None:
    """A schedule can only be played again against the same feed."""
    assert TickingFeed("7").at(40) == TickingFeed("7").at(40)
    assert TickingFeed("7").at(40) != TickingFeed("8").at(40)


def test_new_records_of_a_feed_are_further_apart_than_the_overlap() -> None:
    """Else a run could lose a part of a page, and the next one's overlap would make up for it."""
    feed = TickingFeed("1")
    for tick in range(1, 60):
        new = feed.at(tick).versions() - feed.at(tick - 1).versions()
        times = [datetime.fromisoformat(at) for *_, at in new if at < FUTURE.isoformat()]
        if times and max(times) - min(times) > 100 * OVERLAP:
            return
    pytest.fail("the overlap covers all that is new")


def test_feed_has_the_habits_of_real_ones() -> None:
    """Ties, late records, updates, the future and rejects; nothing later than the overlap."""
    feed = TickingFeed("1")
    late = updated = 0
    for tick in range(1, 60):
        before, after = feed.at(tick - 1), feed.at(tick)
        newest = max((at for at, _ in before.shown.values() if at < FUTURE), default=None)
        for record_id, (at, value) in after.shown.items():
            if newest and (record_id, value, at.isoformat()) not in before.versions():
                assert at >= newest - OVERLAP
                late += at < newest
                updated += before.shown.get(record_id, (None,))[0] == at
    times = [at for at, _ in feed.at(59).shown.values()]
    assert min(late, updated, times.count(FUTURE), len(feed.at(59).rejects)) > 0
    assert max(map(times.count, times)) > 10
