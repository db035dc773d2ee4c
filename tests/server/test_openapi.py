"""The description at ``/openapi.json`` is what the service does."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.openapi.models import OpenAPI

# Its types are a package of their own, for this one test.
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]

from ladon_storage.server.app import OPEN_ROUTES, create_app
from ladon_storage.server.openapi import document
from ladon_storage.server.pages import PAGES, SIGN_IN, SIGN_OUT, STYLE
from ladon_storage.server.store import WatermarkDatabase
from tests.service import Caller, calling, embedded_service, path, success

DOCUMENT: dict[str, Any] = json.loads(document())
JANUARY = "2024-01-01T12:00:00+00:00"
KEV = "/api/v1/watermarks/{source_id}"


@pytest.fixture
async def call(tmp_path: Path) -> AsyncIterator[Caller]:
    async with embedded_service(tmp_path / "w.db") as address, calling(address) as caller:
        yield caller


def operations() -> dict[tuple[str, str], dict[str, Any]]:
    return {
        (method.upper(), route): operation
        for route, item in DOCUMENT["paths"].items()
        for method, operation in item.items()
        if method != "parameters"
    }


async def test_every_route_is_described_and_nothing_else(tmp_path: Path) -> None:
    """The routes but those of the status page, and the operations, are the same."""
    store = await WatermarkDatabase.open(tmp_path / "w.db")
    routes = {
        (route.method, route.resource.canonical)
        for route in create_app(store).router.routes()
        if route.resource is not None and route.method != "HEAD"
    }
    pages = {
        (method, path) for method, path in routes if path in {*PAGES, SIGN_IN, SIGN_OUT, STYLE}
    }
    assert len(pages) == 6
    await store.close()
    assert routes - pages == set(operations())


def test_document_is_openapi() -> None:
    """Tools that read OpenAPI can read it."""
    OpenAPI.model_validate(DOCUMENT)
    for schema in DOCUMENT["components"]["schemas"].values():
        Draft202012Validator.check_schema(schema)
    references = json.dumps(DOCUMENT).split('"#/components/schemas/')[1:]
    assert {text.partition('"')[0] for text in references} <= set(DOCUMENT["components"]["schemas"])


def test_every_operation_says_what_it_does_and_what_it_may_answer() -> None:
    """Each has a summary; those behind the token describe 401, and the open ones ask for none."""
    for (_, route), operation in operations().items():
        assert operation["summary"].endswith(".")
        assert ("401" in operation["responses"]) == (route not in OPEN_ROUTES)
        assert (operation.get("security") == []) == (route in OPEN_ROUTES)


def test_parameters_are_those_that_the_models_check() -> None:
    """A query's limits and values are described as they are checked."""
    listed = {
        p["name"]: p["schema"] for p in operations()["GET", "/api/v1/watermarks"]["parameters"]
    }
    assert set(listed) == {"status", "stale", "older_than_seconds", "prefix", "limit", "after"}
    assert listed["status"]["enum"] == ["success", "failed", "running"]
    assert (listed["limit"]["minimum"], listed["limit"]["maximum"]) == (1, 1000)
    history = operations()["GET", KEV + "/history"]["parameters"]
    assert {p["name"] for p in history} == {"moved", "limit", "before"}


REQUESTS: list[tuple[str, str, str, object, int]] = [
    ("GET", KEV, path("kev"), None, 404),
    ("PUT", KEV, path("kev"), success(JANUARY, run_id="r"), 201),
    ("PUT", KEV, path("kev"), success(JANUARY), 200),
    ("PUT", KEV, path("kev"), success("2023-01-01"), 409),
    ("PUT", KEV, path("kev"), {}, 422),
    ("PUT", KEV, path("kev"), success("2999-01-01"), 422),
    ("PUT", KEV, path("kev"), success(JANUARY, ledger={"pages": 1}), 200),
    ("PUT", KEV, path("\0"), success(JANUARY), 400),
    ("GET", KEV, path("kev"), None, 200),
    ("GET", "/api/v1/watermarks", "/api/v1/watermarks", None, 200),
    ("GET", "/api/v1/watermarks", "/api/v1/watermarks?limit=x", None, 400),
    ("POST", KEV + "/reset", path("kev", "/reset"), {"timestamp": JANUARY, "reason": "x"}, 200),
    ("POST", KEV + "/reset", path("kve", "/reset"), {"timestamp": JANUARY, "reason": "x"}, 404),
    ("GET", KEV + "/history", path("kev", "/history"), None, 200),
    ("GET", KEV + "/history", path("kev", "/history?before=0"), None, 400),
    ("DELETE", KEV, path("kev"), None, 204),
    ("DELETE", KEV, path("kev"), None, 404),
    ("GET", "/health", "/health", None, 200),
    ("GET", "/metrics", "/metrics", None, 200),
    ("GET", "/openapi.json", "/openapi.json", None, 200),
    ("GET", "/logo.svg", "/logo.svg", None, 200),
]


async def test_answers_are_as_described(call: Caller) -> None:
    """Real answers have a described status, a body of the described shape, and its headers."""
    for method, route, target, body, status in REQUESTS:
        answer = await call(method, target, body)
        assert answer.status == status, (method, target)
        described = operations()[method, route]["responses"][str(status)]
        assert all(header in answer.headers for header in described.get("headers", {}))
        if answer.json is None:
            assert set(described.get("content", {})) <= {"text/plain", "image/svg+xml"}
            continue
        schema = described["content"]["application/json"].get("schema", {})
        Draft202012Validator({**schema, "components": DOCUMENT["components"]}).validate(answer.json)


async def test_served_document_is_the_described_one(call: Caller) -> None:
    """What is served is what these tests check."""
    assert (await call("GET", "/openapi.json")).json == DOCUMENT


def test_described_bodies_are_those_that_are_accepted() -> None:
    """A body that the service takes fits its schema, and one that it refuses does not."""
    body = operations()["PUT", KEV]["requestBody"]["content"]["application/json"]["schema"]
    check = Draft202012Validator({**body, "components": DOCUMENT["components"]})
    assert check.is_valid(success(JANUARY, error_message=None, records_collected=5, run_id="r"))
    more = {"lease_seconds": 60, "ledger": {"pages": 1, "reasons": {"no id": 2}}}
    assert check.is_valid(success(JANUARY, **more))
    for wrong in (
        {},
        success(JANUARY, status="done"),
        success(JANUARY, records_collected=-1),
        success(JANUARY, lease_seconds=0),
        success(JANUARY, ledger=[1]),
    ):
        assert not check.is_valid(wrong)
