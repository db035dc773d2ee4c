"""``ladon-storage collect``: what it stores, what it says, and how it ends."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sqlite3
import sys
from pathlib import Path

import pytest

from ladon_storage.embedded import EmbeddedStorage
from ladon_storage.testing.feed_server import Answer, FeedServer
from tests.cli.called import Command
from tests.cli.feeds import OWN, catalogue, kev, project
from tests.service import START_SECONDS, embedded_service

SINK = ("--sink", "sqlite:///records.db")


def stored(folder: Path) -> list[str]:
    """Return the ids of the records in a folder's database."""
    connection = sqlite3.connect(folder / "records.db")
    try:
        return [row[0] for row in connection.execute("select record_id from records order by 1")]
    finally:
        connection.close()


SINKS = """
import asyncio
from pathlib import Path
from pydantic import BaseModel


class Whole(BaseModel):
    async def __aenter__(self):
        return self

    async def __aexit__(self, *error):
        Path("closed").touch()

    async def write(self, source_id, page, *, run_id="", position=None):
        return len(page.records)


class Broken(Whole):
    async def __aexit__(self, *error):
        raise ERROR
"""


async def test_kind_without_any_file_is_collected(ladon: Command) -> None:
    """An empty folder is enough: records, a watermark beside them, and one line that says where."""
    async with FeedServer(catalogue(1, 2), catalogue(1, 2)) as feed:
        first = await ladon.later("collect", kev(feed), *SINK)
        second = await ladon.later("collect", kev(feed), *SINK, "--json")
    assert first.code == second.code == 0
    header, row = first.out.splitlines()
    assert header.split() == [
        "source", "outcome", "read", "new", "changed", "quarantined", "watermark", "s",
    ]  # fmt: skip
    assert row.split()[:6] == ["kev", "done", "2", "2", "0", "0"]
    assert "\x1b" not in first.out
    assert stored(ladon.folder) == ["CVE-2024-0001", "CVE-2024-0002"]
    assert f"watermarks are kept in the file {ladon.folder}/ladon.db" in first.err
    [report] = second.json
    assert (report["outcome"], report["records_new"]) == ("done", 0)
    assert report["watermark_after"] == "2024-01-02T00:00:00Z"


async def test_sources_of_the_file_are_collected_with_what_it_says(ladon: Command) -> None:
    """``--all`` takes every source; one that fails, or is wrong, leaves the others alone."""
    async with FeedServer(catalogue(1)) as feed:
        ladon.write("own.py", OWN)
        ladon.write(
            "ladon.toml",
            project(
                feed,
                '[sources.own]\nkind = "own:Own"\n[sources.broken]\nkind = "own:Broken"\n'
                '[sources.wrong]\nkind = "rest"\n',
            ),
        )
        called = await ladon.later("collect", "--all", "--json")
    outcomes = {each["name"]: each for each in called.json}
    assert called.code == 1
    assert [outcomes[name]["outcome"] for name in ("kev", "own", "broken", "wrong")] == [
        "done", "done", "failed", "failed",
    ]  # fmt: skip
    assert outcomes["broken"]["error"].startswith("KeyError: 'missing' (own.py, line ")
    assert "[sources.wrong]" in outcomes["wrong"]["error"]
    assert "broken failed: KeyError" in called.err
    assert "Traceback" not in called.err
    assert stored(ladon.folder) == ["1", "CVE-2024-0001"]


async def test_records_before_the_lookback_are_named(ladon: Command) -> None:
    """A first collection that leaves records out says how many; one that leaves none says none."""
    async with FeedServer(play=lambda asked: catalogue(1, 2)) as feed:
        ladon.write("ladon.toml", project(feed, "limits.initial_lookback = 1\n"))
        first = await ladon.later("collect", "kev")
        second = await ladon.later("collect", "kev", "--limits", '{"initial_lookback": null}')
    assert "kev: records before limits.initial_lookback left out: 2." in first.err
    assert "left out" not in second.err


