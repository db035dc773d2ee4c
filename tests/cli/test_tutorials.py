"""Each tutorial can be followed from an empty folder, and shows what its commands print."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from ladon_storage.cli.source_new import _CLASS
from ladon_storage.testing import Answer, FeedServer
from tests.cli.called import Command
from tests.documents import ROOT, blocks

TUTORIAL = ROOT / "docs" / "tutorial" / "own-source.md"
PAGES = sorted((ROOT / "docs" / "tutorial").glob("*.md"))
MIRROR = "127.0.0.1:8000"
FAILS = {
    "ladon-storage freshness": 1,
    "ladon-storage source try 'tickets:Tickets' --since 2026-01-01": 2,
}
"""Commands that a page says will fail, with their exit codes; so do those whose error it shows."""

DURATION = re.compile(r" +\d+\.\d$|\d+\.\d+s")
"""What differs from one run to the next."""


class Quiet(SimpleHTTPRequestHandler):
    """A server of files that logs nothing."""

    def log_message(self, *_arguments: object) -> None:
        """Log nothing."""


@pytest.fixture
def mirror(tmp_path: Path) -> Iterator[str]:
    """Serve the folder ``mirror``, and give the server's address."""
    (tmp_path / "mirror").mkdir()
    handler = partial(Quiet, directory=str(tmp_path / "mirror"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


class Reader:
    """A person who follows a page: saves its files, and types its commands."""

    def __init__(self, ladon: Command, mirror: str) -> None:
        self._ladon = ladon
        self._mirror = mirror
        self.typed: list[str] = []

    def save(self, use: str, name: str, text: str) -> None:
        """Write a file of the page, or lines at its end."""
        file = self._ladon.folder / name
        if use == "append":
            text = file.read_text(encoding="utf-8") + text
        self._ladon.write(name, text.replace(MIRROR, self._mirror))

    def type(self, command: str, shown: list[str]) -> None:
        """Run a command; what the page shows of its output must be there."""
        program, *arguments = shlex.split(command)
        if program == "ladon-storage" and arguments[0] != "up":
            code, output = self._called(arguments)
        elif program == "python3" and arguments[0].endswith(".py"):
            code, output = self._ran([sys.executable, *arguments])
        elif program == "pytest":
            code, output = self._ran(
                [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments]
            )
        else:
            return
        self.typed.append(command)
        has_failed = any(" failed: " in line for line in shown)
        assert code == FAILS.get(command, int(has_failed)), f"{command}\n{output}"
        printed = {plain(line) for line in output.replace(self._mirror, MIRROR).splitlines()}
        for line in shown:
            assert plain(line) in printed, f"{command}: {line}\n{output}"

    def _called(self, arguments: list[str]) -> tuple[int, str]:
        called = self._ladon(*arguments)
        return called.code, called.out + called.err

    def _ran(self, command: list[str]) -> tuple[int, str]:
        done = subprocess.run(
            command, cwd=self._ladon.folder, capture_output=True, text=True, timeout=120,
            check=False,
        )  # fmt: skip
        return done.returncode, done.stdout + done.stderr


def plain(line: str) -> str:
    """Return a line without its duration."""
    return DURATION.sub("", line).rstrip(" =")


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_tutorial_can_be_followed(page: Path, ladon: Command, mirror: str) -> None:
    """Every file and command of the page works in its order, and prints what the page shows."""
    reader = Reader(ladon, mirror)
    for block in blocks(page):
        if block.use:
            reader.save(block.use, block.file, block.text)
        elif block.language == "console":
            for command, shown in block.commands:
                reader.type(command, shown)
    assert len(reader.typed) >= 3


SENT = '{"id":"1","updated_at":"2024-01-01T00:00:00+00:00","price":1.10,"big":12345678901234567.89}'


@pytest.mark.parametrize("page", [TUTORIAL, ROOT / "docs" / "how-to" / "test-your-own.md"])
async def test_own_class_of_a_page_keeps_the_digits_that_were_sent(page: Path) -> None:
    """As the sources of this package do: README promises it of all."""
    [code] = [
        each.text
        for each in blocks(page)
        if re.search(r"^class Tickets\b", each.text, re.MULTILINE)
    ]
    names: dict[str, Any] = {"__name__": "tickets"}
    exec(compile(code, page, "exec", dont_inherit=True), names)
    body, headers = f'{{"tickets": [{SENT}]}}'.encode(), {"Content-Type": "application/json"}
    async with FeedServer(Answer(body, headers=headers)) as feed:
        read = [each async for each in names["Tickets"](url=feed.url).pages(None, None)]
    assert [record.payload for page in read for record in page.records] == [SENT]


async def test_class_of_source_new_keeps_the_digits_that_it_shows() -> None:
    """Its first item has a number that Python would write with other digits."""
    names: dict[str, Any] = {"__name__": "own"}
    exec(_CLASS.format(name="own", cls="Own"), names)
    first = await anext(aiter(names["Own"]().pages(None, None)))
    assert '"score":0.10}' in first.records[0].payload
