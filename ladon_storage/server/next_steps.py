"""What an operator may do about a source, for its page: sentences, and commands to copy.

The commands name the source by its watermark, as a shell takes it. The runbook has the same ones:
`docs/how-to/alerts.md`, section *When an alert fires*.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import NamedTuple

from ladon_storage.server.overview import State

_SHOW, _COLLECT = "watermarks show {}", "collect {}"
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
    State.NEVER: ("No run has completed yet.", (_COLLECT,)),
    State.RUNNING: (
        "A run holds the source. If its host is gone, end its hold; if it is alive after all, it "
        "fails at its next write.",
        (_RELEASE,),
    ),
}


class NextStep(NamedTuple):
    """What an operator may do about a source.

    Args:
        text: The meaning of its state, and what to look at.
        commands: The commands to copy, in their order.
    """

    text: str
    commands: Sequence[str]


def next_step(state: State, source_id: str) -> NextStep | None:
    """Return what to do about a source in a state; ``None``: nothing.

    >>> next_step(State.HELD, "the feed").commands
    ["ladon-storage collect 'the feed'"]
    """
    found = _STEPS.get(state)
    if found is None:
        return None
    text, commands = found
    return NextStep(text, [f"ladon-storage {_with_source(each, source_id)}" for each in commands])


def _with_source(command: str, source_id: str) -> str:
    name = shlex.quote(source_id)
    if not source_id.startswith("-"):
        return command.format(name)
    # A name that looks like an option comes after all options, and after the sign of their end.
    verb, rest = command.split(" {}")
    others, dashes, options = rest.partition(" --")
    return f"{verb}{dashes}{options} -- {name}{others}"
