"""The command ``ladon-storage``: what is given on the command line, and what it exits with.

0 is done; 1 is a circuit's store that does not answer; 2 is a setting that is missing or makes no
sense. Both are said in one sentence on standard error.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ladon_storage.breaker import CircuitChange, CircuitState
from ladon_storage.circuits import VARIABLE as CIRCUIT_VARIABLE
from ladon_storage.circuits import SharedCircuit, circuit_of, default_url
from ladon_storage.circuits.shared import SharedRecord
from ladon_storage.errors import CircuitStoreError, ConfigurationError
from ladon_storage.server.serving import serving

TOKEN_VARIABLE = "STORAGE_SERVICE_TOKEN"  # noqa: S105 - the name of a variable, not its value
SERVICE_VARIABLE = "STORAGE_SERVICE_URL"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command, and return its exit code."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(
        stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s"
    )
    # Each change is logged; what no format asks for is not looked up for each.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    try:
        if options.command == "circuit":
            _circuit(options.act, options.service, getattr(options, "reason", None))
        else:
            token = _token(options.token_file)
            asyncio.run(_serve(options.database, options.host, options.port, token))
    except (ConfigurationError, CircuitStoreError) as error:
        print(f"ladon-storage: {error}", file=sys.stderr)  # noqa: T201 - the command's own output
        return 2 if isinstance(error, ConfigurationError) else 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ladon-storage", description="Keep the watermarks of collections."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    serve = commands.add_parser(
        "serve",
        help="run the Storage Service over one SQLite file",
        description=(
            "Run the Storage Service over one SQLite file. It prints its address on standard "
            "output when it answers, logs to standard error, and ends on SIGTERM, SIGINT or SIGHUP "
            f"when the requests in flight are finished. Its token is in {TOKEN_VARIABLE} or a "
            "file; only a loopback address needs none."
        ),
    )
    serve.add_argument(
        "--database", type=Path, required=True, help="the file; created if it does not exist"
    )
    serve.add_argument("--host", default="127.0.0.1", help="default: %(default)s")
    serve.add_argument(
        "--port", type=int, default=8080, help="0 chooses a free one; default: %(default)s"
    )
    serve.add_argument(
        "--token-file", type=Path, help=f"a file with the token; goes before {TOKEN_VARIABLE}"
    )
    _add_circuit(commands)
    return parser


def _add_circuit(commands: Any) -> None:
    where = (
        f"It is kept where {CIRCUIT_VARIABLE} says, or in the file in Prefect's home that flow "
        "runs use."
    )
    circuit = commands.add_parser(
        "circuit",
        help="show or change the circuit that processes share",
        description=f"Show or change the circuit of a service that processes share. {where}",
    )
    acts = circuit.add_subparsers(dest="act", required=True, help="what to do with it")
    for act, what, description in (
        ("show", "show its state", "Show its state, and why and when that changed."),
        (
            "trip",
            "open it",
            "Open it: no process calls the service until the timeout has passed and a probe finds "
            "that it works.",
        ),
        ("reset", "close it", "Close it: every process may call the service again."),
    ):
        parser = acts.add_parser(act, help=what, description=f"{description} {where}")
        parser.add_argument(
            "--service", help=f"the service's address; goes before {SERVICE_VARIABLE}"
        )
        if act != "show":
            parser.add_argument("--reason", help="why, for those who look at it")


def _circuit(act: str, service: str | None, reason: str | None) -> None:
    """Show or change the circuit, and print its state after that.

    Raises:
        CircuitStoreError: Its store does not answer.
    """
    address = service or os.environ.get(SERVICE_VARIABLE) or ""
    if not address:
        raise ConfigurationError(f"There is no service; set {SERVICE_VARIABLE} or --service.")
    store = default_url()
    if store == "memory://":
        raise ConfigurationError(
            f"{CIRCUIT_VARIABLE} keeps circuits in the memory of each process; set a shared store."
        )
    circuit = circuit_of(address, store)
    changes: list[CircuitChange] = []
    circuit.add_listener(changes.append)
    if act == "trip":
        circuit.trip(reason or "tripped by hand")
    elif act == "reset":
        circuit.reset(reason or "reset by hand")
    record = circuit.shared_record()
    if circuit.lost is not None:
        raise circuit.lost
    print(_shown(circuit, record))  # noqa: T201 - the command's own output
    if changes:
        # Imported only here: Prefect takes two seconds, and `show` and `serve` have no use for it.
        from ladon_storage.events import emit_where_prefect_is

        for change in changes:
            emit_where_prefect_is(circuit.key, change)


def _shown(circuit: SharedCircuit, record: SharedRecord) -> str:
    state, _, failures, wait = record.circuit
    lines = [
        f"service   {circuit.key}",
        f"store     {circuit.store.place}",
        f"state     {state}",
        f"failures  {failures}",
        f"reason    {record.reason}",
    ]
    if record.since:
        lines.append(f"since     {record.since}")
    if state is CircuitState.OPEN:
        lines.append(f"probe     in {wait:.0f} s")
    elif state is CircuitState.HALF_OPEN:
        lines.append(f"probe     under way, given up in {wait:.0f} s")
    return "\n".join(lines)


def _token(file: Path | None) -> str | None:
    """Return the token from a file or the environment: a flag's value is in every process list."""
    if file is None:
        origin, token = TOKEN_VARIABLE, os.environ.get(TOKEN_VARIABLE)
        if token is None:
            return None
    else:
        origin = str(file)
        try:
            token = file.read_text(encoding="utf-8")
        except (OSError, UnicodeError) as error:
            raise ConfigurationError(
                f"Token file {origin!r} cannot be read ({error}); name one that can."
            ) from error
    token = token.strip()
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise ConfigurationError(
            f"The token in {origin} should be one word of visible ASCII characters; set another."
        )
    return token


async def _serve(database: Path, host: str, port: int, token: str | None) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signal_number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        # Under nohup a service is to outlive its terminal.
        if signal.getsignal(signal_number) is not signal.SIG_IGN:
            loop.add_signal_handler(signal_number, stop.set)
    async with serving(database, host, port, token=token) as address:
        print(address, flush=True)  # noqa: T201 - what the caller waits for
        await stop.wait()


if __name__ == "__main__":
    sys.exit(main())
