"""``ladon.toml``: storage, sinks and sources with their schedules, in one file.

- The file holds no secret: it names them. An address with a password in it is refused.
- A fault is one sentence with the file, the table and the key, and never with the value.
- A relative path in the file starts at the file's folder, so a run finds the same database from any
  working directory.
- The file is code as far as it names custom classes: they are imported from the installed packages,
  then from the file's folder. So it is as trusted as a program.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any, NoReturn, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from ladon_storage.collection.credentials import named_secret
from ladon_storage.collection.protocols import Limits, Sink, Source
from ladon_storage.errors import ConfigurationError
from ladon_storage.project.reading import SETTINGS, error_at, placed, read, table_place
from ladon_storage.project.tables import (
    CollectManyTable,
    Defaults,
    SinkTable,
    SourceTable,
    StorageTable,
)
from ladon_storage.registry import Problem, add_to_path, nearest, sentence
from ladon_storage.settings import StorageSettings
from ladon_storage.sinks import sink_from
from ladon_storage.sources import made_source, with_source_id

FILE_NAME = "ladon.toml"
"""The file's name, in the working directory."""

FILE_VARIABLE = "LADON_FILE"
"""The variable that names another file."""


class Project(BaseModel):
    """The content of a ``ladon.toml``.

    ``Project.load()`` reads it. The tables are as they stand in the file, except that each source
    has the defaults that it does not override, and relative paths start at the file's folder.
    """

    model_config = ConfigDict(frozen=True)

    path: Path
    storage: StorageTable = StorageTable()
    sinks: dict[str, SinkTable] = {}
    defaults: Defaults = Defaults()
    collect_many: CollectManyTable | None = None
    sources: dict[str, SourceTable] = {}

    @classmethod
    def load(
        cls, path: Path | str | None = None, *, check_sources: bool = True, absolute: bool = False
    ) -> Self:
        """Read the file.

        Args:
            path: The file; ``None``: the one in ``LADON_FILE``, or ``ladon.toml`` in the working
                directory.
            check_sources: Whether each source and sink is made once, so that a wrong field of any
                is an error now. Otherwise it is one when `source` or `sink` is asked for it.
            absolute: Whether paths are absolute also where the file is in the working directory,
                as they have to be for a run elsewhere.

        Raises:
            ConfigurationError: The file cannot be read, or something in it is wrong.
        """
        file = Path(path or os.environ.get(FILE_VARIABLE) or FILE_NAME)
        project = cls.model_validate(read(file, absolute=absolute))
        if check_sources:
            for _, problem in project.problems():
                if problem is not None:
                    raise problem
        return project

    def problems(self) -> Iterator[tuple[str, ConfigurationError | None]]:
        """Yield each wrong sink and source by its table, such as ``sources.kev``, and its fault."""
        for name in self.sinks:
            yield table_place("sinks", name), _raised(lambda name=name: self.sink(name))
        ids: dict[str, str] = {}
        for name in self.sources:
            yield table_place("sources", name), _raised(lambda name=name: self._checked(name, ids))

    def source(self, name: str) -> Source:
        """Return the source of this name. It has a ``source_id`` of its own, or the name for one.

        Raises:
            ConfigurationError: There is no such source, or a field of it is wrong.
        """
        source, problems = made_source(self._fields(name), name, SETTINGS)
        if source is None:
            raise self._error(table_place("sources", name), placed(problems[0]))
        return source

    def source_fields(self, name: str) -> dict[str, Any]:
        """Return the dictionary from which `source_from` makes the source, with its name in it.

        Raises:
            ConfigurationError: There is no such source, or no class of its kind.
        """
        try:
            return with_source_id(self._fields(name), name)
        except ConfigurationError as error:
            problem = Problem("kind", str(error).removesuffix("."))
        raise self._error(table_place("sources", name), problem)

    def sink(self, name: str) -> Sink:
        """Return the sink of this name.

        Raises:
            ConfigurationError: There is no such sink, or a field of it is wrong.
        """
        table = self._named("sink", name, self.sinks)
        if table.kind and ":" in table.kind:
            add_to_path(self.path.absolute().parent)
        try:
            return sink_from(table.fields)
        except ConfigurationError as error:
            problem = str(error)
        raise ConfigurationError(f"{self.path}: [{table_place('sinks', name)}] {problem}")

    def sink_of(self, name: str) -> str:
        """Return the name of a source's sink: its own, the default, or the only one.

        Raises:
            ConfigurationError: The file does not say it.
        """
        table: SourceTable = self._named("source", name, self.sources)
        sink = table.sink
        if sink is None and len(self.sinks) == 1:
            [sink] = self.sinks
        if sink is None:
            which = f"one of {', '.join(self.sinks)}" if self.sinks else "a table [sinks.NAME]"
            raise self._error(
                table_place("sources", name), Problem("sink", f"is missing; name {which}")
            )
        return sink

    def limits_of(self, name: str) -> Limits:
        """Return the limits of a source's runs."""
        table: SourceTable = self._named("source", name, self.sources)
        return table.limits

    async def storage_settings(self) -> StorageSettings | None:
        """Return the settings of the storage, with the secrets that the file names.

        ``None``: the file has none, and the environment decides.

        Raises:
            ConfigurationError: A secret is not set, or the settings make no sense together.
        """
        table = self.storage
        if table.url is None:
            return None
        values = table.model_dump(exclude_unset=True, exclude={"circuit_url_secret"})
        for field in ("token", "password"):
            if name := getattr(table, field):
                values[field] = await named_secret(name, f"of [storage] {field}")
        if circuit_url := await self.circuit_url():
            values["circuit_url"] = circuit_url
        try:
            return StorageSettings.model_validate(values)
        except ValidationError as error:
            details = error.errors(include_url=False, include_input=False, include_context=False)
        first = details[0]
        raise self._error("storage", Problem(".".join(map(str, first["loc"])), first["msg"]))

    async def circuit_url(self) -> str | None:
        """Return where the file keeps the circuit of its storage; ``None``: it does not say.

        Raises:
            ConfigurationError: It names a secret that is not set.
        """
        name = self.storage.circuit_url_secret
        if name:
            return await named_secret(name, "of [storage] circuit_url_secret")
        return self.storage.circuit_url

    def _checked(self, name: str, ids: dict[str, str]) -> None:
        source = self.source(name)
        if (other := ids.setdefault(source.source_id, name)) != name:
            self._refuse_id_of(name, source.source_id, other)

    def _fields(self, name: str) -> dict[str, Any]:
        table: SourceTable = self._named("source", name, self.sources)
        if ":" in table.kind:
            add_to_path(self.path.absolute().parent)
        return table.fields

    def refuse_shared_id(self, name: str) -> None:
        """Refuse a source that shares its watermark with another one, and would pass its records.

        Raises:
            ConfigurationError: It does.
        """
        source_id = self._ids[name]
        first, *others = [each for each, found in self._ids.items() if found == source_id]
        if others:
            self._refuse_id_of(others[0], source_id, first)

    @cached_property
    def _ids(self) -> dict[str, str]:
        return {name: self._id_of(name) for name in self.sources}

    def _id_of(self, name: str) -> str:
        """Return the id of a source, which a class of one's own may not take from its table."""
        table: SourceTable = self.sources[name]
        declared = table.fields.get("source_id")
        if ":" in table.kind:
            with suppress(ConfigurationError):  # it is shown where the source is made
                return self.source(name).source_id
        return declared if isinstance(declared, str) else name

    def _refuse_id_of(self, name: str, source_id: str, other: str) -> NoReturn:
        text = f"is {source_id!r}, as that of [{table_place('sources', other)}]"
        raise self._error(table_place("sources", name), Problem("source_id", text))

    def _named(self, what: str, name: str, tables: Mapping[str, Any]) -> Any:
        if name not in tables:
            there = f"; there are {', '.join(tables)}" if tables else ""
            text = f"{self.path} has no {what} {name[:100]!r}"
            raise ConfigurationError(sentence(f"{text}{nearest(name, tables) or there}"))
        return tables[name]

    def _error(self, table: str, problem: Problem) -> ConfigurationError:
        return error_at(self.path, table, problem)


def example() -> str:
    """Return a file to begin with: one public feed, and the rest as commented examples.

    >>> example().startswith("# Storage, sinks and sources")
    True
    """
    return files("ladon_storage.project").joinpath("ladon.example.toml").read_text("utf-8")


def _raised(call: Any) -> ConfigurationError | None:
    try:
        call()
    except ConfigurationError as error:
        return error
    return None
