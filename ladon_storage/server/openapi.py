"""The description of every route, made from the models that check requests and make answers."""

from __future__ import annotations

import json
from functools import lru_cache
from importlib.metadata import version
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from ladon_storage.models import (
    BATCH,
    REQUEST_ID,
    SERVICE_TIME,
    HistoryPage,
    Watermark,
    WatermarkDelete,
    WatermarkPage,
    WatermarkReset,
    WatermarkUpdate,
)
from ladon_storage.server.batches import Batch, BatchAnswers
from ladon_storage.server.requests import TAGS, HistoryQuery, ListQuery, MetricsQuery
from ladon_storage.server.responses import Health, Problem
from ladon_storage.values import MAX_SOURCE_ID_LENGTH

Schema = dict[str, Any]

_REFERENCE = "#/components/schemas/{model}"
_REASONS = {
    400: "A part of the request cannot be read.",
    401: "The token is missing or wrong.",
    403: "The token may not do this, or a page of another site asks.",
    404: "The source was never collected.",
    408: "The body did not arrive in time.",
    409: "A success older than the stored one.",
    412: "Another version is stored than the writer read.",
    413: "The body is too large.",
    415: "The body is not declared as JSON, or in an encoding that is not known.",
    421: "Without a token, the service is asked by a name that is not its own.",
    422: "A field of the body is wrong, or its timestamp more than a day in the future.",
    503: "The database does not answer.",
}
_OF_BODIES = (408, 413, 415, 422)
_NEVER = (
    "0-1F 7F-9F AD 340-341 343-344 34F 374 37E 387 600-605 61C 6DD 70F 890-891 8E2 958-95F "
    "9DC-9DD 9DF A33 A36 A59-A5B A5E B5C-B5D F43 F4D F52 F57 F5C F69 F73 F75-F76 F78 F81 F93 F9D "
    "FA2 FA7 FAC FB9 115F-1160 17B4-17B5 180B-180F 1F71 1F73 1F75 1F77 1F79 1F7B 1F7D 1FBB 1FBE "
    "1FC9 1FCB 1FD3 1FDB 1FE3 1FEB 1FEE-1FEF 1FF9 1FFB 1FFD 2000-2001 200B-200F 2028-202E "
    "2060-206F 2126 212A-212B 2329-232A 2ADC 3164 F900-FA0D FA10 FA12 FA15-FA1E FA20 FA22 "
    "FA25-FA26 FA2A-FA6D FA70-FAD9 FB1D FB1F FB2A-FB36 FB38-FB3C FB3E FB40-FB41 FB43-FB44 "
    "FB46-FB4E FE00-FE0F FEFF FFA0 FFF0-FFFB 110BD 110CD 13430-13438 1BCA0-1BCA3 1D15E-1D164 "
    "1D173-1D17A 1D1BB-1D1C0 2F800-2FA1D E0000-E0FFF"
)
"""The characters that no name of a source has, by their code points."""
_NEVER_OUTSIDE = "20 A0 1680 2002-200A 202F 205F 3000"
"""The characters that a name neither begins nor ends with."""
_IF_MATCH: Schema = {
    "name": "If-Match",
    "in": "header",
    "description": "The version that the writer read, or * for any; refused with 412 at another.",
    "schema": {"anyOf": [{"const": "*"}, {"type": "string", "pattern": f"^{TAGS}$"}]},
}
_IF_NONE_MATCH: Schema = {
    "name": "If-None-Match",
    "in": "header",
    "description": "Refused with 412 if anything is stored.",
    "schema": {"const": "*"},
}


