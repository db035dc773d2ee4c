"""A crash at any line ends a process as the operating system would."""

from __future__ import annotations

import sys
import threading

import pytest

from ladon_storage.sinks import SqlSink
from ladon_storage.testing.crashes import ENGINE, CrashPoint, homes
from ladon_storage.testing.doubles import record
from tests.sinks.own_sink import OwnSink


def test_interrupt_at_a_line_of_another_thread_strikes_the_main_one() -> None:
    """The other thread goes on, as it does when a person presses Ctrl-C."""
    reached = list[int]()

    def work() -> None:
        reached.append(1)
        reached.append(2)

    def begin_and_wait() -> None:
        other.start()
        other.join(30)
        threading.Event().wait(30)

    other = threading.Thread(target=work)
    point = CrashPoint(2, "interrupt")
    point.arm()
    sys.settrace(None)  # of this thread, no line counts
    try:
        with pytest.raises(KeyboardInterrupt):
            begin_and_wait()
    finally:
        point.disarm()
    other.join(30)
    assert reached == [1, 2]


def test_interrupt_at_a_line_of_the_main_thread_is_raised_there() -> None:
    """What follows the line is not executed."""
    reached = list[int]()

    def work() -> None:
        reached.append(1)
        reached.append(2)

    point = CrashPoint(2, "interrupt")
    point.arm()
    try:
        with pytest.raises(KeyboardInterrupt, match="at line 2"):
            work()
    finally:
        point.disarm()
    assert reached == [1]


@pytest.mark.parametrize(("kind", "is_counted"), [(OwnSink, False), (SqlSink, True)])
def test_lines_of_the_engine_are_counted_for_a_sink_of_the_package_alone(
    kind: type, is_counted: bool
) -> None:
    """Where a checkout is installed, the engine's lines would take the places of the sink's."""
    point = CrashPoint(own=homes(kind, "write"), foreign=(ENGINE,))
    point.arm()
    try:
        record("1", 1)
    finally:
        point.disarm()
    assert bool(point.lines) == is_counted
