"""Classes by name: a short name of this package, an entry point, or ``package.module:Class``.

- Importing a class runs its code. So a name comes from the operator's configuration alone (the
  file, the command line, a block, a deployment's parameters), and never from a source's answers.
- A class is checked before it is called. One without the methods of its kind is refused without
  making an object, so no name can call an arbitrary class.
- A name of this package wins over an entry point, so no installed package can replace it.
- Nothing is imported before its name is used.
"""

from __future__ import annotations

import difflib
import inspect
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, NamedTuple, get_args

from pydantic import AliasChoices, BaseModel, ValidationError
from pydantic_core import ErrorDetails

from ladon_storage.errors import ConfigurationError, told

_CLASS = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")
_LONGEST = 300


def nearest(name: object, known: Iterable[str]) -> str:
    """Return a hint at the nearest of the known names, or an empty text where none is near.

    >>> nearest("shedule", ["kind", "schedule"]), nearest("colour", ["kind"])
    ("; did you mean 'schedule'?", '')
    """
    by_shape = {_shape(each): each for each in sorted(known)}
    found = difflib.get_close_matches(_shape(str(name)[:100]), by_shape, n=1, cutoff=0.6)
    return f"; did you mean {by_shape[found[0]]!r}?" if found else ""


def _shape(name: str) -> str:
    return name.strip().lower().replace("-", "_").replace(" ", "_")


def sentence(text: str) -> str:
    """Return a text with a full stop, unless it ends with a mark already."""
    return text if text.endswith((".", "?")) else f"{text}."


MISSING = "is missing"


class Problem(NamedTuple):
    """One wrong field; an empty field means the whole description."""

    field: str
    text: str

    def __str__(self) -> str:
        return f"{self.field or 'it'}: {self.text}"


@dataclass(frozen=True)
class Registry:
    """The classes of one kind, by name.

    Args:
        what: The kind as messages name it, such as ``source``.
        group: The entry points' group.
        shipped: The module and the name of each class of this package.
        methods: The methods that each class must have.
        attributes: The attributes that each object must also have.
    """

    what: str
    group: str
    shipped: Mapping[str, tuple[str, str]]
    methods: tuple[str, ...]
    attributes: tuple[str, ...] = ()

    def find(self, name: object) -> type[Any]:
        """Return the class of a name.

        Raises:
            ConfigurationError: There is none, it cannot be imported, or it is of another kind.
        """
        if not isinstance(name, str) or not name:
            raise ConfigurationError(f"{self._unknown()}.")
        if name in self.shipped:
            module, attribute = self.shipped[name]
            found: type[Any] = getattr(import_module(module), attribute)
            return found
        if ":" in name:
            return self._checked(_imported(name, self.what), name)
        points = entry_points(group=self.group, name=name)
        if len({each.value for each in points}) > 1:
            values = " and ".join(sorted({repr(each.value) for each in points}))
            raise ConfigurationError(
                f"Several installed packages provide the {self.what} {name!r}: {values}. Name the "
                "class itself, or uninstall one of the packages."
            )
        for point in points:
            return self._checked(_loaded(point, self.what), name)
        hint = nearest(name, self.names())
        raise ConfigurationError(sentence(f"{self._unknown()}, not {name[:100]!r}{hint}"))

    def has(self, name: str) -> bool:
        """Return whether an installed package provides this name."""
        return bool(entry_points(group=self.group, name=name))

    def names(self) -> list[str]:
        """Return every short name: those of this package, then those of other packages."""
        others = {each.name for each in entry_points(group=self.group)}
        return [*self.shipped, *sorted(others - set(self.shipped))]

    def _unknown(self) -> str:
        names = ", ".join(repr(each) for each in self.names())
        listed = f"one of {names}, or a class" if names else "a class"
        return f"kind should be {listed} of your own such as 'package.module:Class'"

    def _checked(self, found: object, name: str) -> type[Any]:
        article = f"no {self.what}"
        if not isinstance(found, type):
            raise ConfigurationError(
                f"{name!r} is {article}: it is of the type {type(found).__name__}, not a class. "
                "Name a class, whose fields the configuration gives."
            )
        if lacking := [each for each in self.methods if not callable(_static(found, each))]:
            raise ConfigurationError(
                f"The class {name!r} is {article}: it lacks {_listed(lacking)}. Give it what the "
                f"{self.what.capitalize()} protocol of ladon_storage.collection.protocols asks."
            )
        return found

    def check_made(self, made: object, name: str) -> None:
        """Refuse an object that lacks an attribute of its kind.

        Raises:
            ConfigurationError: An attribute is missing; the message names it.
        """
        needed = (*self.methods, *self.attributes)
        if lacking := [each for each in needed if not _has(made, each)]:
            raise ConfigurationError(
                f"An object of the class {name!r} is no {self.what}: it lacks {_listed(lacking)}. "
                f"Give it what the {self.what.capitalize()} protocol of "
                "ladon_storage.collection.protocols asks."
            )


