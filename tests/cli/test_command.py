"""The command as a whole: its help, its exit codes, what it imports, and its reference."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import resource
import struct
import subprocess
import sys
import termios
from contextlib import suppress
from pathlib import Path

import pytest
from cyclopts import App

from ladon_storage.cli.app import app
from ladon_storage.cli.reference import reference
from tests.cli.called import Command
from tests.cli.feeds import OWN
from tests.documents import ROOT

HELP_CPU_SECONDS = 0.6
"""Three times of what the help may take on an idle machine: other tests run beside."""


def verbs(parent: App = app, *names: str) -> list[tuple[str, ...]]:
    """Return every verb below an app, by its names."""
    found = []
    for name in parent:
        if name.startswith("-"):
            continue
        below = verbs(parent[name], *names, name)
        found += below or [(*names, name)]
    return found


def imported_by(*arguments: str, folder: Path) -> set[str]:
    """Return the modules that a call of the command imports, in a process of its own."""
    code = (
        "import sys\n"
        "from ladon_storage.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "finally: sys.stderr.write('IMPORTED ' + ' '.join(sys.modules))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return set(done.stderr.rpartition("IMPORTED ")[2].split())


def test_help_names_every_verb(ladon: Command) -> None:
    """The help lists what there is, with a sentence each, and each verb has a help of its own."""
    shown = ladon("--help")
    assert (shown.code, shown.err) == (0, "")
    for name in {names[0] for names in verbs()}:
        assert re.search(rf"^│ {name} +[A-Z]", shown.out, re.MULTILINE), name
    for names in verbs():
        each = ladon(*names, "--help")
        assert each.code == 0
        assert each.out.startswith(f"Usage: ladon-storage {' '.join(names)}")
        assert "\x1b" not in each.out


def test_help_needs_neither_prefect_nor_aiohttp(tmp_path: Path) -> None:
    """The help of the command and of a verb is at once: it imports nothing that is slow."""
    slow = {"prefect", "aiohttp", "pydantic", "sqlalchemy", "fastapi", "deltalake"}
    for arguments in (["--help"], ["collect", "--help"], ["--version"]):
        assert not imported_by(*arguments, folder=tmp_path) & slow, arguments


def test_collection_imports_nothing_of_what_it_does_not_use(tmp_path: Path) -> None:
    """A short run into SQLite pays for no server, no other database's dialect, and no Prefect."""
    (tmp_path / "own.py").write_text(OWN, encoding="utf-8")
    imported = imported_by(
        "collect", "own:Own", "--sink", "sqlite:///r.db", "--no-prefect", folder=tmp_path
    )
    assert (tmp_path / "r.db").exists()
    unused = {"prefect", "aiohttp.web", "sqlalchemy.dialects.postgresql", "deltalake"}
    assert not imported & (unused | {"rich.progress"})


def test_process_that_ends_searches_no_garbage() -> None:
    """The objects of a whole process are set aside before it ends; those of a caller are not."""
    program = (
        "import gc, atexit, sys\n"
        "atexit.register(lambda: print(gc.get_freeze_count()))\n"
        "from ladon_storage.cli import main\n"
        "main({})\n"
    )
    for arguments, sets_aside in (("", True), ("['--version']", False)):
        ran = subprocess.run(
            [sys.executable, "-c", program.format(arguments), "--version"],
            capture_output=True,
            text=True,
            check=True,
        )
        assert (int(ran.stdout.split()[-1]) > 0) == sets_aside


def test_help_is_at_once(tmp_path: Path) -> None:
    """The whole process takes little time of the processor."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "ladon_storage.cli", "--help"]
    subprocess.run(command, cwd=tmp_path, stdout=subprocess.DEVNULL, check=True, timeout=60)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < HELP_CPU_SECONDS


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_installed_for_the_shell(
    ladon: Command, shell: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The script that the shell reads has the verbs and the options."""
    monkeypatch.setenv("HOME", str(ladon.folder))
    monkeypatch.setenv("SHELL", f"/bin/{shell}")
    assert ladon("--install-completion").code == 0
    installed = [each for each in ladon.folder.rglob("*ladon-storage*") if each.is_file()]
    [script] = [each.read_text("utf-8") for each in installed]
    for word in ("watermarks", "release", "--reason"):
        assert word.lstrip("-") in script


