"""``ladon-storage source guess``: a source that an API's response suggests, as TOML."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from ladon_storage.cli.output import Json, note, print_json, print_text
from ladon_storage.errors import ConfigurationError


def source_guess(
    url: Annotated[str, Parameter(help="Address of a list of the API.")] = "",
    /,
    *,
    sample: Annotated[
        Path | None, Parameter(help="A file with an answer of the API, which is then not asked.")
    ] = None,
    name: Annotated[str, Parameter(help="Name of the source; by default from the address.")] = "",
    body: Annotated[str | None, Parameter(help="JSON object to POST, without secrets.")] = None,
    header: Annotated[
        tuple[str, ...], Parameter(help="A header, as 'Accept: application/json'; repeatable.")
    ] = (),
    key: Annotated[
        str, Parameter(help="Name of the environment variable that holds the API's key.")
    ] = "",
    key_header: Annotated[str, Parameter(help="Header of the key.")] = "",
    auth_prefix: Annotated[str, Parameter(help="Text before the key, as 'Bearer '.")] = "",
    key_param: Annotated[str, Parameter(help="Query parameter of the key.")] = "",
    json: Json = False,
) -> int:
    """Propose a source for the address of a JSON API."""
    from ladon_storage.cli import choosing, running
    from ladon_storage.probing import guess

    if not url and sample is None:
        raise ConfigurationError("Give the address of an API, or an answer of it as --sample FILE.")
    headers = dict(map(_header, header))
    fields = (
        None
        if body is None
        else choosing.json_object(body, "The value of --body", '{"limit": 100}')
    )
    _refuse_secrets(url, headers, fields)
    found = running.run(
        guess(
            url,
            sample=sample,
            name=name,
            body=fields,
            headers=headers,
            key=key,
            key_header=key_header,
            auth_prefix=auth_prefix,
            key_param=key_param,
        )
    )
    if json:
        print_json(found.model_dump(mode="json"))
    elif found.toml:
        print_text(found.toml.rstrip("\n"))
    for each in found.notes:
        note(f"{each[:1].upper()}{each[1:]}.")
    if found.problem is not None:
        note(f"ladon-storage: {found.problem}")
        return 1
    if not json:
        note(f"{_place_of(found.name)} Requests made: {found.requests}.")
    return 0


def _refuse_secrets(url: str, headers: dict[str, str], body: dict[str, Any] | None) -> None:
    from yarl import URL

    from ladon_storage.probing.keys import options_for_secret
    from ladon_storage.sources.http.urls import secret_in

    options = ""
    with suppress(ValueError):  # an address that is none is refused with the reason
        options = options_for_secret(URL(url), headers)
    if not options and (found := secret_in("", body)) is not None:
        options = f"--key NAME --key-param {found}"
    if options:
        raise ConfigurationError(
            "The request has a password or a key in it, and every user of this host sees a "
            "command line. Store it in an environment variable, leave it out, and give the "
            f"variable's name: {options}."
        )


def _place_of(name: str) -> str:
    """Return the next step: a file cannot have two tables of one name."""
    from ladon_storage.cli import choosing

    then = f"then run `ladon-storage source try {name}`."
    with suppress(ConfigurationError):
        project = choosing.load_project(None)
        if project is not None and name in project.sources:
            return (
                f"{project.path} has a source {name!r} already: put this in its place, or choose "
                f"another with --name; {then}"
            )
    return f"Put this into ladon.toml, {then}"


def _header(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not colon or not name.strip():
        # Not repeated: it may be a key.
        raise ConfigurationError("A --header has no name; write it as 'Accept: application/json'.")
    return name.strip(), value.strip()
