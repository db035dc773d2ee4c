"""`ladon.toml`: what it says, and one sentence on what is wrong with it."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from prefect.client.schemas.schedules import CronSchedule, IntervalSchedule
from pydantic import SecretStr

from ladon_storage import ConfigurationError
from ladon_storage.collection.credentials import secret_lookup
from ladon_storage.project import Project, Schedule, StorageTable, example
from ladon_storage.settings import StorageSettings
from ladon_storage.sources import Kev, SqlTable, source_from

FILE = """
[storage]
url = "https://storage.example:8000"
token = "STORAGE_TOKEN"
timeout = 7

[sinks.records]
url = "sqlite:///records.db"
keep = "all"

[sinks.warehouse]
url_secret = "WAREHOUSE_URL"

[defaults]
sink = "records"
schedule.cron = "0 6 * * *"
limits = { initial_lookback = 30, quarantine_share = 0.2 }
freshness.max_age_hours = 48

[sources.kev]
kind = "kev"

[sources.mirror]
kind = "kev"
url = "https://mirror.example.org/kev.json"
sink = "warehouse"
schedule = { interval = 3600, timezone = "Europe/Berlin" }
limits.quarantine_share = 0.5
freshness.max_age_hours = 2

[sources.logins]
kind = "sql"
source_id = "app-logins"
url = "sqlite:///data/app.db"
table = "logins"
overlap = "PT1H"
schedule.active = false
"""


def written(folder: Path, text: str) -> Path:
    file = folder / "ladon.toml"
    file.write_text(text, encoding="utf-8")
    return file


def complaint(folder: Path, text: str) -> str:
    """Return the sentence with which a file is refused, without the file's name."""
    file = written(folder, text)
    with pytest.raises(ConfigurationError) as caught:
        Project.load(file)
    said = str(caught.value)
    assert str(file) in said
    assert "\n" not in said
    assert said.endswith((".", "?"))
    return said.replace(f"{file}: ", "")


def test_file_says_sources_with_their_defaults(tmp_path: Path) -> None:
    """A source has what the defaults say, but for what it says itself; limits go one by one."""
    project = Project.load(written(tmp_path, FILE))
    kev, mirror, logins = (project.sources[name] for name in ("kev", "mirror", "logins"))
    assert list(project.sources) == ["kev", "mirror", "logins"]
    assert kev.schedule == Schedule(cron="0 6 * * *")
    assert mirror.schedule == Schedule(interval=timedelta(hours=1), timezone="Europe/Berlin")
    assert logins.schedule
    assert logins.schedule.prefect() is None
    assert (kev.sink, project.sink_of("mirror")) == ("records", "warehouse")
    assert kev.limits.initial_lookback == mirror.limits.initial_lookback == timedelta(days=30)
    assert (kev.limits.quarantine_share, mirror.limits.quarantine_share) == (0.2, 0.5)
    assert project.limits_of("mirror") == mirror.limits
    assert kev.freshness
    assert mirror.freshness
    assert (kev.freshness.max_age_hours, mirror.freshness.max_age_hours) == (48, 2)


def test_source_is_called_as_its_table(tmp_path: Path) -> None:
    """Two sources of a kind are two sources, unless a table gives a name of its own."""
    project = Project.load(written(tmp_path, FILE))
    assert project.source("kev") == Kev()
    assert project.source("mirror") == Kev(
        source_id="mirror", url="https://mirror.example.org/kev.json"
    )
    assert project.source("logins").source_id == "app-logins"
    for name in project.sources:
        assert source_from(project.source_fields(name)) == project.source(name)


