"""``ladon-storage init`` and ``source …``: from an address to a source that is checked."""

from __future__ import annotations

import ast
import asyncio
import json
import os
import re
import sys
from pathlib import Path

import pytest

from ladon_storage.cli import source_new
from ladon_storage.testing.feed_server import Answer, FeedServer
from tests.cli.called import Command
from tests.cli.feeds import OWN, catalogue, kev, project
from tests.raw_server import RawServer, http
from tests.service import START_SECONDS


def rest(feed: FeedServer) -> str:
    """Return a rest source of a feed, by its link to the next page."""
    return json.dumps(
        {
            "kind": "rest",
            "source_id": "things",
            "url": feed.url,
            "records": "data",
            "id": "id",
            "timestamps": ["at"],
        }
    )


async def test_try_shows_records_rejects_and_requests(ladon: Command) -> None:
    """What would be stored and what would not, by the first pages alone; nothing is written."""
    items = [{"id": "a", "at": "2024-01-01T00:00:00Z"}, {"id": "b", "at": "never"}]
    async with FeedServer(Answer.of({"data": items}), Answer.of({"data": items})) as feed:
        shown = await ladon.later("source", "try", rest(feed))
        data = await ladon.later("source", "try", rest(feed), "--json")
        address = feed.url
    assert shown.code == data.code == 0
    assert "2 items: 1 usable, 1 rejected" in shown.out
    assert f"GET {address} -> 200" in shown.out
    assert "2024-01-01T00:00:00+00:00" in shown.out
    assert "\x1b" not in shown.out
    assert [each["record_id"] for each in data.json["records"]] == ["a"]
    assert len(data.json["rejects"]) == 1
    assert list(ladon.folder.iterdir()) == []


async def test_try_of_a_source_that_fails_exits_with_1_and_says_why(ladon: Command) -> None:
    """The reason is a sentence on standard error, also where a class of one's own raises."""
    ladon.write("own.py", OWN)
    async with FeedServer(Answer(status=403)) as feed:
        refused = await ladon.later("source", "try", kev(feed))
    assert refused.code == 1
    assert "403" in refused.err
    raised = await ladon.later("source", "try", "own:Broken")
    assert raised.code == 1
    assert "raised KeyError: 'missing' (own.py, line " in raised.sentence


@pytest.mark.parametrize("form", ["name", "json file", "toml file", "class"])
async def test_source_is_named_in_each_form(ladon: Command, form: str) -> None:
    """A name of the file, a file of its own, and a class are tried alike."""
    async with FeedServer(catalogue(1)) as feed:
        ladon.write("own.py", OWN)
        ladon.write("kev.json", kev(feed))
        ladon.write("other.toml", project(feed))
        if form == "name":
            ladon.write("ladon.toml", project(feed))
        text = {"name": "kev", "json file": "kev.json", "toml file": "other.toml"}
        called = await ladon.later("source", "try", text.get(form, "own:Own"), "--json")
    assert called.code == 0
    assert len(called.json["records"]) == 1


async def test_try_warns_by_the_limits_of_the_file(ladon: Command) -> None:
    """What is allowed there is no warning, and what is not is one at the first item."""
    broken = {"cveID": "CVE-2024-1"}
    item = {"cveID": "CVE-2024-2", "dateAdded": "2024-01-02"}
    answer = Answer.of({"count": 3, "vulnerabilities": [broken, item, item | {"cveID": "CVE-3"}]})
    async with FeedServer(play=lambda _asked: answer) as feed:
        for share, is_warned in ((0.9, False), (0, True)):
            ladon.write("ladon.toml", project(feed, f"limits.quarantine_share = {share}\n"))
            called = await ladon.later("source", "try", "kev", "--json")
            warned = [each for each in called.json["warnings"] if "a run fails at the" in each]
            assert bool(warned) == is_warned, called.json["warnings"]


async def test_guess_prints_a_table_that_can_be_tried(ladon: Command) -> None:
    """Standard output is a ladon.toml of its own, whose source works."""
    items = [{"id": f"x{n}", "updated": f"2024-01-0{n}T00:00:00Z"} for n in range(1, 5)]
    async with FeedServer(play=lambda asked: Answer.of({"items": items})) as feed:
        guessed = await ladon.later("source", "guess", feed.url, "--name", "things")
        assert guessed.code == 0
        ladon.write("ladon.toml", guessed.out)
        tried = await ladon.later("source", "try", "things", "--json")
    assert tried.code == 0
    assert len(tried.json["records"]) == 4


