"""The parameters of a run in Prefect, without secrets, since Prefect stores and shows them.

- Prefect first creates a run with its parameters, and then validates them. So they are checked
  before there is a run, and a refused run leaves nothing in Prefect.
- A custom sink or source object is stored as the name of its class alone: Prefect would store all
  of its attributes.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Awaitable, Callable, Mapping
from functools import cached_property
from typing import Any, ParamSpec, TypeVar

from prefect.blocks.core import Block
from prefect.client.schemas.objects import State
from prefect.context import FlowRunContext
from prefect.exceptions import ParameterTypeError
from prefect.flows import Flow
from prefect.utilities.callables import ParameterSchema, get_call_parameters, parameter_schema
from pydantic import BaseModel

from ladon_storage.blocks import wrong_values
from ladon_storage.collection.credentials import (
    SECRET_FIELD,
    check_name,
    holds_secret,
    is_secret_option,
)
from ladon_storage.collection.protocols import Sink, Source
from ladon_storage.collection.summaries import source_label
from ladon_storage.errors import ConfigurationError
from ladon_storage.flows.ending import forget_signals, note_signals
from ladon_storage.flows.forms import BLOCKS, form_signature, titles_of
from ladon_storage.flows.naming import NameOf, named_run
from ladon_storage.flows.run_logs import say_settings_in_sentences
from ladon_storage.sources import SOURCES, source_from
from ladon_storage.sources.http.urls import secret_in

logger = logging.getLogger("ladon_storage.flows")

say_settings_in_sentences()

P = ParamSpec("P")
R = TypeVar("R")

_USER = re.compile(r"\s*https?://[^/?#]*@", re.IGNORECASE)
_NAMES_OF_SECRETS = {"key", "url_secret", "key_header", "key_param", "auth_prefix"}
"""The fields of sources that name a secret, and hold none."""


def refuse_secrets(parameters: Mapping[str, Any], form_of: type | None = None) -> None:
    """Refuse parameters with which a secret would reach Prefect.

    Args:
        parameters: The parameters of a run.
        form_of: The class of which the flow has a form, and which reads the source's fields itself.

    Raises:
        ConfigurationError: A sink's address or the storage's settings have a password in them, or
            a source is set up wrong; the message names neither.
    """
    _refuse_shown_secrets(parameters)
    source, sources = parameters.get("source"), parameters.get("sources")
    if isinstance(source, Mapping) and not (form_of is not None and _is_own(source)):
        source_from(source)  # refuses what holds a secret, among what else is wrong
    for each in sources if isinstance(sources, list) else []:
        if isinstance(each, Mapping):
            _refuse_secret_source(each)


def _refuse_shown_secrets(parameters: Mapping[str, Any]) -> None:
    """Refuse secrets of which no class of this package refuses its own fields."""
    sink = parameters.get("sink")
    address = sink.get("url") if isinstance(sink, Mapping) else sink
    if isinstance(address, str) and holds_secret(address):
        raise ConfigurationError(
            "The sink's address has a password or a token in it, and Prefect stores and shows the "
            "parameters of a run; save the address in a Record Sink block, and name the block."
        )
    if isinstance(sink, str) and "://" in sink:
        raise ConfigurationError(
            "A sink as a text is the name of a Record Sink block, not an address. Write an "
            "address as {'url': …}."
        )
    options = sink.get("options") if isinstance(sink, Mapping) else None
    if isinstance(options, Mapping) and any(map(is_secret_option, options)):
        raise ConfigurationError(
            "An option of the sink holds a secret, and Prefect stores and shows the parameters of "
            "a run. Save it in a Record Sink block, and name the block; or name its secret under "
            "secrets."
        )
    if isinstance(sink, Mapping) and _own_may_hold_secret(sink):
        raise ConfigurationError(
            "A field of the sink looks as if it held a secret, and Prefect stores and shows the "
            "parameters of a run. Give the class the name of the secret, and let it look it up."
        )
    storage = parameters.get("storage")
    address = storage.get("url") if isinstance(storage, Mapping) else storage
    secret = isinstance(storage, Mapping) and any(map(storage.get, ("token", "password")))
    if secret or (isinstance(address, str) and holds_secret(address)):
        raise ConfigurationError(
            "The settings of the storage have a password or a token in them, and Prefect stores "
            "and shows the parameters of a run. Save them in a Storage Service block, and name the "
            "block."
        )
    sources = parameters.get("sources")
    for each in (parameters.get("source"), *(sources if isinstance(sources, list) else [])):
        if isinstance(each, Mapping) and _is_own(each) and _own_may_hold_secret(each):
            raise ConfigurationError(
                "A field of the source looks as if it held a secret, and Prefect stores and shows "
                "the parameters of a run. Give the class the name of the secret, and let it look "
                "it up."
            )


def _refuse_secret_source(fields: Mapping[str, Any]) -> None:
    """Refuse one of many sources if it may hold a secret; other faults fail that source alone."""
    try:
        source_from(fields)
    except ConfigurationError:
        asked = (fields.get("params"), fields.get("body"))
        if _may_hold_secret(fields) or secret_in("", asked):
            raise


def _may_hold_secret(value: object, name: str = "") -> bool:
    if isinstance(value, Mapping):
        return any(_may_hold_secret(each, str(key)) for key, each in value.items())
    if isinstance(value, list | tuple):
        return any(_may_hold_secret(each, name) for each in value)
    if not isinstance(value, str):
        return False
    if name in _NAMES_OF_SECRETS:
        return not _is_name(value)
    return (
        holds_secret(value)
        or _USER.match(value) is not None
        or SECRET_FIELD.search(name) is not None
    )


def _is_own(fields: Mapping[str, Any]) -> bool:
    """Return whether a custom class gets these fields; shipped classes know their secrets."""
    return fields.get("kind") not in SOURCES.shipped


def _own_may_hold_secret(value: object, name: str = "") -> bool:
    if isinstance(value, Mapping):
        return any(_own_may_hold_secret(each, str(key)) for key, each in value.items())
    if isinstance(value, list | tuple):
        return any(_own_may_hold_secret(each, name) for each in value)
    if not isinstance(value, str):
        return False
    named = SECRET_FIELD.search(name) is not None and bool(value) and not _is_name(value)
    return named or holds_secret(value)


def _is_name(value: str) -> bool:
    try:
        check_name(value)
    except ValueError:
        return False
    return True


class CheckedFlow(Flow[P, R]):
    """A flow whose parameters are checked before Prefect stores them, and which has a form."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.__signature__ = form_signature(self.fn)  # what Prefect makes the form from
        del self.parameters  # the function's, which Prefect makes at once

    @cached_property
    def parameters(self) -> ParameterSchema:  # type: ignore[override]
        """The schema of the form, made at its first use: a run of the flow needs none."""
        return parameter_schema(self)

    @property
    def _source(self) -> type | None:
        """The class of sources of which this flow has a form."""
        annotated = self.fn.__annotations__.get("source")
        return annotated if isinstance(annotated, type) else None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Start a run, if no secret is among its parameters."""
        given = {name: value for name, value in kwargs.items() if name not in _PREFECTS}
        refuse_secrets(get_call_parameters(self.fn, args, given), self._source)
        run = _state_of(super().__call__(*args, **{**kwargs, "return_state": True}))
        return run if kwargs.get("return_state") else _result_of(run)

    def with_options(self, **options: Any) -> Any:
        """Return the same flow with other options, the same checks and the same form."""
        other: Any = super().with_options(**options)
        other.__class__ = type(self)
        other.__signature__ = self.__signature__
        vars(other)["parameters"] = self.parameters
        return other

    def validate_parameters(self, parameters: dict[str, Any]) -> dict[str, Any]:
        """Return validated parameters; the first that Prefect asks once it handles signals."""
        note_signals()
        _refuse_shown_secrets(parameters)  # of a run that Prefect's API created, too
        given = {
            name: value
            for name, value in parameters.items()
            if not (name == "limits" and value is None)  # in a form: as usual
        }
        try:
            return super().validate_parameters(given)
        except ParameterTypeError as error:
            wrong_block = wrong_values(error.__cause__)
            message = _with_titles(str(error), self.parameters.model_dump())
        raise ConfigurationError(wrong_block) if wrong_block else ParameterTypeError(message)

    def serialize_parameters(self, parameters: dict[str, Any]) -> dict[str, Any]:
        """Return parameters as Prefect stores them."""
        refuse_secrets(parameters, self._source)
        told = {
            name: f"<{type(value).__name__}>" if _is_opaque(value) else value
            for name, value in parameters.items()
        }
        return super().serialize_parameters(told)


async def _state_of(run: Awaitable[State[R]]) -> State[R]:
    try:
        return await run
    finally:
        forget_signals()


async def _result_of(run: Awaitable[State[R]]) -> R:
    """Return the result of a run's last state, or raise its error.

    Prefect itself raises the error of an earlier attempt where the last one returned a state.
    """
    return await (await run).aresult()


def refuse_unchosen_block() -> None:
    """Refuse the present run if it is of a form with the tab of a block and no block in it.

    A form leaves such a parameter out, and has all others, which hardly any other caller of a
    deployment gives. The default in its place would be another block in silence. Prefect fills
    defaults in before a flow gets its parameters, so those of the run itself are looked at.

    Raises:
        ConfigurationError: It is such a run.
    """
    context = FlowRunContext.get()
    if context is None or context.flow_run is None or not isinstance(context.flow, CheckedFlow):
        return
    if context.flow_run.deployment_id is None:
        return
    fields, given = context.flow.parameters.properties, context.flow_run.parameters
    sink = given.get("sink")
    if isinstance(sink, Mapping) and "url" in sink:
        # In a form by `prefect deploy`, an empty tab of a block is the deployment's own sink.
        shown = source_label(str(sink["url"]))
        logger.info("Records go to %s, which is the sink of the run's parameters.", shown)
    missing = [name for name in BLOCKS if name in fields and name not in given]
    if missing and len(given) > 1 and fields.keys() <= {*given, *missing}:
        raise ConfigurationError(
            f"The tab Block of {' and of '.join(BLOCKS[name] for name in missing)} has no block; "
            "choose one there, or the tab Default. Without a form, give null."
        )


def _with_titles(message: str, schema: Mapping[str, Any]) -> str:
    """Return Prefect's message about wrong parameters with the names that the form has."""

    def titled(found: re.Match[str]) -> str:
        location, problem = found[1], found[2].removeprefix("Value error, ")
        titles = titles_of(schema, location)
        return f" - {titles} ({location}): {problem}" if titles else found[0]

    return _WRONG.sub(titled, message)


_WRONG = re.compile(r"^ - ([\w.\[\]-]+): (.*)$", re.MULTILINE)

_PREFECTS = {"return_state", "wait_for"}


def _is_opaque(value: object) -> bool:
    return isinstance(value, Source | Sink) and not isinstance(value, Block | BaseModel)


def checked_flow(name: str, run_name: NameOf) -> Callable[[Callable[P, R]], CheckedFlow[P, R]]:
    """Return the decorator of a flow whose parameters are checked before Prefect has them.

    Args:
        name: The name of the flow.
        run_name: Returns the name of a run.
    """
    return lambda function: CheckedFlow(function, name=name, flow_run_name=named_run(run_name))
