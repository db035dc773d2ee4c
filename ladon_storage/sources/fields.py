"""The fields that sources share, and the common parts of their forms."""

from __future__ import annotations

import json
import re
from datetime import timedelta
from hashlib import blake2b
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

SOURCE_ID_TEXT = (
    "Stable name of the source: the key of its watermark and of its records in the sink."
)
OVERLAP_TEXT = "How far before the watermark each run starts reading, to catch late records."
KEY_TEXT = "Name of the Prefect Secret block or environment variable that holds the key."

Overlap = Annotated[Hours, Field(le=timedelta(days=365))]
"""The time before the watermark from which a run reads again: at most a year."""


def overlap_field(default: timedelta, more: str = "") -> Any:
    """Return the field of an overlap, with ``more`` in its description."""
    text = f"{OVERLAP_TEXT} {more}".strip()
    return duration(default, timedelta(hours=1), "Overlap (hours)", text)


SETTINGS = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)
"""The settings identify a run: they are immutable, a misspelt one is refused, none is printed."""


_READING = frozenset(
    (
        *("kind", "via", "url", "method", "params", "body", "filters", "since"),
        *("records", "records_keyed_by_id", "id", "timestamps", "timestamp_format", "zone"),
        *("paging", "table", "schema_name", "id_column", "timestamp_column", "columns"),
    )
)


class SourceSettings(BaseModel):
    """The settings of a source."""

    model_config = SETTINGS

    @property
    def reading_digest(self) -> str:
        """The digest of the settings that decide which records are read, and as what.

        A setting that has its default changes nothing, so that a new one does not.
        """
        # In an order of its own: Prefect's PostgreSQL sorts the keys of parameters by their length.
        read = self.model_dump(mode="json", include=set(_READING), exclude_defaults=True)
        given = json.dumps(read, sort_keys=True)
        # A way of paging is its class, and may have defaults alone.
        kinds = [type(vars(self).get(each)).__name__ for each in _READING]
        return blake2b(f"{given}{sorted(kinds)}".encode(), digest_size=8).hexdigest()


class Rate(BaseModel):
    """The number of requests that a service accepts in a number of seconds."""

    model_config = ConfigDict(**SETTINGS, title="Rate limit")

    requests: int = Field(
        ge=1, title="Requests", description="Maximum number of requests in the period below."
    )
    seconds: float = Field(
        gt=0,
        le=86_400,
        allow_inf_nan=False,
        title="Seconds",
        description="Length of the period in seconds.",
    )


def _check_proxy(value: str) -> str:
    if URL(value).user is not None or URL(value).password is not None:
        raise ValueError(
            "the proxy's address contains a user or a password; set proxy_user, and "
            "proxy_password to the name of a secret"
        )
    return value


def _check_site(value: str) -> str:
    site = value.strip().lower()
    if not _SITE.fullmatch(site):
        raise ValueError("should be a host such as mirror.example.org, optionally with a port")
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
        description="Address of the proxy, without a password. If empty, HTTP_PROXY, HTTPS_PROXY "
        "and NO_PROXY apply.",
    )
    proxy_user: str = Field(
        "", title="Proxy user", description="User name, if the proxy requires one."
    )
    proxy_password: SecretName | None = Field(
        None,
        title="Proxy password name",
        description="Name of the Prefect Secret block or environment variable that holds the "
        "password.",
    )
    ca_file: Path | None = Field(
        None,
        title="CA file",
        description="PEM file with the certificates of a private certificate authority.",
    )
    client_cert: Path | None = Field(
        None,
        title="Client certificate",
        description="PEM file with the certificate that the client presents.",
    )
    client_key: Path | None = Field(
        None,
        title="Client key",
        description="PEM file with the private key of the client certificate.",
    )
    timeout: Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)] | None = Field(
        None,
        title="Timeout (seconds)",
        description="Limit on one request, and on a pause within its answer. If empty, 300 "
        "seconds, and 60 for a pause.",
    )
    redirects_to: tuple[Annotated[str, AfterValidator(_check_site)], ...] = Field(
        (),
        title="Redirects to",
        description="Other hosts to which the source may redirect, such as mirror.example.org or "
        "mirror.example.org:8443. Keys and headers are not sent there.",
    )
    max_bytes: int = Field(
        MAX_ANSWER_BYTES,
        ge=1,
        title="Largest answer (bytes)",
        description="Size limit of one answer after decompression.",
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
        description="Proxy, certificates, timeouts and redirects of this source. If empty, the "
        "defaults apply.",
    )