def test_guess_that_finds_nothing_says_so(ladon: Command) -> None:
    """No table is printed, the reason is a sentence, and the exit code is 1."""
    ladon.write("answer.json", '{"data": []}')
    called = ladon("source", "guess", "--sample", "answer.json")
    assert (called.code, called.out) == (1, "")
    assert "is empty" in called.err
    assert ladon("source", "guess").code == 2
    assert ladon("source", "guess", "no address").code == 2
    assert "--header" in ladon("source", "guess", "http://x.example", "--header", "k3y").sentence


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        (["http://ann:s3cr3t-key@127.0.0.1:9/x"], "--key NAME --auth-prefix 'Basic '."),
        (["http://127.0.0.1:9/x?api_key=s3cr3t-key"], "--key NAME --key-param api_key."),
        (
            ["http://127.0.0.1:9/x", "--header", "Authorization: Bearer s3cr3t-key"],
            "--key NAME --auth-prefix 'Bearer '.",
        ),
        (
            ["http://127.0.0.1:9/x", "--header", "X-Api-Key: s3cr3t-key"],
            "--key NAME --key-header 'X-Api-Key'.",
        ),
        (
            ["http://127.0.0.1:9/x", "--body", '{"auth": {"api_key": "s3cr3t-key"}}'],
            "--key NAME --key-param api_key.",
        ),
    ],
)
def test_guess_takes_no_key_from_the_command_line(
    ladon: Command, arguments: list[str], options: str
) -> None:
    """Every user of the host sees it; the sentence names the options that take its name."""
    called = ladon("source", "guess", *arguments)
    assert (called.code, called.out) == (2, "")
    assert called.sentence.endswith(options)
    assert "s3cr3t-key" not in called.err


def test_guess_takes_a_cursor_for_no_key(ladon: Command) -> None:
    """A page of a list has an address of its own, which may have a token in it."""
    called = ladon("source", "guess", "http://127.0.0.1:9/x?page_token=abcdefgh12345678")
    assert (called.code, "could not be reached" in called.err) == (1, True)


