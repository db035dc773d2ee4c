"""``ladon-storage circuit``: the circuit of a service, where processes share it.

Its record is where runs have it: at ``circuit_url`` of ladon.toml for the service of that file,
else at STORAGE_CIRCUIT_URL, or in a file in Prefect's home.
"""

from __future__ import annotations

import logging
import os
import sys
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from ladon_storage.cli.output import Json, print_json, print_text
from ladon_storage.errors import ConfigurationError

if TYPE_CHECKING:
    from ladon_storage.circuit.breaker import CircuitChange
    from ladon_storage.circuit.urls import SharedCircuit

SERVICE_VARIABLE = "STORAGE_SERVICE_URL"

_REASON_LENGTH = 300
"""The characters of a reason that are kept: each process reads it with the circuit."""

Service = Annotated[
    str | None,
    Parameter(help=f"Address of the service; goes before {SERVICE_VARIABLE} and ladon.toml."),
]
Reason = Annotated[str | None, Parameter(help="The reason, for people who look at the circuit.")]


def show(*, service: Service = None, json: Json = False) -> None:
    """Show its state, with the time and the reason of the last change.

    Its record is where runs have it: at circuit_url of ladon.toml for the service of that file,
    else at STORAGE_CIRCUIT_URL, or in a file in Prefect's home.
    """
    _act("show", service, None, json)


def trip(*, service: Service = None, reason: Reason = None, json: Json = False) -> None:
    """Open it: no run calls the service until the timeout is over and a probe succeeds.

    Its record is where runs have it: at circuit_url of ladon.toml for the service of that file,
    else at STORAGE_CIRCUIT_URL, or in a file in Prefect's home.
    """
    _act("trip", service, reason, json)


def reset(*, service: Service = None, reason: Reason = None, json: Json = False) -> None:
    """Close it: every run may call the service again.

    Its record is where runs have it: at circuit_url of ladon.toml for the service of that file,
    else at STORAGE_CIRCUIT_URL, or in a file in Prefect's home.
    """
    _act("reset", service, reason, json)


def automate(
    *,
    deployment: Annotated[
        tuple[str, ...], Parameter(help="Deployment, as collect-kev/kev; repeatable.")
    ] = (),
    work_pool: Annotated[tuple[str, ...], Parameter(help="Work pool; repeatable.")] = (),
    service: Service = None,
    json: Json = False,
) -> None:
    """Pause deployments while it is open, by Prefect automations."""
    from ladon_storage.cli.with_prefect import run_flows
    from ladon_storage.flows.circuit import deploy

    address = _address(service)
    made = run_flows(lambda: deploy(address, deployment, work_pool))
    if json:
        print_json(made)
    else:
        print_text("\n".join(made))


def _address(service: str | None) -> str:
    """Return the service's address without credentials, as its clients have it.

    Raises:
        ConfigurationError: There is none, or no service can be there.
    """
    from ladon_storage.client.redaction import address_of
    from ladon_storage.collection.credentials import holds_secret

    if service is not None and holds_secret(service):
        raise ConfigurationError(
            "The service's address has a password or a token in it, and every user of this host "
            f"sees a command line. Leave it out, or set {SERVICE_VARIABLE}."
        )
    address = service or os.environ.get(SERVICE_VARIABLE) or _address_in_file() or ""
    if not address:
        raise ConfigurationError(
            f"There is no service; set {SERVICE_VARIABLE} or --service, or run it where a "
            "ladon.toml names one."
        )
    return str(address_of(address, None).url)


def _address_in_file() -> str | None:
    from ladon_storage.cli import running
    from ladon_storage.cli.choosing import file_settings, load_project

    settings = running.run(file_settings(load_project(None)))
    return None if settings is None or settings.is_file else settings.url


def _store_of(address: str) -> str:
    """Return where runs have the circuit of a service: where the file says, if it is the file's."""
    from ladon_storage.circuit.urls import default_url, service_key
    from ladon_storage.cli import running
    from ladon_storage.cli.choosing import load_project

    project = load_project(None)
    if project is None or not project.storage.url:
        return default_url()
    is_own = service_key(project.storage.url) == service_key(address)
    return (running.run(project.circuit_url()) if is_own else None) or default_url()


def _act(act: str, service: str | None, reason: str | None, as_json: bool) -> None:
    """Show or change the circuit, and print its state after that.

    Raises:
        CircuitStoreError: Its store does not answer.
    """
    from ladon_storage.circuit.urls import CIRCUIT_URL_VARIABLE, circuit_of
    from ladon_storage.collection.summaries import cut

    logging.basicConfig(
        stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s"
    )
    address = _address(service)
    store = _store_of(address)
    if store.strip() == "memory://":
        raise ConfigurationError(
            "Circuits are kept in the memory of each process; set circuit_url of ladon.toml, or "
            f"{CIRCUIT_URL_VARIABLE}, to a shared store."
        )
    circuit = circuit_of(address, store)
    changes: list[CircuitChange] = []
    circuit.add_listener(changes.append)
    if act == "trip":
        circuit.trip(cut(reason or "", _REASON_LENGTH) or "tripped by hand")
    elif act == "reset":
        circuit.reset(cut(reason or "", _REASON_LENGTH) or "reset by hand")
    facts = _facts(circuit)
    if as_json:
        print_json(facts)
    else:
        print_text(_shown(facts))
    if changes:
        # Imported only here: Prefect takes two seconds, and `show` and `serve` have no use for it.
        from ladon_storage.events import emit_where_prefect_is

        for change in changes:
            emit_where_prefect_is(circuit.key, change)


def _facts(circuit: SharedCircuit) -> dict[str, Any]:
    from ladon_storage.circuit.breaker import CircuitState

    record = circuit.shared_record()
    if circuit.store_error is not None:
        raise circuit.store_error
    state, _, failures, wait = record.circuit
    return {
        "service": circuit.key,
        "store": circuit.store.place,
        "state": str(state),
        "failures": failures,
        "reason": record.reason,
        "since": str(record.since) if record.since else None,
        "probe_in_seconds": wait if state is not CircuitState.CLOSED else None,
    }


def _shown(facts: dict[str, Any]) -> str:
    from ladon_storage.collection.summaries import cut

    names = ("service", "store", "state", "failures", "reason")
    # A reason may be a source's text, of whichever process changed the circuit.
    lines = [f"{name:<9} {cut(str(facts[name]), 2_000)}" for name in names]
    if facts["since"]:
        lines.append(f"since     {facts['since']}")
    wait = facts["probe_in_seconds"]
    if facts["state"] == "open":
        lines.append(f"probe     in {wait:.0f} s")
    elif facts["state"] == "half_open":
        lines.append(f"probe     in flight, given up in {wait:.0f} s")
    return "\n".join(lines)
