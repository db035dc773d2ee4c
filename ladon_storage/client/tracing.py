"""Spans of requests where OpenTelemetry is set up; nothing at all elsewhere.

- OpenTelemetry is never imported here. A program that has set a tracer provider has imported it.
- A span is named by its route, never by a source: traces are grouped by these names.
- A span has the texts of this package's errors, which hold no secret, and a URL without one.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from yarl import URL

if TYPE_CHECKING:
    from opentelemetry.trace import Span, Tracer, TracerProvider


def tracer() -> Tracer | None:
    """Return the tracer of the provider that the user has set, or ``None`` where there is none."""
    trace: Any = sys.modules.get("opentelemetry.trace")
    if trace is None:
        return None
    provider = trace.get_tracer_provider()
    if isinstance(provider, trace.ProxyTracerProvider | trace.NoOpTracerProvider):
        return None
    return _tracer_of(provider)


@lru_cache(maxsize=1)
def _tracer_of(provider: TracerProvider) -> Tracer:
    return provider.get_tracer("ladon_storage")


@contextmanager
def request_span(tracer: Tracer, method: str, url: URL, api: str) -> Iterator[Span]:
    """Wrap one request in a span of the client's kind, under the current span.

    Args:
        tracer: The maker of spans.
        method: The request's method.
        url: The request's URL, without credentials.
        api: The path below which the last part names a source.
    """
    from opentelemetry.trace import SpanKind

    attributes: dict[str, Any] = {
        "http.request.method": method,
        "url.full": str(url),
        "server.address": url.host or "",
        "server.port": url.port or 0,
    }
    folder, _, last = url.raw_path.rpartition("/")
    route = url.raw_path
    if folder.endswith(api):
        route = f"/{api}/{{source_id}}"
        attributes["ladon.source_id"] = unquote(last)
    with tracer.start_as_current_span(
        f"{method} {route}", kind=SpanKind.CLIENT, attributes=attributes
    ) as span:
        try:
            yield span
        except Exception as error:
            span.set_attribute("error.type", type(error).__name__)
            if status := getattr(error, "status", None):
                span.set_attribute("http.response.status_code", status)
            raise