async def test_storage_of_the_file_goes_before_that_of_the_environment(
    ladon: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The watermark is in the service that the file names, and nowhere else."""
    monkeypatch.setenv("STORAGE_SERVICE_URL", "http://127.0.0.1:9")
    async with (
        FeedServer(catalogue(1)) as feed,
        embedded_service(ladon.folder / "service.db") as service,
    ):
        text = project(feed).replace("sqlite:///ladon.db", service)
        ladon.write("ladon.toml", text)
        assert (await ladon.later("collect", "kev")).code == 0
        shown = await ladon.later("watermarks", "show", "kev", "--json")
    assert shown.json["status"] == "success"
    assert not (ladon.folder / "ladon.db").exists()


async def test_source_that_fails_says_why_once(ladon: Command) -> None:
    """The outcome is in the table, and the reason in a sentence, here and at the watermark."""
    async with FeedServer(Answer(status=403)) as feed:
        called = await ladon.later("collect", kev(feed), *SINK)
    assert called.code == 1
    assert called.out.splitlines()[1].split()[:2] == ["kev", "failed"]
    [reason] = [line for line in called.err.splitlines() if line.startswith("kev failed: ")]
    assert "403" in reason
    async with EmbeddedStorage(ladon.folder / "ladon.db") as storage:
        watermark = await storage.get_watermark("kev")
    assert watermark is not None
    assert watermark.status == "failed"
    assert "403" in (watermark.error_message or "")


async def test_source_that_ends_by_a_cancellation_from_within_has_failed(ladon: Command) -> None:
    """It has its line, and the others are collected."""
    ladon.write("own.py", OWN)
    async with FeedServer(play=lambda asked: catalogue(1, 2)) as feed:
        ladon.write("ladon.toml", project(feed, '[sources.own]\nkind = "own:Lost"\n'))
        called = await ladon.later("collect", "--all", "--json")
    assert {each["name"]: each["outcome"] for each in called.json} == {
        "kev": "done",
        "own": "failed",
    }
    assert called.code == 1
    assert "a cancellation that was not requested" in called.err


@pytest.mark.parametrize("error", ["OSError('no room')", "asyncio.CancelledError"])
async def test_sink_that_cannot_be_closed_is_told_behind_the_table(
    ladon: Command, error: str
) -> None:
    """Its records are durable: the outcomes are those of the runs, and the other sinks close."""
    ladon.write("own.py", OWN)
    ladon.write("own_sinks.py", SINKS.replace("ERROR", error))
    more = (
        '[sinks.broken]\nkind = "own_sinks:Broken"\n[sinks.whole]\nkind = "own_sinks:Whole"\n'
        '[sources.a]\nkind = "own:Own"\nsource_id = "a"\nsink = "broken"\n'
        '[sources.b]\nkind = "own:Own"\nsource_id = "b"\nsink = "whole"\n'
    )
    async with FeedServer(play=lambda asked: catalogue(1, 2)) as feed:
        text = project(feed, 'sink = "records"\n' + more)
        ladon.write("ladon.toml", text)
        called = await ladon.later("collect", "--all", "--concurrency", "1", "--json")
    assert [each["outcome"] for each in called.json] == ["done", "done", "done"]
    assert called.code == 1
    [line] = [each for each in called.err.splitlines() if "could not be closed" in each]
    assert line.startswith("Sink broken could not be closed: ")
    assert "own_sinks.py, line" in line
    assert (ladon.folder / "closed").exists()


@pytest.mark.parametrize("code", ["", "0", "3", "'hunter2'"])
async def test_source_that_quits_the_program_is_no_success(ladon: Command, code: str) -> None:
    """It takes the others with it, whose runs have failed: exit code 0 would call that done."""
    ladon.write("own.py", OWN.replace("sys.exit()", f"sys.exit({code})"))
    async with FeedServer(play=lambda asked: catalogue(1, 2)) as feed:
        ladon.write("ladon.toml", project(feed, '[sources.own]\nkind = "own:Quits"\n'))
        called = await ladon.later("collect", "--all")
    assert called.code == 1
    assert "sys.exit()" in called.err
    assert "own.py, line" in called.err
    assert "hunter2" not in called.err
    async with EmbeddedStorage(ladon.folder / "ladon.db") as storage:
        watermark = await storage.get_watermark("own")
    assert watermark is not None
    assert watermark.status == "failed"


@pytest.mark.parametrize("names", [("a", "b"), ("a",), ("b",), ("--all",)])
def test_two_names_of_one_source_are_not_collected(ladon: Command, names: tuple[str, ...]) -> None:
    """They have one watermark: what one of them has passed would be lost to the other."""
    ladon.write("own.py", OWN)
    same = "".join(
        f'[sources.{each}]\nkind = "own:Slow"\nsource_id = "same"\n' for each in ("a", "b")
    )
    ladon.write(
        "ladon.toml",
        f'[storage]\nurl = "sqlite:///ladon.db"\n[sinks.r]\nurl = "sqlite:///r.db"\n{same}',
    )
    called = ladon("collect", *names)
    assert called.code == 2
    assert "[sources.b] source_id: is 'same', as that of [sources.a]" in called.err


def test_two_names_of_a_class_with_an_id_of_its_own_are_not_collected(ladon: Command) -> None:
    """It takes none from its table, whose name is not its watermark."""
    ladon.write(
        "own.py",
        OWN.replace(
            "class Broken(Own):",
            """class Fixed:
    source_id, overlap = "fixed", None

    async def pages(self, start, until):
        yield Page()


class Broken(Own):""",
        ),
    )
    tables = '[sources.{}]\nkind = "own:Fixed"\n'
    begin = '[storage]\nurl = "sqlite:///ladon.db"\n[sinks.r]\nurl = "sqlite:///r.db"\n'
    ladon.write("ladon.toml", begin + tables.format("a") + tables.format("b"))
    called = ladon("collect", "a")
    assert called.code == 2
    assert "[sources.b] source_id: is 'fixed', as that of [sources.a]" in called.err
    ladon.write(
        "ladon.toml", f'{begin}{tables.format("x")}[sources.b]\nkind = "own:Own"\nsource_id = "x"\n'
    )
    assert "as that of" not in ladon("collect", "x").err


def test_file_without_a_source_is_named(ladon: Command) -> None:
    """All of none is nothing that was forgotten in the call."""
    ladon.write("ladon.toml", '[storage]\nurl = "sqlite:///ladon.db"\n')
    called = ladon("collect", "--all")
    assert called.code == 2
    assert "ladon.toml has no source; add a table [sources.NAME]" in called.err


async def test_error_without_a_text_of_its_own_is_a_failure(ladon: Command) -> None:
    """The watermark has it, and the next run is not kept waiting for one that died."""
    ladon.write("own.py", OWN)
    async with FeedServer(play=lambda asked: catalogue(1, 2)) as feed:
        ladon.write("ladon.toml", project(feed, '[sources.own]\nkind = "own:Mute"\n'))
        called = await ladon.later("collect", "own")
    assert called.code == 1
    assert "its text cannot be shown (RuntimeError)" in called.err
    async with EmbeddedStorage(ladon.folder / "ladon.db") as storage:
        watermark = await storage.get_watermark("own")
    assert watermark is not None
    assert watermark.status == "failed"


def test_only_wrong_configuration_exits_with_2(ladon: Command) -> None:
    """A source that no run can begin is told apart from one that failed."""
    ladon.write(
        "ladon.toml",
        '[storage]\nurl = "sqlite:///ladon.db"\n[sinks.r]\nurl = "sqlite:///r.db"\n'
        '[sources.wrong]\nkind = "rest"\n',
    )
    called = ladon("collect", "wrong")
    assert called.code == 2
    assert "[sources.wrong]" in called.err


async def test_wrong_source_among_collected_ones_is_a_failure(ladon: Command) -> None:
    """The code of a wrong configuration says that nothing was done, and a source was collected."""
    async with FeedServer(catalogue(1)) as feed:
        ladon.write("ladon.toml", project(feed, '[sources.otx]\nkind = "otx"\nkey = "UNSET"\n'))
        called = await ladon.later("collect", "--all", "--json")
    assert [each["outcome"] for each in called.json] == ["done", "failed"]
    assert called.code == 1


@pytest.mark.parametrize(
    "source",
    [
        '{"kind": "rest", "url": "https://u:s3cret-word@x.example/", "id": "id"}',
        '{"kind": "rest", "url": "https://x.example/?api_key=s3cret-word", "id": "id"}',
        '{"kind": "sql", "url": "postgresql://u:s3cret-word@x.example/db", "table": "t"}',
        '{"kind": "otx", "key": "s3cret word"}',
    ],
)
@pytest.mark.parametrize("verb", [["collect"], ["source", "try"], ["reconcile"]])
def test_secret_in_a_source_of_the_command_line_is_refused(
    ladon: Command, source: str, verb: list[str]
) -> None:
    """No verb takes it, or repeats it."""
    sink = SINK if verb[0] != "source" else ()
    called = ladon(*verb, source, *sink)
    assert called.code == 2
    assert "s3cret" not in called.err + called.out


@pytest.mark.parametrize(
    "sink",
    [
        "postgresql://user:s3cret-word@db.example/records",
        '{"url": "postgresql://user:s3cret-word@db.example/records"}',
        "postgresql://db.example/records?password=s3cret-word",
    ],
)
def test_password_on_the_command_line_is_refused(ladon: Command, sink: str) -> None:
    """The sentence says where it belongs, and does not repeat it; with Prefect nothing else."""
    for more in ((), ("--prefect",)):
        called = ladon("collect", "kev", "--sink", sink, *more)
        assert (called.code, called.out) == (2, "")
        assert "url_secret" in called.sentence
        assert "s3cret" not in called.sentence
    assert list(ladon.folder.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["collect"], "Name a source"),
        (["collect", "--all"], "no ladon.toml here"),
        (["collect", "kve", *SINK], "did you mean 'kev'"),
        (["collect", "kev"], "There is no sink"),
        (["collect", "kev", "kev", *SINK], "named twice"),
        (["collect", "kev", "--all", *SINK], "not both"),
        (["collect", "{", *SINK], "is not JSON"),
        (["collect", "[1].json", *SINK], "cannot be read"),
        (["collect", "kev", "--sink", "records"], "There is no sink 'records'"),
        (["collect", "kev", "--sink", "nosuch://x"], "nosuch"),
        (["collect", "kev", *SINK, "--limits", '{"initial": 1}'], "initial"),
        (["collect", "kev", *SINK, "--concurrency", "0"], "--concurrency"),
        (["collect", "kev", *SINK, "--file", "missing.toml"], "missing.toml"),
        (["collect", "own:Nothing", *SINK], "own"),
    ],
)
def test_what_cannot_be_meant_is_one_sentence_before_anything_is_done(
    ladon: Command, arguments: list[str], expected: str
) -> None:
    """A mistake on the command line exits with 2, and leaves the folder empty."""
    called = ladon(*arguments)
    assert (called.code, called.out) == (2, "")
    assert expected in called.sentence
    assert list(ladon.folder.iterdir()) == []


def test_misspelt_name_of_the_file_names_the_nearest(ladon: Command) -> None:
    """Names of the file and kinds are both looked through."""
    ladon.write(
        "ladon.toml", '[sinks.r]\nurl = "sqlite:///r.db"\n[sources.tickets]\nkind = "kev"\n'
    )
    assert "did you mean 'tickets'?" in ladon("collect", "tikets").sentence


def test_terminal_without_room_for_a_table_gets_a_line_for_each_fact(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Eight columns on thirty characters would be a column of letters each."""
    from ladon_storage.cli import output

    monkeypatch.setenv("COLUMNS", "30")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    columns = ("source", "outcome", "read#", "watermark")
    output.print_table(columns, [("kev", "done", 3, "2024-01-01")])
    shown = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
    assert [line.split() for line in shown.splitlines()[:4]] == [
        ["source:", "kev"],
        ["outcome:", "done"],
        ["read:", "3"],
        ["watermark:", "2024-01-01"],
    ]


async def test_limits_of_the_command_line_are_added_to_those_of_the_file(ladon: Command) -> None:
    """What the file says besides holds."""
    from ladon_storage.cli.choosing import with_limits
    from ladon_storage.collection.protocols import Limits

    limits = with_limits(Limits(quarantine_share=0.25), '{"removed_share": 0.75}')
    assert (limits.quarantine_share, limits.removed_share) == (0.25, 0.75)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
async def test_signal_ends_a_run_which_writes_what_ended_it(
    ladon: Command, number: signal.Signals
) -> None:
    """The watermark says which signal it was, and the exit code is the signal's."""
    ladon.write("own.py", OWN)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "ladon_storage.cli", "collect", "own:Stuck", *SINK,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, env=dict(os.environ),
    )  # fmt: skip
    assert process.stdout is not None
    line = await asyncio.wait_for(process.stdout.readline(), START_SECONDS)
    assert line == b"reading\n"
    process.send_signal(number)
    _, errors = await asyncio.wait_for(process.communicate(), START_SECONDS)
    assert process.returncode == 128 + number
    assert errors.decode().splitlines()[-1] == f"ladon-storage: Ended by {number.name}."
    async with EmbeddedStorage(ladon.folder / "ladon.db") as storage:
        watermark = await storage.get_watermark("stuck")
    assert watermark is not None
    assert (watermark.status, watermark.error_message) == ("failed", f"ended by {number.name}")


