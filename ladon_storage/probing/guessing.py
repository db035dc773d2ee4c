"""The proposal of a source for a URL: the first answer is read, and its suggestions are tried.

- No assumption counts as a finding: unconfirmed settings are in `Guess.unsure`.
- After the first request at most three more are made. A key in the URL is used for them, and is in
  no part of the result.
- If no source would work, none is proposed, and the problem gives the reason.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, computed_field
from yarl import URL

from ladon_storage.collection.protocols import Source
from ladon_storage.errors import ConfigurationError, SourceError
from ladon_storage.probing.answers import MAX_ANSWER_BYTES, First, ask_first, from_sample
from ladon_storage.probing.keys import Access, access_of, key_in_path, proposed_name
from ladon_storage.probing.proposing import Draft, draft_of
from ladon_storage.probing.providers import Seen, recognised
from ladon_storage.probing.toml import table
from ladon_storage.sources import source_from
from ladon_storage.sources.fields import Connection
from ladon_storage.sources.http.client import SourceHttp, source_http
from ladon_storage.sources.http.observing import observed_by
from ladon_storage.sources.http.transport import HttpResponse
from ladon_storage.sources.http.urls import as_written, check_url

_WITH_KEY_IN_PATH = ("threatfox", "urlhaus")

_NO_URL = "https://api.example.org/"


class Finding(BaseModel):
    """A setting of a proposed source, and the reason for it."""

    model_config = ConfigDict(frozen=True)

    field: str
    value: Any
    reason: str


class Guess(BaseModel):
    """A proposed source.

    Args:
        name: Its name in the file.
        url: The URL, without keys.
        settings: The settings; empty: no source is proposed.
        findings: The reason for each setting.
        unsure: The questions that stay open.
        notes: The steps that are needed before the source runs.
        problem: The reason why no source is proposed; ``None``: one is.
        requests: The number of requests that were made.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    url: str
    settings: dict[str, Any] = {}
    findings: tuple[Finding, ...] = ()
    unsure: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    problem: str | None = None
    requests: int = 0

    @computed_field  # type: ignore[prop-decorator]
    @property
    def toml(self) -> str:
        """The table of the source for ``ladon.toml``; empty if none is proposed."""
        if not self.settings:
            return ""
        reasons = {finding.field: finding.reason for finding in self.findings}
        return table(self.name, self.settings, reasons, self.unsure)

    def source(self) -> Source:
        """Return the source as the table describes it.

        Raises:
            ConfigurationError: None is proposed.
        """
        if not self.settings:
            raise ConfigurationError(f"No source is proposed for {self.name!r}. {self.problem}")
        return source_from(tomllib.loads(self.toml)["sources"][self.name])


class _Count:
    """An observer that counts requests, each of which is made once."""

    def __init__(self) -> None:
        self.requests = 0

    def asking(self, method: str, url: str, body: str | None) -> None:
        """Count it, and let it pass."""
        self.requests += 1

    def answered(self, answer: HttpResponse) -> None:
        """Do nothing."""


@dataclass(frozen=True)
class _Question:
    """The request for a proposal."""

    name: str
    is_named: bool
    access: Access
    method: str
    body: dict[str, Any] | None


async def guess(
    url: str = "",
    *,
    sample: Path | bytes | None = None,
    name: str = "",
    method: str = "",
    body: dict[str, Any] | None = None,
    headers: Mapping[str, str] | None = None,
    key: str = "",
    key_header: str = "",
    auth_prefix: str = "",
    key_param: str = "",
    connection: Connection | None = None,
) -> Guess:
    """Propose a source for a URL, or for a sample of its answers.

    Args:
        url: The URL. A key in it is removed, and a name for it is proposed.
        sample: A file with an answer, or its bytes; then no request is made.
        name: The name of the source; empty: it follows from the URL.
        method: ``GET`` or ``POST``; empty: ``POST`` where there is a body.
        body: The JSON body of a POST, without secrets.
        headers: Headers of the requests; one that holds a key is treated like a key in the URL.
        key: The name of the secret that holds the key.
        key_header: The header of the key.
        auth_prefix: The text in front of the key in the header.
        key_param: The query parameter of the key, if it cannot be in a header.
        connection: A proxy, certificates and timeouts.

    Raises:
        ConfigurationError: The URL is invalid, the sample cannot be read, or the key is not set.
    """
    address = _checked(url or _NO_URL)
    is_named, name = bool(name), name or name_of(address)
    for header, value in (headers or {}).items():
        if not (f"{header}{value}".isascii() and f"{header}{value}".isprintable()):
            raise ConfigurationError("A header has other characters than printable ASCII.")
    settings = {
        "key": key,
        "key_header": key_header,
        "auth_prefix": auth_prefix,
        "key_param": key_param,
    }
    access = await access_of(address, name, headers or {}, settings)
    method = method.upper() or ("POST" if body is not None else "GET")
    if method not in ("GET", "POST"):
        raise ConfigurationError(f"The method {method} asks for no records; use GET or POST.")
    question = _Question(name, is_named, access, method, body)
    if access.problem is not None:
        return _refused(question, f"No source can be made: {access.problem}.", 0)
    if sample is not None:
        first = from_sample(access.url, _bytes_of(sample))
        draft = await _drafted(question, first, None)
        return _finished(question, first, draft, 0, is_placeholder=not url)
    return await _asked(question, connection)


