"""The contracts of sinks and sources, as test classes of pytest.

Each test runs its coroutine in an event loop of its own, so that no plugin for asyncio is needed.
"""

from __future__ import annotations

import pkgutil

try:
    import pytest
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "The contracts of sinks and sources require pytest. Install ladon-storage[testing].",
        name=error.name,
    ) from error

pytest.register_assert_rewrite(
    *(each.name for each in pkgutil.iter_modules(__path__, f"{__name__}."))
)
