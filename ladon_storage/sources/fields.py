"""The fields that sources share, and the common parts of their forms."""

from __future__ import annotations

import re
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)
from yarl import URL

from ladon_storage.collection.credentials import SecretName
from ladon_storage.collection.durations import Hours, duration
from ladon_storage.sources.http.urls import HttpUrl

SOURCE_ID_TEXT = "The name of the watermark, and of the source in the sink."
OVERLAP_TEXT = "How far before the watermark each run reads again, for late records."
KEY_TEXT = "Name of a Prefect Secret block, or of an environment variable, that holds the key."

Overlap = Annotated[Hours, Field(le=timedelta(days=365))]
"""The time before the watermark from which a run reads again: at most a year."""


def overlap_field(default: timedelta, more: str = "") -> Any:
    """Return the field of an overlap, with ``more`` in its description."""
    text = f"{OVERLAP_TEXT} {more}".strip()
    return duration(default, timedelta(hours=1), "Overlap (hours)", text)


SETTINGS = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)
"""The settings identify a run: they are immutable, a misspelt one is refused, none is printed."""


class Rate(BaseModel):
    """The number of requests that a service accepts in a number of seconds."""

    model_config = ConfigDict(**SETTINGS, title="Rate limit")

    requests: int = Field(
        ge=1, title="Requests", description="How many requests are made in the time below."
    )
    seconds: float = Field(
        gt=0,
        le=86_400,
        allow_inf_nan=False,
        title="Seconds",
        description="The time, in seconds, in which so many requests are made.",
    )


def _check_proxy(value: str) -> str:
    if URL(value).user is not None or URL(value).password is not None:
        raise ValueError(
            "the proxy's address holds a user or a password; set proxy_user, and proxy_password to "
            "the name of a secret"
        )
    return value


def _check_site(value: str) -> str:
    site = value.strip().lower()
    if not _SITE.fullmatch(site):
        raise ValueError("should be a host such as mirror.example.org, or with a port")
    return site


_SITE = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9_]([a-z0-9_.-]*[a-z0-9_])?)(:[0-9]{1,5})?")

MAX_ANSWER_BYTES = 256 * 2**20
"""Bytes of a complete answer, decompressed: a hundred times the largest feed here."""


class Connection(BaseModel):
    """The connection to a source: a proxy, certificates, timeouts, and permitted redirects.

    >>> Connection(proxy="http://proxy.example.org:3128", timeout=60).redirects_to
    ()
    """

    model_config = ConfigDict(**SETTINGS, title="Connection")

    proxy: HttpUrl | None = Field(
        None,
        title="Proxy",
        description="Address of the proxy, without a password; empty: as HTTP_PROXY, HTTPS_PROXY "
        "and NO_PROXY say.",
    )
    proxy_user: str = Field("", title="User of the proxy", description="Where the proxy asks.")
    proxy_password: SecretName | None = Field(
        None,
        title="Name of the proxy's password",
        description="Name of a Prefect Secret block, or of an environment variable, that holds it.",
    )
    ca_file: Path | None = Field(
        None,
        title="CA file",
        description="File with the certificates of a private certification authority (PEM).",
    )
    client_cert: Path | None = Field(
        None,
        title="Client certificate",
        description="File with the certificate that the client shows (PEM).",
    )
    client_key: Path | None = Field(
        None,
        title="Client key",
        description="File with the key of the client certificate (PEM).",
    )
    timeout: Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)] | None = Field(
        None,
        title="Timeout (seconds)",
        description="Seconds that one request may take, and that an answer may pause; empty: 300, "
        "and 60 for a pause.",
    )
    redirects_to: tuple[Annotated[str, AfterValidator(_check_site)], ...] = Field(
        (),
        title="Redirects to",
        description="Other hosts to which the source may redirect, without key and headers, such "
        "as mirror.example.org or mirror.example.org:8443.",
    )
    max_bytes: int = Field(
        MAX_ANSWER_BYTES,
        ge=1,
        title="Largest answer (bytes)",
        description="The largest answer that is read, unpacked.",
    )

    @field_validator("proxy")
    @classmethod
    def _keep_the_password_out(cls, value: str | None) -> str | None:
        return None if value is None else _check_proxy(value)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.proxy_user or self.proxy_password) and self.proxy is None:
            raise ValueError("a user or password of a proxy needs the address of the proxy")
        if self.proxy_password and not self.proxy_user:
            raise ValueError("the password of a proxy needs its user")
        if self.client_key is not None and self.client_cert is None:
            raise ValueError("client_key is set without client_cert; set both")
        return self


def connection_field() -> Any:
    """Return the field of a source's connection."""
    return Field(
        None,
        title="Connection",
        description="A proxy, certificates, timeouts and redirects; empty: none of its own.",
    )
