"""The verbs of ``ladon-storage``, each by the place of its function, imported when it is called."""

from __future__ import annotations

from cyclopts import App, Group, Parameter

_CIRCUIT_PLACE = (
    "\n\nIts record is where runs have it: at circuit_url of ladon.toml for the service of that "
    "file, else at STORAGE_CIRCUIT_URL, or in a file in Prefect's home."
)
_RUNS = (
    "\n\nWhere a Prefect API is configured, its flows run it; elsewhere the same engine does, at "
    "once. "
)
_WATERMARK_CODES = (
    "\n\nFurther exit codes: 3 there is no such watermark; 4 refused, because "
    "a run holds the source, another writer was faster, or it would go back; 5 the service does "
    "not offer it."
)
_AUDITED = "The history keeps the reason, the author, and both timestamps."
_FILE = "The file is ladon.toml in the working directory unless --file or LADON_FILE names another."

DESCRIPTION = (
    "Collect feeds, APIs and tables, and resume exactly where durable data ends."
    "\n\nExit codes: 0 done; 1 failed; 2 the usage or the configuration is wrong; 128 and the "
    "signal's number where a signal ended it; 141 done, but the reader of the output had gone. "
    "Standard output has the data, standard error everything else."
)

_OTHER = Group("Other", sort_key=9)
_COLLECT = Group("Collect", sort_key=1)
_SOURCES = Group("Sources", sort_key=2)
_OPERATE = Group("Operate", sort_key=3)


def _version() -> str:
    from ladon_storage import __version__

    return __version__


def _app(name: str, description: str, group: Group | None = None, place: int = 0) -> App:
    return App(
        name=name,
        help=description,
        group=group,
        sort_key=place,
        # Markdown would need a parser at each start.
        help_format="plaintext",
        version=_version,
        version_flags=["--version"] if group is None else [],
        group_commands=_OTHER if group is None else None,
        default_parameter=Parameter(negative=()),
    )


app = _app("ladon-storage", DESCRIPTION)
source = _app("source", "Try, propose, check and write sources.", _SOURCES, 5)
circuit = _app(
    "circuit",
    f"Show or change the circuit of a service that processes share.{_CIRCUIT_PLACE}",
    _OPERATE,
    13,
)
tokens = _app("tokens", "Make, list and revoke tokens of a Storage Service.", _OPERATE, 12)
watermarks = _app(
    "watermarks", f"List, show, change and move watermarks.{_WATERMARK_CODES}", _OPERATE, 17
)

