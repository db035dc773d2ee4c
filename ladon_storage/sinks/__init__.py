"""The sinks, one file each, told apart by the scheme of their address, or by ``kind``.

A sink is imported when it is asked for. A scheme is one of this package or the name of an entry
point in the group ``ladon_storage.sinks``. A ``kind`` is such a name too, or a class of one's own
as ``package.module:Class``, which need not have an address.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ladon_storage.collection.protocols import Sink
from ladon_storage.errors import ConfigurationError
from ladon_storage.registry import Registry, made, nearest, sentence

if TYPE_CHECKING:
    from ladon_storage.sinks.sql.sink import SqlSink

__all__ = ["SINKS", "SqlSink", "sink_from"]

_SQL = (f"{__name__}.sql.sink", "SqlSink")
_DELTA = (f"{__name__}.delta.sink", "DeltaSink")
_BY_SCHEME = {
    "sqlite": _SQL,
    "postgresql": _SQL,
    "jsonl": (f"{__name__}.jsonl.sink", "JsonlSink"),
    "delta": _DELTA,
    **dict.fromkeys(("s3", "s3a", "gs", "az", "abfs", "abfss"), _DELTA),
}
_EXTRAS = {"deltalake": "delta", "pyarrow": "delta"}
"""What brings the packages that a sink imports and that not everybody has."""

SINKS = Registry(
    "sink", "ladon_storage.sinks", _BY_SCHEME, methods=("write", "__aenter__", "__aexit__")
)
"""The sinks by the schemes of their addresses."""

_FIELDS = ("url", "table", "keep")
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]{0,30}")


def __getattr__(name: str) -> Any:
    """Import `SqlSink` at its first use."""
    if name != "SqlSink":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = _class("sqlite")
    return found


def sink_from(value: object) -> Sink:
    """Return a sink as it is, or the one that a dictionary describes.

    The dictionary has the ``url``, ``table`` and ``keep`` of a sink of this package, or the
    ``kind`` of a class of one's own with its fields. Instead of ``url`` it may have ``url_secret``,
    the name of the secret that holds the whole address; it is looked up when the sink is opened.

    Raises:
        ConfigurationError: It describes none, or one that is not installed; the message names what
            is wrong, and never the address, which may hold a password.

    >>> sink_from({"url": "sqlite:///records.db", "keep": "all"})
    SqlSink('sqlite:///records.db', table='records', keep='all')
    """
    if isinstance(value, Sink) and not isinstance(value, type):
        return value
    if not isinstance(value, Mapping):
        raise ConfigurationError(
            "A sink is told by a dictionary such as {'url': 'sqlite:///records.db'}, "
            f"not by a {type(value).__name__}."
        )
    fields: dict[str, Any] = dict(value)
    if "url_secret" in fields:
        from ladon_storage.sinks.secret_address import SecretAddressSink

        return SecretAddressSink(fields, sink_from)
    if "kind" in fields:
        return _own(fields.pop("kind"), fields)
    scheme = _scheme(fields)
    if scheme not in _BY_SCHEME:
        return _own(scheme, fields)
    if unknown := sorted(map(str, fields.keys() - set(_FIELDS))):
        hint = nearest(unknown[0], _FIELDS)
        raise ConfigurationError(
            f"A sink has no field {unknown[0]!r}; its fields are {', '.join(_FIELDS)}{hint or '.'}"
        )
    sink: Sink = _class(scheme)(fields.pop("url"), **fields)
    return sink


def _scheme(fields: Mapping[str, Any]) -> str:
    """Return the scheme of an address for which there is a sink."""
    url = fields.get("url")
    if not isinstance(url, str):
        if unknown := sorted(map(str, fields.keys() - set(_FIELDS))):
            hint = nearest(unknown[0], (*_FIELDS, "kind", "url_secret"))
            if hint:
                raise ConfigurationError(f"A sink has no field {unknown[0]!r}{hint}")
        raise ConfigurationError(
            "A sink needs its address as the text 'url', such as sqlite:///records.db."
        )
    scheme, found, _ = url.partition("://")
    scheme = scheme.lower()
    if found and (scheme in _BY_SCHEME or SINKS.has(scheme)):
        return scheme
    # What stands before the mark may be anything, a password included.
    is_scheme = found and _SCHEME.fullmatch(scheme) is not None
    wrong = f"of the scheme {scheme!r}" if is_scheme else "without a scheme"
    raise ConfigurationError(
        f"There is no sink for an address {wrong}; there are: "
        f"{', '.join(f'{each}://' for each in SINKS.names())}."
    )


def _own(kind: object, fields: dict[str, Any]) -> Sink:
    """Return a sink of a class of one's own."""
    if isinstance(kind, str) and kind in _BY_SCHEME:
        raise ConfigurationError(
            f"A sink of the kind {kind!r} is told by its address alone; leave kind out, and set "
            "url, such as sqlite:///records.db."
        )
    try:
        found = SINKS.find(kind)
    except ConfigurationError as error:
        raise ConfigurationError(f"A sink cannot be made: {error}") from error.__cause__
    sink, problems = made(found, fields)
    if problems:
        text = "; ".join(map(str, problems))
        raise ConfigurationError(sentence(f"A sink of the class {kind!r} cannot be made: {text}"))
    SINKS.check_made(sink, str(kind))
    own: Sink = sink
    return own


def _class(scheme: str) -> Any:
    try:
        return SINKS.find(scheme)
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in _EXTRAS:
            raise
        raise ConfigurationError(
            f"A sink at {scheme}:// needs {missing}; install ladon-storage[{_EXTRAS[missing]}]."
        ) from error
