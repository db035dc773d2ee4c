"""The reference is what the code says: its generated parts are current, its lists complete."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from ladon_storage.project import Project
from tests.documents import ROOT, blocks
from tests.project import reference


@pytest.mark.parametrize("page", reference.GENERATED, ids=lambda page: page.stem)
def test_generated_parts_are_current(page: Path) -> None:
    """A field, verb, metric, error or route that is new or changed stands in the reference."""
    assert page.read_text("utf-8") == reference.current(page), "Run make docs."


def test_every_generated_part_has_its_place() -> None:
    """No model or table was forgotten, and each stands once."""
    found = [
        found[2]
        for page in reference.GENERATED
        for found in reference.MARKER.finditer(page.read_text("utf-8"))
    ]
    assert sorted(found) == sorted(reference.PARTS)


def test_stale_part_is_written_again() -> None:
    """A table that differs in one word becomes what the code says, and nothing else changes."""
    text = (reference.PAGES / "ladon-toml.md").read_text("utf-8")
    assert reference.with_parts(text.replace("| `url` |", "| `uri` |")) == text


def test_variables_of_the_code_are_those_of_the_reference() -> None:
    """The first table of the page names each variable that the package reads, and no other."""
    text = (reference.PAGES / "environment.md").read_text("utf-8").partition("\n## ")[0]
    named = re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)
    assert sorted(named) == sorted(reference.variables_of_the_code())


def test_metrics_of_a_source_have_its_label() -> None:
    """No metric of one source is shown without the label by which a query chooses it."""
    rows = [row for row in reference.service_instruments().splitlines() if "source's" in row]
    assert len(rows) > 10
    assert [row for row in rows if "`source_id`" not in row] == []


def test_events_of_the_code_are_those_of_the_reference() -> None:
    """The page names each event that a flow or the command emits, and no other."""
    text = (reference.PAGES / "events.md").read_text("utf-8")
    named = re.findall(r"^\| `(ladon\.[\w.-]+)` \|", text, re.MULTILINE)
    assert sorted(named) == sorted(reference.events_of_the_code())


TOML = [
    pytest.param(block.text, id=f"{page.stem} line {block.line}")
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    for block in blocks(page)
    if block.language == "toml" and block.use != "append"
]


@pytest.mark.parametrize("text", TOML)
def test_example_of_the_file_loads(text: str, tmp_path: Path) -> None:
    """Each example is a file, or the part of one, that can be used as it stands."""
    tomllib.loads(text)
    file = tmp_path / "ladon.toml"
    file.write_text(text, encoding="utf-8")
    project = Project.load(file, check_sources="tickets" not in text)
    assert project.sources or project.sinks
