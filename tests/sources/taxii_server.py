"""A real TAXII 2.1 server on a free port of loopback, and a proxy that makes it misbehave.

medallion runs in a process of its own, `taxii_process`, which has one route more than TAXII: it
makes collections whose objects were added when a test says.
"""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from uuid import UUID, uuid4

from ladon_storage.testing.feed_server import Answer, Asked
from tests.sources.taxii_process import PASSWORD, USER

MEDIA_TYPE = "application/taxii+json;version=2.1"

_PASSED_ON = ("Content-Type", "X-TAXII-Date-Added-First", "X-TAXII-Date-Added-Last")


def stix(
    number: int, modified: str = "2020-01-01T00:00:00.000Z", name: str = "a"
) -> dict[str, Any]:
    """Return an indicator as STIX has it; its times say nothing about when it is added."""
    return {
        "type": "indicator",
        "spec_version": "2.1",
        "id": f"indicator--{UUID(int=number, version=4)}",
        "created": "2020-01-01T00:00:00.000Z",
        "modified": modified,
        "name": name,
    }


class TaxiiServer:
    """Be a server that runs, and make collections in it."""

    def __init__(self, port: int) -> None:
        self._origin = f"http://127.0.0.1:{port}"

    def collection(self, *added: tuple[datetime, dict[str, Any]], digits: int = 6) -> str:
        """Make a collection whose objects were added when it is said, and return its path."""
        name = str(uuid4())
        content = [[_told(when, digits), each] for when, each in added]
        self.request("POST", f"/made/{name}", content)
        return f"/api/collections/{name}/"

    def url(self, path: str) -> str:
        """Return the address of a path."""
        return self._origin + path

    def add(self, path: str, *objects: dict[str, Any]) -> None:
        """Add objects to a collection, as another client of the server."""
        self.request("POST", f"{path}objects/", {"objects": list(objects)})

    def request(self, method: str, path: str, content: object) -> None:
        """Make one request of a test."""
        login = b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        request = urllib.request.Request(
            self.url(path),
            json.dumps(content).encode(),
            {"Accept": MEDIA_TYPE, "Content-Type": MEDIA_TYPE, "Authorization": f"Basic {login}"},
            method=method,
        )
        with urllib.request.urlopen(request, timeout=10) as answer:
            answer.read()


class Proxy:
    """Pass questions on to a server, and alter them and the answers; for `FeedServer`'s play."""

    def __init__(
        self,
        server: TaxiiServer,
        question: Callable[[dict[str, str]], object] = lambda _: None,
        answer: Callable[[dict[str, Any], dict[str, str]], object] = lambda *_: None,
    ) -> None:
        self._server = server
        self._question = question
        self._answer = answer
        self.limits: list[int] = []

    def __call__(self, asked: Asked) -> Answer:
        query = dict(asked.query)
        self._question(query)
        self.limits.append(int(query["limit"]))
        headers = {name: asked.headers[name] for name in ("Accept", "Authorization")}
        request = urllib.request.Request(
            self._server.url(f"{asked.path}?{urlencode(query)}"), headers=headers
        )
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                document = json.load(answer)
                passed = {name: answer.headers[name] for name in _PASSED_ON if answer.headers[name]}
        except urllib.error.HTTPError as error:
            with error:
                return Answer(error.read(), error.code)
        self._answer(document, passed)
        return Answer(json.dumps(document).encode(), headers=passed)


@contextmanager
def taxii_server() -> Iterator[TaxiiServer]:
    """Run medallion until the block is left."""
    with subprocess.Popen(
        [sys.executable, Path(__file__).with_name("taxii_process.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdout is not None
        try:
            yield TaxiiServer(int(process.stdout.readline()))
        finally:
            process.kill()


def _told(when: datetime, digits: int) -> str:
    text = when.astimezone(UTC).replace(tzinfo=None).isoformat(timespec="microseconds")
    return text[: len(text) - 6 + digits].rstrip(".") + "Z"