async def test_collecting_without_prefect_does_not_import_it(ladon: Command) -> None:
    """The command is at once, since Prefect alone would take two seconds."""
    async with FeedServer(catalogue(1)) as feed:
        code = (
            "import sys\nfrom ladon_storage.cli import main\n"
            "code = main(sys.argv[1:])\nassert 'prefect' not in sys.modules\nsys.exit(code)\n"
        )
        for arguments in (["collect", kev(feed), *SINK], ["source", "try", kev(feed)]):
            feed.script.append(catalogue(1))
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-c", code, *arguments, env=dict(os.environ)
            )
            assert await asyncio.wait_for(process.wait(), START_SECONDS) == 0


@pytest.mark.parametrize(
    ("profile", "expected"),
    [
        ('active = "mine"\n[profiles.mine]\nPREFECT_API_URL = "http://127.0.0.1:4200/api"\n', True),
        ('active = "mine"\n[profiles.mine]\n', False),
        ("no toml", False),
        (None, False),
    ],
)
def test_prefect_is_configured_by_its_profile_too(
    ladon: Command, profile: str | None, expected: bool
) -> None:
    """``prefect config set`` and ``prefect cloud login`` write there, and set no variable."""
    from ladon_storage.cli.running import is_prefect_configured

    home = ladon.folder / "prefect"
    home.mkdir()
    if profile is not None:
        (home / "profiles.toml").write_text(profile)
    environ = {"PREFECT_HOME": str(home)}
    assert is_prefect_configured(environ) is expected
    assert is_prefect_configured({**environ, "PREFECT_API_URL": "http://x/api"})
    assert not is_prefect_configured({**environ, "PREFECT_API_URL": ""})


def test_table_on_a_terminal_fits_its_width(
    ladon: Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A narrow terminal folds cells, and what a source says moves no cursor."""
    from ladon_storage.cli import output

    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    output.print_table(("name", "count#"), [("x" * 100 + "\x1b[2J", 1), ("[bold]y[/bold]", 1_000)])
    shown = capsys.readouterr().out
    plain = re.sub(r"\x1b\[[01]m", "", shown)  # bold is no colour
    assert "\x1b" not in plain
    assert max(map(len, plain.splitlines())) <= 40
    assert "[bold]y[/bold]" in shown
    assert "1,000" in shown


def test_json_has_no_character_that_a_terminal_acts_on(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What a source says is escaped, also beyond ASCII."""
    from ladon_storage.cli import output

    output.print_json({"text": "\x1b[2J\x9b2J ä"})
    shown = capsys.readouterr().out
    assert shown.isascii()
    assert json.loads(shown) == {"text": "\x1b[2J\x9b2J ä"}
