"""Spans of the client's requests: there where a provider is set, and free where none is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import trace

from ladon_storage import StorageServiceClient
from ladon_storage.client import tracing
from ladon_storage.errors import StorageResponseError
from ladon_storage.testing.doubles import at
from tests.service import embedded_service

sdk = pytest.importorskip("opentelemetry.sdk.trace", reason="OpenTelemetry's SDK is not installed")


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Set a provider for one test, and return what keeps its spans."""
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter = InMemorySpanExporter()
    provider = sdk.TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    # Set for a whole process it could not be taken back.
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: provider)
    return exporter


async def test_each_request_is_a_span_under_the_current_one(spans: Any, tmp_path: Path) -> None:
    """Its name is the route, its attributes say method, address, status and source."""
    async with (
        embedded_service(tmp_path / "storage.db") as address,
        StorageServiceClient(address.replace("http://", "http://me:s3cret@")) as client,
    ):
        with trace.get_tracer_provider().get_tracer("ours").start_as_current_span("parent"):
            await client.health_check()
            await client.update_watermark("a/b", at(1))
            assert await client.get_watermark("never") is None
    health, write, read, parent = spans.get_finished_spans()
    assert [each.name for each in (health, write, read)] == [
        "GET /health",
        "PUT /api/v1/watermarks/{source_id}",
        "GET /api/v1/watermarks/{source_id}",
    ]
    assert all(each.parent.span_id == parent.context.span_id for each in (health, write, read))
    assert write.kind is trace.SpanKind.CLIENT
    assert write.attributes["http.request.method"] == "PUT"
    assert write.attributes["http.response.status_code"] in (200, 201)
    assert write.attributes["ladon.source_id"] == "a/b"
    assert read.attributes["http.response.status_code"] == 404
    assert read.status.is_ok
    assert not any("s3cret" in each.to_json() for each in (health, write, read))


async def test_failed_request_is_a_span_that_says_why(spans: Any, tmp_path: Path) -> None:
    """The span of a refused request has the status, the kind of error and its sentence."""
    async with (
        embedded_service(tmp_path / "storage.db") as address,
        StorageServiceClient(address) as client,
    ):
        await client.update_watermark("kev", at(10))
        with pytest.raises(StorageResponseError):
            await client.update_watermark("kev", at(1))
    *_, refused = spans.get_finished_spans()
    assert not refused.status.is_ok
    assert refused.attributes["error.type"] == "WatermarkConflictError"
    assert refused.attributes["http.response.status_code"] == 409


def test_without_a_provider_nothing_is_made_or_imported() -> None:
    """The client imports no OpenTelemetry, and makes no span where it is not set up."""
    code = (
        "import sys, ladon_storage\n"
        "from ladon_storage.client import tracing\n"
        "assert 'opentelemetry' not in sys.modules\n"
        "assert tracing.tracer() is None\n"
        "import opentelemetry.trace\n"
        "assert tracing.tracer() is None\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_tracer_is_made_once_for_a_provider(spans: Any) -> None:
    """Asking for it again costs a look, not a new tracer."""
    assert tracing.tracer() is tracing.tracer()
