"""The sinks, one file each, told apart by the scheme of their address.

A sink is imported when it is asked for: nobody needs what only another one needs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

from ladon_storage.collection.interfaces import Sink
from ladon_storage.collection.sinks.sql import SqlSink
from ladon_storage.errors import ConfigurationError

__all__ = ["SqlSink", "sink_from"]

_SQL = ("sql", "SqlSink")
_DELTA = ("delta", "DeltaSink")
_BY_SCHEME = {
    "sqlite": _SQL,
    "postgresql": _SQL,
    "jsonl": ("jsonl", "JsonlSink"),
    "delta": _DELTA,
    **dict.fromkeys(("s3", "s3a", "gs", "az", "abfs", "abfss"), _DELTA),
}
_EXTRAS = {"deltalake": "delta", "pyarrow": "delta"}
"""What brings the packages that a sink imports and that not everybody has."""

_FIELDS = ("url", "table", "keep")


def sink_from(value: object) -> Sink:
    """Return a sink as it is, or the one that a dictionary of `url`, `table` and `keep` tells.

    Raises:
        ConfigurationError: It tells none, or one that is not installed; the message names what is
            wrong, and never the address, which may hold a password.

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
    named = _BY_SCHEME.get(scheme.lower()) if found else None
    if named is None:
        wrong = f"of the scheme {scheme!r}" if found else "without a scheme"
        raise ConfigurationError(
            f"There is no sink for an address {wrong}; there are: "
            f"{', '.join(f'{each}://' for each in _BY_SCHEME)}."
        )
    return _class(scheme, *named)(url, **fields)


def _class(scheme: str, module: str, name: str) -> Callable[..., Sink]:
    try:
        found: Callable[..., Sink] = getattr(import_module(f"{__name__}.{module}"), name)
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in _EXTRAS:
            raise
        raise ConfigurationError(
            f"A sink at {scheme}:// needs {missing}; install ladon-storage[{_EXTRAS[missing]}]."
        ) from error
    return found
