"""The command called in this process, in a folder and an environment of its own."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ladon_storage.cli import main

_VARIABLES = (
    "STORAGE_SERVICE_URL", "STORAGE_SERVICE_TOKEN", "STORAGE_SERVICE_DATABASE",
    "STORAGE_CIRCUIT_URL", "ENVIRONMENT",
    "LADON_FILE", "PREFECT_API_URL", "PREFECT_PROFILE", "PREFECT_PROFILES_PATH", "COLUMNS",
    "FORCE_COLOR", "NO_COLOR",
)  # fmt: skip


@dataclass(frozen=True)
class Called:
    """What a call of the command left: its exit code and what it printed."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """What is on standard output, as JSON."""
        return json.loads(self.out)

    @property
    def sentence(self) -> str:
        """The only line on standard error."""
        [line] = self.err.splitlines()
        return line


class Command:
    """The command, as a person calls it in an empty folder."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder = folder
        self._capsys = capsys

    def __call__(self, *arguments: object) -> Called:
        """Call the command, which must raise nothing."""
        code = main([str(each) for each in arguments])
        return Called(code, *self._capsys.readouterr())

    async def later(self, *arguments: object) -> Called:
        """Call it in a thread, so that a server of this loop can answer."""
        return await asyncio.to_thread(self, *arguments)

    def write(self, name: str, text: str) -> Path:
        """Write a file of the folder."""
        file = self.folder / name
        file.write_text(text, encoding="utf-8")
        return file


@contextmanager
def called_in(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Command]:
    """Give the command in a folder, with nothing configured."""
    for name in _VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PREFECT_HOME", str(folder / "prefect"))
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", list(sys.path))
    modules = set(sys.modules)
    yield Command(folder, capsys)
    for each in [each for each in set(sys.modules) - modules if _is_below(each, folder)]:
        del sys.modules[each]


def _is_below(module: str, folder: Path) -> bool:
    file = getattr(sys.modules[module], "__file__", None)
    return file is not None and Path(file).is_relative_to(folder)
