"""The public names: those that the packages offer, and those of the reference, are the same."""

from __future__ import annotations

import ast
import asyncio
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

from tests.forks import Forks, forking

ROOT = Path(__file__).resolve().parent.parent.parent
SECTIONS = re.findall(
    r"^## `(ladon_storage[\w.]*)`\n(.*?)(?=^## |\Z)",
    (ROOT / "docs" / "reference" / "python.md").read_text(encoding="utf-8"),
    re.MULTILINE | re.DOTALL,
)
PACKAGES = [
    "ladon_storage",
    *(
        f"ladon_storage.{name}"
        for name in (
            "blocks",
            "client",
            "collection",
            "flows",
            "sinks",
            "sources",
            "tasks",
            "testing",
        )
    ),
]
SHARED = [
    ("ladon_storage.collection", "run"),
    *(
        ("ladon_storage.flows", name)
        for name in ("backfill", "collect", "collect_many", "reconcile")
    ),
]
"""Names of a module as well as of what it offers."""


def test_reference_has_every_package_with_public_names() -> None:
    """Nothing that is promised is missing from the reference, and it has nothing else."""
    assert sorted(package for package, _ in SECTIONS) == sorted(PACKAGES)


@pytest.mark.parametrize(("package", "section"), SECTIONS, ids=[name for name, _ in SECTIONS])
def test_names_of_a_package_are_those_of_the_reference(package: str, section: str) -> None:
    """Each name of the table is in ``__all__``, and the other way round."""
    rows = re.findall(r"^\| (`.*?`) \|", section, re.MULTILINE)
    described = [name for row in rows for name in re.findall(r"`(\w+)`", row)]
    assert sorted(described) == sorted(import_module(package).__all__)


@pytest.mark.parametrize("package", PACKAGES)
def test_public_names_of_a_package_can_be_imported(package: str) -> None:
    """None of them is a module, and ``dir`` lists each."""
    module = import_module(package)
    for name in module.__all__:
        assert not isinstance(getattr(module, name), ModuleType), name
        assert name in dir(module)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = module.nothing


@pytest.mark.parametrize(
    "package", ["ladon_storage", "ladon_storage.client", "ladon_storage.collection",
                "ladon_storage.flows", "ladon_storage.testing"]
)  # fmt: skip
def test_types_of_public_names_are_known(package: str) -> None:
    """A type checker sees each name that is imported at its first use."""
    body = ast.parse(Path(str(import_module(package).__file__)).read_text("utf-8")).body
    [block] = [each for each in body if isinstance(each, ast.If)]
    seen = {
        alias.name
        for each in block.body
        if isinstance(each, ast.ImportFrom)
        for alias in each.names
    }
    assert seen | {"__version__"} == set(import_module(package).__all__) | {"__version__"}


@pytest.mark.parametrize(("package", "name"), SHARED, ids=[name for _, name in SHARED])
def test_name_that_is_imported_before_its_module_is_the_function(package: str, name: str) -> None:
    """The module of that name has the same function, and does not take its place."""
    module, found = import_module(f"{package}.{name}"), import_module(package)
    assert getattr(found, name) is getattr(module, name)


@pytest.fixture(scope="module")
def prefects() -> Iterator[Forks]:
    """Import Prefect once for the processes that import something of this package."""
    with forking("prefect") as forks:
        yield forks


@pytest.mark.slow
async def test_name_that_is_imported_after_its_module_is_the_function(
    prefects: Forks, tmp_path: Path
) -> None:
    """A process that has imported nothing but a module gets the function of its name."""
    code = (
        "import sys; package, name = sys.argv[1:]\n"
        "assert package not in sys.modules\n"
        "exec(f'import {package}.{name}')\n"
        "exec(f'from {package} import {name} as found')\n"
        "exec(f'from {package}.{name} import {name} as same')\n"
        "assert found is same, found\n"
    )
    for package, name in SHARED:
        async with prefects.run(code, package, name, folder=tmp_path) as process:
            _, log = await asyncio.wait_for(process.communicate(), 60)
        assert process.returncode == 0, log


def test_importing_packages_costs_no_prefect_and_no_client() -> None:
    """What a package offers is imported at its first use."""
    code = (
        "import sys, ladon_storage.client, ladon_storage.collection, ladon_storage.flows\n"
        "import ladon_storage.sinks, ladon_storage.sources, ladon_storage.testing\n"
        "costly = {'prefect', 'aiohttp', 'sqlalchemy', 'pytest'}\n"
        "sys.exit(bool(costly & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, timeout=60)


@pytest.mark.slow
async def test_flow_of_one_kind_costs_no_other_kind(prefects: Forks, tmp_path: Path) -> None:
    """A process that runs a flow imports its kind alone, and makes no form."""
    code = (
        "import sys\n"
        "from ladon_storage.flows.collect import collect_kev\n"
        "names = [f'ladon_storage.sources.{each}' for each in ('nvd', 'sql.source', 'threatfox')]\n"
        "assert not {*names, 'aiohttp.web', 'deltalake'} & set(sys.modules)\n"
        "assert 'parameters' not in vars(collect_kev)\n"
        "assert collect_kev.parameters.properties['source']\n"
    )
    async with prefects.run(code, folder=tmp_path) as process:
        _, log = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0, log
