"""The layers: nothing imports upward, and what must stay cheap or apart stays so."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
PACKAGE = ROOT / "ladon_storage"

# Lowest first. A module imports only what stands before its own layer, or beside it in a package.
LAYERS = [
    "lazy",
    "errors",
    "values",
    "models",
    "registry",
    "databases",
    "circuit",
    "client",
    "settings",
    "collection",
    "sources",
    "sinks",
    "server",
    "embedded",
    "connect",
    "project",
    "probing",
    "blocks",
    "events",
    "fallback",
    "consoles",
    "tasks",
    "flows",
    "testing",
    "cli",
]
MAY_IMPORT_PREFECT = {"blocks", "events", "tasks", "cli", "flows"}
FORBIDDEN = {
    "lazy": set(LAYERS),
    "errors": set(LAYERS),
    "circuit": {"models", "aiohttp"},
    "circuit.breaker": {"asyncio", "prometheus_client"},
    "client": {"circuit.urls", "circuit.stores"},
    "client.client": {"client.mock", "circuit.shared"},
    "client.mock": {"client.client"},
    "collection": {"client", "settings"},
    "sources": {"client.client", "client.mock", "client.metrics", "settings"},
    "sinks": {"client", "settings", "sources"},
    "server": {"client", "circuit", "settings", "collection", "blocks", "tasks", "events"},
    "probing": {"client", "server", "settings"},
}


def modules() -> list[tuple[str, Path]]:
    """Return each module's layer and file, but not the package's ``__init__``: it is the facade."""
    paths = sorted(PACKAGE.rglob("*.py"))
    layers = [path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in paths]
    return [each for each in zip(layers, paths, strict=True) if each[0] != "__init__"]


def imported(path: Path) -> set[str]:
    """Return what a module imports anywhere: our layers by their name, others by their package."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            found = [node.module or ""]
            if node.module == "ladon_storage":
                found = [f"ladon_storage.{alias.name}" for alias in node.names]
        else:
            continue
        for name in found:
            first, _, rest = name.partition(".")
            if first == "ladon_storage" and rest:
                names |= {rest.partition(".")[0], ".".join(rest.split(".")[:2])}
            else:
                names.add(first)
    return names


def test_every_module_has_a_layer() -> None:
    """A new module must say where it stands."""
    assert {layer for layer, _ in modules()} == set(LAYERS)


@pytest.mark.parametrize(("layer", "path"), modules(), ids=lambda value: getattr(value, "stem", ""))
def test_nothing_imports_upward(layer: str, path: Path) -> None:
    """A module knows only lower layers and its own package, and nothing that it must not know."""
    found = imported(path)
    above = set(LAYERS[LAYERS.index(layer) + 1 :])
    assert not found & above
    room = ".".join(path.relative_to(PACKAGE).with_suffix("").parts[:2])
    assert not found & (FORBIDDEN.get(layer, set()) | FORBIDDEN.get(room, set()))
    assert "ladon_storage" not in found, "import from the module, not from the facade"
    if layer not in MAY_IMPORT_PREFECT:
        assert "prefect" not in found
    if layer != "testing":
        assert "pytest" not in found


def packages(name: str) -> set[str]:
    """Return the packages around a module, which Python imports before it."""
    return {name[:at] for at, letter in enumerate(name) if letter == "."}


def imported_at_once(body: list[ast.stmt], ours: set[str]) -> Iterator[str]:
    """Yield our modules that a body imports when it runs; what a function imports comes later."""
    for node in body:
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                continue
            case ast.If(test=ast.Name("TYPE_CHECKING")):
                continue
            case ast.Import(names):
                yield from {alias.name for alias in names} & ours
            case ast.ImportFrom(str(module), names) if module in ours:
                each = {f"{module}.{alias.name}" for alias in names}
                yield from each & ours or {module}
            case ast.Try():
                for handler in node.handlers:
                    yield from imported_at_once(handler.body, ours)
        for part in ("body", "orelse", "finalbody"):
            yield from imported_at_once(getattr(node, part, []), ours)


def test_no_import_cycles() -> None:
    """Every module can be imported first."""
    files = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in PACKAGE.rglob("*.py")
    }
    graph = TopologicalSorter[str]()
    for name, path in files.items():
        for target in imported_at_once(ast.parse(path.read_text("utf-8")).body, set(files)):
            # The packages around the module itself have begun before it.
            graph.add(name, target, *packages(target) - {name, *packages(name)})
    graph.prepare()


def test_client_does_not_pay_for_prefect() -> None:
    """Importing the package's facade and its collections leaves Prefect unloaded."""
    code = (
        "import sys, ladon_storage, ladon_storage.settings, ladon_storage.collection.run\n"
        "sys.exit('prefect' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, timeout=60)


def test_every_test_states_its_guarantee() -> None:
    """A test's docstring is the promise that it keeps."""
    silent = [
        f"{path.name}: {node.name}"
        for path in sorted((ROOT / "tests").rglob("test_*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.name.startswith("test_")
        and not ast.get_docstring(node)
    ]
    assert not silent