def test_relative_paths_start_at_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run finds its databases from whatever folder it is started in."""
    file = written(tmp_path, FILE.replace("https://storage.example:8000", "sqlite:///ladon.db"))
    project = Project.load(file)
    assert repr(project.sink("records")) == (
        f"SqlSink('sqlite:///{tmp_path}/records.db', table='records', keep='all')"
    )
    source = project.source("logins")
    assert isinstance(source, SqlTable)
    assert source.url == f"sqlite:///{tmp_path}/data/app.db"
    assert project.storage.url == f"sqlite:///{tmp_path}/ladon.db"
    monkeypatch.chdir(tmp_path)
    assert Project.load(Path("ladon.toml")).storage.url == "sqlite:///ladon.db"


@pytest.mark.parametrize(
    "url",
    [
        "sqlite:////var/lib/x.db", "duckdb:////var/lib/x.db", "jsonl:///var/lib/x",
        "delta:///var/lib/x", "s3://bucket/lake", "postgresql://reader@db.example.org/logs",
    ],
)  # fmt: skip
def test_absolute_address_stays(tmp_path: Path, url: str) -> None:
    """Only what is relative has a folder put before it."""
    project = Project.load(
        written(tmp_path, f'[sinks.records]\nurl = "{url}"\n'), check_sources=False
    )
    assert project.sinks["records"].url == url


@pytest.mark.parametrize("url", ["jsonl://records", "delta://lake/records", "duckdb:///r.duckdb"])
def test_relative_folder_of_a_sink_starts_at_the_file(tmp_path: Path, url: str) -> None:
    """Sinks in folders and in files are found as databases are."""
    project = Project.load(written(tmp_path, f'[sinks.records]\nurl = "{url}"\n'))
    scheme, mark, rest = url.rpartition("///" if url.startswith("duckdb") else "//")
    assert project.sinks["records"].url == f"{scheme}{mark}{tmp_path}/{rest}"


def test_file_is_found_in_the_folder_or_by_the_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without an argument it is `ladon.toml` here, or what `LADON_FILE` names."""
    monkeypatch.delenv("LADON_FILE", raising=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigurationError, match=r"'ladon\.toml' does not exist\. Write one"):
        Project.load()
    written(tmp_path, FILE)
    assert Project.load().path == Path("ladon.toml")
    (tmp_path / "other.toml").write_text("[storage]\n")
    monkeypatch.setenv("LADON_FILE", str(tmp_path / "other.toml"))
    assert Project.load().sources == {}


