"""A Storage Service that knows the base contract and nothing else."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any
from urllib.parse import unquote

from aiohttp import web


@asynccontextmanager
async def base_service(now: Callable[[], datetime]) -> AsyncIterator[str]:
    """Run a service of the base contract, and refuse whatever goes beyond it."""
    stored: dict[str, dict[str, Any]] = {}

    def source(request: web.Request) -> str:
        prefix, _, segment = request.raw_path.rpartition("/")
        assert prefix == "/api/v1/watermarks"
        assert not request.query_string
        return unquote(segment)

    async def get(request: web.Request) -> web.Response:
        found = stored.get(source(request))
        return web.json_response(found) if found else web.Response(status=404)

    async def put(request: web.Request) -> web.Response:
        body = await request.json()
        beyond = set(body) - {"timestamp", "status", "error_message"}
        if beyond or {"If-Match", "If-None-Match"} & set(request.headers):
            raise web.HTTPBadRequest(text=f"unknown: {beyond}, {dict(request.headers)}")
        before = stored.get(source(request), {}).get("last_successful_timestamp")
        success = body["status"] == "success"
        stored[source(request)] = {
            "source_id": source(request),
            "last_successful_timestamp": body["timestamp"] if success else before,
            "last_run_timestamp": now().isoformat(),
            "status": body["status"],
            "error_message": body.get("error_message"),
            "records_collected": 0,
        }
        return web.json_response(stored[source(request)])

    async def health(_: web.Request) -> web.Response:
        return web.json_response({"status": "healthy"})

    application = web.Application()
    application.router.add_get("/health", health)
    application.router.add_get("/{any:.*}", get)
    application.router.add_put("/{any:.*}", put)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()
