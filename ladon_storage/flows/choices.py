"""The alternatives of a form that the signature of a flow does not list.

- Both UIs choose the tab of a value by its keys: the first of the alternatives that have most of
  them. So a block has no keys in a form, and alternatives with fewer keys come first.
- The kinds that differ in a few fields share one tab with a list of kinds. It has no defaults: a
  field that is left empty has the default of the chosen kind.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

from pydantic import BaseModel, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue

from ladon_storage.settings import StorageSettings
from ladon_storage.sources import SOURCES

_OF_THEIR_OWN = ("sql", "rest")
"""The kinds with fields of their own; the others share a tab."""

_NEUTRAL = {
    "url": "Address of the feed. If empty, the provider's own.",
    "via": "Which of the provider's interfaces is read.",
    "page_size": "Records requested per page.",
}
"""The descriptions of fields that each kind describes for itself."""

SINK_ADDRESS: JsonSchemaValue = {
    "title": "Address",
    "type": "object",
    "properties": {
        "url": {
            "title": "Address",
            "description": "Address without a password, such as sqlite:////data/records.db.",
            "type": "string",
            "position": 0,
        },
        "table": {
            "title": "Table",
            "description": "Table that holds the records; records if empty.",
            "type": "string",
            "position": 1,
        },
        "keep": {
            "title": "Keep",
            "description": "The latest version of each record (latest), or every version (all).",
            "enum": ["latest", "all"],
            "type": "string",
            "position": 2,
        },
    },
    "required": ["url"],
}
"""The tab of a sink that needs no block."""

_URL_SECRET: JsonSchemaValue = {
    "title": "Secret address name",
    "description": "Name of the secret that holds the whole address, instead of the address.",
    "type": "string",
    "position": 3,
}


def source_choice(handler: GetJsonSchemaHandler) -> JsonSchemaValue:
    """Return a choice of the kinds of sources, and of a class of one's own."""
    shared: dict[str, JsonSchemaValue] = {}
    alone: list[JsonSchemaValue] = []
    for kind, found in ((each, SOURCES.find(each)) for each in SOURCES.shipped):
        reference = _schema_of(found, handler)
        if kind in _OF_THEIR_OWN:
            alone.append(reference)
        else:
            shared[kind] = _resolved(reference, handler)
    own = {"title": "Own class", "type": "object", "additionalProperties": True}
    return {"anyOf": [_feed(shared), *alone, own], "title": "Source"}


def _feed(kinds: Mapping[str, JsonSchemaValue]) -> JsonSchemaValue:
    """Return one form of the kinds that differ in a few fields."""
    fields: dict[str, JsonSchemaValue] = {
        "kind": {"title": "Kind", "description": "Kind of the source.", "enum": [*kinds]}
    }
    for schema in kinds.values():
        for name, field in schema["properties"].items():
            if name not in fields:
                is_in_all = all(name in each["properties"] for each in kinds.values())
                is_null = field.get("default", "") is None
                fields[name] = (
                    copy.deepcopy(field) if is_in_all and is_null else _without_default(field)
                )
            elif "enum" in field:
                fields[name]["enum"] += [
                    each for each in field["enum"] if each not in fields[name]["enum"]
                ]
    fields["kind"]["type"] = "string"
    for name, field in fields.items():
        if name != "kind":
            field["description"] = _described(name, field["description"], kinds)
    return {"title": "Feed", "type": "object", "properties": fields, "required": ["kind"]}


def _without_default(field: JsonSchemaValue) -> JsonSchemaValue:
    """Return a field that a form sends only when it is filled: not each kind has it."""
    found = copy.deepcopy(field)
    found.pop("default", None)
    alternatives = [each for each in found.pop("anyOf", ()) if each.get("type") != "null"]
    found.pop("maximum", None)
    return {**(alternatives[0] if len(alternatives) == 1 else {}), **found}


def _described(name: str, description: str, kinds: Mapping[str, JsonSchemaValue]) -> str:
    """Return the description of a field with the kinds that have it and that require it."""
    having = {kind: each for kind, each in kinds.items() if name in each["properties"]}
    listed = [
        f"{kind} ({', '.join(each['properties'][name]['enum'])})"
        if "enum" in each["properties"][name]
        else kind
        for kind, each in having.items()
    ]
    said = [_NEUTRAL.get(name, description)]
    if len(having) < len(kinds) or any("(" in each for each in listed):
        said.append(f"Only for {', '.join(listed)}.")
    if required := [kind for kind, each in having.items() if name in each.get("required", ())]:
        said.append(f"Required for {', '.join(required)}.")
    return " ".join(filter(None, said))


def sink_choice(schema: JsonSchemaValue, handler: GetJsonSchemaHandler) -> None:
    """Offer an address next to a block, with a list of what to keep."""
    address = copy.deepcopy(SINK_ADDRESS)
    plain = [
        each for each in schema["anyOf"] if each.get("type") == "object" and "$ref" not in each
    ]
    if plain:  # also a secret's name, and a class of one's own
        address["properties"]["url_secret"] = copy.deepcopy(_URL_SECRET)
        address["additionalProperties"] = True
        del address["required"]
    _after_block(schema, address, plain, handler)


def storage_choice(schema: JsonSchemaValue, handler: GetJsonSchemaHandler) -> None:
    """Offer settings next to a block; secrets are for blocks and the environment alone."""
    settings = copy.deepcopy(_resolved(_schema_of(StorageSettings, handler), handler))
    settings["title"] = "Settings"
    settings["properties"] = {
        name: field
        for name, field in settings["properties"].items()
        if all(each.get("format") != "password" for each in (field, *field.get("anyOf", ())))
    }
    settings["properties"]["url"] |= {"type": "string"}
    for name in ("anyOf", "default"):
        settings["properties"]["url"].pop(name, None)
    settings["required"] = ["url"]
    titles = {StorageSettings.__name__, settings["title"]}
    replaced = [each for each in schema["anyOf"] if _resolved(each, handler).get("title") in titles]
    _after_block(schema, settings, replaced, handler)


def _after_block(
    schema: JsonSchemaValue,
    added: JsonSchemaValue,
    replaced: list[JsonSchemaValue],
    handler: GetJsonSchemaHandler,
) -> None:
    """Put an alternative after the block, whose own fields no form shows."""
    others = [each for each in schema["anyOf"] if each not in replaced]
    block = next(each for each in others if "block_type_slug" in _resolved(each, handler))
    _resolved(block, handler)["properties"] = {}
    others.remove(block)
    schema["anyOf"] = [block, added, *others]


def _resolved(each: JsonSchemaValue, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
    return handler.resolve_ref_schema(each) if "$ref" in each else each


def _schema_of(model: type[BaseModel], handler: GetJsonSchemaHandler) -> JsonSchemaValue:
    return handler(model.__pydantic_core_schema__)
