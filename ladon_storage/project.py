"""``ladon.toml``: storage, sinks and sources with their schedules, in one file.

- The file holds no secret: it names them. An address with a password in it is refused.
- What is wrong is one sentence with the file, the table and the key, and never with the value.
- A relative path in the file starts at the file's folder, so that a run finds the same database
  from whatever folder it is started in.
- The file is code as far as it names classes of one's own: they are imported from what is
  installed, then from the file's folder. So it is as trusted as a program.
"""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from ladon_storage.collection.interfaces import Limits, Sink, Source
from ladon_storage.collection.secrets import holds_secret, named_secret
from ladon_storage.collection.sinks import sink_from
from ladon_storage.collection.sources import made_source, with_source_id
from ladon_storage.errors import ConfigurationError
from ladon_storage.project_tables import (
    Defaults,
    Freshness,
    Schedule,
    SinkTable,
    SourceTable,
    StorageTable,
)
from ladon_storage.registry import Problem, add_to_path, made, nearest, sentence, unknown
from ladon_storage.settings import StorageSettings

__all__ = ["FILE_NAME", "FILE_VARIABLE", "Freshness", "Project", "Schedule"]

FILE_NAME = "ladon.toml"
"""The file's name, in the working directory."""

FILE_VARIABLE = "LADON_FILE"
"""The variable that names another file."""

_TABLES: dict[str, type[BaseModel]] = {
    "storage": StorageTable,
    "sinks": SinkTable,
    "defaults": Defaults,
    "sources": SourceTable,
}
_SETTINGS = tuple(name for name in SourceTable.model_fields if name != "kind")
"""Keys of a source's table that are not its class's."""

_BELOW = {
    **dict.fromkeys(Limits.model_fields, "limits"),
    **dict.fromkeys(Schedule.model_fields, "schedule"),
    **dict.fromkeys(Freshness.model_fields, "freshness"),
}
_EXAMPLES = {
    "limits": "initial_lookback = 30",
    "schedule": 'cron = "0 6 * * *"',
    "freshness": "max_age_hours = 48",
}
_BARE = re.compile(r"[A-Za-z0-9_-]+")
_USERINFO = re.compile(r"://[^/?#]*:[^/?#]*@")
_PATH = re.compile(r"(sqlite:///|jsonl://|delta://)(?![/:]|file:)(?=.)(.*)", re.DOTALL)


P = TypeVar("P", bound="Project")


