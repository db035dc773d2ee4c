"""What is installed from a built wheel has all that it needs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import PathDistribution
from pathlib import Path
from typing import Any

import pytest
from hatchling.build import build_wheel
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent.parent
LOCKS = [
    "requirements.lock",
    ".ci/check.lock",
    ".ci/uv.lock",
    "benchmarks/airbyte.lock",
    "benchmarks/requirements.lock",
    "deploy/build.lock",
    "deploy/image.lock",
    "tests/e2e/requirements.lock",
    "tests/flows/oldest.lock",
]


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
    """Types, migrations, alerts and every module are in it; tests and the demonstration are not."""
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
    } == kept | {Path("monitoring/alerts.yml")}
    assert any(path.suffix == ".sql" for path in kept)


def distribution(installed: Path) -> PathDistribution:
    """Return what installers know of the package."""
    (metadata,) = installed.glob("*.dist-info")
    return PathDistribution(metadata)


def project() -> dict[str, Any]:
    """Return the table of the project in pyproject.toml."""
    found: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return found


def locked(lock: str) -> dict[str, set[str]]:
    """Return the versions of each package that a lock file names."""
    found: dict[str, set[str]] = {}
    for name, number in re.findall(r"^([a-z0-9-]+)==([^ ;]+)", (ROOT / lock).read_text(), re.M):
        found.setdefault(name, set()).add(number)
    return found


def test_wheel_has_its_entry_points(installed: Path) -> None:
    """The command and Prefect's collection are where installers and Prefect look, and load."""
    found = {each.group: each for each in distribution(installed).entry_points}
    assert found["console_scripts"].name == "ladon-storage"
    assert found["console_scripts"].value == "ladon_storage.cli:main"
    assert found["prefect.collections"].value == "ladon_storage.blocks"
    for each in found.values():
        assert each.load()


def test_wheel_says_what_it_is(installed: Path) -> None:
    """Name, version, summary, Python, extras, README and licence are in its metadata."""
    found, described = distribution(installed), project()
    metadata = found.metadata
    assert metadata["Name"] == described["name"]
    assert metadata["Version"] == described["version"]
    assert metadata["Summary"] == described["description"]
    assert metadata["Requires-Python"] == described["requires-python"]
    assert metadata["License-Expression"] == "Apache-2.0"
    assert set(metadata.get_all("Provides-Extra") or []) == set(described["optional-dependencies"])
    assert "Typing :: Typed" in (metadata.get_all("Classifier") or [])
    assert (ROOT / "README.md").read_text().strip() in (found.read_text("METADATA") or "")
    (licence,) = (each for each in found.files or [] if each.name == "LICENSE")
    assert licence.read_text() == (ROOT / "LICENSE").read_text()


def test_wheel_bounds_nothing_that_only_prefect_uses(installed: Path) -> None:
    """People who want the client alone get no bound that one version of Prefect needs."""
    needed = {each.name: each for each in map(Requirement, distribution(installed).requires or [])}
    assert "fastapi" not in needed
    bounded = {
        name
        for name, each in needed.items()
        if any(part.operator in ("<", "<=", "==", "~=") for part in each.specifier)
    }
    assert bounded == {"prefect"}


def test_oldest_lock_has_the_oldest_prefect_that_is_allowed() -> None:
    """What the package allows is what is tried, at both ends."""
    [prefect] = [
        each for each in map(Requirement, project()["dependencies"]) if each.name == "prefect"
    ]
    [oldest] = [part.version for part in prefect.specifier if part.operator == ">="]
    assert locked("tests/flows/oldest.lock")["prefect"] == {oldest}
    [newest] = locked("requirements.lock")["prefect"]
    assert newest in prefect.specifier
    assert Version(newest) > Version(oldest)


@pytest.mark.parametrize("lock", LOCKS)
def test_lock_has_hashes_and_no_host(lock: str) -> None:
    """What is installed is what was locked, from whichever index a machine uses."""
    text = (ROOT / lock).read_text()
    assert "://" not in text
    requirements = text.replace("\\\n", " ").splitlines()
    pinned = [line for line in requirements if line and not line.lstrip().startswith("#")]
    assert pinned
    assert all("==" in line and "--hash=sha256:" in line for line in pinned)


@pytest.mark.parametrize("lock", [".ci/check.lock", "benchmarks/requirements.lock"])
def test_lock_of_one_target_changes_no_version_of_the_rest(lock: str) -> None:
    """A target that installs more into the same environment leaves what is there."""
    base = locked("requirements.lock")
    assert {name: found for name, found in locked(lock).items() if name in base} == {
        name: base[name] for name in locked(lock) if name in base
    }


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


@pytest.mark.slow
def test_installed_deployments_need_no_checkout(installed: Path, tmp_path: Path) -> None:
    """A table names flows by module path, and is the working directory's; none is one sentence."""
    code = (
        "from ladon_storage.cli import main\n"
        "from ladon_storage.flows.serve import DEPLOYMENTS_FILE, deployments\n"
        "assert main(['deploy', '--serve', '--table', 'prefect.yaml']) == 2\n"
        "DEPLOYMENTS_FILE.write_text('deployments: [{name: kev, description: d, tags: [],'\n"
        "    ' entrypoint: ladon_storage.flows.collect.collect_kev,'\n"
        "    ' concurrency_limit: {limit: 1, collision_strategy: ENQUEUE}}]')\n"
        "[made] = deployments()\n"
        "print(DEPLOYMENTS_FILE, made.full_name, made.entrypoint)\n"
    )
    printed = run_installed(installed, tmp_path, code).split()
    assert printed == [
        "prefect.yaml",
        "collect-kev/kev",
        "ladon_storage.flows.collect.collect_kev",
    ]


def test_installed_package_has_the_alerts(installed: Path) -> None:
    """They are those of the project, so that operators need no clone."""
    alerts = Path("monitoring", "alerts.yml")
    assert (installed / "ladon_storage" / alerts).read_text() == (ROOT / alerts).read_text()


@pytest.mark.slow
def test_installed_contract_tests_a_source_of_ones_own(installed: Path, tmp_path: Path) -> None:
    """A folder with a class and its test needs the wheel and pytest, and no clone."""
    (tmp_path / "test_source.py").write_text(
        "from ladon_storage.testing import SourceContract, record\n"
        "from ladon_storage.collection import Page, Record, Reject\n"
        "class Own:\n"
        "    source_id, overlap = 'own', None\n"
        "    def __init__(self, feed): self.feed = feed\n"
        "    async def pages(self, start, until):\n"
        "        items = self.feed.read()\n"
        "        yield Page([Record.of(*each) for each in items if each[0]],\n"
        "                   [Reject.of('no id', each) for each in items if not each[0]])\n"
        "class TestOwn(SourceContract):\n"
        "    def new_source(self, feed): return Own(feed)\n"
        "    def item(self, record_id, time, value): return record_id, time, value\n"
        "    def unusable(self): return None, None, 'x'\n"
    )
    code = (
        "import sys, pytest, ladon_storage\n"
        "print(ladon_storage.__file__)\n"
        "sys.exit(pytest.main(['-q', '-p', 'no:randomly', '-p', 'no:cacheprovider']))\n"
    )
    printed = run_installed(installed, tmp_path, code)
    assert printed.startswith(str(installed))
    assert " passed in " in printed
