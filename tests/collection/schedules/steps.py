"""The steps of a schedule, and the feed that it is played against."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from ladon_storage.collection.records import Record

SOURCE = "feed"


LEASE = timedelta(minutes=1)


SKEW = timedelta(minutes=5)


STORM = 15
"""So many unusable records at once that the feed must have changed."""


@dataclass(eq=False)
class Item:
    """Be one version that the feed showed, and whether the sink must have it."""

    record: Record
    due: bool = True

    @property
    def key(self) -> tuple[str, str]:
        return self.record.record_id, self.record.version

    @property
    def at(self) -> datetime:
        return self.record.timestamp


@dataclass(frozen=True)
class Feed:
    """Say what kind of source it is.

    Args:
        overlap: In minutes; ``None``: it is read whole.
        ordered: Whether it declares an order.
        honest: Whether it keeps it, and its requests ask for it.
        page: Records of a page.
        lookback: How far back a first collection reads, in minutes.
        delivers_all: Whether it delivers everything, whatever it is asked for.
        tells_time: Whether its answers tell its own time.
        twice: Whether it is read a second time in the same run, as a list is that moved.
        seed: The order in which it delivers.
    """

    overlap: int | None = 3
    ordered: bool = False
    honest: bool = True
    page: int = 2
    lookback: int | None = None
    delivers_all: bool = False
    tells_time: bool = True
    twice: bool = False
    seed: int = 0


@dataclass(frozen=True)
class Publish:
    """Show a record: ``new``, ``tie``, ``late``, ``update``, ``moved``, ``future``, ``reject``.

    ``ancient``: from years ago. ``older``: with another content, and a time before the one that it
    has. ``revert``: as it was before, its time included; ``return``: as it was, with a new time.
    """

    kind: str
    record_id: int = 0
    minutes: int = 0


@dataclass(frozen=True)
class Tick:
    """Let minutes pass."""

    minutes: int


@dataclass(frozen=True)
class Fault:
    """Do something at the ``nth`` call of ``point``, before it or after it."""

    point: str
    nth: int
    when: str
    what: str


@dataclass(frozen=True)
class Run:
    """Collect; ``again`` under the id of the run before, unless an operator came between.

    The worker's clock is ``ahead`` of the true time by minutes, or behind it.
    """

    faults: tuple[Fault, ...] = ()
    again: bool = False
    ahead: int = 0


@dataclass(frozen=True)
class Both:
    """Collect twice at once; ``turns`` are how long each waits at each of its calls."""

    one: Run
    other: Run
    turns: tuple[int, ...]


@dataclass(frozen=True)
class Reset:
    """Move the watermark back by minutes, to where the last run went from, or delete it.

    ``ahead``: another program moves it into the future by most of a day.
    """

    how: str
    minutes: int = 0


@dataclass(frozen=True)
class Lose:
    """Put the sink back to what it was so many steps ago; 0: drop it."""

    steps: int


@dataclass(frozen=True)
class Storm:
    """Let the feed change its shape, or be repaired."""


@dataclass(frozen=True)
class Cut:
    """Let a whole listing lack the records of so many ids, which is its fault; 0: repair it."""

    ids: int


Step = Publish | Tick | Run | Both | Reset | Lose | Storm | Cut