_VERBS: tuple[tuple[App, str, str, Group | None, str], ...] = (
    (
        app, "collect", "collect", _COLLECT,
        f"Collect sources from where durable data ends.{_RUNS}{_FILE} Without any "
        "storage setting, watermarks are in ladon.db in the working directory.",
    ),
    (
        app, "backfill", "backfill", _COLLECT,
        f"Read a past range of a source again.{_RUNS}The watermark stays as it is. A failed "
        "backfill that is repeated resumes after its last complete window.",
    ),
    (
        app, "reconcile", "reconcile", _COLLECT,
        "Find and store what regular runs missed."
        f"{_RUNS}It reads a range, or all that the source has, and compares it with the sink.",
    ),
    (
        app, "collect-many", "collect_many", _COLLECT,
        "Collect the sources of a list in one flow run."
        "\n\nIt is for hundreds of sources, each of which would otherwise be a flow run. One that "
        "fails leaves the others alone.",
    ),
    (
        app, "freshness", "freshness", _COLLECT,
        "Fail where watermarks are too old."
        f"{_RUNS}Limits come from the file, or follow the names: kev=48 for 48 hours. The "
        "exit code is 1 where a source is stale, was never collected, or is in the future.",
    ),
    (app, "init", "init", _SOURCES, "Write a ladon.toml with commented examples."),
    (
        source, "try", "source_try", None,
        "Ask a source for its first pages; store nothing."
        "\n\nIt prints records as they would be stored, what would be rejected and why, the next "
        "request, and what to check before a run. It needs neither Prefect nor a "
        "service nor a sink.",
    ),
    (
        source, "guess", "source_guess", None,
        "Propose a source for the address of a JSON API."
        "\n\nIt prints a table for ladon.toml on standard output. At most four requests are made; "
        "the output names what they could not confirm.",
    ),
    (
        source, "check", "source_check", None,
        f"Check the file, its secrets and its sources.\n\n{_FILE}",
    ),
    (
        source, "new", "source_new", None,
        "Write a custom source class with its test."
        "\n\nBoth files run as they are written. A file that exists is left alone.",
    ),
    (
        app, "deploy", "deploy", _OPERATE,
        f"Make or update Prefect deployments from the file.\n\n{_FILE} Besides a collection of "
        "each source, there is a weekly second reading of those whose kinds allow it, and a check "
        "of freshness. A deployment that is no longer in the file is reported, and stays.",
    ),
    (
        app, "up", "up", _OPERATE,
        f"Run Prefect, a Storage Service and deployments here.\n\n{_FILE}",
    ),
    (
        app, "sweep", "sweep", _OPERATE,
        "Mark runs whose process is gone as crashed, or as cancelled, and print their ids."
        "\n\nA process that runs deployments does so by itself. Where workers of a pool run them, "
        "call it by a timer.",
    ),
    (
        app, "serve", "serve", _OPERATE,
        "Run the Storage Service over one SQLite file, or over PostgreSQL."
        "\n\nIt prints its address on standard output when it answers, logs to standard error, and "
        "ends on SIGTERM, SIGINT or SIGHUP when the requests in flight are finished. Its token is "
        "in STORAGE_SERVICE_TOKEN or a file; only a loopback address needs none.",
    ),
    (
        app, "migrate", "migrate", _OPERATE,
        "Bring the schema of the Storage Service's database up to date."
        "\n\nA service does so when it starts. This is for a role that may change a schema, where "
        "that of the service may not. With --from it moves a service to another database, with its "
        "history, versions and tokens.",
    ),
    (
        app, "backup", "backup", _OPERATE,
        "Copy the Storage Service's database while it runs."
        "\n\nThe copy is one state of the database, checked, and readable by its owner alone. To "
        "restore it, end the service, delete its file with -wal and -shm, and move the copy there. "
        "PostgreSQL has tools of its own: pg_dump, and point-in-time recovery.",
    ),
    (
        tokens, "add", "tokens:add", None,
        "Make a token and print it, once: the database has only its digest.",
    ),
    (tokens, "list", "tokens:listed", None, "List the tokens of a service by name."),
    (tokens, "revoke", "tokens:revoke", None, "Delete a token; the next request with it fails."),
    (
        circuit, "show", "circuit:show", None,
        f"Show its state, and the time and reason of the last change.{_CIRCUIT_PLACE}",
    ),
    (
        circuit, "trip", "circuit:trip", None,
        "Open it: no run calls the service until the timeout is over and a probe succeeds."
        f"{_CIRCUIT_PLACE}",
    ),
    (
        circuit, "reset", "circuit:reset", None,
        f"Close it: every run may call the service again.{_CIRCUIT_PLACE}",
    ),
    (
        circuit, "automate", "circuit:automate", None,
        "Pause deployments while it is open, by Prefect automations.\n\nThey are resumed when "
        "it closes. Automations of an earlier call are replaced.",
    ),
    (
        watermarks, "list", "watermarks:list_", None,
        f"List watermarks, with the outcome of the last runs.\n\n{_FILE} From a service without a "
        "list, it shows the watermarks of the file's sources.",
    ),
    (watermarks, "show", "watermarks:show", None, f"Show one watermark.\n\n{_FILE}"),
    (
        watermarks, "history", "watermarks:history", None,
        "Show the changes of a watermark, the latest first; also of a deleted one.",
    ),
    (
        watermarks, "set", "watermarks_changing:set_", None,
        "Move a watermark forward, or make the first one of a source.\n\n"
        f"{_AUDITED} The next run begins there and leaves out what is between, unless its sink "
        "lacks more than that. A service of the base contract has no place for the reason, and a "
        "sink that remembers its position is filled from there.",
    ),
    (
        watermarks, "reset", "watermarks_changing:reset", None,
        f"Move a watermark to any timestamp, also back.\n\n{_AUDITED} The next run collects from "
        "there again.",
    ),
    (
        watermarks, "release", "watermarks_changing:release", None,
        "End the hold of a dead run.\n\nThe run counts as failed, with the reason. If it is alive "
        "after all, it fails at its next write.",
    ),
    (
        watermarks, "delete", "watermarks_changing:delete", None,
        f"Delete a watermark; the next run is a first run.\n\n{_AUDITED} The history stays.",
    ),
    (
        watermarks, "export", "watermarks_moving:export", None,
        "Print all watermarks as JSON, for an import.",
    ),
    (
        watermarks, "import", "watermarks_moving:import_", None,
        "Take over the watermarks of an export."
        "\n\nA watermark that is there moves forward only, unless it is forced. An import that "
        "failed in part may be repeated.",
    ),
    (
        app, "health", "health", _OPERATE,
        "Ask a Storage Service whether it is healthy."
        "\n\nThe exit code is 1 where it is not. It is the health check of a container: without a "
        "token, in a third of a second.",
    ),
    (
        app, "doctor", "doctor", _OPERATE,
        "Check Prefect, the service, files, blocks, versions and clocks."
        "\n\nEach check has a verdict, and a next step where it is not good. SQLite files (the "
        "storage, circuits, and those that are named) are searched for damage, for at most ten "
        "seconds each. None is changed or made.",
    ),
)  # fmt: skip
"""Each verb: its parent, its name, its module and function, its group, and its help."""

for _number, (_parent, _name, _place, _group, _help) in enumerate(_VERBS):
    _module, _, _function = _place.partition(":")
    _parent.command(
        f"ladon_storage.cli.{_module}:{_function or _module}",
        name=_name,
        help=_help,
        group=_group,
        sort_key=_number,
        help_format="plaintext",
        default_parameter=Parameter(negative=()),
        version_flags=[],
    )
for _each in (source, tokens, circuit, watermarks):
    app.command(_each)
app.register_install_completion_command(help="Install completion for the shell.", group=_OTHER)
