"""The language of the package and its documents: plain sentences in the terms of the field."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "ladon_storage"
PAGES = [
    *(ROOT / each for each in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    ROOT / "benchmarks" / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]

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


def said(node: ast.expr) -> str:
    """Return the words of a text, without the values in it."""
    match node:
        case ast.Constant(value=str(words)):
            return words
        case ast.JoinedStr(values):
            return "…".join(said(each) for each in values if isinstance(each, ast.Constant))
    return ""


def texts(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield each text that is no docstring: of errors, logs, forms and commands."""
    documented = {id(text) for _, text in docstrings(tree)}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            documented |= {id(part) for part in node.values}
        if isinstance(node, ast.Constant | ast.JoinedStr) and id(node) not in documented:
            yield node.lineno, said(node)


def faults(source: str) -> Iterator[tuple[int, str]]:
    """Yield the line and the words of each docstring or text that breaks a rule."""
    tree = ast.parse(source)
    for line, words in texts(tree):
        if found := DIALECT.search(words):
            yield line, found.group()
    for of_class, text in docstrings(tree):
        words = str(text.value)
        found = DIALECT.search(words) or (VERB.match(words) if of_class else None)
        if found:
            yield text.lineno, found.group().strip()


def test_docstring_and_message_are_written_in_plain_terms() -> None:
    """No docstring, message or form has words that a reader of the field would stumble over."""
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


def test_dialect_is_found_in_docstrings_and_messages() -> None:
    """The rules hold for modules, classes, functions, variables and every text in between."""
    source = '''"""Whoever reads this."""
LIMIT = 1
"""How many calls are under way."""
class Report:
    """Say what a run did."""
def is_open() -> bool:
    """Tell whether it is open."""
    raise ValueError(f"{LIMIT} is told " "anew")
'''
    assert [words for _, words in sorted(faults(source))] == [
        "Whoever",
        "under way",
        "Say",
        "Tell whether",
        "told",
    ]
