"""The code blocks of the documents."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

_BLOCK = re.compile(r"^```(\w+)(?: (\w+)=(\S+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A code block of a document.

    Args:
        line: The line on which it begins.
        language: Its language, such as ``python``.
        use: ``title`` for the text of a file, ``append`` for lines at the end of one, or nothing.
        file: The file.
        text: The text.
    """

    line: int
    language: str
    use: str
    file: str
    text: str

    @property
    def commands(self) -> Iterator[tuple[str, list[str]]]:
        """The commands of a console, each with the lines of its output that the document shows."""
        command, output = "", list[str]()
        for line in self.text.splitlines():
            if not line.startswith("$ "):
                output.append(line)
                continue
            if command:
                yield command, output
            command, output = line[2:], []
        yield command, output


def blocks(document: Path) -> Iterator[Block]:
    """Yield the code blocks of a document in their order."""
    text = document.read_text(encoding="utf-8")
    for found in _BLOCK.finditer(text):
        language, use, file, code = found.groups(default="")
        yield Block(text.count("\n", 0, found.start()) + 1, language, use, file, code)


def examples(document: Path) -> Iterator[tuple[int, str]]:
    """Yield the Python blocks of a document that are no files, with their lines."""
    for block in blocks(document):
        if block.language == "python" and not block.use:
            yield block.line, block.text