async def test_storage_has_the_secrets_that_the_file_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A secret comes from a block or the environment, when it is needed."""
    project = Project.load(written(tmp_path, FILE))

    async def vault(name: str) -> str | None:
        return "s3cret" if name == "STORAGE_TOKEN" else None

    expected = StorageSettings(
        url="https://storage.example:8000", token=SecretStr("s3cret"), timeout=7
    )
    with secret_lookup(vault):
        assert await project.storage_settings() == expected
    monkeypatch.delenv("STORAGE_TOKEN", raising=False)
    with pytest.raises(ConfigurationError, match=r"'STORAGE_TOKEN' of \[storage\] token is not"):
        await project.storage_settings()
    monkeypatch.setenv("STORAGE_TOKEN", "s3cret")
    assert await project.storage_settings() == expected


async def test_file_without_a_storage_leaves_it_to_the_environment(tmp_path: Path) -> None:
    """What the file does not say, it does not decide."""
    assert await Project.load(written(tmp_path, "")).storage_settings() is None


def test_every_setting_of_a_storage_is_a_key() -> None:
    """What a block can say, the file can; secrets by their names."""
    keys = set(StorageTable.model_fields)
    assert keys - {"circuit_url_secret"} == set(StorageSettings.model_fields)
    defaults = {name: field.default for name, field in StorageTable.model_fields.items()}
    for name, field in StorageSettings.model_fields.items():
        assert defaults[name] == field.default, name


def test_single_sink_needs_no_name(tmp_path: Path) -> None:
    """With one sink there is no choice; with none or several, the sentence says what to name."""
    one = '[sinks.records]\nurl = "sqlite:///r.db"\n'
    two = one + '[sinks.other]\nurl = "sqlite:///o.db"\n'
    source = '[sources.kev]\nkind = "kev"\n'
    assert Project.load(written(tmp_path, one + source)).sink_of("kev") == "records"
    for text, there in ((two, "name one of records, other"), ("", "name a table [sinks.NAME]")):
        project = Project.load(written(tmp_path, text + source))
        with pytest.raises(ConfigurationError, match=re.escape(f"sink: is missing; {there}")):
            project.sink_of("kev")


def test_name_that_is_not_there_has_a_nearest_one(tmp_path: Path) -> None:
    """A misspelt source or sink on a command line is told with what is meant."""
    project = Project.load(written(tmp_path, FILE))
    with pytest.raises(ConfigurationError, match="has no source 'kve'; did you mean 'kev'"):
        project.source("kve")
    with pytest.raises(ConfigurationError, match="has no sink 'x'; there are records, warehouse"):
        project.sink("x")


@pytest.mark.parametrize("other", ["kev ", "kev\\u200b", "\\uff4bev"])
@pytest.mark.parametrize("kind", ["sources", "sinks"])
def test_names_that_look_alike_are_refused(tmp_path: Path, kind: str, other: str) -> None:
    """Nobody could tell their rows apart; names that differ to the eye, also in case, may stay."""
    fields = {"sources": 'kind = "kev"', "sinks": 'url = "sqlite:///r.db"'}[kind]
    more = '\nsource_id = "other"\n' if kind == "sources" else "\n"
    odd = f'[{kind}."{other}"]\n{fields}{more}'
    with pytest.raises(ConfigurationError, match=rf"looks like \[{kind}.kev\] in a list"):
        Project.load(written(tmp_path, f"[{kind}.kev]\n{fields}\n{odd}"))
    Project.load(written(tmp_path, f"[{kind}.KEV]\n{fields}\n{odd}"))


SINK = '[sinks.records]\nurl = "sqlite:///r.db"\n'
KEV = '[sources.kev]\nkind = "kev"\n'
REST = '[sources.r]\nkind = "rest"\nurl = "https://x.example"\ntimestamps = ["at"]\n'


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[source.kev]", "source: There is no such key; did you mean 'sources'?"),
        ("[[sources]]", "sources: should be a table. Write [sources.NAME] above its keys."),
        ("storage = 1", "storage: should be a table. Write [storage] above its keys."),
        ('[sources]\nkev = "kev"', "[sources] kev: should be a table. Write [sources.kev] above"),
        ('[storage]\ntokn = "A"', "[storage] tokn: There is no such key; did you mean 'token'?"),
        ('[storage]\ntoken = "a b"', "[storage] token: should be the name of a Prefect Secret"),
        ("[storage]\ntimeout = 0", "[storage] timeout: Input should be greater than 0."),
        ("[defaults]\nsnik = 1", "[defaults] snik: There is no such key; did you mean 'sink'?"),
        ("[defaults]\nlimits.lase = 5", "[defaults.limits] lase: There is no such key; did you"),
        ('[defaults]\nsink = "x"', "[defaults] sink: There is no table [sinks.x]."),
        (SINK + '[defaults]\nsink = "record"', "[sinks.record]; did you mean 'records'?"),
        (SINK + KEV + 'sink = "r"', "[sources.kev] sink: There is no table [sinks.r]; there are"),
        ('[sources.kev]\nurl = "x"', "[sources.kev] kind: is missing."),
        ('[sources.kev]\nknd = "kev"', "[sources.kev] knd: There is no such key; did you mean"),
        ("[sources.kev]\nkind = 7", "[sources.kev] kind: Input should be a valid string."),
        ('[sources.kev]\nkind = "kve"', "not 'kve'; did you mean 'kev'?"),
        ('[sources.a]\nkind = "no.such:Class"', "[sources.a] kind: The source 'no.such:Class'"),
        (KEV + 'ulr = "x"', "[sources.kev] ulr: There is no such key; did you mean 'url'?"),
        (KEV + 'url = "x"', "[sources.kev] url: should be an address such as"),
        (KEV + "shedule = 1", "[sources.kev] shedule: There is no such key; did you mean 'sche"),
        (KEV + "connection.time_out = 5", "[sources.kev.connection] time_out: There is no such"),
        (KEV + 'schedule = "0 6 * * *"', "should be a table. Write schedule.cron = "),
        (KEV + "limits = 3", "[sources.kev] limits: should be a table. Write limits.initial_look"),
        (KEV + "freshness = 48", "should be a table. Write freshness.max_age_hours = 48."),
        (KEV + "reconcile = false", "Write reconcile.active = false, or reconcile.last_days = 30."),
        (REST + 'since = "updated_since"', 'should be a table. Write since.parameter = "updated_s'),
        (REST + 'paging = "page"', '[sources.r] paging: should be a table. Write paging.kind = "'),
        (KEV + "connection = 5", "[sources.kev] connection: should be a table."),
        (KEV + "freshness.max_age_hours = 1e12", "max_age_hours: Input should be less than"),
        (KEV + 'schedule.crn = "x"', "[sources.kev.schedule] crn: There is no such key; did you"),
        (KEV + "schedule = {}", "[sources.kev] schedule: has neither cron nor interval; set one"),
        (KEV + 'schedule = {cron = "0 6 * * *", interval = 5}', "has cron and interval; remove"),
        (KEV + "schedule.interval = 0", "[sources.kev.schedule] interval: Input should be greater"),
        (KEV + "schedule.interval = -5", "interval: Input should be greater than or equal to 0."),
        (KEV + 'schedule.interval = "1h"', "interval: should be a number, or a text such as PT1H"),
        (KEV + "schedule.interval = true", "interval: should be a number or a text such as PT1H"),
        (KEV + "limits.initial_lookback = true", "initial_lookback: should be a number or a text"),
        (KEV + "limits.lease = true", "[sources.kev.limits] lease: should be a number or a text"),
        (KEV + "limits.removed_share = true", "[sources.kev.limits] removed_share: should be a nu"),
        (REST + "overlap = true", "[sources.r] overlap: should be a number or a text such as PT1H"),
        (REST + 'paging = {kind = "page", page_size = true}', "[sources.r.paging] page_size: shou"),
        (KEV + "connection.timeout = true", "[sources.kev.connection] timeout: should be a number"),
        ("[storage]\ntimeout = 5\ntoken = 'T'", "[storage] url: is missing, without which timeout"),
        ("[storage]\ntimeout = true", "[storage] timeout: should be a number, not true or false."),
        ("[collect_many]\nspread = true", "[collect_many] spread: Input should be a valid integer"),
        (REST + 'paging.kind = "offsett"', "[sources.r.paging] kind: should be one of 'none', "),
        (REST + 'paging.kind = "offsett"', "not 'offsett'; did you mean 'offset'?"),
        (REST + 'paging.parameter = "p"', "[sources.r.paging] kind: is missing."),
        (REST + 'paging = {kind = "page", sise_parameter = "x"}', "[sources.r.paging] sise_param"),
        (REST + 'timestamp_format = "rfc"', "[sources.r] timestamp_format: should be one of iso"),
        ('[sources.r]\nkind = "rest"\nurl = "https://x.example"\ntimestamps = "at"',
         "[sources.r] timestamps: should be a list."),
        (KEV + 'schedule = {interval = 5, timezone = "Mars"}', "timezone: should be a time zone"),
        (KEV + 'cron = "0 6 * * *"', "There is no such key here. Write it as schedule.cron."),
        (KEV + "initial_lookback = 3", "Write it as limits.initial_lookback."),
        (KEV + "max_age_hours = 3", "Write it as freshness.max_age_hours."),
        (KEV + "limits.overlap = 3", "[sources.kev.limits] overlap: There is no such key here."),
        (KEV + "limits.lease = 86401", "[sources.kev.limits] lease: Input should be less than"),
        (KEV + "freshness.max_age = 4", "max_age: There is no such key; did you mean 'max_age_h"),
        (KEV + "freshness.max_age_hours = 0", "[sources.kev.freshness] max_age_hours: Input"),
        (KEV + "freshness.max_age_hours = inf", "[sources.kev.freshness] max_age_hours: Input"),
        ('[sinks.a]\ntable = "x"', "[sinks.a] A sink requires its address as the text 'url'"),
        (SINK + 'kep = "all"', "[sinks.records] A sink has no field 'kep'. Its fields are"),
        (SINK + 'keep = "al"', "[sinks.records] keep: Input should be 'latest' or 'all'."),
        ('[sinks.a]\nurl = "mysql://x/y"', "[sinks.a] There is no sink for an address of the sch"),
        ('[sources."a b"]\nkind = "kev"\nulr = 1', '[sources."a b"] ulr: There is no such key'),
        ('[sources.""]\nkind = "kev"', '[sources.""] source_id: should have 1 to 255'),
        ('[sources.a]\nkind = "kev"\n[sources.b]\nkind = "kev"\nsource_id = "a"',
         "[sources.b] source_id: is 'a', as that of [sources.a]."),
    ],
)  # fmt: skip
def test_mistake_is_one_sentence_with_its_place(tmp_path: Path, text: str, sentence: str) -> None:
    """Whatever is wrong is said with its table, its key and the nearest right name."""
    assert sentence in complaint(tmp_path, text)


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ('[sinks.a]\nurl = "postgresql://me:SECRET@db/x"', "set url_secret to its name"),
        ('[sinks.a]\nurl = "postgresql://db/x?password=SECRET"', "set url_secret to its name"),
        (
            '[sinks.a]\nurl = "s3://b/l"\noptions = { AWS_SESSION_TOKEN = "SECRET" }',
            "set secrets.AWS_SESSION_TOKEN to its name",
        ),
        ('[sinks.a]\nurl_secret = "postgresql://me:SECRET@db/x"', "set url_secret to its name"),
        ('[sinks.a]\nkind = "x:Y"\nplace = ["amqp://me:SECRET@q"]', "[sinks.a] place: holds"),
        ('[storage]\nurl = "https://me:SECRET@storage"', "set password, token or circuit_url_s"),
        ('[storage]\ncircuit_url = "redis://:SECRET@redis"', "[storage] circuit_url: holds"),
        ('[sources.a]\nkind = "sql"\nurl = "mysql://me:SECRET@db/x"', "key or url_secret to its"),
        ('[sources.a]\nkind = "x:Y"\ndeep.url = "https://me:SECRET@x"', "[sources.a.deep] url: h"),
        ('[sources.a]\nkind = "otx"\nkey = "SECRETSECRET SECRET"', "[sources.a] key: should be"),
        ('[storage]\ntoken = "SECRET.SECRET.SECRET"', "[storage] token: should be the name"),
        ('[sources.a]\nkind = "kev"\ntokn = "SECRET"', "[sources.a] tokn: There is no such key"),
    ],
)
def test_secret_in_the_file_is_refused_unshown(tmp_path: Path, text: str, place: str) -> None:
    """A password has no place in a file that is committed; the sentence says where it belongs."""
    said = complaint(tmp_path, text)
    assert place in said
    assert "SECRET" not in said


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"x = ", "is not TOML: Invalid value"),
        (b"[sources.kev]\n[sources.kev]\n", "the table [sources.kev] is defined twice"),
        (b'x = "\xff"', "is not UTF-8. Save it as UTF-8."),
        (b"x = " + b"[" * 5_000, "its values are nested too deeply"),
    ],
)
def test_file_that_cannot_be_read_is_one_sentence(
    tmp_path: Path, content: bytes, sentence: str
) -> None:
    """What is no TOML says where, and a folder is no file."""
    (tmp_path / "ladon.toml").write_bytes(content)
    with pytest.raises(ConfigurationError, match=re.escape(sentence)):
        Project.load(tmp_path / "ladon.toml")
    with pytest.raises(ConfigurationError, match="cannot be read"):
        Project.load(tmp_path)


def test_mark_of_an_editor_is_no_mistake(tmp_path: Path) -> None:
    """Some editors begin UTF-8 with a mark, and end lines in their own way."""
    text = "\ufeff" + FILE.replace("\n", "\r\n")
    (tmp_path / "ladon.toml").write_bytes(text.encode())
    assert list(Project.load(tmp_path / "ladon.toml").sources) == ["kev", "mirror", "logins"]


def test_each_table_has_its_verdict(tmp_path: Path) -> None:
    """One source that is wrong leaves the others usable, and each is judged on its own."""
    text = FILE + '[sources.odd]\nkind = "kve"\n[sources.other]\nkind = "kev"\nulr = 1\n'
    project = Project.load(written(tmp_path, text), check_sources=False)
    wrong = {table for table, problem in project.problems() if problem is not None}
    assert wrong == {"sources.odd", "sources.other"}
    assert len(list(project.problems())) == 7
    assert project.source("kev") == Kev()
    with pytest.raises(ConfigurationError, match=r"\[sources\.odd\] kind"):
        project.source("odd")


@pytest.mark.parametrize(
    ("schedule", "prefects"),
    [
        ({"cron": "0 6 * * MON-FRI", "timezone": "Europe/Berlin"}, CronSchedule),
        ({"cron": "@daily"}, CronSchedule),
        ({"cron": "*/5 0-3,7 1 JAN *", "active": False}, CronSchedule),
        ({"interval": 90}, IntervalSchedule),
        ({"interval": "P1DT1H", "anchor_date": datetime(2026, 1, 1)}, IntervalSchedule),  # noqa: DTZ001
    ],
)
def test_schedule_is_one_of_prefects(schedule: dict[str, Any], prefects: Any) -> None:
    """What the file accepts, Prefect accepts as it stands in a `prefect.yaml`."""
    entry = Schedule.model_validate(schedule).prefect()
    assert entry
    assert entry.pop("active", True) is schedule.get("active", True)
    assert prefects.model_validate(entry).timezone == schedule.get("timezone", "UTC")


def test_anchor_without_an_offset_is_in_the_zone_of_the_schedule() -> None:
    """Six o'clock is that of the schedule's zone, which Prefect would take for UTC's."""
    schedule: dict[str, Any] = {"interval": "P1D", "timezone": "Europe/Berlin"}
    at_six = datetime(2026, 1, 1, 6)  # noqa: DTZ001
    entry = Schedule.model_validate({**schedule, "anchor_date": at_six}).prefect()
    anchor = IntervalSchedule.model_validate(entry).anchor_date
    assert anchor.astimezone(UTC) == datetime(2026, 1, 1, 5, tzinfo=UTC)
    offset = {**schedule, "anchor_date": "2026-01-01T06:00:00Z"}
    entry = Schedule.model_validate(offset).prefect()
    assert IntervalSchedule.model_validate(entry).anchor_date.astimezone(UTC).hour == 6


