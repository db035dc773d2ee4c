"""A real server of S3's protocol on a free port of loopback, started once for a test session.

It is moto's, in a process of its own. Before it stands what moto leaves out: one write at a time,
as a storage with conditional writes promises; the refusal of an unknown access key; a bucket whose
name begins with ``ignoring``, where conditions on writes are ignored; and answers that are lost.
"""

from __future__ import annotations

import io
import itertools
import os
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest

KEY_ID = "ladon-test-id"
SECRET = "s3cret-of-the-lake"

_DENIED = (
    b"<?xml version='1.0'?><Error><Code>InvalidAccessKeyId</Code><Message>The AWS Access Key Id "
    b"you provided does not exist in our records.</Message></Error>"
)
_LOST = b"<?xml version='1.0'?><Error><Code>InternalError</Code></Error>"


class S3Server:
    """Be a server that runs, and make buckets in it."""

    def __init__(self, port: int) -> None:
        self.endpoint = f"http://127.0.0.1:{port}"
        self._names = itertools.count()

    @property
    def options(self) -> dict[str, str]:
        """The settings that a client needs."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ALLOW_HTTP": "true",
            "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": KEY_ID,
            "AWS_SECRET_ACCESS_KEY": SECRET,
        }

    def bucket(self, name: str = "lake") -> str:
        """Make an empty bucket, and return its address."""
        made = f"{name}-{os.getpid()}-{next(self._names)}"
        self._ask("PUT", f"/{made}")
        return f"s3://{made}"

    def lose_answers(self, count: int) -> None:
        """Store the next new objects of a log, and answer each of them as if it had failed."""
        self._ask("POST", f"/-/lose/{count}")

    def keys(self, bucket: str) -> list[str]:
        """Return the names of a bucket's objects."""
        from obstore.store import from_url

        store: Any = from_url(bucket, config=_config(self), client_options={"allow_http": True})
        return [each["path"] for page in store.list() for each in page]

    def _ask(self, method: str, path: str) -> None:
        request = urllib.request.Request(f"{self.endpoint}{path}", method=method)
        request.add_header("Authorization", f"Credential={KEY_ID}/")
        urllib.request.urlopen(request, timeout=10).read()


def _config(server: S3Server) -> Any:
    return {name: each for name, each in server.options.items() if name != "AWS_ALLOW_HTTP"}


@pytest.fixture(scope="session")
def s3() -> Iterator[S3Server]:
    """Run a server for the whole session."""
    process = subprocess.Popen([sys.executable, __file__], stdout=subprocess.PIPE, text=True)
    with process:
        assert process.stdout is not None
        yield S3Server(int(process.stdout.readline()))
        process.send_signal(signal.SIGKILL)


Environment = dict[str, Any]
Application = Callable[[Environment, Callable[..., Any]], Iterable[bytes]]


class _Guarded:
    """Be moto's application behind what it leaves out."""

    def __init__(self, application: Application) -> None:
        self._application = application
        self._lock = threading.Lock()
        self._lost = 0

    def __call__(self, environment: Environment, start: Callable[..., Any]) -> Iterable[bytes]:
        path, method = environment["PATH_INFO"], environment["REQUEST_METHOD"]
        body = environment["wsgi.input"].read(int(environment.get("CONTENT_LENGTH") or 0))
        environment["wsgi.input"] = io.BytesIO(body)
        if f"Credential={KEY_ID}/" not in environment.get("HTTP_AUTHORIZATION", ""):
            return _answer(start, "403 Forbidden", _DENIED)
        if path.startswith("/-/lose/"):
            self._lost = int(path.rpartition("/")[2])
            return _answer(start, "200 OK", b"")
        if path.startswith("/ignoring"):
            environment.pop("HTTP_IF_NONE_MATCH", None)
        is_commit = method == "PUT" and "_delta_log" in path and "HTTP_IF_NONE_MATCH" in environment
        begun: list[Any] = []
        with self._lock:
            answer = b"".join(self._application(environment, lambda *head: begun.append(head)))
            is_lost = is_commit and self._lost > 0
            self._lost -= is_lost
        if is_lost:
            return _answer(start, "500 Internal Server Error", _LOST)
        start(*begun[-1])
        return [answer]


def _answer(start: Callable[..., Any], status: str, body: bytes) -> list[bytes]:
    start(status, [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))])
    return [body]


def main() -> None:
    """Serve until this process is killed, and print the port."""
    from moto.moto_server.werkzeug_app import create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Quiet(WSGIRequestHandler):
        protocol_version = "HTTP/1.1"

        def log(self, *_: object, **__: object) -> None:
            """Keep requests to itself."""

    guarded = _Guarded(create_backend_app("s3"))
    server = make_server("127.0.0.1", 0, guarded, threaded=True, request_handler=Quiet)
    sys.stdout.write(f"{server.server_port}\n")
    sys.stdout.flush()
    server.serve_forever()


if __name__ == "__main__":
    main()
