"""Secrets that shapes of APIs name."""

from __future__ import annotations

import pytest

from tests.probing.asking import SECRET


@pytest.fixture(autouse=True)
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set the secrets that shapes name, and those that are proposed for them."""
    for name in ("OTX_KEY", "MISP_KEY", "EVENTS_KEY", "FEED_KEY", "ITEMS_API_KEY"):
        monkeypatch.setenv(name, SECRET)
