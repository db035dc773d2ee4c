"""The description at ``/openapi.json`` is what the service does."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import AsyncIterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from fastapi.openapi.models import OpenAPI

# Its types are a package of their own, for this one test.
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]

from ladon_storage.server.access import add_token
from ladon_storage.server.app import OPEN_ROUTES, create_service
from ladon_storage.server.database import open_database
from ladon_storage.server.openapi import document
from ladon_storage.server.pages import PAGES, SIGN_IN, SIGN_OUT, STYLE
from ladon_storage.server.store import WatermarkDatabase
from ladon_storage.values import check_source_id
from tests.service import Caller, calling, embedded_service, path, success

DOCUMENT: dict[str, Any] = json.loads(document(asks_token=True))
OPEN: dict[str, Any] = json.loads(document(asks_token=False))
JANUARY = "2024-01-01T12:00:00+00:00"
KEV = "/api/v1/watermarks/{source_id}"


@pytest.fixture
async def call(tmp_path: Path) -> AsyncIterator[Caller]:
    async with embedded_service(tmp_path / "w.db") as address, calling(address) as caller:
        yield caller


def operations(of: dict[str, Any] = DOCUMENT) -> dict[tuple[str, str], dict[str, Any]]:
    return {
        (method.upper(), route): operation
        for route, item in of["paths"].items()
        for method, operation in item.items()
        if method != "parameters"
    }


async def test_every_route_is_described_and_nothing_else(tmp_path: Path) -> None:
    """The routes but those of the status page, and the operations, are the same."""
    store = await WatermarkDatabase.open(tmp_path / "w.db")
    routes = {
        (route.method, route.resource.canonical)
        for route in create_service(store).app.router.routes()
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


async def test_service_without_a_token_describes_none(call: Caller) -> None:
    """Where none is asked for, the description has no security and no answer about a token."""
    assert (await call("GET", "/openapi.json")).json == OPEN
    assert "security" not in OPEN
    assert "securitySchemes" not in OPEN["components"]
    assert all("401" not in operation["responses"] for operation in operations(OPEN).values())


async def test_description_follows_the_tokens_of_the_store(tmp_path: Path) -> None:
    """A token that is added while the service runs is one that it asks for."""
    file = tmp_path / "w.db"
    async with embedded_service(file) as address, calling(address) as call:
        assert (await call("GET", "/openapi.json")).json == OPEN
        with closing(open_database(file)) as connection, connection:
            add_token(connection, "reader", datetime.now(UTC), read_only=True, prefix="")
        assert (await call("GET", "/openapi.json")).json == DOCUMENT


@pytest.mark.slow
def test_described_source_ids_are_those_that_are_accepted() -> None:
    """Of every character, alone, inside and outside of a name, description and check agree."""
    (parameter,) = DOCUMENT["paths"][KEV]["parameters"]
    # ECMA's $, which OpenAPI means, matches before no newline.
    pattern = re.compile(parameter["schema"]["pattern"].removesuffix("$") + r"\Z")
    refused = set(parameter["schema"]["not"]["enum"])
    for code in range(0x110000):
        if 0xD800 <= code < 0xE000:  # half of a pair; no JSON has one
            continue
        for name in (chr(code), f"a{chr(code)}", f"-{chr(code)}-"):
            described = pattern.search(name) is not None and name not in refused
            if len(name) > 1 and unicodedata.normalize("NFC", name) != name:
                continue  # a sequence, which no pattern can describe
            assert described == accepted(name), hex(code)


def accepted(name: str) -> bool:
    try:
        check_source_id(name)
    except ValueError:
        return False
    return True


@pytest.mark.parametrize(
    "header", ["*", '"7"', 'W/"7"', '"7", "8"', '""', "", "7", '"7', "**", '"7" "8"', '"ü"']
)
async def test_described_version_tags_are_those_that_are_accepted(
    call: Caller, header: str
) -> None:
    """A header that the pattern admits is evaluated, and another one is refused."""
    (parameter,) = operations()["DELETE", KEV]["parameters"]
    answer = await call("DELETE", path("kev"), headers={"If-Match": header})
    described = Draft202012Validator(parameter["schema"]).is_valid(header)
    assert answer.status == (412 if described else 400)


@pytest.mark.slow
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
