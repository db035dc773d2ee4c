"""An object storage below Delta tables: its settings, the check of its conditional writes.

- Exactly once depends on the storage: a commit is a new object, written with ``If-None-Match: *``,
  and of two writers the second one must fail. AWS, Google and Azure promise that. A storage at an
  endpoint of its own is tried before a table is opened, once in each process.
- The check speaks through the same Rust crate as ``deltalake``, so it takes the same settings.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

from ladon_storage.collection.credentials import holds_secret, is_secret_option
from ladon_storage.errors import ConfigurationError, SinkError
from ladon_storage.registry import nearest

logger = logging.getLogger(__name__)

_AWS = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_REGION",
    "AWS_ENDPOINT_URL",
    "AWS_ALLOW_HTTP",
    "AWS_VIRTUAL_HOSTED_STYLE_REQUEST",
)
_GOOGLE = ("GOOGLE_SERVICE_ACCOUNT", "GOOGLE_SERVICE_ACCOUNT_KEY")
_AZURE = (
    "AZURE_STORAGE_ACCOUNT_NAME",
    "AZURE_STORAGE_ACCOUNT_KEY",
    "AZURE_STORAGE_SAS_TOKEN",
    "AZURE_STORAGE_CLIENT_ID",
    "AZURE_STORAGE_CLIENT_SECRET",
    "AZURE_STORAGE_TENANT_ID",
)
OPTIONS = {
    "s3": _AWS,
    "s3a": _AWS,
    "gs": _GOOGLE,
    **dict.fromkeys(("az", "abfs", "abfss"), _AZURE),
}
"""The settings of an object storage, by the scheme of its addresses."""

_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
_ALLOW_HTTP = "AWS_ALLOW_HTTP"
_BOUNDS = {"max_retries": "6", "retry_timeout": "30s"}
"""A storage that does not answer fails the run within a minute; the library would try for three."""

_tried: set[tuple[str, str]] = set()
"""The endpoints and buckets whose conditional writes were checked by this process."""


@dataclass(frozen=True)
class Location:
    """The folder or the address of tables, with the settings of its object storage.

    Args:
        address: The folder, absolute, or the address.
        options: The settings by their names, beside those of the environment.
    """

    address: str
    options: Mapping[str, str] = field(default_factory=dict, repr=False)

    def __str__(self) -> str:
        return self.address

    def below(self, name: str) -> Location:
        """Return the location of a table."""
        return Location(f"{self.address}/{name}", self.options)

    @property
    def is_remote(self) -> bool:
        """Whether it is an address on an object storage."""
        return urlsplit(self.address).scheme.lower() in OPTIONS

    @property
    def storage_options(self) -> dict[str, str] | None:
        """The settings as ``deltalake`` takes them; ``None``: the location is a folder."""
        return {**_BOUNDS, **self.options} if self.is_remote else None

    @property
    def at_endpoint(self) -> str:
        """The endpoint as an error names it."""
        return f" (endpoint {self.endpoint})" if self.endpoint else ""

    @property
    def endpoint(self) -> str | None:
        """The address of a storage that speaks the protocol of S3, and is not AWS."""
        if urlsplit(self.address).scheme.lower() not in ("s3", "s3a"):
            return None
        found = next(filter(None, map(self._setting, _ENDPOINTS)), None)
        host = urlsplit(found).hostname if found else None
        return None if host and host.endswith((".amazonaws.com", ".amazonaws.com.cn")) else found

    def check(self) -> None:
        """Check that the storage refuses to write an object twice.

        Raises:
            ConfigurationError: The endpoint is no address.
            OSError: It cannot be used.
            SinkError: It does not refuse.
        """
        endpoint = self.endpoint
        if endpoint is None:
            return
        check_endpoint(endpoint)
        known = endpoint, urlsplit(self.address).netloc
        if known in _tried:
            return
        self._try(endpoint)
        _tried.add(known)

    def _try(self, endpoint: str) -> None:
        try:
            # First: the other modules of a package that another thread imports may be half made.
            import obstore  # noqa: F401
            from obstore.exceptions import AlreadyExistsError
            from obstore.store import from_url
        except ModuleNotFoundError:
            raise ConfigurationError(
                "A sink at s3:// with AWS_ENDPOINT_URL requires obstore. Install "
                "ladon-storage[delta]."
            ) from None
        name, is_twice, problem = f"_ladon_check_{uuid4().hex}", True, ""
        try:
            store: Any = from_url(self.address, **self._settings(endpoint))
            store.put(name, b"", mode="create", use_multipart=False)
            try:
                store.put(name, b"", mode="create", use_multipart=False)
            except AlreadyExistsError:
                is_twice = False
            finally:
                _remove(store, name)
        except Exception as error:  # its errors have no class in common
            problem = str(error)
        if problem:
            raise OSError(problem)  # the sink's shell makes a sentence of it
        if is_twice:
            raise SinkError(
                f"The storage at {endpoint} ignores If-None-Match when it writes, so two runs "
                f"could lose each other's commits in {self.address}. Use a storage with "
                "conditional writes."
            )

    @property
    def secrets(self) -> list[str]:
        """The values that no error may contain."""
        return [value for name, value in self.options.items() if is_secret_option(name)]

    def _settings(self, endpoint: str) -> dict[str, Any]:
        allow_http = (self._setting(_ALLOW_HTTP) or "").lower() in ("1", "true", "yes", "on")
        config = {name: value for name, value in self.options.items() if name != _ALLOW_HTTP}
        return {
            "config": {**config, "AWS_ENDPOINT_URL": endpoint},
            "client_options": {"allow_http": allow_http},
            "retry_config": {"max_retries": 3, "retry_timeout": timedelta(seconds=10)},
        }

    def _setting(self, name: str) -> str | None:
        return self.options.get(name) or os.environ.get(name)


def check_options(url: str, options: object, *, may_hold_secrets: bool = False) -> dict[str, str]:
    """Return the settings of an object storage if there are such settings for an address.

    Args:
        url: The address.
        options: The settings by their names.
        may_hold_secrets: Whether secrets are among them.

    Raises:
        ConfigurationError: There is no such setting, or its value is a secret where none may be.
            The message contains no value.
    """
    known = OPTIONS.get(url.partition("://")[0].lower())
    if not isinstance(options, Mapping):
        raise ConfigurationError(
            "A sink's options should be a mapping such as {'AWS_REGION': 'eu-central-1'}, not a "
            f"{type(options).__name__}."
        )
    if known is None:
        raise ConfigurationError(
            "Only a sink on an object storage has options and secrets. Remove them, or use an "
            "address such as s3://bucket/lake."
        )
    for name, value in options.items():
        if name not in known:
            hint = nearest(str(name), known)
            raise ConfigurationError(
                f"A sink has no option {str(name)[:40]!r}. Its options are "
                f"{', '.join(known)}{hint or '.'}"
            )
        if not may_hold_secrets and (is_secret_option(name) or holds_secret(str(value))):
            raise ConfigurationError(
                f"The option {name} of a sink holds a secret. Keep it in a Prefect Secret block "
                f"or an environment variable, and set {name} to its name under secrets."
            )
        if not isinstance(value, str | bool) or not str(value).isprintable() or value == "":
            raise ConfigurationError(f"The option {name} of a sink should be a text of one line.")
        if name == "AWS_ENDPOINT_URL":
            check_endpoint(str(value))
    return {
        name: str(value).lower() if isinstance(value, bool) else value
        for name, value in options.items()
    }


def check_endpoint(address: str) -> None:
    """Refuse an endpoint that is no address; the library would end by a panic.

    Raises:
        ConfigurationError: It is none, or has a password in it.
    """
    try:
        parts = urlsplit(address)
        is_usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_usable = False
    if not is_usable or "@" in address or "?" in address or "#" in address or " " in address:
        raise ConfigurationError(
            "AWS_ENDPOINT_URL should be an address such as https://minio.example:9000, without a "
            "user and without a query."
        )


def _remove(store: Any, name: str) -> None:
    try:
        store.delete(name)
    except Exception as error:  # who may write need not be allowed to delete
        logger.warning(
            "The object %s, which checked the storage's conditional writes, could not be removed "
            "(%s).",
            name,
            type(error).__name__,
        )
