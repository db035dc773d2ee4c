"""The settings that the feeds of abuse.ch share: an address, and a key where one is needed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def with_address(values: Any, addresses: Mapping[str, str]) -> Any:
    """Return settings with the address of abuse.ch, unless they have one of their own.

    Args:
        values: The settings.
        addresses: The address of each ``via``, the default one first.
    """
    if isinstance(values, dict) and not values.get("url"):
        return values | {"url": addresses.get(values.get("via", next(iter(addresses))), "")}
    return values


def require_key(key: str | None, via: str, url: str) -> None:
    """Raise a `ValueError` if a feed has no key and needs one: the API, or an address with it."""
    if key is None and (via == "api" or "{key}" in url):
        raise ValueError("it requires a key; set key to the name of its secret")
