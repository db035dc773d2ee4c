"""The command, for each test of it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.called import Command, called_in


@pytest.fixture
def ladon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Command]:
    """Give the command in an empty folder."""
    with called_in(tmp_path, monkeypatch, capsys) as command:
        yield command
