"""``ladon-storage serve``: the Storage Service over its database, until a signal ends it."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from ladon_storage.cli.databases import Database, database_of
from ladon_storage.cli.options import check_above_zero
from ladon_storage.cli.output import OUTPUT, print_text
from ladon_storage.errors import ConfigurationError

logger = logging.getLogger(__name__)

_GARBAGE = 10_000
"""The objects after which garbage is looked for; a request makes dozens, nearly none in a cycle."""
TOKEN_VARIABLE = "STORAGE_SERVICE_TOKEN"  # noqa: S105 - the name of a variable, not its value


def serve(
    *,
    database: Database = None,
    host: Annotated[str, Parameter(help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, Parameter(help="Port to listen at; 0 chooses a free one.")] = 8080,
    token_file: Annotated[
        Path | None, Parameter(help=f"A file with the token; goes before {TOKEN_VARIABLE}.")
    ] = None,
    allow_host: Annotated[
        tuple[str, ...],
        Parameter(help="A name of the service besides those of loopback; repeatable."),
    ] = (),
    tls_certificate: Annotated[
        Path | None,
        Parameter(help="A PEM file with the certificate, for HTTPS; read again when it changes."),
    ] = None,
    tls_key: Annotated[
        Path | None, Parameter(help="A PEM file with its key, if that is in another file.")
    ] = None,
    file: Annotated[
        Path | None,
        Parameter(help="A ladon.toml, for the limits of freshness; read again when it changes."),
    ] = None,
    prefect_url: Annotated[
        str | None, Parameter(help="Address of Prefect's UI, for links from the status page.")
    ] = None,
    history_days: Annotated[float, Parameter(help="How long the history is kept.")] = 400,
    history_changes: Annotated[
        int, Parameter(help="How many changes of one source are kept.")
    ] = 1000,
    log_format: Annotated[
        Literal["text", "json"], Parameter(help="A line for each record, or a JSON object.")
    ] = "text",
) -> None:
    """Run the Storage Service over one SQLite file, or over PostgreSQL."""
    from ladon_storage.collection.credentials import holds_secret
    from ladon_storage.server.logs import set_up_logging

    set_up_logging(log_format)
    if tls_key is not None and tls_certificate is None:
        raise ConfigurationError("--tls-key needs --tls-certificate; name the certificate, too.")
    if prefect_url is not None and holds_secret(prefect_url):
        raise ConfigurationError(
            "--prefect-url has a password in it, and the status page would show it in its links. "
            "Leave it out; each reader signs in to Prefect."
        )
    if prefect_url and not _is_link(prefect_url):
        raise ConfigurationError(
            "--prefect-url is no address. Write it as http://127.0.0.1:4200, or as a path of this "
            "host such as /prefect."
        )
    certificate = None
    if tls_certificate is not None:
        from ladon_storage.server.tls import Certificate

        certificate = Certificate(tls_certificate, tls_key)
    check_above_zero("--history-days", history_days)
    if history_changes < 1:
        raise ConfigurationError(f"--history-changes is {history_changes}. Set it to 1 or more.")
    from ladon_storage.server.retention import Retention

    options: dict[str, Any] = {
        "token": token_from(token_file),
        "allowed_hosts": allow_host,
        "certificate": certificate,
        "retention": Retention(timedelta(days=history_days), history_changes),
        "prefect_url": prefect_url,
    }
    if file is not None:
        from ladon_storage.cli.limits import LimitsFile

        watched = LimitsFile(file)
        options |= {"limits": watched.limits, "renewed_limits": watched.renewed}
    asyncio.run(_serve(database_of(database), host, port, options))


def _is_link(text: str) -> bool:
    """Return whether a browser that follows a text stays with HTTP: it is an address or a path."""
    from ladon_storage.sources.http.urls import check_url

    try:
        return text.startswith("/") or bool(check_url(text))
    except ValueError:
        return False


def token_from(file: Path | None) -> str | None:
    """Return the token from a file or the environment: a flag's value is in every process list.

    Raises:
        ConfigurationError: The file cannot be read, or no header could carry the token.
    """
    from ladon_storage.server.access import check_token

    if file is None:
        origin, token = TOKEN_VARIABLE, os.environ.get(TOKEN_VARIABLE)
        if token is None:
            return None
    else:
        origin = str(file)
        try:
            token = file.read_text(encoding="utf-8")
            if file.stat().st_mode & 0o077:
                logger.warning("Token file %s can be read by other users; `chmod 600` it.", file)
        except (OSError, UnicodeError) as error:
            raise ConfigurationError(
                f"Token file {origin!r} cannot be read ({error}); name one that can."
            ) from error
    return check_token(token.strip(), origin)


async def _serve(database: Path | str, host: str, port: int, options: dict[str, Any]) -> None:
    from ladon_storage.server.serving import serving

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signal_number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        # Under nohup a service must outlive its terminal.
        if signal.getsignal(signal_number) is not signal.SIG_IGN:
            loop.add_signal_handler(signal_number, stop.set)
    async with serving(database, host, port, **options) as address:
        # What is loaded by now stays: looking at it again and again would cost a tenth of all.
        gc.freeze()
        gc.set_threshold(_GARBAGE)
        print_text(address)
        OUTPUT.flush()  # the caller waits for it
        await stop.wait()