class Project(BaseModel):
    """What a ``ladon.toml`` says.

    ``Project.load()`` reads it. The tables are as they stand in the file, except that each source
    has the defaults that it does not override, and relative paths start at the file's folder.
    """

    model_config = ConfigDict(frozen=True)

    path: Path
    storage: StorageTable = StorageTable()
    sinks: dict[str, SinkTable] = {}
    defaults: Defaults = Defaults()
    sources: dict[str, SourceTable] = {}

    @classmethod
    def load(cls, path: Path | str | None = None, *, check_sources: bool = True) -> Self:
        """Read the file.

        Args:
            path: The file; ``None``: what ``LADON_FILE`` names, or ``ladon.toml`` in the working
                directory.
            check_sources: Whether each source and sink is made once, so that a wrong field of any
                is an error now. Otherwise it is one when `source` or `sink` is asked for it.

        Raises:
            ConfigurationError: The file cannot be read, or something in it is wrong.
        """
        file = Path(path or os.environ.get(FILE_VARIABLE) or FILE_NAME)
        project = _read(cls, file, _document(file))
        if check_sources:
            for _, problem in project.problems():
                if problem is not None:
                    raise problem
        return project

    def problems(self) -> Iterator[tuple[str, ConfigurationError | None]]:
        """Yield each sink and source by its table, such as ``sources.kev``, and what is wrong."""
        for name in self.sinks:
            yield _table("sinks", name), _raised(lambda name=name: self.sink(name))
        ids: dict[str, str] = {}
        for name in self.sources:
            yield _table("sources", name), _raised(lambda name=name: self._checked(name, ids))

    def source(self, name: str) -> Source:
        """Return the source of this name. It has a ``source_id`` of its own, or the name for one.

        Raises:
            ConfigurationError: There is no such source, or a field of it is wrong.
        """
        source, problems = made_source(self._fields(name), name, _SETTINGS)
        if source is None:
            raise self._error(_table("sources", name), _placed(problems[0]))
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
        raise self._error(_table("sources", name), problem)

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
        raise ConfigurationError(f"{self.path}: [sinks.{_key(name)}] {problem}")

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
            raise self._error(_table("sources", name), Problem("sink", f"is missing; name {which}"))
        return sink

    def limits_of(self, name: str) -> Limits:
        """Return the limits of a source's runs."""
        table: SourceTable = self._named("source", name, self.sources)
        return table.limits

    async def storage_settings(self) -> StorageSettings | None:
        """Return where watermarks are, with the secrets that the file names.

        ``None``: the file does not say it, and the environment does.

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
        if table.circuit_url_secret:
            owner = "of [storage] circuit_url_secret"
            values["circuit_url"] = await named_secret(table.circuit_url_secret, owner)
        try:
            return StorageSettings.model_validate(values)
        except ValidationError as error:
            details = error.errors(include_url=False, include_input=False, include_context=False)
        first = details[0]
        raise self._error("storage", Problem(".".join(map(str, first["loc"])), first["msg"]))

    def _checked(self, name: str, ids: dict[str, str]) -> None:
        source = self.source(name)
        if (other := ids.setdefault(source.source_id, name)) != name:
            text = f"is {source.source_id!r}, as that of [{_table('sources', other)}]"
            raise self._error(_table("sources", name), Problem("source_id", text))

    def _fields(self, name: str) -> dict[str, Any]:
        table: SourceTable = self._named("source", name, self.sources)
        if ":" in table.kind:
            add_to_path(self.path.absolute().parent)
        return table.fields

    def _named(self, what: str, name: str, tables: Mapping[str, Any]) -> Any:
        if name not in tables:
            there = f"; there are {', '.join(tables)}" if tables else ""
            text = f"{self.path} has no {what} {name[:100]!r}"
            raise ConfigurationError(sentence(f"{text}{nearest(name, tables) or there}"))
        return tables[name]

    def _error(self, table: str, problem: Problem) -> ConfigurationError:
        return _error(self.path, table, problem)


def _document(file: Path) -> dict[str, Any]:
    try:
        # Some editors begin a file with a mark, which is no TOML.
        return tomllib.loads(file.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        problem = "does not exist. Write one with `ladon-storage init`, or set LADON_FILE"
    except UnicodeDecodeError:
        problem = "is not UTF-8. Save it as UTF-8"
    except OSError as error:
        problem = f"cannot be read ({error.strerror})"
    except ValueError as error:
        problem = f"is not TOML: {error}"
    raise ConfigurationError(f"The file {str(file)!r} {problem}.")


def _read(kind: type[P], file: Path, document: dict[str, Any]) -> P:
    for problem in unknown(document, _TABLES):
        raise _error(file, "", problem)
    for name, value in document.items():
        if not isinstance(value, dict):
            what = f"[{name}.NAME]" if name in ("sinks", "sources") else f"[{name}]"
            raise _error(file, "", Problem(name, f"should be a table. Write {what} above its keys"))
    tables: dict[str, Any] = {"path": file}
    folder = file.absolute().parent
    for name in ("storage", "defaults"):
        tables[name] = _table_of(file, name, document.get(name, {}), folder)
    defaults = document.get("defaults", {})
    for name in ("sinks", "sources"):
        tables[name] = {}
        for key, fields in document.get(name, {}).items():
            place = f"{name}.{_key(key)}"
            if not isinstance(fields, dict):
                text = f"should be a table. Write [{place}] above its keys"
                raise _error(file, name, Problem(key, text))
            if name == "sources":
                fields = _with_defaults(fields, defaults)
            tables[name][key] = _table_of(file, place, fields, folder)
    project = kind.model_validate(tables)
    for place, table in (
        ("defaults", project.defaults),
        *((f"sources.{_key(key)}", each) for key, each in project.sources.items()),
    ):
        if table.sink is not None and table.sink not in project.sinks:
            there = ", ".join(project.sinks)
            hint = nearest(table.sink, project.sinks) or (f"; there are {there}" if there else "")
            text = f"There is no table [sinks.{_key(table.sink)}]{hint}"
            raise _error(file, place, Problem("sink", text))
    return project


def _with_defaults(fields: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """Return a source's table with what it does not say itself; limits are merged one by one."""
    merged = {**defaults, **fields}
    limits = defaults.get("limits"), fields.get("limits", {})
    if all(isinstance(each, dict) for each in limits):
        merged["limits"] = {**limits[0], **limits[1]}  # type: ignore[dict-item]
    return merged


