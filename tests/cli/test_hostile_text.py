"""Texts of a feed in the command's output and in logs: shown, and not obeyed."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator

import pytest

from ladon_storage.errors import CircuitOpenError, LadonStorageError
from ladon_storage.server.logs import JsonLines
from ladon_storage.testing.feed_server import FeedServer
from tests.cli.called import Command
from tests.hostile import EVIL, FEEDS, REST, attacks
from tests.raw_server import RawServer, http

VERBS = (
    ("source", "try", "evil"),
    ("source", "check", "evil"),
    ("collect", "evil"),
    ("collect", "evil"),
    ("reconcile", "evil"),
    ("freshness", "evil=1"),
    ("watermarks", "list"),
    ("watermarks", "show", "evil"),
    ("watermarks", "history", "evil"),
)


class Lines(logging.Handler):
    """A handler with the default format of a program that knows nothing of this package."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        self.objects: list[str] = []
        self.setFormatter(logging.Formatter("%(levelname)s %(name)s %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record as a line, and as an object."""
        self.lines.append(self.format(record))
        self.objects.append(JsonLines().format(record))


@pytest.fixture
def log() -> Iterator[Lines]:
    """Log everything of the package."""
    handler, package = Lines(), logging.getLogger("ladon_storage")
    package.addHandler(handler)
    level = package.level
    package.setLevel(logging.DEBUG)
    yield handler
    package.setLevel(level)
    package.removeHandler(handler)


@pytest.mark.parametrize("attack", FEEDS)
async def test_text_of_a_feed_is_not_obeyed_by_a_terminal_or_a_log(
    attack: str, ladon: Command, log: Lines
) -> None:
    """No verb and no log line has a control character of a feed, or a line that the feed wrote."""
    fields, play = FEEDS[attack]
    async with FeedServer(play=play) as feed:
        await assert_obeyed_nowhere(ladon, log, {"url": feed.url, **fields})


READ = {200: "in its header Link", 302: "redirects nowhere", 404: "answered 404"}


@pytest.mark.parametrize("status", list(READ))
async def test_header_of_a_feed_is_not_obeyed_by_a_terminal_or_a_log(
    status: int, ladon: Command, log: Lines
) -> None:
    """A header may have any character but the end of its line."""
    evil = EVIL.replace("\r\n", "")
    names = ("Retry-After", "Content-Type", "Link", "Server", "X-RateLimit-Reset", "Location")
    headers = [f"{name}: {evil}" for name in names]
    headers[2] = f'Link: <http://other.example/{evil}>; rel="next"'
    body = b'{"items": [{"id": 1, "at": "2024-01-01T00:00:00Z"}]}'
    async with RawServer(http(status, body, *headers)) as feed:
        fields = {"url": feed.url, **REST, "paging": {"kind": "link"}}
        await assert_obeyed_nowhere(ladon, log, fields)
        tried = await ladon.later("source", "try", "evil")
    # The answer was read, with all of its headers.
    assert READ[status] in tried.out + tried.err


async def assert_obeyed_nowhere(ladon: Command, log: Lines, fields: dict[str, object]) -> None:
    """Run every verb with a source, and look at all that they print and log."""
    ladon.write(
        "ladon.toml",
        '[storage]\nurl = "sqlite:///ladon.db"\n[sinks.records]\nurl = "sqlite:///records.db"\n'
        '[sources.evil]\nsource_id = "evil"\n'
        + "".join(f"{name} = {_toml(value)}\n" for name, value in fields.items()),
    )
    for verb in VERBS:
        called = await ladon.later(*verb)
        assert not attacks(called.out), verb
        assert not attacks(called.err), verb
        if verb[0] in ("collect", "reconcile", "watermarks", "freshness"):
            out = (await ladon.later(*verb, "--json")).out
            assert not attacks(out), verb
    for line in log.lines:
        assert not attacks(line)
    for line in log.objects:
        assert not attacks(line)
        assert json.loads(line)["message"].isprintable()


def _toml(value: object) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_toml(each)}" for key, each in value.items()) + " }"
    return json.dumps(value)


def errors(kind: type[LadonStorageError] = LadonStorageError) -> Iterator[type[LadonStorageError]]:
    """Yield a class of errors, and all below it."""
    yield kind
    for each in kind.__subclasses__():
        yield from errors(each)


@pytest.mark.parametrize("kind", list(errors()), ids=lambda kind: kind.__name__)
def test_error_of_each_class_is_one_visible_line(kind: type[LadonStorageError]) -> None:
    """What a traceback or another program's log prints of an error is not obeyed."""
    error = kind.__new__(kind)
    error.args = (EVIL, 1.0) if issubclass(kind, CircuitOpenError) else (EVIL,)
    vars(error)["message"] = EVIL
    assert str(error)
    assert str(error).isprintable()
