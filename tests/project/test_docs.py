"""The documents are true: examples run, links lead somewhere, and commands can be typed."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path

import pytest

from ladon_storage.cli.app import app
from tests.documents import ROOT, blocks, examples
from tests.service import embedded_service

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
ELSEWHERE = {"README.md", "deploy.md", "own-flow.md", "test-your-own.md"}
"""Pages whose examples run in a process of their own: `test_readme`, `testing/test_documents`."""

ADDRESS = "http://storage.example:8000"
COMMAND = re.compile(r"^(?:\$ )?(?:\w+=\S+ )*ladon-storage (\S.*)$", re.MULTILINE)


@pytest.mark.parametrize(
    ("document", "code"),
    [
        pytest.param(page, code, id=f"{page.stem} line {line}")
        for page in PAGES
        if page.name not in ELSEWHERE
        for line, code in examples(page)
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


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page, as GitHub makes them from its headings."""
    text = re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    found = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in found}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_of_a_page_lead_somewhere(page: Path) -> None:
    """What a relative link names exists, the heading that it leads to as well."""
    text = page.read_text(encoding="utf-8")
    for name, anchor in re.findall(r"\]\((?!https?://)([^)#\s]*)(?:#([^)]*))?\)", text):
        target = page.parent / name if name else page
        assert target.exists(), name
        assert not anchor or anchor in anchors(target), f"{name}#{anchor}"


def test_every_page_can_be_reached_from_the_readme() -> None:
    """No page of the documents is missing from the table of the README."""
    linked = re.findall(r"\]\((docs/[^)#]+\.md)", (ROOT / "README.md").read_text("utf-8"))
    pages = [str(page.relative_to(ROOT)) for page in (ROOT / "docs").rglob("*.md")]
    assert sorted(set(linked)) == sorted(pages)


def test_readme_fits_on_two_screens_before_its_guarantees() -> None:
    """Fifty lines of 130 characters are a screen; longer lines are folded."""
    start, table, _ = (ROOT / "README.md").read_text("utf-8").partition("## What is guaranteed")
    assert table
    assert sum(max(1, -(-len(line) // 130)) for line in start.splitlines()) <= 100


def test_code_names_only_pages_that_exist() -> None:
    """A message, a comment or a setting that names a page names one that is there."""
    files = [
        *(ROOT / "ladon_storage").rglob("*.py"),
        *(ROOT / "tests").rglob("*.py"),
        *(ROOT / name for name in ("pyproject.toml", "prefect.yaml", "Makefile")),
    ]
    for file in files:
        for name in re.findall(r"docs/[\w/-]+\.md", file.read_text(encoding="utf-8")):
            assert (ROOT / name).exists(), f"{file}: {name}"


def test_guarantees_name_tests_that_exist() -> None:
    """Each test that the README shows a guarantee by is in the file that it links."""
    shown = re.findall(r"\[`(test_\w+)`\]\(([^)]+)\)", (ROOT / "README.md").read_text())
    assert len(shown) >= 12
    for name, file in shown:
        assert f"def {name}(" in (ROOT / file).read_text(), name


def test_pages_name_only_targets_that_exist() -> None:
    """Each `make` command of the documents is a target of the Makefile."""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in PAGES:
        named = set(re.findall(r"(?:`|\$ )make ([a-z-]+)", page.read_text("utf-8")))
        assert named <= targets, page.name


COMMANDS = sorted(
    {
        command
        for page in PAGES
        if page.name != "commands.md"  # made from the command
        for block in blocks(page)
        if block.language in ("console", "text")
        for command in COMMAND.findall(block.text)
    }
)


@pytest.mark.parametrize("command", COMMANDS)
def test_command_of_a_page_is_a_verb_with_its_options(command: str) -> None:
    """What a reader copies is no usage error: each command line is parsed by the command."""
    app.parse_args(command, exit_on_error=False, print_error=False)
