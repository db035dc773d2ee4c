"""The progress of a collection on a terminal, and nothing of it elsewhere."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from ladon_storage.cli import progress
from ladon_storage.collection.ledger import ExtractionResult


@pytest.mark.parametrize("is_terminal", [True, False])
async def test_progress_is_shown_on_a_terminal_alone(
    is_terminal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A line for each source says what was read so far; a name is no markup; a pipe has nothing."""
    written = io.StringIO()
    console = Console(file=written, force_terminal=is_terminal, width=100)
    monkeypatch.setattr(progress, "note_console", lambda: console)
    with progress.display() as shown:
        heard = shown.follow("[red]kev")
        await heard(ExtractionResult(pages=3, records_delivered=1200, records_new=1200))
        window = shown.windows("nvd")
        await window(2, 9)
        shown.ended("nvd")
    text = written.getvalue()
    assert ("[red]kev  page 3, 1,200 read, 1,200 new or changed" in text) == is_terminal
    assert bool(text) == is_terminal
