"""A sink whose whole URL is a secret, looked up by its name when the sink is opened.

The configuration contains no password, so it may be a parameter, be kept in a file and be printed.
When open, it acts as the sink at the URL, with the optional methods of that sink and no others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self

from ladon_storage.collection.credentials import check_name, named_secret, shown_name
from ladon_storage.collection.protocols import Position, Sink, WriteResult
from ladon_storage.collection.records import Page
from ladon_storage.errors import ConfigurationError, SinkError

_OPTIONAL = ("position", "mark_removed", "revert", "lacking", "count_records")


class SecretAddressSink:
    """A sink whose URL is a secret.

    Args:
        fields: The description, with ``url_secret``.
        sink_from: A function that returns the sink of a description.

    Raises:
        ConfigurationError: ``url_secret`` is no name of a secret, or is given together with
            ``url``.
    """

    def __init__(self, fields: Mapping[str, Any], sink_from: Callable[[object], Sink]) -> None:
        self._fields = dict(fields)
        name = self._fields.pop("url_secret")
        if "url" in self._fields:
            raise ConfigurationError(
                "A sink has either url or url_secret, not both. Remove one of them."
            )
        try:
            self._name = check_name(name if isinstance(name, str) else "")
        except ValueError as error:
            problem = str(error)
        else:
            problem = ""
        if problem:  # outside of the handler, whose exception may contain the secret itself
            raise ConfigurationError(f"The url_secret of a sink {problem}.")
        self._sink_from = sink_from
        self._opened: Sink | None = None
        # Mistakes outside of the URL are reported at once.
        if "kind" not in self._fields:
            sink_from({"url": "sqlite:///placeholder.db", **self._fields})

    def __repr__(self) -> str:
        return f"SecretAddressSink(url_secret={shown_name(self._name)!r})"

    async def __aenter__(self) -> Self:
        if self._opened is not None:
            raise SinkError(f"{self!r} serves another run. Give each run its own.")
        url = await named_secret(self._name, "of the sink")
        opened = self._sink_from({**self._fields, "url": url})
        await opened.__aenter__()
        self._opened = opened
        for name in _OPTIONAL:
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
        for name in _OPTIONAL:
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
