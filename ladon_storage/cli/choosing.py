"""From the command line to sources and sinks: by their names in the file, or ad hoc.

- A name in the file goes before a kind. A JSON object, or a file that holds one, is a separate
  source.
- No address on a command line has a password: every user of the host sees the list of processes,
  and Prefect stores the parameters of a run.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ladon_storage.collection.credentials import holds_secret
from ladon_storage.collection.protocols import Limits, Sink, Source
from ladon_storage.collection.standby import WhenBusy
from ladon_storage.connect import settings_by_hand
from ladon_storage.errors import ConfigurationError
from ladon_storage.project.project import FILE_NAME, FILE_VARIABLE, Project
from ladon_storage.registry import add_to_path, made, nearest, sentence
from ladon_storage.settings import StorageSettings
from ladon_storage.sinks import sink_from
from ladon_storage.sources import SOURCES, source_from

NO_SECRETS = (
    "has a password or a token in it, and every user of this host sees a command line. Keep the "
    "whole address in an environment variable or a Prefect Secret block, and name it: url_secret "
    '= "NAME" in the table [sinks.records] of ladon.toml, or --sink \'{"url_secret": "NAME"}\'.'
)


@dataclass(frozen=True)
class SourceChoice:
    """A source that the command line names.

    Args:
        name: Its name there.
        make: Returns the source.
        fields: Returns the dictionary that describes it.
        limits: The limits of its runs.
        when_busy: The behaviour of its runs where another run holds it.
        sink: The name of its sink in the file; ``None``: the file has none for it.
    """

    name: str
    make: Callable[[], Source]
    fields: Callable[[], dict[str, Any]]
    limits: Limits = field(default_factory=Limits)
    when_busy: WhenBusy = "fail"
    sink: str | None = None


@dataclass(frozen=True)
class SinkChoice:
    """A sink that the command line or the file names.

    Args:
        name: Its name there.
        make: Returns the sink.
        described: The argument of a flow: its dictionary, or the name of a block; ``None``: the
            block named default.
    """

    name: str
    make: Callable[[], Sink]
    described: dict[str, Any] | str | None


def load_project(file: Path | None) -> Project | None:
    """Return the project of the file; ``None`` where there is no file and none is named.

    Raises:
        ConfigurationError: The file cannot be read, or a table of it is wrong.
    """
    if file is None and not os.environ.get(FILE_VARIABLE) and not Path(FILE_NAME).exists():
        return None
    return Project.load(file, check_sources=False)


def choose_sources(
    project: Project | None, names: Sequence[str], *, all_: bool = False
) -> list[SourceChoice]:
    """Return the sources that are named, or all that the file has.

    Raises:
        ConfigurationError: None is named, one is named twice, or one does not exist.
    """
    there = list(project.sources) if project else []
    if all_ and names:
        raise ConfigurationError("Give either names or --all, and not both.")
    if all_ and project is None:
        raise ConfigurationError(
            f"There is no {FILE_NAME} here, and so no source; write one with `ladon-storage init`."
        )
    if all_ and project is not None and not there:
        raise ConfigurationError(
            f"{project.path} has no source; add a table [sources.NAME], or let `ladon-storage "
            "source guess` propose one."
        )
    if not names and not all_:
        listed = f" {FILE_NAME} has {', '.join(there)}." if there else ""
        raise ConfigurationError(f"Name a source, or give --all for every one in the file.{listed}")
    if twice := [each for each in names if list(names).count(each) > 1]:
        raise ConfigurationError(f"The source {twice[0][:100]!r} is named twice; name it once.")
    return [choose_source(project, each) for each in (there if all_ else names)]


def choose_source(project: Project | None, text: str) -> SourceChoice:
    """Return the source of a name, a JSON object, a file that holds one, or a kind.

    Raises:
        ConfigurationError: There is none.
    """
    if text.lstrip().startswith("{"):
        return _ad_hoc(json_object(text, "The source"))
    if project is not None and (name := name_of(project, text)) is not None:
        return _of_file(project, name)
    if "://" in text:
        raise ConfigurationError(
            "An address alone is no source. `ladon-storage source guess` proposes one for it, as a "
            "table of ladon.toml."
        )
    if text.endswith((".toml", ".json")) or Path(text).is_file():
        return _of_own_file(Path(text))
    add_to_path(Path.cwd())
    if project is not None and ":" not in text and text not in SOURCES.names():
        hint = nearest(text, [*project.sources, *SOURCES.names()])
        names = ", ".join(project.sources) or "none"
        raise ConfigurationError(
            f"There is no source {text[:100]!r} in {project.path}, nor such a kind"
            + (hint or f"; the file has {names}, and the kinds are {', '.join(SOURCES.names())}.")
        )
    return _ad_hoc({"kind": text})


def name_of(project: Project, text: str) -> str | None:
    """Return the name of the file's source that a text names, or whose watermark it names.

    An alert and the status page know a source by its watermark.
    """
    if text in project.sources:
        return text
    for name in project.sources:
        with suppress(ConfigurationError):  # a wrong table names no watermark
            if project.source(name).source_id == text:
                return name
    return None


def _of_file(project: Project, name: str) -> SourceChoice:
    project.refuse_shared_id(name)
    return SourceChoice(
        name=name,
        make=lambda: project.source(name),
        fields=lambda: project.source_fields(name),
        limits=project.limits_of(name),
        when_busy=project.sources[name].when_busy,
        sink=project.sink_of(name) if project.sinks else None,
    )


def _ad_hoc(fields: dict[str, Any]) -> SourceChoice:
    add_to_path(Path.cwd())
    source = source_from(fields)  # wrong at once: there is no other source to continue with
    return SourceChoice(source.source_id, lambda: source_from(fields), lambda: fields)


def _of_own_file(file: Path) -> SourceChoice:
    if file.suffix != ".toml":
        try:
            text = file.read_text(encoding="utf-8")
        except (OSError, UnicodeError) as error:
            raise ConfigurationError(f"The file {str(file)!r} cannot be read ({error}).") from None
        return _ad_hoc(json_object(text, f"The file {str(file)!r}"))
    project = Project.load(file, check_sources=False)
    if len(project.sources) != 1:
        names = ", ".join(project.sources) or "none"
        raise ConfigurationError(
            f"The file {str(file)!r} has not one source, but {names}; give --file and a name."
        )
    # Its sinks are those of the other file, and are not looked up there.
    return replace(_of_file(project, *project.sources), sink=None)


def json_object(text: str, what: str, example: str = '{"kind": "kev"}') -> dict[str, Any]:
    """Return the JSON object of a text.

    Args:
        text: The text.
        what: Its name in a message.
        example: One that could be written instead.

    Raises:
        ConfigurationError: The text is none.
    """
    try:
        found = json.loads(text)
    except ValueError as error:
        problem = f"is not JSON ({error})"
    except RecursionError:
        problem = "is nested too deeply"
    else:
        if isinstance(found, dict):
            return found
        problem = f"is JSON of a {type(found).__name__}, not an object"
    raise ConfigurationError(f"{what} {problem}; write it as {example}.")


def choose_sink(
    project: Project | None,
    source: SourceChoice,
    given: str | None,
    *,
    with_prefect: bool = False,
) -> SinkChoice:
    """Return the sink of a source, from the command line or from the file.

    Raises:
        ConfigurationError: There is none, or its address has a password in it.
    """
    if given is None and project is not None and (source.sink or project.sinks):
        given = source.sink or _only(project)
    if given is None:
        if with_prefect:
            return SinkChoice("default", lambda: sink_from(None), None)
        raise ConfigurationError(
            "There is no sink; give one, such as --sink sqlite:///records.db, or a table "
            "[sinks.records] in ladon.toml."
        )
    return choose_sink_text(project, given, with_prefect=with_prefect)


def choose_sink_text(
    project: Project | None, given: str, *, with_prefect: bool = False
) -> SinkChoice:
    """Return the sink of a text: an address, a JSON object, a name in the file, or a block's.

    Raises:
        ConfigurationError: There is none, or its address has a password in it.
    """
    if holds_secret(given):
        raise ConfigurationError(f"The sink's address {NO_SECRETS}")
    if given.lstrip().startswith("{"):
        fields = json_object(given, "The sink", '{"url": "sqlite:///records.db"}')
        if any(isinstance(each, str) and holds_secret(each) for each in fields.values()):
            raise ConfigurationError(f"The sink's address {NO_SECRETS}")
        return _described(given, fields)
    if "://" in given:
        return _described(given, {"url": given})
    if project is not None and given in project.sinks:
        return SinkChoice(given, lambda: project.sink(given), project.sinks[given].fields)
    if with_prefect:
        return SinkChoice(given, lambda: sink_from(None), given)
    there = f"; there are {', '.join(project.sinks)}" if project and project.sinks else ""
    raise ConfigurationError(
        f"There is no sink {given[:100]!r} in a file{there}. Write an address as "
        "sqlite:///records.db; a block needs --prefect."
    )


def _only(project: Project) -> str:
    if project.defaults.sink:
        return project.defaults.sink
    if len(project.sinks) == 1:
        return next(iter(project.sinks))
    raise ConfigurationError(f"Name a sink with --sink: one of {', '.join(project.sinks)}.")


def _described(name: str, fields: dict[str, Any]) -> SinkChoice:
    add_to_path(Path.cwd())
    sink_from(fields)  # wrong at once
    return SinkChoice(name, lambda: sink_from(fields), fields)


async def file_settings(project: Project | None) -> StorageSettings | None:
    """Return the storage settings of the file; ``None``: it has none."""
    return None if project is None else await project.storage_settings()


async def settings_of(project: Project | None) -> StorageSettings:
    """Return the storage settings: by the file, the environment, or for ``ladon.db`` here.

    Raises:
        ConfigurationError: The settings make no sense together.
    """
    return await file_settings(project) or settings_by_hand()


def with_limits(limits: Limits, given: str | None) -> Limits:
    """Return limits with those that the command line gives as JSON.

    Raises:
        ConfigurationError: The JSON gives none that can be used.
    """
    if given is None:
        return limits
    fields = json_object(given, "The value of --limits", '{"initial_lookback": 30}')
    found, problems = made(Limits, {**limits.model_dump(exclude_unset=True), **fields})
    if problems:
        raise ConfigurationError(sentence(f"The limits cannot be used: {problems[0]}"))
    chosen: Limits = found
    return chosen


def instant(text: str, option: str) -> datetime:
    """Return the timestamp of an option; a date alone is its midnight in UTC.

    Raises:
        ConfigurationError: The text is no timestamp, or has no UTC offset.
    """
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        found = None
    if found is not None and len(text) == len("2024-01-01"):
        return found.replace(tzinfo=UTC)
    if found is None or found.tzinfo is None:
        problem = "is no time" if found is None else "has no UTC offset"
        raise ConfigurationError(
            f"{option} {problem}; write it as 2024-01-01 or 2024-01-01T00:00:00+00:00."
        )
    return found
