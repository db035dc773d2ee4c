"""Two processes and a pipe between them, as Singer and Airbyte collect.

Both are forked after the imports, so that these are neither in their time nor in their memory.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path


def piped(read: Callable[[], None], store: Callable[[], None]) -> float:
    """Run the one with its output as the other's input; return the MiB of both above their start.

    Raises:
        RuntimeError: One of them failed.
    """
    reading, writing = os.pipe()
    told, telling = os.pipe()
    children = [
        _forked(read, telling, (writing, 1), (reading, told)),
        _forked(store, telling, (reading, 0), (writing, told)),
    ]
    for each in (reading, writing, telling):
        os.close(each)
    with os.fdopen(told) as lines:
        before = sum(map(float, lines))
    peak = 0.0
    for child in children:
        _, status, used = os.wait4(child, 0)
        if status:
            raise RuntimeError(f"a process of the pipe ended with {status}")
        peak += used.ru_maxrss / 1024
    return peak - before


def _forked(
    work: Callable[[], None], telling: int, end: tuple[int, int], others: tuple[int, int]
) -> int:
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        os.write(telling, f"{_resident()}\n".encode())
        for each in (telling, *others):
            os.close(each)
        os.dup2(*end)
        os.close(end[0])
        if end[1] == 0:  # what the store says is read by nobody
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        work()
        sys.stdout.flush()
        code = 0
    except SystemExit as ended:
        code = int(bool(ended.code))
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _resident() -> float:
    """Return the MiB that this process has now."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20
