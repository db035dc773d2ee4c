"""The reference of `ladon.toml`: its tables are those of the models.

``python -m tests.project.test_reference`` writes them into the document.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from pydantic_core import PydanticUndefined, to_jsonable_python

from ladon_storage.collection.protocols import Limits
from ladon_storage.project import (
    Freshness,
    Project,
    Schedule,
    SinkTable,
    SourceTable,
    StorageTable,
)
from ladon_storage.sources import KINDS

DOCUMENT = Path(__file__).parents[2] / "docs" / "reference" / "ladon-toml.md"
MODELS: dict[str, type[BaseModel]] = {
    "storage": StorageTable,
    "sinks": SinkTable,
    "source": SourceTable,
    "schedule": Schedule,
    "limits": Limits,
    "freshness": Freshness,
    **{f"kind {kind.model_fields['kind'].default}": kind for kind in KINDS},
}


def rendered(model: type[BaseModel]) -> str:
    """Return the table of a model's fields, those that are required first."""
    rows = ["| key | default | |", "|---|---|---|"]
    fields = [(name, field) for name, field in model.model_fields.items() if name != "kind"]
    if "kind" in model.model_fields and model in (SourceTable, SinkTable):
        fields.insert(0, ("kind", model.model_fields["kind"]))
    for name, field in sorted(fields, key=lambda each: not each[1].is_required()):
        default = "required" if field.is_required() else shown(model, name, field)
        if name == "source_id":
            default = "the table's name"
        text = str(field.description).replace("|", "\\|")
        if unit := re.search(r"\((days|hours|seconds)\)$", field.title or ""):
            text += f" In {unit[1]}."
        rows.append(f"| `{name}` | {default} | {text} |")
    return "\n".join(rows)


def shown(model: type[BaseModel], name: str, field: Any) -> str:
    extra = field.json_schema_extra
    value = extra.get("default", field.default) if isinstance(extra, dict) else field.default
    if field.default_factory is not None:
        value = field.default_factory()
    if value is None or value in ((), {}, "") or value is PydanticUndefined:
        return ""
    value = to_jsonable_python(value)
    if isinstance(value, dict):
        return ""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def marked(name: str) -> re.Pattern[str]:
    return re.compile(rf"(<!-- fields: {re.escape(name)} -->\n\n).*?(?=\n\n|\Z)", re.DOTALL)


@pytest.mark.parametrize("name", MODELS)
def test_reference_has_the_fields_of_the_model(name: str) -> None:
    """A key that is new, or means something else, stands in the reference."""
    found = marked(name).search(DOCUMENT.read_text(encoding="utf-8"))
    assert found, f"there is no table of {name}"
    assert found[0].partition("\n\n")[2].rstrip() == rendered(MODELS[name])


def test_examples_of_the_reference_load(tmp_path: Path) -> None:
    """Each example is a file, or the part of one, that can be used as it stands."""
    examples = re.findall(r"```toml\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
    assert len(examples) >= 3
    for number, text in enumerate(examples):
        tomllib.loads(text)
        file = tmp_path / f"{number}.toml"
        file.write_text(text, encoding="utf-8")
        Project.load(file, check_sources="tickets" not in text)


def main() -> None:
    """Write the tables into the document."""
    text = DOCUMENT.read_text(encoding="utf-8")
    for name, model in MODELS.items():
        table = rendered(model)
        text = marked(name).sub(lambda found, table=table: found[1] + table, text)  # type: ignore[misc]
    DOCUMENT.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
