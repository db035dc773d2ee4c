"""Where the Storage Service is and how to speak to it: from the environment, or from a block.

- Settings are values: they may be parameters, be pickled and be compared. Clients are not; one
  process keeps one client for equal settings, so that its circuit and its pools are shared.
- Secrets are `SecretStr`: a password that stands in the URL is taken out of it at once, so that no
  ``repr``, error, log or stored parameter can show it.
- The mock replaces the service in development only, and never without a warning. In any other
  environment a missing service is an error: a forgotten variable must not lose watermarks.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, model_validator
from yarl import URL

from ladon_storage.breaker import CircuitChange
from ladon_storage.circuits import SharedCircuit, circuit_of, default_url
from ladon_storage.client import StorageServiceClient
from ladon_storage.errors import ConfigurationError
from ladon_storage.mock import MockStorageClient

logger = logging.getLogger(__name__)

VARIABLES = {
    "url": "STORAGE_SERVICE_URL",
    "token": "STORAGE_SERVICE_TOKEN",
    "environment": "ENVIRONMENT",
    "circuit_url": "STORAGE_CIRCUIT_URL",
}
"""The variable of each setting that the environment can give."""

_WILL_NOT_PERSIST = "Watermarks are kept in memory and will not persist: "


class StorageSettings(BaseModel):
    """Say where the Storage Service is, how to authenticate, and how strict to be.

    >>> settings = StorageSettings(url="https://collector:s3cret@storage.example:8000")
    >>> settings.url, settings.username, settings.password
    ('https://storage.example:8000', 'collector', SecretStr('**********'))
    """

    model_config = ConfigDict(frozen=True, hide_input_in_errors=True)

    url: str | None = Field(
        default=None,
        title="URL",
        description="Address of the Storage Service, such as https://storage.example:8000.",
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

    @model_validator(mode="before")
    @classmethod
    def _take_credentials_out_of_the_url(cls, values: Any) -> Any:
        if not isinstance(values, Mapping) or not isinstance(values.get("url"), str):
            return values
        if not values["url"].strip():
            return {**values, "url": None}
        try:
            url = URL(values["url"].strip())
            usable = url.scheme in ("http", "https") and url.host
        except ValueError:
            usable = False
        if not usable or url.query or url.fragment:
            # Neither kept nor repeated: what cannot be read as an address may hold a password.
            raise ValueError(
                "url should look like https://storage.example:8000, without a query or fragment"
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
    def is_development(self) -> bool:
        """Whether the mock may replace the service."""
        return self.environment.strip().lower() == "development"

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> Self:
        """Read the variables that `VARIABLES` names.

        An empty variable counts as one that is not set.

        Raises:
            ConfigurationError: A variable is missing or makes no sense; it says what to set.
        """
        values = {field: environ[name] for field, name in VARIABLES.items() if environ.get(name)}
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            problem = error.errors(include_input=False, include_context=False)[0]
        # Raised outside of the handler: pydantic's error holds the values.
        text = problem["msg"].removeprefix("Value error, ")
        raise ConfigurationError(f"The environment is not complete: {text}.")

    def in_flow_runs(self) -> Self:
        """Return these settings with the circuit that flow runs share, unless they name a store."""
        if self.circuit_url or not self.url:
            return self
        return self.model_copy(update={"circuit_url": SecretStr(default_url())})

    def _circuit(self) -> SharedCircuit | None:
        if not (self.url and self.circuit_url):
            return None
        circuit = circuit_of(self.url, self.circuit_url.get_secret_value())
        for listener in _listeners:
            circuit.add_listener(partial(listener, circuit.key))
        return circuit

    def client(self) -> StorageServiceClient | MockStorageClient:
        """Return a new client with these settings; the caller closes it.

        Raises:
            ConfigurationError: They make no sense together, or a file cannot be read.
        """
        if not self.url:
            logger.warning(
                "%sno STORAGE_SERVICE_URL is set, and the environment is %s.",
                _WILL_NOT_PERSIST,
                self.environment,
            )
            return MockStorageClient()
        url = URL(self.url)
        if self.username or self.password:
            password = self.password.get_secret_value() if self.password else None
            url = url.with_user(self.username or "").with_password(password)
        return StorageServiceClient(
            str(url),
            timeout=self.timeout,
            verify_ssl=self.verify_ssl,
            environment=self.environment,
            max_connections=self.max_connections,
            max_connections_per_host=self.max_connections_per_host,
            token=self.token.get_secret_value() if self.token else None,
            circuit_breaker=self._circuit(),
            ca_file=self.ca_file,
            client_cert=self.client_cert,
            client_key=self.client_key,
            allow_unverified_ssl=self.allow_unverified_ssl,
        )


_listeners: list[Callable[[str, CircuitChange], object]] = []


def on_circuit_change(listener: Callable[[str, CircuitChange], object]) -> None:
    """Call ``listener`` with the service's address and each change of its circuit made here.

    It is told of circuits that processes share, of clients that are made from now on.
    """
    _listeners.append(listener)


_lock = threading.Lock()
_clients: dict[StorageSettings, StorageServiceClient | MockStorageClient] = {}
_mocks_in_use: dict[StorageSettings, MockStorageClient] = {}


def shared_client(settings: StorageSettings) -> StorageServiceClient | MockStorageClient:
    """Return the process's client for ``settings``: one circuit, and one pool for each event loop.

    Nobody needs to close it: each of its pools ends with its event loop.

    Raises:
        ConfigurationError: The settings make no sense together, or a file cannot be read.
    """
    key = _plain(settings)
    with _lock:
        if key not in _clients:
            _clients[key] = key.client()
        return _mocks_in_use.get(key) or _clients[key]


async def check_health(settings: StorageSettings) -> bool:
    """Tell whether the service is healthy; in development let the mock stand in if it is not.

    A service whose circuit is open counts as unhealthy, and is not asked. The mock stands in for
    these settings, in this process, until a check finds the service healthy.

    Raises:
        StorageUnhealthyError: The service is unhealthy or unreachable, in production.
    """
    shared_client(settings)
    key = _plain(settings)
    healthy = await _clients[key].health_check(through_circuit=True)
    with _lock:
        if healthy:
            _mocks_in_use.pop(key, None)
        elif key.is_development and key not in _mocks_in_use:
            _mocks_in_use[key] = MockStorageClient()
            logger.warning("%sthe Storage Service at %s is unhealthy.", _WILL_NOT_PERSIST, key.url)
    return healthy


def _plain(settings: StorageSettings) -> StorageSettings:
    """Return what of ``settings`` decides which client it gets: a block's document does not."""
    fields = StorageSettings.model_fields
    return StorageSettings.model_validate({name: getattr(settings, name) for name in fields})
