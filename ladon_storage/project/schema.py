"""The JSON schema of ``ladon.toml``, made from the models, so that editors complete the file.

The schema is shipped as a file, `SCHEMA_FILE`, because an editor reads no Python. A test compares
it with the models. ``python -m ladon_storage.project.schema`` writes it.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from ladon_storage.project.tables import (
    CollectManyTable,
    Defaults,
    SinkTable,
    SourceTable,
    StorageTable,
)
from ladon_storage.sources import KINDS

SCHEMA_FILE = Path(__file__).with_name("ladon.schema.json")
"""The schema as it is shipped."""

_DURATION = re.compile(r"^(Days|Hours|Seconds)$|\((days|hours|seconds)\)$")
_NO_DEFAULT = ("default", None)


def schema() -> dict[str, Any]:
    """Return the schema of the file, with a table for each kind of source."""
    tables: list[type[BaseModel]] = [
        StorageTable,
        SinkTable,
        Defaults,
        CollectManyTable,
        SourceTable,
        *KINDS,
    ]
    names, document = models_json_schema(
        [(each, "validation") for each in tables], ref_template="#/definitions/{model}"
    )
    definitions = document["$defs"]
    place = {each: names[each, "validation"]["$ref"].rpartition("/")[2] for each in tables}
    common = definitions.pop(place[SourceTable])["properties"]
    kinds = []
    for kind in KINDS:
        table = definitions[place[kind]]
        table["properties"] = {
            **table["properties"],
            **{name: value for name, value in common.items() if name != "kind"},
        }
        # The table's name stands for a source_id that is not there.
        required = {"kind", *table.get("required", [])} - {"source_id"}
        table["required"] = sorted(required)
        kinds.append({"$ref": f"#/definitions/{place[kind]}"})
    shipped = [kind.model_fields["kind"].default for kind in KINDS]
    own = {
        "title": "Own source",
        "description": "A source of a class of one's own; the other keys are its fields.",
        "type": "object",
        "properties": {**common, "kind": {**common["kind"], "not": {"enum": shipped}}},
        "required": ["kind"],
    }
    written: dict[str, Any] = _as_toml(
        {
            "$schema": "http://json-schema.org/draft-07/schema#",
            "title": "ladon.toml",
            "description": "Storage, sinks and sources of ladon-storage.",
            "type": "object",
            "additionalProperties": False,
            "properties": {
                "storage": {"$ref": f"#/definitions/{place[StorageTable]}"},
                "sinks": {
                    "type": "object",
                    "additionalProperties": {"$ref": f"#/definitions/{place[SinkTable]}"},
                },
                "defaults": {"$ref": f"#/definitions/{place[Defaults]}"},
                "collect_many": {"$ref": f"#/definitions/{place[CollectManyTable]}"},
                "sources": {"type": "object", "additionalProperties": {"anyOf": [*kinds, own]}},
            },
            "definitions": definitions,
        }
    )
    return written


def _as_toml(value: Any) -> Any:
    """Return a schema in TOML's terms: without null, and with durations as ISO 8601 texts."""
    if isinstance(value, list):
        return [_as_toml(each) for each in value]
    if not isinstance(value, dict):
        return value
    found = {name: _as_toml(each) for name, each in value.items() if (name, each) != _NO_DEFAULT}
    if isinstance(description := found.get("description"), str):
        found["description"] = description.partition(">>>")[0].strip()
    if isinstance(choices := found.get("anyOf"), list):
        choices = [
            each
            for each in choices
            if each != {"type": "null"} and each.get("const", 0) is not None
        ]
        found["anyOf"] = choices
        if len(choices) == 1:
            del found["anyOf"]
            found = {**choices[0], **found}
    if found.get("type") == "number" and _DURATION.search(str(found.get("title", ""))):
        described = {
            name: found.pop(name) for name in ("title", "description", "default") if name in found
        }
        return {**described, "anyOf": [found, {"type": "string", "pattern": "^P"}]}
    return found


def main() -> None:
    """Write the schema where it is shipped."""
    text = json.dumps(schema(), indent=1, ensure_ascii=False, sort_keys=True)
    SCHEMA_FILE.write_text(f"{text}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
