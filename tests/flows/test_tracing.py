"""Where the user has set OpenTelemetry up, a request's span is under the span of its task."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from asyncio.subprocess import PIPE
from pathlib import Path

import pytest
from prefect.settings import PREFECT_API_URL

from tests.flaky import Flaky

ROOT = Path(__file__).resolve().parent.parent.parent

FLOW = """
import asyncio, json
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

exporter = InMemorySpanExporter()
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
trace.set_tracer_provider(provider)

from prefect import flow
from ladon_storage.tasks import read_watermark

@flow
async def traced():
    await read_watermark("kev")

asyncio.run(traced())
names = {span.context.span_id: span.name for span in exporter.get_finished_spans()}
print(json.dumps({
    span.name: names.get(span.parent.span_id) if span.parent else None
    for span in exporter.get_finished_spans()
}))
"""


async def test_request_is_a_span_under_its_task(service: Flaky, tmp_path: Path) -> None:
    """Flow, task, request: each span is the child of the one before, with nothing to configure."""
    pytest.importorskip("opentelemetry.sdk.trace", reason="OpenTelemetry's SDK is not installed")
    script = tmp_path / "traced.py"
    script.write_text(FLOW)
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(script), stdout=PIPE, stderr=PIPE,
        env=os.environ | {
            "PREFECT_API_URL": str(PREFECT_API_URL.value()),
            "STORAGE_SERVICE_URL": service.url,
        },
    )  # fmt: skip
    output, errors = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0, errors.decode()
    parents = json.loads(output.decode().splitlines()[-1])
    request = parents["GET /api/v1/watermarks/{source_id}"]
    assert request.startswith("Read watermark")
    assert parents[request].startswith("traced") or parents[parents[request]] is None