async def test_check_gives_each_thing_a_verdict(
    ladon: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file, the storage, each sink and each source; one that is wrong hides no other."""
    monkeypatch.delenv("NO_SUCH_URL", raising=False)
    async with FeedServer(catalogue(1)) as feed:
        more = (
            '[sinks.far]\nurl_secret = "NO_SUCH_URL"\n[sources.odd]\nkind = "rest"\nsink = "far"\n'
        )
        text = project(feed, 'sink = "records"\n' + more)
        ladon.write("ladon.toml", text)
        called = await ladon.later("source", "check", "--json")
        offline = await ladon.later("source", "check", "kev", "--offline", "--json")
    verdicts = {each["what"]: each for each in called.json}
    assert called.code == 1
    assert {name: each["verdict"] for name, each in verdicts.items()} == {
        "file": "ok",
        "storage": "ok",
        "sink records": "ok",
        "sink far": "failed",
        "source kev": "ok",
        "source odd": "failed",
    }
    assert "NO_SUCH_URL" in verdicts["sink far"]["finding"]
    assert "[sources.odd]" in verdicts["source odd"]["finding"]
    assert offline.code == 0
    assert "not asked" in offline.json[-1]["finding"]


@pytest.mark.parametrize("name", ["a/b", "100%", "a b.c"])
async def test_check_warns_of_a_name_that_cannot_be_deployed(ladon: Command, name: str) -> None:
    """It is collected without Prefect, and so no failure; ``deploy`` would refuse the file."""
    async with FeedServer(catalogue(1)) as feed:
        text = project(feed).replace("[sources.kev]", f"[sources.{json.dumps(name)}]")
        ladon.write("ladon.toml", text)
        called = await ladon.later("source", "check", "--json")
        offline = await ladon.later("source", "check", "--offline", "--json")
    for each in (called, offline):
        found = each.json[-1]
        is_named = "Prefect takes no deployment of this name" in found["finding"]
        assert (found["what"], each.code) == (f"source {name}", 0)
        assert (found["verdict"] == "warning") == is_named == (name != "a b.c")


async def test_next_step_of_a_check_quotes_the_name_for_the_shell(ladon: Command) -> None:
    """What is proposed can be pasted, whatever a source is called."""
    async with FeedServer(Answer(status=403)) as feed:
        more = '[sinks.r]\nurl = "sqlite:///r.db"\n'
        source = f'[sources."a b"]\nkind = "kev"\nurl = "{feed.url}"\n'
        ladon.write("ladon.toml", f'[storage]\nurl = "sqlite:///l.db"\n{more}{source}')
        called = await ladon.later("source", "check")
    assert "ladon-storage source try 'a b'" in called.out + called.err


def test_check_looks_for_a_secret_address_where_a_run_does(
    ladon: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What no file says starts at the working directory."""
    (ladon.folder / "data").mkdir()
    (ladon.folder / "other").mkdir()
    monkeypatch.setenv("RECORDS_URL", "sqlite:///data/records.db")
    file = ladon.write("other/ladon.toml", '[sinks.records]\nurl_secret = "RECORDS_URL"\n')
    found = {each["what"]: each for each in ladon("source", "check", "--file", file, "--json").json}
    assert found["sink records"]["verdict"] == "ok"


@pytest.mark.parametrize(
    ("address", "finding"),
    [
        ("sqlite:///absent/records.db", "does not exist"),
        ("duckdb:///there", "is a folder"),
        ("postgresql://ann@127.0.0.1:9/records", "cannot be reached"),
    ],
)
def test_check_tries_the_place_of_a_sink(ladon: Command, address: str, finding: str) -> None:
    """A place where no run could write is found, nothing is made there, and offline none asked."""
    (ladon.folder / "there").mkdir()
    text = f'[sinks.records]\nurl = "{address}"\n[sources.kev]\nkind = "kev"\n'
    file = ladon.write("ladon.toml", text)
    called = ladon("source", "check", "--json")
    verdicts = {each["what"]: each for each in called.json}
    assert verdicts["sink records"]["verdict"] == "failed"
    assert finding in verdicts["sink records"]["finding"]
    offline = ladon("source", "check", "--offline", "--json")
    assert offline.code == 0
    assert {file.name, "there"} <= {each.name for each in ladon.folder.iterdir()}
    assert not (ladon.folder / "absent").exists()


@pytest.mark.parametrize(
    ("address", "finding"),
    [
        ("postgresql://ann:s3cr3t@db:port/records", "The sink's address cannot be used."),
        ("postgresql:s3cr3t", "address without a scheme"),
        ("sqlite://ann:s3cr3t@db/records.db", "The sink's address cannot be used."),
        ("sqlite://", "is not a file"),
        ("postgresql://ann@127.0.0.1:9/r?password=s3cr3t", "ann@127.0.0.1:9/r cannot be reached"),
    ],
)
def test_check_reads_the_address_that_a_secret_holds(
    ladon: Command, monkeypatch: pytest.MonkeyPatch, address: str, finding: str
) -> None:
    """It is refused as a run refuses it, and nothing of it that is secret is shown."""
    monkeypatch.setenv("RECORDS_URL", address)
    ladon.write(
        "ladon.toml", '[sinks.records]\nurl_secret = "RECORDS_URL"\n[sources.kev]\nkind = "kev"\n'
    )
    called = ladon("source", "check", "--json")
    found = next(each for each in called.json if each["what"] == "sink records")
    assert (found["verdict"], finding in found["finding"]) == ("failed", True), found
    assert "s3cr3t" not in called.out + called.err


async def test_check_finds_that_the_storage_refuses_its_token(ladon: Command) -> None:
    """Its health needs none, and would hide what ends each run; the sentence names the places."""
    async with (
        FeedServer(catalogue(1)) as feed,
        RawServer(http(200, b'{"status": "healthy"}'), http(401, b'{"detail": "No."}')) as storage,
    ):
        ladon.write("ladon.toml", project(feed).replace("sqlite:///ladon.db", storage.url))
        called = await ladon.later("source", "check", "--json")
    found = next(each for each in called.json if each["what"] == "storage")
    assert (called.code, found["verdict"]) == (1, "failed")
    assert "answered 401 to GET" in found["finding"]
    assert "STORAGE_SERVICE_TOKEN or" in found["finding"]
    assert "token under [storage]" in found["finding"]


def test_check_without_a_file_says_how_to_write_one(ladon: Command) -> None:
    """The first step has a next step."""
    called = ladon("source", "check")
    assert called.code == 2
    assert "ladon-storage init" in called.sentence


def test_init_writes_a_file_that_is_right_and_replaces_none(ladon: Command) -> None:
    """What is written passes its own check; a second call leaves it as it is."""
    called = ladon("init")
    file = ladon.folder / "ladon.toml"
    assert (called.code, called.out) == (0, f"{file}\n")
    assert ladon("source", "check", "--offline").code == 0
    file.write_text("# mine\n")
    again = ladon("init")
    assert again.code == 2
    assert "exists already" in again.sentence
    assert file.read_text() == "# mine\n"


async def test_new_source_and_its_test_run_as_they_are_written(ladon: Command) -> None:
    """The class is a source, and its test passes, in a process that knows nothing else."""
    assert ladon("source", "new", "tickets_of_now").code == 0
    tried = await ladon.later("source", "try", "tickets_of_now:TicketsOfNow", "--json")
    assert tried.code == 0
    assert tried.json["delivered"] == 3
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:randomly",
        "-c", os.devnull, "--rootdir", str(ladon.folder), "test_tickets_of_now.py",
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ladon.folder), *_path()])},
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    output, _ = await asyncio.wait_for(process.communicate(), START_SECONDS)
    assert process.returncode == 0, output.decode()
    assert re.search(rb"\b3[0-9] passed in", output), output.decode()


