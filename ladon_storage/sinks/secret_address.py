"""A sink with secrets, its whole URL or settings of its storage, looked up when it is opened.

The configuration contains no password, so it may be a parameter, be kept in a file and be printed.
When open, it acts as the sink at the URL, with the optional members of that sink and no others.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any, Protocol, Self

from ladon_storage.collection.credentials import check_name, named_secret, shown_name
from ladon_storage.collection.protocols import OPTIONAL_MEMBERS, Position, Sink, WriteResult
from ladon_storage.collection.records import Page
from ladon_storage.errors import ConfigurationError, SinkError


class SinkMaker(Protocol):
    """A function that returns the sink of a description."""

    def __call__(self, value: object, *, credentials: Mapping[str, str] | None = None) -> Sink:
        """Return the sink."""
        ...


class SecretAddressSink:
    """A sink whose URL is a secret, or whose storage has settings that are.

    Args:
        fields: The description, with ``url_secret`` or ``secrets``.
        sink_from: A function that returns the sink of a description.

    Raises:
        ConfigurationError: A name is no name of a secret, or ``url_secret`` is given together with
            ``url``.
    """

    def __init__(self, fields: Mapping[str, Any], sink_from: SinkMaker) -> None:
        self._fields = dict(fields)
        self._name: str | None = self._fields.pop("url_secret", None)
        self._names = _names_of(self._fields.pop("secrets", None) or {})
        self._sink_from = sink_from
        self._opened: Sink | None = None
        # Mistakes outside of the secrets are reported at once.
        if "url_secret" in fields:
            if "url" in self._fields:
                raise ConfigurationError(
                    "A sink has either url or url_secret, not both. Remove one of them."
                )
            _check_name("url_secret", self._name)
            if "kind" not in self._fields and not self._names:
                sink_from({"url": "sqlite:///placeholder.db", **self._fields})
        else:
            sink_from(self._fields, credentials=dict.fromkeys(self._names, "placeholder"))

    def __repr__(self) -> str:
        if self._name is None:
            return f"SecretAddressSink(url={self._fields['url']!r})"
        return f"SecretAddressSink(url_secret={shown_name(self._name)!r})"

    async def __aenter__(self) -> Self:
        if self._opened is not None:
            raise SinkError(f"{self!r} serves another run. Give each run its own.")
        fields = dict(self._fields)
        if self._name is not None:
            fields["url"] = await named_secret(self._name, "of the sink")
        credentials = {
            option: await named_secret(name, "of the sink") for option, name in self._names.items()
        }
        opened = self._sink_from(fields, credentials=credentials)
        await opened.__aenter__()
        self._opened = opened
        for name in OPTIONAL_MEMBERS:
            if hasattr(opened, name):
                setattr(self, name, getattr(opened, name))
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        opened, self._opened = self._opened, None
        for name in OPTIONAL_MEMBERS:
            vars(self).pop(name, None)
        if opened is not None:
            await opened.__aexit__(kind, error, traceback)

    async def write(
        self, source_id: str, page: Page, *, run_id: str = "", position: Position | None = None
    ) -> WriteResult | int:
        """Make a page durable in the sink at the URL.

        Raises:
            SinkError: The sink is not open, or refused the page.
        """
        if self._opened is None:
            raise SinkError(f"{self!r} is not open. Use `async with` around it.")
        return await self._opened.write(source_id, page, run_id=run_id, position=position)


def _names_of(secrets: object) -> dict[str, str]:
    """Return the names of the secrets of a storage's settings."""
    if not isinstance(secrets, Mapping):
        raise ConfigurationError(
            "A sink's secrets should be a mapping such as {'AWS_SECRET_ACCESS_KEY': 'lake-key'}, "
            f"not a {type(secrets).__name__}."
        )
    for option, name in secrets.items():
        _check_name(f"secrets.{str(option)[:40]}", name)
    return dict(secrets)


def _check_name(field: str, name: object) -> None:
    try:
        check_name(name if isinstance(name, str) else "")
    except ValueError as error:
        problem = str(error)
    else:
        return
    # Outside of the handler, whose exception may contain the secret itself.
    raise ConfigurationError(f"The {field} of a sink {problem}.")
