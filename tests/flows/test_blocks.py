"""Blocks with values that Prefect's form and API let through, and whoever then loads them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from prefect import get_client
from prefect.blocks.core import Block
from prefect.client.schemas.actions import BlockDocumentCreate

from ladon_storage.blocks import RecordSink, StorageService
from ladon_storage.errors import ConfigurationError
from ladon_storage.flows import collect_kev
from ladon_storage.tasks import resolve_sink, resolve_storage

URL = "https://storage.example:8000"
WRONG: list[Any] = [
    (StorageService, {"url": URL, "timeout": None}, "timeout: Input should be a valid number"),
    (StorageService, {"url": "hunter2:8000"}, "url should look like https://storage.example"),
    (RecordSink, {"url": "sqlite:///r.db", "options": "hunter2"}, "options: Input should be a"),
    (RecordSink, {"url": ["hunter2"], "keep": 1}, "url: Input .*; keep: Input should be 'latest'"),
]


@pytest.fixture
async def saved(request: pytest.FixtureRequest) -> AsyncIterator[str]:
    """Save a block's values unchecked, and return the id of its document; its name is `wrong`."""
    kind, values, _ = request.param
    await kind.register_type_and_schema()
    async with get_client() as client:
        made = await client.create_block_document(
            BlockDocumentCreate(
                name="wrong",
                data=values,
                block_type_id=kind._block_type_id,
                block_schema_id=kind._block_schema_id,
            )
        )
        yield str(made.id)
        await client.delete_block_document(made.id)


@pytest.mark.parametrize(("saved", "wrong"), [(each, each) for each in WRONG], indirect=["saved"])
async def test_wrong_value_of_a_block_is_one_sentence(
    saved: str, wrong: tuple[type[Block], Any, str]
) -> None:
    """Block, field and reason are named, and no value, whether a name or a form chose the block.

    Prefect's own error names no field, and advises to go without validation.
    """
    kind, _, said = wrong
    resolve: Any = resolve_storage if kind is StorageService else resolve_sink
    parameter = "storage" if kind is StorageService else "sink"
    expected = rf"'wrong' \({kind.__name__}\): {said}.*under Blocks"
    with pytest.raises(ConfigurationError, match=expected) as by_name:
        await resolve("wrong")
    reference = {"$ref": {"block_document_id": saved}}
    with pytest.raises(ConfigurationError, match=expected) as by_form:
        collect_kev.validate_parameters({"source": {"kind": "kev"}, parameter: reference})
    assert "hunter2" not in f"{by_name.value} {by_form.value}"


@pytest.mark.parametrize("saved", WRONG[:1], indirect=True)
async def test_wrong_block_called_default_is_not_passed_over(
    saved: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run by hand would keep its watermarks in a file instead, in silence."""
    monkeypatch.delenv("STORAGE_SERVICE_URL", raising=False)
    monkeypatch.delenv("ENVIRONMENT", raising=False)
    monkeypatch.setattr("ladon_storage.tasks.DEFAULT_BLOCK", "wrong")
    with pytest.raises(ConfigurationError, match="timeout"):
        await resolve_storage()
