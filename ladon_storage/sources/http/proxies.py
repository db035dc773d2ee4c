"""The environment's proxy for an address.

- `HTTP_PROXY`, `HTTPS_PROXY`, `ALL_PROXY` and `NO_PROXY`, in upper or lower case; lower case wins,
  as for curl. `NO_PROXY` names hosts, domains, ports of them, addresses and networks, separated by
  commas or blanks.
- They are read here, since aiohttp would read the user's netrc along with them.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from urllib.request import getproxies_environment

from yarl import URL

from ladon_storage.errors import ConfigurationError

_kept: ContextVar[dict[str, str] | None] = ContextVar("_kept", default=None)


@contextmanager
def proxies_kept() -> Iterator[None]:
    """Read the environment once for all runs in this context, since it may be large."""
    token = _kept.set(_read())
    try:
        yield
    finally:
        _kept.reset(token)


def _proxies() -> dict[str, str]:
    kept = _kept.get()
    return _read() if kept is None else kept


def _read() -> dict[str, str]:
    # The function goes through the whole environment twice, which nearly always names no proxy.
    if not any(name[-6:].lower() == "_proxy" for name in os.environ):
        return {}
    return getproxies_environment()


def proxy_of(url: URL) -> URL | None:
    """Return the environment's proxy for an address; ``None``: the connection is direct.

    Raises:
        ConfigurationError: The environment names an invalid proxy address.
    """
    proxies = _proxies()
    proxy = proxies.get(url.scheme) or proxies.get("all")
    if not proxy or _is_direct(url, proxies.get("no", "")):
        return None
    return checked_proxy(proxy, f"{url.scheme.upper()}_PROXY or ALL_PROXY")


def checked_proxy(text: str, name: str) -> URL:
    """Return the address of a proxy, which may lack its ``http://``.

    Raises:
        ConfigurationError: It is invalid; the message has no part of it.
    """
    with suppress(ValueError):
        url = URL(text.strip() if "://" in text else f"http://{text.strip()}")
        # Behind the host an "@" follows the rest of a password that has a "/", "?" or "#" in it.
        is_torn = "@" in f"{url.raw_path_qs}{url.raw_fragment}"
        if url.scheme in ("http", "https") and url.host and not is_torn:
            return url
    # Neither chained nor repeated: an unreadable address may hold a password.
    raise ConfigurationError(
        f"{name} is not the address of an HTTP proxy. Set it to one such as "
        "http://proxy.example.org:3128, with special characters of a password percent-encoded."
    )


def with_sent_credentials(proxy: URL) -> URL:
    """Return a proxy whose user and password are sent in UTF-8 if they are not in Latin-1.

    aiohttp sends them in Latin-1, and so gets the characters that are those bytes there.
    """
    user, password = proxy.user or "", proxy.password or ""
    try:
        f"{user}{password}".encode("latin-1")
    except UnicodeEncodeError:
        user, password = (each.encode().decode("latin-1") for each in (user, password))
        return proxy.with_user(user).with_password(password)
    return proxy


def _is_direct(url: URL, exceptions: str) -> bool:
    host = (url.host or "").rstrip(".").lower()
    return any(
        _matches(host, url.port, each) for each in exceptions.replace(",", " ").lower().split()
    )


def _matches(host: str, port: int | None, exception: str) -> bool:
    if exception == "*":
        return True
    with suppress(ValueError):  # either is a name
        return ipaddress.ip_address(host) in ipaddress.ip_network(
            exception.strip("[]"), strict=False
        )
    name, colon, number = exception.rpartition(":")
    if colon and number.isdecimal():
        if port != int(number):
            return False
        exception = name.strip("[]")
    exception = exception.lstrip("*").strip(".")
    return bool(exception) and (host == exception or host.endswith(f".{exception}"))


def passwords() -> list[str]:
    """Return the passwords of the environment's proxies, which must never be shown."""
    found = []
    for text in _proxies().values():
        with suppress(ValueError):
            found.append(URL(text if "://" in text else f"http://{text}").password)
    return [each for each in found if each]
