"""From the text of a ``ladon.toml`` to its tables, or to one sentence about the fault.

- A fault is reported with the file, the table and the key, and never with the value.
- Relative paths become those of the file's folder.
"""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from pydantic import BaseModel

from ladon_storage.collection.credentials import holds_secret, is_secret_option
from ladon_storage.collection.protocols import Limits
from ladon_storage.databases import escaped
from ladon_storage.errors import ConfigurationError
from ladon_storage.project.tables import (
    CollectManyTable,
    Defaults,
    Freshness,
    Reconciling,
    Schedule,
    SinkTable,
    SourceTable,
    StorageTable,
)
from ladon_storage.registry import MISSING, Problem, made, nearest, sentence, unknown
from ladon_storage.settings import check_folder
from ladon_storage.values import seen

_TABLES: dict[str, type[BaseModel]] = {
    "storage": StorageTable,
    "sinks": SinkTable,
    "defaults": Defaults,
    "collect_many": CollectManyTable,
    "sources": SourceTable,
}
SETTINGS = tuple(name for name in SourceTable.model_fields if name != "kind")
"""The keys of a source's table that are not fields of its class."""

_BELOW = {
    **dict.fromkeys(Reconciling.model_fields, "reconcile"),
    **dict.fromkeys(Limits.model_fields, "limits"),
    **dict.fromkeys(Schedule.model_fields, "schedule"),
    **dict.fromkeys(Freshness.model_fields, "freshness"),
}
_EXAMPLES = {
    "limits": "initial_lookback = 30",
    "schedule": 'cron = "0 6 * * *"',
    "freshness": "max_age_hours = 48",
    "reconcile": "active = false, or reconcile.last_days = 30",
    "since": 'parameter = "updated_since"',
    "until": 'parameter = "updated_before"',
    "paging": 'kind = "page"',
}
_BARE = re.compile(r"[A-Za-z0-9_-]+")
_USERINFO = re.compile(r"://[^/?#]*:[^/?#]*@")
_FOLDER = re.compile(r"((?:jsonl|delta)://)(?!/)(.+)", re.DOTALL | re.IGNORECASE)
_DATABASE = re.compile(
    r"(\s*(?:sqlite|duckdb)(?:\+\w+)?:///)(?![/:]|file:)([^?]+)(.*)", re.DOTALL | re.IGNORECASE
)


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
    except RecursionError:
        problem = "is not read: its values are nested too deeply"
    except ValueError as error:
        problem = f"is not TOML: {_TWICE.sub(_table_twice, str(error))}"
    raise ConfigurationError(f"The file {str(file)!r} {problem}.")


def read(file: Path, *, absolute: bool = False) -> dict[str, Any]:
    """Return the tables of a file, each checked, and the file's path.

    Args:
        file: The file.
        absolute: Whether paths are absolute also where the file is in the working directory.

    Raises:
        ConfigurationError: It cannot be read, or something in it is wrong.
    """
    document = _document(file)
    for problem in unknown(document, _TABLES):
        raise error_at(file, "", problem)
    for name, value in document.items():
        if not isinstance(value, dict):
            what = f"[{name}.NAME]" if name in ("sinks", "sources") else f"[{name}]"
            raise error_at(
                file, "", Problem(name, f"should be a table. Write {what} above its keys")
            )
    tables: dict[str, Any] = {"path": file}
    folder = file.absolute().parent
    if folder == Path.cwd() and not absolute:
        folder = Path()  # messages then show an address as it is written
    for name in ("storage", "defaults", "collect_many"):
        if name in document:
            tables[name] = _table_of(file, name, document[name], folder)
    storage = document.get("storage", {})
    if storage and "url" not in storage:
        others = ", ".join(storage)
        text = f"is missing, without which {others} would be ignored. Set it, or remove the others"
        raise error_at(file, "storage", Problem("url", text))
    if _DATABASE.match(str(storage.get("url"))):
        try:
            check_folder(file.absolute().parent)
        except ConfigurationError as error:
            raise error_at(file, "storage", Problem("url", str(error))) from None
    defaults = document.get("defaults", {})
    for name in ("sinks", "sources"):
        tables[name] = {}
        shown: dict[str, str] = {}
        for key, fields in document.get(name, {}).items():
            place = table_place(name, key)
            if (other := shown.setdefault(seen(key), key)) != key:
                text = f"looks like [{table_place(name, other)}] in a list. Rename one of them"
                raise error_at(file, place, Problem("", text))
            if not isinstance(fields, dict):
                text = f"should be a table. Write [{place}] above its keys"
                raise error_at(file, name, Problem(key, text))
            if name == "sources":
                fields = _with_defaults(fields, defaults)
            tables[name][key] = _table_of(file, place, fields, folder)
    _check_sinks(file, tables)
    return tables


def _check_sinks(file: Path, tables: dict[str, Any]) -> None:
    """Refuse a name of a sink of which there is no table."""
    sinks: dict[str, SinkTable] = tables["sinks"]
    named: dict[str, Defaults] = {"defaults": tables.get("defaults", Defaults())}
    named |= {table_place("sources", name): each for name, each in tables["sources"].items()}
    for place, table in named.items():
        if table.sink is not None and table.sink not in sinks:
            hint = nearest(table.sink, sinks) or (
                f"; there are {', '.join(sinks)}" if sinks else ""
            )
            text = f"There is no table [{table_place('sinks', table.sink)}]{hint}"
            raise error_at(file, place, Problem("sink", text))


