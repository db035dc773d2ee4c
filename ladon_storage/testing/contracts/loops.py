"""Tests of coroutines, without a plugin of pytest."""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import pytest

from ladon_storage.testing.places import SinkPlace

Rules = TypeVar("Rules", bound=type)


def in_event_loops(rules: Rules) -> Rules:
    """Make each coroutine test of a class a function that runs it in a new event loop."""
    for name, found in list(vars(rules).items()):
        if name.startswith("test_") and inspect.iscoroutinefunction(found):
            setattr(rules, name, _in_event_loop(found))
    return rules


def _in_event_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    @functools.wraps(test)
    def run(*arguments: Any, **fixtures: Any) -> None:
        asyncio.run(test(*arguments, **fixtures))

    return run


def supporting(place: SinkPlace, protocol: type) -> SinkPlace:
    """Return a place whose sinks have the methods of a protocol; skip the test of any other."""
    if not isinstance(place.make(), protocol):
        pytest.skip(f"the sink has no methods of {protocol.__name__}")
    return place
