"""The code that people copy from the documents runs, against a real service."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path

import pytest

from ladon_storage.cli.app import app
from tests.documents import ROOT, examples
from tests.service import embedded_service

DOCUMENTS = [
    page
    for page in sorted((ROOT / "docs").rglob("*.md"))
    if page != ROOT / "docs" / "how-to" / "deploy.md"  # tests/up follows it on a real server
]
ADDRESS = "http://storage.example:8000"


@pytest.mark.parametrize(
    ("document", "code"),
    [
        pytest.param(document, code, id=f"{document.stem} line {line}")
        for document in DOCUMENTS
        for line, code in examples(document)
    ],
)
async def test_example_of_a_document_runs(
    document: Path, code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each example works as it stands, but for the address of the service."""
    async with embedded_service(tmp_path / "storage.db") as address:
        monkeypatch.setenv("STORAGE_SERVICE_URL", address)
        monkeypatch.chdir(tmp_path)  # an example may name a file
        compiled = compile(
            code.replace(ADDRESS, address),
            str(document),
            "exec",
            flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT,
        )
        outcome = eval(compiled, {"__name__": "example"})
        if inspect.isawaitable(outcome):
            await outcome


def test_links_between_documents_lead_somewhere() -> None:
    """What a relative link names exists."""
    for document in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        text = document.read_text(encoding="utf-8")
        for target in re.findall(r"\]\((?!https?://|#)([^)#]+)", text):
            assert (document.parent / target).exists(), f"{document.name}: {target}"


def test_guarantees_name_tests_that_exist() -> None:
    """Each test that the README shows a guarantee by is in the file that it links."""
    shown = re.findall(r"\[`(test_\w+)`\]\(([^)]+)\)", (ROOT / "README.md").read_text())
    assert len(shown) >= 12
    for name, file in shown:
        assert f"def {name}(" in (ROOT / file).read_text(), name


def test_readme_names_only_targets_that_exist() -> None:
    """Each `make` command of the documents is a target of the Makefile."""
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"(?:`|\$ )make ([a-z]+)", (ROOT / "README.md").read_text()))
    assert {"demo", "test"} <= named <= targets


def test_commands_of_the_readme_are_verbs_with_their_options() -> None:
    """What a reader copies is no usage error: each command line is parsed by the command."""
    text = (ROOT / "README.md").read_text()
    commands = re.findall(r"^\$ (?:\.venv/bin/)?ladon-storage (.*)$", text, re.MULTILINE)
    assert len(commands) >= 8
    for command in commands:
        app.parse_args(command, exit_on_error=False, print_error=False)
