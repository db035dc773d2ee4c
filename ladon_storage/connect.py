"""The watermark storage that settings name: the service's client, a file, or the mock.

- One process keeps one client for equal settings, so its circuit and its pools are shared.
- A file is the Storage Service's own store inside the process. Where nothing at all is configured,
  a program that is run by hand has one in its working directory, and logs that.
- The mock replaces a service in development only, and never without a warning.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from yarl import URL

from ladon_storage.circuit.breaker import CircuitChange
from ladon_storage.circuit.urls import CIRCUIT_URL_VARIABLE, SharedCircuit, circuit_of, default_url
from ladon_storage.client.batches import BatchedStorage
from ladon_storage.client.client import StorageServiceClient
from ladon_storage.client.mock import MockStorageClient
from ladon_storage.embedded import SCHEME, EmbeddedStorage, file_of
from ladon_storage.settings import VARIABLES, StorageSettings
from ladon_storage.sources.http.sharing import share_hosts

logger = logging.getLogger(__name__)

StorageClient = StorageServiceClient | EmbeddedStorage | MockStorageClient
"""A storage of watermarks; all kinds have one interface."""

DEFAULT_FILE = "ladon.db"
"""The file in the working directory where nothing is configured."""

_WILL_NOT_PERSIST = "Watermarks are kept in memory and will not persist: "


def settings_by_hand(
    environ: Mapping[str, str] = os.environ, *, is_deployed: bool = False
) -> StorageSettings:
    """Return the settings of the environment; where it has none, those of a file, and log that.

    Args:
        environ: The variables.
        is_deployed: Whether this is a run of a deployment, whose folder may be deleted after it.

    Raises:
        ConfigurationError: The environment is not complete: it names an ``ENVIRONMENT`` and no
            service, or this is a run of a deployment; or no address can name the file.
    """
    named = (environ.get(VARIABLES[field]) for field in ("url", "environment"))
    if is_deployed or any(named):
        return StorageSettings.from_environment(environ)
    file = file_of(f"{SCHEME}{DEFAULT_FILE}")
    with _lock:
        is_news = file not in _named_files
        _named_files.add(file)
    if is_news:
        logger.warning(
            "No Storage Service is configured: watermarks are kept in the file %s. Set %s to use "
            "another place.",
            file,
            VARIABLES["url"],
        )
    return StorageSettings(url=f"{SCHEME}{file}")


def new_client(settings: StorageSettings) -> StorageClient:
    """Return a new client with these settings; the caller closes it.

    Raises:
        ConfigurationError: They make no sense together, or a file cannot be read.
    """
    if not settings.url:
        logger.warning(
            "%sno STORAGE_SERVICE_URL is set, and the environment is %s.",
            _WILL_NOT_PERSIST,
            settings.environment,
        )
        return MockStorageClient()
    if settings.is_file:
        return EmbeddedStorage(file_of(settings.url), environment=settings.environment)
    url = URL(settings.url)
    if settings.username or settings.password:
        password = settings.password.get_secret_value() if settings.password else None
        url = url.with_user(settings.username or "").with_password(password)
    return StorageServiceClient(
        str(url),
        timeout=settings.timeout,
        verify_ssl=settings.verify_ssl,
        environment=settings.environment,
        max_connections=settings.max_connections,
        max_connections_per_host=settings.max_connections_per_host,
        token=settings.token.get_secret_value() if settings.token else None,
        circuit_breaker=_circuit(settings),
        ca_file=settings.ca_file,
        client_cert=settings.client_cert,
        client_key=settings.client_key,
        allow_unverified_ssl=settings.allow_unverified_ssl,
    )


def _circuit(settings: StorageSettings) -> SharedCircuit | None:
    if not (settings.url and settings.circuit_url):
        return None
    circuit = circuit_of(settings.url, settings.circuit_url.get_secret_value())
    for listener in _listeners:
        circuit.add_listener(partial(listener, circuit.key))
    return circuit


def share_hosts_of(settings: StorageSettings) -> None:
    """Share the circuits and rates of sources' hosts in the store of the service's circuit.

    Settings without a store share them in the file of this host's flow runs.

    Raises:
        ConfigurationError: There is no such store.
    """
    try:
        url = settings.circuit_url.get_secret_value() if settings.circuit_url else default_url()
    except RuntimeError:  # of a user without a home
        logger.warning(
            "The circuits and rates of sources' hosts are this process's own, because there is no "
            "home directory for their file; set %s.",
            CIRCUIT_URL_VARIABLE,
        )
        return
    share_hosts(url)


_listeners: list[Callable[[str, CircuitChange], object]] = []


def on_circuit_change(listener: Callable[[str, CircuitChange], object]) -> None:
    """Call ``listener`` with the service's address and each change of its circuit made here.

    Only shared circuits of clients that are made from now on call it.
    """
    _listeners.append(listener)


_lock = threading.Lock()
_clients: dict[StorageSettings, StorageClient] = {}
_fallbacks: dict[StorageSettings, MockStorageClient] = {}
_named_files: set[Path] = set()


def shared_client(settings: StorageSettings) -> StorageClient:
    """Return the process's client for ``settings``: one circuit, and one pool for each event loop.

    No caller needs to close it. Each of its pools ends with its event loop; a file is closed with
    the process.

    Raises:
        ConfigurationError: The settings make no sense together, or a file cannot be read.
    """
    key = _client_key(settings)
    with _lock:
        if key not in _clients:
            _clients[key] = new_client(key)
        return _fallbacks.get(key) or _clients[key]


def batched(client: StorageClient) -> StorageClient | BatchedStorage:
    """Return a storage for many calls at once, which share requests where there are any."""
    return BatchedStorage(client) if isinstance(client, StorageServiceClient) else client


async def check_health(settings: StorageSettings) -> bool:
    """Return whether the storage is healthy; in development let the mock stand in if it is not.

    A service whose circuit is open counts as unhealthy, and is not called. The mock stands in for
    these settings, in this process, until a check finds the storage healthy.

    Raises:
        StorageUnhealthyError: The storage is unhealthy or unreachable, in production.
    """
    shared_client(settings)
    key = _client_key(settings)
    healthy = await _clients[key].health_check(through_circuit=True)
    with _lock:
        if healthy:
            _fallbacks.pop(key, None)
        elif key.is_development and key not in _fallbacks:
            _fallbacks[key] = MockStorageClient()
            logger.warning("%sthe Storage Service at %s is unhealthy.", _WILL_NOT_PERSIST, key.url)
    return healthy


def _client_key(settings: StorageSettings) -> StorageSettings:
    """Return the part of ``settings`` that identifies its client, without a block's document.

    The absolute path identifies a file, because the working directory may change.
    """
    fields = {name: getattr(settings, name) for name in StorageSettings.model_fields}
    if settings.url and settings.is_file:
        fields["url"] = f"{SCHEME}{file_of(settings.url)}"
    return StorageSettings.model_validate(fields)
