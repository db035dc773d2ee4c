"""The form of one deployment, which knows its parameters, as the form of a flow cannot.

- A form leaves a parameter out whose tab of a block has no block, and Prefect then takes the
  deployment's own. So what a deployment has of its own is required in its form.
- Its form has the fields of its kind of source alone, those of a class of one's own included.
- Both UIs find the tab of a choice by the keys of its value, so a choice has all of its keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prefect.deployments.runner import RunnerDeployment
from prefect.flows import Flow
from prefect.utilities.callables import ParameterSchema
from pydantic.errors import PydanticUserError
from pydantic.json_schema import JsonSchemaValue

from ladon_storage import flows
from ladon_storage.errors import ConfigurationError
from ladon_storage.flows.forms import BLOCKS
from ladon_storage.sources import SOURCES


def fit_form(deployment: RunnerDeployment, flow: Flow[..., Any]) -> None:
    """Give a deployment a form that fits its parameters."""
    parameters = deployment.parameters or {}
    form = flow.parameters.model_copy(deep=True)
    source = parameters.get("source")
    if isinstance(source, Mapping) and "anyOf" in form.properties.get("source", {}):
        _show_kind(form, str(source.get("kind")))
    deployment._parameter_openapi_schema = form  # noqa: SLF001 - Prefect offers no other way
    require_own_places(deployment)
    if isinstance(source, Mapping):
        deployment.parameters = {**parameters, "source": _filled(form, source)}


def require_own_places(deployment: RunnerDeployment) -> None:
    """Require in a form what its deployment has in place of a block, be it the default."""
    parameters, form = deployment.parameters or {}, _form(deployment)
    own = [name for name in BLOCKS if name in parameters]
    if missing := [name for name in own if name not in form.required]:
        form.required = [*form.required, *missing]


def form_of(deployment: RunnerDeployment) -> dict[str, Any]:
    """Return the form of a deployment as Prefect stores it."""
    return _form(deployment).model_dump(exclude_unset=True)


def _form(deployment: RunnerDeployment) -> ParameterSchema:
    return deployment._parameter_openapi_schema  # noqa: SLF001


def _show_kind(form: ParameterSchema, kind: str) -> None:
    """Replace the choice of kinds by the fields of one kind, where its class has any."""
    try:
        of_kind = _flow_of(kind).parameters.model_copy(deep=True)
    except (ConfigurationError, PydanticUserError):
        return
    shown = {**of_kind.properties["source"], "position": form.properties["source"]["position"]}
    form.definitions = {**of_kind.definitions, **form.definitions}
    target = _target(form, shown)
    fields = target["properties"]
    if fields.get("kind", {}).get("const") != kind:
        fields["kind"] = {
            "title": "Kind", "type": "string", "const": kind, "default": kind,
            "position": len(fields),
        }  # fmt: skip
        target["required"] = sorted({*target.get("required", ()), "kind"})
    form.properties["source"] = shown


def _flow_of(kind: str) -> Flow[..., Any]:
    if kind in SOURCES.shipped:
        found: Flow[..., Any] = getattr(flows, f"collect_{kind}")
        return found
    return flows.flow_of(SOURCES.find(kind))


def _target(form: ParameterSchema, node: JsonSchemaValue) -> JsonSchemaValue:
    """Return what a node refers to, or the node itself."""
    found: JsonSchemaValue = form.definitions.get(node.get("$ref", "").rpartition("/")[2], node)
    return found


def _filled(form: ParameterSchema, source: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a source, with all fields of each kind that was chosen in them."""
    fields = dict(source)
    shown = _target(form, form.properties.get("source", {})).get("properties", {})
    for name, value in source.items():
        if not isinstance(value, Mapping):
            continue
        for each in shown.get(name, {}).get("anyOf", ()):
            of = _target(form, each).get("properties", {})
            if "kind" in value and of.get("kind", {}).get("const") == value["kind"]:
                defaults = {key: one["default"] for key, one in of.items() if "default" in one}
                fields[name] = {**defaults, **value}
    return fields
