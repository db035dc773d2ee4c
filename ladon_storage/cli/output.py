"""The output of the command: data on standard output, everything else on standard error.

- ``--json`` prints data for programs, and nothing else on standard output.
- A table in a pipe has no colours, and one line for each row, whatever its width.
- Text from a source is printed without characters that a terminal would act on.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text


def is_output_closed() -> bool:
    """Return whether the caller has closed standard output, in whose place is the null device."""
    return getattr(sys.stdout, "name", "") == os.devnull


def _check_json(_: object, value: bool) -> None:
    if value and is_output_closed():
        raise ValueError(
            "Standard output is closed, and the JSON would be lost. Redirect it to a file or leave "
            "--json out."
        )


Json = Annotated[
    bool,
    Parameter(
        name="--json",
        validator=_check_json,
        negative=(),
        show_default=False,
        help="Print JSON instead of text and tables.",
    ),
]
"""The option of each verb that prints data."""


class _Output:
    """Standard output, whose reader may go away: what a verb does is worth more, and goes on."""

    is_unread = False

    def write(self, text: str) -> None:
        """Write a text."""
        try:
            sys.stdout.write(text)
        except BrokenPipeError:
            self._drop()

    def flush(self) -> bool:
        """Write what is kept back, and return whether the reader turned out to have gone."""
        try:
            sys.stdout.flush()
        except BrokenPipeError:
            self._drop()
            return True
        return False

    def _drop(self) -> None:
        from ladon_storage.consoles import lose

        self.is_unread = True
        lose(sys.stdout)


OUTPUT = _Output()

_PIPE_WIDTH = 10_000
_LEAST_CELL = 10
_LEAST_FACTS = 40
"""The columns of a terminal that a table's cell needs to be readable when it is folded."""


def _print(shown: Any) -> None:
    """Print an object of rich on standard output."""
    from rich.console import Console

    if sys.stdout.isatty():
        Console(highlight=False).print(shown)
        return
    console = Console(width=_PIPE_WIDTH, highlight=False)
    with console.capture() as captured:
        console.print(shown)
    for line in captured.get().splitlines():
        print_text(line.rstrip())


@cache
def note_console() -> Console:
    """Return the console of standard error."""
    from rich.console import Console

    class Notes(Console):
        def on_broken_pipe(self) -> None:
            raise  # what rich has caught, and would end the run for

    return Notes(stderr=True, highlight=False)


def print_json(value: Any) -> None:
    """Print data as JSON."""
    OUTPUT.write(f"{json.dumps(value, indent=2)}\n")


def counted(number: int, noun: str) -> str:
    """Return a number with its noun, which is in the plural unless the number is one.

    >>> counted(1, "source"), counted(1200, "source")
    ('1 source', '1,200 sources')
    """
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def print_text(text: str) -> None:
    """Print data as it is."""
    OUTPUT.write(f"{text}\n")


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table; a column whose name ends with a number sign is aligned to the right."""
    from rich.table import Table
    from rich.text import Text

    texts = [[Text(_cell(each), style=_style(each)) for each in row] for row in rows]
    if _is_too_narrow(columns, texts):
        for row in texts:
            facts = [
                (name.removesuffix("#"), each.plain)
                for name, each in zip(columns, row, strict=True)
            ]
            print_facts([*facts, ("", "")])
        return
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        name = column.removesuffix("#")
        table.add_column(name, justify="right" if column.endswith("#") else "left", overflow="fold")
    for row in texts:
        table.add_row(*row)
    _print(table)


def _is_too_narrow(columns: Sequence[str], rows: Sequence[Sequence[Text]]) -> bool:
    """Return whether a terminal has no room for a table, even with its cells folded."""
    if not sys.stdout.isatty():
        return False
    from rich.console import Console

    widths = [
        max([len(name), *(row[number].cell_len for row in rows)]) + 2
        for number, name in enumerate(columns)
    ]
    return Console().width < min(sum(widths), _LEAST_CELL * len(columns))


def print_heading(text: str) -> None:
    """Print a heading above a table."""
    from rich.text import Text

    _print(Text(f"\n{text}", style="bold"))


def print_facts(facts: Sequence[tuple[str, str]]) -> None:
    """Print facts, a line each, with their names before them."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from ladon_storage.collection.summaries import cut

    if sys.stdout.isatty() and Console().width < _LEAST_FACTS:
        for name, text in facts:
            print_text(f"{name}: {cut(text, 2_000)}" if name else "")
        return
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in facts:
        table.add_row(name, Text(cut(text, 2_000)))
    _print(table)


def _cell(value: object) -> str:
    from ladon_storage.collection.summaries import cut

    if value is None:
        return ""
    return f"{value:,}" if isinstance(value, int) else cut(str(value), 2_000)


_STYLES = {
    "ok": "green",
    "done": "green",
    "fresh": "green",
    "failed": "bold red",
    "wrong": "bold red",
    "stale": "bold red",
    "never collected": "yellow",
    "in the future": "bold red",
    "held by a dead run": "bold red",
    "warning": "yellow",
}


def _style(value: object) -> str:
    return _STYLES.get(str(value), "")


def note(text: str) -> None:
    """Print a sentence for a user on standard error; a full disk below it ends no run."""
    from rich.text import Text

    with suppress(OSError):
        note_console().print(Text(text), soft_wrap=True)


def said(error: BaseException) -> str:
    """Return an error as one line, with its place in the code if it is not of this package."""
    from pathlib import Path
    from traceback import extract_tb

    from ladon_storage.collection.summaries import cut
    from ladon_storage.errors import LadonStorageError, told

    if isinstance(error, LadonStorageError):
        return cut(str(error), 2_000)
    place = ""
    if frames := extract_tb(error.__traceback__):
        place = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})"
    return cut(f"{type(error).__name__}: {told(error)}", 2_000) + place


class NoteHandler(logging.Handler):
    """A handler that prints log records on standard error, above a progress display if any."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print the message of a record."""
        if record.name == "ladon_storage.client.client":  # what it says is the verb's error as well
            return
        from ladon_storage.collection.summaries import cut

        note(cut(record.getMessage(), 2_000))


def log_to_notes() -> None:
    """Print the package's warnings as sentences on standard error."""
    package = logging.getLogger("ladon_storage")
    if not any(isinstance(each, NoteHandler) for each in package.handlers):
        package.addHandler(NoteHandler(logging.WARNING))
    # It logs each retry, which the package logs already.
    logging.getLogger("stamina").addHandler(logging.NullHandler())
