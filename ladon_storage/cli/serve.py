"""``ladon-storage serve``: the Storage Service over one SQLite file, until a signal ends it."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from ladon_storage.cli.output import print_text
from ladon_storage.errors import ConfigurationError

TOKEN_VARIABLE = "STORAGE_SERVICE_TOKEN"  # noqa: S105 - the name of a variable, not its value


def serve(
    *,
    database: Annotated[Path, Parameter(help="The file; created if it does not exist.")],
    host: Annotated[str, Parameter(help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, Parameter(help="Port to listen at; 0 chooses a free one.")] = 8080,
    token_file: Annotated[
        Path | None, Parameter(help=f"A file with the token; goes before {TOKEN_VARIABLE}.")
    ] = None,
) -> None:
    """Run the Storage Service over one SQLite file."""
    logging.basicConfig(
        stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s"
    )
    # Each change is logged; what no format asks for is not looked up for each.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    asyncio.run(_serve(database, host, port, token_from(token_file)))


def token_from(file: Path | None) -> str | None:
    """Return the token from a file or the environment: a flag's value is in every process list.

    Raises:
        ConfigurationError: The file cannot be read, or no header could carry the token.
    """
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
    from ladon_storage.server.serving import serving

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signal_number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        # Under nohup a service must outlive its terminal.
        if signal.getsignal(signal_number) is not signal.SIG_IGN:
            loop.add_signal_handler(signal_number, stop.set)
    async with serving(database, host, port, token=token) as address:
        print_text(address)
        sys.stdout.flush()  # the caller waits for it
        await stop.wait()
