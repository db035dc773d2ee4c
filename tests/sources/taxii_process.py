"""medallion, the TAXII 2.1 server of OASIS, as a process that ends with the test that started it.

It warns of what this package's tests turn into errors, so that it is none of their modules.
"""

from __future__ import annotations

import os
import sys
import threading
from typing import Any

USER = "collector"
PASSWORD = "p:ss word"
LARGEST_PAGE = 16
"""How many objects it gives at once, whatever it is asked for."""


def serve() -> None:
    """Run the server, say its port, and end with whoever started it."""
    from flask import request
    from medallion import application_instance, register_blueprints, set_config  # type: ignore[import-untyped]
    from werkzeug.serving import WSGIRequestHandler, make_server

    root: dict[str, Any] = {
        "information": {"max_content_length": 10**7},
        "status": [],
        "collections": [],
    }
    configuration: dict[str, Any] = {
        "backend": {
            "module": "medallion.backends.memory_backend",
            "module_class": "MemoryBackend",
        },
        "users": {USER: PASSWORD},
        "taxii": {"max_page_size": LARGEST_PAGE},
    }
    for name in configuration:
        set_config(application_instance, name, configuration)
    register_blueprints(application_instance)
    application_instance.medallion_backend.data = {"/discovery": {}, "api": root}

    @application_instance.post("/made/<name>")  # type: ignore[untyped-decorator]
    def make(name: str) -> str:
        added = request.get_json(force=True)
        collection = {
            "id": name,
            "can_read": True,
            "can_write": True,
            "media_types": [],
            "objects": [each for _, each in added],
            "manifest": [
                {
                    "id": each["id"],
                    "date_added": when,
                    "version": each.get("modified", when),
                    "media_type": "application/stix+json;version=2.1",
                }
                for when, each in added
            ],
        }
        root["collections"].append(collection)
        return ""

    class Quiet(WSGIRequestHandler):
        def log(self, *_: object) -> None:
            pass

    def end_with_the_test() -> None:
        sys.stdin.read()
        os._exit(0)

    threading.Thread(target=end_with_the_test, daemon=True).start()
    server = make_server("127.0.0.1", 0, application_instance, request_handler=Quiet)
    sys.stdout.write(f"{server.server_port}\n")
    sys.stdout.flush()
    server.serve_forever()


if __name__ == "__main__":
    serve()
