"""The Python examples of the documents."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def examples(document: Path) -> Iterator[tuple[int, str]]:
    """Yield the Python blocks of a document, with the lines on which they begin."""
    text = document.read_text(encoding="utf-8")
    for found in re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        yield text.count("\n", 0, found.start()) + 1, found[1]
