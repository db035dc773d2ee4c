"""The checks of requests: each part is valid, or refused with its field and the reason.

- No request of a client may end in a 5xx. So every part of a request is read by a function here,
  and each raises ``RequestError`` with a 4xx, whatever arrived.
- A body must be declared as JSON. A web page can make a browser send other types to a loopback
  address without a preflight request, but not JSON.
"""

from __future__ import annotations

import asyncio
import json
import re
from typing import Annotated, Literal, TypeVar
from urllib.parse import parse_qsl, unquote_to_bytes

from aiohttp import ClientError, hdrs, web
from aiohttp.http_exceptions import HttpProcessingError
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ladon_storage.errors import RequestError
from ladon_storage.models import UNCONDITIONAL, Precondition, WatermarkStatus
from ladon_storage.values import SourceId, check_source_id

Model = TypeVar("Model", bound=BaseModel)

MAX_BODY_BYTES = 1 << 20
BODY_TIMEOUT_SECONDS = 10.0
"""The longest time for a body to arrive; it also bounds how long one delays a shutdown."""

Limit = Annotated[int, Field(ge=1, le=1000, description="How many on one page.")]


class ListQuery(BaseModel):
    """The query of a list."""

    # A misspelt filter that is ignored would list everything.
    model_config = ConfigDict(frozen=True, extra="forbid")

    status: Annotated[
        WatermarkStatus | None, Field(description="Only those whose last run had this outcome.")
    ] = None
    older_than_seconds: Annotated[
        int | None,
        Field(
            ge=0,
            le=10**11,
            description="Only those without a success for so many seconds, or with one that is in "
            "the future.",
        ),
    ] = None
    prefix: Annotated[
        str, Field(max_length=255, description="Only those whose names begin with it.")
    ] = ""
    stale: Annotated[
        bool | None,
        Field(description="Only those that say running and were not heard of for their lease."),
    ] = None
    limit: Limit = 100
    after: Annotated[SourceId | None, Field(description="The cursor of the page before.")] = None


class HistoryQuery(BaseModel):
    """The query of a history."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    moved: Annotated[
        bool, Field(description="Only the changes that moved or deleted the watermark.")
    ] = False
    limit: Limit = 100
    before: Annotated[
        int | None, Field(ge=1, lt=2**63, description="The cursor of the page before.")
    ] = None


class MetricsQuery(BaseModel):
    """The query of the metrics."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sources: Annotated[
        Literal["worst", "all"],
        Field(
            description="Which sources are listed: as many of the worst as keep a scrape small, or "
            "all of them by pages."
        ),
    ] = "worst"
    limit: Limit = 1000
    after: Annotated[SourceId | None, Field(description="The last source of the page before.")] = (
        None
    )


def source_id(request: web.Request, segment_number: int = 4) -> str:
    """Return the source that the path names, decoded exactly once and without loss.

    Args:
        request: The request.
        segment_number: Where the source's name is in the path.

    Raises:
        RequestError: With 400, it is no percent-encoded UTF-8, or cannot name a source.
    """
    # From the raw path: the router's own decoding makes the same text of %FF and of %25FF.
    segment = request.rel_url.raw_path.split("/")[segment_number]
    try:
        name = _decoded(segment) if "%" in segment or not segment.isascii() else segment
    except UnicodeError:
        raise RequestError("source_id should be percent-encoded UTF-8.", 400, "source_id") from None
    try:
        return check_source_id(name)
    except ValueError as error:
        raise RequestError(f"{error}.", 400, "source_id") from None


def _decoded(segment: str) -> str:
    if re.search("%(?![0-9A-Fa-f]{2})", segment):
        raise UnicodeError
    return unquote_to_bytes(segment.encode("utf-8", "surrogateescape")).decode("utf-8")


def query(request: web.Request, model: type[Model]) -> Model:
    """Return the query of a request.

    Raises:
        RequestError: With 400, a parameter is unknown, repeated or wrong.
    """
    values = request.query
    for name in values:
        if len(values.getall(name)) > 1:
            raise RequestError(f"Parameter {name!r} is repeated; send it once.", 400, name)
    return checked(dict(values), model)