def test_version_is_the_packages(ladon: Command) -> None:
    """``--version`` prints the version and nothing else."""
    assert re.fullmatch(r"\d+\.\d+\.\d+\n", ladon("--version").out)


@pytest.mark.parametrize(
    "arguments",
    [
        ["serve"],
        ["serve", "--token", "x"],
        ["unknown"],
        ["circuit", "shwo"],
        ["collect", "--al"],
        ["collect", "kev", "--jsn"],
        ["init", "x"],
    ],
)
def test_wrong_usage_is_one_sentence_and_exits_with_2(ladon: Command, arguments: list[str]) -> None:
    """Missing and unknown arguments are usage errors; a token is no argument at all."""
    called = ladon(*arguments)
    assert (called.code, called.out) == (2, "")
    assert re.fullmatch(r'ladon-storage: .+ See "ladon-storage.* --help"\.', called.sentence)


@pytest.mark.parametrize("value", ["nan", "inf", "-1", "0", "1e300"])
@pytest.mark.parametrize(
    "arguments",
    [
        ["serve", "--database", "storage.db", "--port", "0", "--history-days"],
        ["health", "http://127.0.0.1:1", "--timeout"],
        ["reconcile", "kev", "--sink", "sqlite:///records.db", "--last-days"],
        ["backfill", "kev", "2024-01-01", "2024-01-02", "--window-hours"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_length_that_does_not_exist_is_refused(
    ladon: Command, arguments: list[str], value: str
) -> None:
    """No clock and no calendar has it; the sentence names the option and what it takes."""
    called = ladon(*arguments, value)
    assert (called.code, called.out) == (2, "")
    assert f"{arguments[-1]} is " in called.sentence
    assert "more than 0 and less than 1,000,000" in called.sentence


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["collect", "--al"], "Unknown option: --al. Did you mean --all?"),
        (["collect", "kev", "nvd", "--jsn"], "Unknown option: --jsn. Did you mean --json?"),
        (["freshness", "kev=1", "--flie=s3cret"], "Unknown option: --flie. Did you mean --file?"),
        (
            ["watermarks", "show", "--", "kev", "--storage", "x"],
            "What follows -- is a name, and no option: put --storage before it.",
        ),
        (["watermarks", "list", "--prefx", "a"], "Unknown option: --prefx. Did you mean --prefix?"),
        (["collect", "kev", "--quite-else", "3"], "Unknown option: --quite-else. See"),
        (["collect", "kev", "-x"], "Unknown option: -x. See"),
        (["collect", "kev", "--prefect", "--no-prefect"], "--no-prefect is given twice, or"),
        (["collect", "kev", "--sink", "a", "--sink", "b"], "--sink is given twice, or"),
    ],
)
def test_misspelt_option_is_named_with_the_nearest(
    ladon: Command, arguments: list[str], said: str
) -> None:
    """The option is named, and no source before it; what may be a secret is not repeated."""
    called = ladon(*arguments)
    assert called.code == 2
    assert called.sentence.startswith(f"ladon-storage: {said}")
    assert "s3cret" not in called.sentence


HTTP, SQL = "http://ann:s3cr3t@127.0.0.1:9", "postgresql://ann:s3cr3t@127.0.0.1:9/db"


