"""Where the user has set OpenTelemetry up, a request's span is under the span of its task."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from tests.flaky import Flaky
from tests.forks import Forks

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


async def test_request_is_a_span_under_its_task(
    service: Flaky, tmp_path: Path, forks: Forks
) -> None:
    """Flow, task, request: each span is the child of the one before, with nothing to configure."""
    pytest.importorskip("opentelemetry.sdk.trace", reason="OpenTelemetry's SDK is not installed")
    (tmp_path / "traced.py").write_text(FLOW)
    async with forks.run(
        "import runpy, sys; runpy.run_path(sys.argv[1], run_name='__main__')",
        str(tmp_path / "traced.py"),
        folder=tmp_path,
        STORAGE_SERVICE_URL=service.url,
    ) as process:
        output, log = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0, log
    parents = json.loads(output.splitlines()[-1])
    request = parents["GET /api/v1/watermarks/{source_id}"]
    assert request.startswith("Read watermark")
    assert parents[request].startswith("traced") or parents[parents[request]] is None
