"""What is installed from a built wheel has all that it needs."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import PathDistribution
from pathlib import Path

import pytest
from hatchling.build import build_wheel

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel and install it, without its dependencies, into a folder of its own."""
    folder = tmp_path_factory.mktemp("wheel")
    previous = Path.cwd()
    os.chdir(ROOT)
    try:
        wheel = folder / build_wheel(str(folder))
    finally:
        os.chdir(previous)
    target = folder / "installed"
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index",
         "--disable-pip-version-check", "--target", str(target), str(wheel)],
        check=True,
        timeout=120,
    )  # fmt: skip
    return target


def run_installed(installed: Path, folder: Path, code: str) -> str:
    """Run ``code`` where only the installed package can be imported, and return its output."""
    return subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(installed)},
        timeout=60,
    ).stdout


def test_wheel_has_the_package_and_its_data(installed: Path) -> None:
    """Types, migrations and every module are in it; tests, flows and the demonstration are not."""
    found = {path.name for path in installed.iterdir() if not path.name.endswith(".dist-info")}
    assert found <= {"ladon_storage", "bin"}
    assert (installed / "ladon_storage" / "py.typed").is_file()
    kept = {
        path.relative_to(ROOT / "ladon_storage")
        for path in (ROOT / "ladon_storage").rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    assert {
        path.relative_to(installed / "ladon_storage")
        for path in (installed / "ladon_storage").rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    } == kept
    assert any(path.suffix == ".sql" for path in kept)


def test_wheel_has_its_entry_points(installed: Path) -> None:
    """The command and Prefect's collection are found where installers and Prefect look."""
    (metadata,) = installed.glob("*.dist-info")
    found = {each.group: each for each in PathDistribution(metadata).entry_points}
    assert found["console_scripts"].name == "ladon-storage"
    assert found["console_scripts"].value == "ladon_storage.cli:main"
    assert found["prefect.collections"].value == "ladon_storage.blocks"


def test_installed_service_makes_its_database(installed: Path, tmp_path: Path) -> None:
    """The service that is installed starts over a new file, far from the project's folder."""
    code = (
        "import asyncio, ladon_storage, pathlib\n"
        "from ladon_storage.server.serving import serving\n"
        "async def main():\n"
        "    async with serving(pathlib.Path('storage.db')) as address:\n"
        "        print(ladon_storage.__file__, address)\n"
        "asyncio.run(main())\n"
    )
    printed = run_installed(installed, tmp_path, code)
    assert printed.startswith(str(installed))
    assert "http://127.0.0.1:" in printed
    assert (tmp_path / "storage.db").is_file()