@pytest.mark.parametrize(
    "arguments",
    [
        ["collect", "kev", "--sink", SQL],
        ["collect", "kev", "--sink", json.dumps({"url": SQL})],
        ["backfill", "kev", "2024-01-01", "2024-01-02", "--sink", SQL],
        ["reconcile", "kev", "--sink", SQL],
        ["source", "try", json.dumps({"kind": "kev", "url": HTTP})],
        ["source", "guess", HTTP],
        ["watermarks", "list", "--storage", HTTP],
        ["watermarks", "export", "--storage", f"{HTTP}/?token=s3cr3t"],
        ["circuit", "show", "--service", HTTP],
        ["circuit", "trip", "--service", "http://127.0.0.1:9/?token=s3cr3t"],
        ["health", HTTP],
        ["serve", "--database", SQL],
        ["serve", "--database", "w.db", "--prefect-url", HTTP],
        ["migrate", "--database", "w.db", "--from", SQL],
        ["tokens", "list", "--database", SQL],
    ],
    ids=lambda arguments: " ".join(each for each in arguments if "s3cr3t" not in each),
)
def test_address_with_a_password_is_refused_and_not_shown(
    ladon: Command, arguments: list[str]
) -> None:
    """Every user of the host sees a command line; nothing is asked or made before that."""
    called = ladon(*arguments)
    assert (called.code, called.out) == (2, "")
    assert "s3cr3t" not in called.sentence
    assert not list(ladon.folder.glob("*.db"))


def test_call_without_a_verb_prints_the_help_and_exits_with_2(ladon: Command) -> None:
    """A script that forgot the verb must not take it for done."""
    called = ladon()
    assert called.code == 2
    assert "collect" in called.out


def test_reference_is_current() -> None:
    """The reference is what the command says of itself, with every verb and option."""
    written = (ROOT / "docs" / "reference" / "commands.md").read_text(encoding="utf-8")
    assert written == reference(), "make docs"
    for names in verbs():
        assert f"ladon-storage {' '.join(names)}" in written


def test_every_option_is_explained() -> None:
    """No argument of a verb is without a help of its own."""
    written = reference()
    for names in verbs():
        verb = app
        for name in names:
            verb = verb[name]
        for argument in verb.assemble_argument_collection():
            assert argument.parameter.help, (names, argument.name)
            assert argument.name in written


