"""The versions that a source reads in a process of its own.

A fork keeps the seed of its parent's hashes, so this is a new Python, with another seed. It imports
the module of the test class, and gets its object and the items from this process.
"""

from __future__ import annotations

import asyncio
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SECONDS = 60
"""How long the other process may take, from its start to its end."""


def versions_elsewhere(contract: Any, items: list[Any]) -> list[list[str]]:
    """Return ids and versions of items, as a process with other hashes reads them.

    The test is skipped where that process cannot make the source, as when a fixture is missing.
    """
    seed = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"
    try:
        made = pickle.dumps((contract, items))
        ended = subprocess.run(
            [sys.executable, "-c", _code(type(contract))],
            input=made,
            capture_output=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
            timeout=SECONDS,
            check=True,
        )
    except subprocess.CalledProcessError as error:
        lines = error.stderr.decode(errors="replace").strip().splitlines()
        pytest.skip(f"another process cannot read the source: {lines[-1] if lines else error}")
    except Exception as error:  # whatever keeps an object from being pickled
        pytest.skip(f"another process cannot read the source: {error}")
    read: list[list[str]] = json.loads(ended.stdout.splitlines()[-1])
    return read


def _code(kind: type) -> str:
    """Return what the process executes: its path is this one's, and has the module of the class."""
    paths = list(sys.path)
    if file := getattr(sys.modules[kind.__module__], "__file__", None):
        paths.append(str(Path(file).resolve().parents[kind.__module__.count(".")]))
    return f"import sys; sys.path[:] = {paths!r}; from {__name__} import main; main()"


def main() -> None:
    """Print ids and versions of the items that the input has."""
    contract, items = pickle.load(sys.stdin.buffer)
    sys.stdout.write(f"\n{json.dumps(asyncio.run(contract.versions(items)))}\n")
