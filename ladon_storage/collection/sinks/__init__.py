"""The sinks, one file each, told apart by the scheme of their address."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ladon_storage.collection.interfaces import Sink
from ladon_storage.collection.sinks.sql import SqlSink
from ladon_storage.errors import ConfigurationError

__all__ = ["SqlSink", "sink_from"]

_BY_SCHEME = {"sqlite": SqlSink}
_FIELDS = ("url", "table", "keep")


def sink_from(value: object) -> Sink:
    """Return a sink as it is, or the one that a dictionary of `url`, `table` and `keep` tells.

    Raises:
        ConfigurationError: It tells none; the message names what is wrong, and never the address,
            which may hold a password.

    >>> sink_from({"url": "sqlite:///records.db", "keep": "all"})
    SqlSink('sqlite:///records.db', table='records', keep='all')
    """
    if isinstance(value, Sink):
        return value
    if not isinstance(value, Mapping):
        raise ConfigurationError(
            "A sink is told by a dictionary such as {'url': 'sqlite:///records.db'}, "
            f"not by a {type(value).__name__}."
        )
    fields: dict[str, Any] = dict(value)
    if unknown := sorted(map(str, fields.keys() - set(_FIELDS))):
        raise ConfigurationError(
            f"A sink has no field {unknown[0]!r}; its fields are {', '.join(_FIELDS)}."
        )
    url = fields.pop("url", None)
    if not isinstance(url, str):
        raise ConfigurationError(
            "A sink needs its address as the text 'url', such as sqlite:///records.db."
        )
    scheme, found, _ = url.partition("://")
    sink = _BY_SCHEME.get(scheme.lower()) if found else None
    if sink is None:
        named = f"of the scheme {scheme!r}" if found else "without a scheme"
        raise ConfigurationError(
            f"There is no sink for an address {named}; there are: "
            f"{', '.join(f'{each}://' for each in _BY_SCHEME)}."
        )
    return sink(url, **fields)
