"""How a figure is taken and shown: contenders in turn, medians with their spread, the machine.

- Contenders alternate, in each repetition a few times, and begin with another one each time, so
  that what else the machine does meets all of them. A ratio is taken within each repetition, and
  its median is shown.
- The first round warms up and is thrown away.
"""

from __future__ import annotations

import argparse
import platform
from collections.abc import Awaitable, Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from os import cpu_count, getloadavg
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table

tables = Console(width=120, highlight=False)
progress = Console(stderr=True, highlight=False)


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
) -> dict[str, list[float]]:
    """Return a figure of each contender for each repetition, the mean of its turns in it."""
    names = list(contenders)
    figures: dict[str, list[float]] = {name: [] for name in names}
    for repetition in range(repetitions + 1):
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


def verdict(what: str, figures: Sequence[float], target: float, *, at_most: bool) -> None:
    """Say whether the median of ``figures`` meets its target."""
    is_met = median(figures) <= target if at_most else median(figures) >= target
    wanted = f"{'at most' if at_most else 'at least'} {round(target, 2):g}"
    tables.print(f"{what}: {shown(figures, 2)}; {wanted} is {'met' if is_met else 'NOT MET'}")


def describe(*libraries: str) -> None:
    """Print the machine, its present load, and the versions of what is measured."""
    tables.print(f"{_processor()}, {cpu_count()} cores, load {getloadavg()[0]:.1f} at the start")
    tables.print(
        f"Python {platform.python_version()} on {platform.system()}; "
        + ", ".join(f"{name} {_version(name)}" for name in libraries)
    )


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
