"""The code that people copy from the documents runs, against a real service."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.service import embedded_service

ROOT = Path(__file__).resolve().parent.parent
GUIDE = ROOT / "docs" / "STORAGE_CLIENT_GUIDE.md"
ADDRESS = "http://storage.example:8000"


def examples(document: Path) -> Iterator[tuple[int, str]]:
    """Yield the Python blocks of a document, with the lines on which they begin."""
    text = document.read_text(encoding="utf-8")
    for found in re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        yield text.count("\n", 0, found.start()) + 1, found[1]


@pytest.mark.parametrize(
    "code", [pytest.param(code, id=f"line {line}") for line, code in examples(GUIDE)]
)
async def test_guide_example_runs(
    code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each example works as it stands, but for the address of the service."""
    async with embedded_service(tmp_path / "storage.db") as address:
        monkeypatch.setenv("STORAGE_SERVICE_URL", address)
        compiled = compile(
            code.replace(ADDRESS, address),
            str(GUIDE),
            "exec",
            flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT,
        )
        outcome = eval(compiled, {"__name__": "example"})
        if inspect.isawaitable(outcome):
            await outcome


def test_links_between_documents_lead_somewhere() -> None:
    """What a relative link names exists."""
    for document in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        text = document.read_text(encoding="utf-8")
        for target in re.findall(r"\]\((?!https?://|#)([^)#]+)", text):
            assert (document.parent / target).exists(), f"{document.name}: {target}"
