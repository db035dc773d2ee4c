"""One collection in a process of its own: its time, its memory and what it wrote, as JSON.

- Imports are over when the clock starts, and what they took is not counted as memory.
- CPU time is of all threads, and of processes that were waited for.
- A contender that lost or doubled records has no figure.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.feeds import FEEDS

MODULES = {
    **{each: each for each in ("script", "hashing", "ours")},
    "dlt": "with_dlt",
    "Singer": "with_singer",
}
AIRBYTE = {"Airbyte": "with_airbyte"}


def main() -> None:
    """Collect once: who, the name of the feed, its address, the records to be found, a folder."""
    who, name, url, expected, place = sys.argv[1:]
    print(json.dumps(measured(who, name, url, int(expected), Path(place))))


def measured(who: str, name: str, url: str, expected: int, folder: Path) -> dict[str, Any]:
    """Return the figures of one collection.

    Raises:
        SystemExit: Another number of records than ``expected`` is durable.
    """
    contender = made(who, folder)
    start = Usage()
    others = contender.collect(url, FEEDS[name])
    figures = start.until_now()
    figures["mebibytes"] += others or 0
    found = contender.count()
    if found != expected:
        raise SystemExit(f"{who} has {found} records of {expected}")
    return {
        **figures,
        "size": sum(each.stat().st_size for each in folder.rglob("*") if each.is_file()),
    }


def made(who: str, folder: Path) -> Any:
    """Return the contender of a name."""
    module = (MODULES | AIRBYTE)[who.replace(",", " ").split()[0]]
    return import_module(f"benchmarks.contenders.{module}").CONTENDERS[who](folder)


class Usage:
    """What this process has used so far, children included."""

    def __init__(self) -> None:
        self._peak = _peak()
        self._written = written()
        self._cpu = _cpu()
        self._began = time.perf_counter()

    def until_now(self) -> dict[str, float]:
        """Return seconds, CPU seconds, MiB above the start, and bytes written since then."""
        seconds, cpu = time.perf_counter() - self._began, _cpu() - self._cpu
        return {
            "seconds": seconds,
            "cpu": cpu,
            "mebibytes": _peak() - self._peak,
            "written": written() - self._written,
        }


def written() -> float:
    """Return the bytes that this process gave to the disk; 0 where the system does not say."""
    try:
        lines = Path("/proc/self/io").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return float(dict(line.split(": ") for line in lines)["write_bytes"])


def _cpu() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
