"""The forms in which Prefect's two UIs show the parameters of a flow.

- A form is made of the flow's signature alone: titles, the order of fields and the tabs of
  alternatives are added here, and the values stay what Python and a deployment's file have.
- Required fields come first, then those that people change, then the rest. Neither UI can fold
  fields, but alternatives are tabs: what few people set is behind one.
- The first UI knows no ``oneOf`` and would show JSON. It has the title of a tab from a definition,
  and the second one from the reference, so both have it.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated, Any

from prefect.utilities.callables import parameter_docstrings
from pydantic import Field, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from ladon_storage.flows.choices import sink_choice, source_choice, storage_choice

TITLES = {
    "source": "Source",
    "sources": "Sources",
    "file": "File of sources",
    "sink": "Sink",
    "storage": "Storage Service",
    "since": "Start of the range",
    "until": "End of the range",
    "last_days": "Last days",
    "window_hours": "Window (hours)",
    "concurrency": "Sources at once",
    "spread": "Workers",
    "part": "Part",
    "workers": "Windows at once",
    "first_collection": "First collection",
    "limits": "Limits",
    "when_busy": "While another run collects it",
}
"""The titles of parameters; Prefect's own are the names."""

BLOCKS = {"sink": "Sink", "storage": "Storage Service"}
"""The parameters for which a form offers blocks."""

_TABS = {
    "null": "None", "object": "JSON", "array": "List", "string": "Text", "number": "Number",
    "integer": "Number", "boolean": "Switch",
}  # fmt: skip
_OF_PARAMETERS = {
    "sink": {"null": "Default", "string": "Name of a block"},
    "storage": {"null": "Default", "string": "Name of a block"},
    "limits": {"null": "As usual"},
}
_DEFINITIONS = {"Limits": "Advanced", "StorageSettings": "Settings", "Bound": "Parameter"}
"""The titles of tabs for what is defined elsewhere."""

_FIELDS = {
    "since": "Request parameter for the start",
    "until": "Request parameter for the end",
}
"""The titles of fields of a source that have the name of a parameter of the flow."""