def name_of(url: URL) -> str:
    """Return a name for the source at a URL.

    >>> name_of(URL("https://api.github.com/repos/a/b/issues?per_page=9"))
    'github-issues'
    """
    host = url.host or ""
    labels = [each for each in host.split(".") if each not in ("www", "api")]
    site = labels[-2] if len(labels) > 1 and not re.fullmatch(r"[0-9.]+|.*:.*", host) else ""
    parts = [part.rpartition(".")[0] or part for part in url.path.split("/")]
    words = [part for part in parts if re.fullmatch(r"[A-Za-z][A-Za-z_-]{2,29}", part)]
    usual = {"api", "rest", "json", "list", "query", "search", "feed"}
    last = next((each for each in reversed(words) if each.lower() not in usual), "")
    found = "-".join(dict.fromkeys(each for each in (site, last) if each)) or "feed"
    return re.sub(r"[^a-z0-9]+", "-", found.lower()).strip("-") or "feed"


def _checked(url: str) -> URL:
    try:
        return as_written(check_url(url))
    except ValueError as error:
        problem = str(error)
    # Neither chained nor repeated: an invalid URL may contain a key anywhere.
    raise ConfigurationError(f"The address {problem}.")


def _bytes_of(sample: Path | bytes) -> bytes:
    if isinstance(sample, bytes):
        return sample
    try:
        return sample.read_bytes()
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise ConfigurationError(f"The sample {str(sample)!r} cannot be read: {reason}.") from None


async def _asked(question: _Question, connection: Connection | None) -> Guess:
    access, draft, first, count = question.access, None, First(), _Count()
    with observed_by(count):
        try:
            async with source_http(
                question.name,
                credentials=access.keys,
                connection=connection,
                max_bytes=MAX_ANSWER_BYTES,
            ) as http:
                first = await ask_first(
                    http, access.url, question.method, question.body, access.headers
                )
                draft = await _drafted(question, first, http)
        except SourceError as error:
            problem = str(error)
            if "sends more than" in problem:
                problem = (
                    f"The answer is larger than {MAX_ANSWER_BYTES} bytes; ask for a smaller page "
                    "or range, or give a sample."
                )
            return _refused(question, problem, count.requests)
    return _finished(question, first, draft, count.requests, connection=connection)


async def _drafted(question: _Question, first: First, http: SourceHttp | None) -> Draft | None:
    """Return the draft of the source; ``None``: it has a kind of its own, or there is none."""
    if first.answer is None or first.problem or _own_kind(question, first) is not None:
        return None
    return await draft_of(
        name=question.name,
        url=question.access.url,
        method=question.method,
        body=question.body,
        access=question.access.settings,
        headers=question.access.headers,
        answer=first.answer,
        document=first.document,
        http=http,
    )


def _own_kind(question: _Question, first: First) -> tuple[str, dict[str, Any], str] | None:
    """Return the kind of source that the answer belongs to, its settings, and the service."""
    if first.answer is None or first.answer.status not in (200, 206):
        return None
    access = question.access
    has_key = "key" in access.settings
    seen = Seen(access.url, question.method, question.body, first.answer, first.document, has_key)
    found = recognised(seen)
    if found is None or (found[0].needs_key and not has_key):
        return None
    provider, settings = found
    own = {"key": access.settings["key"]} if has_key and provider.kind != "kev" else {}
    if provider.kind == "taxii" and access.user:
        own["user"] = access.user
    name = question.name if question.is_named else provider.kind
    part = key_in_path(access.url)
    if part and provider.kind in _WITH_KEY_IN_PATH:
        settings["url"] = str(settings["url"]).replace(part, "{key}")
        own = {"key": proposed_name(name, {})}
    described = {"source_id": name, **settings, **own}
    try:
        source_from(described)
    except ConfigurationError:
        return None
    return provider.kind, {"kind": provider.kind, **described}, provider.name


def _finished(
    question: _Question,
    first: First,
    draft: Draft | None,
    requests: int,
    *,
    is_placeholder: bool = False,
    connection: Connection | None = None,
) -> Guess:
    own = _own_kind(question, first)
    notes = list(question.access.notes)
    if is_placeholder:
        notes.append("set url to the address of the API")
    if own is not None:
        kind, settings, service = own
        reason = f"the answer is that of {service}, which this kind knows"
        if "{key}" in settings.get("url", ""):
            notes = [f"store the key of the path as the secret {settings['key']}"]
        if settings.get("user"):
            notes = [f"store the password as the secret {settings['key']}, and not in a file"]
        found = Finding(field="kind", value=kind, reason=reason)
        return _guess(question, settings, (found,), (), notes, None, requests)
    if draft is None:
        return _refused(question, first.problem or "Nothing was found in the answer.", requests)
    if draft.problem is not None:
        return _refused(question, draft.problem, requests, tuple(draft.unsure))
    if connection is not None:
        draft.unsure.append("the connection: set it as it was given for this proposal")
    findings = tuple(
        Finding(field=field, value=draft.settings.get(field), reason=reason)
        for field, reason in draft.reasons.items()
    )
    return _guess(question, draft.settings, findings, draft.unsure, notes, None, requests)


def _refused(
    question: _Question, problem: str, requests: int, unsure: tuple[str, ...] = ()
) -> Guess:
    return _guess(question, {}, (), unsure, list(question.access.notes), problem, requests)


def _guess(
    question: _Question,
    settings: dict[str, Any],
    findings: tuple[Finding, ...],
    unsure: list[str] | tuple[str, ...],
    notes: list[str],
    problem: str | None,
    requests: int,
) -> Guess:
    return Guess(
        name=settings.get("source_id", question.name),
        url=settings.get("url") or str(question.access.url),
        settings=settings,
        findings=findings,
        unsure=tuple(unsure),
        notes=tuple(notes),
        problem=problem,
        requests=requests,
    )
