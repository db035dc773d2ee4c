"""The settings of the Storage Service's client, from the environment or from a block.

- Settings are values: they may be parameters, and can be pickled and compared. Clients are no
  values; `connect` makes them from settings.
- Secrets are `SecretStr`. A password in the URL is taken out of it at once, so no ``repr``, error,
  log or stored parameter can show it.
- In any environment but development a missing service is an error: a forgotten variable must not
  lose watermarks.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from yarl import URL

from ladon_storage.circuit.urls import default_url
from ladon_storage.errors import ConfigurationError

VARIABLES = {
    "url": "STORAGE_SERVICE_URL",
    "token": "STORAGE_SERVICE_TOKEN",
    "environment": "ENVIRONMENT",
    "circuit_url": "STORAGE_CIRCUIT_URL",
}
"""The variable of each setting that the environment can give."""

_FILE = re.compile(r"sqlite:///(?!:memory:)[^?#@\0]*[^?#@\0/.]", re.IGNORECASE)


def check_folder(folder: Path) -> None:
    """Refuse a folder with a name that no address of a storage can carry.

    Raises:
        ConfigurationError: It has one.
    """
    if marks := [each for each in str(folder) if each in "?#@"]:
        raise ConfigurationError(
            f"The folder {str(folder)!r} has a name that no address can carry, because of "
            f"{marks[0]!r}; set {VARIABLES['url']}, or url of [storage], to a file elsewhere."
        )


class StorageSettings(BaseModel):
    """The address of the Storage Service, the credentials for it, and the limits of its client.

    >>> settings = StorageSettings(url="https://collector:s3cret@storage.example:8000")
    >>> settings.url, settings.username, settings.password
    ('https://storage.example:8000', 'collector', SecretStr('**********'))
    """

    model_config = ConfigDict(frozen=True, hide_input_in_errors=True)

    url: str | None = Field(
        default=None,
        title="URL",
        description=(
            "Address of the Storage Service, such as https://storage.example:8000, or of a file "
            "on this host, such as sqlite:///ladon.db."
        ),
    )
    token: SecretStr | None = Field(
        default=None, description="Bearer token that the Storage Service asks for."
    )
    username: str | None = Field(
        default=None, description="User name, where a proxy asks for basic authentication."
    )
    password: SecretStr | None = Field(
        default=None, description="Password, where a proxy asks for basic authentication."
    )
    environment: str = Field(
        default="production",
        description=(
            "In production an unhealthy service fails the run; "
            "in development watermarks are kept in memory instead."
        ),
    )
    timeout: float = Field(
        default=30,
        gt=0,
        title="Timeout (seconds)",
        description="Seconds that one request may take.",
    )
    verify_ssl: bool = Field(
        default=True,
        title="Verify TLS",
        description="Whether the service's certificate is checked.",
    )
    allow_unverified_ssl: bool = Field(
        default=False,
        title="Allow unverified TLS in production",
        description="Whether production may go without checking the certificate.",
    )
    ca_file: Path | None = Field(
        default=None,
        title="CA file",
        description="File with the certificates of a private certification authority (PEM).",
    )
    client_cert: Path | None = Field(
        default=None,
        title="Client certificate",
        description="File with the certificate that the client shows (PEM).",
    )
    client_key: Path | None = Field(
        default=None, description="File with the key of the client certificate (PEM)."
    )
    max_connections: int = Field(
        default=100, ge=1, description="Connections that one event loop keeps at most."
    )
    max_connections_per_host: int = Field(
        default=30, ge=1, description="Connections to one host that one event loop keeps at most."
    )

    circuit_url: SecretStr | None = Field(
        default=None,
        title="Circuit store URL",
        description=(
            "Where processes share the circuit: sqlite:////var/lib/circuits.db for one host, or "
            "redis://redis.example:6379/0 for many. Flow runs use a file in Prefect's home unless "
            "set; memory:// shares it with no other process."
        ),
    )

    @field_validator("*", mode="before")
    @classmethod
    def _take_an_emptied_field_as_unset(cls, value: object, info: ValidationInfo) -> object:
        is_optional = cls.model_fields[str(info.field_name)].default is None
        return None if is_optional and value == "" else value

    @model_validator(mode="before")
    @classmethod
    def _take_credentials_out_of_the_url(cls, values: Any) -> Any:
        if not isinstance(values, Mapping) or not isinstance(values.get("url"), str):
            return values
        if not values["url"].strip():
            return {**values, "url": None}
        if _FILE.fullmatch(values["url"].strip()):
            return {**values, "url": values["url"].strip()}
        try:
            url = URL(values["url"].strip())
            usable = url.scheme in ("http", "https") and url.host
        except ValueError:
            usable = False
        if not usable or url.query or url.fragment:
            # Neither kept nor repeated: a text that is no URL may hold a password.
            raise ValueError(
                "url should look like https://storage.example:8000, without a query or fragment, "
                "or like sqlite:///ladon.db"
            )
        taken = {"url": str(url.with_user(None))}
        if url.user:
            taken["username"] = url.user
        if url.password:
            taken["password"] = url.password
        return {**values, **taken}

    @model_validator(mode="after")
    def _have_a_service_or_be_in_development(self) -> Self:
        if not self.url and not self.is_development:
            raise ValueError(
                "the address of the Storage Service is missing: set STORAGE_SERVICE_URL (or the "
                "block's URL), or ENVIRONMENT=development to keep watermarks in memory"
            )
        return self

    @property
    def is_file(self) -> bool:
        """Whether watermarks are in a file of this host instead of a service."""
        return bool(self.url and _FILE.fullmatch(self.url))

    @property
    def is_development(self) -> bool:
        """Whether the mock may replace the service."""
        return self.environment.strip().lower() == "development"

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> Self:
        """Read the variables that `VARIABLES` names.

        An empty variable counts as unset.

        Raises:
            ConfigurationError: A variable is missing or makes no sense; the text says what to set.
        """
        values = {field: environ[name] for field, name in VARIABLES.items() if environ.get(name)}
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            problem = error.errors(include_input=False, include_context=False)[0]
        # Raised outside the handler: pydantic's error holds the values.
        text = problem["msg"].removeprefix("Value error, ")
        raise ConfigurationError(f"The environment is not complete: {text}.")

    def with_shared_circuit(self) -> Self:
        """Return these settings with the circuit that runs share, unless they name a store.

        A user without a home has no file for it: each process has a circuit of its own.
        """
        if self.circuit_url or not self.url or self.is_file:
            return self
        try:
            return self.model_copy(update={"circuit_url": SecretStr(default_url())})
        except RuntimeError:
            return self
