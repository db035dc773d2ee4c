"""How a figure is taken and shown: contenders in turn, medians with their spread, the machine.

- Contenders alternate, in each repetition a few times, and begin with another one each time, so
  that what else the machine does meets all of them. A ratio is taken within each repetition, and
  its median is shown.
- The first round warms up and is thrown away.
- What a script prints is recorded with the machine, the day and the commit, for the page.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from os import cpu_count, getloadavg
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).resolve().parent / ".results"
"""The folder of what the scripts recorded, which git ignores."""

progress = Console(stderr=True, highlight=False)


class Tables(Console):
    """The output of a script, whose tables are recorded."""

    def __init__(self) -> None:
        # No table and no verdict is wider: tests and people read them by line.
        super().__init__(width=160, highlight=False)
        self.record_of_script = Record()

    def print(self, *objects: Any, **settings: Any) -> None:
        """Print, and record each table."""
        self.record_of_script.tables += [
            {
                "title": str(each.title),
                "columns": [str(column.header) for column in each.columns],
                "rows": [list(row) for row in zip(*(c.cells for c in each.columns), strict=True)],
            }
            for each in objects
            if isinstance(each, Table)
        ]
        super().print(*objects, **settings)


class Record:
    """What one script found, in the form of the page."""

    def __init__(self) -> None:
        self.tables: list[dict[str, Any]] = []
        self.verdicts: list[dict[str, Any]] = []
        self.figures: dict[str, Any] = {}
        self.about: dict[str, Any] = {}

    def save(self, script: str, *, quick: bool, folder: Path = RESULTS) -> None:
        """Write it as JSON, in place of what the script found before."""
        folder.mkdir(exist_ok=True)
        found = {"script": script, "quick": quick, **vars(self)}
        (folder / f"{script}.json").write_text(json.dumps(found, indent=1), encoding="utf-8")


tables = Tables()


def is_quick(purpose: str) -> bool:
    """Read the command line of a script, and tell whether its smallest size is wanted."""
    parser = argparse.ArgumentParser(description=purpose)
    parser.add_argument(
        "--quick", action="store_true", help="the smallest size: to see it run, not for its figures"
    )
    quick = bool(parser.parse_args().quick)
    if quick:
        tables.print("The smallest size: what follows is no figure.")
    return quick


async def alternating(
    what: str,
    contenders: Mapping[str, Callable[[], Awaitable[float]]],
    repetitions: int,
    turns: int = 1,
    *,
    warm_up: bool = True,
) -> dict[str, list[float]]:
    """Return a figure of each contender for each repetition, the mean of its turns in it."""
    names = list(contenders)
    figures: dict[str, list[float]] = {name: [] for name in names}
    for repetition in range(0 if warm_up else 1, repetitions + 1):
        totals = dict.fromkeys(names, 0.0)
        for turn in range(turns):
            first = (repetition * turns + turn) % len(names)
            for name in names[first:] + names[:first]:
                totals[name] += await contenders[name]()
        if repetition:
            for name in names:
                figures[name].append(totals[name] / turns)
        progress.print(f"  {what}: repetition {repetition} of {repetitions}", style="dim")
    return figures


def ratios(figures: Sequence[float], others: Sequence[float]) -> list[float]:
    """Return the first over the second within each repetition."""
    return [figure / other for figure, other in zip(figures, others, strict=True)]


def shown(figures: Sequence[float], digits: int = 0) -> str:
    """Return the median with its spread, ``5 (4-7)``."""
    middle, low, high = median(figures), min(figures), max(figures)
    return f"{middle:,.{digits}f} ({low:,.{digits}f}–{high:,.{digits}f})"


def table(title: str, texts: Sequence[str], numbers: Sequence[str]) -> Table:
    """Return a table with columns of texts first, and of numbers after them."""
    made = Table(title=title, title_justify="left", title_style="bold")
    for heading in texts:
        made.add_column(heading)
    for heading in numbers:
        made.add_column(heading, justify="right")
    return made


def verdict(
    what: str,
    figures: Sequence[float],
    target: float,
    *,
    at_most: bool,
    of: str = "",
    digits: int = 2,
    floor: Sequence[float] = (),
) -> None:
    """Say whether the median of ``figures`` meets its target.

    Args:
        what: The target, without its value.
        figures: One for each repetition.
        target: The value.
        at_most: Whether lower is better.
        of: The data that they were taken of, where there are several.
        digits: The decimals to print.
        floor: What it cannot be better than, as far as that was measured.
    """
    is_met = median(figures) <= target if at_most else median(figures) >= target
    wanted = f"{'at most' if at_most else 'at least'} {round(target, 2):g}"
    measured = shown(figures, digits)
    least = shown(floor, digits) if floor else ""
    tables.record_of_script.verdicts.append(
        {
            "what": what,
            "of": of,
            "measured": measured,
            "floor": least,
            "wanted": wanted,
            "met": is_met,
        }
    )
    name = f"{what}, {of}" if of else what
    beside = f", its floor {least}" if least else ""
    tables.print(f"{name}: {measured}{beside}; {wanted} is {'met' if is_met else 'NOT MET'}")


def describe(*libraries: str) -> None:
    """Print the machine, its present load, and the versions of what is measured."""
    machine = f"{_processor()}, {cpu_count()} cores, load {getloadavg()[0]:.1f} at the start"
    versions = f"Python {platform.python_version()} on {platform.system()}; " + ", ".join(
        f"{name} {_version(name)}" for name in libraries
    )
    tables.record_of_script.about = {
        "machine": machine,
        "versions": versions,
        "day": datetime.now(UTC).date().isoformat(),
        "commit": _commit(),
    }
    tables.print(machine)
    tables.print(versions)


def _commit() -> str:
    """Return the commit of the checkout, marked where its files differ; empty without one."""
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    try:
        found = subprocess.run(
            command, cwd=RESULTS.parent, check=True, capture_output=True, text=True
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return found.stdout.strip()


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def _version(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:
        return "not installed"
