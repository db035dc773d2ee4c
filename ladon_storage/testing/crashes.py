"""A crash at any line: a process that kills itself at the nth line that its own code executes.

The lines of the standard library, of installed packages and of this kit are not counted, but for a
package that is named as one's own. So a crash point is the same one in each run of the same code.
"""

from __future__ import annotations

import os
import signal
import site
import sys
import sysconfig
import threading
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any, Literal, Protocol

Ending = Literal["kill", "interrupt"]
"""``kill`` ends the process as SIGKILL does, ``interrupt`` as SIGINT does, in the main thread."""

_KIT = Path(__file__).resolve().parent
ENGINE = os.path.join(_KIT.parent, "")
"""The folder of this package."""

_INSTALLED = tuple(
    os.path.join(folder, "")
    for folder in {
        *site.getsitepackages(),
        *(sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")),
    }
)


def homes(kind: type, method: str) -> tuple[str, ...]:
    """Return the folders of the packages whose classes define a method of this class.

    Of a module that is in no package, it is the file.
    """
    found = set[str]()
    for base in kind.__mro__:
        if method in vars(base) and Protocol not in base.__bases__:
            module = sys.modules.get(base.__module__.partition(".")[0])
            if folders := getattr(module, "__path__", ()):
                found.update(os.path.join(os.path.realpath(each), "") for each in folders)
            elif file := getattr(module, "__file__", None):
                found.add(os.path.realpath(file))
    return tuple(found)


class CrashPoint:
    """The nth line of one's own code, at which this process ends.

    Args:
        nth: The number of the line, from 1 on; 0: it does not end.
        ending: How it ends; a function is called instead, and the line goes on.
        own: The beginnings of the paths whose lines are counted wherever they are; of `homes`.
        foreign: Those whose other lines are not, though nothing installed them.
    """

    def __init__(
        self,
        nth: int = 0,
        ending: Ending | Callable[[], object] = "kill",
        *,
        own: tuple[str, ...] = (),
        foreign: tuple[str, ...] = (),
    ) -> None:
        self.lines = 0
        """The number of lines that were executed."""
        self._nth = nth
        self._ending = ending

        @cache
        def is_own(file: str) -> bool:
            path = os.path.realpath(file)
            if file.startswith("<") or path.startswith(os.path.join(_KIT, "")):
                return False
            return path.startswith(own) or not path.startswith(_INSTALLED + foreign)

        self._is_own = is_own

    def arm(self) -> None:
        """Count the lines that every thread of this process executes from now on."""
        threading.settrace(self._trace)
        sys.settrace(self._trace)

    def restart(self, nth: int = 0) -> None:
        """Count from 0 again, to another line."""
        self.lines, self._nth = 0, nth

    def disarm(self) -> None:
        """Count no more."""
        sys.settrace(None)
        threading.settrace(None)

    def _trace(self, frame: FrameType, event: str, _: Any) -> Callable[..., Any] | None:
        if event == "call":
            return self._trace if self._is_own(frame.f_code.co_filename) else None
        if event == "line":
            self.lines += 1
            if self.lines == self._nth:
                self._end()
        return self._trace

    def _end(self) -> None:
        if callable(self._ending):
            self._ending()
            return
        if self._ending == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        main = threading.main_thread()
        if threading.current_thread() is main:
            raise KeyboardInterrupt(f"at line {self.lines}")
        # Python raises it in no other thread: what waits for one that ended so would wait for ever.
        if main.ident is not None:
            signal.pthread_kill(main.ident, signal.SIGINT)
