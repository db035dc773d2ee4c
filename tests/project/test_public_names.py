"""The public names: those that the packages offer, and those of the reference, are the same."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

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
        for name in ("blocks", "client", "collection", "flows", "sinks", "sources", "tasks")
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
                "ladon_storage.flows"]
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
def test_name_of_a_module_and_a_function_is_the_function(package: str, name: str) -> None:
    """It does not matter whether the module of that name was imported before or after."""
    module, found = import_module(f"{package}.{name}"), import_module(package)
    assert getattr(found, name) is getattr(module, name)
    first = subprocess.run(
        [sys.executable, "-c",
         f"import {package}.{name}\n"
         f"from {package} import {name} as found\n"
         f"from {package}.{name} import {name} as same\n"
         "assert found is same, found"],
        check=False, capture_output=True, text=True, cwd=ROOT, timeout=60,
    )  # fmt: skip
    assert first.returncode == 0, first.stderr


def test_importing_packages_costs_no_prefect_and_no_client() -> None:
    """What a package offers is imported at its first use."""
    code = (
        "import sys, ladon_storage.client, ladon_storage.collection, ladon_storage.flows\n"
        "import ladon_storage.sinks, ladon_storage.sources\n"
        "sys.exit(bool({'prefect', 'aiohttp', 'sqlalchemy'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, timeout=60)