_FIRST = (
    "source_id", "url", "url_secret", "table", "timestamp_column", "timestamps",
    "id", "id_column", "records", "paging", "key", "via", "since", "until", "timestamp_format",
    "overlap",
)  # fmt: skip
_LAST = ("connection", "kind")
_DURATION = re.compile(r"(.+) \((hours|days)\)")
_OF_NUMBERS = ("type", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")


def form_signature(function: Callable[..., Any]) -> inspect.Signature:
    """Return the signature from which Prefect makes the form of a flow."""
    signature = inspect.signature(function, eval_str=True)
    descriptions = parameter_docstrings(inspect.getdoc(function))
    parameters = []
    for name, parameter in signature.parameters.items():
        default = parameter.default
        if name == "limits":
            default = None  # as usual
        field = Field(
            ... if default is parameter.empty else default,
            description=" ".join(descriptions.get(name, "").replace("``", "").split()) or None,
            json_schema_extra={"title": TITLES.get(name, name.replace("_", " ").capitalize())},
        )
        annotation = Annotated[parameter.annotation, _Form(name)]  # type: ignore[name-defined]
        parameters.append(parameter.replace(annotation=annotation, default=field))
    return signature.replace(parameters=parameters)


def titles_of(schema: Mapping[str, Any], location: str) -> str:
    """Return the titles of a dotted location in a form, such as *Source, Address*.

    Args:
        schema: The form's schema.
        location: The location as Prefect writes it; its parts that are no fields are left out.
    """
    definitions = schema.get("definitions", {})
    titles: list[str] = []
    nodes: list[Mapping[str, Any]] = [schema]
    for part in location.split("."):
        found = next((each for node in nodes for each in _fields(node, definitions, part)), None)
        if found is not None:
            titles.append(str(found.get("title", part)))
            nodes = [found]
    return ", ".join(titles)


def _fields(
    node: Mapping[str, Any], definitions: Mapping[str, Any], name: str
) -> Iterator[Mapping[str, Any]]:
    """Yield the fields of this name in a node, and in its alternatives."""
    if name in node.get("properties", {}):
        yield node["properties"][name]
    for each in (*node.get("anyOf", ()), *node.get("allOf", ())):
        yield from _fields(each, definitions, name)
    if "$ref" in node:
        target = definitions.get(node["$ref"].rpartition("/")[2], {})
        yield from _fields(target, definitions, name)


_CHOICES = {"sink": sink_choice, "storage": storage_choice}


def _offer_kinds(schema: JsonSchemaValue, handler: GetJsonSchemaHandler) -> None:
    """Make each of many sources a choice of their kinds."""
    for each in (schema, *schema.get("anyOf", ())):
        items = each.get("items")
        if isinstance(items, dict) and items.get("additionalProperties") is True:
            each["items"] = source_choice(handler)


@dataclass(frozen=True)
class _Form:
    """The change of one parameter's schema into its part of the form."""

    name: str

    def __get_pydantic_json_schema__(
        self, core: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        schema = handler(core)
        if self.name == "limits":
            schema = {"anyOf": [{"type": "null"}, schema]}
        if self.name == "source" and "$ref" not in schema:
            schema = source_choice(handler)
        if self.name == "sources":
            _offer_kinds(schema, handler)
        if self.name in _CHOICES:
            _CHOICES[self.name](schema, handler)
        _change(schema, handler, _OF_PARAMETERS.get(self.name, {}), set())
        return schema


def _change(
    schema: JsonSchemaValue,
    handler: GetJsonSchemaHandler,
    tabs: Mapping[str, str],
    done: set[int],
) -> None:
    """Change a schema and all that it refers to, in place."""
    if "$ref" in schema:
        target = handler.resolve_ref_schema(schema)
        if id(target) not in done:
            done.add(id(target))
            _change(target, handler, {}, done)
        return
    if "description" in schema:
        schema["description"] = schema["description"].replace("``", "")
    if "oneOf" in schema:
        schema["anyOf"] = schema.pop("oneOf")
        schema.pop("discriminator", None)
    if "anyOf" in schema:
        # What has no type stands for an object of Python, which no form can give.
        left = [each for each in schema.pop("anyOf") if each.keys() - {"title"}]
        if all(_is_kind(each, handler) for each in left):
            left.sort(key=lambda each: len(handler.resolve_ref_schema(each)["properties"]))
        schema |= {"anyOf": left} if len(left) > 1 else left[0]
    for each in schema.get("anyOf", ()):
        _change(each, handler, {}, done)
        _title(each, handler, tabs)
    for name in ("items", "additionalProperties"):
        if isinstance(schema.get(name), dict):
            _change(schema[name], handler, {}, done)
    if "properties" in schema:
        title = schema.get("title", "")
        schema["title"] = _DEFINITIONS.get(title, title)
        _arrange(schema, handler, done)


def _is_kind(each: JsonSchemaValue, handler: GetJsonSchemaHandler) -> bool:
    """Return whether an alternative is one of several kinds."""
    if "$ref" not in each:
        return False
    return "const" in handler.resolve_ref_schema(each).get("properties", {}).get("kind", {})


def _title(each: JsonSchemaValue, handler: GetJsonSchemaHandler, tabs: Mapping[str, str]) -> None:
    """Give an alternative the title of its tab."""
    if "$ref" in each:
        target = handler.resolve_ref_schema(each)
        # Prefect finds the definition of a block by its title, which so must stay.
        title = "Block" if "block_type_slug" in target else target.get("title", "")
        each.setdefault("title", title)
        return
    kind = str(each.get("type"))
    if kind in tabs:
        each["title"] = tabs[kind]
    elif each.get("format") == "date-time":
        each.setdefault("title", "Time")
    else:
        each.setdefault("title", _TABS.get(kind, kind))


def _arrange(schema: JsonSchemaValue, handler: GetJsonSchemaHandler, done: set[int]) -> None:
    """Order the fields of an object, and give them titles that are theirs alone."""
    fields, required = schema["properties"], schema.get("required", ())
    is_source = "source_id" in fields

    def order(name: str) -> tuple[bool, int]:
        if name == "kind" and "enum" in fields[name]:  # a choice, on which other fields depend
            return (False, -1)
        if name in _LAST:
            return (True, len(_FIRST) + 1 + _LAST.index(name))
        return (name not in required, _FIRST.index(name) if name in _FIRST else len(_FIRST))

    if is_source or "kind" in fields:
        schema["properties"] = fields = {name: fields[name] for name in sorted(fields, key=order)}
    for position, (name, field) in enumerate(fields.items()):
        field["position"] = position
        if field.get("title") == name.replace("_", " ").title():  # pydantic's, of the name
            field["title"] = name.replace("_", " ").capitalize()
        if is_source and name in _FIELDS:
            field["title"] = _FIELDS[name]
        _change(field, handler, {}, done)
        _show_duration(field)


def _show_duration(field: JsonSchemaValue) -> None:
    """Show a default that is no short number of its unit as hours, minutes and seconds."""
    titled, default = _DURATION.fullmatch(field.get("title", "")), field.get("default")
    if titled is None or not isinstance(default, float) or round(default, 2) == default:
        return
    number = {name: field.pop(name) for name in _OF_NUMBERS if name in field}
    text = {"type": "string", "title": "hh:mm:ss"}
    field["anyOf"] = [text, {**number, "title": titled[2].capitalize()}]
    seconds = round(timedelta(**{titled[2]: default}).total_seconds())
    field["title"] = titled[1]
    field["default"] = f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}"
