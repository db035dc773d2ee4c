"""The judgement of the service's responses: what they say, and whether the service says it.

- The status is judged before the body is parsed.
- A gateway whose service is down answers 404 too, so that a 404 must be the service's own.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

from pydantic import ValidationError
from pydantic_core import from_json, to_json

from ladon_storage.errors import InvalidResponseError
from ladon_storage.models import HistoryPage, Watermark, WatermarkStatus

NO_VERSION = '"0"'
"""The embedded service's tag for a source without a version."""

_ADDITIONS = frozenset({"run_id", "lease_seconds", "ledger"})
"""The fields of a watermark that only the embedded service has, which shows by its versions."""

_BESIDE_STATUS = frozenset(Watermark.model_fields) - _ADDITIONS - {"source_id", "status"}
"""The fields that an answer without a ``source_id`` needs one of: any stub has a status."""

_VERSION = re.compile(r'"\d+"', re.ASCII)
"""A tag of the embedded service. Frameworks send others of their own, made of the content."""

_NO_ROUTE = re.compile(
    r"no route|route not found|no such route|cannot get |requested url|upstream|backend|bucket|"
    r"proxy|deployed|application|\bdns\b|\bhost\b|\bservices? \""
)
_NOT_FOUND = (
    "",
    "not found",
    "404",
    "404 not found",
    "not_found",
    "notfound",
    "resource not found",
)
_ABOUT_IT = re.compile(r"watermark|collected|\bsources?(\b|_id)")
_ROUTE = re.compile(r"\S*/?watermarks/\S*")
_TAG = re.compile('(?:W/)?"[!#-~]*"')
_BESIDE = re.compile("path|instance|type|timestamp|method|ur[il]|.*id")
"""The fields of a JSON error that do not describe the fault."""


class Response(NamedTuple):
    """A response that was read to its end."""

    status: int
    etag: str | None
    body: bytes
    date: str | None
    batch: str | None = None


def watermark_of(answer: Response, source_id: str) -> Watermark:
    """Return the watermark of a 2xx.

    Raises:
        InvalidResponseError: It is none.
    """
    try:
        return _checked(answer, source_id)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        problem = f"has a wrong {'.'.join(map(str, first['loc']))}: {first['msg']}"
    except ValueError as error:
        problem = str(error)
    raise InvalidResponseError(
        f"The Storage Service's answer {answer.status} for watermark {source_id!r} {problem}; see "
        "what answers at its address.",
        answer.status,
    )


def _checked(answer: Response, source_id: str) -> Watermark:
    if answer.status not in (200, 201):
        raise ValueError("is not one of the contract's")
    is_named, is_bare = True, False
    try:
        watermark = Watermark.from_answer(answer.body, answer.etag, answer.date)
    except ValidationError as error:
        try:
            fields = from_json(answer.body)
        except ValueError:
            raise ValueError("is not JSON") from None
        if not isinstance(fields, dict):
            raise ValueError("is no JSON object") from None
        is_named, is_bare = "source_id" in fields, len(fields) == 1
        wrong = {name for each in error.errors(include_url=False) for name in each["loc"][:1]}
        is_foreign = not is_version(answer.etag) and not wrong.isdisjoint(_ADDITIONS)
        if is_named and not is_foreign:
            raise
        if is_foreign:  # the base service's own, of the same names
            fields = {name: each for name, each in fields.items() if name not in _ADDITIONS}
        fields.setdefault("source_id", source_id)
        watermark = Watermark.from_answer(to_json(fields), answer.etag, answer.date)
    if watermark.source_id != source_id:
        raise ValueError("is of another source")
    if watermark.model_fields_set.isdisjoint(("status", "last_successful_timestamp")):
        raise ValueError("has neither status nor last_successful_timestamp")
    # Any stub says {"status": "ok"}, or "success" beside its data. Taken for a watermark, an outage
    # is *never collected*. A service that leaves nulls out says no more before the first success.
    is_known = isinstance(watermark.status, WatermarkStatus)
    is_first = is_bare and watermark.status in (WatermarkStatus.RUNNING, WatermarkStatus.FAILED)
    needed = _BESIDE_STATUS if is_known else {"last_successful_timestamp"}
    if not (is_named or is_first) and needed.isdisjoint(watermark.model_fields_set):
        raise ValueError("has a status, and nothing else of a watermark")
    return watermark


def acknowledged(answer: Response, source_id: str) -> Watermark | None:
    """Return the watermark of a 2xx to a write, if it has a status and nothing else of one."""
    fields = object_of(answer.body) or {}
    if (
        answer.status not in (200, 201)
        or fields.get("status") not in list(WatermarkStatus)
        or not ({"source_id"} | _BESIDE_STATUS).isdisjoint(fields)
    ):
        return None
    fields = {name: each for name, each in fields.items() if name not in _ADDITIONS}
    named = to_json({"source_id": source_id, **fields})
    return Watermark.from_answer(named, answer.etag, answer.date)