def _table_of(file: Path, place: str, fields: dict[str, Any], folder: Path) -> BaseModel:
    _refuse_passwords(file, place, fields)
    kind = _TABLES[place.partition(".")[0]]
    anchored = {name: _anchored(name, value, folder) for name, value in fields.items()}
    table, problems = made(kind, anchored)
    if problems:
        problem = _placed(problems[0])
        if problem == Problem("kind", "Field required"):
            near = next((each for each in fields if nearest(each, ["kind"])), None)
            if near is not None:
                problem = Problem(near, "There is no such key; did you mean 'kind'?")
        raise _error(file, place, problem)
    found: BaseModel = table
    return found


def _refuse_passwords(file: Path, place: str, value: object, key: str = "") -> None:
    """Refuse a text that is an address with a password in it, wherever it stands."""
    if isinstance(value, dict):
        for name, each in value.items():
            _refuse_passwords(file, place, each, f"{key}.{name}" if key else name)
    elif isinstance(value, list):
        for each in value:
            _refuse_passwords(file, place, each, key)
    elif isinstance(value, str):
        table = place.partition(".")[0]
        # Sources judge the queries of their addresses themselves: a page token is no secret.
        if _USERINFO.search(value) or (table in ("sinks", "storage") and holds_secret(value)):
            raise _error(file, place, Problem(key, f"holds a password. {_WHERE_TO[table]}"))


_SECRET = "a Prefect Secret block or an environment variable"  # noqa: S105 - where secrets are
_WHERE_TO = {
    "storage": f"Keep it in {_SECRET}, and set password, token or circuit_url_secret to its name",
    "sinks": f"Keep the whole address in {_SECRET}, and set url_secret to its name",
    "sources": f"Keep it in {_SECRET}, and set the source's key or url_secret to its name",
    "defaults": f"Keep it in {_SECRET}",
}


def _anchored(name: str, value: object, folder: Path) -> object:
    """Return an address or a path that starts at the file's folder where it is relative."""
    if not isinstance(value, str) or folder == Path.cwd():
        return value
    if name in ("ca_file", "client_cert", "client_key"):
        return str(folder / value)
    if name == "url" and (match := _PATH.fullmatch(value)):
        return f"{match[1]}{folder / match[2]}"
    return value


def _placed(problem: Problem) -> Problem:
    """Return a problem with a hint at the table that a misplaced key belongs to."""
    key = problem.field
    if problem.text.startswith("There is no such field"):
        if key in _BELOW:
            return Problem(key, f"There is no such key here. Write it as {_BELOW[key]}.{key}")
        if key == "limits.overlap":
            return Problem(key, "There is no such key here. Write overlap beside the source's kind")
    if problem.text.startswith("Input should be a valid dictionary") and key in _EXAMPLES:
        return Problem(key, f"should be a table. Write {key}.{_EXAMPLES[key]}")
    return problem


def _error(file: Path, table: str, problem: Problem) -> ConfigurationError:
    *below, key = problem.field.split(".") if problem.field else [""]
    place = ".".join(filter(None, (table, *below)))
    text = problem.text.removeprefix("Value error, ").replace("no such field", "no such key")
    if text == "Field required":
        text = "is missing"
    where = " ".join(filter(None, (f"[{place}]" if place else "", key)))
    return ConfigurationError(sentence(f"{file}: {where}: {text}"))


def _table(kind: str, name: str) -> str:
    return f"{kind}.{_key(name)}"


def _key(name: str) -> str:
    """Return a key as TOML writes it."""
    return name if _BARE.fullmatch(name) else json.dumps(name, ensure_ascii=False)


def _raised(call: Any) -> ConfigurationError | None:
    try:
        call()
    except ConfigurationError as error:
        return error
    return None
