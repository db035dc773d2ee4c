"""Large JSON documents, record by record, with bounded objects, memory and blocking time.

- A small document is parsed as a whole. The records of a larger one are parsed one by one, first to
  check that it is JSON to its end, and again whenever they are read. If there are few enough, they
  are kept from the first time.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from hashlib import blake2b
from importlib.metadata import version
from typing import Any, ParamSpec, TypeGuard, TypeVar

from pydantic import BaseModel

from ladon_storage.collection.protocols import KnownContent
from ladon_storage.sources.json import bounds
from ladon_storage.sources.json.items import value_at
from ladon_storage.sources.json.many import ManyItems, ManyKeyed
from ladon_storage.sources.json.scan import Scan
from ladon_storage.sources.json.spooled import SpooledBody
from ladon_storage.sources.json.unique_keys import parse_around

T = TypeVar("T")
P = ParamSpec("P")

_VERSION = version("ladon-storage")
_UTF_8 = ("utf-8", "utf-8-sig")


@dataclass(frozen=True)
class Document:
    """A document, separate from its records.

    Args:
        envelope: All of it; if it is large, with an empty value in place of the records.
        items: The value at the path of the records: a list or an object whose keys are the ids, or
            a lazy equivalent if they are many; ``None``: nothing is there.
    """

    envelope: Any
    items: Any


def parse(text: bytes | str, path: str = "") -> Any:
    """Return a JSON document, parsed at once, whose records are at a dotted path.

    Raises:
        ValueError: It is invalid; a `TooMuchError` if it has more values than are held at once, a
            `DuplicateKeyError` if it has a key twice around its records or in place of them.
        RecursionError: It is nested too deeply.
    """
    if len(text) > bounds.AT_ONCE_BYTES:
        bounds.check_length(text)
        bounds.check_size(text)
    return parse_around(text, path)


async def read_document(body: bytes | SpooledBody, path: str) -> Document:
    """Return a document whose records are at a dotted path, without blocking the event loop.

    Raises:
        ValueError: It is invalid; a `TooMuchError` if a record or the envelope is too large.
        RecursionError: It is nested too deeply.
    """
    if len(body) <= bounds.AT_ONCE_BYTES:
        document = parse(bytes(body), path)
        return Document(document, value_at(document, path))
    encoding = json.detect_encoding(body[:4])
    if encoding not in _UTF_8:
        if len(body) > bounds.MAX_ITEM_BYTES:
            raise bounds.TooMuchError(
                f"it is larger than {bounds.MAX_ITEM_BYTES} bytes, and not UTF-8"
            )
        body = bytes(body).decode(encoding).encode("utf-8", "surrogatepass")
    scan = Scan(body, len("\ufeff".encode()) if encoding == "utf-8-sig" else 0)
    try:
        return Document(*await asyncio.to_thread(scan.read, path))
    finally:
        scan.is_wanted = False


def document_digest(source: BaseModel, body: bytes) -> str:
    """Return the digest of a document that was read with these settings, by this version.

    The way to reach it makes no difference; the names of secrets are no secrets.
    """
    settings = source.model_dump_json(exclude={"connection"})
    digest = blake2b(f"{_VERSION}\0{settings}\0".encode(), digest_size=15)
    digest.update(body)
    return digest.hexdigest()


async def whole_document(source: BaseModel, body: bytes, until: datetime | None) -> dict[str, Any]:
    """Return the marks of the pages of a document that was delivered as a whole.

    A backfill takes a part of it, and says nothing about the rest in the sink.
    """
    digest = None
    if until is None:
        digest = await off_loop(len(body), document_digest, source, body)
    return {"completeness": "whole document", "document": digest}


def is_known(marks: Mapping[str, Any], known: KnownContent | None) -> bool:
    """Return whether the sink has all records of the document that has these marks."""
    document = marks["document"]
    return document is not None and known is not None and known.document == document


async def off_loop(size: int, make: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Return what a function makes of ``size`` bytes, in a thread if they are many."""
    if size <= bounds.AT_ONCE_BYTES:
        return make(*args, **kwargs)
    return await asyncio.to_thread(make, *args, **kwargs)


async def in_turns(pages: Iterator[T], size: int) -> AsyncIterator[T]:
    """Yield items made of ``size`` bytes; many are made in a thread, off the event loop."""
    if size <= bounds.AT_ONCE_BYTES:
        for page in pages:
            yield page
        return
    while (made := await asyncio.to_thread(next, pages, None)) is not None:
        yield made


def is_list(items: object) -> TypeGuard[Sequence[Any]]:
    """Return whether the value at the path of the records is a list."""
    return isinstance(items, list | ManyItems)


def beside_keyed(items: object) -> dict[str, Any]:
    """Return the values of an object of records that cannot be records; of a large one, none.

    >>> beside_keyed({"7": {"id": 7}, "8": [{"id": 8}], "error": "timed out"})
    {'error': 'timed out'}
    """
    if not isinstance(items, dict):
        return {}
    return {
        key: value
        for key, value in items.items()
        if not isinstance(value[0] if isinstance(value, list) and value else value, dict)
    }


def is_keyed(items: object) -> TypeGuard[Mapping[str, Any]]:
    """Return whether the value at the path of the records is an object."""
    return isinstance(items, dict | ManyKeyed)
