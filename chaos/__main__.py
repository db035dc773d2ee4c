"""Kill collections and services until enough were killed, and tell what came of it.

Exits with 1 at the first guarantee that does not hold; the files of that world are kept.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from chaos.collection import FAULTS
from chaos.services import Replicas, replicas
from chaos.world import CYCLES, Tally, ViolationError, World
from ladon_storage.testing.processes import Nursery

PLACE = Path(__file__).resolve().parent.parent / ".chaos"


def main() -> int:
    """Play worlds, and return the exit code."""
    options = _options()
    began = time.monotonic()
    tally = Tally()
    PLACE.mkdir(exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=PLACE))
    print(f"Seed {options.seed}: killing until {_goal(options)}.", flush=True)
    try:
        with Nursery() as nursery, _services(options, folder, nursery) as service:
            number = 0
            while not _is_enough(options, tally, began):
                _play(options, folder, number, nursery, tally, began, service)
                number += 1
    except ViolationError as violation:
        print(f"VIOLATION: {violation}")
        if options.fault is not None:  # it was wanted: there is nothing to find out
            shutil.rmtree(folder)
        print(_report(options.seed, tally, time.monotonic() - began, violations=1))
        return 1
    shutil.rmtree(folder)
    print(_report(options.seed, tally, time.monotonic() - began, violations=0))
    return 0


def _play(
    options: argparse.Namespace,
    folder: Path,
    number: int,
    nursery: Nursery,
    tally: Tally,
    began: float,
    service: Replicas | None,
) -> None:
    place = folder / str(number)
    place.mkdir()
    if service is not None:
        service.renew()
    world = World(place, f"{options.seed}/{number}", nursery, tally, options.fault, service)
    try:
        for _ in range(CYCLES):
            world.cycle()
            if _is_enough(options, tally, began):
                break
        world.end()
    finally:
        world.close()
    if service is not None:
        tally.kills["replica"] = service.kills
    shutil.rmtree(place)
    seconds = time.monotonic() - began
    print(f"{seconds:6.0f} s: {tally.killed} kills, {tally.runs} runs, no violation", flush=True)


def _services(
    options: argparse.Namespace, folder: Path, nursery: Nursery
) -> AbstractContextManager[Replicas | None]:
    if not options.replicas:
        return nullcontext()
    return replicas(folder, nursery, options.replicas, options.seed)


def _is_enough(options: argparse.Namespace, tally: Tally, began: float) -> bool:
    if options.seconds is not None and time.monotonic() - began >= options.seconds:
        return True
    return options.kills is not None and tally.killed >= options.kills


def _goal(options: argparse.Namespace) -> str:
    goals = [
        *([f"{options.kills} were killed"] if options.kills is not None else []),
        *([f"{options.seconds:g} s have passed"] if options.seconds is not None else []),
    ]
    return " or ".join(goals)


def _report(seed: str, tally: Tally, seconds: float, violations: int) -> str:
    victims = ", ".join(f"{number} of a {victim}" for victim, number in sorted(tally.kills.items()))
    ends = ", ".join(f"{number} {end}" for end, number in tally.ends.most_common())
    return "\n".join(
        [
            f"Kills by what the run had last begun or done ({len(tally.phases)} kinds):",
            *(f"  {number:5} {phase}" for phase, number in sorted(tally.phases.items())),
            f"Runs that were not killed: {ends}",
            f"seed {seed}: {tally.killed} kills ({victims}), {tally.runs} runs, "
            f"{tally.worlds} worlds, {tally.records} records, {tally.versions} versions, "
            f"{violations} violations, {seconds:.0f} s",
        ]
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m chaos", description=__doc__)
    parser.add_argument("--seed", default="1", help="what is killed when; default: %(default)s")
    parser.add_argument("--kills", type=int, help="end after so many")
    parser.add_argument("--seconds", type=float, help="end after so long; default: 60")
    parser.add_argument(
        "--fault", choices=FAULTS, help="what the sink, or the source, does wrong on purpose"
    )
    parser.add_argument(
        "--replicas",
        type=int,
        default=0,
        metavar="N",
        help="services over one PostgreSQL, behind nginx, in place of one over a file",
    )
    options = parser.parse_args()
    if options.kills is None and options.seconds is None:
        options.seconds = 60.0
    return options


if __name__ == "__main__":
    sys.exit(main())