OUTPUTS: list[tuple[dict[str, str], int]] = [
    ({"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, 0),
    ({"PYTHONIOENCODING": "ascii:strict"}, 200),
    ({"NO_COLOR": "1"}, 9),
]


def printed(folder: Path, variables: dict[str, str], *arguments: str, terminal: int = 0) -> str:
    """Return what a process of the command prints, on a terminal if it has columns."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PREFECT_", "STORAGE_", "LADON_"))
    }
    command = [sys.executable, "-m", "ladon_storage.cli", *arguments]
    theirs = environment | {"PREFECT_HOME": str(folder / "prefect")} | variables
    if not terminal:
        done = subprocess.run(
            command, cwd=folder, env=theirs, capture_output=True, timeout=60, check=False
        )
        return (done.stdout + done.stderr).decode()
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, terminal, 0, 0))
    shown = b""
    with subprocess.Popen(
        command, cwd=folder, env=theirs, stdin=follower, stdout=follower, stderr=follower
    ):
        os.close(follower)
        with suppress(OSError):  # how a terminal ends
            while chunk := os.read(leader, 65_536):
                shown += chunk
    os.close(leader)
    return shown.decode()


@pytest.mark.slow
@pytest.mark.parametrize(("variables", "terminal"), OUTPUTS, ids=["C", "ascii", "narrow"])
def test_output_fits_whatever_prints_it(
    variables: dict[str, str], terminal: int, tmp_path: Path
) -> None:
    """A pipe, a narrow terminal, and a locale without UTF-8 get everything, and no traceback."""
    name = "büro/☃"
    (tmp_path / "ladon.toml").write_text(
        f'[storage]\nurl = "sqlite:///ladon.db"\n[sinks.r]\nurl = "sqlite:///r.db"\n'
        f'[sources."{name}"]\nkind = "kev"\n',
        encoding="utf-8",
    )
    said = {
        verb: printed(tmp_path, variables, *verb.split(), *more, terminal=terminal)
        for verb, more in {
            "watermarks set": [name, "2024-01-01", "--reason", "größer"],
            "watermarks list": [],
            "source check --offline": [],
            "unknown": ["☃"],
        }.items()
    }
    for verb, text in said.items():
        assert text.strip(), verb
        assert "Traceback" not in text, verb
        assert "codec" not in text, verb
        if not terminal:
            assert all(line == line.rstrip() for line in text.splitlines()), verb
        if "NO_COLOR" in variables:
            assert "\x1b[3" not in text, verb
    assert "1 source" in " ".join(said["source check --offline"].split())
    assert "1 sources" not in " ".join(said["source check --offline"].split())


def in_shell(rest: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Return the outcome of the command in a shell, whose pipes and redirections it may have."""
    return subprocess.run(
        ["sh", "-c", f"{sys.executable} -m ladon_storage.cli {rest}"],
        cwd=folder,
        env={**os.environ, "PYTHONUNBUFFERED": "", **environment},  # as a user's is
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_closed_output_is_no_fault(tmp_path: Path) -> None:
    """A caller that closes standard output wants none."""
    done = in_shell(
        "watermarks set kev 2024-01-01 --reason first >&-",
        tmp_path,
        STORAGE_SERVICE_URL=f"sqlite:///{tmp_path}/w.db",
    )
    [said] = done.stderr.splitlines()
    assert (done.returncode, said.startswith("The next run begins there")) == (0, True)


@pytest.mark.parametrize(
    ("where", "code", "expected"),
    [("2>/dev/full", 0, "source"), (">/dev/full", 1, "The output cannot be written")],
)
def test_full_disk_below_the_output_is_no_fault_of_the_work(
    tmp_path: Path, where: str, code: int, expected: str
) -> None:
    """A note that cannot be written ends no run, and data that cannot be is one sentence."""
    done = in_shell(f"watermarks set kev 2024-01-01 --reason first {where}", tmp_path)
    assert done.returncode == code
    assert expected in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_reader_of_notes_that_goes_away_ends_no_work(tmp_path: Path) -> None:
    """What is said beside the data is not worth the data."""
    in_shell("watermarks set kev 2024-01-01 --reason first 2>&1 >out | true", tmp_path)
    assert "kev" in (tmp_path / "out").read_text()


def unread(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Return the outcome of the command, whose standard output has lost its reader."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        return subprocess.run(
            [sys.executable, "-m", "ladon_storage.cli", *arguments],
            cwd=folder,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},  # each line is written at once
            stdout=writer,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
        )
    finally:
        os.close(writer)


def test_reader_that_goes_away_ends_the_command_without_a_traceback(tmp_path: Path) -> None:
    """Piped into ``head``, the command ends in silence, with the code of SIGPIPE."""
    done = unread(tmp_path, "--help")
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.parametrize("more", [(), ("--json",)], ids=["table", "json"])
def test_work_whose_output_has_no_reader_is_done_and_no_failure(
    tmp_path: Path, more: tuple[str, ...]
) -> None:
    """A caller tells it from a run that failed, whose reason is on standard error all the same."""
    (tmp_path / "own.py").write_text(OWN)
    sink = ("--sink", "sqlite:///records.db", *more)
    done = unread(tmp_path, "collect", "own:Own", *sink)
    assert (done.returncode, "failed" in done.stderr) == (141, False)
    failed = unread(tmp_path, "collect", "own:Own", "own:Broken", *sink)
    assert failed.returncode == 1
    assert "broken failed: KeyError" in failed.stderr


def test_connection_that_breaks_is_no_reader_that_goes_away(
    ladon: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has the same error, and is said."""

    def breaking(*_: object, **__: object) -> None:
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr("ladon_storage.cli.choosing.load_project", breaking)
    called = ladon("collect", "kev", "--no-prefect")
    assert (called.code, "BrokenPipeError" in called.sentence) == (1, True)


def test_json_for_a_closed_output_is_refused_before_anything_is_done(tmp_path: Path) -> None:
    """It was asked for, and would be lost."""
    (tmp_path / "own.py").write_text(OWN)
    done = in_shell("collect own:Own --sink sqlite:///records.db --json >&-", tmp_path)
    assert done.returncode == 2
    assert "Standard output is closed" in done.stderr
    assert not list(tmp_path.glob("*.db"))