@lru_cache
def document(*, asks_token: bool = True) -> bytes:
    """Return the service's OpenAPI document as JSON.

    Args:
        asks_token: Whether the service asks for a token.
    """
    described: Schema = {
        "openapi": "3.1.0",
        "info": {"title": "Storage Service", "version": version("ladon-storage")},
        "paths": _paths(),
        "components": {"schemas": _schemas()},
    }
    if asks_token:
        described["security"] = [{"token": []}]
        described["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    for operation in (each for item in described["paths"].values() for each in item.values()):
        if isinstance(operation, dict):
            _ask(operation, asks_token=asks_token)
    return json.dumps(described).encode()


def _ask(operation: Schema, *, asks_token: bool) -> None:
    """Describe what an operation refuses before it reads its request."""
    if operation.get("security") == []:
        return
    responses = operation["responses"]
    refused = (401, 403) if asks_token else (403, 421)
    responses.pop("401", None)
    responses |= {
        str(each): {**_answer(Problem), "description": _REASONS[each]} for each in refused
    }
    operation["responses"] = dict(sorted(responses.items()))


def _source_id() -> Schema:
    """Return the schema of a source's name.

    It takes what `check_source_id` takes, and besides the sequences of characters whose normal form
    is another one, which no pattern can describe.
    """
    inside, outside = _class(_NEVER), _class(f"{_NEVER} {_NEVER_OUTSIDE}")
    return {
        "type": "string",
        "minLength": 1,
        "maxLength": MAX_SOURCE_ID_LENGTH,
        "pattern": f"^[^{outside}](?:[^{inside}]*[^{outside}])?$",
        "not": {"enum": [".", ".."]},
    }


def _class(ranges: str) -> str:
    """Return ranges of code points as characters, for a regular expression of any dialect."""
    return "".join(
        "-".join(chr(int(end, 16)) for end in each.split("-")) for each in ranges.split()
    )


def _paths() -> Schema:
    source_id = {
        "name": "source_id",
        "in": "path",
        "required": True,
        "description": "The source, percent-encoded into one segment.",
        "schema": _source_id(),
    }
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
    batch = _operation(
        "Read and write several watermarks, each with an answer of its own.",
        {200: BatchAnswers},
        *(400, 401, 503, *_OF_BODIES),
        body=Batch,
    )
    history = _operation(
        "List the changes of a watermark, the latest first; also of a deleted one.",
        {200: HistoryPage},
        *(400, 401, 503),
        parameters=_query(HistoryQuery),
    )
    health = _operation("Say whether the database reads and writes.", {200: Health, 503: Health})
    for read in (watermark["get"], health):
        read["responses"]["200"]["headers"][BATCH] = {
            "description": "The most requests of a batch.",
            "schema": {"type": "integer"},
        }
    metrics = _operation(
        "Show the metrics, for Prometheus.",
        {200: "text/plain"},
        *(400, 401, 503),
        parameters=_query(MetricsQuery),
    )
    this = _operation("Show this document.", {200: "application/json"})
    logo = _operation("Show the logo of the blocks in Prefect's UI.", {200: "image/svg+xml"})
    return {
        "/api/v1/watermarks": {"get": page, "post": batch},
        "/api/v1/watermarks/{source_id}": {"parameters": [source_id], **watermark},
        "/api/v1/watermarks/{source_id}/reset": {"parameters": [source_id], "post": reset},
        "/api/v1/watermarks/{source_id}/delete": {"parameters": [source_id], "post": deletion},
        "/api/v1/watermarks/{source_id}/history": {"parameters": [source_id], "get": history},
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
    request_id = {"description": "The request's id.", "schema": {"type": "string"}}
    answer: Schema = {"description": "Done.", "headers": {REQUEST_ID: request_id}}
    if content is not None:
        answer["content"] = _content(content)
    if content is Watermark:
        tag = {"description": "The version.", "schema": {"type": "string"}}
        told = {"description": "The time.", "schema": {"type": "string", "format": "date-time"}}
        answer["headers"] |= {"ETag": tag, SERVICE_TIME: told}
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
        if name == "after":
            kind = _source_id()
        described = {"name": name, "in": "query", "schema": kind}
        if "description" in field:
            described["description"] = field["description"]
        parameters.append(described)
    return parameters


def _schemas() -> Schema:
    answers = (Watermark, WatermarkPage, HistoryPage, BatchAnswers, Health, Problem)
    _, schema = models_json_schema(
        [
            *((model, "serialization") for model in answers),
            (WatermarkUpdate, "validation"),
            (WatermarkReset, "validation"),
            (WatermarkDelete, "validation"),
            (Batch, "validation"),
        ],
        ref_template=_REFERENCE,
    )
    definitions: Schema = schema["$defs"]
    return definitions