def _with_defaults(fields: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """Return a source's table with defaults for its unset keys; limits are merged one by one."""
    merged = {**defaults, **fields}
    limits = defaults.get("limits"), fields.get("limits", {})
    if all(isinstance(each, dict) for each in limits):
        merged["limits"] = {**limits[0], **limits[1]}  # type: ignore[dict-item]
    return merged


def _table_of(file: Path, place: str, fields: dict[str, Any], folder: Path) -> BaseModel:
    _refuse_passwords(file, place, fields)
    kind = _TABLES[place.partition(".")[0]]
    table, problems = made(kind, _anchored(place, fields, folder))
    if problems:
        problem = placed(problems[0])
        if problem == Problem("kind", MISSING):
            near = next((each for each in fields if nearest(each, ["kind"])), None)
            if near is not None:
                problem = Problem(near, "There is no such key; did you mean 'kind'?")
        raise error_at(file, place, problem)
    found: BaseModel = table
    return found


def _refuse_passwords(file: Path, place: str, value: object, key: str = "") -> None:
    """Refuse a text that is a URL with a password in it, anywhere in the file."""
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
            raise error_at(file, place, Problem(key, f"holds a password. {_WHERE_TO[table]}"))
        option = key.removeprefix("options.")
        if table == "sinks" and option != key and is_secret_option(option):
            where = f"Keep it in {_SECRET}, and set secrets.{option} to its name"
            raise error_at(file, place, Problem(key, f"holds a secret. {where}"))


_SECRET = "a Prefect Secret block or an environment variable"  # noqa: S105 - where secrets are
_WHERE_TO = {
    "storage": f"Keep it in {_SECRET}, and set password, token or circuit_url_secret to its name",
    "sinks": f"Keep the whole address in {_SECRET}, and set url_secret to its name",
    "sources": f"Keep it in {_SECRET}, and set the source's key or url_secret to its name",
    "defaults": f"Keep it in {_SECRET}",
    "collect_many": f"Keep it in {_SECRET}",
}


def _anchored(place: str, value: Any, folder: Path, name: str = "") -> Any:
    """Return a table with addresses and paths that start at a folder where they are relative."""
    if isinstance(value, dict):
        return {below: _anchored(place, each, folder, below) for below, each in value.items()}
    if not isinstance(value, str) or folder == Path():
        return value
    if name in ("ca_file", "client_cert", "client_key"):
        return str(folder / value)
    if name == "url" and place == "storage":
        return _anchored_storage(value, folder)
    return _anchored_address(value, folder) if name in ("url", "circuit_url") else value


def _anchored_storage(address: str, folder: Path) -> str:
    """Return the address of a storage, whose path is no text with codes."""
    match = _DATABASE.fullmatch(address)
    return f"{match[1]}{folder / match[2]}{match[3]}" if match else address


def _anchored_address(address: str, folder: Path) -> str:
    """Return the address of a sink, a circuit or a table.

    >>> _anchored_address("sqlite:///records.db", Path("/srv/100%"))
    'sqlite:////srv/100%25/records.db'
    """
    if match := _FOLDER.fullmatch(address):
        return f"{match[1]}{folder / match[2]}"
    match = _DATABASE.fullmatch(address)
    return f"{match[1]}{escaped(folder / unquote(match[2]))}{match[3]}" if match else address


_TWICE = re.compile(r"Cannot declare \(([^)]*)\) twice")


def _table_twice(found: re.Match[str]) -> str:
    name = ".".join(re.findall(r"'([^']*)'", found[1]))
    return f"the table [{name}] is defined twice; remove or rename one of them"


def placed(problem: Problem) -> Problem:
    """Return a problem with a hint at the table that a misplaced key belongs to."""
    key = problem.field
    if problem.text.startswith("There is no such field"):
        if key in _BELOW:
            return Problem(key, f"There is no such key here. Write it as {_BELOW[key]}.{key}")
        if key == "limits.overlap":
            return Problem(key, "There is no such key here. Write overlap next to its kind")
    if problem.text.startswith("Input should be a valid dictionary"):
        write = f". Write {key}.{_EXAMPLES[key]}" if key in _EXAMPLES else ""
        return Problem(key, f"should be a table{write}")
    return problem


def error_at(file: Path, table: str, problem: Problem) -> ConfigurationError:
    """Return the error of a problem, with the file, the table and the key."""
    *below, key = problem.field.split(".") if problem.field else [""]
    place = ".".join(filter(None, (table, *below)))
    text = problem.text.replace("no such field", "no such key").removeprefix(f"{key} ")
    where = " ".join(filter(None, (f"[{place}]" if place else "", key)))
    return ConfigurationError(sentence(f"{file}: {where}: {text}"))


def table_place(kind: str, name: str) -> str:
    """Return the name of a table as it stands between its brackets."""
    return f"{kind}.{_key_text(name)}"


def _key_text(name: str) -> str:
    """Return a key as TOML writes it."""
    return name if _BARE.fullmatch(name) else json.dumps(name, ensure_ascii=False)
