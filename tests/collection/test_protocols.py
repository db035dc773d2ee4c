"""What a sink supports is found by its methods, wherever they are."""

from __future__ import annotations

from typing import Any

import pytest

from ladon_storage.collection.protocols import (
    SupportsCount,
    SupportsHistory,
    SupportsLookup,
    SupportsPosition,
    SupportsRemoval,
    SupportsReversion,
    supports,
)

PROTOCOLS = {
    "watermark_history": SupportsHistory,
    "position": SupportsPosition,
    "mark_removed": SupportsRemoval,
    "revert": SupportsReversion,
    "lacking": SupportsLookup,
    "count_records": SupportsCount,
}


async def _called(*_: object) -> None:
    """Do nothing."""


class _Asked:
    """A sink that passes every attribute on."""

    def __getattr__(self, name: str) -> Any:
        return _called


def _with(name: str, value: object) -> object:
    found = type("Opened", (), {})()
    setattr(found, name, value)
    return found


@pytest.mark.parametrize("name", PROTOCOLS)
def test_sink_supports_what_its_class_its_object_or_its_getattr_has(name: str) -> None:
    """The answer is that of `isinstance`, also for a method that is set to ``None``."""
    protocol: Any = PROTOCOLS[name]
    has = type("Has", (), {name: _called})()
    inherits = type("Inherits", (type(has),), {})()
    blocked = type("Blocked", (type(has),), {name: None})()
    others = [_with(each, _called) for each in PROTOCOLS if each != name]
    for sink in (has, inherits, _with(name, _called), _Asked()):
        assert supports(sink, protocol)
        assert isinstance(sink, protocol)
    for sink in (object(), blocked, _with(name, None), *others):
        assert not supports(sink, protocol)
        assert not isinstance(sink, protocol)