def tag_of(header: str | None) -> str | None:
    """Return the tag that an ``If-Match`` can have of an ``ETag``: a weak one is for caches alone.

    The embedded service sends no weak one, so a version was weakened on its way, as by a gateway
    that compresses.
    """
    if header is None or not header.startswith("W/"):
        return header
    tag = header.removeprefix("W/")
    return tag if is_version(tag) else None


def is_version(tag: str | None) -> bool:
    """Return whether a tag is a version of the embedded service, which shows its additions."""
    return tag is not None and _VERSION.fullmatch(tag) is not None


def history_of(answer: Response, source_id: str) -> HistoryPage:
    """Return the page of a 2xx.

    Raises:
        InvalidResponseError: It is none, or of another source.
    """
    try:
        page = HistoryPage.model_validate_json(answer.body)
        if all(change.source_id == source_id for change in page.changes):
            return page
    except ValidationError:
        pass
    raise InvalidResponseError(
        f"The Storage Service's answer {answer.status} for the history of watermark {source_id!r} "
        "is none; see what answers at its address.",
        answer.status,
    )


def answers_of(answer: Response, source_ids: Sequence[str]) -> list[Response]:
    """Return the answer to each request of a batch.

    Raises:
        InvalidResponseError: They are not one for each request, in the order of the requests.
    """
    told = (object_of(answer.body) or {}).get("answers")
    if (
        answer.status == 200
        and isinstance(told, list)
        and all(map(_is_answer, told))
        and [each["source_id"] for each in told] == list(source_ids)
    ):
        return [
            Response(each["status"], each.get("etag"), to_json(each.get("body")), answer.date)
            for each in told
        ]
    raise InvalidResponseError(
        f"The Storage Service's answer {answer.status} to a batch of {len(source_ids)} requests "
        "does not answer each of them in its place; see what answers at its address.",
        answer.status,
    )


def _is_answer(told: object) -> bool:
    if not isinstance(told, dict) or type(told.get("status")) is not int:
        return False
    etag = told.get("etag")
    # It goes into a header again.
    is_tag = etag is None or (isinstance(etag, str) and _TAG.fullmatch(etag) is not None)
    return is_tag and "source_id" in told


def object_of(body: bytes) -> dict[str, Any] | None:
    """Return the JSON object of a body, if the body is one."""
    try:
        fields = from_json(body)
    except ValueError:
        return None
    return fields if isinstance(fields, dict) else None


def is_own(fields: dict[str, Any] | None, etag: str | None) -> bool:
    """Return whether a 404 is the embedded service's *never collected*.

    A tag alone is no proof: a gateway may serve a page with one.
    """
    return fields is not None and (etag == NO_VERSION or fields.get("field") == "source_id")


def _said_in(value: object, name: str = "") -> list[str]:
    """Return the words of a JSON value, without the requested route."""
    if isinstance(value, dict):
        return [said for key, each in value.items() for said in _said_in(each, key)]
    if isinstance(value, list):
        return [said for each in value for said in _said_in(each, name)]
    if not isinstance(value, str) or (name != "source_id" and _BESIDE.fullmatch(name.lower())):
        return []
    return [_ROUTE.sub("", value.lower()).strip(" .!")]


def names_a_route(fields: dict[str, Any]) -> bool:
    """Return whether a 404 is about a missing route, as a gateway's is."""
    return any(_NO_ROUTE.search(said) for said in _said_in(fields))


def is_about(fields: dict[str, Any], source_id: str) -> bool:
    """Return whether a 404 is about the watermark, and not about something else that is missing."""
    named = re.compile(rf"(?<!\w){re.escape(source_id.lower())}(?!\w)")
    return any(_ABOUT_IT.search(said) or named.search(said) for said in _said_in(fields))


def says_nothing(fields: dict[str, Any]) -> bool:
    """Return whether a 404 says no more than its status, as both a service and a gateway may."""
    return all(said in _NOT_FOUND for said in _said_in(fields))


def unhealthy(answer: Response) -> str | None:
    """Return the reason why a response is not a healthy service's, or ``None``."""
    if answer.status != 200:
        return f"it answered {answer.status} to its health check."
    try:
        fields = from_json(answer.body)
    except ValueError:
        return "its health check is not JSON; see what answers there."
    if isinstance(fields, dict) and fields.get("status") == "healthy":
        return None
    return "it does not say that it is healthy."


def unpacked(body: bytes, encoding: str, limit: int) -> bytes | None:
    """Return at most ``limit`` bytes and one more of the decompressed body, or ``None``."""
    windows = {"gzip": 31, "x-gzip": 31, "deflate": 15}
    try:
        return zlib.decompressobj(windows[encoding]).decompress(body, limit + 1)
    except (KeyError, zlib.error):
        return None