def add_to_path(folder: Path) -> None:
    """Let names refer to classes of modules in a folder; installed modules go before them."""
    if str(folder) not in sys.path:
        sys.path.append(str(folder))


def _imported(name: str, what: str) -> object:
    if not _CLASS.fullmatch(name):
        raise ConfigurationError(
            f"{name[:100]!r} names no class. Write the module, a colon and the class, such as "
            "'package.module:Class'."
        )
    module_name, _, path = name.partition(":")
    module = _attempted(lambda: import_module(module_name), module_name, name, what)
    return _attribute(module, path, name)


def _loaded(point: EntryPoint, what: str) -> object:
    name = f"{point.module}:{point.attr}"
    module = _attempted(lambda: import_module(point.module), point.module, name, what)
    return _attribute(module, point.attr, name)


def _attribute(module: object, path: str, name: str) -> object:
    found = module
    for part in filter(None, path.split(".")):
        if not hasattr(found, part):
            classes = [each for each, value in vars(found).items() if isinstance(value, type)]
            text = f"The module of {name!r} has no class {part!r}{nearest(part, classes)}"
            raise ConfigurationError(sentence(text))
        found = getattr(found, part)
    return found


def _attempted(load: Callable[[], object], module: str, name: str, what: str) -> object:
    try:
        return load()
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if missing and (module == missing or module.startswith(f"{missing}.")):
            problem = (
                f"there is no module {missing!r} where this runs. Install it there, as on each "
                "worker, or correct the name"
            )
        else:
            problem = f"it imports {missing!r}, which is not installed. Install it"
        cause: BaseException = error
    except (Exception, SystemExit) as error:
        problem = f"importing it raised {_said(error)}. Correct the module {module!r}"
        cause = error
    raise ConfigurationError(f"The {what} {name!r} cannot be used: {problem}.") from cause


def _said(error: BaseException) -> str:
    text = " ".join(told(error).split())[:_LONGEST].rstrip(".")
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _static(owner: object, name: str) -> object:
    return inspect.getattr_static(owner, name, None)


_NOTHING = object()


def _has(owner: object, name: str) -> bool:
    if inspect.getattr_static(owner, name, _NOTHING) is not _NOTHING:
        return True
    try:
        return hasattr(owner, name)
    except Exception:  # a property of another package's class
        return False


