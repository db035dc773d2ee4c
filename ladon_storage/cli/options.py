"""Options that several verbs have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from ladon_storage.errors import ConfigurationError

_MOST = 1_000_000


def check_above_zero(option: str, value: float) -> None:
    """Refuse what is no length: 0, less, and what no clock and no calendar has, such as `nan`.

    Raises:
        ConfigurationError: The value is none; the message names the option.
    """
    if not 0 < value < _MOST:
        raise ConfigurationError(
            f"{option} is {value:g}. Set it to more than 0 and less than {_MOST:,}."
        )


def check_text(_: object, value: str) -> None:
    """Refuse bytes of a command line that are no text, as a validator of a parameter.

    Raises:
        ValueError: The value has some.
    """
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError("It is no text in UTF-8.") from None


SOURCE_HELP = (
    "name in the file; or a kind such as kev, package.module:Class, a JSON object with a kind, or "
    "a file that holds one."
)
"""The help text for the name of a source."""

Source = Annotated[str, Parameter(help=f"A {SOURCE_HELP}")]
File = Annotated[
    Path | None,
    Parameter(
        name="--file",
        help="The file with sources and sinks; by default what LADON_FILE names, or "
        "ladon.toml here.",
    ),
]
Table = Annotated[
    Path | None,
    Parameter(
        name="--table",
        help="A prefect.yaml whose deployments run, instead of those of ladon.toml.",
    ),
]
SinkText = Annotated[
    str | None,
    Parameter(
        name="--sink",
        help="Where records go, instead of what the file says: a name in the file, an address "
        "without a password, or a JSON object; with Prefect also a Record Sink block.",
    ),
]
LimitsText = Annotated[
    str | None,
    Parameter(
        name="--limits",
        help='Where a first run starts and what makes it fail, as JSON: {"initial_lookback": 30}.',
    ),
]
WhenBusyOption = Annotated[
    Literal["fail", "wait", "skip"] | None,
    Parameter(
        name="--when-busy",
        help="What happens while another run collects a source: fail, wait until it is free, or "
        "skip, which is no failure; by default what the file says, or fail.",
    ),
]
Prefect = Annotated[
    bool | None,
    Parameter(
        name="--prefect",
        negative="--no-prefect",
        help="Whether Prefect's flows run it; by default they do where PREFECT_API_URL is set, in "
        "the environment or in Prefect's active profile.",
    ),
]
