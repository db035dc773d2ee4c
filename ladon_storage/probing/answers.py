"""The first answer for a proposal: its request, and the reasons why it may be unusable."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from ladon_storage.collection.json_values import parse_json
from ladon_storage.probing.providers import is_taxii
from ladon_storage.sources.http.client import OK, HttpResponse, SourceHttp
from ladon_storage.sources.taxii import MEDIA_TYPE

MAX_ANSWER_BYTES = 64 * 2**20
"""The largest answer from which a proposal is made."""

_REFUSED = (400, 401, 402, 403, 404, 405, 406, 407, 410, 415, 422, 429, 500, 502, 503, 504)
_KEY_HEADERS = re.compile(
    rb"\b(x-[a-z0-9-]*(?:key|token)|auth-key|api-?key|apikey|private-token)\b", re.IGNORECASE
)
_STEPS: Mapping[int, str] = {
    400: "see which parameters it requires, and give them with the address",
    404: "check the address",
    405: "ask with another method, such as POST with a body",
    406: "set the header Accept to what it answers with",
    407: "check the proxy, and its user and password",
    415: "ask with POST and a JSON body",
    422: "see which parameters it requires, and give them with the address",
    429: "wait, and try again; set rate to what it allows",
}


@dataclass(frozen=True)
class First:
    """The first answer for a proposal.

    Args:
        answer: The answer; ``None``: there is none.
        document: Its JSON; ``None``: it has none.
        problem: The reason why no source can be made of it.
    """

    answer: HttpResponse | None = None
    document: Any = None
    problem: str | None = None


def from_sample(url: URL, sample: bytes) -> First:
    """Return a sample as an answer."""
    headers = CIMultiDictProxy(CIMultiDict[str]())
    return _read(HttpResponse(url, 200, headers, sample), "The sample")


async def ask_first(
    http: SourceHttp, url: URL, method: str, body: Any, headers: Mapping[str, str]
) -> First:
    """Request the first answer."""
    headers = {**({"Accept": MEDIA_TYPE} if is_taxii(url) else {}), **headers}
    accept = (*OK, 206, *_REFUSED)
    if method == "POST":
        answer = await http.post(url, body, idempotent=True, headers=headers, accept=accept)
    else:
        answer = await http.get(url, headers=headers, accept=accept)
    if answer.status in _REFUSED:
        problem = f"The API answered {answer.status}: {_step(answer)}."
        return First(answer, None, http.masked(problem))
    return _read(answer, "The answer")


def _step(answer: HttpResponse) -> str:
    if answer.status not in (401, 403):
        step = _STEPS.get(answer.status, "try again later")
        return f"{step}{_reason(answer)}"
    scheme = answer.headers.get("WWW-Authenticate", "").partition(" ")[0].lower()
    named = _KEY_HEADERS.search(answer.body[:4_000])
    if scheme == "basic":
        return (
            "it asks for a user and a password. Store the base64 text of user:password as a "
            'secret, and set key to its name and auth_prefix to "Basic "'
        )
    refused = "it needs a key, or the one that was sent is not right"
    if scheme != "bearer" and named is not None:
        header = named[1].decode().strip()
        return (
            f"{refused}. Store it as a secret, and set key to its name and key_header to {header}"
        )
    if scheme == "bearer":
        return (
            f'{refused}. Store it as a secret, and set key to its name and auth_prefix to "Bearer "'
        )
    return (
        f"{refused}. Store it as a secret, set key to its name, and key_header and auth_prefix as "
        'the API documents it: mostly Authorization and "Bearer ", or X-Api-Key. key_param puts it '
        "into the query. Some APIs refuse the User-Agent as well: set headers"
    )


def _reason(answer: HttpResponse) -> str:
    """Return an API's own reason for a refusal, if it is a short text."""
    try:
        document = parse_json(answer.body)
    except (ValueError, RecursionError):
        return ""
    if not isinstance(document, dict):
        return ""
    for name in ("message", "error", "detail", "title", "error_description"):
        text = document.get(name)
        if isinstance(text, str) and text.isprintable():
            return f"; it says {text[:120]!r}"
    return ""


def _read(answer: HttpResponse, subject: str) -> First:
    body = answer.body.lstrip(b"\xef\xbb\xbf \t\r\n")
    if not body:
        return First(answer, None, f"{subject} is empty; ask for a range that has records.")
    try:
        return First(answer, parse_json(answer.body))
    except RecursionError:
        return First(answer, None, f"{subject} is nested too deeply to be read.")
    except ValueError:
        pass
    return First(answer, None, f"{subject} {_what_else(body, answer)}")


def _what_else(body: bytes, answer: HttpResponse) -> str:
    """Return the kind of an answer that is not JSON, and the next step."""
    start = body[:200].lower()
    media = answer.headers.get("Content-Type", "").lower()
    if start.startswith((b"<!doctype html", b"<html")) or "text/html" in media:
        return "is a page of HTML, not JSON; give the address of the API, not of its website."
    if start.startswith(b"<"):
        return "is XML, which no source here reads; see whether the API has JSON as well."
    lines = body.split(b"\n", 3)
    if len(lines) > 1 and lines[0].strip().startswith(b"{") and lines[1].strip().startswith(b"{"):
        return (
            "has a JSON document in each line, and a source reads one document; see whether the "
            "API has that as well."
        )
    if body[:1] in (b"{", b"["):
        return "begins as JSON and is not valid: it was cut off, or has what JSON has not."
    if "csv" in media or lines[0].count(b",") > 1:
        return "looks like CSV, not JSON; write a source of your own for it."
    return "is not JSON; see what the address answers."
