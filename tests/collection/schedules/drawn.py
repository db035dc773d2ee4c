"""The feeds and the schedules that are drawn."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import strategies as st

from tests.collection.schedules.steps import (
    Both,
    Cut,
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

KINDS = [
    *["new", "new", "tie", "late", "update", "moved", "future", "reject"],
    *["ancient", "older", "revert", "revert", "return"],
]
POINTS = [
    "health", "get", "running", "success", "failed", "open", "position", "read", "write",
    "mark", "revert",
]  # fmt: skip

publishing = st.builds(Publish, st.sampled_from(KINDS), st.integers(0, 9), st.integers(0, 6))
faults = st.builds(
    Fault,
    st.sampled_from([*POINTS, "read", "write", "success", "write"]),
    st.integers(0, 4),
    st.sampled_from(["before", "after"]),
    st.sampled_from(["error", "kill", "cancel", "pause", "publish", "reset", "ahead", "behind"]),
)
DAYS = 3 * 24 * 60
clocks = st.sampled_from([0, 0, 0, 2, -2, DAYS, -DAYS])
runs = st.builds(Run, st.lists(faults, max_size=2).map(tuple), st.booleans(), clocks)
steps: st.SearchStrategy[Step] = st.one_of(
    publishing,
    publishing,
    publishing,
    st.builds(Tick, st.sampled_from([1, 1, 2, 7, 60])),
    runs,
    runs,
    st.just(Run()),
    st.builds(Both, runs, runs, st.lists(st.integers(0, 6), min_size=3, max_size=9).map(tuple)),
    st.builds(
        Reset, st.sampled_from(["back", "again", "again", "delete", "ahead"]), st.integers(0, 6)
    ),
    st.builds(Lose, st.integers(0, 5)),
    st.just(Storm()),
    st.builds(Cut, st.sampled_from([0, 1, 3, 8])),
)
feeds = (
    st.builds(
        Feed,
        overlap=st.sampled_from([0, 3, 3, None]),
        ordered=st.booleans(),
        honest=st.booleans(),
        page=st.integers(1, 3),
        lookback=st.sampled_from([None, None, 30]),
        delivers_all=st.sampled_from([False, False, True]),
        tells_time=st.booleans(),
        twice=st.sampled_from([False, False, True]),
        seed=st.integers(0, 99),
    )
    .map(
        # What a lookback leaves out of what is delivered anyway has tests of its own.
        lambda feed: (
            replace(feed, lookback=None) if feed.delivers_all or feed.overlap is None else feed
        )
    )
    .map(
        # Where a request asks for the order, no reading begins anew in the middle.
        lambda feed: replace(feed, twice=feed.twice and not (feed.ordered and feed.honest))
    )
)
early = st.builds(
    Fault,
    st.sampled_from(["running", "open", "position", "write", "read"]),
    st.integers(0, 1),
    st.sampled_from(["before", "after"]),
    st.sampled_from(["error", "kill", "cancel"]),
)
# What random steps come upon too seldom: several new records, and a run; what an operator wants
# read again, and the run that was to read it is hit before it could; and a record that goes back,
# with much later ones behind it in the same run.
news = st.builds(
    lambda minutes, kinds, run: [
        *(
            step
            for number, kind in enumerate(kinds)
            for step in (Tick(minutes), Publish(kind, minutes + number, number))
        ),
        run,
    ],
    st.integers(1, 4),
    st.lists(
        st.sampled_from(["new", "new", "moved", "late", "tie", "future"]), min_size=2, max_size=5
    ),
    st.one_of(st.just(Run()), runs),
)
second_looks = st.builds(
    lambda record_id, how, fault: [
        Publish("late", record_id, 6),
        Reset(how, 6),
        Run((fault,)),
        Run(),
    ],
    st.integers(0, 9),
    st.sampled_from(["again", "back", "delete"]),
    early,
)
late = st.builds(
    Fault,
    st.sampled_from(["write", "read", "success", "revert"]),
    st.integers(0, 5),
    st.sampled_from(["before", "after"]),
    st.sampled_from(["error", "kill", "cancel"]),
)
goings_back = st.builds(
    lambda record_id, kind, fault, runs: [
        *(Tick(2), Publish("new", record_id), Tick(1), Publish("moved", record_id), Run()),
        Publish(kind, record_id, 2),
        *(step for n in range(1, 5) for step in (Tick(2), Publish("new", record_id + n))),
        Run((fault,)),
        *runs,
    ],
    st.integers(10, 99),
    st.sampled_from(["revert", "revert", "older", "ancient"]),
    late,
    st.lists(runs, max_size=1),
)
schedules = st.lists(
    st.one_of(*[steps.map(lambda step: [step])] * 8, news, news, second_looks, goings_back),
    min_size=8,
    max_size=30,
).map(lambda parts: [step for part in parts for step in part])
