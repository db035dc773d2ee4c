"""The public names of a package, each imported at its first use.

- Importing a package costs nothing of what it offers.
- A name that a module and a function share is the function, in whatever order they are imported:
  ``ladon_storage.flows.collect`` is the flow, also after an import from the module of that name.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib import import_module
from types import ModuleType
from typing import Any


class _LazyPackage(ModuleType):
    """A package that imports its public names at their first use."""

    _modules: Mapping[str, str]

    def __getattr__(self, name: str) -> Any:
        module = self._modules.get(name) if not name.startswith("_") else None
        if module is None:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        found = getattr(import_module(f"{self.__name__}.{module}"), name)
        setattr(self, name, found)
        return found

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; Python sets a module of the package here when it has imported it."""
        if isinstance(value, ModuleType) and self._modules.get(name) == name:
            value = getattr(value, name)
        super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *self._modules})


def offer(package: str, modules: Mapping[str, tuple[str, ...]]) -> None:
    """Offer public names of a package's modules as the package's own.

    Args:
        package: The package's ``__name__``.
        modules: The names that each module offers, the module relative to the package.
    """
    offered = {name: module for module, names in modules.items() for name in names}
    found = sys.modules[package]
    found.__dict__["_modules"] = offered
    found.__class__ = _LazyPackage
