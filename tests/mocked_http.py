"""What aioresponses needs to know of the present aiohttp, and nothing else."""

from __future__ import annotations

import inspect
from typing import Any
from unittest.mock import Mock

from aiohttp import ClientResponse
from aioresponses import aioresponses

_NEEDS_WRITER = "stream_writer" in inspect.signature(ClientResponse.__init__).parameters


class _Response(ClientResponse):
    """Be made as aioresponses 0.7.9 makes a response, which aiohttp 3.14 asks more of.

    https://github.com/pnuckowski/aioresponses/issues/289
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        if _NEEDS_WRITER:
            options.setdefault("stream_writer", Mock())
        super().__init__(*arguments, **options)


class MockedHttp(aioresponses):
    """Answer the requests of aiohttp's sessions from what was registered, without a connection."""

    def add(self, url: Any, *arguments: Any, **options: Any) -> None:
        """Register an answer, as ``aioresponses.add`` does."""
        options.setdefault("response_class", _Response)
        super().add(url, *arguments, **options)
