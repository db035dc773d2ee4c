"""The command ``ladon-storage``: a verb a module, each of which imports what it needs when called.

- Importing this package, and its help, imports neither Prefect nor aiohttp.
- A verb returns its exit code, or nothing for 0. It raises its errors; here an error becomes one
  sentence on standard error and an exit code.
- Data goes to standard output, everything else to standard error.
"""

from __future__ import annotations

import atexit
import gc
import io
import os
import shutil
import sys
from collections.abc import Sequence
from contextlib import suppress
from errno import EACCES, ENAMETOOLONG, ENOSPC
from typing import TYPE_CHECKING, TextIO

from ladon_storage.errors import ConfigurationError, LadonStorageError

if TYPE_CHECKING:
    from cyclopts import CycloptsError

DONE, FAILED, USAGE, UNREAD = 0, 1, 2, 141
"""The exit codes; a signal that ended the command has 128 and its number.

``UNREAD`` is that of SIGPIPE, as of other programs: all is done, and the reader of the output had
gone before it had all of it.
"""

LEAST_COLUMNS = 20
"""The width below which a terminal folds lines itself: rich would leave texts out, or not end."""

GARBAGE_THRESHOLD = 200_000
"""The objects between two collections of garbage: imports make many, and leave none behind."""

TRACEBACK_VARIABLE = "LADON_TRACEBACK"
"""The variable with which an error of another package keeps its traceback."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command, and return its exit code."""
    try:
        return _main(arguments)
    finally:
        for stream in (sys.stdout, sys.stderr):
            _drop_unwritten(stream)


def _drop_unwritten(stream: TextIO | None) -> None:
    """Drop what a stream cannot write: at the exit, the interpreter would fail in its own way.

    Its reader has gone, or the disk below it is full, and that was said where it could be.
    """
    if stream is None or stream.closed:
        return
    try:
        stream.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _main(arguments: Sequence[str] | None) -> int:
    gc.set_threshold(GARBAGE_THRESHOLD, *gc.get_threshold()[1:])
    if arguments is None:
        # The memory ends with the process. Searching it for garbage then takes a quarter of a run
        # that finds nothing new. Registered first, and so called last.
        atexit.register(gc.freeze)
    from cyclopts import CycloptsError

    from ladon_storage.cli.app import app
    from ladon_storage.cli.ended import Ended
    from ladon_storage.cli.output import OUTPUT

    OUTPUT.is_unread = False
    if sys.stdout is None:  # closed by the caller, who wants no output
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - until the end
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # what a locale cannot print is escaped
            with suppress(OSError):  # a stream that Python cannot place, such as a reopened pipe
                stream.reconfigure(errors="backslashreplace")
    if shutil.get_terminal_size().columns < LEAST_COLUMNS:
        os.environ["COLUMNS"] = str(LEAST_COLUMNS)
    tokens = list(sys.argv[1:] if arguments is None else arguments)
    if tokens[:1] == ["--json"]:  # a verb's option, wherever it stands
        tokens = [*tokens[1:], "--json"]
    if "-" in tokens and "--" not in tokens:  # standard input, and no option with no name
        tokens = [*(each for each in tokens if each != "-"), "--", "-"]
    try:
        outcome = app(tokens, exit_on_error=False, print_error=False, result_action="return_value")
        OUTPUT.flush()  # here, where a reader that has gone is no surprise
    except CycloptsError as error:
        chain = " ".join(error.command_chain or ())
        called = f"ladon-storage {chain}".strip()
        _say(f'{_plain(error)} See "{called} --help".')
        return USAGE
    except LadonStorageError as error:
        _say(str(error))
        return USAGE if isinstance(error, ConfigurationError) else FAILED
    except Ended as ended:
        _say(str(ended))
        return 128 + ended.number
    except KeyboardInterrupt:
        _say("Ended by SIGINT.")
        return 130
    except SystemExit as error:
        # What cyclopts makes of an interrupt.
        if error.code == 130 and isinstance(error.__context__, KeyboardInterrupt):
            _say("Ended by SIGINT.")
            return 130
        if isinstance(error.__context__, BrokenPipeError):  # what rich makes of it, as of a help
            return UNREAD
        # Of a custom class: no verb ends like that. Its text may be a secret.
        from ladon_storage.collection.foreign_errors import place_of

        _say(
            f"A custom class ended the command before all was done ({place_of(error)}); raise an "
            "error there instead of calling sys.exit()."
        )
        return FAILED
    except Exception as error:
        if isinstance(error, BrokenPipeError) and OUTPUT.flush():  # of a verb that flushed itself
            return UNREAD
        if os.environ.get(TRACEBACK_VARIABLE):
            raise
        if isinstance(error, OSError) and error.errno == ENOSPC and error.filename is None:
            _say(f"The output cannot be written ({error.strerror}). Make room, and run it again.")
            return FAILED
        if isinstance(error, OSError) and error.errno in (EACCES, ENAMETOOLONG) and error.filename:
            _say(
                f"{str(error.filename)[:100]!r} cannot be used ({error.strerror}). Name another "
                "file or folder."
            )
            return USAGE
        from ladon_storage.cli.output import said

        _say(f"{said(error)}. Set {TRACEBACK_VARIABLE}=1 to see where it comes from.")
        return FAILED
    if not tokens:  # the help was printed instead of a result
        return USAGE
    code = outcome if isinstance(outcome, int) else DONE
    return UNREAD if code == DONE and OUTPUT.is_unread else code


def _plain(error: CycloptsError) -> str:
    """Return what a wrong call is, in one line and without Python's lists."""
    from difflib import get_close_matches

    from cyclopts import RepeatArgumentError, UnknownOptionError, UnusedCliTokensError

    if isinstance(error, RepeatArgumentError):
        option = error.token.keyword
        return f"{option} is given twice, or together with its opposite; leave one of them out."
    if isinstance(error, UnknownOptionError):
        # With a verb that takes names, the names before it are unused as well.
        option = (error.token.keyword or error.token.value).partition("=")[0][:100]
        known = [name for each in error.argument_collection for name in each.names]
        if option in known and "--" in (error.root_input_tokens or ()):
            return f"What follows -- is a name, and no option: put {option} before it."
        near = get_close_matches(option, known, n=1)
        return f"Unknown option: {option}.{f' Did you mean {near[0]}?' if near else ''}"
    if isinstance(error, UnusedCliTokensError) and error.unused_tokens:
        return f"There is no place for the argument {error.unused_tokens[0][:100]!r}."
    return " ".join(str(error).split())


def _say(sentence: str) -> None:
    # A part of it may come from a source, and would act on the terminal.
    shown = "".join(each if each.isprintable() else " " for each in sentence)
    with suppress(OSError):  # the exit code says it too
        print(f"ladon-storage: {shown}", file=sys.stderr)  # noqa: T201 - the command's own output
