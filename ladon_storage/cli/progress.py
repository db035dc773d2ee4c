"""The progress of running sources on a terminal, on standard error; elsewhere none."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ladon_storage.cli.output import note_console
from ladon_storage.collection.ledger import ExtractionResult, OnProgress

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


class Display:
    """One line for each source that is being collected; without bars, nothing is shown."""

    def __init__(self, bars: Progress | None) -> None:
        self._bars = bars
        self._lines: dict[str, TaskID] = {}

    def follow(self, name: str) -> OnProgress:
        """Return a function that shows each page of a source."""
        self._begin(name)

        async def hear(so_far: ExtractionResult) -> None:
            self._describe(
                name,
                f"{name}  page {so_far.pages:,}, {so_far.records_read:,} read, "
                f"{so_far.records_written:,} new or changed",
            )

        return hear

    def windows(self, name: str) -> Callable[[int, int], Awaitable[None]]:
        """Return a function that shows each window of a backfill."""
        self._begin(name)

        async def hear(done: int, of: int) -> None:
            self._describe(name, f"{name}  window {done:,} of {of:,}")

        return hear

    def ended(self, name: str) -> None:
        """Remove the line of a source."""
        if self._bars is not None and (line := self._lines.pop(name, None)) is not None:
            self._bars.remove_task(line)

    def _begin(self, name: str) -> None:
        if self._bars is not None:
            self._lines[name] = self._bars.add_task(name, total=None)

    def _describe(self, name: str, text: str) -> None:
        if self._bars is not None and (line := self._lines.get(name)) is not None:
            self._bars.update(line, description=text)


@contextmanager
def display() -> Iterator[Display]:
    """Show the followed sources meanwhile."""
    console = note_console()
    if not console.is_terminal:
        yield Display(None)
        return
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    bars = Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        TimeElapsedColumn(),
        console=console,
        transient=True,
    )
    with bars:
        yield Display(bars)
