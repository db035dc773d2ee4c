"""The schema of `ladon.toml`, with which editors complete the file."""

from __future__ import annotations

import json
import re
import tomllib
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest

from ladon_storage.project import example
from ladon_storage.project.schema import SCHEMA_FILE, schema
from ladon_storage.sources import KINDS
from tests.project.test_project import FILE


def shipped() -> Any:
    return json.loads(SCHEMA_FILE.read_text(encoding="utf-8"))


def test_shipped_schema_is_that_of_the_models() -> None:
    """A field that is new is completed; `python -m ladon_storage.project.schema` writes it."""
    assert shipped() == json.loads(json.dumps(schema()))


@pytest.mark.parametrize(
    "text",
    [
        FILE,
        example(),
        re.sub(r"(?m)^#(?=[\[a-z])", "", example()).replace('url = "sqlite:///ladon.db"\n', "", 1),
    ],
)
def test_what_loads_is_valid(text: str) -> None:
    """An editor finds nothing wrong with a file that is right."""
    jsonschema.Draft7Validator.check_schema(shipped())
    jsonschema.validate(tomllib.loads(text), shipped(), jsonschema.Draft7Validator)


@pytest.mark.parametrize(
    "text",
    [
        "[source.kev]", "[storage]\ntokn = 'A'", "[defaults]\nsnik = 'a'",
        "[sources.a]\nkind = 'kev'\nulr = 'x'", "[sources.a]\nurl = 'x'",
        "[sources.a]\nkind = 'kev'\nschedule.crn = 'x'", "[sinks.a]\nkeep = 'al'",
    ],
)  # fmt: skip
def test_what_is_misspelt_is_marked(text: str) -> None:
    """An editor marks what the file would be refused for."""
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(tomllib.loads(text), shipped(), jsonschema.Draft7Validator)


def test_every_key_has_a_description() -> None:
    """What an editor completes, it explains; and nothing of it is code."""
    tables = shipped()["definitions"]
    assert {kind.__name__ for kind in KINDS} <= set(tables)
    for name in ("StorageTable", "SinkTable", "Defaults", "Schedule", "Freshness", "Limits"):
        for key, field in tables[name]["properties"].items():
            assert field["description"].endswith("."), (name, key)
    assert ">>>" not in SCHEMA_FILE.read_text(encoding="utf-8")