def _listed(names: Sequence[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def fields_of(kind: type[Any]) -> dict[str, bool] | None:
    """Return the fields that a class takes by keyword, and whether each is required.

    ``None`` means that the class takes any field.

    >>> class Tickets:
    ...     def __init__(self, url: str, page_size: int = 10) -> None: ...
    >>> fields_of(Tickets)
    {'url': True, 'page_size': False}
    """
    if issubclass(kind, BaseModel):
        if kind.model_config.get("extra") == "allow":
            return None
        return dict(_fields_of_model(kind))
    try:
        parameters = inspect.signature(kind).parameters.values()
    except (TypeError, ValueError):  # a class of an extension
        return None
    if any(each.kind is each.VAR_KEYWORD for each in parameters):
        return None
    by_keyword = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {each.name: each.default is each.empty for each in parameters if each.kind in by_keyword}


@lru_cache  # for each of very many sources of one kind
def _fields_of_model(kind: type[BaseModel]) -> dict[str, bool]:
    return {
        alias: field.is_required()
        for name, field in kind.model_fields.items()
        for alias in _aliases(kind, name)
    }


def _aliases(kind: type[BaseModel], name: str) -> list[str]:
    alias = kind.model_fields[name].validation_alias or kind.model_fields[name].alias
    if isinstance(alias, AliasChoices):
        return [each for each in alias.choices if isinstance(each, str)]
    if not isinstance(alias, str):  # none, or a path: pydantic reports the missing tag
        return [name]
    config = kind.model_config
    by_name = config.get("populate_by_name") or config.get("validate_by_name")
    return [alias, name] if by_name else [alias]


def made(
    kind: type[Any], fields: Mapping[str, Any], also: Iterable[str] = ()
) -> tuple[Any, list[Problem]]:
    """Return an object with these fields and no problems, or ``None`` and its problems.

    No value is repeated in a problem: a field may hold a secret.

    Args:
        kind: The class.
        fields: Its arguments, by keyword.
        also: Other names that may be written next to the fields, for hints.
    """
    if issubclass(kind, BaseModel):
        return _validated(kind, fields, also)
    known = fields_of(kind)
    problems = unknown(fields, known, also)
    problems += [
        Problem(name, MISSING)
        for name, required in (known or {}).items()
        if required and name not in fields
    ]
    if problems:
        return None, problems
    try:
        return kind(**fields), []
    except Exception as error:  # of another package's class
        return None, [Problem("", _said(error))]


def unknown(
    fields: Mapping[str, Any], known: Mapping[str, Any] | None, also: Iterable[str] = ()
) -> list[Problem]:
    """Return a problem for each field that is not among the known ones, with the nearest name."""
    if known is None:
        return []
    return [
        Problem(str(name), f"There is no such field{_next(str(name), [*known, *also])}")
        for name in fields
        if name not in known
    ]


def _next(name: str, known: Iterable[str]) -> str:
    names = list(known)
    return nearest(name, names) or (f"; there are {', '.join(names)}" if names else "")


def _validated(
    kind: type[BaseModel], fields: Mapping[str, Any], also: Iterable[str]
) -> tuple[Any, list[Problem]]:
    try:
        # A model that ignores unknown fields would ignore a misspelt one.
        problems = unknown(fields, fields_of(kind), also)
        if not problems:
            read = kind.model_validate(dict(fields))
            problems = [Problem(name, _NO_NUMBER) for name in _flags_read_as_numbers(fields, read)]
            return (None, problems) if problems else (read, [])
        kind.model_validate({name: fields[name] for name in fields if name not in dict(problems)})
    except ValidationError as error:
        details = error.errors(include_url=False, include_input=False)
    except Exception as error:  # a validator of another package's class
        return None, [Problem("", _said(error))]
    else:
        details = []
    # A misspelt field goes before a missing one: it is mostly the same field.
    for each in sorted(details, key=lambda detail: detail["type"] != "extra_forbidden"):
        place = each["loc"]
        if each["type"] == "extra_forbidden":
            known = _fields_at([kind], place[:-1])
            written = [*_written(kind, place[:-1]), str(place[-1])]
            text = f"There is no such field{_next(str(place[-1]), known)}"
            problem = Problem(".".join(written), text)
        else:
            problem = _problem(each, _written(kind, place))
        problems.append(problem)
    return None, problems


_NO_NUMBER = "should be a number, not true or false"


def _flags_read_as_numbers(given: Mapping[str, Any], read: object) -> Iterator[str]:
    """Yield each field whose true or false pydantic took as one or zero."""
    for name, value in given.items():
        found = getattr(read, name, None)
        if isinstance(value, bool) and type(found) in (int, float) and found == value:
            yield name
        elif isinstance(value, Mapping) and isinstance(found, BaseModel):
            yield from (f"{name}.{each}" for each in _flags_read_as_numbers(value, found))


def _problem(detail: ErrorDetails, written: Sequence[str]) -> Problem:
    """Return a problem of pydantic's in the words of a configuration."""
    kind, context = detail["type"], detail.get("ctx", {})
    if kind == "union_tag_invalid":
        tags, given = str(context["expected_tags"]), str(context["tag"])[:100]
        hint = nearest(given, re.findall(r"'([^']*)'", tags))
        text = f"should be one of {tags}, not {given!r}{hint}"
        return Problem(".".join((*written, context["discriminator"].strip("'"))), text)
    if kind == "union_tag_not_found":
        return Problem(".".join((*written, context["discriminator"].strip("'"))), MISSING)
    text = _TEXTS.get(kind) or re.sub(r"^(Assertion failed|Value error), ", "", detail["msg"])
    return Problem(".".join(written), _TIMEDELTA.sub(_duration, text))


_TEXTS = {
    "missing": MISSING,
    "tuple_type": "should be a list",
    "list_type": "should be a list",
    "model_attributes_type": "Input should be a valid dictionary",
    "time_delta_parsing": "should be a number, or a text such as PT1H or 01:00:00",
}
_TIMEDELTA = re.compile(r"datetime\.timedelta\(([^)]*)\)")


def _duration(found: re.Match[str]) -> str:
    """Return a duration that Python wrote as people write it."""
    parts = [each.partition("=") for each in found[1].split(", ")]
    return " and ".join(f"{number} {unit}" if number else unit for unit, _, number in parts)


def _written(kind: type[BaseModel], place: Sequence[int | str]) -> list[str]:
    """Return a location without pydantic's names for the alternatives of a union."""
    models, written = [kind], list[str]()
    for part in place:
        known = {name for each in models for name in fields_of(each) or {}}
        is_alternative = written and (str(part) in _TYPES or "[" in str(part))
        is_tag = written and models and isinstance(part, str) and part not in known
        if is_alternative or is_tag:
            continue
        written.append(str(part))
        annotations = [
            each.model_fields[str(part)].annotation
            for each in models
            if str(part) in each.model_fields
        ]
        if annotations:
            models = [model for annotation in annotations for model in _models_in(annotation)]
    return written


_TYPES = {"str", "int", "float", "bool", "timedelta", "datetime"}


def _fields_at(models: list[type[BaseModel]], place: Sequence[int | str]) -> list[str]:
    """Return the fields of the models at one location of a model's document."""
    for part in place:
        found = [each.model_fields[part].annotation for each in models if part in each.model_fields]
        if found:  # otherwise a tag of a union or the number of an entry
            models = [model for annotation in found for model in _models_in(annotation)]
    return list(dict.fromkeys(name for each in models for name in each.model_fields))


def _models_in(annotation: object) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for each in get_args(annotation) for model in _models_in(each)]
