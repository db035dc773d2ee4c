"""Keys in a URL or a header: they are used for the requests, and never returned.

A source refers to its key by name. So the key is removed, a name for it is proposed, and the
operator stores the key under that name.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from yarl import URL

from ladon_storage.collection.credentials import resolve_secret
from ladon_storage.sources.http.client import Credentials
from ladon_storage.sources.http.urls import secret_in, with_those

_RANDOM = re.compile(r"(?=.*[0-9])(?=.*[A-Za-z])[A-Za-z0-9_-]{20,}")
_UUID = re.compile(r"[0-9a-fA-F]{8}(-?[0-9a-fA-F]{4}){3}-?[0-9a-fA-F]{12}")
_HEX = re.compile(r"[0-9a-fA-F]{32,}")
_PAGING = re.compile(r"cursor|page|after|before|since|until|next|marker|scroll|skip|token|offset")
_KEY_NAMES = re.compile(r"^(key|k|appid|app_id|apikey|uid|auth|access|pass|pwd)$", re.IGNORECASE)
_SECRET_HEADER = re.compile(r"authorization|cookie|key|token|secret", re.IGNORECASE)
_SCHEME = re.compile(r"([A-Za-z][A-Za-z-]*) +(\S.*)")


@dataclass(frozen=True, repr=False)
class Access:
    """The credentials of a proposal's requests, separate from the URL.

    Args:
        url: The URL without its keys.
        settings: The settings of a source for the key: its name, and its place in requests.
        headers: Headers without secrets.
        keys: The keys themselves; ``None``: there are none.
        user: The user in the URL, whose password is the key.
        notes: The steps that the operator has to take.
        problem: The reason why no source can be made of it.
    """

    url: URL
    settings: dict[str, Any] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    keys: Credentials | None = None
    user: str = ""
    notes: tuple[str, ...] = ()
    problem: str | None = None


async def access_of(
    url: URL, name: str, headers: Mapping[str, str], settings: Mapping[str, Any]
) -> Access:
    """Return the access to a URL, after removing keys from it and from its headers.

    Args:
        url: The URL, perhaps with keys.
        name: The name of the source, from which names of secrets are derived.
        headers: Headers, perhaps with one that holds a key.
        settings: ``key``, ``key_header``, ``auth_prefix`` and ``key_param``, if they are given.

    Raises:
        ConfigurationError: The named key is not set.
    """
    named = {key: value for key, value in settings.items() if value}
    bare = with_those(
        url.with_user(None).with_fragment(None), lambda key, value: not _holds_key(key, value)
    )
    query = [(key, value, _holds_key(key, value)) for key, value in url.query.items()]
    plain_headers = {k: v for k, v in headers.items() if not _SECRET_HEADER.search(k)}
    found = _in_headers(headers) + _in_user(url)
    found += [({"key_param": key}, value, "the address") for key, value, is_key in query if is_key]
    if named.get("key"):
        value = await resolve_secret(named["key"], name)
        return Access(bare, named, plain_headers, _keys(bare, named, value))
    if not found:
        return Access(bare, {}, plain_headers, notes=_of_path(bare))
    places, value, where = found[0]
    secret_name = proposed_name(name, places)
    note = f"store the key of {where} as the secret {secret_name}, and not in a file"
    problem = None
    if len(found) > 1:
        problem = "the request has several keys, and a source sends one"
    chosen = {"key": secret_name, **places}
    keys = _keys(bare, chosen, value, [each[1] for each in found])
    return Access(
        bare, chosen, plain_headers, keys, url.user or "", (note, *_of_path(bare)), problem
    )


def options_for_secret(url: URL, headers: Mapping[str, str]) -> str:
    """Return the options of a command that name the key in a request; empty: there is none.

    >>> options_for_secret(URL("https://example.org/list?api_key=0123456789abcdef&page=2"), {})
    '--key NAME --key-param api_key'
    """
    for key, value in url.query.items():
        if _holds_key(key, value):
            return f"--key NAME --key-param {key}"
    for places, _, _ in (*_in_headers(headers), *_in_user(url)):
        more = [
            f"--{option.replace('_', '-')} {text!r}" for option, text in places.items()
        ]  # the scheme and the header, never the key
        return " ".join(("--key NAME", *more))
    return ""


def proposed_name(name: str, places: Mapping[str, Any]) -> str:
    """Return the name of a secret for a source.

    >>> proposed_name("my-feed", {"key_param": "api_key"})
    'MY_FEED_API_KEY'
    """
    what = str(places.get("key_param") or "key")
    if "key" not in what.lower() and "token" not in what.lower():
        what = "key"
    words = re.sub(r"[^A-Za-z0-9]+", "_", f"{name}_{what}").strip("_").upper()
    return words if words[:1].isalpha() else f"FEED_{words}"


def _holds_key(name: str, value: str) -> bool:
    if not value or (_PAGING.search(name.lower()) and secret_in(name, value) is None):
        return False
    is_random = _RANDOM.fullmatch(value) is not None and _UUID.fullmatch(value) is None
    is_random = is_random or (_HEX.fullmatch(value) is not None)
    return (
        secret_in(name, value) is not None
        or is_random
        or (_KEY_NAMES.match(name) is not None and len(value) >= 8)
    )


def _in_headers(headers: Mapping[str, str]) -> list[tuple[dict[str, Any], str, str]]:
    found = []
    for name, value in headers.items():
        if not _SECRET_HEADER.search(name):
            continue
        places = {} if name.lower() == "authorization" else {"key_header": name}
        if scheme := _SCHEME.fullmatch(value.strip()):
            found.append(({**places, "auth_prefix": f"{scheme[1]} "}, scheme[2], f"header {name}"))
        else:
            found.append((places, value.strip(), f"header {name}"))
    return found


def _in_user(url: URL) -> list[tuple[dict[str, Any], str, str]]:
    if not (url.user or url.password):
        return []
    encoded = b64encode(f"{url.user or ''}:{url.password or ''}".encode()).decode()
    where = "the address (the base64 text of user:password)"
    return [({"auth_prefix": "Basic "}, encoded, where)]


def _keys(
    url: URL, settings: Mapping[str, Any], value: str, hidden: list[str] | None = None
) -> Credentials:
    if param := settings.get("key_param"):
        return Credentials(str(url), params={param: value}, redact=hidden or ())
    header = settings.get("key_header") or "Authorization"
    text = f"{settings.get('auth_prefix') or ''}{value}"
    return Credentials(str(url), {header: text}, redact=[value, *(hidden or ())])


def key_in_path(url: URL) -> str:
    """Return the part of a path that may be a key; empty: there is none.

    >>> key_in_path(URL("https://example.org/exports/0123456789abcdef0123456789abcdef/recent.csv"))
    '0123456789abcdef0123456789abcdef'
    """
    return next((part for part in url.path.split("/") if _HEX.fullmatch(part)), "")


def _of_path(url: URL) -> tuple[str, ...]:
    if key_in_path(url):
        return ("see whether the long part of the path is a key: this kind shows its path",)
    return ()
