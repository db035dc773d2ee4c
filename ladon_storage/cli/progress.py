"""The progress of running sources on a terminal, on standard error; elsewhere none."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import Progress as Bars
from rich.progress import SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from ladon_storage.cli.output import note_console
from ladon_storage.collection.ledger import ExtractionResult, OnProgress


class Display:
    """One line for each source that is being collected."""

    def __init__(self, console: Console) -> None:
        self._bars = Bars(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._lines: dict[str, TaskID] = {}

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Show the lines meanwhile."""
        with self._bars:
            yield

    def follow(self, name: str) -> OnProgress:
        """Return a function that shows each page of a source."""
        line = self._lines[name] = self._bars.add_task(name, total=None)

        async def hear(so_far: ExtractionResult) -> None:
            text = (
                f"{name}  page {so_far.pages:,}, {so_far.records_read:,} read, "
                f"{so_far.records_written:,} new or changed"
            )
            self._bars.update(line, description=text)

        return hear

    def windows(self, name: str) -> Callable[[int, int], Awaitable[None]]:
        """Return a function that shows each window of a backfill."""
        line = self._lines[name] = self._bars.add_task(name, total=None)

        async def hear(done: int, of: int) -> None:
            self._bars.update(line, description=f"{name}  window {done:,} of {of:,}")

        return hear

    def ended(self, name: str) -> None:
        """Remove the line of a source."""
        if (line := self._lines.pop(name, None)) is not None:
            self._bars.remove_task(line)


@contextmanager
def display() -> Iterator[Display]:
    """Show the followed sources meanwhile."""
    shown = Display(note_console())
    with shown.shown():
        yield shown
