"""The demonstration's verdict: its exit code is the truth about lost and repeated records."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from demo.__main__ import Outcome, verdict
from demo.feed import NOW, states

FINE = Outcome(
    title="first collection", expected="completed", ended="completed", why="", requests=1,
    at_source=3, in_sink=3, missing=0, repeated=0, before="never", after="24 Nov 23:29",
)  # fmt: skip
DOWN = replace(FINE, title="service down", expected="failed", ended="failed", missing=2)


def test_good_ending_exits_with_zero(capsys: pytest.CaptureFixture[str]) -> None:
    """What a failed run left to the next is not lost; the last line has the counts."""
    assert verdict([FINE, DOWN, FINE]) == 0
    shown = capsys.readouterr().out
    assert "3 records were published, 3 are in the sink, 0 lost, 0 repeated." in shown
    assert max(map(len, shown.splitlines())) <= 80


@pytest.mark.parametrize(
    "outcome",
    [
        pytest.param(replace(FINE, missing=1), id="lost"),
        pytest.param(replace(FINE, repeated=1), id="repeated"),
        pytest.param(replace(DOWN, repeated=1), id="repeated by a failed run"),
        pytest.param(replace(FINE, ended="failed"), id="failed"),
        pytest.param(replace(DOWN, ended="completed"), id="completed without the service"),
    ],
)
def test_bad_ending_exits_with_one(outcome: Outcome, capsys: pytest.CaptureFixture[str]) -> None:
    """One record lost or repeated, or one run that ends differently, fails the whole."""
    assert verdict([FINE, outcome, FINE]) == 1
    assert "(!)" in capsys.readouterr().out


def test_sample_feed_has_the_habits_of_real_ones() -> None:
    """Ties, a time with its zone among naive ones, the future, late and re-sighted records."""
    first, news, *_ = states()
    times = [entry["first_seen_utc"] for (entry,) in first.values()]
    assert max(map(times.count, times)) >= 10
    assert any(time.endswith("UTC") for time in times)
    assert "2099-01-01 00:00:00" in times
    added = [news[number][0]["first_seen_utc"] for number in news.keys() - first.keys()]
    assert min(added) < max(time for time in times if time < f"{NOW:%Y-%m-%d %H:%M:%S}")
    assert [number for number in first if json.dumps(first[number]) != json.dumps(news[number])]
