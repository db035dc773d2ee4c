"""The command ``ladon-storage``: what is given on the command line, and what it exits with.

0 is done; 2 is a setting that is missing or makes no sense, said in one sentence on standard error.
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

from ladon_storage.errors import ConfigurationError
from ladon_storage.server.serving import serving

TOKEN_VARIABLE = "STORAGE_SERVICE_TOKEN"  # noqa: S105 - the name of a variable, not its value


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command, and return its exit code."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(
        stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s"
    )
    # Each change is logged; what no format asks for is not looked up for each.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    try:
        token = _token(options.token_file)
        asyncio.run(_serve(options.database, options.host, options.port, token))
    except ConfigurationError as error:
        print(f"ladon-storage: {error}", file=sys.stderr)  # noqa: T201 - the command's own output
        return 2
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
            "output when it answers, logs to standard error, and ends on SIGTERM or SIGINT when "
            f"the requests in flight are finished. Its token is in {TOKEN_VARIABLE} or a file; "
            "only a loopback address needs none."
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
    return parser


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
    for signal_number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signal_number, stop.set)
    async with serving(database, host, port, token=token) as address:
        print(address, flush=True)  # noqa: T201 - what the caller waits for
        await stop.wait()


if __name__ == "__main__":
    sys.exit(main())
