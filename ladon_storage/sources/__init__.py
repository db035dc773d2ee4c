"""The sources, identified by ``kind``.

A source is imported at its first use. A kind is a name of this package, the name of an entry point
in the group ``ladon_storage.sources``, or a user's own class as ``package.module:Class``.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from datetime import timedelta
from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Any, Union

from pydantic import BaseModel, Field

from ladon_storage.collection.protocols import Source
from ladon_storage.errors import ConfigurationError, told
from ladon_storage.registry import Problem, Registry, fields_of, made, sentence
from ladon_storage.values import check_source_id

if TYPE_CHECKING:
    from ladon_storage.sources.kev import Kev
    from ladon_storage.sources.misp import Misp
    from ladon_storage.sources.nvd import Nvd
    from ladon_storage.sources.otx import Otx
    from ladon_storage.sources.rest.source import RestApi
    from ladon_storage.sources.sql.source import SqlTable
    from ladon_storage.sources.taxii import Taxii
    from ladon_storage.sources.threatfox import ThreatFox
    from ladon_storage.sources.urlhaus import UrlHaus

    KINDS: tuple[type[BaseModel], ...]
    AnySource = ThreatFox | UrlHaus | Kev | Otx | Nvd | Misp | Taxii | RestApi | SqlTable

__all__ = [
    "KINDS",
    "SOURCES",
    "AnySource",
    "Kev",
    "Misp",
    "Nvd",
    "Otx",
    "RestApi",
    "SqlTable",
    "Taxii",
    "ThreatFox",
    "UrlHaus",
    "made_source",
    "source_from",
    "with_source_id",
]

_PLACES = {"rest": "rest.source", "sql": "sql.source"}
"""The modules of sources that have a package of their own."""

# A new source is a line here, and one above for type checkers.
_SHIPPED = {
    "threatfox": "ThreatFox",
    "urlhaus": "UrlHaus",
    "kev": "Kev",
    "otx": "Otx",
    "nvd": "Nvd",
    "misp": "Misp",
    "taxii": "Taxii",
    "rest": "RestApi",
    "sql": "SqlTable",
}

SOURCES = Registry(
    "source",
    "ladon_storage.sources",
    {kind: (f"{__name__}.{_PLACES.get(kind, kind)}", name) for kind, name in _SHIPPED.items()},
    methods=("pages",),
    attributes=("source_id", "overlap"),
)
"""The sources by their kinds."""


def __getattr__(name: str) -> Any:
    """Import a source's class at its first use, and build what depends on all of them.

    ``KINDS`` are the classes of this package's sources. ``AnySource`` is the union of them: a
    dictionary becomes the one that its ``kind`` names.
    """
    if name == "KINDS":
        found: Any = tuple(SOURCES.find(kind) for kind in _SHIPPED)
    elif name == "AnySource":
        kinds = __getattr__("KINDS")
        found = Annotated[Union[kinds], Field(discriminator="kind")]  # noqa: UP007 - of a tuple
    elif (kind := next((each for each, of in _SHIPPED.items() if of == name), None)) is not None:
        found = getattr(import_module(f"{__name__}.{_PLACES.get(kind, kind)}"), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = found
    return found


def source_from(value: object) -> Source:
    """Return a source as it is, or the one that a dictionary describes.

    The ``kind`` of the dictionary names its class, and its other fields are the class's.

    Raises:
        ConfigurationError: It describes no source; the message names each wrong field.

    >>> source_from({"kind": "kev", "source_id": "kev-mirror"}).source_id
    'kev-mirror'
    >>> source_from({"kind": "kve"})  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ladon_storage.errors.ConfigurationError: A source cannot be made: kind should be one of ...
    """
    # Most are a dictionary, and to find that it is no source takes longer than to make one.
    if type(value) is not dict and isinstance(value, Source) and not isinstance(value, type):
        return value
    source, problems = made_source(value)
    if source is None:
        problem = "; ".join(str(each) if each.field != "kind" else each.text for each in problems)
        raise ConfigurationError(sentence(f"A source cannot be made: {problem}"))
    return source


def made_source(
    value: object, source_id: str | None = None, also: Iterable[str] = ()
) -> tuple[Source | None, list[Problem]]:
    """Return the source of a dictionary and no problems, or ``None`` and the problems.

    Args:
        value: The dictionary.
        source_id: The source's name where the dictionary gives none and the class takes one.
        also: Further names that are written next to the source's fields, for hints.
    """
    if not isinstance(value, Mapping):
        return None, [Problem("", "Input should be a dictionary with a kind")]
    kind = value.get("kind")
    try:
        found = SOURCES.find(kind)
        if source_id is not None:
            value = with_source_id(value, source_id)
    except ConfigurationError as error:
        return None, [Problem("kind", str(error).removesuffix("."))]
    known = fields_of(found)
    fields = {name: each for name, each in value.items() if name != "kind"}
    if kind in SOURCES.shipped or (known or {}).get("kind"):
        fields["kind"] = kind
    source, problems = made(found, fields, also)
    if not problems and kind not in SOURCES.shipped:
        problems = _wrong(source, str(kind))
    return (None, problems) if problems else (source, [])


def with_source_id(fields: Mapping[str, Any], source_id: str) -> dict[str, Any]:
    """Return a source's dictionary with its name, where it gives none and its class takes one.

    Raises:
        ConfigurationError: There is no class of its kind.
    """
    known = fields_of(SOURCES.find(fields.get("kind")))
    takes_one = known is None or "source_id" in known
    return {**({"source_id": source_id} if takes_one else {}), **fields}


def _wrong(source: Any, kind: str) -> list[Problem]:
    """Return the mistake in a user's own class that would fail a run at once, if any."""
    try:
        SOURCES.check_made(source, kind)
    except ConfigurationError as error:
        return [Problem("kind", str(error).removesuffix("."))]
    if inspect.iscoroutinefunction(source.pages):
        text = "pages is a coroutine; make it an async generator, which yields each page"
        return [Problem("kind", f"The class {kind!r} is no source: {text}")]
    try:
        source_id, overlap = source.source_id, source.overlap
        check_source_id(source_id)
    except Exception as error:  # of a class that is not ours
        return [Problem("source_id", f"{type(error).__name__}: {told(error)}")]
    if overlap is not None and (not isinstance(overlap, timedelta) or overlap < timedelta(0)):
        return [Problem("overlap", "should be a timedelta of 0 or more, or None")]
    return []
