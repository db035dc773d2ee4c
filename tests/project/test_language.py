"""The language of docstrings and documents: plain sentences in the terms of the field."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "ladon_storage"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]

DIALECT = re.compile(
    r"\b(told|who(so)?ever|nobody|somebody|anybody|anew|belongs into|under way)\b|^Tell whether\b",
    re.IGNORECASE,
)
"""Words for which a plain one exists: *again*, *in flight*, *the caller*, *Return whether*."""

VERB = re.compile(r"(Be|Say|Tell|Name|Keep|Hold|Let|Have|Count|Look|Give|Know)s? ")
"""The first words of a class docstring that says what the class does instead of naming it."""


def docstrings(tree: ast.Module) -> Iterator[tuple[bool, ast.Constant]]:
    """Yield each docstring, of a variable too, and whether it is that of a class."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        for index, each in enumerate(node.body):
            match each:
                case ast.Expr(value=ast.Constant(value=str()) as text):
                    yield isinstance(node, ast.ClassDef) and index == 0, text


def faults(source: str) -> Iterator[tuple[int, str]]:
    """Yield the line and the words of each docstring that breaks a rule."""
    for of_class, text in docstrings(ast.parse(source)):
        words = str(text.value)
        found = DIALECT.search(words) or (VERB.match(words) if of_class else None)
        if found:
            yield text.lineno, found.group().strip()


def test_docstring_is_written_in_plain_terms() -> None:
    """A docstring has none of the words that a reader of the field would stumble over."""
    found = [
        f"{path.relative_to(PACKAGE)}:{line}: {words}"
        for path in sorted(PACKAGE.rglob("*.py"))
        for line, words in faults(path.read_text(encoding="utf-8"))
    ]
    assert not found, "\n".join(found)


def prose(text: str) -> str:
    """Return the prose of a document: its lines, without the words of code blocks."""
    return re.sub(
        r"^```.*?^```$",
        lambda block: "\n" * block[0].count("\n"),
        text,
        flags=re.MULTILINE | re.DOTALL,
    )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_document_is_written_in_plain_terms(page: Path) -> None:
    """A page has none of those words either, and neither have the texts that it takes from code."""
    lines = prose(page.read_text(encoding="utf-8")).splitlines()
    found = [
        f"{page.relative_to(ROOT)}:{number}: {match.group()}"
        for number, line in enumerate(lines, 1)
        if (match := DIALECT.search(line))
    ]
    assert not found, "\n".join(found)


def test_dialect_is_found_wherever_a_docstring_stands() -> None:
    """The rules hold for modules, classes, functions and variables, and not for other texts."""
    source = '''"""Whoever reads this."""
LIMIT = 1
"""How many calls are under way."""
class Report:
    """Say what a run did."""
def is_open() -> bool:
    """Tell whether it is open."""
    return "told" > ""
'''
    assert [words for _, words in sorted(faults(source))] == [
        "Whoever",
        "under way",
        "Say",
        "Tell whether",
    ]
