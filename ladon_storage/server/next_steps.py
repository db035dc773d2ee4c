"""What an operator may do about a source, for its page: sentences, and commands to copy.

The commands name the source by its watermark, as a shell takes it. The runbook has the same ones:
`docs/how-to/alerts.md`, section *When an alert fires*.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ladon_storage.server.overview import State, amount

_SHOW, _COLLECT = "watermarks show {}", "collect {}"
_RECONCILE = "reconcile {}"
_RELEASE = "watermarks release {} --reason TEXT"
_STEPS: dict[State, tuple[str, Sequence[str]]] = {
    State.FUTURE: (
        "The watermark, or this service's clock, is wrong. Compare the clocks. The next run does "
        "not believe the watermark, and reads from the last plausible one. Where no run will come, "
        "reset it to a timestamp of its history.",
        (_COLLECT, "watermarks history {} --moved", "watermarks reset {} TIMESTAMP --reason TEXT"),
    ),
    State.HELD: (
        "Its run stopped without an outcome. The next run takes over, and resumes where durable "
        "data ends.",
        (_COLLECT,),
    ),
    State.FAILED: (
        "Mend what the reason names. The next run reads everything since the watermark.",
        ("source check {}", _COLLECT),
    ),
    State.STALE: (
        "No run has moved the watermark for longer than its limit. See whether its deployment is "
        "paused, or its worker is down; if its runs complete, the source has nothing newer.",
        (_SHOW, _COLLECT),
    ),
    State.REFILLED: (
        "The sink was behind the watermark: it was restored from a backup or dropped, or another "
        "one is collected into. A run fills it again from its own position. If it was not "
        "restored on purpose, see whether the deployment has the right sink. Then compare it with "
        "what the source has.",
        (_SHOW, _RECONCILE, _COLLECT),
    ),
    State.NEVER: ("No run has completed yet.", (_COLLECT,)),
    State.RUNNING: (
        "A run holds the source. If its host is gone, end its hold; if it is alive after all, it "
        "fails at its next write.",
        (_RELEASE,),
    ),
}


_LOST = (
    "The source no longer had records that the last run asked for: what `gap` names is lost at "
    "the source. Collect it more often than it keeps records, and mend what made runs fail.",
    (_SHOW, _COLLECT),
)
_UNUSABLE = (
    "More than 5 % of what the last run was given cannot be used; `reasons` counts why. Correct "
    "the source's fields, and read again what was refused.",
    ("source try {}", _RECONCILE, _COLLECT),
)
_LATE = (
    "News of the last run was nearly as far behind the watermark as the overlap reaches. Set the "
    "overlap to twice that distance, `behind_seconds`, and store what was missed.",
    (_SHOW, _RECONCILE, _COLLECT),
)


class NextStep(NamedTuple):
    """What an operator may do about a source.

    Args:
        text: The meaning of its state, and what to look at.
        commands: The commands to copy, in their order.
    """

    text: str
    commands: Sequence[str]


def next_steps(state: State, source_id: str, ledger: Mapping[str, Any]) -> list[NextStep]:
    """Return what to do about a source: for its state, and for each finding of its last run.

    The findings are those that `monitoring/alerts.yml` has alerts for.

    >>> [step.commands for step in next_steps(State.HELD, "the feed", {})]
    [["ladon-storage collect 'the feed'"]]
    """
    found = [_STEPS.get(state)]
    if ledger.get("sink_behind") and state is not State.REFILLED:
        found.append(_STEPS[State.REFILLED])
    if ledger.get("gap"):
        found.append(_LOST)
    if _number(ledger, "records_quarantined") > 0.05 * _number(ledger, "records_delivered"):
        found.append(_UNUSABLE)
    if _number(ledger, "behind_seconds") > 0.8 * _number(ledger, "overlap_seconds", math.inf):
        found.append(_LATE)
    return [
        NextStep(
            text, [f"ladon-storage {_with_source(command, source_id)}" for command in commands]
        )
        for text, commands in filter(None, found)
    ]


def finding(ledger: Mapping[str, Any] | None) -> str:
    """Return what a run found that a reader of the history should know; empty: nothing.

    >>> finding({"sink_behind": {"end": "2024-01-02T00:00:00Z"}})
    'the sink had nothing, and the watermark was at 2024-01-02T00:00:00Z: it was filled again'
    """
    found = []
    behind, gap = (ledger or {}).get("sink_behind"), (ledger or {}).get("gap")
    if isinstance(behind, Mapping):
        had = f"records up to {behind['start']}" if behind.get("start") else "nothing"
        found.append(
            f"the sink had {had}, and the watermark was at {behind.get('end')}: it was filled again"
        )
    if isinstance(gap, Mapping):
        found.append(f"a gap: {gap.get('start')} to {gap.get('end')} is lost")
    return "; ".join(found)


def _number(ledger: Mapping[str, Any], name: str, otherwise: float = 0.0) -> float:
    return amount(ledger, name) or otherwise


def _with_source(command: str, source_id: str) -> str:
    name = shlex.quote(source_id)
    if not source_id.startswith("-"):
        return command.format(name)
    # A name that looks like an option comes after all options, and after the sign of their end.
    verb, rest = command.split(" {}")
    others, dashes, options = rest.partition(" --")
    return f"{verb}{dashes}{options} -- {name}{others}"
