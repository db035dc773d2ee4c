"""``ladon-storage source new``: a custom source class with its test, ready to run."""

from __future__ import annotations

import builtins
import keyword
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from ladon_storage.cli.output import note, print_text
from ladon_storage.cli.writing import write_new
from ladon_storage.errors import ConfigurationError

_NAME = re.compile(r"[a-z][a-z0-9_]{0,50}")

_USED = {
    "Any", "AsyncIterator", "BaseModel", "Fed", "Page", "Record", "Reject", "SourceContract",
    "SourceFeed", "UTC",
}  # fmt: skip
"""The names in both files that the class of a source could have."""

_CLASS = '''"""The source {name}: what it reads, and what its records are."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

from pydantic import BaseModel

from ladon_storage.collection import Page, Record, Reject, parse_json


class {cls}(BaseModel):
    """A source of a class of one's own; its fields are the keys of its table in ladon.toml."""

    source_id: str = "{name}"
    page_size: int = 2

    @property
    def overlap(self) -> timedelta:
        """How far before the watermark a run reads again, for records that come late."""
        return timedelta(hours=1)

    async def pages(self, start: datetime | None, until: datetime | None) -> AsyncIterator[Page]:
        """Yield all that is at least as young as ``start``; ``None``: all there is."""
        items = await self.fetch(start)
        for first in range(0, len(items), self.page_size):
            page = Page()
            for item in items[first : first + self.page_size]:
                read = self.read(item)
                if isinstance(read, Record):
                    page.records.append(read)
                else:
                    page.rejects.append(read)
            yield page

    def read(self, item: dict[str, Any]) -> Record | Reject:
        """Return an item as a record; what cannot be used is a reject with its reason."""
        try:
            time = datetime.fromisoformat(item["updated_at"])
            if item["id"] is None:
                raise ValueError("no id")
            return Record.of(str(item["id"]), time, item)
        except (KeyError, TypeError, ValueError) as error:
            return Reject.of(f"{{type(error).__name__}}: {{error}}", item)

    async def fetch(self, start: datetime | None) -> list[dict[str, Any]]:
        """Return the items of your system from ``start`` on: replace this text with its answer.

        ``parse_json`` keeps the digits of numbers; ``json.loads`` would make 0.1 of 0.10.
        """
        answer = """[
            {{"id": 1, "updated_at": "2024-01-01T00:00:00+00:00", "score": 0.10}},
            {{"id": 2, "updated_at": "2024-01-02T00:00:00+00:00", "score": 0.25}},
            {{"id": 3, "updated_at": "2024-01-03T00:00:00+00:00", "score": 7}}
        ]"""
        items: list[dict[str, Any]] = parse_json(answer)
        begin = start or datetime.min.replace(tzinfo=UTC)
        return [each for each in items if datetime.fromisoformat(each["updated_at"]) >= begin]
'''

_TEST = '''"""What must hold for {cls}, however it reads: run it with `pytest test_{name}.py`."""

from datetime import datetime
from typing import Any

from {name} import {cls}

from ladon_storage.testing import SourceContract, SourceFeed


class Test{cls}(SourceContract):
    """It keeps the contract of sources."""

    def new_source(self, feed: SourceFeed) -> {cls}:
        """Return the source over the items of the contract instead of your system.

        Once it reads over HTTP, return it with `feed.url` as its address, and play your API in a
        method `answer(request, items)`.
        """

        class Fed({cls}):
            async def fetch(self, start: datetime | None) -> list[dict[str, Any]]:
                return feed.read()

        return Fed()

    def item(self, record_id: str, time: datetime, value: str) -> object:
        """Return an item as your system has it."""
        return {{"id": record_id, "updated_at": time.isoformat(), "title": value}}


def test_unusable_item_is_rejected_with_a_reason() -> None:
    """An item without an id or a time does not end the run, and is not lost."""
    reject = {cls}().read({{"title": "neither id nor time"}})
    assert "updated_at" in reject.reason
'''


def source_new(
    name: Annotated[str, Parameter(help="Name of the source and of its module, such as tickets.")],
    /,
) -> None:
    """Write a custom source class with its test."""
    from ladon_storage.sources import SOURCES

    if not _NAME.fullmatch(name) or keyword.iskeyword(name):
        raise ConfigurationError(
            f"{name[:100]!r} cannot be the name of a module; write it in small letters, digits and "
            "underscores, such as tickets."
        )
    if name in SOURCES.shipped:
        raise ConfigurationError(f"{name!r} is a kind of this package; choose another name.")
    cls = "".join(part.capitalize() for part in name.split("_") if part)
    if taken := _taken(name, cls):
        raise ConfigurationError(
            f"{name!r} cannot be the name of a source of your own: {taken}. Choose another, such "
            f"as {name}_source."
        )
    files = write_new(
        {
            f"{name}.py": _CLASS.format(name=name, cls=cls),
            f"test_{name}.py": _TEST.format(name=name, cls=cls),
        }
    )
    for each in files:
        print_text(str(each))
    note(f"Next: `ladon-storage source try {name}:{cls}`, and `pytest test_{name}.py`.")
    note(f'In ladon.toml: [sources.{name}] with kind = "{name}:{cls}".')


def _taken(name: str, cls: str) -> str:
    """Return what else has the name of a module or of its class; empty: nothing."""
    if cls in _USED or hasattr(builtins, cls):  # True and None are there, too
        return f"its class would be {cls}, which the file needs for something else"
    found = find_spec(name)
    if found is None or found.origin in (None, str(Path(f"{name}.py").absolute())):
        return ""
    return f"there is a module {name} already"
