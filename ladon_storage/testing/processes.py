"""Processes forked from one that has imported everything, so that a crash costs no start of Python.

- A process that forks should have no other thread, and has no running event loop.
- No child outlives the harness: each ends when the pipe that the harness holds is closed.
- A process is killed with SIGKILL, and only through the object that started it.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

START_SECONDS = 30.0


class Nursery:
    """The children of this process, none of which outlives it."""

    def __init__(self) -> None:
        self._lifeline, self._held = os.pipe()
        self.children: set[Child] = set()

    def fork(self, work: Callable[[int], None], log: Path) -> Child:
        """Run ``work`` in a child process, with the descriptor of the pipe that the harness reads.

        Args:
            work: What it does; it ends when that returns.
            log: Where its outputs go.
        """
        reading, writing = os.pipe()
        with warnings.catch_warnings():
            # Of threads that a test runner has besides, none is needed in the child.
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
        if pid == 0:
            self._be_child(work, reading, writing, log)
        os.close(writing)
        child = Child(pid, reading, self)
        self.children.add(child)
        return child

    def _be_child(
        self, work: Callable[[int], None], reading: int, writing: int, log: Path
    ) -> NoReturn:
        code = 1
        try:
            os.close(self._held)
            os.close(reading)
            for other in self.children:
                os.close(other.pipe)
            output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(output, 1)
            os.dup2(output, 2)
            threading.Thread(target=self._end_with_harness, daemon=True).start()
            work(writing)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)

    def _end_with_harness(self) -> None:
        os.read(self._lifeline, 1)
        os._exit(1)

    def close(self) -> None:
        """Kill the children that still run."""
        for child in list(self.children):
            child.kill()
        os.close(self._held)
        os.close(self._lifeline)

    def __enter__(self) -> Nursery:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Child:
    """A forked process, and the facts that it reports."""

    def __init__(self, pid: int, pipe: int, nursery: Nursery) -> None:
        self.pid = pid
        self.pipe = pipe
        self.said: list[dict[str, Any]] = []
        self.signalled = 0
        """The signal that ended it; 0: none, or it runs."""
        self.code: int | None = None
        """The exit code; ``None``: a signal ended it, or it runs."""
        self.is_late = False
        """Whether it did not end in time, and was killed for that."""
        self._nursery = nursery
        self._rest = b""
        self._ended = False

    def kill(self) -> None:
        """End it as a crash does."""
        if not self._ended:
            os.kill(self.pid, signal.SIGKILL)
            self.wait()

    def wait(self, seconds: float = START_SECONDS) -> None:
        """Wait for its end, and read its last reports; kill it after so many seconds."""
        if self._ended:
            return
        deadline = time.monotonic() + seconds
        while self._read(deadline):
            pass
        if time.monotonic() >= deadline:
            self.is_late = True
            os.kill(self.pid, signal.SIGKILL)
        _, status = os.waitpid(self.pid, 0)
        self.signalled = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
        self.code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else None
        self._ended = True
        os.close(self.pipe)
        self._nursery.children.discard(self)

    def hear(self, deadline: float) -> bool:
        """Read its reports until ``deadline``, and return whether there may be more."""
        return not self._ended and self._read(deadline)

    def line(self) -> str:
        """Return its next line."""
        deadline = time.monotonic() + START_SECONDS
        while b"\n" not in self._rest:
            if not self._fill(deadline):
                raise RuntimeError(f"Process {self.pid} did not start; read its log.")
        text, _, self._rest = self._rest.partition(b"\n")
        return text.decode()

    def _read(self, deadline: float) -> bool:
        alive = self._fill(deadline)
        *lines, self._rest = self._rest.split(b"\n")
        for line in lines:
            with contextlib.suppress(ValueError):  # the last one of a process that was killed
                self.said.append(json.loads(line))
        return alive

    def _fill(self, deadline: float) -> bool:
        ready, _, _ = select.select([self.pipe], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            return False
        some = os.read(self.pipe, 2**16)
        self._rest += some
        return bool(some)


def heard(children: list[Child], deadline: float) -> Iterator[Child]:
    """Yield the children that report something before ``deadline``, or that end."""
    while children and (left := deadline - time.monotonic()) > 0:
        ready, _, _ = select.select([each.pipe for each in children], [], [], left)
        for child in [each for each in children if each.pipe in ready]:
            if not child.hear(deadline):
                children.remove(child)
            yield child
