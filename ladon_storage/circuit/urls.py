"""The URLs of circuits that outlive a process: of the store, and of the service.

| URL | shared by |
|---|---|
| ``memory://`` | the clients of one process |
| ``sqlite:///relative.db``, ``sqlite:////absolute.db`` | the processes of one host |
| ``redis://``, ``rediss://``, ``unix://`` | all that reach the server |

A URL may hold a password: no error quotes it.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import parse_qs, quote, unquote

from yarl import URL

from ladon_storage.circuit.shared import SharedCircuit
from ladon_storage.circuit.stores import CircuitStore, MemoryStore
from ladon_storage.circuit.stores.redis import WAIT_SECONDS, RedisStore
from ladon_storage.circuit.stores.sqlite import BUSY_SECONDS, SqliteStore
from ladon_storage.errors import ConfigurationError

__all__ = ["SharedCircuit", "circuit_of", "default_url", "service_key", "store_at"]

CIRCUIT_URL_VARIABLE = "STORAGE_CIRCUIT_URL"
CIRCUIT_FILE = "ladon-storage-circuits.db"

_memory = MemoryStore()


def default_url(environ: Mapping[str, str] = os.environ) -> str:
    """Return the URL of the flow runs' circuits: the one that is set, or a file of Prefect's."""
    home = Path(environ.get("PREFECT_HOME") or "~/.prefect").expanduser().absolute()
    return environ.get(CIRCUIT_URL_VARIABLE) or f"sqlite:///{quote(str(home / CIRCUIT_FILE))}"


def circuit_of(service: str, url: str) -> SharedCircuit:
    """Return the circuit of the service at this address, kept where ``url`` says.

    Raises:
        ConfigurationError: There is no such store.
    """
    key = service_key(service)
    return SharedCircuit(store_at(url), key, name=f"the Storage Service at {key}")


def store_at(url: str, seconds: float | None = None) -> CircuitStore:
    """Return the store that ``url`` names; it is not asked yet.

    Args:
        url: The URL, which may say how long an answer is waited for.
        seconds: The same where it does not; ``None``: a circuit's short time.

    Raises:
        ConfigurationError: There is no such store, or its extra is not installed.
    """
    scheme, separator, rest = url.strip().partition("://")
    if separator and scheme in ("redis", "rediss", "unix"):
        return RedisStore(url.strip(), seconds or WAIT_SECONDS)
    if separator and scheme == "sqlite" and rest.startswith("/"):
        path, _, query = rest[1:].partition("?")
        options = parse_qs(query, keep_blank_values=True)
        if unknown := next((each for each in options if each != "timeout"), None):
            raise ConfigurationError(
                f"The address of a circuit in a file has the unknown option {unknown[:100]!r}; "
                "leave it out, or write timeout to wait longer."
            )
        try:
            busy = float(options.get("timeout", [str(seconds or BUSY_SECONDS)])[0])
        except ValueError:
            busy = math.nan
        name = unquote(path)
        if name and "\0" not in name and 0 <= busy < math.inf:
            return SqliteStore(Path(name), busy)
    if url.strip() == "memory://":
        return _memory
    raise ConfigurationError(
        f"The address of the circuit store should look like sqlite:////var/lib/circuits.db, "
        f"redis://redis.example:6379/0 or memory://; set {CIRCUIT_URL_VARIABLE}, or the block's "
        "field, to one."
    )


def service_key(address: str) -> str:
    """Return the key that identifies a service: its URL without credentials.

    >>> service_key("https://collector:s3cret@Storage.example/")
    'https://storage.example:443'
    """
    url = URL(address.strip())
    return f"{url.scheme}://{url.host_subcomponent}:{url.port}{url.raw_path.rstrip('/')}"
