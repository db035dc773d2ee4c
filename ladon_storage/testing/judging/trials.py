"""The trials of a collector: the habits of the feed, and what happens to each run, from a seed."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from ladon_storage.testing.crashes import Ending
from ladon_storage.testing.judging.served import FAULTS

Trial = Literal[
    "ties", "late", "updates", "returns", "future", "unusable", "faults", "kills", "interrupts",
    "rivals", "mixed",
]  # fmt: skip
"""What a collector is tried with.

- ``ties``: records of one instant, some of which become visible later;
- ``late``: records that become visible up to five minutes after their time;
- ``updates``: records whose content changes, with their time or without;
- ``returns``: records that go back to an earlier content or time;
- ``future``: records of the year 2099;
- ``unusable``: items without an id and a time;
- ``faults``: errors, and answers that are cut off, torn or none;
- ``kills``: the process is killed, at a line of its own code or at any moment;
- ``interrupts``: `KeyboardInterrupt`, at a line of its own code;
- ``rivals``: two runs at once; whether they meet is the machine's, so a seed may not show it again;
- ``mixed``: all of that at once.
"""

TRIALS: tuple[Trial, ...] = (
    "ties", "late", "updates", "returns", "future", "unusable", "faults", "kills", "interrupts",
    "rivals", "mixed",
)  # fmt: skip

_KINDS = {
    "ties": ["tie", "tie"],
    "late": ["late", "late"],
    "updates": ["update", "moved"],
    "returns": ["update", "moved", "older", "revert", "return"],
    "future": ["future"] * 4,
    "unusable": ["reject"],
}
RUNS = 8
"""The runs of a schedule, before the last ones that nothing disturbs."""


@dataclass(frozen=True)
class Plan:
    """What happens to a run.

    Args:
        ticks: How far the feed goes on before it.
        ending: How it ends at a line of its own code; ``None``: at none.
        line: Which line it is, as a share of those that a run executes.
        moment: When it is killed, as a share of the time that a run takes; ``None``: never.
        fault: The fault that it meets.
        nth: The request that meets it.
        times: How many requests meet it.
        rival: Whether another run begins with it.
    """

    ticks: int
    ending: Ending | None = None
    line: float = 0.0
    moment: float | None = None
    fault: str = "none"
    nth: int = 0
    times: int = 0
    rival: bool = False

    @property
    def is_undisturbed(self) -> bool:
        """Whether the run has to succeed."""
        return self == Plan(self.ticks)

    def __str__(self) -> str:
        """Return what happens, in words."""
        said = [
            *([f"{self.ending} at line {self.line:.0%}"] if self.ending else []),
            *([f"kill at {self.moment:.0%} of the time"] if self.moment is not None else []),
            *([f"{self.fault} at request {self.nth}"] if self.times else []),
            *(["a rival"] if self.rival else []),
        ]
        return ", ".join(said) or "undisturbed"


def kinds_of(trial: Trial) -> list[str]:
    """Return the kinds of changes of a trial's feed."""
    parts = TRIALS if trial == "mixed" else (trial,)
    return ["new", "new", *(kind for part in parts for kind in _KINDS.get(part, []))]


def plans_of(trial: Trial, draw: random.Random) -> Iterator[Plan]:
    """Yield the plans of a schedule's runs."""
    parts = TRIALS[:-1] if trial == "mixed" else (trial,)
    happening = [each for each in parts if each not in _KINDS]
    for _ in range(RUNS):
        ticks = draw.choice([0, 1, 1, 2, 4])
        now = draw.choice(happening) if happening and draw.random() < 0.7 else None
        match now:
            case "kills" if draw.random() < 0.75:
                yield Plan(ticks, "kill", draw.random())
            case "kills":
                yield Plan(ticks, moment=draw.random())
            case "interrupts":
                yield Plan(ticks, "interrupt", draw.random())
            case "faults":
                fault, nth = draw.choice(FAULTS[1:]), draw.choice([0, 0, 1, 2])
                yield Plan(ticks, fault=fault, nth=nth, times=draw.choice([1, 99]))
            case "rivals":
                yield Plan(ticks, rival=True)
            case _:
                yield Plan(ticks)