@pytest.mark.parametrize(
    "cron", ["", "* * * *", "* * * * * *", "60 * * * *", "*/0 * * * *", "0 0 LW * *", "0 0 * * 5L",
             "0 0 31 2 *", "R * * * *", "0 24 * * *", "@reboot", "every day at six o'clock"],
)  # fmt: skip
def test_cron_that_prefect_would_refuse_or_never_run_is_refused(cron: str) -> None:
    """A schedule is wrong when the file is read, and not when it is deployed, or never."""
    with pytest.raises(ValueError, match="cron"):
        Schedule(cron=cron)


OWN = """
from datetime import timedelta
from ladon_storage.collection.records import Page, Record

class Tickets:
    overlap = timedelta(0)
    def __init__(self, source_id, project):
        self.source_id, self.project = source_id, project
    async def pages(self, start, until):
        yield Page(records=[])
"""


def test_class_beside_the_file_is_a_kind(tmp_path: Path) -> None:
    """A source of one's own in the file's folder needs no installation, from any folder."""
    (tmp_path / "own_tickets_beside.py").write_text(OWN)
    text = '[sources.tickets]\nkind = "own_tickets_beside:Tickets"\nproject = "p"\n'
    file = written(tmp_path, text)
    code = (
        "import sys\n"
        "from ladon_storage.project import Project\n"
        f"project = Project.load({str(file)!r})\n"
        "source = project.source('tickets')\n"
        "assert (source.source_id, source.project) == ('tickets', 'p')\n"
        "assert project.source_fields('tickets')['source_id'] == 'tickets'\n"
        f"assert sys.path[-1] == {str(tmp_path)!r}, sys.path\n"
    )
    root = Path(__file__).parent.parent.parent
    subprocess.run(
        [sys.executable, "-c", code], check=True, cwd=root.parent, timeout=60,
        env={**os.environ, "PYTHONPATH": str(root)},
    )  # fmt: skip


def test_example_is_a_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `init` writes can be used at once, and so can each example that is commented out."""
    project = Project.load(written(tmp_path, example()))
    assert project.source("kev") == Kev()
    assert project.sink_of("kev") == "records"
    assert asyncio.run(project.storage_settings()) == StorageSettings(
        url=f"sqlite:///{tmp_path}/ladon.db"
    )
    uncommented = re.sub(r"(?m)^#(?=[\[a-z])", "", example())
    first = uncommented.replace('url = "sqlite:///ladon.db"\n', "", 1)
    (tmp_path / "tickets.py").write_text(OWN.replace(", project):", ", project='p'):"))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "tickets", None)  # what is imported leaves with the test
    del sys.modules["tickets"]
    every = Project.load(written(tmp_path, first))
    assert set(every.sources) > {"kev", "nvd", "incidents", "logins", "tickets"}
    assert set(every.sinks) == {"records", "warehouse"}


def test_reading_the_file_costs_no_prefect(tmp_path: Path) -> None:
    """A command that reads the file is at once there."""
    file = written(tmp_path, FILE)
    code = (
        "import sys\nfrom ladon_storage.project import Project\n"
        f"Project.load({str(file)!r})\n"
        "assert 'prefect' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
