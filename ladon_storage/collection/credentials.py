"""The keys of sources: the configuration holds the name of a secret, never the secret.

- A name is looked up by the function that `secret_lookup` set for the present context, then in the
  process's environment. Code that can read Prefect's Secret blocks passes a lookup in; this module
  cannot.
- Errors quote a name, so a text that looks like a key is refused as a name, and not quoted.
"""

from __future__ import annotations

import os
import re
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Annotated
from urllib.parse import unquote_plus

from pydantic import AfterValidator, Field

from ladon_storage.errors import ConfigurationError, keep_secret

Lookup = Callable[[str], Awaitable[str | None]]
"""A function from a name to its secret, or to ``None`` where there is none."""

_lookup: ContextVar[Lookup | None] = ContextVar("_lookup", default=None)

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,127}")
# A UUID, or at least 32 hexadecimal digits: the usual keys of these services.
_KEY = re.compile(r"[0-9a-fA-F]{8}(-?[0-9a-fA-F]{4}){3}-?[0-9a-fA-F]{12,}")

# Tokens whose issuers mark them, so that they are recognised where they do not belong.
_MARKED_KEY = re.compile(
    r"gh[pousr]_\w{36,}|github_pat_\w{22,}|glpat-[\w-]{20,}|xox[abeprs]-[\w-]{10,}|"
    r"(AKIA|ASIA)[0-9A-Z]{16}|AIza[\w-]{35}|hf_[A-Za-z]{34}|eyJ[\w-]{20,}"
)
_SHORTEST_RANDOM = 20
_DIGITS_WITHIN = re.compile(r"(?<=[A-Za-z])[0-9]+(?=[A-Za-z])")


def _looks_random(value: str) -> bool:
    """Return whether digits stand within words so often that these are none."""
    is_mixed = not value.isupper() and not value.islower()
    runs = len(_DIGITS_WITHIN.findall(value))
    return len(value) >= _SHORTEST_RANDOM and runs >= (3 if is_mixed else 5)


def check_name(value: str) -> str:
    """Return ``value`` if it can name a secret.

    Raises:
        ValueError: It cannot, or looks like a secret itself.
    """
    if _KEY.fullmatch(value) or _MARKED_KEY.fullmatch(value) or _looks_random(value):
        raise ValueError("should be the name of a secret, and looks like the secret itself")
    if not _NAME.fullmatch(value):
        raise ValueError(
            "should be the name of a Prefect Secret block or of an environment variable: "
            "letters, digits, - and _"
        )
    return value


# As databases read it: a password has any character but @.
_PASSWORD = re.compile(r"://[^:/@?#]*:[^@]+@", re.DOTALL)
SECRET_FIELD = re.compile(
    r"pass|pwd|secret|token|credential|signature|authori|cookie|(^|[._-])(sig|auth|key)($|[._-])|"
    r"(api|access|account|private|sas)[._-]?key",
    re.IGNORECASE,
)
"""The names of fields that may hold a secret."""


def is_secret_option(name: object) -> bool:
    """Return whether a setting of an object storage, by its variable's name, is a secret.

    >>> is_secret_option("AWS_SECRET_ACCESS_KEY"), is_secret_option("AWS_REGION")
    (True, False)
    """
    return isinstance(name, str) and name.isupper() and SECRET_FIELD.search(name) is not None


# In options of a database names stand after a blank or another equals sign.
_QUERY_NAME = re.compile(r"(?<=[?&;=\s])([^=&;#\s]+)=")


def holds_secret(address: str) -> bool:
    """Return whether an address has a password or a token in it.

    >>> holds_secret("postgresql://user:p/w@db/records"), holds_secret("sqlite:///records.db")
    (True, False)
    """
    return _PASSWORD.search(address) is not None or any(
        SECRET_FIELD.search(name) for name in _QUERY_NAME.findall(unquote_plus(address))
    )


# Words with _ or - between them, in one case, with few digits; a single word has none.
_PLAIN = re.compile(
    r"_?([A-Z]+[0-9]{0,4}([_-]([A-Z]+[0-9]{0,4}|[0-9]{1,4}))+|[A-Z]{1,20})|"
    r"_?([a-z]+[0-9]{0,4}([_-]([a-z]+[0-9]{0,4}|[0-9]{1,4}))+|[a-z]{1,20})"
)


def shown_name(name: str) -> str:
    """Return the name of a secret that is not there, in part where it may be the secret itself.

    >>> shown_name("ABUSE_CH_KEY"), shown_name("feed-key"), shown_name("hunter2secret")
    ('ABUSE_CH_KEY', 'feed-key', 'hu…')
    """
    return name if _PLAIN.fullmatch(name) else f"{name[:2]}…"


SecretName = Annotated[str, AfterValidator(check_name), Field(title="Name")]
"""The name of a Prefect Secret block, or of an environment variable."""


@contextmanager
def secret_lookup(lookup: Lookup) -> Iterator[None]:
    """Look secrets up by ``lookup`` first, in this context and in tasks that start in it.

    >>> import asyncio
    >>> async def vault(name: str) -> str | None:
    ...     return "s3cret" if name == "feed-key" else None
    >>> with secret_lookup(vault):
    ...     asyncio.run(resolve_secret("feed-key", "feed"))
    's3cret'
    """
    token = _lookup.set(lookup)
    try:
        yield
    finally:
        _lookup.reset(token)


async def resolve_secret(name: str, source_id: str) -> str:
    """Return the secret named ``name``, for the source that needs it.

    It is looked up as a Prefect Secret block where a flow collects, then in the environment. An
    error or a reject of the source that quotes it is shown with asterisks in its place.

    Raises:
        ConfigurationError: There is none, or it is empty or no text of one line.
    """
    return await named_secret(name, f"of source {source_id!r}")


async def named_secret(name: str, owner: str) -> str:
    """Return the secret named ``name``.

    Args:
        name: The name.
        owner: Its owner as errors name it, such as ``of the sink``.

    Raises:
        ConfigurationError: There is none, or it is empty or no text of one line.
    """
    lookup = _lookup.get()
    found = await lookup(name) if lookup is not None else None
    if not found:
        found = os.environ.get(name)
    value = (found or "").strip()
    shown = shown_name(name)
    if not value:
        raise ConfigurationError(
            f"The secret {shown!r} {owner} is not set; make a Prefect Secret block "
            f"{shown!r}, or set the environment variable {shown}."
        )
    if not (value.isascii() and value.isprintable()):  # no header could carry it
        raise ConfigurationError(
            f"The secret {shown!r} {owner} has other characters than printable ASCII. Store it "
            "again."
        )
    keep_secret(value)
    return value