def _path() -> list[str]:
    return [os.environ["PYTHONPATH"]] if os.environ.get("PYTHONPATH") else []


@pytest.mark.parametrize("name", ["Ti-ckets", "../x", "class", "kev", "", "1a", "é"])
def test_new_source_of_a_name_that_cannot_be_is_refused(ladon: Command, name: str) -> None:
    """Nothing is written for what cannot be imported, or would hide a kind of this package."""
    called = ladon("source", "new", name)
    assert called.code == 2
    assert list(ladon.folder.iterdir()) == []


def test_new_source_leaves_files_alone(ladon: Command) -> None:
    """Where one of the two files exists, neither is written."""
    ladon.write("test_tickets.py", "# mine")
    assert ladon("source", "new", "tickets").code == 2
    assert [each.name for each in ladon.folder.iterdir()] == ["test_tickets.py"]
    assert Path("test_tickets.py").read_text() == "# mine"


@pytest.mark.parametrize(
    ("file", "verdict", "finding", "step"),
    [
        ("", "warning", "0 sources", "source guess URL"),
        ('[sources.kev]\nkind = "kev"\n', "warning", "1 source, and no sink", "[sinks.records]"),
        (
            '[sinks.r]\nurl = "sqlite:///r.db"\n[sources.a]\nkind = "kev"\n'
            '[sources.b]\nkind = "kev"\nsource_id = "a"\n',
            "failed",
            "a and b have one source_id",
            "a source_id of its own",
        ),
    ],
)
def test_check_judges_the_file_as_a_whole(
    ladon: Command, file: str, verdict: str, finding: str, step: str
) -> None:
    """What no single table has wrong is reported: no source, no sink, one watermark for two."""
    (ladon.folder / "ladon.toml").write_text(file)
    first = ladon("source", "check", "--offline", "--json").json[0]
    assert first["verdict"] == verdict
    assert finding in first["finding"]
    assert step in first["next_step"]


def test_address_alone_is_no_source_to_try(ladon: Command) -> None:
    """It is no file either, and the command that proposes a source for it is named."""
    called = ladon("source", "try", "https://feeds.example.org/kev.json")
    assert called.code == 2
    assert "source guess" in called.sentence


def test_guess_of_a_name_that_the_file_has_says_so(ladon: Command) -> None:
    """Two tables of one name are no TOML."""
    (ladon.folder / "ladon.toml").write_text('[sources.kev]\nkind = "kev"\n')
    sample = ladon.folder / "kev.json"
    entry = {"cveID": "CVE-2024-3400", "dateAdded": "2024-04-12"}
    sample.write_text(json.dumps({"title": "CISA", "count": 1, "vulnerabilities": [entry]}))
    called = ladon("source", "guess", "--sample", sample, "--name", "kev")
    assert "ladon.toml has a source 'kev' already: put this in its place" in called.err


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("record", "its class would be Record"),
        ("page", "its class would be Page"),
        ("u_t_c", "its class would be UTC"),
        ("key_error", "its class would be KeyError"),
        ("true", "its class would be True"),
        ("json", "there is a module json already"),
        ("logging", "there is a module logging already"),
        ("pydantic", "there is a module pydantic already"),
    ],
)
def test_new_source_whose_files_would_not_run_is_refused(
    ladon: Command, name: str, said: str
) -> None:
    """Nothing is written, and another name is proposed, which is accepted."""
    refused = ladon("source", "new", name)
    assert (refused.code, os.listdir()) == (2, [])
    assert said in refused.sentence
    assert f"such as {name}_source." in refused.sentence
    assert ladon("source", "new", f"{name}_source").code == 0
    again = ladon("source", "new", f"{name}_source")
    assert "exists already" in again.sentence


def test_class_of_a_new_source_has_no_name_that_its_files_use() -> None:
    """Whatever the files import or define, a class of that name would replace it."""
    texts = (source_new._CLASS, source_new._TEST)
    used: set[str] = set()
    for node in ast.walk(
        ast.parse("\n".join(each.format(name="own", cls="Own") for each in texts))
    ):
        if isinstance(node, ast.alias | ast.ClassDef):
            used.add(node.name)
    could_be = {each for each in used if re.fullmatch(r"([A-Z][a-z0-9]*)+", each)}
    assert could_be - {"Own", "TestOwn"} == source_new._USED
