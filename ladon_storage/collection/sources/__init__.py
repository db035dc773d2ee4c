"""The sources, one file each, told apart by ``kind``."""

from __future__ import annotations

from functools import cache
from typing import Annotated, get_args

from pydantic import BaseModel, Field, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from ladon_storage.collection.interfaces import Source
from ladon_storage.collection.sources.kev import Kev
from ladon_storage.collection.sources.misp import Misp
from ladon_storage.collection.sources.nvd import Nvd
from ladon_storage.collection.sources.otx import Otx
from ladon_storage.collection.sources.rest import Rest
from ladon_storage.collection.sources.sql import SqlTable
from ladon_storage.collection.sources.taxii import Taxii
from ladon_storage.collection.sources.threatfox import ThreatFox
from ladon_storage.collection.sources.urlhaus import UrlHaus
from ladon_storage.errors import ConfigurationError

__all__ = [
    "KINDS",
    "AnySource",
    "Kev",
    "Misp",
    "Nvd",
    "Otx",
    "Rest",
    "SqlTable",
    "Taxii",
    "ThreatFox",
    "UrlHaus",
    "source_from",
]

# A new source is a name here.
_Source = ThreatFox | UrlHaus | Kev | Otx | Nvd | Misp | Taxii | Rest | SqlTable

KINDS: tuple[type[BaseModel], ...] = get_args(_Source)
"""The sources of this package, a class for each ``kind``."""

AnySource = Annotated[_Source, Field(discriminator="kind")]
"""Any source of this package; a dictionary becomes the one that its ``kind`` names."""

_NAMES = ", ".join(repr(each.model_fields["kind"].default) for each in KINDS)


@cache
def _adapter() -> TypeAdapter[_Source]:
    return TypeAdapter(AnySource)


def source_from(value: object) -> Source:
    """Return a source as it is, or the one that a dictionary describes.

    Raises:
        ConfigurationError: It describes none; the message names each wrong field.

    >>> source_from({"kind": "kev", "source_id": "kev-mirror"}).source_id
    'kev-mirror'
    >>> source_from({"kind": "kve"})  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ladon_storage.errors.ConfigurationError: A source cannot be made: kind should be one of ...
    """
    if isinstance(value, Source):
        return value
    try:
        return _adapter().validate_python(value)
    except ValidationError as error:
        details = error.errors(include_url=False, include_input=False)
    # Neither the values nor the original error: a field may hold what must not be shown.
    problems = "; ".join(_problem(detail) for detail in details)
    raise ConfigurationError(f"A source cannot be made: {problems}.")


def _problem(detail: ErrorDetails) -> str:
    if not detail["loc"] and detail["type"] in ("union_tag_invalid", "union_tag_not_found"):
        return f"kind should be one of {_NAMES}"
    # The first part of the place is the kind, which nobody wrote as a level of its own.
    field = ".".join(map(str, detail["loc"][1:]))
    return f"{field or 'it'}: {detail['msg']}"