def checked(values: dict[str, str], model: type[Model]) -> Model:
    """Return the parameters of a request as a model.

    Raises:
        RequestError: With 400, a parameter is unknown or wrong.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise _refused(error, 400, "Parameter") from None


async def form(request: web.Request, most_bytes: int) -> dict[str, str]:
    """Return the fields of a form that a browser sent.

    Raises:
        RequestError: With 413 it is too large; 408 it did not arrive in time.
    """
    if (request.content_length or 0) > most_bytes or request.content_length is None:
        raise RequestError("The form is too large.", 413)
    try:
        async with asyncio.timeout(BODY_TIMEOUT_SECONDS):
            text = await request.text()
    except TimeoutError:
        raise RequestError("The form did not arrive in time; send it again.", 408) from None
    except (ValueError, LookupError, HttpProcessingError, ClientError, ConnectionError):
        raise RequestError("The form cannot be read; send it again.", 400) from None
    return dict(parse_qsl(text, keep_blank_values=True))


async def body(request: web.Request, model: type[Model]) -> Model:
    """Return the body of a request, read to its end.

    Raises:
        RequestError: With 415 it is not declared as JSON; 413 it is too large; 408 it did not
            arrive in time; 400 it did not arrive whole, or is no JSON; 422 a field is wrong.
    """
    declared = request.content_type
    if declared != "application/json" and not declared.endswith("+json"):
        raise RequestError(
            f"Content-Type is {declared!r}; send application/json.", 415, "Content-Type"
        )
    headers = request.headers
    encoding = ""
    if hdrs.CONTENT_ENCODING in headers:
        encoding = ", ".join(headers.getall(hdrs.CONTENT_ENCODING)).lower()
    if encoding not in _ENCODINGS:
        raise RequestError(
            f"Content-Encoding is {encoding!r}; send gzip, deflate, or the body as it is.",
            415,
            hdrs.CONTENT_ENCODING,
        )
    try:
        if request.content.is_eof():  # Arrived with its headers, as nearly all do.
            # A middleware of an application around may have read it; then it is kept.
            text = request.content.read_nowait() or await request.read()
            if len(text) > MAX_BODY_BYTES:
                raise web.HTTPRequestEntityTooLarge(MAX_BODY_BYTES, len(text))
        else:
            async with asyncio.timeout(BODY_TIMEOUT_SECONDS):
                text = await request.read()
    except TimeoutError:
        raise RequestError(
            f"The body did not arrive within {BODY_TIMEOUT_SECONDS:g} s; send it again.", 408
        ) from None
    except (HttpProcessingError, ClientError, web.RequestPayloadError, ConnectionError):
        raise RequestError(
            "The body did not arrive whole, or not in its declared encoding; send it again.", 400
        ) from None
    try:
        # `model_validate_json` calls this too, after looking at options that are not used here.
        found: Model = model.__pydantic_validator__.validate_json(text)
    except ValidationError as error:
        if error.errors()[0]["type"] == "json_invalid":
            raise RequestError(f"The body is not JSON ({_reason(error)}).", 400) from None
        raise _refused(error, 422, "Field") from None
    _check_keys(text)
    return found


# What aiohttp decodes, if it can: it passes a body in any other encoding on as it came.
_ENCODINGS = frozenset({"", "identity", "gzip", "deflate", "br", "zstd"})


def _check_keys(text: bytes) -> None:
    """Refuse JSON with a key twice: its reader and its writer may mean different ones.

    Raises:
        RequestError: With 400, a key is repeated.
    """
    _KEYS.decode(text.decode())


def _unrepeated(pairs: list[tuple[str, object]]) -> None:
    if len(dict(pairs)) == len(pairs):
        return
    seen: set[str] = set()
    for key, _ in pairs:
        if key in seen:
            raise RequestError(f"Key {key!r} is repeated in the body; send it once.", 400, key)
        seen.add(key)


# The numbers are of no interest, and one of many digits would cost.
_KEYS = json.JSONDecoder(object_pairs_hook=_unrepeated, parse_int=str, parse_float=str)


_TAG = '(?:W/)?"[!#-~]*"'
TAGS = f"{_TAG}(?:[ \t]*,[ \t]*{_TAG})*"
"""The pattern of a list of version tags."""
_TAGS = re.compile(TAGS)


def precondition(request: web.Request) -> Precondition:
    """Return the condition of a write, from both headers.

    Raises:
        RequestError: With 400, one of them is malformed.
    """
    if "If-Match" not in request.headers and "If-None-Match" not in request.headers:
        return UNCONDITIONAL
    return Precondition(if_match(request), if_none_match(request))


def if_match(request: web.Request) -> str | None:
    """Return the version tags of ``If-Match``; ``*`` is any, and ``None`` is no condition.

    Raises:
        RequestError: With 400, it is neither ``*`` nor a list of quoted tags.
    """
    if "If-Match" not in request.headers:
        return None
    header = ", ".join(request.headers.getall("If-Match"))
    if header != "*" and not _TAGS.fullmatch(header):
        raise RequestError(
            'If-Match should be * or the ETag of the watermark, such as "7" with its quotes.',
            400,
            "If-Match",
        )
    return header


def if_none_match(request: web.Request) -> bool:
    """Return whether ``If-None-Match`` requires that no watermark is stored yet.

    Raises:
        RequestError: With 400, it is something other than ``*``.
    """
    header = request.headers.get("If-None-Match")
    if header not in (None, "*"):
        raise RequestError("If-None-Match should be * on a write.", 400, "If-None-Match")
    return header == "*"


def _refused(error: ValidationError, status: int, kind: str) -> RequestError:
    location = error.errors()[0]["loc"]
    if not location:
        return RequestError("The body should be a JSON object.", status)
    field = str(location[0])
    return RequestError(f"{kind} {field!r} is wrong: {_reason(error)}.", status, field)


def _reason(error: ValidationError) -> str:
    """Return pydantic's reason as the end of a sentence, without the client's text."""
    reason = error.errors()[0]["msg"].removeprefix("Value error, ").removeprefix("Invalid JSON: ")
    is_word = reason[1:2].islower()  # and not EOF
    return reason[:1].lower() + reason[1:] if is_word else reason
