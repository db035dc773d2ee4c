"""Find the keys of sources: what is configured is the name of a secret, never the secret.

- A name is looked up by whatever `secrets_from` set for the present context, then in the process's
  environment. Whoever can read Prefect's Secret blocks passes a lookup in; this module cannot.
- A name is shown in errors, so that what looks like a key is refused as a name, unshown.
"""

from __future__ import annotations

import os
import re
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Annotated

from pydantic import AfterValidator, Field

from ladon_storage.errors import ConfigurationError

Lookup = Callable[[str], Awaitable[str | None]]
"""Return the secret of a name, or ``None`` where there is none."""

_lookup: ContextVar[Lookup | None] = ContextVar("_lookup", default=None)

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,127}")
# A UUID, or at least 32 hexadecimal digits: what these services give out as keys.
_KEY = re.compile(r"[0-9a-fA-F]{8}(-?[0-9a-fA-F]{4}){3}-?[0-9a-fA-F]{12,}")


def check_name(value: str) -> str:
    """Return ``value`` if it can name a secret.

    Raises:
        ValueError: It cannot, or looks like a secret itself.
    """
    if _KEY.fullmatch(value):
        raise ValueError("should be the name of a secret, and looks like the secret itself")
    if not _NAME.fullmatch(value):
        raise ValueError(
            "should be the name of a Prefect Secret block or of an environment variable: "
            "letters, digits, - and _"
        )
    return value


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
def secrets_from(lookup: Lookup) -> Iterator[None]:
    """Look secrets up by ``lookup`` first, in this context and in tasks that start in it.

    >>> import asyncio
    >>> async def vault(name: str) -> str | None:
    ...     return "s3cret" if name == "feed-key" else None
    >>> with secrets_from(vault):
    ...     asyncio.run(secret("feed-key", "feed"))
    's3cret'
    """
    token = _lookup.set(lookup)
    try:
        yield
    finally:
        _lookup.reset(token)


async def secret(name: str, source_id: str) -> str:
    """Return the secret that is called ``name``, for the source that needs it.

    Raises:
        ConfigurationError: There is none, or it is empty or no text of one line.
    """
    lookup = _lookup.get()
    found = await lookup(name) if lookup is not None else None
    if not found:
        found = os.environ.get(name)
    value = (found or "").strip()
    if not value:
        told = shown_name(name)
        raise ConfigurationError(
            f"The secret {told!r} of source {source_id!r} is not set; make a Prefect Secret block "
            f"{told!r}, or set the environment variable {told}."
        )
    if not (value.isascii() and value.isprintable()):  # no header could carry it
        raise ConfigurationError(
            f"The secret {name!r} of source {source_id!r} has other characters than printable "
            "ASCII; set it anew."
        )
    return value
