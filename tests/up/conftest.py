"""Minutes long, and so collected only where this folder is asked for, as `make up-test` does."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.up.place import place

__all__ = ["place"]

HERE = Path(__file__).resolve().parent


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave this folder alone unless an argument leads into it."""
    asked = (Path(argument.split("::")[0]).resolve() for argument in config.args)
    return None if any(path == HERE or HERE in path.parents for path in asked) else True
