"""The reference of the command, made from the command: ``docs/reference/commands.md``.

``python -m ladon_storage.cli.reference > docs/reference/commands.md`` writes it; a test holds it
current.
"""

from __future__ import annotations

import sys

from ladon_storage.cli.app import app

_INTRODUCTION = """\
# Commands

`ladon-storage` is one command with a verb for each task. `ladon-storage VERB --help` prints what
stands here. `ladon-storage --install-completion` makes the shell complete verbs and options.

| exit code | meaning |
|---:|---|
| 0 | done |
| 1 | failed: a source, the storage or a check; standard error has the reason in one sentence |
| 2 | the usage or the configuration is wrong; nothing was done |
| 128 + number | a signal ended it; a run that was in flight has written that it failed |
| 141 | done, and the reader of standard output, such as `head`, had gone before all was printed |

Standard output has the data, and standard error everything else. With `--json` the data is JSON.
In a pipe there are no colours, and each row of a table is one line. `NO_COLOR` takes the colours
away on a terminal too. A reader that goes away ends no work: a failure has its own code and its
sentence on standard error. With standard output closed, `--json` is refused.

An error of a class of your own is one sentence too. `LADON_TRACEBACK=1` prints its traceback.

A password never stands on a command line: sinks, sources and secrets are named.
"""


def reference() -> str:
    """Return the reference as Markdown."""
    text = app.generate_docs(heading_level=1, flatten_commands=True)
    verbs = text[text.index("\n# ladon-storage collect") :]
    # What it is called by depends on the process, and the introduction has it.
    verbs = verbs.partition("\n# ladon-storage --install-completion")[0]
    lines = [line.rstrip() for line in verbs.splitlines()]
    lines = [f"#{line}" if line.startswith("# ") else line for line in lines]
    return f"{_INTRODUCTION}{chr(10).join(lines).rstrip()}\n"


if __name__ == "__main__":
    sys.stdout.write(reference())
