"""The sinks, identified by the scheme of their URL, or by ``kind``.

A sink is imported at its first use. A scheme is one of this package or the name of an entry point
in the group ``ladon_storage.sinks``. A ``kind`` is such a name too, or a user's own class as
``package.module:Class``, which need not have a URL.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ladon_storage.collection.protocols import Sink
from ladon_storage.errors import ConfigurationError
from ladon_storage.registry import Registry, made, nearest, sentence
from ladon_storage.sinks.removal import refuse_implausible_removal

if TYPE_CHECKING:
    from ladon_storage.sinks.delta.sink import DeltaSink
    from ladon_storage.sinks.jsonl.sink import JsonlSink
    from ladon_storage.sinks.sql.sink import SqlSink

__all__ = [
    "SINKS",
    "DeltaSink",
    "JsonlSink",
    "SqlSink",
    "refuse_implausible_removal",
    "sink_from",
]

_SQL = (f"{__name__}.sql.sink", "SqlSink")
_DELTA = (f"{__name__}.delta.sink", "DeltaSink")
_BY_SCHEME = {
    "sqlite": _SQL,
    "duckdb": _SQL,
    "postgresql": _SQL,
    "jsonl": (f"{__name__}.jsonl.sink", "JsonlSink"),
    "delta": _DELTA,
    **dict.fromkeys(("s3", "s3a", "gs", "az", "abfs", "abfss"), _DELTA),
}
_EXTRAS = {"deltalake": "delta", "obstore": "delta", "pyarrow": "delta"}
"""The extras that bring the optional packages of a sink."""

SINKS = Registry(
    "sink", "ladon_storage.sinks", _BY_SCHEME, methods=("write", "__aenter__", "__aexit__")
)
"""The sinks by the schemes of their URLs."""

_FIELDS = ("url", "table", "keep", "options", "secrets")
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]{0,30}")


def __getattr__(name: str) -> Any:
    """Import a sink's class at its first use."""
    scheme = next((each for each, (_, named) in _BY_SCHEME.items() if named == name), None)
    if scheme is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = _class(scheme)
    return found


def sink_from(value: object, *, credentials: Mapping[str, str] | None = None) -> Sink:
    """Return a sink as it is, or the one that a dictionary describes.

    The dictionary has the ``url``, ``table`` and ``keep`` of a sink of this package, or the
    ``kind`` of a user's own class with its fields. Instead of ``url`` it may have ``url_secret``,
    the name of the secret that holds the whole URL. A sink on an object storage may have
    ``options``, its settings, and ``secrets``, the names of the secrets that hold the others.
    Secrets are looked up when the sink is opened.

    Args:
        value: The sink or the dictionary.
        credentials: Settings of an object storage with secrets among them. They go before
            ``options``.

    Raises:
        ConfigurationError: The description names no sink, or one whose extra is not installed. The
            message names the problem, and never the URL, which may contain a password.

    >>> sink_from({"url": "sqlite:///records.db", "keep": "all"})
    SqlSink('sqlite:///records.db', table='records', keep='all')
    """
    # As for sources: to find that a dictionary is no sink takes as long as to make one.
    if type(value) is not dict and isinstance(value, Sink) and not isinstance(value, type):
        return value
    if not isinstance(value, Mapping):
        raise ConfigurationError(
            "A sink must be a mapping such as {'url': 'sqlite:///records.db'}, not a "
            f"{type(value).__name__}."
        )
    fields: dict[str, Any] = dict(value)
    if "url_secret" in fields or ("kind" not in fields and fields.get("secrets")):
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
            f"A sink has no field {unknown[0]!r}. Its fields are {', '.join(_FIELDS)}{hint or '.'}"
        )
    fields.pop("secrets", None)
    if options := _options(fields, credentials):
        fields["options"] = options
    sink: Sink = _class(scheme)(fields.pop("url"), **fields)
    return sink


def _options(fields: dict[str, Any], credentials: Mapping[str, str] | None) -> dict[str, str]:
    """Take the settings of an object storage from the fields, and add those with secrets."""
    url, given = fields["url"], fields.pop("options", None)
    if not given and not credentials:
        return {}
    _class("delta")  # with its extra
    from ladon_storage.sinks.delta.object_store import check_options

    plain = check_options(url, given) if given else {}
    secret = check_options(url, credentials, may_hold_secrets=True) if credentials else {}
    return {**plain, **secret}


def _scheme(fields: Mapping[str, Any]) -> str:
    """Return the scheme of a URL for which there is a sink."""
    url = fields.get("url")
    if not isinstance(url, str):
        if unknown := sorted(map(str, fields.keys() - set(_FIELDS))):
            hint = nearest(unknown[0], (*_FIELDS, "kind", "url_secret"))
            if hint:
                raise ConfigurationError(f"A sink has no field {unknown[0]!r}{hint}")
        raise ConfigurationError(
            "A sink requires its address as the text 'url', such as sqlite:///records.db."
        )
    scheme, found, _ = url.partition("://")
    scheme = scheme.lower()
    if found and (scheme in _BY_SCHEME or SINKS.has(scheme)):
        return scheme
    # The text before the mark may be anything, including a password.
    is_scheme = found and _SCHEME.fullmatch(scheme) is not None
    wrong = f"of the scheme {scheme!r}" if is_scheme else "without a scheme"
    raise ConfigurationError(
        f"There is no sink for an address {wrong}; there are: "
        f"{', '.join(f'{each}://' for each in SINKS.names())}."
    )


def _own(kind: object, fields: dict[str, Any]) -> Sink:
    """Return a sink of a user's own class."""
    if isinstance(kind, str) and kind in _BY_SCHEME:
        raise ConfigurationError(
            f"A sink of the kind {kind!r} is identified by its address alone. Remove kind, "
            "and set url, such as sqlite:///records.db."
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
            f"A sink at {scheme}:// requires {missing}. Install ladon-storage[{_EXTRAS[missing]}]."
        ) from error
