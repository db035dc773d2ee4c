"""The description of every route, made from the models that check requests and make answers."""

from __future__ import annotations

import json
from importlib.metadata import version
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from ladon_storage.models import (
    SERVICE_TIME,
    HistoryPage,
    Watermark,
    WatermarkDelete,
    WatermarkPage,
    WatermarkReset,
    WatermarkUpdate,
)
from ladon_storage.server.requests import HistoryQuery, ListQuery, MetricsQuery
from ladon_storage.server.responses import Health, Problem

Schema = dict[str, Any]

_REFERENCE = "#/components/schemas/{model}"
_REASONS = {
    400: "A part of the request cannot be read.",
    401: "The token is missing or wrong.",
    404: "The source was never collected.",
    408: "The body did not arrive in time.",
    409: "A success older than the stored one.",
    412: "Another version is stored than the writer read.",
    413: "The body is too large.",
    415: "The body is not declared as JSON.",
    422: "A field of the body is wrong, or its timestamp more than a day in the future.",
    503: "The database does not answer.",
}
_OF_BODIES = (408, 413, 415, 422)
_SOURCE_ID: Schema = {
    "name": "source_id",
    "in": "path",
    "required": True,
    "description": "The source, percent-encoded into one segment.",
    "schema": {"type": "string", "minLength": 1, "maxLength": 255},
}
_IF_MATCH: Schema = {
    "name": "If-Match",
    "in": "header",
    "description": "The version that the writer read, or * for any; refused with 412 at another.",
    "schema": {"type": "string"},
}
_IF_NONE_MATCH: Schema = {
    "name": "If-None-Match",
    "in": "header",
    "description": "Refused with 412 if anything is stored.",
    "schema": {"const": "*"},
}


def document() -> bytes:
    """Return the service's OpenAPI document as JSON."""
    described = {
        "openapi": "3.1.0",
        "info": {"title": "Storage Service", "version": version("ladon-storage")},
        "security": [{"token": []}],
        "paths": _paths(),
        "components": {
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
            "schemas": _schemas(),
        },
    }
    return json.dumps(described).encode()


def _paths() -> Schema:
    watermark = {
        "get": _operation("Read a watermark.", {200: Watermark}, 400, 401, 404, 503),
        "put": _operation(
            "Store the outcome of a run. Only a success moves the watermark, and never back.",
            {200: Watermark, 201: Watermark},
            *(400, 401, 409, 412, 503, *_OF_BODIES),
            parameters=[_IF_MATCH, _IF_NONE_MATCH],
            body=WatermarkUpdate,
        ),
        "delete": _operation(
            "Forget a watermark, and keep its history.",
            {204: None},
            *(400, 401, 404, 412, 503),
            parameters=[_IF_MATCH],
        ),
    }
    reset = _operation(
        "Move a watermark to any instant but one far in the future, and say why.",
        {200: Watermark},
        *(400, 401, 404, 412, 503, *_OF_BODIES),
        parameters=[_IF_MATCH, _IF_NONE_MATCH],
        body=WatermarkReset,
    )
    deletion = _operation(
        "Forget a watermark, keep its history, and say why.",
        {204: None},
        *(400, 401, 404, 412, 503, *_OF_BODIES),
        parameters=[_IF_MATCH],
        body=WatermarkDelete,
    )
    page = _operation(
        "List watermarks by source_id.",
        {200: WatermarkPage},
        *(400, 401, 503),
        parameters=_query(ListQuery),
    )
    history = _operation(
        "List the changes of a watermark, the latest first; also of a deleted one.",
        {200: HistoryPage},
        *(400, 401, 503),
        parameters=_query(HistoryQuery),
    )
    health = _operation("Say whether the database reads and writes.", {200: Health, 503: Health})
    metrics = _operation(
        "Show the metrics, for Prometheus.",
        {200: "text/plain"},
        *(400, 401, 503),
        parameters=_query(MetricsQuery),
    )
    this = _operation("Show this document.", {200: "application/json"})
    logo = _operation("Show the logo of the blocks in Prefect's UI.", {200: "image/svg+xml"})
    return {
        "/api/v1/watermarks": {"get": page},
        "/api/v1/watermarks/{source_id}": {"parameters": [_SOURCE_ID], **watermark},
        "/api/v1/watermarks/{source_id}/reset": {"parameters": [_SOURCE_ID], "post": reset},
        "/api/v1/watermarks/{source_id}/delete": {"parameters": [_SOURCE_ID], "post": deletion},
        "/api/v1/watermarks/{source_id}/history": {"parameters": [_SOURCE_ID], "get": history},
        "/health": {"get": {**health, "security": []}},
        "/metrics": {"get": metrics},
        "/openapi.json": {"get": {**this, "security": []}},
        "/logo.svg": {"get": {**logo, "security": []}},
    }


def _operation(
    summary: str,
    answers: dict[int, type[BaseModel] | str | None],
    *errors: int,
    parameters: list[Schema] | None = None,
    body: type[BaseModel] | None = None,
) -> Schema:
    responses = {str(status): _answer(content) for status, content in answers.items()}
    for status in sorted(errors):
        responses[str(status)] = {**_answer(Problem), "description": _REASONS[status]}
    operation: Schema = {"summary": summary, "responses": responses}
    if parameters:
        operation["parameters"] = parameters
    if body is not None:
        operation["requestBody"] = {"required": True, "content": _content(body)}
    return operation


def _answer(content: type[BaseModel] | str | None) -> Schema:
    answer: Schema = {"description": "Done."}
    if content is not None:
        answer["content"] = _content(content)
    if content is Watermark:
        tag = {"description": "The version.", "schema": {"type": "string"}}
        told = {"description": "The time.", "schema": {"type": "string", "format": "date-time"}}
        answer["headers"] = {"ETag": tag, SERVICE_TIME: told}
    return answer


def _content(content: type[BaseModel] | str) -> Schema:
    if isinstance(content, str):
        return {content: {}}
    return {"application/json": {"schema": {"$ref": _REFERENCE.format(model=content.__name__)}}}


def _query(model: type[BaseModel]) -> list[Schema]:
    schema = model.model_json_schema()
    definitions = schema.get("$defs", {})
    parameters = []
    for name, field in schema["properties"].items():
        # A parameter is left out rather than null, so null is not one of its values.
        kinds = [kind for kind in field.pop("anyOf", [field]) if kind.get("type") != "null"]
        kind = {**kinds[0]}
        if "$ref" in kind:
            kind = definitions[kind["$ref"].rpartition("/")[2]]
        described = {"name": name, "in": "query", "schema": kind}
        if "description" in field:
            described["description"] = field["description"]
        parameters.append(described)
    return parameters


def _schemas() -> Schema:
    answers = (Watermark, WatermarkPage, HistoryPage, Health, Problem)
    _, schema = models_json_schema(
        [
            *((model, "serialization") for model in answers),
            (WatermarkUpdate, "validation"),
            (WatermarkReset, "validation"),
            (WatermarkDelete, "validation"),
        ],
        ref_template=_REFERENCE,
    )
    definitions: Schema = schema["$defs"]
    return definitions
