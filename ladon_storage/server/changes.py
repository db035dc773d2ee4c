"""A change of a source on its way into a database: judged by a rule, and recorded as a line.

The rule is a function over the stored watermark, so no database has a rule of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any, NamedTuple

from ladon_storage.models import ChangeAction, Watermark


class Line(NamedTuple):
    """A change that a rule has admitted, as its line of history records it.

    Args:
        action: The kind of change.
        at: The service's time.
        after: The watermark after the change; ``None``: it is deleted.
        actor: The author.
        run_id: The run that wrote.
        timestamp: The timestamp that the writer asked for.
        reason: An operator's reason.
        ledger: The ledger that the run wrote.
    """

    action: ChangeAction
    at: datetime
    after: Watermark | None
    actor: str | None = None
    run_id: str | None = None
    timestamp: datetime | None = None
    reason: str | None = None
    ledger: dict[str, Any] | None = None


class Write(NamedTuple):
    """A change of one source, before it is judged.

    Args:
        source_id: The source.
        judge: The rule: from the stored watermark to the line, or ``None``: there is nothing to
            change. It raises the refusal, and may be called again with what another write stored.
        is_repeated: Whether a line (its run, status and timestamp) is that of this very write,
            which had no response and came again.
    """

    source_id: str
    judge: Callable[[Watermark | None], Line | None]
    is_repeated: Callable[[tuple[Any, ...]], bool] | None = None


class Written(NamedTuple):
    """The outcome of a write: the watermark before it and after it, with their tags."""

    before: Watermark | None
    after: Watermark | None


Note = Callable[[Written], object]
"""Called once, when a change is stored, whether or not its caller still waits."""


def fault_of(note: Callable[[Any], object], outcome: Any) -> Exception | None:
    """Call a function with an outcome, and return what it raises, such as a filter of a log.

    That is its caller's alone: the outcomes beside it are noted, too.
    """
    try:
        note(outcome)
    except StopIteration as error:  # which a future refuses
        stopped = RuntimeError("a note raised StopIteration")
        stopped.__cause__ = error
        return stopped
    except Exception as error:
        return error
    return None
